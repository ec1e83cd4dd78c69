"""Distributions of a parameter's values. The rows of a plan hold them, and a run writes values from them.

A distribution is plain data, without fans. A `Sampled` distribution computes every element from that element's random
words alone; the native code fills all such tensors in one pass. The others need the whole tensor, and run/composed.py
has a writer for each. `Blocks` and `ZeroRow` combine other distributions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch

from fastinit.schemes.numbers import as_finite, as_number, as_size

Needs = Literal["element", "tensor"]
# A normal value lies further than this many standard deviations from its mean once in 500 million draws.
_FAR = 6.0


class Split(NamedTuple):
    """Blocks along dimension `dim`: their sizes, and the distribution of each.

    Each distribution is for the shape of its block. With `of_whole`, each is for the shape of the whole tensor, and the
    block takes its share of the values. With `drops_dim`, the blocks have size 1 along `dim` and are without it.
    """

    dim: int
    sizes: tuple[int, ...]
    each: tuple[Distribution, ...]
    of_whole: bool = False
    drops_dim: bool = False


class Distribution(ABC):
    """The base of all distributions. A new kind takes a frozen dataclass here and a writer in run/composed.py."""

    __slots__ = ()
    takes_complex: ClassVar[bool] = False  # whether the distribution has a meaning for complex tensors
    same_everywhere: ClassVar[bool] = False  # whether all elements are distributed alike, in any part of a tensor
    told_by_formula: ClassVar[bool] = True  # whether mean, std and bounds are known without computing the values

    @abstractmethod
    def mean(self) -> float:
        """The mean over all elements."""

    @abstractmethod
    def std(self) -> float:
        """The standard deviation over all elements."""

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value. A missing bound is infinite."""

    @abstractmethod
    def __str__(self) -> str: ...

    def scaled(self, factor: float) -> Distribution:
        """The distribution of `factor` times the values; factor >= 0.

        Raises:
            TypeError: the values have a meaning that a factor would spoil.
        """
        raise TypeError(f"{self} cannot be scaled")

    def of_parts(self) -> tuple[Distribution, Distribution] | None:
        """The distributions of the real and of the imaginary parts of complex values; None: only torch makes these.

        Value i has its real part from element 2 i, and its imaginary part from element 2 i + 1, of a real tensor.
        Positions in these distributions count the elements of that one. It is one object twice where both parts are
        distributed alike (two constants of which one is -0 are equal, and are not alike).
        """
        return None

    def blocks(self) -> Split | None:
        """The blocks, if several distributions lie along a dimension; None if there is only this one."""
        return None

    def each_block(self) -> Iterator[Distribution]:
        """The distribution itself, or the distributions of all its blocks, nested ones included."""
        split = self.blocks()
        if split is None:
            yield self
        else:
            for each in split.each:
                yield from each.each_block()

    def is_random(self) -> bool:
        """Whether any block takes random numbers."""
        return True

    @property
    def needs(self) -> Needs:
        """The input of one value: its own random words ("element"), or the whole tensor ("tensor")."""
        return "tensor"

    def farthest(self) -> float:
        """The largest magnitude among the values and their intermediate results.

        A side without a bound counts as six standard deviations from the mean.
        """
        reach = _FAR * self.std()
        low, high = self.bounds()
        low = self.mean() - reach if math.isinf(low) else low
        high = self.mean() + reach if math.isinf(high) else high
        return max(abs(low), abs(high))

    def rounding_scale(self) -> float | None:
        """The magnitude that rounding errors are proportional to, for values that come from products or a math library.

        None: the values are exact, to the bit.
        """
        return None

    def check(self, shape: Sequence[int]) -> None:  # noqa: B027 (most fit every shape)
        """Raise ValueError unless the distribution fits tensors of this shape."""

    def located(self, shape: Sequence[int], offset: int, strides: Sequence[int]) -> Distribution:
        """The distribution of a box of this shape, rewritten in the indices of the whole tensor. The values stay equal.

        Element (i, j, ...) of the box is element offset + i strides[0] + j strides[1] + ... of the whole.

        Raises:
            ValueError: the distribution cannot be described by the indices of the whole.
        """
        return self


class Sampled(Distribution):
    """A distribution that the native code fills: every element comes from its own random words."""

    __slots__ = ()
    code: ClassVar[int]  # csrc/core/task.h: Distribution

    @abstractmethod
    def parameters(self) -> tuple[float, ...]:
        """The numbers that the native code takes, in the order of csrc/core/task.h."""

    @property
    def needs(self) -> Needs:
        return "element"


