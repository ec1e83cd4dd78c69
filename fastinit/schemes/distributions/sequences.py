"""Distributions of the vectors of sequence models: time steps, decays and gates, by logarithms or position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastinit.schemes.distributions.base import Distribution, check_fits, set_floats, set_sizes
from fastinit.schemes.numbers import as_finite


@dataclass(frozen=True, slots=True)
class LogRange(Distribution):
    """log 1, log 2, ..., log `length` along the last dimension."""

    length: int

    def __post_init__(self) -> None:
        set_sizes(self, "length")

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
        check_fits(self, shape, tuple(shape[-1:]), (self.length,))


@dataclass(frozen=True, slots=True)
class TimeStep(Distribution):
    """The bias b before a softplus that gives log-uniform time steps: softplus(b) = max(floor, exp(u)), with
    u ~ U[log low, log high]."""

    low: float
    high: float
    floor: float

    def __post_init__(self) -> None:
        set_floats(self, "low", "high", "floor")
        check_time_steps(self.low, self.high, self.floor)

    def __str__(self) -> str:
        return f"softplus^-1 of log-uniform [{self.low:g}, {self.high:g}]"

    def mean(self) -> float:
        return _moment_of_steps(self.low, self.high, self.floor, 1)

    def std(self) -> float:
        return math.sqrt(max(0.0, _moment_of_steps(self.low, self.high, self.floor, 2) - self.mean() ** 2))

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
        check_fits(self, shape, tuple(shape[-1:]), (len(self.values),))


@dataclass(frozen=True, slots=True)
class LogOfUniform(Distribution):
    """log u, u ~ U[low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        set_floats(self, "low", "high")
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
        set_floats(self, "low", "high")
        check_logs(self.low, self.high)
        set_sizes(self, "units")
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
        check_fits(self, shape, tuple(shape), (self.units * len(self.gates),))


def check_time_steps(low: float, high: float, floor: float) -> None:
    if not (0.0 < low <= high and floor > 0.0):
        raise ValueError(f"low, high, floor: expected 0 < low <= high and floor > 0, got {low!r}, {high!r}, {floor!r}")


def check_logs(low: float, high: float) -> None:
    if not 0.0 < low <= high:
        raise ValueError(f"low, high: expected 0 < low <= high, got {low!r} and {high!r}")


# The layers of a model ask for the same moments.
@lru_cache(maxsize=1024)
def _moment_of_steps(low: float, high: float, floor: float, power: int) -> float:
    """The mean of a time step's inverse softplus to a power."""
    # Midpoint rule over u. The integrand is smooth except at the floor, so 4096 points give more than six digits.
    points = 4096
    log_low, log_high = math.log(low), math.log(high)
    steps = (math.exp(log_low + (i + 0.5) / points * (log_high - log_low)) for i in range(points))
    return math.fsum(inverse_softplus(max(floor, step)) ** power for step in steps) / points


@lru_cache(maxsize=1024)
def _moment_of_log(low: float, high: float, power: int) -> float:
    """The mean of (log u)^power, u ~ U[low, high], by Gauss and Legendre's rule over log u, where it is smooth."""
    half = 0.5 * math.log(high / low)
    if half == 0.0:
        return math.log(low) ** power
    nodes, weights = np.polynomial.legendre.leggauss(64)
    logs = math.log(low) + half * (1.0 + nodes)
    density = weights * np.exp(logs - math.log(high))  # u du is the density of log u, but for a factor
    return float((density * logs**power).sum() / density.sum())


def inverse_softplus(x: float) -> float:
    """The y with log(1 + exp(y)) = x, for x > 0: x + log(1 - exp(-x))."""
    return x + math.log(-math.expm1(-x))
