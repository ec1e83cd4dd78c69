"""Writes what is computed from whole tensors of random values: orthogonal and sparse matrices, and a few fixed
patterns.

The random values come from a `Source`: the native code's streams, or torch's generators. The arithmetic that follows is
torch's, in float32 or float64, rounded once to the parameter's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fastinit.distributions import (
    Blocks,
    DeltaOrthogonal,
    Hadamard,
    IdentityPlus,
    LogRange,
    Normal,
    Orthogonal,
    Sparse,
    Spectral,
    TimeStep,
    Uniform,
    ZeroRow,
    inverse_softplus,
)
from fastinit.forks import safe_threads
from fastinit.layout import Part
from fastinit.orthogonal import Matrix, compute_dtype, workspace_bytes
from fastinit.sharding import Range
from fastinit.table import Target, begin_of, name_of_part, part_of, pieces


class Source(Protocol):
    """Where random values come from."""

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Write targets of sampled distributions."""

    def zero_rows(self, target: Target, zeros: int) -> None:
        """Set `zeros` randomly chosen elements of every column of a matrix to zero."""

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        """Write Haar distributed matrices."""


@torch.no_grad()
@safe_threads()
def fill_all(targets: Sequence[Target], source: Source) -> None:
    """Write targets of any distributions, orthogonal matrices of all of them together."""
    later = _Later([], [], [], [])
    for target in targets:
        _fill(target, source, later)
    source.orthogonal(later.matrices)
    for tensor, values in later.copies:
        tensor.copy_(values)
    _fill_spectral(later.spectral, source)
    for rows in later.zeros:
        rows.zero_()


class _Later(NamedTuple):
    """What is done together for all targets: orthogonal matrices, copies of parts of them, products of them, and then
    the rows of zeros."""

    matrices: list[Matrix]
    copies: list[tuple[torch.Tensor, torch.Tensor]]
    spectral: list[Target]
    zeros: list[torch.Tensor]


def _fill(target: Target, source: Source, later: _Later) -> None:
    """Write a target, but for what is done later."""
    tensor, distribution = target.tensor.detach(), target.distribution
    if isinstance(distribution, Blocks):
        for piece in pieces(target):
            _fill(piece, source, later)
    elif isinstance(distribution, ZeroRow):
        _fill(target._replace(distribution=distribution.rest), source, later)
        row = distribution.row - begin_of(target)[0]
        if 0 <= row < len(tensor):
            later.zeros.append(tensor[row])
    elif isinstance(distribution, Orthogonal):
        _add_matrix(_flat(target, distribution.column_axis), distribution.gain, later)
    elif isinstance(distribution, DeltaOrthogonal):
        tensor.zero_()
        middle = _middle(target)
        if middle is not None:
            _add_matrix(middle, distribution.gain, later)
    elif isinstance(distribution, Spectral):
        later.spectral.append(target)
    elif isinstance(distribution, IdentityPlus):
        # Apart, so that the sum is rounded once.
        total = torch.empty(tensor.shape, dtype=compute_dtype(target.dtype), device=target.device)
        source.orthogonal([_matrix(_flat(target._replace(tensor=total)), distribution.gain)])
        row, column = begin_of(target)
        total.diagonal(row - column).add_(distribution.identity)
        tensor.copy_(total)
    elif isinstance(distribution, Sparse):
        source.fill_all([target._replace(distribution=Normal(0.0, distribution.sigma))])
        source.zero_rows(target, distribution.zeros)
    elif isinstance(distribution, Hadamard):
        _fill_hadamard(target, distribution)
    elif isinstance(distribution, LogRange):
        first = begin_of(target)[-1] + 1
        logs = [math.log(i) for i in range(first, first + tensor.shape[-1])]
        tensor.copy_(torch.tensor(logs, dtype=torch.float64))
    elif isinstance(distribution, TimeStep):
        _fill_time_steps(target, distribution, source)
    else:
        source.fill_all([target])


