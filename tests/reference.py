"""The stream format in NumPy: the twin of the native code, which must equal it to the bit.

Written from docs/STREAM.md alone, section by section, without looking at the native code; of that it reads only
csrc/core/normal_table.h, whose coefficients are part of the format. Plain rather than fast. Imports neither torch nor
fastinit. Arrays named `index` hold 64-bit indices into the global tensor; those named `word` hold words of the stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["constant", "uniform", "normal", "trunc_normal"]
DType = Literal[
    "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"
]

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Values = NDArray[Any]  # float32, float64 or float16; bfloat16 and 8-bit floats as their bits, in uint16 and uint8

STREAM_VERSION = 1
TABLE_PATH = Path(__file__).resolve().parents[1] / "csrc" / "core" / "normal_table.h"

_UINT32 = 0xFFFFFFFF
_UINT64 = 0xFFFFFFFFFFFFFFFF
_CHUNK = 1 << 16  # values a step: large enough to forget NumPy's overhead, small enough for the cache


class Refused(ValueError):
    """The format says that a distribution has no values."""


# ---- Section 1: from seed and name to a stream ----


class Stream(NamedTuple):
    """Two 64-bit integers: the Philox key, and the upper half of every counter."""

    key: int
    counter_high: int


def philox4x32(counter: Sequence[U64], key: tuple[int, int]) -> list[U64]:
    """Philox4x32-10 on arrays of blocks: four counter words and four output words, each in the low half of a uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low = np.uint64(_UINT32)
    high = np.uint64(32)
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> high) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> high) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0 = (k0 + 0x9E3779B9) & _UINT32
        k1 = (k1 + 0xBB67AE85) & _UINT32
    return [c0, c1, c2, c3]


def name_id(name: str) -> bytes:
    """The 128-bit digest of a canonical name."""
    person = b"fastinit" + STREAM_VERSION.to_bytes(8, "little")
    return blake2b(name.encode("utf-8"), digest_size=16, person=person).digest()


def stream(seed: int, name: str) -> Stream:
    """The stream of a canonical name under a 64-bit seed."""
    digest = name_id(name)
    counter = [np.array([int.from_bytes(digest[at : at + 4], "little")], np.uint64) for at in (0, 4, 8, 12)]
    w0, w1, w2, w3 = (int(word[0]) for word in philox4x32(counter, (seed & _UINT32, seed >> 32)))
    return Stream(w0 | w1 << 32, w2 | w3 << 32)


# ---- Section 2: from a stream to words ----


def words(of: Stream, indices: ArrayLike) -> U32:
    """The words of a stream at any 64-bit indices."""
    index = np.asarray(indices, np.uint64)
    every_block = index >> np.uint64(2)
    begins = np.ones(index.shape, bool)
    begins[1:] = every_block[1:] != every_block[:-1]
    block = every_block[begins]  # once for neighbours that share it
    counter = [
        block & np.uint64(_UINT32),
        block >> np.uint64(32),
        np.full_like(block, of.counter_high & _UINT32),
        np.full_like(block, of.counter_high >> 32),
    ]
    output = np.stack(philox4x32(counter, (of.key & _UINT32, of.key >> 32)), axis=-1).astype(np.uint32)
    chosen: U32 = output[np.cumsum(begins) - 1, (index & np.uint64(3)).astype(np.intp)]
    return chosen


def tail_words(of: Stream, indices: ArrayLike) -> U32:
    """The second word of each value, for those that lie in a tail."""
    return words(Stream(of.key, of.counter_high ^ _UINT64), indices)


def double_words(of: Stream, indices: ArrayLike) -> U64:
    """The 64-bit words of float64 values."""
    first = np.asarray(indices, np.uint64) * np.uint64(2)
    both = words(of, np.stack([first, first + np.uint64(1)], axis=-1).ravel()).astype(np.uint64)
    return both[0::2] | both[1::2] << np.uint64(32)


# ---- Notation: the float operations that NumPy lacks ----


def fma(a: F32, b: np.float32, c: F32 | np.float32) -> F32:
    """a * b + c in float32, rounded once.

    The product is exact in double. The sum in double is rounded to odd (an inexact one gets an odd last bit), after
    which rounding to float, with 29 bits fewer, is as if from the exact sum (Boldo, Melquiond, "Emulation of FMA and
    correctly rounded sums", IEEE TC 2008).
    """
    return _fma(a.astype(np.float64), np.float64(b), np.asarray(c, np.float64))


