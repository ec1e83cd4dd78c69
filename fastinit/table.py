"""The table that crosses to the native code: a structured array with a row a tensor, or several where it needs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native
from fastinit.checks import NAMELESS
from fastinit.distributions import (
    Blocks,
    Constant,
    Diagonal,
    Distribution,
    Normal,
    Sampled,
    TruncNormal,
    Uniform,
    ZeroRow,
)
from fastinit.layout import IndexMap, Part, index_maps, whole
from fastinit.streams import name_id

# csrc/core/task.h
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
DISTRIBUTIONS: dict[type[Sampled], int] = {Constant: 0, Uniform: 1, Normal: 2, TruncNormal: 3, Diagonal: 4}
_PADDING = tuple((0.0,) * (5 - length) for length in range(6))
_ZERO = Constant(0.0)
# csrc/core/prepare.h
_PREPARE_ERRORS = {
    1: "no value of {dtype} lies within {distribution}",
    2: "{distribution} lies more than 6 sigma to one side of its mean; float32 cannot sample so far out",
}


class Target(NamedTuple):
    """Values of `shape` that are `part` of the parameter `name`, or all of it; and a tensor to write them to.

    Where a rank holds a shard, `tensor` is a box of those values, from the indices `begin` on.
    """

    name: str
    tensor: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    distribution: Distribution
    part: Part | None = None
    begin: tuple[int, ...] | None = None


def part_of(target: Target) -> Part:
    """Where a target's values lie in its parameter."""
    return target.part or whole(target.shape)


def part_of_tensor(target: Target) -> Part | None:
    """Where a target's tensor lies in its parameter; None: it is all of it."""
    if target.begin is None:
        return target.part
    offset, strides = part_of(target)
    return Part(offset + sum(map(mul, target.begin, strides)), strides)


def begin_of(target: Target) -> tuple[int, ...]:
    """The indices of the tensor's first element among the target's values."""
    return target.begin or (0,) * len(target.shape)


def name_of_part(target: Target) -> str:
    """A name for random numbers that are not the elements' own: every part of a parameter has another."""
    offset = 0 if target.part is None else target.part.offset
    return f"{target.name}@{offset}" if offset else target.name


def pieces(target: Target) -> list[Target]:
    """The parts of a target of several distributions, as views of its tensor; the others as they are."""
    distribution = target.distribution
    if isinstance(distribution, Blocks):
        dim, sizes, each = distribution
    elif isinstance(distribution, ZeroRow):
        row, rows, rest = distribution
        dim, sizes, each = 0, (row, 1, rows - row - 1), (rest, _ZERO, rest)
    else:
        return [target]
    part, tensor = part_of(target), target.tensor.detach()
    first = begin_of(target)[dim]  # of the tensor's elements
    found, begin = [], 0
    for size, of_piece in zip(sizes, each, strict=True):
        low, high = max(begin, first), min(begin + size, first + tensor.shape[dim])
        if low < high:
            view = tensor.narrow(dim, low - first, high - low)
            shape = torch.Size((*target.shape[:dim], size, *target.shape[dim + 1 :]))
            at = Part(part.offset + begin * part.strides[dim], part.strides)
            within = None
            if view.shape != shape:
                within = (*begin_of(target)[:dim], low - begin, *begin_of(target)[dim + 1 :])
            found.append(Target(target.name, view, shape, target.dtype, target.device, of_piece, at, within))
        begin += size
    return found


def _expanded(target: Target) -> list[Target]:
    """Pieces of one sampled distribution each."""
    if not isinstance(target.distribution, (Blocks, ZeroRow)):
        return [target]
    found: list[Target] = []
    for piece in pieces(target):
        if isinstance(target.distribution, Blocks) and isinstance(piece.distribution, Diagonal):
            piece = piece._replace(distribution=_diagonal_of_block(piece))
        found += _expanded(piece)
    return found


