"""Schemes that look at the fans, at the depth or at nothing. A scheme maps a parameter to the distribution of values.

A scheme is a small frozen object. One formula, `VarianceScaling`, covers all schemes that look at fans: xavier, kaiming
and lecun are one line each on top of it. `Scaled` and `DepthScaled` multiply any other scheme. Strings name registered
schemes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastinit.schemes import distributions
from fastinit.schemes.base import Context, Scheme, as_scheme, check_choice, register_scheme
from fastinit.schemes.distributions import Distribution, check_not_negative, check_order, truncated_std
from fastinit.schemes.gains import calculate_gain
from fastinit.schemes.numbers import as_finite, as_number

# Standard deviation of a standard normal conditioned on [-2, 2]: sqrt(1 - 4 f(2) / (1 - 2 Q(2))).
STD_WITHIN_TWO_SIGMA = 0.87962566103423978


def set_finite(scheme: Scheme, *names: str) -> None:
    """Turn fields of a frozen scheme into plain numbers; raise an error unless they are finite."""
    for name in names:
        object.__setattr__(scheme, name, as_finite(name, getattr(scheme, name)))


def set_not_negative(scheme: Scheme, *names: str) -> None:
    """Turn fields of a frozen scheme into plain numbers; raise an error unless they are finite and >= 0."""
    set_finite(scheme, *names)
    for name in names:
        check_not_negative(name, getattr(scheme, name))


@dataclass(frozen=True)
class Own:
    """What the module's own code gives: constructor, `reset_parameters`, `_init_weights` and their like.

    Their calls are recorded, never run on the model itself. A parameter of which no code tells is kept; a rule that
    asks for "own" refuses it.

    >>> import fastinit
    >>> print(fastinit.plan(torch.nn.Linear(4, 2), Own(), seed=0).rows[0].distribution)
    U[-0.5, 0.5]
    """

    def distribution(self, context: Context) -> Distribution:
        return context.author


@dataclass(frozen=True)
class Constant:
    """Every element is `value`.

    Raises:
        TypeError: value is no real number.
        ValueError: value is an integer that float64 cannot hold.

    >>> print(Constant(0.5).distribution(Context((2, 3))))
    0.5
    """

    value: float

    def __post_init__(self) -> None:
        if not isinstance(self.value, bool):  # torch's constant_ takes a bool
            object.__setattr__(self, "value", as_number("value", self.value))

    def distribution(self, context: Context) -> Distribution:
        return distributions.Constant(float(self.value) if isinstance(self.value, bool) else self.value)


@dataclass(frozen=True)
class Uniform:
    """U[low, high], both ends included.

    Raises:
        ValueError: a bound is not finite, or low > high.

    >>> print(Uniform(-0.1, 0.1).distribution(Context((2, 3))))
    U[-0.1, 0.1]
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        set_finite(self, "low", "high")
        check_order("low", self.low, "high", self.high)

    def distribution(self, context: Context) -> Distribution:
        return distributions.Uniform(float(self.low), float(self.high))