def _fma(a: F64, b: F64 | np.float64, c: F64) -> F32:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a * b
        total = product + c
        c_part = total - product
        error = (product - (total - c_part)) + (c - c_part)  # Knuth's TwoSum: total + error is exact
        inexact = (error != 0) & np.isfinite(total)
        even = (np.ascontiguousarray(total).view(np.uint64) & np.uint64(1)) == 0
        to_odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return np.where(inexact & even, to_odd, total).astype(np.float32)


def to_float(x: float) -> np.float32:
    """A double rounded to float."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(x)


# ---- Section 6: rounding ----


class Float8(NamedTuple):
    """An 8-bit float: its numbers that are not negative, in the order of their bits, and what its other bits mean."""

    numbers: F64
    beyond: int  # the bits of what is rounded up from the greatest number; where that saturates, its own
    nan: int
    one_zero: bool


@cache
def float8(dtype: DType) -> Float8 | None:
    """The numbers of an 8-bit float; None for other dtypes. Bits count up with the numbers, as in every IEEE format."""
    formats = {"float8_e4m3fn": (3, 7), "float8_e5m2": (2, 15), "float8_e4m3fnuz": (3, 8), "float8_e5m2fnuz": (2, 16)}
    if dtype not in formats:
        return None
    mantissa, bias = formats[dtype]
    bits = np.arange(128)
    exponent, fraction = bits >> mantissa, (bits & ((1 << mantissa) - 1)) * 2.0**-mantissa
    every = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    one_zero = dtype.endswith("fnuz")
    count = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}.get(dtype, 0x80)
    beyond = 0x7E if dtype == "float8_e4m3fn" else count
    return Float8(every[:count], beyond, 0x80 if one_zero else 0x7F, one_zero)


def _round_to_float8(x: F32, of: Float8) -> Values:
    size = np.abs(x).astype(np.float64)
    step = of.numbers[-1] - of.numbers[-2]
    steps = np.append(of.numbers, of.numbers[-1] + step)
    upper = np.clip(np.searchsorted(steps, size), 1, len(of.numbers))  # the least number that is not below, or beyond
    middle = 0.5 * (steps[upper - 1] + steps[upper])
    goes_up = (size > middle) | ((size == middle) & (upper % 2 == 0))
    bits = np.where(goes_up, upper, upper - 1)
    bits = np.where(bits == len(of.numbers), of.beyond, bits)
    bits = np.where(np.isnan(x), of.nan, bits)
    signed = np.signbit(x) & ~(of.one_zero & ((bits == 0) | (bits == 0x80)))
    return np.where(signed, bits | 0x80, bits).astype(np.uint8)


def round_to_dtype(x: F32, dtype: DType) -> Values:
    """Float values in the dtype of the parameter, to nearest even."""
    if (of := float8(dtype)) is not None:
        return _round_to_float8(x, of)
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return x.astype(np.float16)
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        rounded = (bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
        quiet_nan = bits >> np.uint64(16) | np.uint64(0x40)
        return np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)
    return x


def widen(values: Values, dtype: DType) -> F64:
    """Values of a dtype as doubles, exactly; what lies beyond the greatest 8-bit float as an infinity."""
    if (of := float8(dtype)) is not None:
        every = np.append(of.numbers, np.full(129 - len(of.numbers), math.inf))
        negative = values >= (0x81 if of.one_zero else 0x80)
        return np.where(negative, -1.0, 1.0) * every[np.where(negative, values & 0x7F, values)]
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


# ---- Section 3: bounds ----


class Bounds(NamedTuple):
    lower: float
    upper: float


def nearest(x: float, dtype: DType) -> float:
    """x rounded to the dtype to nearest even, by way of float; as a double."""
    if dtype == "float64":
        return x
    rounded = float(widen(round_to_dtype(np.array([to_float(x)]), dtype), dtype)[0])
    return math.copysign(rounded, x)  # where both infinities, or both zeros, have the same bits


def next_number(x: float, dtype: DType, towards: float) -> float:
    """The neighbour of x, itself of the dtype, in the direction of an infinity. A zero keeps the sign of x."""
    if dtype == "float32":
        return float(np.nextafter(np.float32(x), np.float32(towards)))
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return float(np.nextafter(np.float16(x), np.float16(towards)))
    if (of := float8(dtype)) is not None:
        numbers = [-math.inf, *-of.numbers[:0:-1], *of.numbers, math.inf]
        if towards > 0.0:
            return next(number for number in numbers if number > x)
        return next(number for number in reversed(numbers) if number < x)
    if x == 0.0:
        return math.copysign(2.0**-133, towards)
    # bfloat16 is the upper half of a float: its bits count the numbers of one sign.
    bits = round_to_dtype(np.array([x], np.float32), "bfloat16")
    away_from_zero = (x > 0.0) == (towards > 0.0)
    bits = bits + np.uint16(1) if away_from_zero else bits - np.uint16(1)
    return float(widen(bits, "bfloat16")[0])


def bounds(low: float, high: float, dtype: DType) -> Bounds:
    """[low, high] rounded inward."""
    lower, upper = nearest(low, dtype), nearest(high, dtype)
    if low == high:  # where one may be -0
        return Bounds(lower, lower)
    if lower < low:
        lower = next_number(lower, dtype, math.inf)
    if upper > high:
        upper = next_number(upper, dtype, -math.inf)
    lower = 0.0 if lower == 0.0 else lower
    upper = -0.0 if upper == 0.0 else upper
    if lower > upper:
        raise Refused(f"no {dtype} lies in [{low!r}, {high!r}]")
    return Bounds(lower, upper)


def clamp(x: Values, limits: Bounds) -> Values:
    """x raised to lower and lowered to upper; on a tie of zeros, the bound's own."""
    lower, upper = x.dtype.type(limits.lower), x.dtype.type(limits.upper)
    x = np.where(x > lower, x, lower)
    return np.where(x < upper, x, upper)


