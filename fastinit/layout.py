"""Where the elements of a tensor lie: from sizes and strides to the native table's index maps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class IndexMap(NamedTuple):
    """Slabs of rows of elements, in row-major order of the logical tensor; all steps in elements (csrc/core/task.h)."""

    data_offset: int  # from the tensor's first element to this map's
    numel: int
    global_offset: int
    row_length: int
    rows_per_slab: int
    row_index_step: int
    slab_index_step: int
    element_memory_step: int
    row_memory_step: int
    slab_memory_step: int


def contiguous_map(numel: int, offset: int = 0) -> IndexMap:
    """`numel` elements in one row, `offset` elements into a contiguous tensor."""
    return IndexMap(offset, numel, offset, max(numel, 1), 1, 0, 0, 1, 0, 0)


def _merged_dimensions(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the fewest dimensions that give the same order of elements."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def index_maps(tensor: torch.Tensor, global_offset: int = 0) -> list[IndexMap]:
    """The maps that cover `tensor`, whose first element has the global index `global_offset`.

    One map, unless more than three dimensions are left after merging: then one for every index of the outer ones.
    """
    numel = tensor.numel()
    if tensor.is_contiguous():
        return [contiguous_map(numel)._replace(global_offset=global_offset)]
    dimensions = _merged_dimensions(tensor)
    outer, inner = dimensions[:-3], dimensions[-3:]
    (slabs, slab_step), (rows, row_step), (length, step) = [(1, 0)] * (3 - len(inner)) + inner
    block = slabs * rows * length
    maps = []
    for which in range(math.prod(size for size, _ in outer)):
        data_offset, rest = 0, which
        for size, stride in reversed(outer):
            data_offset += rest % size * stride
            rest //= size
        maps.append(
            IndexMap(
                data_offset,
                block,
                global_offset + which * block,
                length,
                rows,
                length,
                rows * length,
                step,
                row_step,
                slab_step,
            )
        )
    return maps


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements of a tensor may share memory, as after `expand`.

    Sorted by stride, every dimension must step over all that the smaller ones reach. Every view made by slicing,
    transposing and reshaping does; of the exotic `as_strided` ones that do not, a few are free of overlap all the same.
    """
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a non-empty tensor to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
