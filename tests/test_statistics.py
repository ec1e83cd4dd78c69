"""Native values have the distributions that they are said to have, and streams have nothing to do with each other.

Every test has fixed seeds and fails where a correct generator would with probability ALPHA, so none ever flakes: a
failure is a change of the values. Beside the tests stand wrong generators that they must find out ("tells ... apart").
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import mpmath
import numpy as np
import pytest
import reference
import torch
from conftest import needs_native
from numpy.typing import NDArray
from reference import DType, Kind, Values
from scipy import special, stats

import fastinit
from fastinit.run.streams import derive_stream

ALPHA = 1e-9

F64 = NDArray[np.float64]
DTYPES: tuple[DType, ...] = ("float32", "float64", "float16", "bfloat16")
HALF_DTYPES: tuple[Literal["float16", "bfloat16"], ...] = ("float16", "bfloat16")
FLOAT8_DTYPES: tuple[DType, ...] = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


class Distribution(NamedTuple):
    """U[low, high], or N(mean, std^2) conditioned on it."""

    kind: Kind
    low: float
    high: float
    mean: float = 0.0
    std: float = 1.0

    @property
    def parameters(self) -> tuple[float, ...]:
        return {
            "uniform": (self.low, self.high),
            "normal": (self.mean, self.std),
            "trunc_normal": (self.mean, self.std, self.low, self.high),
        }[self.kind]

    @property
    def scheme(self) -> fastinit.Scheme:
        if self.kind == "uniform":
            return fastinit.Uniform(self.low, self.high)
        if self.kind == "normal":
            return fastinit.Normal(self.mean, self.std)
        return fastinit.TruncNormal(self.mean, self.std, (self.low, self.high))

    def cdf(self, x: F64) -> F64:
        x = np.clip(x, self.low, self.high)
        if self.kind == "uniform":
            uniform: F64 = (x - self.low) / (self.high - self.low)
            return uniform
        a, b, z = ((each - self.mean) / self.std for each in (self.low, self.high, x))
        if a > 0:  # where the masses above have the digits
            below: F64 = (special.ndtr(-a) - special.ndtr(-z)) / (special.ndtr(-a) - special.ndtr(-b))
        else:
            below = (special.ndtr(z) - special.ndtr(a)) / (special.ndtr(b) - special.ndtr(a))
        return below

    def moments(self) -> tuple[float, float, float, float]:
        """Mean, variance, skewness, excess kurtosis."""
        if self.kind == "uniform":
            scipys = stats.uniform(self.low, self.high - self.low)
        else:
            a, b = (self.low - self.mean) / self.std, (self.high - self.mean) / self.std
            scipys = stats.truncnorm(a, b, self.mean, self.std)
        mean, variance, skewness, kurtosis = (float(moment) for moment in scipys.stats("mvsk"))
        return mean, variance, skewness, kurtosis


def uniform(low: float, high: float) -> Distribution:
    return Distribution("uniform", low, high)


def normal(mean: float, std: float) -> Distribution:
    return Distribution("normal", -math.inf, math.inf, mean, std)


def truncated(mean: float, std: float, low_sigma: float, high_sigma: float) -> Distribution:
    return Distribution("trunc_normal", mean + low_sigma * std, mean + high_sigma * std, mean, std)


DISTRIBUTIONS = {
    "uniform": uniform(-1.0, 1.0),
    "uniform [0, 1]": uniform(0.0, 1.0),
    "uniform, xavier": uniform(-0.0510310363, 0.0510310363),
    "uniform, lopsided": uniform(-0.3, 7.1),
    "normal": normal(0.0, 1.0),
    "normal, 0.5 +- 0.02": normal(0.5, 0.02),
    "truncated at 2 sigma": truncated(0.0, 0.02, -2.0, 2.0),
    "truncated, lopsided": truncated(0.3, 1.5, -1.0, 3.0),
    "truncated, to infinity": truncated(0.0, 1.0, -0.5, math.inf),
    "truncated, above the mean": truncated(0.0, 1.0, 1.25, 3.5),
    "truncated, below the mean": truncated(0.0, 1.0, -3.5, -1.25),
    "truncated, tail": truncated(0.0, 1.0, 4.5, math.inf),
    "truncated, far tail": truncated(0.0, 1.0, -math.inf, -6.0),
    "truncated, nearly level": truncated(1.0, 1.0, -0.003, 0.05),
    "truncated, level": truncated(0.0, 1.0, -0.0035, 0.002),
}
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())


def native(distribution: Distribution, dtype: DType, count: int, name: str = "weight", seed: int = 1) -> torch.Tensor:
    tensor = torch.empty(count, dtype=getattr(torch, dtype))
    fastinit.init_([tensor], distribution.scheme, names=[name], seed=seed, backend="native")
    return tensor


def patterns(tensor: torch.Tensor) -> Values:
    """The bits of a tensor of a 16-bit or 8-bit dtype."""
    bits: Values = tensor.view(torch.uint8).numpy()
    return bits if tensor.dtype.itemsize == 1 else bits.view(np.uint16)


def as_doubles(tensor: torch.Tensor) -> F64:
    values: F64 = tensor.to(torch.float64).numpy()
    return values


# ---- The distribution function: Kolmogorov and Smirnov, over the continuous dtypes ----


def kolmogorov_smirnov(values: NDArray[np.float32] | F64, cdf: Callable[[F64], F64]) -> float:
    """The p-value of values under a distribution function."""
    expected = cdf(np.sort(values).astype(np.float64))
    count = expected.size
    steps = np.arange(count + 1) / count
    distance = max((expected - steps[:-1]).max(), (steps[1:] - expected).max())
    return float(special.kolmogorov(distance * math.sqrt(count)))


@pytest.mark.slow
@needs_native
@every_distribution
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distribution_function_is_the_exact_one(distribution: Distribution, dtype: DType) -> None:
    values = native(distribution, dtype, 10_000_000 if dtype == "float32" else 4_000_000, str(distribution))
    assert kolmogorov_smirnov(values.numpy(), distribution.cdf) > ALPHA


@pytest.mark.slow
def test_distribution_function_test_tells_wrong_ones_apart() -> None:
    random = np.random.default_rng(0)
    drawn = random.standard_normal(4_000_000)
    assert kolmogorov_smirnov(drawn, DISTRIBUTIONS["normal"].cdf) > ALPHA
    assert kolmogorov_smirnov(drawn * 1.01, DISTRIBUTIONS["normal"].cdf) < ALPHA
    within = truncated(0.0, 1.0, -2.0, 2.0)
    assert kolmogorov_smirnov(np.clip(drawn, -2.0, 2.0), within.cdf) < ALPHA
    assert kolmogorov_smirnov(drawn[np.abs(drawn) <= 2.0], within.cdf) > ALPHA


# ---- Every number of a narrow dtype: chi-square, a cell for each ----


@cache
def numbers(dtype: DType) -> tuple[F64, NDArray[np.intp]]:
    """All finite numbers of a dtype in order, and for each bit pattern its place among them (-1: not finite)."""
    every: Values = np.arange(256, dtype=np.uint8) if dtype in FLOAT8_DTYPES else np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        values = reference.widen(every.view(np.float16) if dtype == "float16" else every, dtype)
    finite = np.isfinite(values)
    ordered = np.unique(values[finite])  # where -0 equals 0
    place = np.full(every.size, -1, np.intp)
    place[finite] = np.searchsorted(ordered, values[finite])
    return ordered, place


def chi_square(tensor: torch.Tensor, distribution: Distribution) -> float:
    """The p-value of the counts of all numbers: a number's cell is what rounds to it, within the bounds."""
    dtype: Any = str(tensor.dtype).removeprefix("torch.")
    ordered, place = numbers(dtype)
    places = place[patterns(tensor)]
    assert places.min() >= 0, "a value is not finite"
    observed = np.bincount(places, minlength=ordered.size).astype(np.float64)
    inside = (ordered >= distribution.low) & (ordered <= distribution.high)
    assert observed[~inside].sum() == 0, "a value lies outside the bounds"
    ordered, observed = ordered[inside], observed[inside]
    edges = np.concatenate([[-np.inf], (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
    expected = np.diff(distribution.cdf(edges)) * tensor.numel()
    # Merge cells from left to right until each expects ten; what is left at the end joins the last.
    cell = np.floor(np.cumsum(expected) / 10.0).astype(np.intp)
    cell = np.concatenate([[0], cell[:-1]])
    _, cell = np.unique(cell, return_inverse=True)
    merged_expected, merged_observed = np.bincount(cell, expected), np.bincount(cell, observed)
    if merged_expected[-1] < 5.0:
        merged_expected[-2] += merged_expected[-1]
        merged_observed[-2] += merged_observed[-1]
        merged_expected, merged_observed = merged_expected[:-1], merged_observed[:-1]
    assert merged_expected.size >= 2, "too few cells to test"
    statistic = ((merged_observed - merged_expected) ** 2 / merged_expected).sum()
    return float(stats.chi2.sf(statistic, merged_expected.size - 1))


@pytest.mark.slow
@needs_native
@every_distribution
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_every_number_of_a_16_bit_dtype_comes_as_often_as_it_should(distribution: Distribution, dtype: DType) -> None:
    assert chi_square(native(distribution, dtype, 10_000_000, str(distribution)), distribution) > ALPHA


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", FLOAT8_DTYPES)
def test_every_number_of_an_8_bit_dtype_comes_as_often_as_it_should(dtype: DType) -> None:
    """Uniform over the whole dtype shows the large ones; normals of the size of the smallest show the others."""
    tensor_dtype: torch.dtype = getattr(torch, dtype)
    greatest, least = torch.finfo(tensor_dtype).max, torch.finfo(tensor_dtype).smallest_normal
    for distribution in (
        *(uniform(0.0, greatest), uniform(-greatest, 0.0), uniform(-least, least), uniform(-0.3, 7.1)),
        *(normal(0.0, 2.0 * least), normal(0.0, 1.0), truncated(0.3, 1.5, -1.0, 3.0)),
    ):
        assert chi_square(native(distribution, dtype, 10_000_000), distribution) > ALPHA


@needs_native
def test_subnormal_numbers_of_float16_come_as_often_as_they_should() -> None:
    for distribution in (normal(0.0, 3e-6), truncated(0.0, 2e-5, -2.0, 1.0), uniform(-2e-5, 1e-5)):
        assert chi_square(native(distribution, "float16", 10_000_000), distribution) > ALPHA


def test_16_bit_test_tells_torchs_uniform_apart() -> None:
    """torch draws bfloat16 with 8 bits: a grid, one end open."""
    torch.manual_seed(0)
    drawn = torch.empty(10_000_000, dtype=torch.bfloat16).uniform_(-1.0, 1.0)
    assert chi_square(drawn, uniform(-1.0, 1.0)) < ALPHA


def test_16_bit_test_passes_what_is_rounded_once_and_tells_rounding_towards_zero_apart() -> None:
    drawn = torch.from_numpy(np.random.default_rng(0).standard_normal(10_000_000))
    rounded = drawn.to(torch.float32).to(torch.bfloat16)
    assert chi_square(rounded, normal(0.0, 1.0)) > ALPHA
    cut = (drawn.to(torch.float32).view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
    assert chi_square(cut, normal(0.0, 1.0)) < ALPHA


# ---- Tails ----

_CHUNK = 1 << 22  # stays in the cache, and is large beside the cost of a call


BEYOND_FOUR_CHUNKS = 240  # 1e9 values
FAR_CHUNKS = 750  # 3e9 values
FAR = 5.77  # where the normals of 24-bit numbers by Box and Muller end: sqrt(48 ln 2)
LEVELS = (4.0, 4.5, 5.0, 5.5, 6.0)


def poisson_p_value(count: int, expected: float) -> float:
    """Two-sided."""
    return float(min(1.0, 2.0 * min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected))))


class Extremes(NamedTuple):
    """Values far out, with the seeds and the indices that they came from."""

    values: F64
    seeds: NDArray[np.intp]
    indices: NDArray[np.intp]


def normals_beyond(sigma: float, seeds: range) -> Extremes:
    """The normal float32 values beyond +-sigma, of a chunk by each seed."""
    tensor = torch.empty(_CHUNK)
    values = tensor.numpy()
    found: list[Extremes] = []
    for seed in seeds:
        fastinit.init_([tensor], fastinit.Normal(), names=["tails"], seed=seed, backend="native")
        if values.max() > sigma or values.min() < -sigma:
            index = np.flatnonzero(np.abs(values) > sigma)
            found.append(Extremes(values[index].astype(np.float64), np.full_like(index, seed), index))
    return joined(*found)


def joined(*parts: Extremes) -> Extremes:
    return Extremes(*(np.concatenate(each) for each in zip(*parts, strict=True)))


@pytest.fixture(scope="module")
def extremes_beyond_four() -> Extremes:
    return normals_beyond(4.0, range(BEYOND_FOUR_CHUNKS))


@pytest.fixture(scope="module")
def beyond_four(extremes_beyond_four: Extremes) -> F64:
    return extremes_beyond_four.values


@needs_native
@pytest.mark.slow
def test_tail_counts_of_normals(beyond_four: F64) -> None:
    for side in (1.0, -1.0):
        for level in LEVELS:
            expected = BEYOND_FOUR_CHUNKS * _CHUNK * special.ndtr(-level)
            assert poisson_p_value(int((side * beyond_four > level).sum()), expected) > ALPHA


@needs_native
@pytest.mark.slow
def test_tails_of_normals_have_the_exact_shape_and_are_finer_than_one_word(beyond_four: F64) -> None:
    """Beyond 4.25 sigma all values have a second word; without it, a quarter of them would be equal to others."""
    magnitude = np.abs(beyond_four)
    magnitude = magnitude[magnitude > 4.25]
    assert magnitude.size > 20_000
    assert kolmogorov_smirnov(magnitude, truncated(0.0, 1.0, 4.25, math.inf).cdf) > ALPHA
    assert np.unique(magnitude).size > 0.97 * magnitude.size
    of_one_word = np.floor(special.ndtr(-magnitude) * 2.0**32)
    assert np.unique(of_one_word).size < 0.85 * magnitude.size


@needs_native
@pytest.mark.slow
def test_far_tails_of_normals_are_as_full_as_they_should_and_equal_the_reference(
    extremes_beyond_four: Extremes,
) -> None:
    """Of 3e9 values 25 should lie there."""
    is_far = np.abs(extremes_beyond_four.values) > FAR
    far = joined(
        Extremes(*(each[is_far] for each in extremes_beyond_four)),
        normals_beyond(FAR, range(BEYOND_FOUR_CHUNKS, FAR_CHUNKS)),
    )
    assert poisson_p_value(far.values.size, 2 * FAR_CHUNKS * _CHUNK * special.ndtr(-FAR)) > ALPHA
    assert kolmogorov_smirnov(np.abs(far.values), truncated(0.0, 1.0, FAR, math.inf).cdf) > ALPHA
    for value, seed, index in zip(*far, strict=True):
        assert value == reference.sample("normal", (0.0, 1.0), "float32", int(seed), "tails", [index])[0]


def test_tail_counts_tell_24_bit_normals_apart() -> None:
    """Quantiles of (k + 1/2) / 2^24 end at 5.4 sigma, Box and Muller's at FAR: beyond it nothing would be found."""
    assert special.ndtri(1.0 - 2.0**-25) < 5.5
    assert poisson_p_value(0, 2 * BEYOND_FOUR_CHUNKS * _CHUNK * special.ndtr(-5.5)) < ALPHA
    assert math.sqrt(48.0 * math.log(2.0)) < FAR
    assert poisson_p_value(0, 2 * FAR_CHUNKS * _CHUNK * special.ndtr(-FAR)) < ALPHA


# ---- Accuracy of the quantile ----


def exact_quantile(p: float) -> mpmath.mpf:
    """Q^-1 to 30 digits, by Newton's method from the one in double."""
    target, x = mpmath.mpf(p), mpmath.mpf(float(-special.ndtri(p)))
    for _ in range(3):
        x += (mpmath.erfc(x / mpmath.sqrt(2)) / 2 - target) * mpmath.sqrt(2 * mpmath.pi) * mpmath.exp(x * x / 2)
    return x


TABLE_ROWS = range(122, 252)  # all but that of p = 1/2


def test_quantile_in_float_is_accurate() -> None:
    """As docs/STREAM.md says: relative to the value, but for the values near the mean."""
    random = np.random.default_rng(0)
    for row in TABLE_ROWS:
        mantissa = np.concatenate([[0, 2**22 - 1], random.integers(0, 2**22, 10_000)])
        p = (row << 22 | mantissa).astype(np.uint32).view(np.float32)
        exact = -special.ndtri(p.astype(np.float64))
        error = np.abs(reference.float_quantile(p) - exact)
        assert (error <= np.where(exact < 0.1, 1.6e-8, 1.4e-7 * exact)).all(), row


def test_quantile_in_float_steps_back_by_one_ulp_at_most_where_rows_meet() -> None:
    """And falls everywhere else (tests/cpp/core_test.cpp), as docs/STREAM.md says."""
    first = (np.array(TABLE_ROWS)[1:] << 22).astype(np.uint32)
    before = reference.float_quantile((first - np.uint32(1)).view(np.float32))
    at = reference.float_quantile(first.view(np.float32))
    assert (at <= np.nextafter(before, np.float32(np.inf))).all()


@pytest.mark.slow
def test_quantile_in_double_is_accurate() -> None:
    random = np.random.default_rng(0)
    with mpmath.workdps(30):
        for row in TABLE_ROWS:
            mantissa = np.concatenate([[0, 2**51 - 1], random.integers(0, 2**51, 8)])
            p = (row + 2 * (1023 - 127) << 51 | mantissa).astype(np.uint64).view(np.float64)
            for each, value in zip(p.tolist(), reference.double_quantile(p).tolist(), strict=True):
                exact = exact_quantile(each)
                assert abs(value - exact) <= (5e-17 if exact < 0.1 else 3e-16 * exact), (row, each)


def test_tail_mass_of_the_reference_is_accurate() -> None:
    """Up to where it is taken for zero."""
    with mpmath.workdps(30):
        for x in np.concatenate([np.linspace(0.0, 37.5, 1500), np.linspace(2.2, 2.3, 201)]).tolist():
            exact = mpmath.erfc(mpmath.mpf(x) / mpmath.sqrt(2)) / 2
            assert abs(reference.normal_tail(x) - exact) <= 1e-13 * exact, x
    assert reference.normal_tail(37.6) == 0.0


@pytest.mark.slow
@needs_native
def test_float32_normals_are_the_quantiles_of_their_words() -> None:
    """Of the middle of the interval that a word stands for: to the error of the table, and of two roundings to float.

    Each rounding, of the word and of the mass p beyond the value, is off by a 2^-24 of it, and the value moves by the
    change of p over the density.
    """
    index = np.arange(2_000_000)
    of = reference.stream(1, "weight")
    word = reference.words(of, index)
    distance = np.where(word < 2**31, word, ~word).astype(np.float64)
    p = (distance + 0.5) * 2.0**-32
    tail = reference.in_tail(reference.float_probability(reference.normal_constants(0.0, 1.0), word))
    p[tail] = (distance[tail] * 2.0**32 + (reference.tail_words(of, index[tail]) | 1)) * 2.0**-64
    exact = np.where(word < 2**31, 1.0, -1.0) * special.ndtri(p)
    error = np.abs(native(normal(0.0, 1.0), "float32", index.size).numpy() - exact)
    assert tail.sum() > 20
    of_table = np.where(np.abs(exact) < 0.1, 1.6e-8, 1.4e-7 * np.abs(exact))
    of_roundings = 2.0 * 2.0**-24 * p / stats.norm.pdf(exact)
    assert (error <= of_table + of_roundings).all()


@needs_native
def test_float64_normals_are_the_quantiles_of_their_words() -> None:
    index = np.arange(1000)
    word = reference.double_words(reference.stream(1, "weight"), index)
    values = native(normal(0.0, 1.0), "float64", index.size).numpy()
    with mpmath.workdps(30):
        for each, value in zip(word.tolist(), values.tolist(), strict=True):
            distance = each if each < 2**63 else 2**64 - 1 - each
            exact = exact_quantile((distance + 0.5) * 2.0**-64) * (-1 if each < 2**63 else 1)
            assert abs(value - exact) <= 3e-16 * max(abs(exact), 1)


def test_normals_reach_nine_sigma() -> None:
    """The least words: what lies farthest out, in both kinds of sampling."""
    of = reference.normal_constants(0.0, 1.0)
    word, tail_word = np.zeros(2, np.uint32), np.array([0, 2**32 - 1], np.uint32)
    values = reference.normal_float(of, word, reference.tail_probability(of, word, tail_word))
    assert values == pytest.approx(special.ndtri([2.0**-64, 2.0**-32]), rel=2e-7)
    assert values[0] < -9.0
    assert reference.normal_double(of, np.zeros(1, np.uint64))[0] == pytest.approx(special.ndtri(2.0**-65), rel=1e-15)


# ---- Moments ----


@needs_native
@every_distribution
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_lie_within_four_standard_errors(distribution: Distribution, dtype: DType) -> None:
    count = 1_000_000
    values = as_doubles(native(distribution, dtype, count, str(distribution)))
    mean, variance, _, kurtosis = distribution.moments()
    # A float16 or bfloat16 rounds every value, by up to half a unit in its last place, to either side.
    assert abs(values.mean() - mean) < 4.0 * math.sqrt(variance / count)
    spread = (values - mean) ** 2
    assert abs(spread.mean() - variance) < 4.0 * variance * math.sqrt((kurtosis + 2.0) / count)


def test_moments_tell_a_normal_clipped_at_two_sigma_apart() -> None:
    """As where truncation is done by clamping: the variance is 15 % too large."""
    count = 1_000_000
    clipped = np.clip(np.random.default_rng(0).standard_normal(count), -2.0, 2.0)
    _, variance, _, kurtosis = truncated(0.0, 1.0, -2.0, 2.0).moments()
    assert (clipped**2).mean() - variance > 4.0 * variance * math.sqrt((kurtosis + 2.0) / count)


# ---- Symmetry and bounds ----


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_inverted_words_are_the_negated_values(dtype: DType) -> None:
    """To the bit. The values of inverted words are the reference's."""
    count = 200_000
    of = reference.stream(1, "weight")
    index = np.arange(count)
    constants: dict[str, reference.UniformConstants | reference.NormalConstants] = {
        "uniform": reference.uniform_constants(-0.7, 0.7, dtype),
        "normal": reference.normal_constants(0.0, 0.02),
        "truncated": reference.trunc_normal_constants(0.0, 0.02, -0.04, 0.04, dtype),
        "far": reference.trunc_normal_constants(0.0, 1.0, -6.0, 6.0, dtype),
    }
    distributions = {
        "uniform": uniform(-0.7, 0.7),
        "normal": normal(0.0, 0.02),
        "truncated": truncated(0.0, 0.02, -2.0, 2.0),
        "far": truncated(0.0, 1.0, -6.0, 6.0),
    }
    for what, numbers_of in constants.items():
        if dtype == "float64":
            long_word = ~reference.double_words(of, index)
            if isinstance(numbers_of, reference.UniformConstants):
                mirrored = reference.uniform_double(numbers_of, long_word)
            else:
                mirrored = reference.normal_double(numbers_of, long_word)
        else:
            word = ~reference.words(of, index)
            if isinstance(numbers_of, reference.UniformConstants):
                single = reference.uniform_float(numbers_of, word)
            else:
                p = reference.float_probability(numbers_of, word)
                tail = reference.in_tail(p)
                # A second word counts from the end of its own side, so it stays as it is.
                p[tail] = reference.tail_probability(numbers_of, word[tail], reference.tail_words(of, index[tail]))
                single = reference.normal_float(numbers_of, word, p)
            mirrored = reference.widen(reference.round_to_dtype(single, dtype), dtype)
        values = as_doubles(native(distributions[what], dtype, count))
        assert (values == -mirrored).all(), what


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_are_reached_and_never_left(dtype: DType) -> None:
    """Bounds between two numbers of the dtype, where rounding to nearest would leave them."""
    random = np.random.default_rng(0)
    for trial in range(60):
        low, high = sorted(float(bound) for bound in random.standard_normal(2) * 10.0 ** random.uniform(-3, 2))
        std = (high - low) * 10.0 ** random.uniform(-1, 1)
        mean = low + (high - low) * random.uniform(-0.2, 1.2)
        limits = reference.bounds(low, high, dtype)
        assert low <= limits.lower <= limits.upper <= high
        for distribution in (uniform(low, high), Distribution("trunc_normal", low, high, mean, std)):
            values = as_doubles(native(distribution, dtype, 50_000, seed=trial))
            assert limits.lower <= values.min() and values.max() <= limits.upper
            if dtype == "bfloat16" and distribution.kind == "uniform" and high - low < 0.5 * (abs(low) + abs(high)):
                assert (values == limits.lower).any() and (values == limits.upper).any()


def test_bounds_test_tells_plain_rounding_apart() -> None:
    drawn = torch.from_numpy(np.random.default_rng(0).uniform(-1.005, 1.005, 50_000))
    assert drawn.to(torch.bfloat16).double().abs().max() > 1.005


# ---- Streams have nothing to do with each other ----


def correlation_p_value(rows: F64) -> float:
    """That the rows are independent standard normals: by the squared correlations of all pairs.

    n r^2 of a pair is chi-square with one degree of freedom, and pairs are uncorrelated: their sum, and the largest.
    """
    count = rows.shape[1]
    products = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    scores = products / math.sqrt(count)
    of_sum = stats.chi2.sf((scores**2).sum(), scores.size)
    of_largest = min(1.0, 2.0 * scores.size * special.ndtr(-np.abs(scores).max()))
    return float(min(1.0, 2.0 * min(of_sum, of_largest)))


def normal_rows(names: list[str], seeds: list[int], count: int) -> F64:
    return np.stack(
        [
            as_doubles(native(normal(0.0, 1.0), "float32", count, name, seed))
            for name, seed in zip(names, seeds, strict=True)
        ]
    )


def layer_names(count: int) -> list[str]:
    return [f"layers.{layer}" for layer in range(count)]


@needs_native
def test_values_of_neighbouring_names_are_uncorrelated() -> None:
    assert correlation_p_value(normal_rows(layer_names(300), [1] * 300, 20_000)) > ALPHA


@needs_native
def test_values_of_neighbouring_seeds_are_uncorrelated() -> None:
    seeds = [*range(200), *(2**bit for bit in range(8, 64)), *(2**64 - 1 - seed for seed in range(44))]
    assert len(set(seeds)) == 300
    assert correlation_p_value(normal_rows(["weight"] * 300, seeds, 20_000)) > ALPHA


@needs_native
def test_values_of_shifted_indices_are_uncorrelated() -> None:
    """Within a stream: neighbours, blocks, vectors, rows of a weight, and blocks that differ in one bit."""
    values = as_doubles(native(normal(0.0, 1.0), "float32", 4_000_000))
    for shift in (1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 256, 1024, 4096, 65536, 2**20):
        score = (values[:-shift] * values[shift:]).sum() / math.sqrt(values.size - shift)
        assert 2.0 * special.ndtr(-abs(score)) > ALPHA, shift


def test_correlation_test_tells_related_streams_apart() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 20_000))
    assert correlation_p_value(rows) > ALPHA
    rows[17, ::10] = rows[16, ::10]
    assert correlation_p_value(rows) < ALPHA


