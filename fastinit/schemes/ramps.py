"""Schemes that run along the channels or the layers: nothing random, one value a channel."""

from __future__ import annotations

from dataclasses import dataclass

from fastinit.schemes import distributions
from fastinit.schemes.base import Context, register_scheme
from fastinit.schemes.distributions import Distribution
from fastinit.schemes.named import set_finite, set_not_negative


def _channels(context: Context) -> int:
    """The size of the last dimension.

    Raises:
        ValueError: there is none.
    """
    if not context.shape:
        raise ValueError("expected 1 dimension or more, got a scalar")
    return context.shape[-1]


@dataclass(frozen=True)
class Ramp:
    """`first`, ..., `last` in even steps along the last dimension: scalars of layers that lie in one parameter.

    Raises:
        ValueError: a number is not finite; in use, the parameter is a scalar.

    >>> print(Ramp(1.0, 0.0).distribution(Context((3,))))
    1 ... 0, 3 values
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        set_finite(self, "first", "last")

    def distribution(self, context: Context) -> Distribution:
        count = _channels(context)
        step = (self.last - self.first) / max(count - 1, 1)
        return distributions.Series(tuple(self.first + step * i for i in range(count)))


@dataclass(frozen=True)
class RWKV7Mix:
    """1 - (i / C)^p along C channels, p = power (1 - l / L)^exponent in layer l of L: how much of the last token is in.

    BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py: x_r, x_w, x_k, x_v, x_a, x_g of the time mix, x_k of the channel
    mix.

    Raises:
        ValueError: a number is negative or not finite; in use, the parameter is a scalar or lies in no stack of layers.

    >>> print(RWKV7Mix().distribution(Context((4,), layer=0, layers=2)))
    1 ... 0.25, 4 values
    """

    power: float = 1.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        set_not_negative(self, "power", "exponent")

    def distribution(self, context: Context) -> Distribution:
        count = _channels(context)
        power = self.power * (1.0 - context.layer / context.layers) ** self.exponent
        return distributions.Series(tuple(1.0 - (i / count) ** power for i in range(count)))


@dataclass(frozen=True)
class RWKV7Ramp:
    """base + linear (x - 1/2) + zigzag z |z| + decay x^(1 + r^0.3) along C channels: RWKV-7's biases of low-rank maps.

    x = i / (C - 1) runs through all channels, z from -1 to 1 through those of every head, r = l / (L - 1) through the
    layers (used if decay is not 0).

    BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py: w0, a0, v0, k_k.

    Raises:
        ValueError: a number is not finite, or head_size < 2; in use, the parameter is a scalar, or lies in no stack of
            layers though decay is not 0.

    >>> print(RWKV7Ramp(linear=1.0).distribution(Context((3,))))
    -0.5 ... 0.5, 3 values
    """

    base: float = 0.0
    linear: float = 0.0
    zigzag: float = 0.0
    decay: float = 0.0
    head_size: int = 64

    def __post_init__(self) -> None:
        set_finite(self, "base", "linear", "zigzag", "decay")
        if type(self.head_size) is not int:
            raise TypeError(f"head_size: expected an int, got {self.head_size!r}")
        if self.head_size < 2:
            raise ValueError(f"head_size: expected head_size >= 2, got {self.head_size}")

    def distribution(self, context: Context) -> Distribution:
        count = _channels(context)
        power = 1.0
        if self.decay != 0.0:
            power += (context.layer / max(context.layers - 1, 1)) ** 0.3
        half = (self.head_size - 1) / 2.0
        values = []
        for i in range(count):
            x, z = i / max(count - 1, 1), (i % self.head_size - half) / half
            values.append(self.base + self.linear * (x - 0.5) + self.zigzag * z * abs(z) + self.decay * x**power)
        return distributions.Series(tuple(values))


@dataclass(frozen=True)
class RWKV7Scale:
    """((l + 1) / L)^exponent in layer l of L (BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py: ln_x.weight).

    Raises:
        ValueError: exponent is not finite; in use, the parameter lies in no stack of layers.

    >>> print(RWKV7Scale().distribution(Context((3,), layer=0, layers=2)))
    0.615572
    """

    exponent: float = 0.7

    def __post_init__(self) -> None:
        set_finite(self, "exponent")

    def distribution(self, context: Context) -> Distribution:
        return distributions.Constant(((context.layer + 1) / context.layers) ** self.exponent)


for _name, _make in {
    "ramp": Ramp,
    "rwkv7_mix": RWKV7Mix,
    "rwkv7_ramp": RWKV7Ramp,
    "rwkv7_scale": RWKV7Scale,
}.items():
    register_scheme(_name, _make)
