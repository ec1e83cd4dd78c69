"""Schemes: from the shape and the fans of a parameter to the distribution of its values.

A scheme is a small frozen object. One formula, `VarianceScaling`, carries all schemes that look at fans; the named ones
are lines on top of it. Strings name registered schemes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from fastinit import distributions
from fastinit.distributions import Distribution
from fastinit.fans import Fans

# Standard deviation of a standard normal conditioned on [-2, 2]: sqrt(1 - 4 f(2) / (1 - 2 Q(2))).
STD_WITHIN_TWO_SIGMA = 0.87962566103423978


@runtime_checkable
class Scheme(Protocol):
    """What a scheme must offer. `needs_fans` false lets it serve parameters of any number of dimensions.

    A scheme of the shape alone offers `distribution_of(shape)`, too, which is asked instead of `distribution`.
    """

    @property
    def needs_fans(self) -> bool: ...

    def distribution(self, fans: Fans | None) -> Distribution: ...


def _check_finite(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value!r}")


def _check_std(std: float) -> None:
    _check_finite(std=std)
    if std < 0.0:
        raise ValueError(f"std: expected std >= 0, got {std!r}")


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low <= high:
        raise ValueError(f"{low_name}, {high_name}: expected {low_name} <= {high_name}, got {low!r} and {high!r}")


@dataclass(frozen=True)
class Constant:
    """Every element is `value`."""

    value: float
    needs_fans = False

    def __post_init__(self) -> None:
        if not isinstance(self.value, (int, float)):
            raise TypeError(f"value: expected a number, got {self.value!r}")

    def distribution(self, fans: Fans | None) -> Distribution:
        return distributions.Constant(float(self.value))


@dataclass(frozen=True)
class Uniform:
    """U[low, high], both ends included.

    Raises:
        ValueError: a bound is not finite, or low > high.
    """

    low: float = 0.0
    high: float = 1.0
    needs_fans = False

    def __post_init__(self) -> None:
        _check_finite(low=self.low, high=self.high)
        _check_order("low", self.low, "high", self.high)

    def distribution(self, fans: Fans | None) -> Distribution:
        return distributions.Uniform(float(self.low), float(self.high))


@dataclass(frozen=True)
class Normal:
    """N(mean, std^2).

    Raises:
        ValueError: a number is not finite, or std < 0.
    """

    mean: float = 0.0
    std: float = 1.0
    needs_fans = False

    def __post_init__(self) -> None:
        _check_finite(mean=self.mean)
        _check_std(self.std)

    def distribution(self, fans: Fans | None) -> Distribution:
        return distributions.Normal(float(self.mean), float(self.std))


@dataclass(frozen=True)
class TruncNormal:
    """N(mean, std^2) conditioned on `bounds`; `std` is the one before truncation.

    The field has two conventions for bounds. unit="absolute" means the bounds as they are (torch); unit="sigma" means
    mean + bound * std (JAX, Keras, TensorFlow).

    Raises:
        ValueError: a number is NaN, mean or std is infinite, std < 0, the bounds are out of order, or unknown unit.
    """

    mean: float = 0.0
    std: float = 1.0
    bounds: tuple[float, float] = (-2.0, 2.0)
    unit: Literal["absolute", "sigma"] = "absolute"
    needs_fans = False

    def __post_init__(self) -> None:
        _check_finite(mean=self.mean)
        _check_std(self.std)
        low, high = self.bounds
        _check_order("bounds[0]", low, "bounds[1]", high)
        if self.unit not in ("absolute", "sigma"):
            raise ValueError(f"unit: expected 'absolute' or 'sigma', got {self.unit!r}")

    def distribution(self, fans: Fans | None) -> Distribution:
        low, high = (float(bound) for bound in self.bounds)
        if self.unit == "sigma":
            low, high = self.mean + low * self.std, self.mean + high * self.std
        return distributions.TruncNormal(float(self.mean), float(self.std), low, high)


FanMode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
_FAN_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
_SHAPES = ("uniform", "normal", "truncated_normal")


@dataclass(frozen=True)
class VarianceScaling:
    """Zero mean and variance scale / fan.

    fan is fan_in, fan_out, their mean (fan_avg) or their geometric mean (fan_geo_avg). The shape is U[-b, b] with
    b = sqrt(3 scale / fan); N(0, scale / fan); or, as in JAX and Keras, a normal truncated at two of its own sigma and
    widened by 1 / 0.8796 so that its variance after truncation is scale / fan.

    Raises:
        ValueError: scale is negative or not finite, or an unknown mode or shape.
    """

    scale: float = 1.0
    mode: FanMode = "fan_in"
    shape: Literal["uniform", "normal", "truncated_normal"] = "normal"
    needs_fans = True

    def __post_init__(self) -> None:
        _check_finite(scale=self.scale)
        if self.scale < 0.0:
            raise ValueError(f"scale: expected scale >= 0, got {self.scale!r}")
        _check_choice("mode", self.mode, _FAN_MODES)
        _check_choice("shape", self.shape, _SHAPES)

    def distribution(self, fans: Fans | None) -> Distribution:
        assert fans is not None, "a scheme with needs_fans is given fans"
        # In torch.nn.init's order of operations, so that its numbers come out to the last bit.
        gain = math.sqrt(self.scale)
        if self.mode == "fan_avg":
            std = gain * math.sqrt(2.0 / (fans.fan_in + fans.fan_out))
        elif self.mode == "fan_geo_avg":
            std = gain / math.sqrt(math.sqrt(fans.fan_in * fans.fan_out))
        else:
            std = gain / math.sqrt(fans.fan_in if self.mode == "fan_in" else fans.fan_out)
        if self.shape == "uniform":
            bound = math.sqrt(3.0) * std
            return distributions.Uniform(-bound, bound)
        if self.shape == "normal":
            return distributions.Normal(0.0, std)
        sigma = std / STD_WITHIN_TWO_SIGMA
        return distributions.TruncNormal(0.0, sigma, -2.0 * sigma, 2.0 * sigma)


@dataclass(frozen=True)
class Eye:
    """The identity: ones on the main diagonal of a matrix, square or not, zeros elsewhere (torch.nn.init.eye_)."""

    needs_fans = False

    def distribution(self, fans: Fans | None) -> Distribution:
        raise TypeError("Eye depends on the shape: distribution_of(shape)")

    def distribution_of(self, shape: Sequence[int]) -> Distribution:
        if len(shape) != 2:
            raise ValueError(f"expected 2 dimensions, got shape {tuple(shape)}")
        rows, columns = shape
        return distributions.Diagonal(1.0, 0, columns + 1, min(rows, columns), rows * columns)


@dataclass(frozen=True)
class Dirac:
    """The convolution that hands its input on: ones at the middle of the kernels (i, i), zeros elsewhere.

    With groups, in every group of dim 0 by itself (torch.nn.init.dirac_). Shape (out, in / groups, kernel ...).
    """

    groups: int = 1
    needs_fans = False

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups: expected groups >= 1, got {self.groups}")

    def distribution(self, fans: Fans | None) -> Distribution:
        raise TypeError("Dirac depends on the shape: distribution_of(shape)")

    def distribution_of(self, shape: Sequence[int]) -> Distribution:
        if len(shape) not in (3, 4, 5):
            raise ValueError(f"expected 3, 4 or 5 dimensions, got shape {tuple(shape)}")
        if shape[0] % self.groups != 0:
            raise ValueError(f"expected dim 0 to be divisible by groups, got {shape[0]} and {self.groups}")
        group_out, channels = shape[0] // self.groups, shape[1]
        middle = 0
        for size in shape[2:]:
            middle = middle * size + size // 2
        kernel = math.prod(shape[2:])
        period = group_out * channels * kernel
        return distributions.Diagonal(1.0, middle, (channels + 1) * kernel, min(group_out, channels), period)


def _check_choice(name: str, given: object, choices: tuple[str, ...]) -> None:
    if given not in choices:
        nearest = difflib.get_close_matches(str(given), choices, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {given!r}{hint}")


def _gain_squared(gain: float) -> float:
    _check_finite(gain=gain)
    if gain < 0.0:
        raise ValueError(f"gain: expected gain >= 0, got {gain!r}")
    return gain * gain  # its square root is the gain again, to the bit


def xavier_uniform(gain: float = 1.0) -> VarianceScaling:
    """U[-b, b], b = gain sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010, section 4.2.1)."""
    return VarianceScaling(_gain_squared(gain), "fan_avg", "uniform")


def xavier_normal(gain: float = 1.0) -> VarianceScaling:
    """N(0, 2 gain^2 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010)."""
    return VarianceScaling(_gain_squared(gain), "fan_avg", "normal")


def _kaiming_scale(a: float, mode: str, nonlinearity: str) -> float:
    _check_choice("mode", mode, ("fan_in", "fan_out"))
    # Non-finite slopes and unknown nonlinearities: torch's own table and message.
    return _gain_squared(torch.nn.init.calculate_gain(nonlinearity, a))  # type: ignore[arg-type]


def kaiming_uniform(
    a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: str = "leaky_relu"
) -> VarianceScaling:
    """U[-b, b], b = gain sqrt(3 / fan) (He, Zhang, Ren, Sun, ICCV 2015, section 2.2); `a`: negative slope."""
    return VarianceScaling(_kaiming_scale(a, mode, nonlinearity), mode, "uniform")


def kaiming_normal(
    a: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in", nonlinearity: str = "leaky_relu"
) -> VarianceScaling:
    """N(0, gain^2 / fan) (He, Zhang, Ren, Sun, ICCV 2015, section 2.2); `a`: negative slope of a leaky ReLU."""
    return VarianceScaling(_kaiming_scale(a, mode, nonlinearity), mode, "normal")


def lecun_uniform() -> VarianceScaling:
    """U[-b, b], b = sqrt(3 / fan_in) (LeCun, Bottou, Orr, Müller, "Efficient BackProp", 1998, section 4.6)."""
    return VarianceScaling(1.0, "fan_in", "uniform")


def lecun_normal() -> VarianceScaling:
    """Variance 1 / fan_in, a normal truncated at two sigma as in JAX and Keras (LeCun et al. 1998, section 4.6)."""
    return VarianceScaling(1.0, "fan_in", "truncated_normal")


def _zeros() -> Constant:
    return Constant(0.0)


def _ones() -> Constant:
    return Constant(1.0)


_REGISTRY: dict[str, Callable[..., Scheme]] = {
    "uniform": Uniform,
    "normal": Normal,
    "trunc_normal": TruncNormal,
    "constant": Constant,
    "zeros": _zeros,
    "ones": _ones,
    "xavier_uniform": xavier_uniform,
    "xavier_normal": xavier_normal,
    "kaiming_uniform": kaiming_uniform,
    "kaiming_normal": kaiming_normal,
    "lecun_uniform": lecun_uniform,
    "lecun_normal": lecun_normal,
    "variance_scaling": VarianceScaling,
    "eye": Eye,
    "dirac": Dirac,
}


def register_scheme(name: str, make: Callable[..., Scheme]) -> None:
    """Let `name` stand for the scheme that `make()` returns.

    Raises:
        ValueError: the name is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"scheme {name!r} is registered already")
    _REGISTRY[name] = make


