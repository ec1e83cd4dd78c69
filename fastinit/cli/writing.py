"""`fastinit init`: the initial values of a model, written to safetensors files in constant memory.

A buffer of a few MiB is filled, read for the fingerprint while it is in the cache, and handed to a thread that writes
it, while the next one is filled. Whole blocks are written; the rest of a buffer is the beginning of the next.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastinit import _native
from fastinit._version import __version__
from fastinit.audit.hashing import MASK, Hashed, key_of, sums
from fastinit.cli.disk import BLOCK, Blocks, aligned, write_all
from fastinit.cli.files import Entry, encoded_header
from fastinit.cli.mistakes import Mistake
from fastinit.cli.models import Named, Planned, planned
from fastinit.meta.buffers import plan_restoration
from fastinit.plans.planned import Plan
from fastinit.plans.rows import Row
from fastinit.run import engine
from fastinit.run.index_maps import BoxIndices, boxes, whole
from fastinit.run.names import named_modules
from fastinit.run.progress import Meter, Progress, metered
from fastinit.run.targets import Target

PREFIX = "fastinit."  # of our keys in the metadata
_NO_FINGERPRINT = "-" * 16  # until all values were made
_BUFFER_BYTES = 2**24
_BUFFERS = 3
_ROOM_BYTES = 2**26  # that a disk should have left


class Content(NamedTuple):
    """A tensor that goes to a file: from its row of the plan, or with values that are there already."""

    entry: Entry
    row: Row | None
    values: torch.Tensor | None
    is_parameter: bool


class Written(NamedTuple):
    """What was written."""

    files: tuple[Path, ...]
    index_file: Path | None
    tensors: int
    numel: int
    nbytes: int
    fingerprint: int
    scheme: str
    tied: dict[str, str]


def contents_of(made: Planned) -> tuple[list[Content], dict[str, str]]:
    """The tensors of a model's file, in the order of the model, and for every tied name the one that is stored.

    These are its parameters and its persistent buffers, as in `state_dict()`; tied parameters come once, under the
    first name, as in transformers' files.

    Raises:
        Mistake: a parameter has no value, or is computed by a parametrisation.
    """
    found: dict[str, Content] = {}
    tied: dict[str, str] = {}
    try:
        values = plan_restoration(made.model, seed=made.plan.seed or 0).values()
    except (ValueError, TypeError) as error:
        raise Mistake(str(error)) from error
    persistent: dict[str, torch.Tensor] = {}
    for each in named_modules(made.model):
        for own_name, buffer in each.module._buffers.items():
            if buffer is not None and own_name not in each.module._non_persistent_buffers_set:
                persistent[each.names_of(own_name)[0]] = buffer
    first_names: dict[int, str] = {}
    for row in made.plan.rows:
        name = row.name
        if row.shape is None:
            raise Mistake(f"{name}: lazy, and without a shape")
        entry = Entry(name, tuple(row.shape), row.dtype)
        if row.action == "original" or row.place.assignment is not None:
            raise Mistake(
                f"{name}: is computed by a parametrisation, which takes the whole model; use fastinit.materialize_"
            )
        if row.action == "tied":
            tied[name] = first_names[id(row.tensor)]
            continue
        if row.action == "buffer":
            if name in persistent:
                value = values[name] if persistent[name].is_meta else persistent[name]
                found[name] = Content(entry, None, value, False)
            continue
        first_names[id(row.tensor)] = name
        if row.action == "init":
            found[name] = Content(entry, row, None, True)
        elif row.device.type == "meta":
            raise Mistake(f"{name}: no rule covers it, and it has no values to keep ({row.reason}); give it a rule")
        else:
            found[name] = Content(entry, None, row.tensor.detach(), True)
    return list(found.values()), tied


def run(given: Named, out: Path, shard_bytes: int, replace: bool = False, progress: Progress = None) -> Written:
    """Write the initial values of a model to `out`, or to shards beside it with an index.

    Files appear under their names once all of them are complete.

    Raises:
        Mistake: see `planned`, `contents_of`; or the files cannot be written.
    """
    if out.suffix != ".safetensors":
        raise Mistake(f"--out: expected a path that ends in .safetensors, got {out}")
    made = planned(given)
    contents, tied = contents_of(made)
    shards = _shards(contents, shard_bytes)
    files, index = _paths(out, len(shards))
    nbytes = sum(each.entry.nbytes for each in contents)
    _check_place(files, index, nbytes, replace)
    metadata = _metadata(given, made, tied)
    parts = [file.with_name(file.name + ".part") for file in files]
    total = 0
    try:
        places = []
        with metered(progress, "writing", nbytes) as meter:  # until all of it is on the disk
            with ThreadPoolExecutor(1) as writer:
                for part, shard in zip(parts, shards, strict=True):
                    header = encoded_header([each.entry for each in shard], metadata)
                    places.append(header.index(_NO_FINGERPRINT.encode()))
                    with part.open("wb", buffering=0) as file:
                        total += _write_file(Blocks(file), header, writer, shard, made.plan, meter)
            fingerprint = f"{total & MASK:016x}"
            for part, place in zip(parts, places, strict=True):
                with part.open("r+b", buffering=0) as file:
                    file.seek(place)
                    write_all(file, fingerprint.encode())
                    os.fsync(file.fileno())
        for part, file_path in zip(parts, files, strict=True):
            os.replace(part, file_path)
        if index is not None:
            kept = {"total_size": nbytes, **metadata, PREFIX + "fingerprint": fingerprint}
            weight_map = {
                each.entry.name: file.name for file, shard in zip(files, shards, strict=True) for each in shard
            }
            index.write_text(
                json.dumps({"metadata": kept, "weight_map": weight_map}, indent=2) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise Mistake(f"--out: cannot write {out}: {error.strerror}") from error
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()
    numel = sum(math.prod(each.entry.shape) for each in contents)
    return Written(tuple(files), index, len(contents), numel, nbytes, total & MASK, made.scheme, tied)


def _metadata(given: Named, made: Planned, tied: Mapping[str, str]) -> dict[str, str]:
    """All that `verify` needs to make the values again, and what a reader wants to know."""
    native = _native.module is not None
    said: dict[str, str | None] = {
        "version": __version__,
        "stream_version": str(_native.STREAM_VERSION) if native else f"none, by torch.nn.init of {torch.__version__}",
        "fingerprint": _NO_FINGERPRINT,
        "seed": str(given.seed),
        "model": given.model,
        "scheme": given.scheme or (None if given.rules else made.scheme),
        "recipe": given.rules,
        "dtype": given.dtype,
        "config": given.config,
        "tied": json.dumps(tied) if tied else None,
    }
    return {"format": "pt", **{PREFIX + key: value for key, value in said.items() if value is not None}}


def _shards(contents: Sequence[Content], shard_bytes: int) -> list[list[Content]]:
    """The tensors of each file: as many as fit, in the order of the model.

    Within a file, wider elements come first, so that each lies at a multiple of its size.
    """
    shards: list[list[Content]] = [[]]
    nbytes = 0
    for each in contents:
        if shards[-1] and nbytes + each.entry.nbytes > shard_bytes:
            shards.append([])
            nbytes = 0
        shards[-1].append(each)
        nbytes += each.entry.nbytes
    return [sorted(shard, key=lambda each: -each.entry.dtype.itemsize) for shard in shards]


def _paths(out: Path, shards: int) -> tuple[list[Path], Path | None]:
    if shards == 1:
        return [out], None
    names = [f"{out.stem}-{at:05d}-of-{shards:05d}.safetensors" for at in range(1, shards + 1)]
    return [out.with_name(name) for name in names], out.with_name(out.name + ".index.json")


def _check_place(files: Sequence[Path], index: Path | None, nbytes: int, replace: bool) -> None:
    folder = files[0].parent
    if not folder.is_dir():
        raise Mistake(f"--out: there is no folder {folder}")
    there = [path for path in (*files, *([index] if index else [])) if path.exists()]
    if there and not replace:
        raise Mistake(f"--out: {there[0]} is there already; --force replaces it")
    free = shutil.disk_usage(folder).free
    if nbytes + _ROOM_BYTES > free:
        raise Mistake(f"--out: the files take {nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left")


class _Piece(NamedTuple):
    """A box of a tensor, with consecutive bytes in the file."""

    content: Content
    begin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.content.entry.dtype.itemsize


def _pieces(content: Content, backend: str) -> Iterator[_Piece]:
    """The boxes that are made one by one. Where only the whole tensor can tell (orthogonal), it is one piece."""
    entry, row = content.entry, content.row
    if row is not None:
        assert row.distribution is not None
        target = Target(entry.name, torch.empty(0), torch.Size(entry.shape), entry.dtype, _CPU, row.distribution)
        if row.distribution.needs == "tensor" or not engine.fills_natively(target, backend):
            yield _Piece(content, (0,) * len(entry.shape), entry.shape)
            return
    for begin, shape in boxes(entry.shape, _BUFFER_BYTES // entry.dtype.itemsize):
        yield _Piece(content, begin, shape)


def _batches(shard: Sequence[Content], backend: str) -> Iterator[list[_Piece]]:
    """Consecutive pieces that fit into one buffer, or one piece that is larger."""
    batch: list[_Piece] = []
    nbytes = 0
    for content in shard:
        for piece in _pieces(content, backend):
            if batch and nbytes + piece.nbytes > _BUFFER_BYTES:
                yield batch
                batch, nbytes = [], 0
            batch.append(piece)
            nbytes += piece.nbytes
    if batch:
        yield batch


_CPU = torch.device("cpu")


def _write_file(
    file: Blocks, header: bytes, writer: ThreadPoolExecutor, shard: Sequence[Content], made: Plan, meter: Meter | None
) -> int:
    """Write a file's header and values, and return the sum of the hashes of its parameters."""
    buffers = [aligned(BLOCK + _BUFFER_BYTES) for _ in range(_BUFFERS)]
    busy: list[Future[None] | None] = [None] * _BUFFERS
    total = 0
    left = torch.frombuffer(bytearray(header), dtype=torch.uint8)  # what no block was full of
    for at, batch in enumerate(_batches(shard, made.backend)):
        which = at % _BUFFERS
        earlier = busy[which]
        if earlier is not None:
            earlier.result()
        nbytes = sum(each.nbytes for each in batch)
        begin, end = left.numel(), left.numel() + nbytes
        buffer = buffers[which][:end] if end <= buffers[which].numel() else aligned(end)
        buffer[:begin] = left
        total += _fill(buffer[begin:], batch, made)
        whole_blocks = end - end % BLOCK
        left = buffer[whole_blocks:].clone()  # the buffer's turn may come before it is written
        busy[which] = writer.submit(file.write, buffer[:whole_blocks])
        if meter is not None:
            meter.advance(nbytes)
    for each in busy:
        if each is not None:
            each.result()
    whole_blocks = left.numel() - left.numel() % BLOCK  # of a header without tensors
    start = aligned(whole_blocks)
    start.copy_(left[:whole_blocks])
    file.write(start)
    file.finish(left[whole_blocks:])
    return total