class _Compound(Distribution):
    """A distribution of several blocks. All its properties follow from theirs."""

    __slots__ = ()

    @abstractmethod
    def blocks(self) -> Split: ...

    def mean(self) -> float:
        return _mixture(self.blocks())[0]

    def std(self) -> float:
        return _mixture(self.blocks())[1]

    def bounds(self) -> tuple[float, float]:
        bounds = [each.bounds() for each in self.each_block()]
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def farthest(self) -> float:
        return max(each.farthest() for each in self.each_block())

    def is_random(self) -> bool:
        return any(each.is_random() for each in self.each_block())

    @property
    def needs(self) -> Needs:
        return "tensor" if any(each.needs == "tensor" for each in self.each_block()) else "element"

    def rounding_scale(self) -> float | None:
        scales = [scale for each in self.each_block() if (scale := each.rounding_scale()) is not None]
        return max(scales, default=None)


def _set_floats(distribution: Distribution, *names: str) -> None:
    """Turn fields into plain floats; raise an error unless they are finite numbers."""
    for name in names:
        object.__setattr__(distribution, name, float(as_finite(name, getattr(distribution, name))))


def _set_sizes(distribution: Distribution, *names: str) -> None:
    """Turn fields into plain ints; raise an error unless they are integers >= 0."""
    for name in names:
        object.__setattr__(distribution, name, as_size(name, getattr(distribution, name)))


@dataclass(frozen=True, slots=True)
class Constant(Sampled):
    """Every element is `value`, which may be infinite or NaN. An integer that float64 cannot hold stays an integer."""

    value: float
    code: ClassVar[int] = 0
    same_everywhere: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        value = as_number("value", self.value)
        as_float = float(value)
        object.__setattr__(self, "value", as_float if as_float == value or as_float != as_float else value)

    def __str__(self) -> str:
        return f"{self.value:g}"

    def parameters(self) -> tuple[float, ...]:
        return (self.value,)

    def mean(self) -> float:
        return self.value

    def std(self) -> float:
        return 0.0

    def bounds(self) -> tuple[float, float]:
        return self.value, self.value

    def farthest(self) -> float:
        return abs(self.value) if math.isfinite(self.value) else 0.0  # an infinite constant is meant

    def scaled(self, factor: float) -> Constant:
        return Constant(self.value * factor)

    def of_parts(self) -> tuple[Constant, Constant]:
        is_positive_zero = self.value == 0.0 and math.copysign(1.0, self.value) > 0.0
        return (ZERO, ZERO) if is_positive_zero else (self, ZERO)

    def is_random(self) -> bool:
        return False


ZERO = Constant(0.0)


@dataclass(frozen=True, slots=True)
class Uniform(Sampled):
    """Uniform on [low, high], both ends included."""

    low: float
    high: float
    code: ClassVar[int] = 1
    same_everywhere: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _set_floats(self, "low", "high")
        check_order("low", self.low, "high", self.high)

    def __str__(self) -> str:
        return f"U[{self.low:.6g}, {self.high:.6g}]"

    def parameters(self) -> tuple[float, ...]:
        return self.low, self.high

    def mean(self) -> float:
        return 0.5 * self.low + 0.5 * self.high

    def std(self) -> float:
        return (self.high - self.low) / math.sqrt(12.0)

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def farthest(self) -> float:
        return max(abs(self.low), abs(self.high), self.high - self.low)  # a value is low + share * (high - low)

    def scaled(self, factor: float) -> Uniform:
        return Uniform(self.low * factor, self.high * factor)

    def of_parts(self) -> tuple[Uniform, Uniform]:
        return self, self