class _Flat(NamedTuple):
    """The matrix that a target's values are: some dimensions against the others."""

    target: Target
    order: tuple[int, ...]  # of the dimensions
    row_dims: int  # so many of them are the rows', the others the columns'
    name: str
    part: Part  # the random numbers of the whole matrix

    def shape(self) -> tuple[int, int]:
        sizes = [self.target.shape[dim] for dim in self.order]
        return math.prod(sizes[: self.row_dims]), math.prod(sizes[self.row_dims :])

    def hull(self) -> tuple[Range, Range]:
        """The least ranges of rows and of columns that have all elements of the target's tensor."""
        begin, shape = begin_of(self.target), self.target.tensor.shape
        found = []
        for outer, *inner in (self.order[: self.row_dims], self.order[self.row_dims :]):
            step = math.prod(self.target.shape[dim] for dim in inner)
            found.append((begin[outer] * step, (begin[outer] + shape[outer]) * step))
        return found[0], found[1]

    def is_hull(self) -> bool:
        """Whether the tensor has all elements of its hull."""
        inner = (*self.order[1 : self.row_dims], *self.order[self.row_dims + 1 :])
        return all(self.target.tensor.shape[dim] == self.target.shape[dim] for dim in inner)

    def ordered(self) -> torch.Tensor:
        """The tensor with its dimensions in the matrix's order."""
        return self.target.tensor.detach().permute(self.order)

    def of_hull(self, values: torch.Tensor) -> torch.Tensor:
        """Of the hull's values those of the tensor, in the shape of `ordered`."""
        begin, shape = begin_of(self.target), self.target.tensor.shape
        outer = (0, self.row_dims)
        sizes = [shape[dim] if at in outer else self.target.shape[dim] for at, dim in enumerate(self.order)]
        values = values.view(sizes)
        for at, dim in enumerate(self.order):
            if at not in outer:
                values = values.narrow(at, begin[dim], shape[dim])
        return values


def _flat(target: Target, column_axis: int | None = None) -> _Flat:
    """Dimension 0 against the rest, with the random numbers of the elements' own indices; or JAX's and Keras'
    matrix."""
    dimensions, part = len(target.shape), part_of(target)
    order = tuple(range(dimensions))
    if column_axis is not None:
        axis = column_axis % dimensions
        return _flat_of_its_own(target, (*order[:axis], *order[axis + 1 :], axis), dimensions - 1)
    # The other dimensions of a part of a tensor may not lie one behind the other.
    if list(part.strides[1:]) != [math.prod(target.shape[dim + 1 :]) for dim in order[1:]]:
        return _flat_of_its_own(target, order, 1)
    return _Flat(target, order, 1, target.name, Part(part.offset, (part.strides[0], 1)))


def _flat_of_its_own(target: Target, order: tuple[int, ...], row_dims: int) -> _Flat:
    """A matrix whose random numbers are counted in its own elements, in a stream of its own for every part."""
    columns = math.prod(target.shape[dim] for dim in order[row_dims:])
    return _Flat(target, order, row_dims, name_of_part(target), Part(0, (columns, 1)))


def _matrix(flat: _Flat, gain: float, values: torch.Tensor | None = None) -> Matrix:
    """The matrix, or the hull's ranges of it, to write to the target's tensor or to `values`."""
    tensor = flat.ordered() if values is None else values
    shape, (rows, columns) = flat.shape(), flat.hull()
    return Matrix(
        flat.name, tensor, shape, flat.part, gain, _unless_all(rows, shape[0]), _unless_all(columns, shape[1])
    )


def _unless_all(found: Range, size: int) -> Range | None:
    return None if found == (0, size) else found


def _add_matrix(flat: _Flat, gain: float, later: _Later) -> None:
    if flat.is_hull():
        later.matrices.append(_matrix(flat, gain))
        return
    (row, end_row), (column, end_column) = flat.hull()
    values = torch.empty(end_row - row, end_column - column, dtype=flat.target.dtype, device=flat.target.device)
    later.matrices.append(_matrix(flat, gain, values))
    later.copies.append((flat.ordered(), flat.of_hull(values)))


