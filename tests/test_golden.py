"""Native, reference and golden values are the same, to the bit, on every instruction set of the machine."""

from __future__ import annotations

import itertools
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any, get_args

import make_golden
import numpy as np
import pytest
import reference
import torch
from conftest import fill_native_row, needs_native
from reference import DType, Kind, Values

import fastinit
from fastinit import _native
from fastinit.run.engine import Program
from fastinit.run.streams import derive_stream, name_id
from fastinit.run.targets import Target
from fastinit.schemes import distributions

# Known answers are at the edges of what dtypes can hold, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.* many values are the same", "ignore:.* which are zero in")

VECTORS = Path(__file__).parent / "vectors"
GOLDEN: dict[str, Any] = json.loads((VECTORS / "stream_v1.json").read_text(encoding="utf-8"))
DTYPES: tuple[DType, ...] = get_args(DType)


def scheme(kind: Kind, parameters: tuple[float, ...]) -> fastinit.Scheme:
    if kind == "constant":
        return fastinit.Constant(*parameters)
    if kind == "uniform":
        return fastinit.Uniform(*parameters)
    if kind == "normal":
        return fastinit.Normal(*parameters)
    mean, std, low, high = parameters
    return fastinit.TruncNormal(mean, std, (low, high))


def as_values(tensor: torch.Tensor) -> Values:
    """A tensor as the reference has its values."""
    if tensor.dtype == torch.bfloat16:
        bits: Values = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    if tensor.dtype.itemsize == 1:
        return tensor.view(torch.uint8).numpy()
    values: Values = tensor.numpy()
    return values


def native(kind: Kind, parameters: tuple[float, ...], dtype: DType, seed: int, name: str, count: int) -> Values:
    """Values through the public interface; constants, which a plan refuses where they overflow, through the engine."""
    tensor = torch.empty(count, dtype=getattr(torch, dtype))
    if kind == "constant" and count > 0:
        distribution = distributions.Constant(parameters[0])
        target = Target(name, tensor, tensor.shape, tensor.dtype, tensor.device, distribution)
        Program([target], "native").run_(seed, None)
        return as_values(tensor)
    fastinit.init_([tensor], scheme(kind, parameters), names=[name], seed=seed, backend="native")
    return as_values(tensor)


def native_from(
    first_index: int,
    kind: Kind,
    parameters: tuple[float, ...],
    dtype: DType,
    seed: int,
    name: str | bytes,
    count: int,
) -> Values:
    """Values from a global index on, as for a shard of a large tensor: by a row of the native table (csrc/core/task.h).

    A name may be given by its digest.
    """
    tensor = torch.empty(count, dtype=getattr(torch, dtype))
    digest_of_name = name if isinstance(name, bytes) else name_id(name)
    distribution = scheme(kind, parameters).distribution(fastinit.Context(()))
    fill_native_row(tensor, distribution, seed=seed, name_id=digest_of_name, global_offset=first_index)
    return as_values(tensor)


def bits(values: Values) -> Values:
    """So that -0 differs from 0 and a NaN equals itself."""
    patterns: Values = values.view(f"u{values.itemsize}")
    return patterns


def assert_same(actual: Values, expected: Values) -> None:
    different = np.flatnonzero(bits(actual) != bits(expected))
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert different.size == 0, (
        f"{different.size} of {actual.size} differ, the first at {different[0]}: "
        f"{actual[different[0]]!r}, expected {expected[different[0]]!r}"
    )


def name_of_case(case: dict[str, Any]) -> str:
    return f"{case['kind']}({', '.join(case['parameters'])})"


def golden_cases() -> list[Any]:
    return [
        pytest.param(case, dtype, id=f"{name_of_case(case)}-{dtype}")
        for case in GOLDEN["distributions"]
        for dtype in DTYPES
    ]


# ---- Golden values ----


@pytest.mark.slow
def test_golden_file_is_what_the_reference_makes() -> None:
    assert make_golden.golden() == GOLDEN


