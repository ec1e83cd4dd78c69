"""Distributions of whole matrices and kernels: orthogonal, of a given spectrum, sparse, structured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fastinit.schemes.distributions.base import FAR, Distribution, check_fits, check_not_negative, set_floats, set_sizes
from fastinit.schemes.numbers import as_finite


@dataclass(frozen=True, slots=True)
class Orthogonal(Distribution):
    """`gain` times a Haar distributed matrix with orthonormal rows or columns, whichever are fewer.

    The rows of the matrix are dimension 0, its columns all others. With `column_axis`, that axis is the columns and
    all others are the rows. `vectors` rows or columns of `length` elements are orthonormal.
    """

    gain: float
    vectors: int
    length: int
    column_axis: int | None = None
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        set_sizes(self, "vectors", "length")

    def __str__(self) -> str:
        times = "" if self.gain == 1.0 else f"{self.gain:.6g} x "
        return f"{times}orthogonal, {self.vectors} of length {self.length}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return abs(self.gain) / math.sqrt(self.length)

    def bounds(self) -> tuple[float, float]:
        return -abs(self.gain), abs(self.gain)

    def scaled(self, factor: float) -> Orthogonal:
        return replace(self, gain=self.gain * factor)

    def rounding_scale(self) -> float:
        return abs(self.gain)

    def check(self, shape: Sequence[int]) -> None:
        axis = 0 if self.column_axis is None else self.column_axis
        if len(shape) < 2 or not -len(shape) <= axis < len(shape):
            raise ValueError(f"expected a matrix, got {self} for shape {tuple(shape)}")
        sides = shape[axis], math.prod(shape) // max(shape[axis], 1)
        if (self.vectors, self.length) != (min(sides), max(sides)):
            raise ValueError(
                f"expected {min(sides)} vectors of length {max(sides)} for shape {tuple(shape)}, got {self.vectors} of "
                f"length {self.length}"
            )


@dataclass(frozen=True, slots=True)
class DeltaOrthogonal(Distribution):
    """`gain` times an out x in matrix with orthonormal columns at the middle of the kernels, zero elsewhere."""

    gain: float
    out: int
    inputs: int
    kernel: int

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        set_sizes(self, "out", "inputs", "kernel")

    def __str__(self) -> str:
        return f"{self.gain:.6g} x orthogonal {self.out} x {self.inputs} at the middle of {self.kernel}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return abs(self.gain) / math.sqrt(self.out * self.kernel)

    def bounds(self) -> tuple[float, float]:
        return -abs(self.gain), abs(self.gain)

    def scaled(self, factor: float) -> DeltaOrthogonal:
        return replace(self, gain=self.gain * factor)

    def rounding_scale(self) -> float:
        return abs(self.gain)

    def check(self, shape: Sequence[int]) -> None:
        check_fits(self, shape, (*shape[:2], math.prod(shape[2:])), (self.out, self.inputs, self.kernel))
        if self.inputs > self.out:
            raise ValueError(f"expected no more inputs than outputs, got {self.inputs} and {self.out}")


@dataclass(frozen=True, slots=True)
class Spectral(Distribution):
    """U diag(values) V^T with Haar distributed U and V: a matrix with these singular values.

    The rows of the matrix are dimension 0, its columns all others.
    """

    values: tuple[float, ...]
    rows: int
    columns: int
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        values = tuple(float(as_finite(f"values[{i}]", value)) for i, value in enumerate(self.values))
        object.__setattr__(self, "values", values)
        set_sizes(self, "rows", "columns")
        if len(values) != min(self.rows, self.columns):
            raise ValueError(
                f"values: expected {min(self.rows, self.columns)}, the rank of {self.rows} x {self.columns}, got "
                f"{len(values)}"
            )

    def __str__(self) -> str:
        return f"singular values {min(self.values):.6g} to {max(self.values):.6g}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return math.sqrt(math.fsum(value * value for value in self.values) / (self.rows * self.columns))

    def bounds(self) -> tuple[float, float]:
        largest = max(map(abs, self.values))
        return -largest, largest

    def scaled(self, factor: float) -> Spectral:
        return replace(self, values=tuple(value * factor for value in self.values))

    def rounding_scale(self) -> float:
        return max(map(abs, self.values))

    def check(self, shape: Sequence[int]) -> None:
        check_fits(self, shape, (*shape[:1], math.prod(shape[1:])), (self.rows, self.columns))


@dataclass(frozen=True, slots=True)
class IdentityPlus(Distribution):
    """`identity` times the identity plus `gain` times a Haar distributed orthogonal matrix, both of order `order`."""

    identity: float
    gain: float
    order: int

    def __post_init__(self) -> None:
        set_floats(self, "identity", "gain")
        set_sizes(self, "order")

    def __str__(self) -> str:
        return f"{self.identity:.6g} x identity + {self.gain:.6g} x orthogonal"

    def mean(self) -> float:
        return self.identity / self.order

    def std(self) -> float:
        spread = self.identity**2 * (1.0 - 1.0 / self.order) + self.gain**2
        return math.sqrt(spread / self.order)

    def bounds(self) -> tuple[float, float]:
        return min(self.identity, 0.0) - abs(self.gain), max(self.identity, 0.0) + abs(self.gain)

    def scaled(self, factor: float) -> IdentityPlus:
        return replace(self, identity=self.identity * factor, gain=self.gain * factor)

    def rounding_scale(self) -> float:
        return abs(self.identity) + abs(self.gain)

    def check(self, shape: Sequence[int]) -> None:
        check_fits(self, shape, tuple(shape), (self.order, self.order))


@dataclass(frozen=True, slots=True)
class Sparse(Distribution):
    """N(0, sigma^2), with `zeros` randomly chosen elements of every column set to zero."""

    sigma: float
    zeros: int
    rows: int
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_floats(self, "sigma")
        check_not_negative("sigma", self.sigma)
        set_sizes(self, "zeros", "rows")
        if self.zeros > self.rows:
            raise ValueError(f"zeros: expected at most {self.rows}, the rows, got {self.zeros}")

    def __str__(self) -> str:
        return f"N(0, {self.sigma:.6g}^2), {self.zeros} of {self.rows} zero in a column"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return self.sigma * math.sqrt(1.0 - self.zeros / self.rows)

    def bounds(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def farthest(self) -> float:
        return FAR * self.sigma

    def scaled(self, factor: float) -> Sparse:
        return replace(self, sigma=self.sigma * factor)

    def of_parts(self) -> tuple[Sparse, Sparse]:
        """Both with half the variance, and with zeros in the same places."""
        part = replace(self, sigma=self.sigma / math.sqrt(2.0))
        return part, part

    def check(self, shape: Sequence[int]) -> None:
        check_fits(self, shape, (len(shape), *shape[:1]), (2, self.rows))


@dataclass(frozen=True, slots=True)
class Hadamard(Distribution):
    """`scale` times the top left corner of Sylvester's Hadamard matrix: (-1)^popcount(i & j) at (i, j).

    In a convolution, the matrix lies at the middle of the kernels, and all else is zero. `kernel` is the number of
    positions in a kernel.
    """

    scale: float
    kernel: int

    def __post_init__(self) -> None:
        set_floats(self, "scale")
        set_sizes(self, "kernel")

    def __str__(self) -> str:
        return f"{self.scale:.6g} x Hadamard"

    def mean(self) -> float:
        """The mean, approximately: the corner of a Hadamard matrix need not be balanced."""
        return 0.0

    def std(self) -> float:
        return abs(self.scale) / math.sqrt(self.kernel)

    def bounds(self) -> tuple[float, float]:
        return -abs(self.scale), abs(self.scale)

    def scaled(self, factor: float) -> Hadamard:
        return replace(self, scale=self.scale * factor)

    def is_random(self) -> bool:
        return False

    def check(self, shape: Sequence[int]) -> None:
        check_fits(self, shape, (min(len(shape), 2), math.prod(shape[2:])), (2, self.kernel))
