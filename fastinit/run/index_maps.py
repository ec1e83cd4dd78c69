"""From a tensor's sizes and strides to index maps, which tell the native code where its elements lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def contiguous_map(numel: int) -> IndexMap:
    """`numel` elements in one row."""
    return IndexMap(0, numel, 0, max(numel, 1), 1, 0, 0, 1, 0, 0)


class BoxIndices(NamedTuple):
    """The indices of a box's elements in the global, logical tensor. The box is a shard, a block or some rows.

    Element (i, j, ...) has the global index offset + i strides[0] + j strides[1] + ...
    """

    offset: int
    strides: tuple[int, ...]


def whole(shape: Sequence[int]) -> BoxIndices:
    """The indices of a whole tensor: row-major, from zero."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return BoxIndices(0, tuple(reversed(strides)))


def _merged_dimensions(tensor: torch.Tensor, indices: BoxIndices) -> list[tuple[int, int, int]]:
    """(size, step in memory, step of the global index) of the fewest dimensions with the same order of elements."""
    merged: list[tuple[int, int, int]] = []
    for size, stride, index_stride in zip(tensor.shape, tensor.stride(), indices.strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride and merged[-1][2] == size * index_stride:
            merged[-1] = (merged[-1][0] * size, stride, index_stride)
        else:
            merged.append((size, stride, index_stride))
    return merged


def index_maps(tensor: torch.Tensor, indices: BoxIndices | None = None) -> list[IndexMap]:
    """The maps that cover `tensor`, whose elements have these indices; None: it is the whole tensor.

    One map covers three dimensions. If merging leaves more, there is a map for every index of the outer ones.
    """
    if indices is None:
        if tensor.is_contiguous():
            return [contiguous_map(tensor.numel())]
        indices = whole(tensor.shape)
    dimensions = _merged_dimensions(tensor, indices)
    if not dimensions or dimensions[-1][2] != 1:
        dimensions.append((1, 1, 1))  # in a row the global index grows by 1, so here a row has one element
    outer, inner = dimensions[:-3], dimensions[-3:]
    (slabs, slab_step, slab_index), (rows, row_step, row_index), (length, step, _) = [(1, 0, 0)] * (
        3 - len(inner)
    ) + inner
    maps = []
    for which in range(math.prod(size for size, _, _ in outer)):
        data_offset, index_offset, rest = 0, indices.offset, which
        for size, stride, index_stride in reversed(outer):
            data_offset += rest % size * stride
            index_offset += rest % size * index_stride
            rest //= size
        numel = slabs * rows * length
        maps.append(
            IndexMap(data_offset, numel, index_offset, length, rows, row_index, slab_index, step, row_step, slab_step)
        )
    return maps


def boxes(shape: Sequence[int], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(begin, shape) of boxes that make up a tensor, in row-major order, each of at most `most` elements."""
    shape = tuple(shape)
    if math.prod(shape) <= most:
        yield (0,) * len(shape), shape
        return
    dim = next(dim for dim, size in enumerate(shape) if size > 1)
    step = max(1, most // math.prod(shape[dim + 1 :]))
    for first in range(0, shape[dim], step):
        length = min(step, shape[dim] - first)
        for begin, of_box in boxes((*shape[:dim], length, *shape[dim + 1 :]), most):
            yield (*begin[:dim], first + begin[dim], *begin[dim + 1 :]), of_box


def box_of(tensor: torch.Tensor, begin: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A view of a box of a tensor."""
    for dim, (first, size) in enumerate(zip(begin, shape, strict=True)):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, first, size)
    return tensor


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two elements of a tensor may share memory, as after `expand`.

    Sorted by stride, every dimension must step over all that the smaller ones reach. Every view made by slicing,
    transposing and reshaping passes. A few exotic `as_strided` views fail although no elements of theirs overlap.
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