def test_golden_file_covers_tails_mirrors_and_refusals() -> None:
    """The cases would lose their point if a change of parameters moved them to another branch of the format."""
    branches: set[str] = set()
    tails = 0
    for given, parameters in make_golden.CASES:
        kind, numbers = reference.simplified(given, parameters)
        branches.add(kind)
        if kind == "trunc_normal":
            mean, std, low, high = numbers
            of = reference.trunc_normal_constants(mean, std, low, high, "float32")
            branches.add("mirrored" if of.scale < 0 else "upright")
            branches.add("one side" if of.threshold == 0 else "two sides")
            word = reference.words(reference.stream(0, "w"), np.arange(1000))
            tails += int(reference.in_tail(reference.float_probability(of, word)).sum())
        elif kind != given:
            branches.add("level")
    assert branches == {
        *("constant", "uniform", "normal", "trunc_normal"),
        *("mirrored", "upright", "one side", "two sides", "level"),
    }
    assert tails >= 1000
    assert any(None in case["values"].values() for case in GOLDEN["distributions"])


@needs_native
@pytest.mark.parametrize("case", GOLDEN["distributions"], ids=name_of_case)
def test_native_equals_golden(isa: str, case: dict[str, Any]) -> None:
    parameters = tuple(float(parameter) for parameter in case["parameters"])
    for dtype in DTYPES:
        arguments = (case["kind"], parameters, dtype, case["seed"], case["name"])
        expected = case["values"][dtype]
        if expected is None:
            with pytest.raises(ValueError, match="no value of"):
                native(*arguments, 1)
            continue
        values = native(*arguments, GOLDEN["hashed"])
        assert make_golden.bit_patterns(values[: make_golden.COUNT]) == expected["first"], dtype
        assert make_golden.digest(values) == expected["sha256"], dtype
        later = native_from(GOLDEN["later_index"], *arguments, make_golden.COUNT)
        assert make_golden.bit_patterns(later) == expected["later"], dtype


@pytest.mark.parametrize("entry", GOLDEN["names"], ids=lambda entry: ascii(entry["name"])[:20])
def test_streams_equal_golden(entry: dict[str, Any]) -> None:
    name = entry["name"]
    assert name_id(name).hex() == entry["id"]
    for expected in entry["streams"]:
        stream = derive_stream(expected["seed"], name)
        assert f"{stream.key:016x} {stream.counter_high:016x}" == f"{expected['key']} {expected['counter_high']}"


@needs_native
@pytest.mark.parametrize("entry", GOLDEN["names"], ids=lambda entry: ascii(entry["name"])[:20])
def test_native_words_equal_golden(entry: dict[str, Any]) -> None:
    """U[-2^31, 2^31] in float64 shows a word's bits, which no rounding has touched: here those of the upper words."""
    for expected in entry["streams"]:
        values = native("uniform", (-(2.0**31), 2.0**31), "float64", expected["seed"], entry["name"], 2)
        upper = np.floor(values).astype(np.int64).astype(np.uint64).astype(np.uint32)
        words = expected["words"].split()
        assert [f"{int(word):08x}" for word in upper] == [words[1], words[3]]


# ---- Philox ----


def philox_vectors() -> list[Any]:
    lines = (VECTORS / "philox4x32_10.txt").read_text(encoding="utf-8").splitlines()
    rows = [[int(word, 16) for word in line.split()] for line in lines if not line.startswith("#")]
    return [pytest.param(row[:4], row[4:6], row[6:], id=f"{row[0]:08x}") for row in rows]


@pytest.mark.parametrize(("counter", "key", "block"), philox_vectors())
def test_philox_of_the_reference_has_the_published_answers(
    counter: list[int], key: list[int], block: list[int]
) -> None:
    words = reference.philox4x32([np.array([word], np.uint64) for word in counter], (key[0], key[1]))
    assert [int(word[0]) for word in words] == block


@needs_native
@pytest.mark.parametrize(("counter", "key", "block"), philox_vectors())
def test_native_philox_has_the_published_answers(counter: list[int], key: list[int], block: list[int]) -> None:
    assert _native.module is not None
    assert list(_native.module.philox4x32(counter, key)) == block


# ---- The reference's own arithmetic, against exact arithmetic ----