@dataclass(frozen=True, slots=True)
class Normal(Sampled):
    """N(center, sigma^2)."""

    center: float
    sigma: float
    code: ClassVar[int] = 2
    same_everywhere: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _set_floats(self, "center", "sigma")
        check_not_negative("sigma", self.sigma)

    def __str__(self) -> str:
        return f"N({self.center:.6g}, {self.sigma:.6g}^2)"

    def parameters(self) -> tuple[float, ...]:
        return self.center, self.sigma

    def mean(self) -> float:
        return self.center

    def std(self) -> float:
        return self.sigma

    def bounds(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def scaled(self, factor: float) -> Normal:
        return Normal(self.center * factor, self.sigma * factor)

    def of_parts(self) -> tuple[Normal, Normal]:
        """Both with half the variance, as torch has them. The center is that of both."""
        part = Normal(self.center, self.sigma / math.sqrt(2.0))
        return part, part


@dataclass(frozen=True, slots=True)
class TruncNormal(Sampled):
    """N(center, sigma^2) conditioned on [low, high], absolute bounds, both ends included."""

    center: float
    sigma: float
    low: float
    high: float
    code: ClassVar[int] = 3
    same_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _set_floats(self, "center", "sigma")
        for name in ("low", "high"):
            object.__setattr__(self, name, float(as_number(name, getattr(self, name))))
        check_not_negative("sigma", self.sigma)
        check_order("low", self.low, "high", self.high)

    def __str__(self) -> str:
        return f"N({self.center:.6g}, {self.sigma:.6g}^2) in [{self.low:.6g}, {self.high:.6g}]"

    def parameters(self) -> tuple[float, ...]:
        return self.center, self.sigma, self.low, self.high

    def mean(self) -> float:
        """center + sigma (f(a) - f(b)) / Z: bounds a, b in sigma, density f, mass Z."""
        if self.sigma == 0.0 or self.low == self.high:
            return min(max(self.center, self.low), self.high)
        return self.center + self.sigma * _truncated_mean(*self._bounds_in_sigma())

    def std(self) -> float:
        """sigma sqrt(1 + (a f(a) - b f(b)) / Z - ((f(a) - f(b)) / Z)^2): bounds a, b in sigma, density f, mass Z."""
        if self.sigma == 0.0 or self.low == self.high:
            return 0.0
        return self.sigma * truncated_std(*self._bounds_in_sigma())

    def _bounds_in_sigma(self) -> tuple[float, float]:
        return (self.low - self.center) / self.sigma, (self.high - self.center) / self.sigma

    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def farthest(self) -> float:
        # Values do not reach bounds that lie far out.
        mean, reach = self.mean(), _FAR * self.std()
        ends = max(self.low, mean - reach), min(self.high, mean + reach)
        return max(self.sigma, abs(self.center), *map(abs, ends))

    def scaled(self, factor: float) -> TruncNormal:
        if factor == 0.0:  # infinity times zero is NaN, which is no bound
            return TruncNormal(0.0, 0.0, 0.0, 0.0)
        return TruncNormal(self.center * factor, self.sigma * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Diagonal(Sampled):
    """`value` on a diagonal, zero elsewhere: the identity, or the Dirac delta of a convolution.

    Every `period` of row-major indices has `length` elements on the diagonal: `first`, `first + step`,
    `first + 2 step`, ...
    """

    value: float
    first: int
    step: int
    length: int
    period: int
    code: ClassVar[int] = 4
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _set_floats(self, "value")
        _set_sizes(self, "first", "step", "length", "period")

    def __str__(self) -> str:
        return f"{self.value:g} on a diagonal"

    def parameters(self) -> tuple[float, ...]:
        return self.value, self.first, self.step, self.length, self.period

    def mean(self) -> float:
        return self.value * self.length / self.period

    def std(self) -> float:
        share = self.length / self.period
        return abs(self.value) * math.sqrt(share * (1.0 - share))

    def bounds(self) -> tuple[float, float]:
        return min(self.value, 0.0), max(self.value, 0.0)

    def scaled(self, factor: float) -> Diagonal:
        return replace(self, value=self.value * factor)

    def of_parts(self) -> tuple[Diagonal, Constant]:
        return Diagonal(self.value, 2 * self.first, 2 * self.step, self.length, 2 * self.period), ZERO

    def is_random(self) -> bool:
        return False

    def check(self, shape: Sequence[int]) -> None:
        numel, last = math.prod(shape), self.first + max(0, self.length - 1) * self.step
        if self.step < 1 or self.period < 1 or last >= self.period or numel % self.period != 0:
            raise ValueError(
                f"expected a diagonal within every period, and whole periods in shape {tuple(shape)}, got {self!r}"
            )

    def located(self, shape: Sequence[int], offset: int, strides: Sequence[int]) -> Diagonal:
        numel = math.prod(shape)
        if self.period == numel and tuple(strides) == _row_major(shape):  # consecutive elements
            return replace(self, first=offset + self.first, period=offset + numel)
        if self.period == numel and len(shape) == 2:
            last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            step = sum(strides)
            return Diagonal(self.value, offset, step, self.length, max(last, offset + self.length * step) + 1)
        raise ValueError("a diagonal in groups cannot be split into blocks")


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
        _set_floats(self, "gain")
        _set_sizes(self, "vectors", "length")

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
        _set_floats(self, "gain")
        _set_sizes(self, "out", "inputs", "kernel")

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
        _check_fits(self, shape, (*shape[:2], math.prod(shape[2:])), (self.out, self.inputs, self.kernel))
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
        _set_sizes(self, "rows", "columns")
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
        _check_fits(self, shape, (*shape[:1], math.prod(shape[1:])), (self.rows, self.columns))


@dataclass(frozen=True, slots=True)
class IdentityPlus(Distribution):
    """`identity` times the identity plus `gain` times a Haar distributed orthogonal matrix, both of order `order`."""

    identity: float
    gain: float
    order: int

    def __post_init__(self) -> None:
        _set_floats(self, "identity", "gain")
        _set_sizes(self, "order")

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
        _check_fits(self, shape, tuple(shape), (self.order, self.order))


@dataclass(frozen=True, slots=True)
class Sparse(Distribution):
    """N(0, sigma^2), with `zeros` randomly chosen elements of every column set to zero."""

    sigma: float
    zeros: int
    rows: int
    takes_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _set_floats(self, "sigma")
        check_not_negative("sigma", self.sigma)
        _set_sizes(self, "zeros", "rows")
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
        return _FAR * self.sigma

    def scaled(self, factor: float) -> Sparse:
        return replace(self, sigma=self.sigma * factor)

    def of_parts(self) -> tuple[Sparse, Sparse]:
        """Both with half the variance, and with zeros in the same places."""
        part = replace(self, sigma=self.sigma / math.sqrt(2.0))
        return part, part

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, (len(shape), *shape[:1]), (2, self.rows))


@dataclass(frozen=True, slots=True)
class Hadamard(Distribution):
    """`scale` times the top left corner of Sylvester's Hadamard matrix: (-1)^popcount(i & j) at (i, j).

    In a convolution, the matrix lies at the middle of the kernels, and all else is zero. `kernel` is the number of
    positions in a kernel.
    """

    scale: float
    kernel: int

    def __post_init__(self) -> None:
        _set_floats(self, "scale")
        _set_sizes(self, "kernel")

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
        _check_fits(self, shape, (min(len(shape), 2), math.prod(shape[2:])), (2, self.kernel))


@dataclass(frozen=True, slots=True)
class LogRange(Distribution):
    """log 1, log 2, ..., log `length` along the last dimension."""

    length: int

    def __post_init__(self) -> None:
        _set_sizes(self, "length")

    def __str__(self) -> str:
        return f"log(1 ... {self.length})"

    def _values(self) -> list[float]:
        return [math.log(i) for i in range(1, self.length + 1)]

    def mean(self) -> float:
        return math.fsum(self._values()) / self.length

    def std(self) -> float:
        mean = self.mean()
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self._values()) / self.length)

    def bounds(self) -> tuple[float, float]:
        return 0.0, math.log(max(self.length, 1))

    def is_random(self) -> bool:
        return False

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, tuple(shape[-1:]), (self.length,))