def pairs_p_value(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Chi-square of pairs of numbers in [0, 1] over 64 x 64 cells: dependence of any kind, not of means alone."""
    cells = [np.minimum((each * np.float32(64.0)).astype(np.intp), 63) for each in (first, second)]
    observed = np.bincount(cells[0] * 64 + cells[1], minlength=64 * 64)
    expected = first.size / 64**2
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), 64 * 64 - 1))


@pytest.mark.slow
@needs_native
def test_pairs_of_values_fill_the_square() -> None:
    count = 4_000_000
    unit = uniform(0.0, 1.0)
    first = native(unit, "float32", count, "layers.0").numpy()
    for name, seed in (("layers.1", 1), ("layers.10", 1), ("layers.0.weight", 1), ("layers.0", 2), ("layers.0", 2**32)):
        assert pairs_p_value(first, native(unit, "float32", count, name, seed).numpy()) > ALPHA, (name, seed)
    for shift in (1, 2, 3, 4, 8, 1024, 4096):
        assert pairs_p_value(first[:-shift], first[shift:]) > ALPHA, shift


def test_pairs_test_tells_uncorrelated_but_dependent_values_apart() -> None:
    first, second = np.random.default_rng(0).random((2, 4_000_000), np.float32)
    assert pairs_p_value(first, second) > ALPHA
    assert pairs_p_value(first, np.abs(2.0 * first - 1.0).astype(np.float32)) < ALPHA


def stream_bits(seed: int, name: str) -> int:
    stream = derive_stream(seed, name)
    return stream.key << 64 | stream.counter_high


def avalanche_p_value(changes: list[list[int]], bits: int) -> float:
    """That every bit of a hash flips with probability 1/2, for every kind of change of its input.

    `changes[kind]` has the exclusive ors of hashes before and after; the p-value is that of the worst pair.
    """
    worst = 1.0
    for of_kind in changes:
        octets = np.frombuffer(b"".join(change.to_bytes(bits // 8, "big") for change in of_kind), np.uint8)
        flips = np.unpackbits(octets.reshape(len(of_kind), -1), axis=1).sum(axis=0)
        counts = np.minimum(flips, len(of_kind) - flips)
        p_values = np.minimum(1.0, 2.0 * stats.binom.cdf(counts, len(of_kind), 0.5))
        worst = min(worst, float(p_values.min()))
    return min(1.0, worst * bits * len(changes))


def name_changes(hashed: Callable[[str], int]) -> list[list[int]]:
    """For each of the seven bits of an ASCII character: hashes with and without it flipped, in the middle of names."""
    changes: list[list[int]] = [[] for _ in range(7)]
    for layer in range(1500):
        before, after = f"model.layers.{layer}", ".mlp.gate_proj.weight"
        original = hashed(f"{before}{after}")
        for bit in range(7):
            flipped = chr(ord(after[1]) ^ 1 << bit)
            changes[bit].append(original ^ hashed(f"{before}.{flipped}{after[2:]}"))
    return changes


def test_every_bit_of_a_name_flips_half_of_the_bits_of_its_stream() -> None:
    assert avalanche_p_value(name_changes(lambda name: stream_bits(5, name)), 128) > ALPHA


def test_every_bit_of_a_seed_flips_half_of_the_bits_of_a_stream() -> None:
    changes: list[list[int]] = [[] for _ in range(64)]
    for seed in range(600):
        original = stream_bits(seed, "layers.3.weight")
        for bit in range(64):
            changes[bit].append(original ^ stream_bits(seed ^ 1 << bit, "layers.3.weight"))
    assert avalanche_p_value(changes, 128) > ALPHA


def test_avalanche_test_tells_crc_and_fnv_apart() -> None:
    def fnv(name: str) -> int:
        state = 0xCBF29CE484222325
        for octet in name.encode():
            state = (state ^ octet) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        return state

    assert avalanche_p_value(name_changes(lambda name: zlib.crc32(name.encode())), 32) < ALPHA
    assert avalanche_p_value(name_changes(fnv), 64) < ALPHA


@pytest.mark.slow
def test_streams_of_a_hundred_thousand_names_are_distinct() -> None:
    """In the keys alone already; the tail words' streams, with counter_high inverted, among them."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.w{part}.weight"
        for layer in range(130)
        for expert in range(256)
        for part in (1, 2, 3)
    ]
    assert len(names) > 99_000
    streams = [derive_stream(0, name) for name in names]
    assert len({stream.key for stream in streams}) == len(names)
    high = {stream.counter_high for stream in streams}
    assert len(high | {each ^ 2**64 - 1 for each in high}) == 2 * len(names)


@pytest.mark.slow
def test_distinctness_test_tells_32_bit_hashes_apart() -> None:
    """Of three hundred thousand, ten pairs are expected to be equal."""
    names = [f"layers.{layer}" for layer in range(300_000)]
    assert len({blake2b(name.encode(), digest_size=4).digest() for name in names}) < len(names)
