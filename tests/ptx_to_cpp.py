"""Turns the PTX that nvcc emits for kernels into one C++ source: the second way to run our kernels without a GPU.

tests/cuda_on_cpu compiles the kernels' source with g++; this tool takes what nvcc made of that source, so that what
nvcc decided (contraction, rounding modes, alignment of vector accesses) is run and compared, too. The generated code
needs the same cuda_runtime.h, for threadIdx, barriers and shuffles.

    nvcc -O3 -arch=compute_90 -ptx --fmad=false -o kernel.ptx kernel.cu
    python tests/ptx_to_cpp.py kernel.ptx --entry-name fill_kernel -o kernel_ptx.cpp
    g++ -std=c++17 -O1 -ffp-contract=off -fno-strict-aliasing -Itests/cuda_on_cpu -c kernel_ptx.cpp

Every entry becomes `extern "C" void ptx_<name>(...)`. A scalar .param is a number of its type; a structure is
`struct <name>_Param<position>`, its bytes. Declare the function with just these types: by the x86-64 ABI a structure of
up to 16 bytes that holds floats travels in other registers than its bytes would.

An opcode, modifier or directive that is not known here ends the translation with an error: no guess. Registers hold
bits, and an instruction's type says how it reads them. Addresses are the host's, but a shared address is an offset
into the block's shared bytes. The generated code stops with a message where a GPU would fault (a misaligned access, one
beyond shared memory) and where PTX leaves the result open (division by zero, NaN to a 64-bit integer).
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PRELUDE = r"""
#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#pragma GCC diagnostic ignored "-Wtype-limits"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-label"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"

namespace {

[[noreturn]] void stop(int line, const char* what) {
  std::fprintf(stderr, "PTX line %d: %s (block %u %u %u, thread %u %u %u)\n", line, what, unsigned(blockIdx.x),
               unsigned(blockIdx.y), unsigned(blockIdx.z), unsigned(threadIdx.x), unsigned(threadIdx.y),
               unsigned(threadIdx.z));
  std::abort();
}

float as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
double as_float(uint64_t bits) { double x; std::memcpy(&x, &bits, 8); return x; }
// Single-precision arithmetic of a GPU makes one NaN only.
uint32_t bits_of(float x) { uint32_t bits = 0x7FFFFFFF; if (x == x) std::memcpy(&bits, &x, 4); return bits; }
uint64_t bits_of(double x) { uint64_t bits; std::memcpy(&bits, &x, 8); return bits; }

template <class T> uint64_t address_of(const T& variable) { return reinterpret_cast<uint64_t>(&variable); }
unsigned char* memory_at(uint64_t address, unsigned bytes, int line) {
  if (address % bytes != 0) stop(line, "misaligned access");
  return reinterpret_cast<unsigned char*>(address);
}
template <class Shared> unsigned char* shared_at(Shared& shared, uint64_t address, unsigned bytes, int line) {
  if (address % bytes != 0) stop(line, "misaligned access to shared memory");
  if (address >= shared.dynamic_from()) {
    address -= shared.dynamic_from();
    const uint64_t size = cuda_on_cpu::dynamic_shared_bytes;
    if (address >= size || size - address < bytes) stop(line, "beyond dynamic shared memory");
    return reinterpret_cast<unsigned char*>(cuda_on_cpu::dynamic_shared()) + address;
  }
  if (address >= sizeof(shared.bytes) || sizeof(shared.bytes) - address < bytes) stop(line, "beyond shared memory");
  return shared.bytes + address;
}
template <class T> T load(const unsigned char* at) { T value; std::memcpy(&value, at, sizeof(T)); return value; }
template <class T> void store(unsigned char* at, T value) { std::memcpy(at, &value, sizeof(T)); }

template <class T> T mul_hi(T a, T b) { return T((__int128(a) * b) >> (8 * sizeof(T))); }
uint64_t mul_hi(uint64_t a, uint64_t b) { return uint64_t(((unsigned __int128)a * b) >> 64); }
template <class T> T divisor(T a, T b, int line) {
  if (b == 0) stop(line, "division by zero");
  if (std::numeric_limits<T>::is_signed && b == T(-1) && a == std::numeric_limits<T>::min()) stop(line, "overflow");
  return b;
}
template <class T> T absolute(T a) { return a < 0 ? T(0 - uint64_t(a)) : a; }
template <class T> T smaller(T a, T b) { return b < a ? b : a; }
template <class T> T larger(T a, T b) { return a < b ? b : a; }
// A number wins over a NaN, and -0 is less than +0.
template <class F> F minimum(F a, F b) {
  return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? a : b) : smaller(a, b);
}
template <class F> F maximum(F a, F b) {
  return a != a ? b : b != b ? a : a == b ? (std::signbit(a) ? b : a) : larger(a, b);
}
template <class F> F or_nan(F a, F b, F otherwise) { return a != a || b != b ? a + b : otherwise; }
template <class T> T sign_bit(T bits) { return T(bits & T(1) << (8 * sizeof(T) - 1)); }
template <class T> T without_sign(T bits) { return T(bits ^ sign_bit(bits)); }