@dataclass(frozen=True, slots=True)
class TimeStep(Distribution):
    """The bias b before a softplus that gives log-uniform time steps: softplus(b) = max(floor, exp(u)), with
    u ~ U[log low, log high]."""

    low: float
    high: float
    floor: float

    def __post_init__(self) -> None:
        _set_floats(self, "low", "high", "floor")
        check_time_steps(self.low, self.high, self.floor)

    def __str__(self) -> str:
        return f"softplus^-1 of log-uniform [{self.low:g}, {self.high:g}]"

    def _moment(self, power: int) -> float:
        # Midpoint rule over u. The integrand is smooth except at the floor, so 4096 points give more than six digits.
        points = 4096
        log_low, log_high = math.log(self.low), math.log(self.high)
        steps = (math.exp(log_low + (i + 0.5) / points * (log_high - log_low)) for i in range(points))
        return math.fsum(inverse_softplus(max(self.floor, step)) ** power for step in steps) / points

    def mean(self) -> float:
        return self._moment(1)

    def std(self) -> float:
        return math.sqrt(max(0.0, self._moment(2) - self._moment(1) ** 2))

    def bounds(self) -> tuple[float, float]:
        return inverse_softplus(max(self.floor, self.low)), inverse_softplus(max(self.floor, self.high))

    def rounding_scale(self) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Series(Distribution):
    """These values along the last dimension, the same at all indices of the others."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(float(as_finite(f"values[{i}]", value)) for i, value in enumerate(self.values))
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        if not self.values:
            return "no values"
        return f"{self.values[0]:.6g} ... {self.values[-1]:.6g}, {len(self.values)} values"

    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    def std(self) -> float:
        mean = self.mean()
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / len(self.values))

    def bounds(self) -> tuple[float, float]:
        return min(self.values, default=0.0), max(self.values, default=0.0)

    def scaled(self, factor: float) -> Series:
        return Series(tuple(value * factor for value in self.values))

    def is_random(self) -> bool:
        return False

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, tuple(shape[-1:]), (len(self.values),))


@dataclass(frozen=True, slots=True)
class LogOfUniform(Distribution):
    """log u, u ~ U[low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _set_floats(self, "low", "high")
        check_logs(self.low, self.high)

    def __str__(self) -> str:
        return f"log U[{self.low:g}, {self.high:g}]"

    def mean(self) -> float:
        return _moment_of_log(self.low, self.high, 1)

    def std(self) -> float:
        return math.sqrt(max(0.0, _moment_of_log(self.low, self.high, 2) - self.mean() ** 2))

    def bounds(self) -> tuple[float, float]:
        return math.log(self.low), math.log(self.high)

    def is_random(self) -> bool:
        return self.low < self.high

    def rounding_scale(self) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Chrono(Distribution):
    """gate times log u for every gate along a vector: `gates` of `units` elements each, one u ~ U[low, high] a unit.

    A gate is a factor: 1, -1 or 0.
    """

    low: float
    high: float
    units: int
    gates: tuple[int, ...]

    def __post_init__(self) -> None:
        _set_floats(self, "low", "high")
        check_logs(self.low, self.high)
        _set_sizes(self, "units")
        object.__setattr__(self, "gates", tuple(self.gates))
        if not self.gates or any(gate not in (-1, 0, 1) for gate in self.gates):
            raise ValueError(f"gates: expected factors of 1, -1 or 0, got {self.gates!r}")

    def __str__(self) -> str:
        logs = f"log U[{self.low:g}, {self.high:g}]"
        return " | ".join({0: "0", 1: logs, -1: f"-{logs}"}[gate] for gate in self.gates)

    def mean(self) -> float:
        return sum(self.gates) / len(self.gates) * _moment_of_log(self.low, self.high, 1)

    def std(self) -> float:
        square = sum(gate * gate for gate in self.gates) / len(self.gates) * _moment_of_log(self.low, self.high, 2)
        return math.sqrt(max(0.0, square - self.mean() ** 2))

    def bounds(self) -> tuple[float, float]:
        ends = [gate * math.log(end) for gate in self.gates for end in (self.low, self.high)]
        return min(ends), max(ends)

    def is_random(self) -> bool:
        return self.low < self.high

    def rounding_scale(self) -> float:
        return 1.0

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, tuple(shape), (self.units * len(self.gates),))


