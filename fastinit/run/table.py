"""The table that crosses to the native code: a structured array with a row a tensor, or several where it needs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native
from fastinit.errors import ParameterError
from fastinit.run.index_maps import IndexMap, Part, index_maps, whole
from fastinit.run.streams import name_id
from fastinit.schemes.distributions import Distribution

# csrc/core/task.h
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_PADDING = tuple((0.0,) * (5 - length) for length in range(6))
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
    split = target.distribution.blocks()
    if split is None:
        return [target]
    dim = split.dim
    part, tensor = part_of(target), target.tensor.detach()
    first = begin_of(target)[dim]  # of the tensor's elements
    found, begin = [], 0
    for size, of_piece in zip(split.sizes, split.each, strict=True):
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
    """Pieces of one sampled distribution each, in numbers that count the parameter's elements."""
    split = target.distribution.blocks()
    if split is None:
        return [_located(target)]
    if split.of_whole:
        found: list[Target] = []
        for share in pieces(_located(target)):
            found += [share] if share.distribution.blocks() is None else _expanded(share)
        return found
    return [each for piece in pieces(target) for each in _expanded(piece)]


def _located(target: Target) -> Target:
    """A part's distribution counts the part's elements: the same in numbers that count the parameter's."""
    if target.part is None:
        return target
    try:
        distribution = target.distribution.located(target.shape, target.part.offset, target.part.strides)
    except ValueError as error:
        raise ParameterError(target.name, str(error)) from error
    return target._replace(distribution=distribution)


class Table:
    """Rows of the native Task struct, made ready for sampling.

    Raises:
        ValueError: naming the tensor whose distribution cannot be sampled in its dtype.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        whole_tensors: list[tuple[Target, int]] = []  # with its address: one row of consecutive elements
        parts: list[tuple[Target, int, IndexMap]] = []
        for target in targets:
            is_whole = target.part is None and target.begin is None and target.tensor.is_contiguous()
            if is_whole and target.distribution.blocks() is None:
                whole_tensors.append((target, target.tensor.data_ptr()))
                continue
            for piece in _expanded(target):
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
                raise ParameterError(
                    owner.name,
                    f"its memory begins at an address that is not a multiple of the {itemsize} bytes of an element; "
                    "clone() it first",
                )
        distributions: list[Any] = [owner.distribution for owner in owners]  # all of them sampled
        table["name_id"] = np.frombuffer(b"".join([name_id(owner.name) for owner in owners]), dtype="V16")
        table["dtype"] = [DTYPES[owner.tensor.dtype] for owner in owners]
        table["distribution"] = [distribution.code for distribution in distributions]
        parameters = [distribution.parameters() for distribution in distributions]
        table["parameter"] = [numbers + _PADDING[len(numbers)] for numbers in parameters]
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].tensor.dtype, distribution=distributions[row])
            raise ParameterError(owners[row].name, reason)
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
