"""What the values of one tensor are: moments, extremes, equal rows, singular values. Reads, in pieces; writes nothing.

Memory beside the tensor is a few MiB, however large the tensor is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native
from fastinit.run.exact import exact_arithmetic, safe_threads
from fastinit.run.index_maps import box_of, boxes
from fastinit.run.table import DTYPES

# Elements that torch's operations take at a time. On a CPU they fit into its cache; elsewhere a launch costs more.
_AT_ONCE_ON_CPU = 2**18
_AT_ONCE = 2**22
_NATIVE_DTYPES = {dtype: DTYPES[dtype] for dtype in (torch.float32, torch.float64, torch.bfloat16)}
# How many elements of each row are compared first. Rows that agree in them are compared as a whole.
_SAMPLED = 8
# The integers of a number of bytes.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd constants, without a pattern in their bits (SplitMix64's increments and multipliers are such).
_MULTIPLIERS = (
    0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB, 0x2545F4914F6CDD1D,
    0x5851F42D4C957F2D, 0x14057B7EF767814F, 0x369DEA0F31A53F85, 0x2127599BF4325C37,
)  # fmt: skip


class Statistics(NamedTuple):
    """The values of a tensor in a few numbers. Moments and extremes are those of the finite values.

    numel: the number of values; a complex number counts as two.
    non_finite: how many are NaN or infinite.
    zeros: how many are 0 or -0.
    mean, low, high: NaN if no value is finite.
    squares: the sum of squared differences from the mean.
    """

    numel: int
    non_finite: int
    zeros: int
    mean: float
    squares: float
    low: float
    high: float

    @property
    def finite(self) -> int:
        return self.numel - self.non_finite

    @property
    def std(self) -> float:
        """The standard deviation over all finite values; NaN if there are none."""
        return math.sqrt(self.squares / self.finite) if self.finite else math.nan

    def joined(self, other: Statistics) -> Statistics:
        """The statistics of two sets of values together.

        Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: the
        difference of the means enters, so that nothing cancels however far the mean is from zero.
        """
        numel, non_finite = self.numel + other.numel, self.non_finite + other.non_finite
        zeros = self.zeros + other.zeros
        if not (self.finite and other.finite):
            return (other if other.finite else self)._replace(numel=numel, non_finite=non_finite, zeros=zeros)
        difference, finite = other.mean - self.mean, self.finite + other.finite
        return Statistics(
            numel,
            non_finite,
            zeros,
            self.mean + difference * (other.finite / finite),
            self.squares + other.squares + difference * difference * (self.finite * (other.finite / finite)),
            min(self.low, other.low),
            max(self.high, other.high),
        )


NOTHING = Statistics(0, 0, 0, math.nan, 0.0, math.nan, math.nan)


@torch.no_grad()
@safe_threads()
def statistics(tensor: torch.Tensor) -> Statistics:
    """The statistics of a dense tensor that has memory, read once. Sums are taken in pieces, in float64 from there on.

    >>> found = statistics(torch.tensor([1.0, 3.0, 0.0, float("nan")]))
    >>> found.non_finite, found.zeros, found.high
    (1, 1, 3.0)
    """
    if tensor.numel() == 0:
        return NOTHING
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if (found := _natively(tensor)) is not None:
        return found
    at_once = _AT_ONCE_ON_CPU if tensor.device.type == "cpu" else _AT_ONCE
    pieces = [_of_piece(box_of(tensor, begin, shape)) for begin, shape in boxes(tensor.shape, at_once)]
    found = NOTHING
    # A device is waited for once.
    for numel, non_finite, zeros, *others in torch.stack(pieces).tolist():
        found = found.joined(Statistics(int(numel), int(non_finite), int(zeros), *others))
    return found


def _natively(tensor: torch.Tensor) -> Statistics | None:
    """The same in one pass of the native code; None where that does not apply.

    In float32 and bfloat16 it sums differences from a value of the tensor, 64 of them in float32 and all others in
    float64: the std is right to 1e-6 of itself.
    """
    code = _NATIVE_DTYPES.get(tensor.dtype)
    if _native.module is None or code is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    found = Statistics(*_native.module.statistics_cpu(tensor.data_ptr(), tensor.numel(), code, torch.get_num_threads()))
    return found if found.finite else found._replace(mean=math.nan, low=math.nan, high=math.nan)


def _of_piece(piece: torch.Tensor) -> torch.Tensor:
    """The fields of `Statistics`, as numbers on the piece's device."""
    # Apple's devices have no float64.
    values = piece.reshape(-1).to(torch.float32 if piece.device.type == "mps" else torch.float64)
    finite = values.isfinite()
    # The values that are not finite count as 0. On a device nobody looks whether there are any: the look would cost its
    # queue more than the work does.
    of_finite = values if values.device.type == "cpu" and bool(finite.all()) else values.where(finite, 0.0)
    held = finite.sum().to(values.dtype)
    mean = of_finite.sum() / held
    squares = (of_finite - mean).where(finite, 0.0).square().sum()
    return torch.stack(
        (
            torch.full_like(held, values.numel()),
            values.numel() - held,
            (values == 0).sum().to(values.dtype),
            mean,
            squares,
            values.where(finite, math.inf).min(),
            values.where(finite, -math.inf).max(),
        )
    )