@dataclass(frozen=True, slots=True)
class Blocks(_Compound):
    """Blocks of `sizes` along dimension `dim`, each with its own distribution: fused projections, gates."""

    dim: int
    sizes: tuple[int, ...]
    each: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        _set_sizes(self, "dim")
        object.__setattr__(self, "sizes", tuple(as_size(f"sizes[{i}]", size) for i, size in enumerate(self.sizes)))
        object.__setattr__(self, "each", tuple(self.each))
        for each in self.each:
            check_distribution(each)
        if len(self.sizes) != len(self.each) or not self.each:
            raise ValueError(f"expected a distribution a block, got {len(self.each)} for {len(self.sizes)}")

    def __str__(self) -> str:
        if len(set(self.each)) == 1:
            return f"{len(self.sizes)} blocks of dim {self.dim}: {self.each[0]}"
        return " | ".join(f"{size}: {each}" for size, each in zip(self.sizes, self.each, strict=True))

    def blocks(self) -> Split:
        return Split(self.dim, self.sizes, self.each)

    def scaled(self, factor: float) -> Blocks:
        return replace(self, each=tuple(each.scaled(factor) for each in self.each))

    def check(self, shape: Sequence[int]) -> None:
        if self.dim >= len(shape) or sum(self.sizes) != shape[self.dim]:
            raise ValueError(
                f"expected blocks that add up to a dimension of shape {tuple(shape)}, got {self.sizes} along dim "
                f"{self.dim}"
            )
        for size, each in zip(self.sizes, self.each, strict=True):
            each.check((*shape[: self.dim], size, *shape[self.dim + 1 :]))


