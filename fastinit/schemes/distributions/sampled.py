"""Distributions that the native code fills: every element is made of its own random words, or of its index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fastinit.schemes.distributions.base import (
    FAR,
    Sampled,
    check_not_negative,
    check_order,
    row_major,
    set_floats,
    set_sizes,
)
from fastinit.schemes.numbers import as_number


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
        set_floats(self, "low", "high")
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
        set_floats(self, "center", "sigma")
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
        set_floats(self, "center", "sigma")
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
        mean, reach = self.mean(), FAR * self.std()
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
        set_floats(self, "value")
        set_sizes(self, "first", "step", "length", "period")

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
        if self.period == numel and tuple(strides) == row_major(shape):  # consecutive elements
            return replace(self, first=offset + self.first, period=offset + numel)
        if self.period == numel and len(shape) == 2:
            last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            step = sum(strides)
            return Diagonal(self.value, offset, step, self.length, max(last, offset + self.length * step) + 1)
        raise ValueError("a diagonal in groups cannot be split into blocks")


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
