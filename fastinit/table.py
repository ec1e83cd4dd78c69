"""The table that crosses to the native code: a structured array with a row a tensor, or several where it needs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native
from fastinit.distributions import Constant, Diagonal, Distribution, Normal, TruncNormal, Uniform
from fastinit.layout import IndexMap, contiguous_map, index_maps
from fastinit.streams import name_id

# csrc/core/task.h
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
DISTRIBUTIONS: dict[type[Distribution], int] = {Constant: 0, Uniform: 1, Normal: 2, TruncNormal: 3, Diagonal: 4}
_PADDING = tuple((0.0,) * (5 - length) for length in range(6))
_ZERO = Constant(0.0)
# csrc/core/prepare.h
_PREPARE_ERRORS = {
    1: "no value of {dtype} lies within {distribution}",
    2: "{distribution} lies more than 6 sigma to one side of its mean; float32 cannot sample so far out",
}


class Target(NamedTuple):
    """A tensor to fill. `zero_row`: an index along dimension 0 whose elements become zero."""

    name: str
    tensor: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    distribution: Distribution
    zero_row: int | None


class Table:
    """Rows of the native Task struct, made ready for sampling.

    Raises:
        ValueError: naming the tensor whose distribution cannot be sampled in its dtype.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        whole: list[tuple[Target, int]] = []  # with its address: one row of consecutive elements
        parts: list[tuple[Target, int, IndexMap, Distribution]] = []
        for target in targets:
            address = target.tensor.data_ptr()
            if target.zero_row is None and target.tensor.is_contiguous():
                whole.append((target, address))
                continue
            itemsize = target.tensor.element_size()
            for index_map, distribution in _parts(target):
                parts.append((target, address + index_map.data_offset * itemsize, index_map, distribution))

        table = np.zeros(len(whole) + len(parts), dtype=_task_dtype())
        table["data"] = [address for _, address in whole] + [address for _, address, _, _ in parts]
        if whole:
            rows = table[: len(whole)]
            rows["numel"] = rows["row_length"] = [target.tensor.numel() for target, _ in whole]
            rows["rows_per_slab"] = rows["element_memory_step"] = 1
        if parts:
            rows = table[len(whole) :]
            columns = zip(*(index_map for _, _, index_map, _ in parts), strict=True)
            for field, column in zip(IndexMap._fields, columns, strict=True):
                if field != "data_offset":
                    rows[field] = column
        owners = [target for target, _ in whole] + [target for target, _, _, _ in parts]
        distributions = [target.distribution for target, _ in whole] + [each for _, _, _, each in parts]
        table["name_id"] = np.frombuffer(b"".join([name_id(owner.name) for owner in owners]), dtype="V16")
        table["dtype"] = [DTYPES[owner.tensor.dtype] for owner in owners]
        table["distribution"] = [DISTRIBUTIONS[type(distribution)] for distribution in distributions]
        table["parameter"] = [distribution + _PADDING[len(distribution)] for distribution in distributions]
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].tensor.dtype, distribution=distributions[row])
            raise ValueError(f"{owners[row].name}: {reason}")
        self.rows = table

    def fill_cpu(self, seed: int, threads: int) -> None:
        """Write all values, to tensors in the memory of the CPU. The interpreter's lock is released meanwhile."""
        _module().reseed(self.rows, seed)
        _module().fill_cpu(self.rows, threads)


def _module() -> Any:
    assert _native.module is not None, "a table is made only where the native code is there"
    return _native.module


@cache
def _task_dtype() -> np.dtype[np.void]:
    dtype: np.dtype[np.void] = np.dtype(_module().task_dtype())
    return dtype


def _parts(target: Target) -> list[tuple[IndexMap, Distribution]]:
    """The pieces of a tensor: one, but for a row of zeros and for layouts of many dimensions."""
    tensor, distribution, zero_row = target.tensor, target.distribution, target.zero_row
    if zero_row is None:
        return [(index_map, distribution) for index_map in index_maps(tensor)]
    rows, row_numel = tensor.shape[0], tensor.numel() // tensor.shape[0]
    pieces = ((0, zero_row, distribution), (zero_row, zero_row + 1, _ZERO), (zero_row + 1, rows, distribution))
    parts: list[tuple[IndexMap, Distribution]] = []
    for begin, end, of_piece in pieces:
        if begin == end:
            continue
        if tensor.is_contiguous():
            parts.append((contiguous_map((end - begin) * row_numel, begin * row_numel), of_piece))
            continue
        for index_map in index_maps(tensor.narrow(0, begin, end - begin), begin * row_numel):
            shifted = index_map._replace(data_offset=index_map.data_offset + begin * tensor.stride(0))
            parts.append((shifted, of_piece))
    return parts
