"""`fastinit verify`: whether files that `fastinit init` wrote hold the values that their metadata promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fastinit import _native
from fastinit.audit.fingerprints import fingerprint
from fastinit.audit.verification import verify
from fastinit.cli.files import Entry, files_of, mapped, read_header
from fastinit.cli.mistakes import Mistake
from fastinit.cli.models import DTYPES, Named, planned
from fastinit.cli.writing import PREFIX, contents_of
from fastinit.errors import ParameterError
from fastinit.run.names import named_modules
from fastinit.run.streams import as_seed


class Outcome(NamedTuple):
    """What was compared, and what is wrong; nothing, if the files hold what they should."""

    files: tuple[Path, ...]
    tensors: int
    nbytes: int
    fingerprint: str | None
    problems: tuple[str, ...]


def run(path: Path, model: str | None = None) -> Outcome:
    """Make the values of a file, or of all files of an index, once more, and compare.

    Args:
        model: how to build the model, where the metadata name code, which is never run unless it is named here.

    Raises:
        Mistake: a file cannot be read, was not written by `fastinit init`, or its model cannot be built.
    """
    files = files_of(path)
    headers = [read_header(each) for each in files]
    metadata = headers[0].metadata
    if PREFIX + "stream_version" not in metadata:
        raise Mistake(f"FILE: {path} was not written by fastinit init: its metadata tell no stream version")
    problems = [
        f"{each.name}: its metadata differ from those of {files[0].name}"
        for each, header in zip(files, headers, strict=True)
        if header.metadata != metadata
    ]
    version = metadata[PREFIX + "stream_version"]
    if version != str(_native.STREAM_VERSION) or _native.module is None:
        here = _native.STREAM_VERSION if _native.module is not None else "none, for the native code is not built"
        raise Mistake(f"FILE: {path} has values of stream version {version}, and here it is {here}")
    made = planned(_named(metadata, model))
    contents, _ = contents_of(made)
    wanted = {each.entry.name: each for each in contents}
    entries: dict[str, Entry] = {}
    tensors: dict[str, torch.Tensor] = {}
    for each, header in zip(files, headers, strict=True):
        entries |= header.entries
        tensors |= mapped(each, header)
    problems += [f"{name}: the model has no such tensor" for name in entries if name not in wanted]
    for name, entry in entries.items():
        if name in wanted and entry != wanted[name].entry:
            expected = wanted[name].entry
            problems.append(
                f"{name}: expected {expected.dtype} {expected.shape}, the file has {entry.dtype} {entry.shape}"
            )
    right = {name for name, entry in entries.items() if name in wanted and entry == wanted[name].entry}
    is_whole = len(files) > 1 or path.suffix == ".json" or "-of-" not in path.stem
    if is_whole:
        problems += [f"{name}: is missing" for name in wanted if name not in entries]
    for name in sorted(right):
        value = wanted[name].values
        if value is not None and not _same(tensors[name], value):
            problems.append(f"{name}: has other values")
    _hold(made.model, {name: tensors[name] for name in right})
    plan = made.plan.filter(lambda row: row.action == "init" and row.name in right)
    try:
        problems += [f"{name}: has other values" for name in verify(made.model, plan, limit=_MOST)]
    except ParameterError as error:
        problems.append(str(error))
    found = None
    if is_whole and right == wanted.keys():
        found = f"{fingerprint(made.model):016x}"
        if found != metadata.get(PREFIX + "fingerprint"):
            problems.append(f"fingerprint: the metadata say {metadata.get(PREFIX + 'fingerprint')}, it is {found}")
    return Outcome(tuple(files), len(entries), sum(each.nbytes for each in entries.values()), found, tuple(problems))


_MOST = 10  # names of parameters with other values


def _named(metadata: Mapping[str, str], model: str | None) -> Named:
    said = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    try:
        name, config = said["model"], said.get("config")
        seed = as_seed(int(said["seed"]))
    except (KeyError, ValueError) as error:
        raise Mistake(f"FILE: its metadata are damaged: {error}") from error
    if said.get("dtype") not in (None, *DTYPES):
        raise Mistake(f"FILE: its metadata are damaged: dtype {said['dtype']!r}")
    if model is not None:
        name, config = model, Path(model).read_text(encoding="utf-8") if model.endswith(".json") else None
    elif ":" in name and config is None:
        raise Mistake(
            f"FILE: its model is built by {name}; code that a file names is run only if you name it: --model {name}"
        )
    return Named(name, config, said.get("scheme"), said.get("recipe"), seed or 0, said.get("dtype"))


def _hold(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in the place of a model's parameters, with their ties."""
    new: dict[int, nn.Parameter] = {}
    for each in named_modules(model):
        for own_name, parameter in each.module._parameters.items():
            if parameter is None:
                continue
            tensor = tensors.get(each.names_of(own_name)[0])
            if tensor is not None and id(parameter) not in new:
                new[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    for each in named_modules(model):
        for own_name, parameter in each.module._parameters.items():
            if parameter is not None and id(parameter) in new:
                each.module._parameters[own_name] = new[id(parameter)]


def _same(given: torch.Tensor, expected: torch.Tensor) -> bool:
    expected = expected.detach().contiguous()
    return torch.equal(given.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def shown(problems: Sequence[str], most: int = 20) -> list[str]:
    """The first problems, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]