@dataclass(frozen=True, slots=True)
class Stack(_Compound):
    """`size` independent tensors of one distribution, stacked along dimension 0: experts, heads."""

    size: int
    of_each: Distribution

    def __post_init__(self) -> None:
        _set_sizes(self, "size")
        check_distribution(self.of_each)

    def __str__(self) -> str:
        return f"{self.size} of: {self.of_each}"

    def blocks(self) -> Split:
        return Split(0, (1,) * self.size, (self.of_each,) * self.size, drops_dim=True)

    def each_block(self) -> Iterator[Distribution]:
        yield from self.of_each.each_block()  # once, since all are alike

    def mean(self) -> float:
        return self.of_each.mean()

    def std(self) -> float:
        return self.of_each.std()

    def scaled(self, factor: float) -> Stack:
        return replace(self, of_each=self.of_each.scaled(factor))

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, tuple(shape[:1]), (self.size,))
        self.of_each.check(shape[1:])


@dataclass(frozen=True, slots=True)
class ZeroRow(_Compound):
    """`rest`, except that index `row` of the `rows` along dimension 0 is zero: the padding row of an embedding."""

    row: int
    rows: int
    rest: Distribution

    def __post_init__(self) -> None:
        _set_sizes(self, "row", "rows")
        check_distribution(self.rest)
        if self.row >= self.rows:
            raise ValueError(f"row: expected one of {self.rows}, got {self.row}")

    def __str__(self) -> str:
        return f"{self.rest}, row {self.row} zero"

    def blocks(self) -> Split:
        sizes = (self.row, 1, self.rows - self.row - 1)
        return Split(0, sizes, (self.rest, ZERO, self.rest), of_whole=True)

    def scaled(self, factor: float) -> ZeroRow:
        return replace(self, rest=self.rest.scaled(factor))

    def check(self, shape: Sequence[int]) -> None:
        _check_fits(self, shape, tuple(shape[:1]), (self.rows,))
        self.rest.check(shape)

    def located(self, shape: Sequence[int], offset: int, strides: Sequence[int]) -> ZeroRow:
        return replace(self, rest=self.rest.located(shape, offset, strides))


def check_distribution(given: object) -> None:
    """Raise TypeError unless `given` is a distribution."""
    if not isinstance(given, Distribution):
        raise TypeError(f"expected a distribution (fastinit.schemes.distributions), got {given!r}")


def check_not_negative(name: str, value: float) -> None:
    if value < 0.0:
        raise ValueError(f"{name}: expected {name} >= 0, got {value!r}")


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low <= high:
        raise ValueError(f"{low_name}, {high_name}: expected {low_name} <= {high_name}, got {low!r} and {high!r}")


def check_time_steps(low: float, high: float, floor: float) -> None:
    if not (0.0 < low <= high and floor > 0.0):
        raise ValueError(f"low, high, floor: expected 0 < low <= high and floor > 0, got {low!r}, {high!r}, {floor!r}")


def check_logs(low: float, high: float) -> None:
    if not 0.0 < low <= high:
        raise ValueError(f"low, high: expected 0 < low <= high, got {low!r} and {high!r}")


def _moment_of_log(low: float, high: float, power: int) -> float:
    """The mean of (log u)^power, u ~ U[low, high], by Gauss and Legendre's rule over log u, where it is smooth."""
    half = 0.5 * math.log(high / low)
    if half == 0.0:
        return math.log(low) ** power
    nodes, weights = np.polynomial.legendre.leggauss(64)
    logs = math.log(low) + half * (1.0 + nodes)
    density = weights * np.exp(logs - math.log(high))  # u du is the density of log u, but for a factor
    return float((density * logs**power).sum() / density.sum())


def _check_fits(
    distribution: Distribution, shape: Sequence[int], wanted: tuple[int, ...], found: tuple[int, ...]
) -> None:
    if wanted != found:
        raise ValueError(f"expected a distribution for shape {tuple(shape)}, got {distribution!r}")