# ---- Section 3: constant and uniform ----


def constant(value: float, dtype: DType, count: int) -> Values:
    if dtype == "float64":
        return np.full(count, value, np.float64)
    return round_to_dtype(np.full(count, to_float(value), np.float32), dtype)


class UniformConstants(NamedTuple):
    scale: float
    center: float
    limits: Bounds


def uniform_constants(low: float, high: float, dtype: DType) -> UniformConstants:
    return UniformConstants(0.5 * high - 0.5 * low, 0.5 * low + 0.5 * high, bounds(low, high, dtype))


def uniform_float(of: UniformConstants, word: U32) -> F32:
    t = (word | np.uint32(1)).view(np.int32).astype(np.float32)
    return clamp(fma(t * np.float32(2.0**-31), to_float(of.scale), to_float(of.center)), of.limits)


def uniform_double(of: UniformConstants, word: U64) -> F64:
    t = (word | np.uint64(1)).view(np.int64).astype(np.float64)
    return clamp(t * 2.0**-63 * of.scale + of.center, of.limits)


# ---- Section 3: normal and truncated normal ----


class NormalConstants(NamedTuple):
    scale: float
    center: float
    mass: float
    below_lower: float
    above_upper: float
    threshold: int
    limits: Bounds


def normal_constants(mean: float, std: float) -> NormalConstants:
    return NormalConstants(std, mean, 1.0, 0.0, 0.0, 1 << 63, Bounds(-math.inf, math.inf))


def simplified(kind: Kind, parameters: Sequence[float]) -> tuple[Kind, tuple[float, ...]]:
    """A truncated normal as the uniform distribution that the format takes it for, if it does; all others unchanged."""
    if kind != "trunc_normal":
        return kind, tuple(parameters)
    mean, std, low, high = parameters
    if std == 0.0 or low == high:
        moved = min(max(mean, low), high)
        return "uniform", (moved, moved)
    a, b = _over((low - mean), std), _over((high - mean), std)
    if a >= -(2.0**-8) and b <= 2.0**-8:
        return "uniform", (low, high)
    if a > 6.0 or b < -6.0:
        raise Refused(f"[{low!r}, {high!r}] lies more than 6 sigma to one side of {mean!r}")
    return kind, (mean, std, low, high)


def _over(numerator: float, denominator: float) -> float:
    with np.errstate(over="ignore", under="ignore"):  # Python's own division would do, but for its exceptions
        return float(np.float64(numerator) / np.float64(denominator))


def trunc_normal_constants(mean: float, std: float, low: float, high: float, dtype: DType) -> NormalConstants:
    """The constants of a truncated normal that `simplified` left one."""
    a, b = _over((low - mean), std), _over((high - mean), std)
    scale = std
    if b <= 0.0:
        a, b = -b, -a
        scale = -std
    above_upper = normal_tail(b)
    if a >= 0.0:
        below_lower = 0.0
        mass = normal_tail(a) - above_upper
        threshold = 0
    else:
        below_lower = normal_tail(-a)
        mass = 1.0 - below_lower - above_upper
        share = (0.5 - below_lower) / mass
        threshold = _UINT64 if share >= 1.0 else math.floor(share * 2.0**64)
    return NormalConstants(scale, mean, mass, below_lower, above_upper, threshold, bounds(low, high, dtype))