@dataclass(frozen=True)
class Normal:
    """N(mean, std^2).

    Raises:
        ValueError: a number is not finite, or std < 0.

    >>> print(Normal(std=0.02).distribution(Context((2, 3))))
    N(0, 0.02^2)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        set_finite(self, "mean")
        set_not_negative(self, "std")

    def distribution(self, context: Context) -> Distribution:
        return distributions.Normal(float(self.mean), float(self.std))


@dataclass(frozen=True)
class TruncNormal:
    """N(mean, sigma^2) conditioned on `bounds`.

    Libraries have two conventions for the bounds and two for the std. With unit="absolute" the bounds are values
    (torch). With unit="sigma" they are mean + bound * sigma (JAX, Keras, TensorFlow). With std_is="before", `std` is
    sigma (torch, JAX's truncated_normal). With std_is="after", `std` is the std of the truncated values, and sigma is
    computed from it.

    Raises:
        ValueError: a number is NaN, mean or std is infinite, std < 0, the bounds are out of order, unit or std_is is
            unknown, or the std after truncation is too large for the absolute bounds.

    >>> print(TruncNormal(std=0.02, unit="sigma").distribution(Context((2, 3))))
    N(0, 0.02^2) in [-0.04, 0.04]
    """

    mean: float = 0.0
    std: float = 1.0
    bounds: tuple[float, float] = (-2.0, 2.0)
    unit: Literal["absolute", "sigma"] = "absolute"
    std_is: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        set_finite(self, "mean")
        set_not_negative(self, "std")
        if not isinstance(self.bounds, (tuple, list)) or len(self.bounds) != 2:
            raise ValueError(f"bounds: expected two numbers, got {self.bounds!r}")
        low, high = (as_number(f"bounds[{position}]", bound) for position, bound in enumerate(self.bounds))
        object.__setattr__(self, "bounds", (low, high))
        check_order("bounds[0]", low, "bounds[1]", high)
        check_choice("unit", self.unit, ("absolute", "sigma"))
        check_choice("std_is", self.std_is, ("before", "after"))
        self._sigma()

    def _sigma(self) -> float:
        if self.std_is == "before" or self.std == 0.0:
            return self.std
        low, high = self.bounds
        if self.unit == "sigma":
            within = truncated_std(low, high)
            if within == 0.0:
                raise ValueError(f"bounds: expected a range for std={self.std!r} after truncation, got {self.bounds!r}")
            return self.std / within
        return _sigma_before(self.std, low - self.mean, high - self.mean)

    def distribution(self, context: Context) -> Distribution:
        low, high = (float(bound) for bound in self.bounds)
        sigma = float(self._sigma())
        if self.unit == "sigma":
            low, high = self.mean + low * sigma, self.mean + high * sigma
        return distributions.TruncNormal(float(self.mean), sigma, low, high)


def _sigma_before(std: float, low: float, high: float) -> float:
    """The sigma with which N(0, sigma^2) conditioned on [low, high] has the standard deviation `std`, by bisection."""
    if math.isinf(high - low):
        largest = math.inf if math.isinf(low) and math.isinf(high) else 1e6 * std
    else:
        largest = (high - low) / math.sqrt(12.0)  # a wide normal tends to the uniform, which has this std
        if std >= largest:
            raise ValueError(
                f"std: expected less than {largest:.6g}, that of the uniform within the bounds, after truncation, "
                f"got {std!r}"
            )
    if math.isinf(largest):
        return std
    # Truncation makes the std smaller, so sigma is at least `std`. And the sampler reaches six sigma out at most
    # (csrc/core/prepare.h).
    smaller = larger = max(std, low / 6.0, -high / 6.0)
    if smaller * truncated_std(low / smaller, high / smaller) > std * (1.0 + 1e-12):
        raise ValueError(f"std: expected one that bounds within six sigma of the mean leave, got {std!r}")
    while larger * truncated_std(low / larger, high / larger) < std:
        larger *= 2.0
        if larger > 1e9 * std:
            raise ValueError(f"std: no sigma gives std={std!r} within [{low!r}, {high!r}] of the mean")
    for _ in range(200):
        middle = 0.5 * (smaller + larger)
        if middle in (smaller, larger):
            break
        if middle * truncated_std(low / middle, high / middle) < std:
            smaller = middle
        else:
            larger = middle
    return larger


FanMode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
_FAN_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
_SHAPES = ("uniform", "normal", "truncated_normal")


@dataclass(frozen=True)
class VarianceScaling:
    """Zero mean and variance scale / fan.

    `mode` chooses the fan: fan_in, fan_out, their mean (fan_avg) or their geometric mean (fan_geo_avg). `shape` chooses
    the distribution: "uniform" is U[-b, b] with b = sqrt(3 scale / fan), "normal" is N(0, scale / fan), and
    "truncated_normal" is a normal truncated at two sigma, as in JAX and Keras. Its sigma is widened by 1 / 0.8796, so
    that the variance after truncation is scale / fan.

    Raises:
        ValueError: scale is negative or not finite, or mode or shape is unknown.

    >>> print(VarianceScaling(2.0, "fan_in", "normal").distribution(Context((64, 8))))
    N(0, 0.5^2)
    """

    scale: float = 1.0
    mode: FanMode = "fan_in"
    shape: Literal["uniform", "normal", "truncated_normal"] = "normal"

    def __post_init__(self) -> None:
        set_not_negative(self, "scale")
        check_choice("mode", self.mode, _FAN_MODES)
        check_choice("shape", self.shape, _SHAPES)

    def distribution(self, context: Context) -> Distribution:
        fans = context.fans
        # The order of operations is torch.nn.init's, so that the numbers are equal to the last bit.
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
class Scaled:
    """`factor` times the values of another scheme.

    Raises:
        ValueError: factor is negative or not finite.

    >>> print(Scaled("ones", 0.5).distribution(Context((2, 3))))
    0.5
    """

    scheme: Scheme
    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))
        set_not_negative(self, "factor")

    def distribution(self, context: Context) -> Distribution:
        return self.scheme.distribution(context).scaled(self.factor)


@dataclass(frozen=True)
class DepthScaled:
    """The values of another scheme times coefficient * (branches * depth)^-exponent, which shrinks with the depth.

    With by="depth", depth is the number of layers in the parameter's stack. The defaults give the sigma / sqrt(2 L) of
    GPT-2 and Megatron (Radford et al. 2019, section 2.3). With by="layer", depth is the parameter's own layer, counted
    from one: sigma / sqrt(2 (l + 1)) for l counted from zero.

    The first number in a parameter's name counts the layers of its stack ("h.0.", "h.1.", ...). The stack has the
    layers of all parameters of the model. A pipeline stage holds only some of them, so it must pass `layers`, which
    overrides the number of layers.

    Raises:
        ValueError: a number is negative or not finite; in use, the parameter is in no stack.

    >>> print(DepthScaled(Normal(std=0.02)).distribution(Context((8, 8), layer=1, layers=8)))
    N(0, 0.005^2)
    """

    scheme: Scheme
    by: Literal["depth", "layer"] = "depth"
    branches: float = 2.0
    exponent: float = 0.5
    coefficient: float = 1.0
    layers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", as_scheme(self.scheme))
        check_choice("by", self.by, ("depth", "layer"))
        set_finite(self, "branches", "exponent", "coefficient")
        if self.branches <= 0.0 or self.coefficient < 0.0:
            raise ValueError(
                f"branches, coefficient: expected branches > 0 and coefficient >= 0, got {self.branches!r} and "
                f"{self.coefficient!r}"
            )
        if self.layers is not None and (type(self.layers) is not int or self.layers < 1):
            raise ValueError(f"layers: expected layers >= 1, got {self.layers!r}")

    def distribution(self, context: Context) -> Distribution:
        depth = context.layer + 1 if self.by == "layer" else self.layers or context.layers
        if self.exponent == 0.5:
            factor = self.coefficient / math.sqrt(self.branches * depth)
        else:
            factor = self.coefficient * (self.branches * depth) ** -self.exponent
        return self.scheme.distribution(context).scaled(factor)


def _gain_squared(gain: Any) -> float:
    number = as_finite("gain", gain)
    check_not_negative("gain", number)
    return number * number  # the square root of this is the gain again, to the bit


def xavier_uniform(gain: float = 1.0) -> VarianceScaling:
    """U[-b, b], b = gain sqrt(6 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010, section 4.2.1)."""
    return VarianceScaling(_gain_squared(gain), "fan_avg", "uniform")


def xavier_normal(gain: float = 1.0) -> VarianceScaling:
    """N(0, 2 gain^2 / (fan_in + fan_out)) (Glorot, Bengio, AISTATS 2010)."""
    return VarianceScaling(_gain_squared(gain), "fan_avg", "normal")


def _kaiming_scale(a: Any, mode: str, nonlinearity: str) -> float:
    check_choice("mode", mode, ("fan_in", "fan_out"))
    if nonlinearity == "leaky_relu" and a is not None:  # other nonlinearities have no slope
        try:
            a = as_finite("a", a)
        except TypeError as error:
            raise ValueError(str(error)) from error  # torch raises ValueError, too
    return _gain_squared(calculate_gain(nonlinearity, a))


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
    """A normal of variance 1 / fan_in, truncated at two sigma as in JAX and Keras (LeCun et al. 1998, section 4.6)."""
    return VarianceScaling(1.0, "fan_in", "truncated_normal")


def _zeros() -> Constant:
    return Constant(0.0)


def _ones() -> Constant:
    return Constant(1.0)


_BY_NAME: dict[str, Callable[..., Scheme]] = {
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
    "glorot_uniform": xavier_uniform,
    "glorot_normal": xavier_normal,
    "he_uniform": kaiming_uniform,
    "he_normal": kaiming_normal,
    "lecun_uniform": lecun_uniform,
    "lecun_normal": lecun_normal,
    "variance_scaling": VarianceScaling,
    "scaled": Scaled,
    "depth_scaled": DepthScaled,
    "own": Own,
}
for _name, _make in _BY_NAME.items():
    register_scheme(_name, _make)
