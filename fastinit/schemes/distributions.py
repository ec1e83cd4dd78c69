"""What the values of a parameter are distributed as: what a plan's rows hold and the engine writes. Plain data, no
fans.

`Sampled` ones give every element by itself, from its own random words: the native code fills them all in one pass.
`Composed` ones are computed from a whole tensor of such values (composed.py). `Blocks` and `ZeroRow` put others
together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Constant(NamedTuple):
    value: float

    def __str__(self) -> str:
        return f"{self.value:g}"

    def mean(self) -> float:
        return self.value

    def std(self) -> float:
        return 0.0


class Uniform(NamedTuple):
    """Uniform on [low, high], both ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"U[{self.low:.6g}, {self.high:.6g}]"

    def mean(self) -> float:
        return 0.5 * (self.low + self.high)

    def std(self) -> float:
        return (self.high - self.low) / math.sqrt(12.0)


class Normal(NamedTuple):
    """N(center, sigma^2)."""

    center: float
    sigma: float

    def __str__(self) -> str:
        return f"N({self.center:.6g}, {self.sigma:.6g}^2)"

    def mean(self) -> float:
        return self.center

    def std(self) -> float:
        return self.sigma


class TruncNormal(NamedTuple):
    """N(center, sigma^2) conditioned on [low, high], absolute bounds, both ends included."""

    center: float
    sigma: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"N({self.center:.6g}, {self.sigma:.6g}^2) in [{self.low:.6g}, {self.high:.6g}]"

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

    def mean(self) -> float:
        return self.value * self.length / self.period

    def std(self) -> float:
        share = self.length / self.period
        return abs(self.value) * math.sqrt(share * (1.0 - share))

    def indices(self, numel: int) -> list[int]:
        """The row-major indices below `numel` that hold `value`."""
        diagonal = range(self.first, self.first + self.length * self.step, self.step)
        return [start + index for start in range(0, numel, self.period) for index in diagonal if start + index < numel]


