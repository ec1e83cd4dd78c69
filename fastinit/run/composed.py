"""Writes values that are computed from whole tensors of random values: orthogonal and sparse matrices. Also a few
fixed patterns.

The random values come from a `Source`: the native code's streams, or torch's generators. The arithmetic on them is
torch's, in float32 or float64, and its results are rounded once to the parameter's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fastinit.distributed.shards import Interval
from fastinit.errors import ParameterError
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import is_small
from fastinit.run.orthogonal import Matrix, compute_dtype, workspace_bytes
from fastinit.run.targets import Target, begin_of, blocks_of, indices_of, name_of_block
from fastinit.schemes.distributions import (
    Blocks,
    Chrono,
    DeltaOrthogonal,
    Distribution,
    Hadamard,
    IdentityPlus,
    LogOfUniform,
    LogRange,
    Normal,
    Orthogonal,
    Series,
    Sparse,
    Spectral,
    Stack,
    TimeStep,
    Uniform,
    ZeroRow,
    inverse_softplus,
)


class Source(Protocol):
    """Where random values come from."""

    @property
    def seed(self) -> int:
        """The seed of values that are drawn in a way of their own."""

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Write targets of sampled distributions."""

    def zero_rows(self, target: Target, zeros: int) -> None:
        """Set `zeros` randomly chosen elements of every column of a matrix to zero."""

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        """Write Haar distributed matrices."""


@torch.no_grad()
def fill_all(targets: Sequence[Target], source: Source) -> None:
    """Write targets of any distributions. The orthogonal matrices of all of them are made together."""
    later = Later([], [], [], [], [])
    for target in targets:
        _fill(target, source, later)
    source.orthogonal(later.matrices)
    for tensor, values in later.copies:
        tensor.copy_(values)
    _fill_spectral(later.spectral, source)
    for rows in later.zeros:
        rows.zero_()
    for write in later.last:
        write()


def is_one_kernel(target: Target) -> bool:
    """Whether CUDA kernels alone can write a target: sampled values and small enough orthogonal matrices."""
    distribution = target.distribution
    if isinstance(distribution, (Blocks, Stack)):
        return all(map(is_one_kernel, blocks_of(target)))
    if isinstance(distribution, ZeroRow):
        return is_one_kernel(target._replace(distribution=distribution.rest))
    if isinstance(distribution, Orthogonal):
        flat = _flat(target, distribution.column_axis)
        return flat.fills_bounding_box() and is_small(_matrix(flat, distribution.gain))
    return distribution.needs == "element"


class Later(NamedTuple):
    """Work put off until all targets were seen. In order: orthogonal matrices, copies of them, spectral products, zero
    rows, and then whatever reads other parameters."""

    matrices: list[Matrix]
    copies: list[tuple[torch.Tensor, torch.Tensor]]
    spectral: list[tuple[Target, Spectral]]
    zeros: list[torch.Tensor]
    last: list[Callable[[], None]]


Writer = Callable[[Target, Any, Source, Later], None]
_WRITERS: dict[type[Distribution], Writer] = {}


def writes(kind: type[Distribution]) -> Callable[[Writer], Writer]:
    """Let a function write targets of this kind of distribution.

    The function is called with the target, the target's distribution, a source of random values, and the lists of work
    for later, to which it may add. Where the target's tensor is a box of the values (`begin_of`), the function must
    write just that box.
    """

    def register(writer: Writer) -> Writer:
        _WRITERS[kind] = writer
        return writer

    return register


def _fill(target: Target, source: Source, later: Later) -> None:
    """Write a target, or add to the lists of work for later."""
    distribution = target.distribution
    writer = _WRITERS.get(type(distribution))
    if writer is not None:
        writer(target, distribution, source, later)
    elif distribution.needs == "element":
        source.fill_all([target])
    else:
        raise ParameterError(
            target.name, f"nothing writes {type(distribution).__name__} (fastinit.run.composed.writes)"
        )