def scheme_names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_REGISTRY)


def scheme(name: str, **arguments: Any) -> Scheme:
    """The registered scheme `name` with arguments of its own.

    Raises:
        ValueError: unknown name (the message has the nearest one), or arguments that do not fit the scheme.

    >>> scheme("kaiming_normal", mode="fan_out", nonlinearity="relu")
    VarianceScaling(scale=2.0000000000000004, mode='fan_out', shape='normal')
    """
    _check_choice("scheme", name, scheme_names())
    try:
        return _REGISTRY[name](**arguments)
    except TypeError as error:
        raise ValueError(f"scheme {name!r}: {error}") from error


def as_scheme(given: str | Scheme) -> Scheme:
    """A scheme as it is, or the registered one of that name with its defaults."""
    if isinstance(given, str):
        return scheme(given)
    if isinstance(given, type) or not isinstance(given, Scheme):
        raise TypeError(f"scheme: expected a name or a scheme object, got {given!r}")
    return given


def describe(given: Scheme) -> str:
    """The scheme's registered name where a registered one has just these values, else its own repr."""
    name = _NAMES.get(given) if type(given).__hash__ is not None else None
    return name or repr(given)


_NAMES: dict[Scheme, str] = {
    make(): name for name, make in _REGISTRY.items() if name not in ("constant", "variance_scaling")
}
