"""Whether a dtype can hold the values of a distribution."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fastinit.schemes.distributions.base import Distribution


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
            largest, _, _ = _limits(dtype)
            if block.farthest() > largest:
                raise ValueError(f"{block} lies outside {dtype} (largest {largest:g})")
        else:
            least, most = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
            for value in block.bounds():
                if not (math.isfinite(value) and value == int(value) and least <= value <= most):
                    raise ValueError(f"expected whole numbers from {least} to {most} for {dtype}, got {value!r}")


@lru_cache(maxsize=64)
def _limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """The largest number of a dtype, its eps, and its smallest positive number."""
    limits = torch.finfo(dtype)
    return limits.max, limits.eps, limits.smallest_normal * limits.eps


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
    _, eps, least = _limits(dtype)
    for block in distribution.each_block():
        if not block.told_by_formula:
            continue
        if block.is_random():
            mean, std = block.mean(), block.std()
            spacing = max(eps * abs(mean), least)
            if 0.0 < std < spacing:
                return (
                    f"{block} has a std of {std:.3g}, less than the spacing of {dtype} at its mean ({spacing:.3g}): "
                    "many values are the same"
                )
        elif 0.0 < (farthest := block.farthest()) <= 0.5 * least:
            return f"{block} has values up to {farthest:.3g}, which are zero in {dtype}"
    return None
