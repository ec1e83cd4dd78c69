"""Twins: a model that knows nothing of how it was built reads it from another one, built by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.capture.contexts import deferred
from fastinit.capture.graph import Geometry, Known, View
from fastinit.capture.tapes import Tape, drop_tape, keep_tape, tape_of
from fastinit.distributed.held import global_shape
from fastinit.errors import ParameterError
from fastinit.run.names import Renamer, named_modules


@contextmanager
def twin_tapes(model: nn.Module, build: Callable[[], nn.Module], rename: Renamer, seed: int) -> Iterator[None]:
    """Let the modules of a model have the tapes of a twin, which `build` makes under the recorder.

    Tensors of the model that were recorded themselves keep their own tapes. `rename` gives the twin's names if the
    model is a part of it. Nothing but tapes changes, and they are gone when the context is left.

    Raises:
        TypeError, ValueError: `build` makes no module, or the model itself.
        ParameterError: a parameter or buffer of one is not in the other, or has another shape there.
    """
    if not callable(build):
        raise TypeError(f"build: expected a function that builds the model, got {build!r}")
    with deferred(seed=seed):
        twin = build()
    if not isinstance(twin, nn.Module):
        raise TypeError(f"build: expected a function that returns a module, got {type(twin).__name__} from it")
    if twin is model:
        raise ValueError("build: expected a function that builds the model again, got one that returns the model")
    own = {rename(name): found for name, found in _tensors(model).items()}
    twins = _tensors(twin)
    _check(own, twins, is_part=not rename.changes_nothing)
    kept, lent = [], []
    try:
        for name, each in twins.items():
            found = own.get(name)
            if found is None or (found.tensor is not None and tape_of(found.module, found.own_name) is not None):
                continue
            tape = _tape(name, each)
            if tape is None:
                continue
            if found.tensor is None and each.kind == "_buffers":  # it is made from values only
                found.module._buffers[found.own_name] = each.tensor
                lent.append(found)
            keep_tape(found.module, found.own_name, tape)
            kept.append(found)
        yield
    finally:
        for each in kept:
            drop_tape(each.module, each.own_name)
        for each in lent:
            buffer = each.module._buffers[each.own_name]
            if buffer is not None and buffer.is_meta:
                each.module._buffers[each.own_name] = None


class _Found(NamedTuple):
    """A tensor of a module, or the place of one, and which dictionary of the module has it."""

    module: nn.Module
    own_name: str
    tensor: Any
    kind: str


def _tensors(model: nn.Module) -> dict[str, _Found]:
    """The parameters, buffers and plain attributes of a model under all their canonical names."""
    found = {}
    for each in named_modules(model):
        for kind in ("__dict__", "_buffers", "_parameters"):
            for own_name, tensor in getattr(each.module, kind).items():
                if isinstance(tensor, torch.Tensor) or (tensor is None and kind == "_buffers"):
                    found[each.names_of(own_name)[0]] = _Found(each.module, own_name, tensor, kind)
    return found


def _check(own: dict[str, _Found], twins: dict[str, _Found], *, is_part: bool) -> None:
    """Raise ParameterError if the tensors are not those of the twin. A part may lack some of them."""
    for name, each in own.items():
        if each.kind == "__dict__" or each.tensor is None:
            continue  # it may have been set since
        twin = twins.get(name)
        if twin is None or twin.tensor is None:
            raise ParameterError(name, "is in the model, but not in the one that build makes")
        wanted, given = tuple(global_shape(each.tensor)), tuple(twin.tensor.shape)
        if wanted != given:
            raise ParameterError(name, f"has shape {wanted}, but {given} in the model that build makes")
    for name, each in twins.items():
        if each.kind == "_parameters" and name not in own and not is_part:
            raise ParameterError(name, "is in the model that build makes, but not in the one to materialise")


def _tape(name: str, each: _Found) -> Tape | None:
    """How a tensor of the twin is made; None if nobody knows."""
    tape = tape_of(each.module, each.own_name)
    if tape is not None or each.tensor is None or each.tensor.is_meta:
        return tape
    copy = each.tensor.detach().cpu().contiguous().clone()  # it has memory all the same, as from NumPy
    known = Known(copy.untyped_storage().nbytes(), copy.untyped_storage())
    return Tape(View(known, Geometry.of(copy)), name, 0)
