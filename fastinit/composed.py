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
    Distribution,
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
from fastinit.layout import Part, whole
from fastinit.orthogonal import WORKSPACE_BYTES, Matrix, compute_dtype
from fastinit.table import Target, name_of_part, pieces


class Source(Protocol):
    """Where random values come from."""

    def fill_all(self, targets: Sequence[Target]) -> None:
        """Write targets of sampled distributions."""

    def zero_rows(self, target: Target, zeros: int) -> None:
        """Set `zeros` randomly chosen elements of every column of a matrix to zero."""

    def orthogonal(self, matrices: Sequence[Matrix]) -> None:
        """Write Haar distributed matrices."""


@torch.no_grad()
def fill_all(targets: Sequence[Target], source: Source) -> None:
    """Write targets of any distributions, orthogonal matrices of all of them together."""
    later = _Later([], [], [])
    for target in targets:
        _fill(target, source, later)
    source.orthogonal(later.matrices)
    _fill_spectral(later.spectral, source)
    for rows in later.zeros:
        rows.zero_()


class _Later(NamedTuple):
    """What is done together for all targets: orthogonal matrices, products of them, and then the rows of zeros."""

    matrices: list[Matrix]
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
        later.zeros.append(tensor[distribution.row])
    elif isinstance(distribution, Orthogonal):
        later.matrices.append(_matrix(target, tensor, distribution))
    elif isinstance(distribution, DeltaOrthogonal):
        later.matrices.append(_middle(target, tensor, distribution.gain))
        tensor.zero_()
    elif isinstance(distribution, Spectral):
        later.spectral.append(target)
    elif isinstance(distribution, IdentityPlus):
        # Apart, so that the sum is rounded once.
        order = distribution.order
        total = torch.empty(order, order, dtype=compute_dtype(target.dtype), device=target.device)
        source.orthogonal([Matrix(target.name, total, (order, order), _part(target), distribution.gain)])
        total.diagonal().add_(distribution.identity)
        tensor.copy_(total)
    elif isinstance(distribution, Sparse):
        source.fill_all([target._replace(distribution=Normal(0.0, distribution.sigma))])
        source.zero_rows(target, distribution.zeros)
    elif isinstance(distribution, Hadamard):
        _fill_hadamard(tensor, distribution)
    elif isinstance(distribution, LogRange):
        tensor.copy_(torch.tensor([math.log(i) for i in range(1, distribution.length + 1)], dtype=torch.float64))
    elif isinstance(distribution, TimeStep):
        _fill_time_steps(target, distribution, source)
    else:
        source.fill_all([target])


def _matrix(target: Target, tensor: torch.Tensor, distribution: Orthogonal) -> Matrix:
    """Dimension 0 against the rest, with the random numbers of the elements' own indices; or JAX's and Keras'
    matrix."""
    if distribution.column_axis is not None:
        tensor = tensor.movedim(distribution.column_axis, -1)
        columns = tensor.shape[-1]
        return _matrix_of_its_own(target, "", tensor, tensor.numel() // columns, columns, distribution.gain)
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    part = _part(target)
    # The other dimensions of a part of a tensor may not lie one behind the other.
    steps = [math.prod(tensor.shape[position + 1 :]) for position in range(1, tensor.dim())]
    if list(part.strides[1:]) != steps:
        return _matrix_of_its_own(target, "", tensor, rows, columns, distribution.gain)
    return Matrix(target.name, tensor, (rows, columns), Part(part.offset, (part.strides[0], 1)), distribution.gain)


def _part(target: Target) -> Part:
    return target.part or whole(target.shape)


def _matrix_of_its_own(
    target: Target, what: str, tensor: torch.Tensor, rows: int, columns: int, gain: float = 1.0
) -> Matrix:
    """A matrix whose random numbers are counted in its own elements, in a stream of its own for every part."""
    return Matrix(name_of_part(target) + what, tensor, (rows, columns), Part(0, (columns, 1)), gain)


def _fill_spectral(targets: Sequence[Target], source: Source) -> None:
    """Singular vectors of as many matrices together as the workspace holds, and their products."""
    batch: list[tuple[Target, Matrix, Matrix]] = []
    held = 0
    for position, target in enumerate(targets):
        distribution = target.distribution
        assert isinstance(distribution, Spectral)
        rank = len(distribution.values)
        dtype = target.dtype if target.dtype.is_complex else compute_dtype(target.dtype)
        sides = []
        for what, length in ((":left", distribution.rows), (":right", distribution.columns)):
            vectors = torch.empty(length, rank, dtype=dtype, device=target.device)
            sides.append(_matrix_of_its_own(target, what, vectors, length, rank))
            held += vectors.numel() * dtype.itemsize
        batch.append((target, sides[0], sides[1]))
        if held >= WORKSPACE_BYTES or position == len(targets) - 1:
            source.orthogonal([side for _, *both in batch for side in both])
            for each, left, right in batch:
                _multiply(each, left.tensor, right.tensor)
            batch, held = [], 0


def _multiply(target: Target, left: torch.Tensor, right: torch.Tensor) -> None:
    assert isinstance(target.distribution, Spectral)
    left *= torch.tensor(target.distribution.values, dtype=torch.float64, device=target.device).to(left.dtype)
    target.tensor.detach().copy_((left @ right.mT).reshape(target.shape))


def _middle(target: Target, tensor: torch.Tensor, gain: float) -> Matrix:
    middle = tuple((size - 1) // 2 for size in tensor.shape[2:])
    part = _part(target)
    offset = part.offset + sum(index * stride for index, stride in zip(middle, part.strides[2:], strict=True))
    shape = (tensor.shape[0], tensor.shape[1])
    return Matrix(target.name, _at(tensor, middle), shape, Part(offset, part.strides[:2]), gain)


def _sample(
    target: Target,
    distribution: Distribution,
    source: Source,
    shape: torch.Size,
    part: Part | None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A new tensor of random values: those that belong to `part` of the target's parameter."""
    if dtype is None:
        dtype = target.dtype if target.dtype.itemsize >= 4 else torch.float32
    values = torch.empty(shape, dtype=dtype, device=target.device)
    source.fill_all([Target(target.name, values, shape, dtype, target.device, distribution, part)])
    return values


def _fill_hadamard(tensor: torch.Tensor, distribution: Hadamard) -> None:
    rows, columns = tensor.shape[:2]
    common = np.arange(rows, dtype=np.int32)[:, None] & np.arange(columns, dtype=np.int32)[None, :]
    for shift in (16, 8, 4, 2, 1):
        common ^= common >> shift
    signs = 1 - 2 * (common & 1)
    if tensor.dim() > 2:
        tensor.zero_()
    middle = tuple(size // 2 for size in tensor.shape[2:])
    _at(tensor, middle).copy_(torch.from_numpy(signs * distribution.scale))


def _at(tensor: torch.Tensor, middle: Sequence[int]) -> torch.Tensor:
    """The matrix of a kernel's position."""
    for index in reversed(middle):
        tensor = tensor.select(-1, index)
    return tensor


def _fill_time_steps(target: Target, distribution: TimeStep, source: Source) -> None:
    bounds = Uniform(math.log(distribution.low), math.log(distribution.high))
    dtype = torch.float32 if target.device.type == "mps" else torch.float64
    logs = _sample(target, bounds, source, target.shape, target.part, dtype)
    # In Python whatever the device, so that all devices get the same values.
    steps = (max(distribution.floor, math.exp(each)) for each in logs.flatten().tolist())
    values = torch.tensor([inverse_softplus(step) for step in steps], dtype=torch.float64)
    target.tensor.detach().copy_(values.reshape(target.shape))