def _fill_spectral(targets: Sequence[Target], source: Source) -> None:
    """Singular vectors of as many matrices together as the workspace holds, and their products."""
    batch: list[tuple[Target, Matrix, Matrix]] = []
    held = 0
    for position, target in enumerate(targets):
        distribution = target.distribution
        assert isinstance(distribution, Spectral)
        rank = len(distribution.values)
        dtype = target.dtype if target.dtype.is_complex else compute_dtype(target.dtype)
        lengths = (distribution.rows, distribution.columns)
        sides = []
        for what, length, rows in zip((":left", ":right"), lengths, _flat(target).hull(), strict=True):
            vectors = torch.empty(rows[1] - rows[0], rank, dtype=dtype, device=target.device)
            name, part = name_of_part(target) + what, Part(0, (rank, 1))
            sides.append(Matrix(name, vectors, (length, rank), part, 1.0, _unless_all(rows, length)))
            held += vectors.numel() * dtype.itemsize
        batch.append((target, sides[0], sides[1]))
        if held >= workspace_bytes(target.device) or position == len(targets) - 1:
            source.orthogonal([side for _, *both in batch for side in both])
            for each, left, right in batch:
                _multiply(each, left.tensor, right.tensor)
            batch, held = [], 0


def _multiply(target: Target, left: torch.Tensor, right: torch.Tensor) -> None:
    assert isinstance(target.distribution, Spectral)
    left *= torch.tensor(target.distribution.values, dtype=torch.float64, device=target.device).to(left.dtype)
    target.tensor.detach().copy_(_flat(target).of_hull(left @ right.mT))


def _middle(target: Target) -> _Flat | None:
    """The matrix at the middle of the kernels, unless it lies beyond the tensor."""
    middle = tuple((size - 1) // 2 for size in target.shape[2:])
    tensor = _at(target, middle)
    if tensor is None:
        return None
    part = part_of(target)
    offset = part.offset + sum(index * stride for index, stride in zip(middle, part.strides[2:], strict=True))
    matrix = target._replace(tensor=tensor, shape=target.shape[:2], begin=begin_of(target)[:2])
    return _Flat(matrix, (0, 1), 1, target.name, Part(offset, part.strides[:2]))


def _at(target: Target, middle: Sequence[int]) -> torch.Tensor | None:
    """What lies in the tensor of the matrix of a kernel's position; None: nothing."""
    tensor = target.tensor.detach()
    for index, first in zip(reversed(middle), reversed(begin_of(target)[2:]), strict=True):
        if not 0 <= index - first < tensor.shape[-1]:
            return None
        tensor = tensor.select(-1, index - first)
    return tensor


def _fill_hadamard(target: Target, distribution: Hadamard) -> None:
    if len(target.shape) > 2:
        target.tensor.detach().zero_()
    tensor = _at(target, tuple(size // 2 for size in target.shape[2:]))
    if tensor is None:
        return
    (row, column), (rows, columns) = begin_of(target)[:2], tensor.shape
    row_indices = np.arange(row, row + rows, dtype=np.int32)
    common = row_indices[:, None] & np.arange(column, column + columns, dtype=np.int32)[None, :]
    for shift in (16, 8, 4, 2, 1):
        common ^= common >> shift
    signs = 1 - 2 * (common & 1)
    tensor.copy_(torch.from_numpy(signs * distribution.scale))


def _fill_time_steps(target: Target, distribution: TimeStep, source: Source) -> None:
    bounds = Uniform(math.log(distribution.low), math.log(distribution.high))
    dtype = torch.float32 if target.device.type == "mps" else torch.float64
    logs = torch.empty(target.tensor.shape, dtype=dtype, device=target.device)
    source.fill_all([target._replace(tensor=logs, dtype=dtype, distribution=bounds)])
    # In Python whatever the device, so that all devices get the same values.
    steps = (max(distribution.floor, math.exp(each)) for each in logs.flatten().tolist())
    values = torch.tensor([inverse_softplus(step) for step in steps], dtype=torch.float64)
    target.tensor.detach().copy_(values.reshape(target.tensor.shape))