template <class T> T shift_left(T a, uint32_t by) { return by < 8 * sizeof(T) ? T(uint64_t(a) << by) : T(0); }
template <class T> T shift_right(T a, uint32_t by) { return by < 8 * sizeof(T) ? T(a >> by) : T(a < 0 ? -1 : 0); }
uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t by) {
  return uint32_t((uint64_t(high) << 32 | low) << by >> 32);
}
uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t by) { return uint32_t((uint64_t(high) << 32 | low) >> by); }
template <class T> T extract_field(T a, uint32_t start, uint32_t count) {
  const uint32_t unused = 8 * sizeof(T) - smaller(count & 255, uint32_t(8 * sizeof(T)));
  return (count & 255) == 0 ? T(0) : shift_right(shift_left(shift_right(a, start & 255), unused), unused);
}
template <class T> T insert_field(T field, T into, uint32_t start, uint32_t count) {
  const T from_start = shift_left(T(-1), start & 255), beyond = shift_left(T(-1), (start & 255) + (count & 255));
  const T mask = T(from_start & ~beyond);
  return T((shift_left(field, start & 255) & mask) | (into & ~mask));
}
uint32_t permute(uint32_t a, uint32_t b, uint32_t selectors) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t selector = selectors >> (4 * i);
    uint32_t byte = uint32_t((uint64_t(b) << 32 | a) >> (8 * (selector & 7))) & 0xFF;
    if (selector & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << (8 * i);
  }
  return result;
}
uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}
template <class T> T reverse_bits(T a) {
  T result = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) result = T(result << 1 | (a >> i & 1));
  return result;
}

