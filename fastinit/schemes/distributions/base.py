"""What every distribution is, and the checks of their fields."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

from fastinit.schemes.numbers import as_finite, as_size

Needs = Literal["element", "tensor"]
# A normal value lies further than this many standard deviations from its mean once in 500 million draws.
FAR = 6.0


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
    """The base of all distributions. A new kind takes a frozen dataclass here, and a writer in run/composed.py."""

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
        distributed alike (the constants 0 and -0 are equal, and are not alike).
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
        reach = FAR * self.std()
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


def set_floats(distribution: Distribution, *names: str) -> None:
    """Turn fields into plain floats; raise an error unless they are finite numbers."""
    for name in names:
        object.__setattr__(distribution, name, float(as_finite(name, getattr(distribution, name))))


def set_sizes(distribution: Distribution, *names: str) -> None:
    """Turn fields into plain ints; raise an error unless they are integers >= 0."""
    for name in names:
        object.__setattr__(distribution, name, as_size(name, getattr(distribution, name)))


def check_not_negative(name: str, value: float) -> None:
    if value < 0.0:
        raise ValueError(f"{name}: expected {name} >= 0, got {value!r}")


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low <= high:
        raise ValueError(f"{low_name}, {high_name}: expected {low_name} <= {high_name}, got {low!r} and {high!r}")


def check_fits(
    distribution: Distribution, shape: Sequence[int], wanted: tuple[int, ...], found: tuple[int, ...]
) -> None:
    if wanted != found:
        raise ValueError(f"expected a distribution for shape {tuple(shape)}, got {distribution!r}")


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