def test_reference_fma_rounds_once() -> None:
    """Against rationals: random operands, and sums that lie next to a tie, where two roundings would go wrong."""
    from fractions import Fraction

    random = np.random.default_rng(0)
    count = 20_000
    a = random.standard_normal(count).astype(np.float32)
    b = np.float32(1.0 + 2.0**-12)
    c = (random.standard_normal(count) * 2.0 ** random.integers(-40, 40, count)).astype(np.float32)
    c[::2] = (-a[::2] * b * (1 + 2.0 ** random.integers(-30, 0, c[::2].size))).astype(np.float32)
    twice_rounded = 0
    for x, y, z, result in zip(a, [b] * count, c, reference.fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert abs(Fraction(float(result)) - exact) <= Fraction(float(np.spacing(np.abs(result)))) / 2
        twice_rounded += np.float32(np.float32(x * y) + z) != result
    assert twice_rounded > count // 100, "the operands do not tell one rounding from two"


def test_reference_fma_breaks_ties_that_double_arithmetic_misses() -> None:
    """1 + 2^-24 + 2^-70 lies above a tie of float32; a sum in double rounds onto the tie, and from there to even."""
    a = np.array([2.0**-35, -(2.0**-35)], np.float32)
    c = np.array([1.0 + 2.0**-23, 1.0 + 2.0**-23], np.float32)
    tie = reference._fma(a.astype(np.float64), np.float64(2.0**-35), c.astype(np.float64) - 2.0**-24)
    assert tie.tolist() == [1.0 + 2.0**-23, 1.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reference_rounding_equals_torch(dtype: DType) -> None:
    """Over floats of all exponents, and all that lie at or next to a tie."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    for step in (0x8000, 0x1000):  # half a unit in the last place of bfloat16, of float16
        near = random.integers(0, 2**32, 300_000, dtype=np.uint32) // step * step
        patterns = np.concatenate([patterns, near - 1, near, near + 1])
    floats = patterns.view(np.float32)
    floats = floats[~np.isnan(floats)]
    expected = as_values(torch.from_numpy(floats).to(getattr(torch, dtype)))
    assert_same(reference.round_to_dtype(floats, dtype), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_reference_bounds_are_the_nearest_numbers_inside(dtype: DType) -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        x = float(random.standard_normal() * 10.0 ** random.uniform(-48, 4))
        lower, upper = reference.bounds(x, math.inf, dtype).lower, reference.bounds(-math.inf, x, dtype).upper
        assert lower >= x > reference.next_number(lower, dtype, -math.inf)
        assert upper <= x < reference.next_number(upper, dtype, math.inf)
        assert reference.nearest(lower, dtype) == lower and reference.nearest(upper, dtype) == upper
        if lower == upper:
            assert reference.bounds(x, x, dtype) == (x, x)
        else:
            with pytest.raises(reference.Refused):
                reference.bounds(x, math.nextafter(x, math.inf), dtype)


# ---- Native equals the reference ----

PLAIN: tuple[tuple[Kind, tuple[float, ...]], ...] = (
    ("constant", (0.1,)),
    ("uniform", (-0.25, 1.0)),
    ("normal", (0.1, 0.7)),
    ("trunc_normal", (0.0, 1.0, -2.0, 1.5)),
    ("trunc_normal", (0.0, 1.0, 4.4, math.inf)),  # every value takes its second word
)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_equals_reference_at_all_small_sizes(isa: str, dtype: DType) -> None:
    for kind, parameters in PLAIN:
        expected = reference.sample(kind, parameters, dtype, 3, "w", np.arange(300))
        for size in range(301):
            assert_same(native(kind, parameters, dtype, 3, "w", size), expected[:size])


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_writes_its_elements_only_at_any_alignment(isa: str, dtype: DType) -> None:
    """Into the middle of a tensor full of a marker, from every offset of a cache line."""
    for kind, parameters in PLAIN:
        expected = reference.sample(kind, parameters, dtype, 3, "w", np.arange(157))
        for begin in range(65):
            whole = torch.full((begin + 157 + 70,), 77.0, dtype=getattr(torch, dtype))
            tensor = whole[begin : begin + 157]
            fastinit.init_([tensor], scheme(kind, parameters), names=["w"], seed=3, backend="native")
            assert_same(as_values(tensor), expected)
            assert (whole[:begin] == 77.0).all() and (whole[begin + 157 :] == 77.0).all()


INDICES = (1, 2, 3, 4, 63, 2**31 - 7, 2**32 - 9, 2**34 - 5, 2**40 + 1, 2**62 + 3)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_equals_reference_from_any_global_index(isa: str, dtype: DType) -> None:
    """Around the places where an index, its word or its block outgrows 32 bits, unaligned."""
    for kind, parameters in PLAIN:
        for first_index in INDICES:
            expected = reference.sample(kind, parameters, dtype, 3, "w", first_index + np.arange(100, dtype=np.uint64))
            assert_same(native_from(first_index, kind, parameters, dtype, 3, "w", 100), expected)


@cache
def many_normals(dtype: DType) -> Values:
    return reference.sample("normal", (0.0, 1.0), dtype, 11, "many", np.arange(4_000_000))


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_equals_reference_on_millions_of_normals(isa: str, dtype: DType) -> None:
    """Enough values that about ninety take their second word."""
    values = native("normal", (0.0, 1.0), dtype, 11, "many", 4_000_000)
    assert_same(values, many_normals(dtype))
    in_tails = int((np.abs(reference.widen(values, dtype)) > 4.24).sum())
    assert 40 < in_tails < 160 or dtype.startswith("float8")  # whose numbers are too far apart there


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sigmas",
    [
        (4.5, math.inf),
        (-math.inf, -4.5),
        (4.2, 4.3),
        (-4.3, -4.2),
        (6.0, math.inf),
        (-6.0, 6.0),
        (-5.0, 0.1),
        (5.5, 5.6),
    ],
    ids=str,
)
def test_native_equals_reference_in_the_tails(isa: str, dtype: DType, sigmas: tuple[float, float]) -> None:
    parameters = (0.0, 1.0, *sigmas)
    expected = tail_values(sigmas, dtype)
    if expected is None:  # no number of an 8-bit dtype lies there
        with pytest.raises(ValueError, match="lies within"):
            native("trunc_normal", parameters, dtype, 5, "tail", 100_003)
        return
    assert_same(native("trunc_normal", parameters, dtype, 5, "tail", 100_003), expected)


@cache
def tail_values(sigmas: tuple[float, float], dtype: DType) -> Values | None:
    return sample_or_none("trunc_normal", (0.0, 1.0, *sigmas), dtype, 5, "tail", 100_003)


def sample_or_none(
    kind: Kind, parameters: tuple[float, ...], dtype: DType, seed: int, name: str, count: int
) -> Values | None:
    """The reference's first values; None where it refuses. Not cached here, for -0 is no key beside 0."""
    try:
        return reference.sample(kind, parameters, dtype, seed, name, np.arange(count))
    except reference.Refused:
        return None


# ---- Chosen words ----

_INVERSES = pow(0xD2511F53, -1, 2**32), pow(0xCD9E8D57, -1, 2**32)
_ROUND_KEYS = [(round_ * 0x9E3779B9 & 0xFFFFFFFF, round_ * 0xBB67AE85 & 0xFFFFFFFF) for round_ in range(10)]


def philox_counter(block: tuple[int, ...], key: int) -> tuple[int, ...]:
    """The counter whose block is given: the rounds of Philox4x32-10 backwards."""
    o0, o1, o2, o3 = block
    for bump0, bump1 in reversed(_ROUND_KEYS):
        c0 = o3 * _INVERSES[0] & 0xFFFFFFFF
        c2 = o1 * _INVERSES[1] & 0xFFFFFFFF
        c1 = o0 ^ (c2 * 0xCD9E8D57 >> 32) ^ (key + bump0 & 0xFFFFFFFF)
        c3 = o2 ^ (c0 * 0xD2511F53 >> 32) ^ ((key >> 32) + bump1 & 0xFFFFFFFF)
        o0, o1, o2, o3 = c0, c1, c2, c3
    return o0, o1, o2, o3


@cache
def place_of(block: tuple[int, ...], seed: int, first_key: int = 0) -> tuple[bytes, reference.Stream, int]:
    """Digest of a name, its stream under a seed, and a word's index, where that stream has a given block of words.

    Of sixteen streams one has the block at an index below 2^62, so keys are tried until one does.
    """
    for key in range(first_key, first_key + 1000):
        counter = philox_counter(block, key)
        number, counter_high = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
        if number < 2**60:
            break
    digest = philox_counter((key & 0xFFFFFFFF, key >> 32, counter[2], counter[3]), seed)
    name_digest = b"".join(word.to_bytes(4, "little") for word in digest)
    return name_digest, reference.Stream(key, counter_high), 4 * number


EDGES: tuple[tuple[Kind, tuple[float, ...]], ...] = (
    ("uniform", (-1.0, 1.0)),
    ("uniform", (0.0, 1.0)),
    ("uniform", (-0.3, 7.1)),
    ("normal", (0.0, 1.0)),
    ("normal", (0.5, 0.02)),
    ("trunc_normal", (0.0, 1.0, -2.0, 2.0)),
    ("trunc_normal", (0.0, 1.0, -8.0, 8.0)),
    ("trunc_normal", (0.0, 1.0, -1.0, 3.0)),
    ("trunc_normal", (0.0, 1.0, -1.0, 0.1)),
    ("trunc_normal", (0.0, 1.0, 3.7, math.inf)),  # words whose p is the very one where tails begin
    ("trunc_normal", (0.0, 1.0, -math.inf, -3.7)),
    ("trunc_normal", (0.0, 1.0, 6.0, math.inf)),
    ("trunc_normal", (0.0, 1.0, -math.inf, -5.0)),
    ("trunc_normal", (0.1, 0.02, 0.06, math.inf)),
    ("trunc_normal", (0.0, 1.0, -0.0, 3.0)),  # a zero of one sign meets a bound of the other
    ("trunc_normal", (0.0, 1.0, -3.0, -0.0)),
)


def edge_words(kind: Kind, parameters: tuple[float, ...]) -> list[int]:
    """32-bit words where something changes: the ends, the middle, the threshold, the beginnings of the tails."""
    centers = {0, 2**31}
    tails: set[int] = set()  # less sharp: where p is rounded, several words are the first of a tail
    if kind != "uniform":
        if kind == "normal":
            of = reference.normal_constants(*parameters[:2])
        else:
            mean, std, low, high = parameters
            of = reference.trunc_normal_constants(mean, std, low, high, "float32")
        centers.add(of.threshold >> 32)
        for beyond, sign in ((of.below_lower, 1), (of.above_upper, -1)):
            distance = round((1.5 * 2.0**-17 - beyond) / of.mass * 2.0**32)
            if 0 <= distance < 2**32:
                tails.add(distance if sign > 0 else 2**32 - 1 - distance)
    edges = {center + step for center in centers for step in range(-4, 5)}
    edges |= {tail + step for tail in tails for step in (*range(-4, 5), *range(-64, 65, 8))}
    return sorted(edge % 2**32 for edge in edges)


EDGE_NAMES = [f"{kind}{parameters}" for kind, parameters in EDGES]


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("edge", range(len(EDGES)), ids=EDGE_NAMES)
def test_native_equals_reference_at_words_on_the_edge(isa: str, edge: int) -> None:
    """Words that 2^32 draws would hardly meet: the stream is made for them, Philox being a bijection."""
    for digest, index, dtype, expected in values_on_the_edge(edge):
        assert_same(native_from(index, *EDGES[edge], dtype, 9, digest, 4), expected)


@cache
def values_on_the_edge(edge: int) -> list[tuple[bytes, int, DType, Values]]:
    """The reference's, once for all instruction sets: the digest of a name, an index, and from there four values."""
    kind, parameters = EDGES[edge]
    words = edge_words(kind, parameters)
    words += [0] * (-len(words) % 4)
    found = []
    for begin in range(0, len(words), 4):
        block = tuple(words[begin : begin + 4])
        digest, stream, index = place_of(block, seed=9)
        assert reference.words(stream, index + np.arange(4)).tolist() == list(block)
        for dtype in DTYPES[:1] + DTYPES[2:]:
            expected = reference.sample_stream(kind, parameters, dtype, stream, index + np.arange(4))
            found.append((digest, index, dtype, expected))
    return found


@needs_native
@pytest.mark.parametrize(("word", "key", "which"), [(0, 16305327, 1), (2**32 - 1, 14887120, 3)])
def test_native_equals_reference_where_both_words_are_extreme(isa: str, word: int, key: int, which: int) -> None:
    """The farthest word, with a second word below 2^14: with these keys, found by trying 2^24 of them."""
    digest, stream, index = place_of((word,) * 4, seed=9, first_key=key)
    assert stream.key == key
    second = int(reference.tail_words(stream, [index + which])[0])
    assert second < 2**14 and second % 2 == 0
    for kind, parameters in EDGES:
        if kind == "uniform":
            continue
        expected = reference.sample_stream(kind, parameters, "float32", stream, index + np.arange(4))
        assert_same(native_from(index, kind, parameters, "float32", 9, digest, 4), expected)
    farthest = native_from(index, "normal", (0.0, 1.0), "float32", 9, digest, 4)[which]
    assert 7.9 < abs(farthest) < 8.2


@needs_native
@pytest.mark.parametrize("edge", range(len(EDGES)), ids=EDGE_NAMES)
def test_native_equals_reference_at_long_words_on_the_edge(isa: str, edge: int) -> None:
    for digest, index, expected in long_values_on_the_edge(edge):
        assert_same(native_from(index, *EDGES[edge], "float64", 9, digest, 2), expected)


@cache
def long_values_on_the_edge(edge: int) -> list[tuple[bytes, int, Values]]:
    kind, parameters = EDGES[edge]
    long_words = [word << 32 | low for word in edge_words(kind, parameters) for low in (0, 2**32 - 1)]
    if kind == "normal":
        long_words += [0, 1, 2, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, 2**64 - 2]
    elif kind == "trunc_normal":
        mean, std, low, high = parameters
        threshold = reference.trunc_normal_constants(mean, std, low, high, "float64").threshold
        long_words += [(threshold + step) % 2**64 for step in (-2, -1, 0, 1)]
    found = []
    for first, second in zip(long_words[::2], long_words[1::2], strict=True):
        block = (first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32)
        digest, stream, word_index = place_of(block, seed=9)
        index = word_index // 2 + np.arange(2)
        assert reference.double_words(stream, index).tolist() == [first, second]
        expected = reference.sample_stream(kind, parameters, "float64", stream, index)
        found.append((digest, int(index[0]), expected))
    return found


# ---- Any numbers at all ----

# Where one formula takes over from another, and where a careless order of operations would overflow or lose a bit.
CORNERS: tuple[tuple[Kind, tuple[float, ...]], ...] = (
    ("uniform", (1e308, 1.7e308)),
    ("uniform", (-1.7e308, -1e308)),
    ("uniform", (5e-324, 1.5e-323)),
    ("uniform", (65503.0, 65504.0)),
    ("trunc_normal", (0.0, 1.0, -(2.0**-8), 2.0**-8)),
    ("trunc_normal", (0.0, 1.0, -(2.0**-8), math.nextafter(2.0**-8, 1.0))),
    ("trunc_normal", (0.0, 1.0, -math.nextafter(2.0**-8, 1.0), 2.0**-8)),
    ("trunc_normal", (0.0, 1.0, 6.0, 7.0)),
    ("trunc_normal", (0.0, 1.0, math.nextafter(6.0, 7.0), 7.0)),
    ("trunc_normal", (0.0, 1.0, -7.0, -6.0)),
    ("trunc_normal", (0.0, 1.0, -7.0, -math.nextafter(6.0, 7.0))),
    ("trunc_normal", (0.0, 1.0, -1.0, 0.0)),
    ("trunc_normal", (0.0, 1.0, -1.0, -0.0)),
    ("trunc_normal", (0.0, 1.0, 0.0, 1.0)),
    ("trunc_normal", (0.0, 1.0, -0.0, 1.0)),
    ("trunc_normal", (0.0, 1.0, -1.0, 1e-17)),
    ("trunc_normal", (0.0, 1.0, -1.0, 5e-324)),
    ("trunc_normal", (0.0, 1.0, -5e-324, 1.0)),
    ("trunc_normal", (0.0, 1.0, 2.25, 2.26)),
    ("trunc_normal", (0.0, 1.0, 5.0, math.nextafter(5.0, 6.0))),  # a mass of nothing
    ("trunc_normal", (0.0, 1.0, -37.5, 37.5)),
    ("trunc_normal", (0.0, 1.0, 1.0, math.nextafter(37.5, 38.0))),
    ("trunc_normal", (0.0, 1.0, -1e300, 1e300)),
    ("trunc_normal", (0.0, 1e-300, -1e300, 1e300)),
    ("trunc_normal", (0.0, 1.0, -math.inf, math.inf)),
    ("trunc_normal", (3.0, 0.0, -1.0, 1.0)),
    ("trunc_normal", (3.0, 0.0, 1.0, math.inf)),
    ("trunc_normal", (0.0, 1.0, 0.25, 0.25)),
)


@needs_native
@pytest.mark.parametrize(("kind", "parameters"), CORNERS, ids=str)
def test_native_equals_reference_in_corners(isa: str, kind: Kind, parameters: tuple[float, ...]) -> None:
    for dtype in DTYPES:
        arguments = (kind, parameters, dtype, 7, "w")
        if kind == "uniform" and max(map(abs, parameters)) > torch.finfo(getattr(torch, dtype)).max:
            with pytest.raises(ValueError, match=r"outside torch\."):
                native(*arguments, 1000)
            continue
        try:
            expected = reference.sample(*arguments, np.arange(1000))
        except reference.Refused:
            with pytest.raises(ValueError, match=r"no value of|6 sigma"):
                native(*arguments, 1000)
            continue
        assert_same(native(*arguments, 1000), expected)


_EXTREMES = (
    0.0,
    -0.0,
    5e-324,  # least of float64, float32, bfloat16 and float16, and numbers between them
    1e-310,
    1e-45,
    9.2e-41,
    1e-40,
    2e-38,
    6e-8,
    1e-8,
    2.0**-8,
    1.0 / 3.0,
    0.5,
    1.0,
    2.0,
    6.0,
    65504.0,
    65519.0,
    65520.0,
    3e38,
    3.4028234663852886e38,
    1e300,
    math.inf,
)


def any_number(random: np.random.Generator) -> float:
    way = random.integers(5)
    if way == 0:
        return float(random.choice(_EXTREMES)) * float(random.choice([-1.0, 1.0]))
    if way == 1:
        return float(random.standard_normal() * 10.0 ** random.uniform(-50, 45))
    if way == 2:
        return float(np.float16(random.standard_normal()))
    return float(random.standard_normal()) * (1.0 if way == 3 else 10.0)


def any_distribution(random: np.random.Generator) -> tuple[Kind, tuple[float, ...]]:
    kind: Kind = random.choice(["constant", "uniform", "normal", "trunc_normal", "trunc_normal", "trunc_normal"])
    if kind == "constant":
        return kind, (any_number(random),)
    if kind == "uniform":
        return kind, tuple(sorted((any_number(random), any_number(random))))
    mean, std = any_number(random), abs(any_number(random))
    if kind == "normal":
        return kind, (mean, std)
    bounds = sorted((any_number(random), any_number(random)))
    if random.integers(2) and math.isfinite(mean) and math.isfinite(std):
        bounds = sorted(mean + std * float(sigma) for sigma in 3.0 * random.standard_normal(2))
    return kind, (mean, std, *bounds)


# What fastinit refuses of itself, before the native code sees it: numbers that are not finite or not of the dtype.
_REFUSED_BEFORE = ("expected a finite number", "outside torch.", "overflows torch.", "NaN")


@needs_native
@pytest.mark.slow
def test_native_equals_reference_on_any_numbers(isa: str) -> None:
    """Random distributions, down to the least and up to the largest numbers: the same values, and the same refusals."""
    compared = refused = 0
    for case, arguments in enumerate(any_arguments()):
        try:
            values = native(*arguments)
        except ValueError as error:
            if not any(text in str(error) for text in _REFUSED_BEFORE):
                refused += 1
                assert any_values(case) is None, arguments
            continue
        compared += 1
        expected = any_values(case)
        assert expected is not None, arguments
        try:
            assert_same(values, expected)
        except AssertionError as error:
            raise AssertionError(f"{arguments}: {error}") from error
    assert compared > 2000 and refused > 100


Arguments = tuple[Kind, tuple[float, ...], DType, int, str, int]


@cache
def any_arguments() -> list[Arguments]:
    random = np.random.default_rng(0)
    every: list[Arguments] = []
    for _ in range(4000):
        distribution, dtype = any_distribution(random), random.choice(DTYPES)
        every.append((*distribution, dtype, 7, "w", 1000 if random.integers(2) else int(random.integers(1, 70))))
    return every


@cache
def any_values(case: int) -> Values | None:
    """The reference's, once for all instruction sets."""
    return sample_or_none(*any_arguments()[case])


@pytest.mark.slow
@needs_native
def test_native_equals_reference_on_zeros_of_either_sign(isa: str) -> None:
    """Where values, bounds and means are zeros: which of the two a value is, is part of the format as well."""
    for arguments, expected in zeros_of_either_sign():
        if expected is None:
            with pytest.raises(ValueError, match=r"no value of|6 sigma"):
                native(*arguments)
        else:
            assert_same(native(*arguments), expected)


@cache
def zeros_of_either_sign() -> list[tuple[Arguments, Values | None]]:
    """With the reference's values, once for all instruction sets."""
    zeros = (0.0, -0.0, 1e-45, -1e-45)
    normals = list(itertools.product(zeros, (0.0, 1e-45, 1e-30)))
    bounds = [(low, high) for low, high in itertools.product(zeros, zeros) if low <= high]
    distributions: list[tuple[Kind, tuple[float, ...]]] = [
        *(("normal", normal) for normal in normals),
        *(("uniform", each) for each in bounds),
        *(("trunc_normal", (*normal, *each)) for normal in normals for each in bounds),
    ]
    every: list[Arguments] = [(*each, dtype, 7, "w", 40) for dtype in DTYPES for each in distributions]
    return [(arguments, sample_or_none(*arguments)) for arguments in every]


def _available_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


@needs_native
@pytest.mark.slow  # uniform values, which are the fastest
@pytest.mark.skipif(_available_bytes() < 8 * 2**30, reason="needs 4.3 GB of memory, and a margin")
def test_native_equals_reference_in_a_tensor_beyond_32_bits() -> None:
    count = 2**32 + 1000
    values = native("uniform", (-1.0, 1.0), "float8_e4m3fn", 1, "large", count)
    random = np.random.default_rng(0)
    around = [np.arange(each - 500, each + 500) for each in (2**30, 2**31, 2**32, count - 500)]
    index = np.concatenate([np.arange(1000), *around, random.integers(0, count, 200_000)])
    assert_same(values[index], reference.sample("uniform", (-1.0, 1.0), "float8_e4m3fn", 1, "large", index))


@needs_native
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 65520.0, 65519.99, 1e38, 2.0**-150, 1e-46])
def test_native_constant_converts_as_torch_does(value: float) -> None:
    for dtype in DTYPES:
        values = native("constant", (value,), dtype, 0, "w", 33)
        assert_same(values, reference.sample("constant", (value,), dtype, 0, "w", np.arange(33)))
        if math.isnan(value) and dtype == "bfloat16":
            assert (values == 0x7FC0).all()  # torch's vector code writes another quiet NaN than its scalar code
            continue
        by_way_of = torch.float64 if dtype == "float64" else torch.float32
        assert_same(values, as_values(torch.full((33,), value, dtype=by_way_of).to(getattr(torch, dtype))))


def test_distributions_of_the_engine_are_those_of_the_format() -> None:
    """The reference's kinds, and the order of their parameters, which the native table holds by position."""
    numbers: dict[type[distributions.Sampled], dict[str, float]] = {  # csrc/core/task.h
        distributions.Constant: {"value": 0.5},
        distributions.Uniform: {"low": -1.0, "high": 2.0},
        distributions.Normal: {"center": 3.0, "sigma": 4.0},
        distributions.TruncNormal: {"center": 0.0, "sigma": 1.0, "low": -2.0, "high": 5.0},
        distributions.Diagonal: {"value": 0.5, "first": 1, "step": 3, "length": 2, "period": 12},
    }
    for code, (kind, of_kind) in enumerate(numbers.items()):
        assert kind.code == code and kind(**of_kind).parameters() == tuple(of_kind.values())
    assert set(get_args(Kind)) == {"constant", "uniform", "normal", "trunc_normal"}