def check_range(distribution: Distribution, dtype: torch.dtype) -> None:
    """Raise ValueError unless `dtype` can hold the values: none overflows, and integer dtypes get whole numbers.

    A side without a bound counts as six standard deviations from the mean. In a floating-point dtype, a constant may be
    infinite or NaN.
    """
    for block in distribution.each_block():
        if not block.told_by_formula:
            continue
        if dtype.is_floating_point and dtype.itemsize == 1 and not block.is_random():
            _check_narrow(block, dtype)
        if dtype.is_floating_point or dtype.is_complex:
            largest = torch.finfo(dtype).max
            if block.farthest() > largest:
                raise ValueError(f"{block} lies outside {dtype} (largest {largest:g})")
        else:
            least, most = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
            for value in block.bounds():
                if not (math.isfinite(value) and value == int(value) and least <= value <= most):
                    raise ValueError(f"expected whole numbers from {least} to {most} for {dtype}, got {value!r}")


def _check_narrow(block: Distribution, dtype: torch.dtype) -> None:
    """Raise ValueError if torch cannot write the values. Some one-byte dtypes have no zero, or no numbers at all."""
    for value in block.bounds():
        try:
            torch.empty(2, dtype=dtype).fill_(value)  # a single element takes another path in torch
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{block} cannot be written to {dtype}: {error}") from error


def range_warning(distribution: Distribution, dtype: torch.dtype) -> str | None:
    """A warning if many values become equal, or vanish, in `dtype`; None if they do not.

    The spacing of a dtype at the mean is eps |mean|, and at least its smallest positive number.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps
    for block in distribution.each_block():
        if not block.told_by_formula:
            continue
        if block.is_random():
            mean, std = block.mean(), block.std()
            spacing = max(limits.eps * abs(mean), least)
            if 0.0 < std < spacing:
                return (
                    f"{block} has a std of {std:.3g}, less than the spacing of {dtype} at its mean ({spacing:.3g}): "
                    "many values are the same"
                )
        elif 0.0 < (farthest := block.farthest()) <= 0.5 * least:
            return f"{block} has values up to {farthest:.3g}, which are zero in {dtype}"
    return None


def inverse_softplus(x: float) -> float:
    """The y with log(1 + exp(y)) = x, for x > 0: x + log(1 - exp(-x))."""
    return x + math.log(-math.expm1(-x))


def _mixture(split: Split) -> tuple[float, float]:
    """Mean and standard deviation over all elements of the blocks."""
    whole = max(sum(split.sizes), 1)
    # A block without elements may have no mean.
    moments = [(size, each.mean(), each.std()) for size, each in zip(split.sizes, split.each, strict=True) if size]
    mean = math.fsum(size * of_part for size, of_part, _ in moments) / whole
    square = math.fsum(size * (std**2 + of_part**2) for size, of_part, std in moments) / whole
    return mean, math.sqrt(max(0.0, square - mean * mean))


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _density(x: float) -> float:
    return 0.0 if math.isinf(x) else math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _mass(a: float, b: float) -> float:
    return 0.5 * (math.erfc(-b / math.sqrt(2.0)) - math.erfc(-a / math.sqrt(2.0)))


def _truncated_mean(a: float, b: float) -> float:
    """Mean of a standard normal conditioned on [a, b]."""
    if a > 0.0:  # erfc is accurate in the mirrored tail
        return -_truncated_mean(-b, -a)
    mass = _mass(a, b)
    if mass <= 0.0 or b - a < 1e-3:
        return 0.5 * (a + b)
    return (_density(a) - _density(b)) / mass


def truncated_std(a: float, b: float) -> float:
    """Standard deviation of a standard normal conditioned on [a, b]."""
    if a > 0.0:
        return truncated_std(-b, -a)
    mass = _mass(a, b)
    if mass <= 0.0 or b - a < 1e-3:  # the density is nearly flat, and the formula below would cancel
        return (b - a) / math.sqrt(12.0)
    edge_a = 0.0 if math.isinf(a) else a * _density(a)
    edge_b = 0.0 if math.isinf(b) else b * _density(b)
    return math.sqrt(max(0.0, 1.0 + (edge_a - edge_b) / mass - ((_density(a) - _density(b)) / mass) ** 2))
