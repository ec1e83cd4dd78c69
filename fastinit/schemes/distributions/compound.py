"""Distributions of several blocks: fused projections, stacks of maps, the padding row of an embedding."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastinit.schemes.distributions.base import Distribution, Needs, Split, check_fits, set_sizes
from fastinit.schemes.distributions.sampled import ZERO
from fastinit.schemes.numbers import as_size


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


@dataclass(frozen=True, slots=True)
class Blocks(_Compound):
    """Blocks of `sizes` along dimension `dim`, each with its own distribution: fused projections, gates."""

    dim: int
    sizes: tuple[int, ...]
    each: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        set_sizes(self, "dim")
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
        set_sizes(self, "size")
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
        check_fits(self, shape, tuple(shape[:1]), (self.size,))
        self.of_each.check(shape[1:])


@dataclass(frozen=True, slots=True)
class ZeroRow(_Compound):
    """`rest`, except that index `row` of the `rows` along dimension 0 is zero: the padding row of an embedding."""

    row: int
    rows: int
    rest: Distribution

    def __post_init__(self) -> None:
        set_sizes(self, "row", "rows")
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
        check_fits(self, shape, tuple(shape[:1]), (self.rows,))
        self.rest.check(shape)

    def located(self, shape: Sequence[int], offset: int, strides: Sequence[int]) -> ZeroRow:
        return replace(self, rest=self.rest.located(shape, offset, strides))


def check_distribution(given: object) -> None:
    """Raise TypeError unless `given` is a distribution."""
    if not isinstance(given, Distribution):
        raise TypeError(f"expected a distribution (fastinit.schemes.distributions), got {given!r}")


def _mixture(split: Split) -> tuple[float, float]:
    """Mean and standard deviation over all elements of the blocks."""
    whole = max(sum(split.sizes), 1)
    # A block without elements may have no mean.
    moments = [(size, each.mean(), each.std()) for size, each in zip(split.sizes, split.each, strict=True) if size]
    mean = math.fsum(size * of_part for size, of_part, _ in moments) / whole
    square = math.fsum(size * (std**2 + of_part**2) for size, of_part, std in moments) / whole
    return mean, math.sqrt(max(0.0, square - mean * mean))