class Side(NamedTuple):
    """Where a word lies: on which side of the mean, how far from that side's end, and what mass lies beyond that."""

    negative: NDArray[np.bool_]
    distance: NDArray[Any]  # uint32 or uint64, as the word
    beyond: F64


def side(of: NormalConstants, word: NDArray[Any], threshold: int) -> Side:
    negative = word < word.dtype.type(threshold)
    distance = np.where(negative, word, ~word)
    return Side(negative, distance, np.where(negative, of.below_lower, of.above_upper))


def float_probability(of: NormalConstants, word: U32) -> F32:
    """The mass beyond a value, from its word alone."""
    at = side(of, word, of.threshold >> 32)
    offset = (at.beyond + of.mass * 2.0**-33).astype(np.float32)
    return fma(at.distance.astype(np.float32), to_float(of.mass * 2.0**-32), offset)


def in_tail(probability: F32) -> NDArray[np.bool_]:
    """Which values take a second word."""
    return probability < np.float32(1.5 * 2.0**-17)


def tail_probability(of: NormalConstants, word: U32, tail_word: U32) -> F32:
    """The mass beyond a value in a tail, from both its words."""
    at = side(of, word, of.threshold >> 32)
    distance = at.distance.astype(np.uint64) << np.uint64(32) | (tail_word | np.uint32(1)).astype(np.uint64)
    p = fma(distance.astype(np.float32), to_float(of.mass * 2.0**-64), at.beyond.astype(np.float32))
    return np.where(p < np.float32(2.0**-66), np.float32(2.0**-66), p)


def normal_float(of: NormalConstants, word: U32, probability: F32) -> F32:
    """The value of a word whose probability is known."""
    q = float_quantile(probability)
    q = np.where(side(of, word, of.threshold >> 32).negative, -q, q)
    return clamp(fma(q, to_float(of.scale), to_float(of.center)), of.limits)


def normal_double(of: NormalConstants, word: U64) -> F64:
    at = side(of, word, of.threshold)
    p = at.distance.astype(np.float64) * (of.mass * 2.0**-64) + (at.beyond + of.mass * 2.0**-65)
    q = double_quantile(np.where(p < 2.0**-66, 2.0**-66, p))
    with np.errstate(over="ignore", under="ignore"):
        return clamp(np.where(at.negative, -q, q) * of.scale + of.center, of.limits)


# ---- Section 4: Q(x), for x >= 0 ----


def normal_tail(x: float) -> float:
    """The mass of the standard normal beyond x."""
    if x > 37.5:
        return 0.0
    density = float.fromhex("0x1.9884533d43651p-2") * _exponential(-0.5 * x * x)
    if x < 2.25:
        term = total = x
        for n in range(1, 60):
            term = term * x * x / (2 * n + 1)
            total = total + term
        return 0.5 - density * total
    fraction = x
    for n in range(80, 0, -1):
        fraction = x + n / fraction
    return density / fraction


def _exponential(y: float) -> float:
    k = math.trunc(y * float.fromhex("0x1.71547652b82fep+0") - 0.5)
    r = (y - k * float.fromhex("0x1.62e42fee00000p-1")) - k * float.fromhex("0x1.a39ef35793c76p-33")
    s = 1.0
    for n in range(18, 0, -1):
        s = 1.0 + s * r / n
    return math.ldexp(s, k)


# ---- Section 5: the quantile by table ----


class QuantileTable(NamedTuple):
    """Coefficients by power and row."""

    first_row: int
    float_coefficients: F32
    double_coefficients: F64


@cache
def quantile_table() -> QuantileTable:
    text = re.sub(r"//[^\n]*", "", TABLE_PATH.read_text(encoding="utf-8"))
    first_row = int(_found(r"kQuantileFirstRow = (\d+);", text))
    rows = int(_found(r"kQuantileLastRow = (\d+);", text)) - first_row + 1
    tables = []
    for name, powers in (("kQuantileF32", 6), ("kQuantileF64", 15)):
        body = _found(rf"FASTINIT_TABLE\(\w+, {name}, {powers}, kQuantileRows\) = \{{(.*?)\}};", text)
        numbers = [float.fromhex(number) for number in re.findall(r"-?0x[0-9a-f.]+p[+-]\d+", body)]
        tables.append(np.array(numbers, np.float64).reshape(powers, rows))
    in_float = tables[0].astype(np.float32)
    assert (in_float == tables[0]).all(), "the float table's coefficients are floats"
    return QuantileTable(first_row, in_float, tables[1])


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    assert match is not None, f"{TABLE_PATH} has nothing like {pattern}"
    return match.group(1)