def _fill(buffer: torch.Tensor, batch: Sequence[_Piece], made: Plan) -> int:
    """Make the values of a batch, one piece behind the other, and return the sum of the parameters' hashes."""
    targets, hashed, begin = [], [], 0
    for piece in batch:
        entry, row = piece.content.entry, piece.content.row
        tensor = buffer[begin : begin + piece.nbytes].view(entry.dtype).view(piece.shape)
        begin += piece.nbytes
        if row is not None:
            assert row.distribution is not None
            of_tensor = None if piece.shape == entry.shape else piece.begin
            shape = torch.Size(entry.shape)
            targets.append(Target(entry.name, tensor, shape, entry.dtype, _CPU, row.distribution, None, of_tensor))
        else:
            values: Any = piece.content.values
            for dim, (first, size) in enumerate(zip(piece.begin, piece.shape, strict=True)):
                values = values.narrow(dim, first, size)
            tensor.copy_(values)
        if piece.content.is_parameter:
            indices = whole(entry.shape)
            offset = sum(first * step for first, step in zip(piece.begin, indices.strides, strict=True))
            key = key_of(entry.name, entry.dtype, entry.shape)
            hashed.append(Hashed(key, tensor, BoxIndices(offset, indices.strides)))
    engine.Program(targets, made.backend, checks_memory=False).run_(made.seed, None)
    return sum(sums(hashed))