def _diagonal_of_block(block: Target) -> Diagonal:
    """The diagonal of a block, whose numbers count the block's elements, in numbers that count the parameter's."""
    diagonal, part = block.distribution, block.part
    assert isinstance(diagonal, Diagonal) and part is not None
    numel = block.shape.numel()
    if part.strides == whole(block.shape).strides and diagonal.period == numel:  # consecutive elements
        return diagonal._replace(first=part.offset + diagonal.first, period=part.offset + numel)
    if len(block.shape) == 2 and diagonal.period == numel:
        last = part.offset + sum((size - 1) * stride for size, stride in zip(block.shape, part.strides, strict=True))
        step, length = sum(part.strides), diagonal.length
        return Diagonal(diagonal.value, part.offset, step, length, max(last, part.offset + length * step) + 1)
    raise ValueError(f"{block.name}: a diagonal in groups cannot be split into blocks")


class Table:
    """Rows of the native Task struct, made ready for sampling.

    Raises:
        ValueError: naming the tensor whose distribution cannot be sampled in its dtype.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        whole_tensors: list[tuple[Target, int]] = []  # with its address: one row of consecutive elements
        parts: list[tuple[Target, int, IndexMap]] = []
        for target in targets:
            distribution = target.distribution
            if isinstance(distribution, (Blocks, ZeroRow)):
                found = _expanded(target)
            elif target.part is None and target.begin is None and target.tensor.is_contiguous():
                whole_tensors.append((target, target.tensor.data_ptr()))
                continue
            else:
                found = [target]
            for piece in found:
                address, itemsize = piece.tensor.data_ptr(), piece.tensor.element_size()
                for index_map in index_maps(piece.tensor, part_of_tensor(piece)):
                    parts.append((piece, address + index_map.data_offset * itemsize, index_map))

        table = np.zeros(len(whole_tensors) + len(parts), dtype=_task_dtype())
        table["data"] = [address for _, address in whole_tensors] + [address for _, address, _ in parts]
        if whole_tensors:
            rows = table[: len(whole_tensors)]
            rows["numel"] = rows["row_length"] = [target.tensor.numel() for target, _ in whole_tensors]
            rows["rows_per_slab"] = rows["element_memory_step"] = 1
        if parts:
            rows = table[len(whole_tensors) :]
            columns = zip(*(index_map for _, _, index_map in parts), strict=True)
            for field, column in zip(IndexMap._fields, columns, strict=True):
                if field != "data_offset":
                    rows[field] = column
        owners = [target for target, _ in whole_tensors] + [target for target, _, _ in parts]
        for row in np.flatnonzero(table["data"] % 8):
            owner, address = owners[row], int(table["data"][row])
            itemsize = owner.tensor.element_size()
            if address % itemsize:
                raise ValueError(
                    f"{owner.name or NAMELESS}: its memory begins at an address that is not a multiple of the "
                    f"{itemsize} bytes of an element; clone() it first"
                )
        distributions: list[Any] = [owner.distribution for owner in owners]
        table["name_id"] = np.frombuffer(b"".join([name_id(owner.name) for owner in owners]), dtype="V16")
        table["dtype"] = [DTYPES[owner.tensor.dtype] for owner in owners]
        table["distribution"] = [DISTRIBUTIONS[type(distribution)] for distribution in distributions]
        table["parameter"] = [distribution + _PADDING[len(distribution)] for distribution in distributions]
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].tensor.dtype, distribution=distributions[row])
            raise ValueError(f"{owners[row].name or NAMELESS}: {reason}")
        table.setflags(write=False)
        self.rows = table

    def fill_cpu(self, seed: int, threads: int) -> None:
        """Write all values, to tensors in the memory of the CPU. The interpreter's lock is released meanwhile.

        The table stays as it is: any number of threads may run it at the same time.
        """
        _module().fill_cpu(self.rows, seed, threads)


def _module() -> Any:
    assert _native.module is not None, "a table is made only where the native code is there"
    return _native.module


@cache
def _task_dtype() -> np.dtype[np.void]:
    dtype: np.dtype[np.void] = np.dtype(_module().task_dtype())
    return dtype