@writes(Blocks)
@writes(Stack)
def _blocks(target: Target, distribution: Blocks | Stack, source: Source, later: Later) -> None:
    for block in blocks_of(target):
        _fill(block, source, later)


@writes(ZeroRow)
def _zero_row(target: Target, distribution: ZeroRow, source: Source, later: Later) -> None:
    _fill(target._replace(distribution=distribution.rest), source, later)
    tensor, row = target.tensor.detach(), distribution.row - begin_of(target)[0]
    if 0 <= row < len(tensor):
        later.zeros.append(tensor[row])


@writes(Orthogonal)
def _orthogonal(target: Target, distribution: Orthogonal, source: Source, later: Later) -> None:
    _add_matrix(_flat(target, distribution.column_axis), distribution.gain, later)


@writes(DeltaOrthogonal)
def _delta_orthogonal(target: Target, distribution: DeltaOrthogonal, source: Source, later: Later) -> None:
    target.tensor.detach().zero_()
    middle = _middle(target)
    if middle is not None:
        _add_matrix(middle, distribution.gain, later)


@writes(Spectral)
def _spectral(target: Target, distribution: Spectral, source: Source, later: Later) -> None:
    later.spectral.append((target, distribution))


@writes(IdentityPlus)
def _identity_plus(target: Target, distribution: IdentityPlus, source: Source, later: Later) -> None:
    # The sum is made in memory of its own, so that it is rounded once.
    total = torch.empty(target.tensor.shape, dtype=compute_dtype(target.dtype), device=target.device)
    source.orthogonal([_matrix(_flat(target._replace(tensor=total)), distribution.gain)])
    row, column = begin_of(target)
    total.diagonal(row - column).add_(distribution.identity)
    target.tensor.detach().copy_(total)


@writes(Sparse)
def _sparse(target: Target, distribution: Sparse, source: Source, later: Later) -> None:
    source.fill_all([target._replace(distribution=Normal(0.0, distribution.sigma))])
    source.zero_rows(target, distribution.zeros)


@writes(LogRange)
def _log_range(target: Target, distribution: LogRange, source: Source, later: Later) -> None:
    tensor = target.tensor.detach()
    first = begin_of(target)[-1] + 1
    logs = [math.log(i) for i in range(first, first + tensor.shape[-1])]
    tensor.copy_(torch.tensor(logs, dtype=torch.float64))


class _Flat(NamedTuple):
    """A target's values as a matrix: some dimensions are its rows, the others its columns."""

    target: Target
    order: tuple[int, ...]  # of the dimensions
    row_dims: int  # the first so many in this order make the rows
    name: str
    indices: BoxIndices  # of the whole matrix's random numbers

    def shape(self) -> tuple[int, int]:
        sizes = [self.target.shape[dim] for dim in self.order]
        return math.prod(sizes[: self.row_dims]), math.prod(sizes[self.row_dims :])

    def bounding_box(self) -> tuple[Interval, Interval]:
        """The smallest intervals of rows and of columns that together contain the target's tensor."""
        begin, shape = begin_of(self.target), self.target.tensor.shape
        found = []
        for outer, *inner in (self.order[: self.row_dims], self.order[self.row_dims :]):
            step = math.prod(self.target.shape[dim] for dim in inner)
            found.append((begin[outer] * step, (begin[outer] + shape[outer]) * step))
        return found[0], found[1]

    def fills_bounding_box(self) -> bool:
        """Whether the tensor has all elements of its bounding box."""
        inner = (*self.order[1 : self.row_dims], *self.order[self.row_dims + 1 :])
        return all(self.target.tensor.shape[dim] == self.target.shape[dim] for dim in inner)

    def ordered(self) -> torch.Tensor:
        """The tensor with its dimensions in the matrix's order."""
        return self.target.tensor.detach().permute(self.order)

    def from_bounding_box(self, values: torch.Tensor) -> torch.Tensor:
        """The tensor's values among those of its bounding box, in the shape of `ordered`."""
        begin, shape = begin_of(self.target), self.target.tensor.shape
        outer = (0, self.row_dims)
        sizes = [shape[dim] if at in outer else self.target.shape[dim] for at, dim in enumerate(self.order)]
        values = values.view(sizes)
        for at, dim in enumerate(self.order):
            if at not in outer:
                values = values.narrow(at, begin[dim], shape[dim])
        return values


