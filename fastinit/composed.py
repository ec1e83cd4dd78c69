"""Writes what is computed from whole tensors of random values: orthogonal and sparse matrices, and a few fixed
patterns.

The random values come from a `Source`: the native code's streams, or torch's generators. The arithmetic that follows is
torch's, in float32 or float64, rounded once to the parameter's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from fastinit.distributions import (
    Blocks,
    DeltaOrthogonal,
    Distribution,
    Hadamard,
    LogRange,
    Normal,
    Orthogonal,
    Sparse,
    TimeStep,
    Uniform,
    ZeroRow,
    inverse_softplus,
)
from fastinit.layout import Part, whole
from fastinit.table import Target, pieces


class Source(Protocol):
    """Where random values come from."""

    def fill(self, target: Target) -> None:
        """Write a target of a sampled distribution."""

    def zero_rows(self, target: Target, zeros: int) -> None:
        """Set `zeros` randomly chosen elements of every column of a matrix to zero."""


@torch.no_grad()
def fill(target: Target, source: Source) -> None:
    """Write a target of any distribution."""
    tensor, distribution = target.tensor.detach(), target.distribution
    if isinstance(distribution, Blocks):
        for piece in pieces(target):
            fill(piece, source)
    elif isinstance(distribution, ZeroRow):
        fill(target._replace(distribution=distribution.rest), source)
        tensor[distribution.row].zero_()
    elif isinstance(distribution, Orthogonal):
        normals = _sample(target, Normal(0.0, 1.0), source, target.shape, target.part)
        tensor.copy_(_orthogonal(normals, distribution.gain).reshape(target.shape))
    elif isinstance(distribution, DeltaOrthogonal):
        _fill_delta_orthogonal(target, distribution, source)
    elif isinstance(distribution, Sparse):
        source.fill(target._replace(distribution=Normal(0.0, distribution.sigma)))
        source.zero_rows(target, distribution.zeros)
    elif isinstance(distribution, Hadamard):
        _fill_hadamard(tensor, distribution)
    elif isinstance(distribution, LogRange):
        tensor.copy_(torch.tensor([math.log(i) for i in range(1, distribution.length + 1)], dtype=torch.float64))
    elif isinstance(distribution, TimeStep):
        _fill_time_steps(target, distribution, source)
    else:
        source.fill(target)


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
    source.fill(Target(target.name, values, shape, dtype, target.device, distribution, part))
    return values


def _orthogonal(normals: torch.Tensor, gain: float) -> torch.Tensor:
    """`gain` times the Q of the QR factorisation of dimension 0 against the rest, made Haar distributed.

    Q becomes unique, and thereby Haar, when the diagonal of R is positive (Mezzadri 2007, section 5). Where the
    diagonal is zero, the sign is plus.
    """
    matrix = normals.reshape(normals.shape[0], -1)
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = torch.linalg.qr(matrix.mT if wide else matrix)
    diagonal = r.diagonal()
    if diagonal.is_complex():
        size = diagonal.abs()
        q *= torch.where(size > 0, diagonal / size, torch.ones_like(diagonal))
    else:
        q *= torch.where(diagonal < 0, -1.0, 1.0)
    if gain != 1.0:
        q *= gain
    found: torch.Tensor = q.mT if wide else q
    return found


def _fill_delta_orthogonal(target: Target, distribution: DeltaOrthogonal, source: Source) -> None:
    tensor = target.tensor.detach()
    middle = tuple((size - 1) // 2 for size in target.shape[2:])
    part = target.part or whole(target.shape)
    offset = part.offset + sum(index * stride for index, stride in zip(middle, part.strides[2:], strict=True))
    matrix_shape = torch.Size(target.shape[:2])
    normals = _sample(target, Normal(0.0, 1.0), source, matrix_shape, Part(offset, part.strides[:2]))
    tensor.zero_()
    _at(tensor, middle).copy_(_orthogonal(normals, distribution.gain))


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
