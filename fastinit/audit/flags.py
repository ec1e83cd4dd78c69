"""What is off in a parameter, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from fastinit.audit.reading import Asked, Measured
from fastinit.audit.statistics import Statistics
from fastinit.plans.rows import Row
from fastinit.schemes.distributions import Distribution

# What to do about each flag. Every sentence follows the name of the parameter and what was found.
ADVICE: Mapping[str, str] = {
    "no memory": "it is on the meta device; call fastinit.materialize_, or load a checkpoint",
    "not finite": "nobody initialised this memory, or training diverged; initialise it, or lower the learning rate",
    "never initialised": "it holds what fresh memory holds; run the plan after the last to_empty() or resize",
    "all equal": "all units compute the same and get the same gradient; draw it, with a scheme for its layer",
    "equal rows": "these units compute the same and stay equal in training; draw every row, from one seed, once",
    "equal shards": "ranks hold equal parts where they should differ; write DTensors with fastinit, not rank by rank",
    "no signal": "nothing passes through it; fine at the end of a residual branch or in an adapter, else draw it",
    "shrinks": "the signal all but vanishes behind it; use a std near 1 / sqrt(fan_in), or a scheme that does",
    "explodes": "the signal grows with every such layer; use a std near 1 / sqrt(fan_in), or a scheme that does",
    "off the plan": "something wrote to it after the plan ran, or the plan never ran; run the plan last",
}

# A std further from the plan's than this share of it, plus six standard errors, is off. The errors are those of values
# with a kurtosis of up to 5: std sqrt((5 - 1) / (4 n)).
_TOLERANCE = 0.05
_ERRORS = 6.0
# Values of this size come from no initialisation and no training that works.
_GARBAGE = 1e15
# A map alone spoils a signal of independent inputs if it multiplies the std by a factor outside of these. In a hundred
# layers factors of 0.9 and 1.1 do so, too: trace_signal measures that.
_LEAST_GAIN, _MOST_GAIN = 0.01, 10.0


def flags_of(asked: Asked, found: Measured, row: Row | None, gain: float | None) -> Iterator[tuple[str, str]]:
    held = found.held
    if held is None:
        yield "no memory", "no values"
        return
    if held.numel == 0:
        return
    distribution = None if row is None or row.action != "init" else row.distribution
    is_drawn = distribution is not None and distribution.is_random()
    if held.non_finite:
        yield "not finite", f"{held.non_finite:,} of {held.numel:,} values are NaN or infinite"
        return
    largest = max(abs(held.low), abs(held.high))
    if largest > _GARBAGE:
        yield "never initialised", f"values of up to {largest:.1e}"
        return
    if is_drawn and held.zeros == held.numel:
        yield "never initialised", "all its values are 0 where the plan draws them"
        return
    is_meant = distribution is not None and not is_drawn  # by the plan: zeros, ones, an identity
    if asked.role == "map" and held.numel > 1 and not is_meant:
        if held.zeros == held.numel:
            yield "no signal", "all its values are 0"
        elif held.low == held.high:
            yield "all equal", f"all its values are {held.low:.4g}"
        elif found.equal_rows:
            yield "equal rows", f"{found.equal_rows:,} of its units have the weights of another"
    elif is_drawn and held.numel > 1 and held.low == held.high:
        yield "all equal", f"all its values are {held.low:.4g}"
    if found.equal_shards and not is_meant:
        yield "equal shards", "ranks hold parts with equal values"
    if distribution is not None and (off := _off_plan(held, distribution, asked.tensor.dtype)):
        yield "off the plan", off
    if gain is not None and held.low != held.high and not is_meant:
        if gain < _LEAST_GAIN:
            yield "shrinks", f"its gain, std * sqrt(fan_in), is {gain:.2g}"
        elif gain > _MOST_GAIN:
            yield "explodes", f"its gain, std * sqrt(fan_in), is {gain:.3g}"


def moments_of(distribution: Distribution, is_complex: bool) -> tuple[float, float, tuple[float, float]] | None:
    """Mean, std and bounds of the numbers that a tensor holds, which in a complex one are both parts of every value.

    None: they are not told for complex values in blocks.
    """
    mean, std, (low, high) = distribution.mean(), distribution.std(), distribution.bounds()
    if not is_complex:
        return mean, std, (low, high)
    if distribution.blocks() is not None:
        return None
    parts = distribution.of_parts()
    if parts is None:  # matrices, of mean zero, whose parts share the variance
        return mean, std / math.sqrt(2.0), (low, high)
    if parts[0] == parts[1]:
        return parts[0].mean(), parts[0].std(), parts[0].bounds()
    # The imaginary parts are zero.
    return 0.5 * mean, math.sqrt(0.5 * std * std + 0.25 * mean * mean), (min(low, 0.0), max(high, 0.0))


def _off_plan(held: Statistics, distribution: Distribution, dtype: torch.dtype) -> str | None:
    """How the values differ from those that the plan writes; None if they do not."""
    moments = moments_of(distribution, dtype.is_complex)
    if moments is None:
        return None
    mean, std, (low, high) = moments
    rounding = torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
    slack = rounding * max(abs(mean), std)
    error = _ERRORS / math.sqrt(held.finite)
    if held.low == held.high and std > 0.0 and held.finite > 1:
        return None  # that is another flag
    if abs(held.std - std) > std * (_TOLERANCE + error) + slack:
        return f"std {held.std:.4g}, the plan's is {std:.4g}"
    if abs(held.mean - mean) > std * (_TOLERANCE + error) + slack:
        return f"mean {held.mean:.4g}, the plan's is {mean:.4g}"
    for value, bound, beyond in ((held.low, low, held.low < low), (held.high, high, held.high > high)):
        if beyond and abs(value - bound) > 2.0 * rounding * abs(bound) + 2.0 * slack:
            return f"a value of {value:.4g}, the plan's bound is {bound:.4g}"
    return None