@torch.no_grad()
@safe_threads()
def equal_rows(matrix: torch.Tensor) -> int:
    """How many rows of a matrix equal an earlier one. Rows of zeros do not count.

    A few elements of each row tell most rows apart; rows that agree in these are compared as a whole. Rows with fewer
    than four elements may well agree by chance, and are not looked at.
    """
    rows, columns = matrix.shape
    if rows < 2 or columns < 4:
        return 0
    matrix = matrix.detach()
    if matrix.is_complex():
        matrix, columns = torch.view_as_real(matrix).flatten(1), 2 * columns
    at = torch.linspace(0, columns - 1, min(columns, _SAMPLED), device="cpu").long()
    sampled = _columns(matrix, at).astype(np.int64)
    keys, order = torch.from_numpy(sampled @ np.array(_MULTIPLIERS[: len(at)])).sort(stable=True)
    alike = (keys[1:] == keys[:-1]).nonzero().flatten()
    order = order.to(matrix.device)
    found = 0
    for some in torch.split(alike, max(1, _AT_ONCE_ON_CPU // columns)):
        some = some.to(matrix.device)
        first, second = matrix[order[some]], matrix[order[some + 1]]
        found += int(((first == second).all(1) & (first != 0).any(1)).sum())
    return found


def _columns(matrix: torch.Tensor, at: torch.Tensor) -> np.ndarray[Any, Any]:
    """Some columns of a matrix, as the integers that have their bits."""
    bits = matrix.view(_BITS[matrix.element_size()])
    if matrix.device.type != "cpu":
        return np.asarray(bits.index_select(1, at.to(matrix.device)).cpu().numpy())
    # torch takes up to 1000 times as long as NumPy where the rows of a transposed matrix are asked for.
    return np.asarray(bits.numpy()[:, at.numpy()])


class Spectrum(NamedTuple):
    """The largest and the smallest singular value of a map, and its distance from multiples of orthogonal ones.

    `orthogonality` is the largest |s^2 / mean(s^2) - 1| over the singular values s: the spectral norm of W W^T / c - I
    (or W^T W / c - I, if W has more rows than columns), with the best c. It is 0 for multiples of orthogonal matrices.
    """

    largest: float
    smallest: float
    orthogonality: float


def spectrum(matrices: torch.Tensor) -> Spectrum:
    """The singular values of a matrix, or of a stack of them: the largest and the smallest of all.

    They are the roots of the eigenvalues of the smaller Gram matrix in float64, which is exact to 1e-8 of the largest
    one: far below the rounding of float32 weights.
    """
    matrices = matrices.detach().flatten(0, -3) if matrices.dim() > 3 else matrices.detach()
    found = [_spectrum_of(each) for each in (matrices if matrices.dim() == 3 else matrices[None])]
    return Spectrum(
        max(each.largest for each in found),
        min(each.smallest for each in found),
        max(each.orthogonality for each in found),
    )


def _spectrum_of(matrix: torch.Tensor) -> Spectrum:
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    columns = matrix.shape[1]
    with exact_arithmetic([matrix.device]):
        dtype = torch.complex128 if matrix.is_complex() else torch.float64
        gram = torch.zeros(columns, columns, dtype=dtype, device=matrix.device)
        for some in torch.split(matrix, max(1, _AT_ONCE // columns)):
            some = some.to(dtype)
            gram.addmm_(some.mH, some)
        if not bool(gram.isfinite().all()):
            return Spectrum(math.nan, math.nan, math.nan)
        values = torch.linalg.eigvalsh(gram).clamp_(min=0.0)
    low, high, mean = float(values[0]), float(values[-1]), float(values.mean())
    error = max(high / mean - 1.0, 1.0 - low / mean) if mean > 0 else math.nan
    return Spectrum(math.sqrt(high), math.sqrt(low), error)