def _flat(target: Target, column_axis: int | None = None) -> _Flat:
    """The matrix whose rows are dimension 0 and whose columns are the others.

    With a column axis, that dimension makes the columns and the others the rows (JAX's and Keras' matrix).

    Without a column axis its elements take the random numbers of their own indices, where the strides allow it.
    """
    dimensions, indices = len(target.shape), indices_of(target)
    order = tuple(range(dimensions))
    if column_axis is not None:
        axis = column_axis % dimensions
        return _flat_of_its_own(target, (*order[:axis], *order[axis + 1 :], axis), dimensions - 1)
    # In a block, the other dimensions may have gaps between them. No one step then leads from column to column.
    if list(indices.strides[1:]) != [math.prod(target.shape[dim + 1 :]) for dim in order[1:]]:
        return _flat_of_its_own(target, order, 1)
    return _Flat(target, order, 1, target.name, BoxIndices(indices.offset, (indices.strides[0], 1)))


def _flat_of_its_own(target: Target, order: tuple[int, ...], row_dims: int) -> _Flat:
    """A matrix with a stream of its own for every block. Its random numbers have the indices of its own elements."""
    columns = math.prod(target.shape[dim] for dim in order[row_dims:])
    return _Flat(target, order, row_dims, name_of_block(target), BoxIndices(0, (columns, 1)))


def _matrix(flat: _Flat, gain: float, values: torch.Tensor | None = None) -> Matrix:
    """The bounding box of the matrix, to write to the target's tensor or to `values`."""
    tensor = flat.ordered() if values is None else values
    shape, (rows, columns) = flat.shape(), flat.bounding_box()
    return Matrix(
        flat.name, tensor, shape, flat.indices, gain, _unless_all(rows, shape[0]), _unless_all(columns, shape[1])
    )


def orthogonal_matrix(target: Target, distribution: Orthogonal) -> Matrix:
    """The matrix that a whole tensor is."""
    return _matrix(_flat(target, distribution.column_axis), distribution.gain)


def _unless_all(found: Interval, size: int) -> Interval | None:
    return None if found == (0, size) else found


def _add_matrix(flat: _Flat, gain: float, later: Later) -> None:
    if flat.fills_bounding_box():
        later.matrices.append(_matrix(flat, gain))
        return
    (row, end_row), (column, end_column) = flat.bounding_box()
    values = torch.empty(end_row - row, end_column - column, dtype=flat.target.dtype, device=flat.target.device)
    later.matrices.append(_matrix(flat, gain, values))
    later.copies.append((flat.ordered(), flat.from_bounding_box(values)))


def _fill_spectral(targets: Sequence[tuple[Target, Spectral]], source: Source) -> None:
    """Write products of singular vectors. Those of as many matrices are made together as the workspace holds."""
    batch: list[tuple[Target, Spectral, Matrix, Matrix]] = []
    held = 0
    for position, (target, distribution) in enumerate(targets):
        rank = len(distribution.values)
        dtype = compute_dtype(target.dtype)
        lengths = (distribution.rows, distribution.columns)
        sides = []
        for what, length, rows in zip((":left", ":right"), lengths, _flat(target).bounding_box(), strict=True):
            vectors = torch.empty(rows[1] - rows[0], rank, dtype=dtype, device=target.device)
            name, indices = name_of_block(target) + what, BoxIndices(0, (rank, 1))
            sides.append(Matrix(name, vectors, (length, rank), indices, 1.0, _unless_all(rows, length)))
            held += vectors.numel() * dtype.itemsize
        batch.append((target, distribution, sides[0], sides[1]))
        if held >= workspace_bytes(target.device) or position == len(targets) - 1:
            source.orthogonal([side for *_, left, right in batch for side in (left, right)])
            for each, of_each, left, right in batch:
                _multiply(each, of_each.values, left.tensor, right.tensor)
            batch, held = [], 0