class Orthogonal(NamedTuple):
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer, Haar distributed.

    The matrix is dimension 0 against all others, or all others against `column_axis`; `vectors` rows or columns of
    `length` elements are orthonormal.
    """

    gain: float
    vectors: int
    length: int
    column_axis: int | None = None

    def __str__(self) -> str:
        times = "" if self.gain == 1.0 else f"{self.gain:.6g} x "
        return f"{times}orthogonal, {self.vectors} of length {self.length}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return abs(self.gain) / math.sqrt(self.length)


class DeltaOrthogonal(NamedTuple):
    """`gain` times an orthogonal matrix (out x in, orthonormal columns) at the middle of the kernels, zero
    elsewhere."""

    gain: float
    out: int
    inputs: int
    kernel: int

    def __str__(self) -> str:
        return f"{self.gain:.6g} x orthogonal {self.out} x {self.inputs} at the middle of {self.kernel}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return abs(self.gain) / math.sqrt(self.out * self.kernel)


class Spectral(NamedTuple):
    """U diag(values) V^T with U and V Haar distributed: a matrix of these singular values, dimension 0 against the
    rest."""

    values: tuple[float, ...]
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"singular values {min(self.values):.6g} to {max(self.values):.6g}"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return math.sqrt(math.fsum(value * value for value in self.values) / (self.rows * self.columns))


class IdentityPlus(NamedTuple):
    """`identity` times the identity, plus `gain` times a Haar distributed orthogonal matrix, of this order."""

    identity: float
    gain: float
    order: int

    def __str__(self) -> str:
        return f"{self.identity:.6g} x identity + {self.gain:.6g} x orthogonal"

    def mean(self) -> float:
        return self.identity / self.order

    def std(self) -> float:
        spread = self.identity**2 * (1.0 - 1.0 / self.order) + self.gain**2
        return math.sqrt(spread / self.order)


class Sparse(NamedTuple):
    """N(0, sigma^2), but for `zeros` randomly chosen rows in every column, which are zero."""

    sigma: float
    zeros: int
    rows: int

    def __str__(self) -> str:
        return f"N(0, {self.sigma:.6g}^2), {self.zeros} of {self.rows} zero in a column"

    def mean(self) -> float:
        return 0.0

    def std(self) -> float:
        return self.sigma * math.sqrt(1.0 - self.zeros / self.rows)


class Hadamard(NamedTuple):
    """`scale` times the top left corner of Sylvester's Hadamard matrix: (-1)^popcount(i & j) at (i, j).

    For a convolution, at the middle of the kernels, zero elsewhere; `kernel` is how many positions they have.
    """

    scale: float
    kernel: int

    def __str__(self) -> str:
        return f"{self.scale:.6g} x Hadamard"

    def mean(self) -> float:
        """Nearly; the corner of a Hadamard matrix need not be balanced."""
        return 0.0

    def std(self) -> float:
        return self.scale / math.sqrt(self.kernel)


class LogRange(NamedTuple):
    """log 1, log 2, ..., log `length` along the last dimension."""

    length: int

    def __str__(self) -> str:
        return f"log(1 ... {self.length})"

    def _values(self) -> list[float]:
        return [math.log(i) for i in range(1, self.length + 1)]

    def mean(self) -> float:
        return math.fsum(self._values()) / self.length

    def std(self) -> float:
        mean = self.mean()
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self._values()) / self.length)


class TimeStep(NamedTuple):
    """The b with softplus(b) = max(floor, exp(u)), u ~ U[log low, log high]: time steps, as a bias before a
    softplus."""

    low: float
    high: float
    floor: float

    def __str__(self) -> str:
        return f"softplus^-1 of log-uniform [{self.low:g}, {self.high:g}]"

    def _moment(self, power: int) -> float:
        # Midpoint rule over u: smooth but for the kink at the floor, so that 4096 points give more than six digits.
        points = 4096
        log_low, log_high = math.log(self.low), math.log(self.high)
        steps = (math.exp(log_low + (i + 0.5) / points * (log_high - log_low)) for i in range(points))
        return math.fsum(inverse_softplus(max(self.floor, step)) ** power for step in steps) / points

    def mean(self) -> float:
        return self._moment(1)

    def std(self) -> float:
        return math.sqrt(self._moment(2) - self._moment(1) ** 2)


class Blocks(NamedTuple):
    """Along dimension `dim`, blocks of `sizes`, each with a distribution of its own: fused projections, gates."""

    dim: int
    sizes: tuple[int, ...]
    each: tuple[Distribution, ...]

    def __str__(self) -> str:
        if len(set(self.each)) == 1:
            return f"{len(self.sizes)} blocks of dim {self.dim}: {self.each[0]}"
        return " | ".join(f"{size}: {each}" for size, each in zip(self.sizes, self.each, strict=True))

    def mean(self) -> float:
        return _mixture(self.sizes, self.each)[0]

    def std(self) -> float:
        return _mixture(self.sizes, self.each)[1]


class ZeroRow(NamedTuple):
    """`rest`, but for the zeros at index `row` of the `rows` along dimension 0: the padding row of an embedding."""

    row: int
    rows: int
    rest: Distribution

    def __str__(self) -> str:
        return f"{self.rest}, row {self.row} zero"

    def mean(self) -> float:
        return _mixture((1, self.rows - 1), (Constant(0.0), self.rest))[0]

    def std(self) -> float:
        return _mixture((1, self.rows - 1), (Constant(0.0), self.rest))[1]


Sampled = Constant | Uniform | Normal | TruncNormal | Diagonal
Composed = Orthogonal | DeltaOrthogonal | Spectral | IdentityPlus | Sparse | Hadamard | LogRange | TimeStep
Distribution = Sampled | Composed | Blocks | ZeroRow

SAMPLED: tuple[type, ...] = (Constant, Uniform, Normal, TruncNormal, Diagonal)
COMPOSED: tuple[type, ...] = (
    Orthogonal,
    DeltaOrthogonal,
    Spectral,
    IdentityPlus,
    Sparse,
    Hadamard,
    LogRange,
    TimeStep,
)


def is_composed(distribution: Distribution) -> bool:
    """Whether any part of it is computed from whole tensors, rather than every element by itself."""
    if isinstance(distribution, Blocks):
        return any(map(is_composed, distribution.each))
    if isinstance(distribution, ZeroRow):
        return is_composed(distribution.rest)
    return isinstance(distribution, COMPOSED)


def is_random(distribution: Distribution) -> bool:
    """Whether any part of it takes random numbers."""
    if isinstance(distribution, Blocks):
        return any(map(is_random, distribution.each))
    if isinstance(distribution, ZeroRow):
        return is_random(distribution.rest)
    return not isinstance(distribution, (Constant, Diagonal, Hadamard, LogRange))


def scaled(distribution: Distribution, factor: float) -> Distribution:
    """The distribution of `factor` times the values; factor >= 0.

    Raises:
        TypeError: a distribution whose values mean something that a factor would spoil.
    """
    d = distribution
    if isinstance(d, Constant):
        return Constant(d.value * factor)
    if isinstance(d, Uniform):
        return Uniform(d.low * factor, d.high * factor)
    if isinstance(d, Normal):
        return Normal(d.center * factor, d.sigma * factor)
    if isinstance(d, TruncNormal):
        return TruncNormal(d.center * factor, d.sigma * factor, d.low * factor, d.high * factor)
    if isinstance(d, Diagonal):
        return d._replace(value=d.value * factor)
    if isinstance(d, (Orthogonal, DeltaOrthogonal)):
        return d._replace(gain=d.gain * factor)
    if isinstance(d, Spectral):
        return d._replace(values=tuple(value * factor for value in d.values))
    if isinstance(d, IdentityPlus):
        return d._replace(identity=d.identity * factor, gain=d.gain * factor)
    if isinstance(d, Sparse):
        return d._replace(sigma=d.sigma * factor)
    if isinstance(d, Hadamard):
        return d._replace(scale=d.scale * factor)
    if isinstance(d, Blocks):
        return d._replace(each=tuple(scaled(each, factor) for each in d.each))
    if isinstance(d, ZeroRow):
        return d._replace(rest=scaled(d.rest, factor))
    raise TypeError(f"{d} cannot be scaled")


def inverse_softplus(x: float) -> float:
    """The y with log(1 + exp(y)) = x, for x > 0: x + log(1 - exp(-x))."""
    return x + math.log(-math.expm1(-x))


def _mixture(sizes: tuple[int, ...], each: tuple[Distribution, ...]) -> tuple[float, float]:
    """Mean and standard deviation over all elements of parts of these sizes."""
    whole = max(sum(sizes), 1)
    mean = math.fsum(size * part.mean() for size, part in zip(sizes, each, strict=True)) / whole
    square = (
        math.fsum(size * (part.std() ** 2 + part.mean() ** 2) for size, part in zip(sizes, each, strict=True)) / whole
    )
    return mean, math.sqrt(max(0.0, square - mean * mean))


def _density(x: float) -> float:
    return 0.0 if math.isinf(x) else math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _mass(a: float, b: float) -> float:
    return 0.5 * (math.erfc(-b / math.sqrt(2.0)) - math.erfc(-a / math.sqrt(2.0)))


def _truncated_mean(a: float, b: float) -> float:
    """Mean of a standard normal conditioned on [a, b]."""
    if a > 0.0:  # the upper tail has the digits
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
    if mass <= 0.0 or b - a < 1e-3:  # level density; the formula below would cancel
        return (b - a) / math.sqrt(12.0)
    edge_a = 0.0 if math.isinf(a) else a * _density(a)
    edge_b = 0.0 if math.isinf(b) else b * _density(b)
    return math.sqrt(max(0.0, 1.0 + (edge_a - edge_b) / mass - ((_density(a) - _density(b)) / mass) ** 2))


def _check_constant(value: float, dtype: torch.dtype) -> None:
    if dtype.is_floating_point or dtype.is_complex:
        largest = torch.finfo(dtype).max
        if math.isfinite(value) and abs(value) > largest:
            raise ValueError(f"{value:g} lies outside {dtype} (largest {largest:g})")
    elif dtype is not torch.bool:
        limits = torch.iinfo(dtype)
        if not (math.isfinite(value) and limits.min <= value <= limits.max):
            raise ValueError(f"expected a value from {limits.min} to {limits.max} for {dtype}, got {value!r}")


def check_range(distribution: Distribution, dtype: torch.dtype) -> None:
    """Raise ValueError unless the numbers of `distribution` are finite in `dtype`; a constant may be infinite or
    NaN."""
    if isinstance(distribution, (Constant, Diagonal)):
        _check_constant(distribution.value, dtype)
        return
    if isinstance(distribution, Blocks):
        for each in distribution.each:
            check_range(each, dtype)
    elif isinstance(distribution, ZeroRow):
        check_range(distribution.rest, dtype)
    elif isinstance(distribution, Uniform):
        largest = torch.finfo(dtype).max
        if max(abs(distribution.low), abs(distribution.high)) > largest:
            raise ValueError(f"bounds {distribution} lie outside {dtype} (largest {largest:g})")
        if distribution.high - distribution.low > largest:
            raise ValueError(f"the range of {distribution} overflows {dtype} (largest {largest:g})")
    elif isinstance(distribution, (Normal, TruncNormal)):
        largest = torch.finfo(dtype).max
        if max(abs(distribution.center), distribution.sigma) > largest:
            raise ValueError(f"{distribution} lies outside {dtype} (largest {largest:g})")
    elif isinstance(distribution, (Orthogonal, DeltaOrthogonal, Spectral, IdentityPlus, Sparse)):
        largest = torch.finfo(dtype).max
        if distribution.std() > largest:
            raise ValueError(f"{distribution} lies outside {dtype} (largest {largest:g})")