def float_quantile(p: F32) -> F32:
    table = quantile_table()
    bits = np.ascontiguousarray(p).view(np.uint32)
    row = (bits >> np.uint32(22)).astype(np.intp) - table.first_row
    m = (bits & np.uint32(0x003FFFFF) | np.uint32(0x3F800000)).view(np.float32)
    z = (m - np.float32(1.25)).astype(np.float64)
    coefficients = table.float_coefficients[:, row]
    q: F32 = coefficients[5] * _fma(z, np.float64(-15 / 32), np.ones_like(z))
    for power in range(4, -1, -1):
        q = _fma(q.astype(np.float64), z, coefficients[power].astype(np.float64))
    return q


def double_quantile(p: F64) -> F64:
    table = quantile_table()
    bits = np.ascontiguousarray(p).view(np.uint64)
    half_octave = (bits >> np.uint64(51)).astype(np.intp) - 2 * (1023 - 127)  # numbered as for a float
    row = half_octave - table.first_row
    m = (bits & np.uint64(0x0007FFFFFFFFFFFF) | np.uint64(0x3FF0000000000000)).view(np.float64)
    z = m - 1.25
    coefficients = table.double_coefficients[:, row]
    q: F64 = coefficients[14]
    for power in range(13, -1, -1):
        q = q * z + coefficients[power]
    return q


# ---- All together ----


def sample(kind: Kind, parameters: Sequence[float], dtype: DType, seed: int, name: str, indices: ArrayLike) -> Values:
    """The values of a parameter at any 64-bit global indices; bfloat16 as its bits.

    `parameters`: constant (value), uniform (low, high), normal (mean, std), trunc_normal (mean, std, low, high), with
    absolute bounds.

    Raises:
        Refused: no number of the dtype lies within the bounds, or they lie too far from the mean.
    """
    return sample_stream(kind, parameters, dtype, stream(seed, name), indices)


def sample_stream(kind: Kind, parameters: Sequence[float], dtype: DType, of: Stream, indices: ArrayLike) -> Values:
    """As `sample`, of a stream that is known."""
    index = np.asarray(indices, np.uint64)
    kind, parameters = simplified(kind, [float(number) for number in parameters])
    if kind == "constant":
        return constant(parameters[0], dtype, index.size)
    pieces: list[Values] = []
    if kind == "uniform":
        uniform = uniform_constants(parameters[0], parameters[1], dtype)
        for begin in range(0, max(index.size, 1), _CHUNK):
            piece = index[begin : begin + _CHUNK]
            if dtype == "float64":
                pieces.append(uniform_double(uniform, double_words(of, piece)))
            else:
                pieces.append(round_to_dtype(uniform_float(uniform, words(of, piece)), dtype))
        return np.concatenate(pieces)
    if kind == "normal":
        normal = normal_constants(parameters[0], parameters[1])
    else:
        mean, std, low, high = parameters
        normal = trunc_normal_constants(mean, std, low, high, dtype)
    for begin in range(0, max(index.size, 1), _CHUNK):
        piece = index[begin : begin + _CHUNK]
        if dtype == "float64":
            pieces.append(normal_double(normal, double_words(of, piece)))
            continue
        word = words(of, piece)
        p = float_probability(normal, word)
        tail = in_tail(p)
        p[tail] = tail_probability(normal, word[tail], tail_words(of, piece[tail]))
        pieces.append(round_to_dtype(normal_float(normal, word, p), dtype))
    return np.concatenate(pieces)


# ---- Section 7: complex numbers ----


def sample_complex(
    kind: Kind, parameters: Sequence[float], parts: DType, seed: int, name: str, indices: ArrayLike
) -> Values:
    """Values of a complex parameter, a row each: the real and the imaginary part, in float32 or float64.

    Raises:
        Refused: a truncated normal, which has no complex values.
    """
    if kind == "trunc_normal":
        raise Refused(kind)
    index = np.asarray(indices, np.uint64) * np.uint64(2)
    if kind == "normal":
        mean, std = parameters
        parameters = (mean, std / float.fromhex("0x1.6a09e667f3bcdp+0"))
    real = sample(kind, parameters, parts, seed, name, index)
    imaginary = sample(kind, parameters, parts, seed, name, index + np.uint64(1))
    if kind == "constant":
        imaginary = np.zeros_like(real)
    return np.stack([real, imaginary], axis=-1)