def _multiply(target: Target, values: Sequence[float], left: torch.Tensor, right: torch.Tensor) -> None:
    left *= torch.tensor(values, dtype=torch.float64, device=target.device).to(left.dtype)
    target.tensor.detach().copy_(_flat(target).from_bounding_box(left @ right.mT))


def _middle(target: Target) -> _Flat | None:
    """The matrix at the middle of the kernels; None: the tensor holds nothing of it."""
    middle = tuple((size - 1) // 2 for size in target.shape[2:])
    tensor = _at(target, middle)
    if tensor is None:
        return None
    indices = indices_of(target)
    offset = indices.offset + sum(index * stride for index, stride in zip(middle, indices.strides[2:], strict=True))
    matrix = target._replace(tensor=tensor, shape=target.shape[:2], begin=begin_of(target)[:2])
    return _Flat(matrix, (0, 1), 1, target.name, BoxIndices(offset, indices.strides[:2]))


def _at(target: Target, middle: Sequence[int]) -> torch.Tensor | None:
    """A view of the matrix at one position of the kernels; None: the tensor holds nothing of it."""
    tensor = target.tensor.detach()
    for index, first in zip(reversed(middle), reversed(begin_of(target)[2:]), strict=True):
        if not 0 <= index - first < tensor.shape[-1]:
            return None
        tensor = tensor.select(-1, index - first)
    return tensor


@writes(Hadamard)
def _hadamard(target: Target, distribution: Hadamard, source: Source, later: Later) -> None:
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


@writes(Series)
def _series(target: Target, distribution: Series, source: Source, later: Later) -> None:
    tensor, first = target.tensor.detach(), begin_of(target)[-1]
    values = distribution.values[first : first + tensor.shape[-1]]
    tensor.copy_(torch.tensor(values, dtype=torch.float64))


@writes(TimeStep)
def _time_steps(target: Target, distribution: TimeStep, source: Source, later: Later) -> None:
    logs = _uniform(target, math.log(distribution.low), math.log(distribution.high), source)
    steps = (max(distribution.floor, math.exp(each)) for each in logs)
    _write(target, [inverse_softplus(step) for step in steps])


@writes(LogOfUniform)
def _log_of_uniform(target: Target, distribution: LogOfUniform, source: Source, later: Later) -> None:
    _write(target, [math.log(each) for each in _uniform(target, distribution.low, distribution.high, source)])


@writes(Chrono)
def _chrono(target: Target, distribution: Chrono, source: Source, later: Later) -> None:
    # A unit has one random number, that of its index in the first gate, whichever of its gates the tensor holds.
    first, count, units = begin_of(target)[0], target.tensor.shape[0], distribution.units
    shape = torch.Size((units,))
    of_units = target._replace(tensor=target.tensor.new_empty(shape), shape=shape, begin=None)
    logs = [math.log(each) for each in _uniform(of_units, distribution.low, distribution.high, source)]
    _write(target, [distribution.gates[i // units] * logs[i % units] for i in range(first, first + count)])


def _uniform(target: Target, low: float, high: float, source: Source) -> list[float]:
    """Uniform values in float64 with the random numbers of the target's elements, in row-major order."""
    dtype = torch.float32 if target.device.type == "mps" else torch.float64
    drawn = torch.empty(target.tensor.shape, dtype=dtype, device=target.device)
    source.fill_all([target._replace(tensor=drawn, dtype=dtype, distribution=Uniform(low, high))])
    return drawn.flatten().tolist()


def _write(target: Target, values: Sequence[float]) -> None:
    """Write values that Python has computed: for every device, so that all devices get the same ones."""
    target.tensor.detach().copy_(torch.tensor(values, dtype=torch.float64).reshape(target.tensor.shape))
