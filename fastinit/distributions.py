"""The distributions of values that a plan's rows hold and the engine samples: plain numbers, no shapes, no fans."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Constant(NamedTuple):
    value: float

    def __str__(self) -> str:
        return f"{self.value:g}"

    def std(self) -> float:
        return 0.0


class Uniform(NamedTuple):
    """Uniform on [low, high], both ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"U[{self.low:.6g}, {self.high:.6g}]"

    def std(self) -> float:
        return (self.high - self.low) / math.sqrt(12.0)


class Normal(NamedTuple):
    mean: float
    sigma: float

    def __str__(self) -> str:
        return f"N({self.mean:.6g}, {self.sigma:.6g}^2)"

    def std(self) -> float:
        return self.sigma


class TruncNormal(NamedTuple):
    """N(mean, sigma^2) conditioned on [low, high], absolute bounds, both ends included."""

    mean: float
    sigma: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"N({self.mean:.6g}, {self.sigma:.6g}^2) in [{self.low:.6g}, {self.high:.6g}]"

    def std(self) -> float:
        """sigma sqrt(1 + (a f(a) - b f(b)) / Z - ((f(a) - f(b)) / Z)^2): bounds a, b in sigma, density f, mass Z."""
        if self.sigma == 0.0 or self.low == self.high:
            return 0.0
        return self.sigma * math.sqrt(max(0.0, _truncated_variance(*self._bounds_in_sigma())))

    def _bounds_in_sigma(self) -> tuple[float, float]:
        return (self.low - self.mean) / self.sigma, (self.high - self.mean) / self.sigma


class Diagonal(NamedTuple):
    """`value` on a diagonal, zero elsewhere: the identity, or the Dirac delta of a convolution.

    In every `period` of row-major indices, `length` of them: `first`, `first + step`, `first + 2 step`, ...
    """

    value: float
    first: int
    step: int
    length: int
    period: int

    def __str__(self) -> str:
        return f"{self.value:g} on a diagonal"

    def std(self) -> float:
        share = self.length / self.period
        return abs(self.value) * math.sqrt(share * (1.0 - share))

    def indices(self, numel: int) -> list[int]:
        """The row-major indices below `numel` that hold `value`."""
        diagonal = range(self.first, self.first + self.length * self.step, self.step)
        return [start + index for start in range(0, numel, self.period) for index in diagonal if start + index < numel]


Distribution = Constant | Uniform | Normal | TruncNormal | Diagonal


def _density(x: float) -> float:
    return 0.0 if math.isinf(x) else math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _truncated_variance(a: float, b: float) -> float:
    """Variance of a standard normal conditioned on [a, b]."""
    if a > 0.0:  # the upper tail has the digits
        a, b = -b, -a
    mass = 0.5 * (math.erfc(-b / math.sqrt(2.0)) - math.erfc(-a / math.sqrt(2.0)))
    if mass <= 0.0 or b - a < 1e-3:  # level density; the formula below would cancel
        return (b - a) ** 2 / 12.0
    edge_a = 0.0 if math.isinf(a) else a * _density(a)
    edge_b = 0.0 if math.isinf(b) else b * _density(b)
    return 1.0 + (edge_a - edge_b) / mass - ((_density(a) - _density(b)) / mass) ** 2


def check_range(distribution: Distribution, dtype: torch.dtype) -> None:
    """Raise ValueError unless the numbers of `distribution` are finite in `dtype`."""
    if isinstance(distribution, (Constant, Diagonal)):
        return
    largest = torch.finfo(dtype).max
    if isinstance(distribution, Uniform):
        if max(abs(distribution.low), abs(distribution.high)) > largest:
            raise ValueError(f"bounds {distribution} lie outside {dtype} (largest {largest:g})")
        if distribution.high - distribution.low > largest:
            raise ValueError(f"the range of {distribution} overflows {dtype} (largest {largest:g})")
    elif max(abs(distribution.mean), distribution.sigma) > largest:
        raise ValueError(f"{distribution} lies outside {dtype} (largest {largest:g})")