// From a floating-point number without fraction. NaN gives 0 where all versions of the PTX manual agree that it does.
template <class To, class From> To to_integer(From x, int line) {
  if (x != x && (sizeof(To) == 8 || sizeof(From) == 8)) stop(line, "NaN to integer");
  if (x != x) return 0;
  if (x <= From(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  return x >= From(std::numeric_limits<To>::max()) ? std::numeric_limits<To>::max() : To(x);
}
// Rounded to nearest, towards zero, minus or plus infinity: .rn .rz .rm .rp
template <class To, class From> To rounded(From x, char direction) {
  static_assert(LDBL_MANT_DIG >= 64, "long double holds every source exactly");
  const To nearest = To(x), infinity = std::numeric_limits<To>::infinity();
  const long double error = static_cast<long double>(nearest) - static_cast<long double>(x);
  if (direction == 'z') direction = x < 0 ? 'p' : 'm';
  if (direction == 'm' && error > 0) return std::nextafter(nearest, -infinity);
  return direction == 'p' && error < 0 ? std::nextafter(nearest, infinity) : nearest;
}
uint32_t shift_to_nearest_even(uint32_t a, uint32_t by) {
  if (by > 31) return 0;
  const uint32_t quotient = a >> by, rest = a - (quotient << by), half = uint32_t(1) << (by - 1);
  return quotient + (rest > half || (rest == half && (quotient & 1)) ? 1 : 0);
}
uint16_t to_half(uint32_t bits) {
  const uint32_t magnitude = without_sign(bits), exponent = magnitude >> 23;
  if (magnitude > 0x7F800000) return 0x7FFF;
  const uint32_t half = exponent < 113 ? shift_to_nearest_even((magnitude & 0x7FFFFF) | 0x800000, 126 - exponent)
                                       : shift_to_nearest_even(magnitude - (112u << 23), 13);
  return uint16_t(sign_bit(bits) >> 16 | smaller(half, uint32_t(0x7C00)));
}
uint16_t to_bfloat(uint32_t bits) {
  return without_sign(bits) > 0x7F800000 ? uint16_t(0x7FFF) : uint16_t(shift_to_nearest_even(bits, 16));
}
uint32_t lane() { return ((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % 32; }
// The lane that shfl reads from, and whether it lies within the segment; the manual's words.
uint32_t source_lane(char mode, uint32_t b, uint32_t c, bool& in_range) {
  const uint32_t segment = c >> 8 & 31, clamp = c & 31, by = b & 31;
  const uint32_t least = lane() & segment, last = least | (clamp & ~segment);
  int source = int(least | (by & ~segment));  // 'i': idx
  if (mode == 'u') source = int(lane()) - int(by);
  if (mode == 'd') source = int(lane() + by);
  if (mode == 'b') source = int(lane() ^ by);
  in_range = mode == 'u' ? source >= int(last) : source <= int(last);
  return in_range ? uint32_t(source) : lane();
}

}  // namespace
"""


class PtxError(Exception):
    """What cannot be translated, with its line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"{line}: {message}")


class Statement(NamedTuple):
    line: int
    text: str  # without the semicolon; "name:" for a label; "{" and "}" for a block


# They end with their lines, and say nothing here.
LINE_DIRECTIVES = (".version", ".target", ".address_size", ".file", ".loc")


def statements(ptx: str) -> Iterator[Statement]:
    """PTX without comments and debug sections, cut up."""
    skipped = re.compile(r"/\*.*?\*/|//[^\n]*|\.section\s+\.debug_\w+\s*\{.*?\}", re.DOTALL)
    ptx = skipped.sub(lambda match: "\n" * match.group().count("\n"), ptx)
    line = start = 1
    depth = 0  # of the braces of operands and initialisers
    text = ""
    for piece in re.findall(r"::|[;:{}\n]|[^;:{}\n]+", ptx):
        if not text.strip():
            text, start = "", line
        if piece == "\n":
            line += 1
            text = "" if text.startswith(LINE_DIRECTIVES) else text + " "
        elif piece == ";":
            yield Statement(start, " ".join(text.split()))
            text = ""
        elif piece == ":" and re.fullmatch(r"[\w$]+\s*", text):
            yield Statement(start, text.strip() + ":")
            text = ""
        elif piece == "{" and (not text or re.search(r"\.(entry|func)\b", text)):
            if text:
                yield Statement(start, " ".join(text.split()))
            yield Statement(line, "{")
            text = ""
        elif piece == "}" and not text:
            yield Statement(line, "}")
        else:
            depth += (piece == "{") - (piece == "}")
            if depth < 0:
                raise PtxError(line, f"unexpected }} after {text.strip()}")
            text += piece if text else piece.lstrip()
    if text.strip():
        raise PtxError(start, f"unfinished: {text.strip()}")


class Type(NamedTuple):
    kind: str  # b, u, s, f, or p for a predicate
    bits: int

    def cpp(self) -> str:
        if self.kind in "pf":
            return {1: "bool", 32: "float", 64: "double"}[self.bits]
        return f"{'' if self.kind == 's' else 'u'}int{self.bits}_t"

    def register(self) -> str:
        return Type("p" if self.kind == "p" else "u", self.bits).cpp()


TYPES = {f"{kind}{bits}": Type(kind, bits) for kind in "bus" for bits in (8, 16, 32, 64)}
TYPES |= {"f32": Type("f", 32), "f64": Type("f", 64), "pred": Type("p", 1)}
U32, U64 = TYPES["u32"], TYPES["u64"]

SIGNED = "s16 s32 s64"
INTEGERS = "u16 u32 u64 " + SIGNED
BITS = "b16 b32 b64"
FLOATS = "f32 f64"


class Rule(NamedTuple):
    """A regular instruction.

    Operands and result are b: bits of the instruction's type, t: a number of that type, w: bits of twice the width,
    n: a u32, p: a predicate. In the expression, {c} is the type in C++, {w} it with double width, {u} that unsigned.
    """

    types: str
    operands: str
    result: str
    expression: str


RULES: dict[str, list[Rule]] = {
    "add": [Rule(INTEGERS, "bb", "b", "{0} + {1}"), Rule(FLOATS, "tt", "t", "{0} + {1}")],
    "sub": [Rule(INTEGERS, "bb", "b", "{0} - {1}"), Rule(FLOATS, "tt", "t", "{0} - {1}")],
    # Without a rounding mode it is to nearest, too, but ptxas may contract: that is for ptx_lint.py to say.
    "mul": [Rule(FLOATS, "tt", "t", "{0} * {1}")],
    "add.rn": [Rule(FLOATS, "tt", "t", "{0} + {1}")],
    "sub.rn": [Rule(FLOATS, "tt", "t", "{0} - {1}")],
    "mul.rn": [Rule(FLOATS, "tt", "t", "{0} * {1}")],
    "div.rn": [Rule(FLOATS, "tt", "t", "{0} / {1}")],
    "rcp.rn": [Rule(FLOATS, "t", "t", "{c}(1) / {0}")],
    "sqrt.rn": [Rule(FLOATS, "t", "t", "std::sqrt({0})")],
    "fma.rn": [Rule(FLOATS, "ttt", "t", "std::fma({0}, {1}, {2})")],
    # In 64 bits, for 16 would become int, and int overflows.
    "mul.lo": [Rule(INTEGERS, "bb", "b", "{0} * uint64_t({1})")],
    "mul.hi": [Rule(INTEGERS, "tt", "b", "mul_hi({0}, {1})")],
    "mul.wide": [Rule("u16 u32 s16 s32", "tt", "w", "{w}({0}) * {1}")],
    "mad.lo": [Rule(INTEGERS, "bbb", "b", "{0} * uint64_t({1}) + {2}")],
    "mad.hi": [Rule(INTEGERS, "ttb", "b", "uint64_t(mul_hi({0}, {1})) + {2}")],
    "mad.wide": [Rule("u16 u32 s16 s32", "ttw", "w", "{u}({w}({0}) * {1}) + {2}")],
    "div": [Rule(INTEGERS, "tt", "b", "{0} / divisor({0}, {1}, {line})")],
    "rem": [Rule(INTEGERS, "tt", "b", "{0} % divisor({0}, {1}, {line})")],
    "abs": [Rule(SIGNED, "t", "b", "absolute({0})"), Rule(FLOATS, "b", "b", "without_sign({0})")],
    "neg": [Rule(SIGNED, "b", "b", "0 - {0}"), Rule(FLOATS, "b", "b", "without_sign({0}) | sign_bit(~{0})")],
    "min": [Rule(INTEGERS, "tt", "b", "smaller({0}, {1})"), Rule(FLOATS, "tt", "t", "minimum({0}, {1})")],
    "max": [Rule(INTEGERS, "tt", "b", "larger({0}, {1})"), Rule(FLOATS, "tt", "t", "maximum({0}, {1})")],
    "min.NaN": [Rule(FLOATS, "tt", "t", "or_nan({0}, {1}, minimum({0}, {1}))")],
    "max.NaN": [Rule(FLOATS, "tt", "t", "or_nan({0}, {1}, maximum({0}, {1}))")],
    "copysign": [Rule(FLOATS, "bb", "b", "sign_bit({0}) | without_sign({1})")],
    "testp.finite": [Rule(FLOATS, "t", "p", "std::isfinite({0})")],
    "testp.infinite": [Rule(FLOATS, "t", "p", "std::isinf({0})")],
    "testp.number": [Rule(FLOATS, "t", "p", "!std::isnan({0})")],
    "testp.notanumber": [Rule(FLOATS, "t", "p", "std::isnan({0})")],
    "testp.normal": [Rule(FLOATS, "t", "p", "std::isnormal({0})")],
    "testp.subnormal": [Rule(FLOATS, "t", "p", "std::fpclassify({0}) == FP_SUBNORMAL")],
    "and": [Rule(BITS + " pred", "bb", "b", "{0} & {1}")],
    "or": [Rule(BITS + " pred", "bb", "b", "{0} | {1}")],
    "xor": [Rule(BITS + " pred", "bb", "b", "{0} ^ {1}")],
    "not": [Rule(BITS, "b", "b", "~{0}"), Rule("pred", "b", "b", "!{0}")],
    "shl": [Rule(BITS, "bn", "b", "shift_left({0}, {1})")],
    "shr": [Rule(BITS + " " + INTEGERS, "tn", "b", "shift_right({0}, {1})")],
    "shf.l.wrap": [Rule("b32", "bbn", "b", "funnel_left({0}, {1}, {2} & 31)")],
    "shf.r.wrap": [Rule("b32", "bbn", "b", "funnel_right({0}, {1}, {2} & 31)")],
    "shf.l.clamp": [Rule("b32", "bbn", "b", "funnel_left({0}, {1}, smaller({2}, uint32_t(32)))")],
    "shf.r.clamp": [Rule("b32", "bbn", "b", "funnel_right({0}, {1}, smaller({2}, uint32_t(32)))")],
    "bfe": [Rule("u32 u64 s32 s64", "tnn", "b", "extract_field({0}, {1}, {2})")],
    "bfi": [Rule("b32 b64", "bbnn", "b", "insert_field({0}, {1}, {2}, {3})")],
    "prmt": [Rule("b32", "bbb", "b", "permute({0}, {1}, {2})")],
    "lop3": [Rule("b32", "bbbb", "b", "logic3({0}, {1}, {2}, {3})")],
    "popc": [Rule("b32 b64", "b", "n", "__builtin_popcountll({0})")],
    "clz": [
        Rule("b32", "b", "n", "{0} ? __builtin_clz({0}) : 32"),
        Rule("b64", "b", "n", "{0} ? __builtin_clzl({0}) : 64"),
    ],
    "brev": [Rule("b32 b64", "b", "b", "reverse_bits({0})")],
    "activemask": [Rule("b32", "", "n", "__activemask()")],
    "vote.sync.any": [Rule("pred", "pn", "p", "__any_sync({1}, {0}) != 0")],
    "vote.sync.all": [Rule("pred", "pn", "p", "__all_sync({1}, {0}) != 0")],
    "vote.sync.ballot": [Rule("b32", "pn", "n", "__ballot_sync({1}, {0})")],
    "selp": [Rule(BITS + " " + INTEGERS + " " + FLOATS, "bbp", "b", "{2} ? {0} : {1}")],
}
for bits, read in ((32, "nnt"), (64, "wwt")):
    rule = Rule("s32 f32", read, read[0], "{2} >= 0 ? {0} : {1}")  # in the terms of the last type
    RULES |= {f"slct.{kind}{bits}": [rule] for kind in "busf"}
WHOLE = {"ret": "return;", "exit": "return;", "trap": 'stop({line}, "trap");', "bar.sync 0": "__syncthreads();"}

SIGNED_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_COMPARISONS = SIGNED_COMPARISONS | {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# With "u" a comparison holds also where an operand is NaN: where the opposite does not hold.
FLOAT_COMPARISONS = {name: f"({{0}} {sign} {{1}})" for name, sign in SIGNED_COMPARISONS.items() if name != "ne"}
FLOAT_COMPARISONS |= {"ne": "({0} < {1} || {0} > {1})", "equ": "!({0} < {1} || {0} > {1})", "neu": "!({0} == {1})"}
FLOAT_COMPARISONS |= {"ltu": "!({0} >= {1})", "leu": "!({0} > {1})", "gtu": "!({0} <= {1})", "geu": "!({0} < {1})"}
FLOAT_COMPARISONS |= {"num": "!std::isunordered({0}, {1})", "nan": "std::isunordered({0}, {1})"}

COMBINERS = {"and": "&", "or": "|", "xor": "^"}
HALVES = {"f16": "to_half", "f16x2": "to_half", "bf16": "to_bfloat", "bf16x2": "to_bfloat"}
TO_INTEGRAL = {"rni": "std::rint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
DIRECTIONS = {"rn": "'n'", "rz": "'z'", "rm": "'m'", "rp": "'p'"}
SPECIAL_REGISTERS = {
    f"%{ptx}.{axis}": f"{cpp}.{axis}"
    for ptx, cpp in {"tid": "threadIdx", "ntid": "blockDim", "ctaid": "blockIdx", "nctaid": "gridDim"}.items()
    for axis in "xyz"
} | {"%laneid": "lane()"}
SPACES = ("global", "shared", "shared::cta", "const", "param", "local")
VECTORS = {"v2": 2, "v4": 4, "v8": 8}
CACHING = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "weak"}
CACHING |= {f"L1::{hint}" for hint in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")}
CACHING |= {f"L2::{prefetched}B" for prefetched in (64, 128, 256)}
NO_LOCAL = "local memory: a spill, or an array that is indexed at run time; kernels must not have any"


class Variable(NamedTuple):
    space: str
    align: int
    size: int  # bytes
    dynamic: bool = False  # of shared memory: as many bytes as the launch says, after all others


def identifier(name: str) -> str:
    return name.removeprefix("%")  # a $ may stay: g++ takes it


def number(text: str, bits: int) -> int | None:
    """The bits of an immediate operand or initialiser; None if it is no number, or has other bits."""
    if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
        fits = bits == (32 if match[1] in "fF" else 64) and len(match[2]) == bits // 4
        return int(match[2], 16) if fits else None
    if match := re.fullmatch(r"(-?(?:0[xX][0-9a-fA-F]+|0|[1-9]\d*))U?", text):
        value = int(match[1], 0)
        return value % (1 << bits) if -(1 << (bits - 1)) <= value < 1 << bits else None
    return None


def literal(value: int, bits: int) -> str:
    digits = f"{value}u" if value < 1 << 16 else f"0x{value:X}u"
    return {64: f"{digits}l", 32: digits}.get(bits, f"uint{bits}_t({digits})")


def split(operands: str) -> list[str]:
    """At commas, but not at those within {} and []."""
    return [each.strip() for each in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", operands)]


@dataclass
class Entry:
    """One kernel on its way to C++."""

    variables: dict[str, Variable]
    line: int = 0
    text: str = ""
    code: list[str] = field(default_factory=list)
    # Of registers in PTX, and what the scope adds to their names in C++.
    scopes: list[tuple[dict[str, Type], str]] = field(default_factory=list)
    registers: dict[str, tuple[str, Type]] = field(default_factory=dict)  # those in use, by their names in C++
    shared: dict[str, int] = field(default_factory=dict)  # offsets of the shared variables in use
    shared_size: int = 0
    shared_align: int = 1
    dynamic: str = ""  # the name of dynamic shared memory in use
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    label: str = ""

    def error(self, message: str) -> PtxError:
        return PtxError(self.line, f"{message}: {self.text}")

    # Operands.

    def register(self, name: str) -> tuple[str, Type]:
        for scope, suffix in reversed(self.scopes):
            if kind := scope.get(name):
                cpp = identifier(name) + suffix
                if self.registers.setdefault(cpp, (name, kind)) != (name, kind) or cpp in self.variables:
                    raise self.error(f"two things are called {cpp}")
                return cpp, kind
        raise self.error(f"unknown operand {name}")

    def bits(self, operand: str, kind: Type, *, or_wider: bool = False) -> str:
        """C++ for the bits of an operand."""
        if kind.kind == "p" and operand.startswith("!"):
            return "!" + self.bits(operand[1:], kind)
        if kind.kind == "p" and re.fullmatch(r"-?\d+", operand):
            return "false" if int(operand) == 0 else "true"
        value = number(operand, kind.bits)
        if value is not None and (kind.kind != "f" or re.match("0[fFdD]", operand)):
            return literal(value, kind.bits)
        name, declared = self.register(operand)
        if declared.bits != kind.bits and (declared.bits < kind.bits or not or_wider):
            raise self.error(f"{operand} has {declared.bits} bits instead of {kind.bits}")
        return name if declared.bits == kind.bits else f"{kind.register()}({name})"

    def value(self, operand: str, kind: Type, *, or_wider: bool = False) -> str:
        """C++ for an operand as a number of its type."""
        bits = self.bits(operand, kind, or_wider=or_wider)
        return {"f": f"as_float({bits})", "s": f"{kind.cpp()}({bits})"}.get(kind.kind, bits)

    def set(self, destination: str, kind: Type, expression: str, *, or_wider: bool = False) -> None:
        name, declared = self.register(destination)
        if declared.bits != kind.bits and (declared.bits < kind.bits or not or_wider or "p" in declared.kind):
            raise self.error(f"{destination} has {declared.bits} bits instead of {kind.bits}")
        self.code.append(f"{name} = {expression};")

    def shared_offset(self, name: str) -> str:
        variable = self.variables[name]
        if variable.dynamic:
            self.dynamic = name
            self.shared_align = max(self.shared_align, variable.align)
        elif name not in self.shared:
            self.shared[name] = -(-self.shared_size // variable.align) * variable.align
            self.shared_size = self.shared[name] + variable.size
            self.shared_align = max(self.shared_align, variable.align)
        return identifier(name)

    def memory(self, operand: str, space: str, size: int) -> str:
        """C++ for the pointer to [operand], whose accesses are of that many bytes."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not match:
            raise self.error(f"unknown address {operand}")
        name, offset = match[1], int(match[2] or 0)
        if variable := self.variables.get(name):
            if variable.space != space or not (offset >= 0 and (variable.dynamic or offset <= variable.size - size)):
                raise self.error(f"{operand} is not within a variable of that space")
            base = self.shared_offset(name) if space == "shared" else f"address_of({identifier(name)})"
        else:
            base, kind = self.register(name)
            if kind.bits != 64 and not (kind.bits == 32 and space == "shared"):
                raise self.error(f"{name} is no address")
        address = f"{base} {'-' if offset < 0 else '+'} {abs(offset)}" if offset else base
        if space == "shared":
            return f"shared_at(shared_memory, {address}, {size}, {self.line})"
        return f"memory_at({address}, {size}, {self.line})"

    # Instructions.

    def instruction(self, line: int, text: str) -> None:
        self.line, self.text = line, text
        match = re.fullmatch(r"(?:@(!?)([%\w$]+) )?([a-z]\w*)((?:\.[\w:]+)*)(?: (.*))?", text)
        if not match:
            raise self.error("not understood")
        if match[3] == "call":
            raise self.error("function calls are not supported: everything in a kernel is to be inlined")
        before = len(self.code)
        opcode, modifiers, operands = match[3], match[4].split(".")[1:], split(match[5] or "")
        try:
            if (whole := text[match.start(3) :]) in WHOLE:
                self.code.append(WHOLE[whole].format(line=line))
            elif special := getattr(self, f"do_{opcode}", None):
                special(modifiers, operands)
            else:
                self.regular(opcode, modifiers, operands)
        except (ValueError, IndexError, KeyError) as unexpected:  # another number of modifiers or operands
            raise self.error("unknown form") from unexpected
        code = " ".join(filter(None, self.code[before:]))
        if match[2]:
            code = f"if ({match[1]}{self.bits(match[2], TYPES['pred'])}) {{ {code} }}"
        self.code[before:] = [code]

    def regular(self, opcode: str, modifiers: list[str], operands: list[str]) -> None:
        key = ".".join([opcode, *modifiers[:-1]])
        for rule in RULES.get(key, []):
            if modifiers[-1] in rule.types.split() and len(operands) == 1 + len(rule.operands):
                kind = TYPES[modifiers[-1]]
                wide = Type(kind.kind, 2 * kind.bits)
                kinds = {"b": kind, "t": kind, "w": wide, "n": U32, "p": TYPES["pred"]}
                read = [
                    self.value(operand, kinds[how]) if how == "t" else self.bits(operand, kinds[how])
                    for operand, how in zip(operands[1:], rule.operands, strict=True)
                ]
                cpp = {"c": kind.cpp(), "line": self.line}
                if "w" in rule.result:
                    cpp |= {"w": wide.cpp(), "u": wide.register()}
                expression = rule.expression.format(*read, **cpp)
                as_bits = f"bits_of({expression})" if rule.result == "t" and kind.kind == "f" else expression
                return self.set(operands[0], kinds[rule.result], as_bits)
        raise self.error(f"unknown opcode, modifier or type {'.'.join([opcode, *modifiers])}")

    def do_mov(self, modifiers: list[str], operands: list[str]) -> None:
        (name,) = modifiers
        kind = TYPES[name]
        destination, source = operands
        if destination.startswith("{"):
            parts = split(destination.strip("{} "))
            part = TYPES[f"b{kind.bits // len(parts)}"]
            for i, each in enumerate(parts):
                if each != "_":
                    self.set(each, part, f"{part.cpp()}({self.bits(source, kind)} >> {i * part.bits})")
        elif source.startswith("{"):
            parts = split(source.strip("{} "))
            part = TYPES[f"b{kind.bits // len(parts)}"]
            shifted = [f"{kind.register()}({self.bits(each, part)}) << {i * part.bits}" for i, each in enumerate(parts)]
            self.set(destination, kind, " | ".join(shifted))
        elif source in SPECIAL_REGISTERS:
            self.set(destination, U32, SPECIAL_REGISTERS[source])
        elif variable := self.variables.get(source):
            shared = variable.space == "shared"
            address = self.shared_offset(source) if shared else f"address_of({identifier(source)})"
            self.set(destination, kind if shared and kind.bits == 32 else U64, address)
        else:
            self.set(destination, kind, self.bits(source, kind))

    def do_cvta(self, modifiers: list[str], operands: list[str]) -> None:
        *to, space, size = modifiers
        destination, source = operands
        if to not in ([], ["to"]) or size != "u64" or space not in ("global", "const", "param", "shared"):
            raise self.error("unknown form")
        if space == "shared" and any(variable.dynamic for variable in self.variables.values()):
            raise self.error("generic addresses of dynamic shared memory are not supported")
        shift = f" {'-' if to else '+'} address_of(shared_memory)" if space == "shared" else ""
        self.set(destination, U64, self.bits(source, U64) + shift)

    def access(self, modifiers: list[str], address: str, values: str) -> tuple[Type, str, list[tuple[int, str]]]:
        """Of a load or store: the type, C++ for the pointer, and the registers with their offsets."""
        *others, name = modifiers
        kind = TYPES[name]
        spaces = [each for each in others if each in SPACES]
        vectors = [each for each in others if each in VECTORS]
        if "local" in spaces:
            raise self.error(NO_LOCAL)
        if len(spaces) > 1 or len(vectors) > 1 or not set(others) <= {*spaces, *vectors, *CACHING}:
            raise self.error("unknown modifier")
        registers = split(values.strip("{} "))
        if len(registers) != VECTORS.get("".join(vectors), 1) or values.startswith("{") != bool(vectors):
            raise self.error("another number of values")
        size = kind.bits // 8
        at = self.memory(address, "".join(spaces).removesuffix("::cta"), size * len(registers))
        if vectors:
            self.code.append(f"{{ unsigned char* const at = {at};")
        return kind, "at" if vectors else at, [(i * size, each) for i, each in enumerate(registers) if each != "_"]

    def do_ld(self, modifiers: list[str], operands: list[str]) -> None:
        destination, address = operands
        kind, at, registers = self.access(modifiers, address, destination)
        loaded = kind.cpp() if kind.kind == "s" else kind.register()
        for offset, each in registers:
            self.set(each, kind, f"load<{loaded}>({at}{f' + {offset}' if offset else ''})", or_wider=True)
        self.code.append("}" if at == "at" else "")

    def do_st(self, modifiers: list[str], operands: list[str]) -> None:
        address, source = operands
        kind, at, registers = self.access(modifiers, address, source)
        if {"param", "const"} & set(modifiers):
            raise self.error("unknown form")
        for offset, each in registers:
            value = self.bits(each, kind, or_wider=True)
            self.code.append(f"store({at}{f' + {offset}' if offset else ''}, {value});")
        self.code.append("}" if at == "at" else "")

    def do_cvt(self, modifiers: list[str], operands: list[str]) -> None:
        *mode, to_name, from_name = modifiers
        destination, *sources = operands
        if (half := HALVES.get(to_name)) and mode == ["rn"] and from_name == "f32":
            (upper, *lower), to = [f"{half}({self.bits(each, TYPES['f32'])})" for each in sources], TYPES["b16"]
            if to_name.endswith("x2"):
                upper, to = f"uint32_t({upper}) << 16 | {lower.pop()}", TYPES["b32"]
            if lower:
                raise self.error("unknown form")
            return self.set(destination, to, upper)
        (source,) = sources
        to, origin = TYPES[to_name], TYPES[from_name]
        value = self.value(source, origin, or_wider=origin.kind != "f")
        (rounding,) = mode or [""]
        if origin.kind != "f" and to.kind != "f" and not mode:
            self.set(destination, to, f"{to.cpp()}({value})", or_wider=True)
        elif origin.kind == "f" and to.kind != "f" and rounding in TO_INTEGRAL:
            integer = f"to_integer<{to.cpp()}>({TO_INTEGRAL[rounding]}({value}), {self.line})"
            self.set(destination, to, integer, or_wider=True)
        elif to.kind == "f" and (origin.kind != "f" or origin.bits > to.bits) and rounding in DIRECTIONS:
            self.set(destination, to, f"bits_of(rounded<{to.cpp()}>({value}, {DIRECTIONS[rounding]}))")
        elif origin.kind == to.kind == "f" and origin.bits <= to.bits and not mode:
            self.set(destination, to, f"bits_of({to.cpp()}({value}))")
        elif origin == to and to.kind == "f" and rounding in TO_INTEGRAL:
            self.set(destination, to, f"bits_of({TO_INTEGRAL[rounding]}({value}))")
        else:
            raise self.error("unknown conversion")

    def condition(self, modifiers: list[str], operands: list[str]) -> str:
        """A comparison, combined with a predicate if there is one."""
        comparison, *combined, name = modifiers
        kind = TYPES[name]
        a, b = (self.value(operand, kind) for operand in operands[:2])
        if kind.kind == "f":
            text = FLOAT_COMPARISONS[comparison].format(a, b)
        else:
            signs = {"b": ("eq", "ne"), "s": tuple(SIGNED_COMPARISONS), "u": tuple(UNSIGNED_COMPARISONS)}[kind.kind]
            if comparison not in signs:
                raise self.error("unknown comparison")
            text = f"({a} {UNSIGNED_COMPARISONS[comparison]} {b})"
        if not combined and len(operands) == 2:
            return text
        (combiner,), (third,) = combined, operands[2:]
        return f"{text} {COMBINERS[combiner]} {self.bits(third, TYPES['pred'])}"

    def do_setp(self, modifiers: list[str], operands: list[str]) -> None:
        self.set(operands[0], TYPES["pred"], self.condition(modifiers, operands[1:]))

    def do_set(self, modifiers: list[str], operands: list[str]) -> None:
        *compare, to_name, from_name = modifiers
        true = {"u32": "0xFFFFFFFFu", "s32": "0xFFFFFFFFu", "f32": "0x3F800000u"}[to_name]
        holds = self.condition([*compare, from_name], operands[1:])
        self.set(operands[0], TYPES[to_name], f"({holds}) ? {true} : 0u")

    def do_shfl(self, modifiers: list[str], operands: list[str]) -> None:
        sync, mode, name = modifiers
        if sync != "sync" or mode not in ("up", "down", "bfly", "idx") or name != "b32":
            raise self.error("unknown form")
        destination, *in_range = operands[0].split("|")
        a, b, c, mask = (self.bits(operand, U32) for operand in operands[1:])
        self.code.append(f"{{ bool in_range; const uint32_t source = source_lane('{mode[0]}', {b}, {c}, in_range);")
        self.set(destination, U32, f"__shfl_sync({mask}, {a}, int(source))")
        for predicate in in_range:
            self.set(predicate, TYPES["pred"], "in_range")
        self.code.append("}")

    def do_bar(self, modifiers: list[str], operands: list[str]) -> None:
        (mask,) = operands
        if modifiers != ["warp", "sync"]:
            raise self.error("unknown form")
        self.code.append(f"__syncwarp({self.bits(mask, U32)});")

    def do_bra(self, modifiers: list[str], operands: list[str]) -> None:
        (target,) = operands
        if modifiers not in ([], ["uni"]):
            raise self.error("unknown modifier")
        self.code.append(f"goto {identifier(target)};")

    def do_brx(self, modifiers: list[str], operands: list[str]) -> None:
        index, table = operands
        if modifiers not in (["idx"], ["idx", "uni"]):
            raise self.error("unknown modifier")
        cases = [f"case {i}: goto {identifier(target)};" for i, target in enumerate(self.branch_targets[table])]
        other = f'default: stop({self.line}, "brx.idx beyond its targets");'
        self.code += [f"switch ({self.bits(index, U32)}) {{", *cases, other, "}"]

    # What is not an instruction.

    def statement(self, line: int, text: str) -> None:
        self.line, self.text = line, text
        if text == "{":
            self.scopes.append(({}, f"_at_{line}" if self.scopes else ""))
        elif text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            self.label = text[:-1]
            self.code.append(f"{identifier(self.label)}:;")
        elif text.startswith(".branchtargets "):
            self.branch_targets[self.label] = split(text.removeprefix(".branchtargets "))
        elif match := re.fullmatch(r"\.reg \.(\w+) (.*)", text):
            for each in split(match[2]):
                family = re.fullmatch(r"(%?[A-Za-z_$]\w*)(?:<(\d+)>)?", each)
                if not family or match[1] not in TYPES or match[1].endswith("8"):
                    raise self.error("unknown register")
                name, count = family.groups()
                names = [f"{name}{i}" for i in range(int(count))] if count else [name]
                self.scopes[-1][0].update(dict.fromkeys(names, TYPES[match[1]]))
        elif text.startswith(".pragma "):
            pass
        elif text.startswith("."):
            name, variable, _ = module_variable(line, text)
            if variable.space != "shared":
                raise self.error("unknown declaration")
            self.variables = self.variables | {name: variable}
        else:
            self.instruction(line, text)

    def cpp(self, signature: str) -> str:
        lines = [f"{signature} {{"]
        if self.shared_size or any("shared_memory" in each for each in self.code):
            size = max(self.shared_size, 1)
            offsets = dict(self.shared)
            dynamic_from = "~uint64_t{0}"
            if self.dynamic:
                offsets[self.dynamic] = -(-self.shared_size // self.shared_align) * self.shared_align
                dynamic_from = identifier(self.dynamic)
            if offsets:
                listed = ", ".join(f"{identifier(name)} = {offset}" for name, offset in offsets.items())
                lines.append(f"enum : uint32_t {{ {listed} }};")
            lines.append(f"struct alignas({self.shared_align}) SharedMemory {{")
            lines.append(f"  unsigned char bytes[{size}];")
            lines.append(f"  static constexpr uint64_t dynamic_from() {{ return {dynamic_from}; }}")
            lines.append("};")
            lines.append("__shared__ SharedMemory shared_memory;")
        for kind in sorted({kind.register() for _, kind in self.registers.values()}):
            names = [f"{cpp} = 0" for cpp, (_, declared) in self.registers.items() if declared.register() == kind]
            lines += textwrap.wrap(f"{kind} {', '.join(names)};", 118)
        indented = [each if each.endswith(":;") else f"  {each}" for each in [*lines[1:], *self.code]]
        return "\n".join([lines[0], *indented, "}"])


VARIABLE = re.compile(
    r"(?:\.(?:visible|weak) )?\.(global|const|shared) (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?(?: ?= ?(.*))?"
)
DYNAMIC = re.compile(r"\.extern \.shared (?:\.align (\d+) )?\.([bus]\d+|f32|f64) ([\w$]+)\[\]")
PARAMETER = re.compile(
    r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr(?: \.global| \.const)?(?: \.align \d+)?)? ([\w$]+)(?:\[(\d+)\])?"
)
ENTRY = re.compile(
    r"(?:\.(?:visible|weak) )?\.entry ([\w$]+) ?(?:\((.*)\))?((?: \.(?:maxntid|reqntid|minnctapersm|maxnreg) [\d, ]+)*)"
)


def module_variable(line: int, text: str) -> tuple[str, Variable, str]:
    """A variable's name, what it is, and its definition in C++ (none for shared memory)."""
    if ".local" in text:
        raise PtxError(line, f"{NO_LOCAL}: {text}")
    if match := DYNAMIC.fullmatch(text):
        return match[3], Variable("shared", max(int(match[1] or 1), TYPES[match[2]].bits // 8), 0, True), ""
    if ".extern" in text:
        raise PtxError(line, f"external variables are not supported: {text}")
    match = VARIABLE.fullmatch(text)
    if not match or match[3] not in TYPES or match[3] == "pred":
        raise PtxError(line, f"unknown directive or declaration: {text}")
    kind, name, count = TYPES[match[3]], match[4], int(match[5] or 1)
    values = [each for each in split((match[6] or "").strip("{} ")) if each]
    numbers = [value for each in values if (value := number(each, kind.bits)) is not None]
    variable = Variable(match[1], max(int(match[2] or 1), kind.bits // 8), count * kind.bits // 8)
    if len(numbers) != len(values) or len(values) > count:
        raise PtxError(line, f"initialisers other than numbers are not supported: {text[:200]}")
    words = ", ".join(f"{value}u" for value in numbers)
    definition = f"alignas({variable.align}) {kind.register()} {identifier(name)}[{count}] = {{{words}}};"
    return name, variable, "\n".join(textwrap.wrap(definition, 118))


def entry_parameters(line: int, text: str) -> tuple[str, dict[str, tuple[Variable, str]]]:
    """A kernel's name, and its parameters with their types in C++ ("" for a structure)."""
    match = ENTRY.fullmatch(text)
    if not match:
        raise PtxError(line, f"unknown directive or function (only kernels are supported): {text}")
    parameters = {}
    for each in split((match[2] or "").strip()):
        parameter = PARAMETER.fullmatch(each)
        if not parameter or parameter[2] not in TYPES.keys() - {"pred"} or (parameter[4] and parameter[2] != "b8"):
            raise PtxError(line, f"unknown parameter: {each}")
        kind = TYPES[parameter[2]]
        size = int(parameter[4] or kind.bits // 8)
        variable = Variable("param", int(parameter[1] or size), size)
        parameters[parameter[3]] = variable, "" if parameter[4] else kind.cpp()
    return match[1], parameters


def translate(ptx: str, names: dict[str, str] | None = None) -> str:
    """C++ for all entries of a module. Entries are called ptx_<name>, by `names` where it has their PTX name."""
    names = names or {}
    variables: dict[str, Variable] = {}
    code = [PRELUDE]
    entry: Entry | None = None
    signature = ""
    for line, text in statements(ptx):
        if entry:
            entry.statement(line, text)
            if not entry.scopes:
                code.append(entry.cpp(signature))
                entry = None
        elif ".entry" in text or ".func" in text:
            mangled, parameters = entry_parameters(line, text)
            name = names.get(mangled, mangled)
            declared = []
            for position, (parameter, (variable, kind)) in enumerate(parameters.items()):
                if not kind:
                    kind = f"{name}_Param{position}"
                    code.append(f"struct {kind} {{ alignas({variable.align}) unsigned char bytes[{variable.size}]; }};")
                declared.append(f"{kind} {identifier(parameter)}")
            signature = f'// {mangled}\nextern "C" void ptx_{name}({", ".join(declared)})'
            entry = Entry(variables | {each: variable for each, (variable, _) in parameters.items()})
        elif not text.startswith(".pragma "):
            name, variable, definition = module_variable(line, text)
            variables[name] = variable
            if variable.dynamic:
                code.append(f"CUDA_ON_CPU_DYNAMIC_SHARED(uint64_t, of_{identifier(name)});")
            if variable.space != "shared":
                code.append(f"namespace {{\n{definition}\n}}")
    if entry:
        raise PtxError(entry.line, "the file ends within a function")
    return "\n\n".join(code) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ptx", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="standard output if not given")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="MANGLED=NAME", help="of any number of entries"
    )
    parser.add_argument("--entry-name", metavar="NAME", help="of the kernel that has this name")
    arguments = parser.parse_args()
    ptx = arguments.ptx.read_text()
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    names = dict(each.split("=", 1) for each in arguments.rename)
    wanted = arguments.entry_name
    mangled = f"{len(wanted)}{wanted}" if wanted else ""
    found = [each for each in entries if mangled and mangled in each]
    if len(found) == 1:
        names[found[0]] = wanted
    elif wanted or not names.keys() <= set(entries):
        parser.error(f"the file's entries are {', '.join(entries)}")
    try:
        cpp = translate(ptx, names)
    except PtxError as error:
        print(f"{arguments.ptx}:{error}", file=sys.stderr)
        return 1
    if arguments.output:
        arguments.output.write_text(cpp)
    else:
        print(cpp, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
