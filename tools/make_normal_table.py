"""Writes csrc/core/normal_table.h: piecewise polynomials of the normal quantile.

Run by hand when the table's definition changes (needs mpmath); the result is checked in, because its bits
are part of the stream format (docs/STREAM.md).

    python tools/make_normal_table.py > csrc/core/normal_table.h

For an upper-tail probability p the table gives x = Q^-1(p) with Q(x) = erfc(x / sqrt 2) / 2. Row r covers the
half octave of p whose float32 bits, shifted right by 22, are r: the exponent and the top bit of the mantissa.
The polynomial's variable is z in [-0.25, 0.25): the other 22 bits of the mantissa, less a quarter, so that
p = low + octave * (z + 1/4), with low the row's lower end and octave the power of two at or below it.
"""

from __future__ import annotations

import re
import sys

import mpmath as mp
import numpy as np

FIRST_ROW = 122  # p in [2^-66, 1.5 * 2^-66)
LAST_ROW = 252  # p = 1/2 exactly: rounding can reach it, nothing beyond it
DEGREE_F32 = 6
DEGREE_F64 = 14

mp.mp.dps = 60


def quantile(p: mp.mpf) -> mp.mpf:
    return -mp.sqrt(2) * mp.erfinv(2 * p - 1)


def row_interval(row: int) -> tuple[mp.mpf, mp.mpf]:
    """Lower end of the row, and the octave's power of two."""
    octave = mp.ldexp(1, row // 2 - 127)
    return octave * (1 + mp.mpf(row % 2) / 2), octave


def fit(row: int, degree: int) -> list[mp.mpf]:
    """Coefficients in z, lowest power first, by interpolation at the Chebyshev points."""
    if row == LAST_ROW:
        return [mp.mpf(0)] * (degree + 1)
    low, octave = row_interval(row)
    # The last row before 1/2 ends in a zero of Q^-1: divide it out, so that the error is relative there too.
    zero_at_end = row == LAST_ROW - 1
    points = degree if zero_at_end else degree + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * points)) / 4 for k in range(points)]
    values = []
    for z in nodes:
        x = quantile(low + octave * (z + mp.mpf(1) / 4))
        values.append(x / (mp.mpf(1) / 4 - z) if zero_at_end else x)
    matrix = mp.matrix(points, points)
    for i, z in enumerate(nodes):
        for j in range(points):
            matrix[i, j] = z**j
    solution = mp.lu_solve(matrix, mp.matrix(values))
    coefficients = [solution[j] for j in range(points)]
    if zero_at_end:
        shifted = [mp.mpf(0), *coefficients]
        scaled = [c / 4 for c in coefficients] + [mp.mpf(0)]
        coefficients = [a - b for a, b in zip(scaled, shifted, strict=True)]
    return coefficients


def emit(name: str, ctype: str, degree: int) -> None:
    rows = [fit(row, degree) for row in range(FIRST_ROW, LAST_ROW + 1)]
    print(f"FASTINIT_TABLE({ctype}, {name}, {degree + 1}, kQuantileRows) = {{")
    for power in range(degree + 1):
        print(f"    {{  // z^{power}")
        line = "     "
        for coefficients in rows:
            value = float(coefficients[power])
            if ctype == "float":
                value = float(np.float32(mp.nstr(coefficients[power], 30)))
            digits = re.sub(r"\.?0*p", "p", value.hex()) if value else "0x0p+0"
            text = f" {digits}{'f' if ctype == 'float' else ''},"
            if len(line) + len(text) > 118:
                print(line)
                line = "     "
            line += text
        print(line)
        print("    },")
    print("};")


def main() -> None:
    print("// Written by tools/make_normal_table.py; part of stream version 1, so never edited.")
    print("// Coefficients of the normal quantile Q^-1(p), by power of z, one column a half octave of p.")
    print("// See quantile.h for the formula and the errors.")
    print("#pragma once")
    print()
    print('#include "platform.h"')
    print()
    print("namespace fastinit {")
    print()
    print(f"constexpr int kQuantileFirstRow = {FIRST_ROW};  // p in [2^-66, 1.5 * 2^-66)")
    print(f"constexpr int kQuantileLastRow = {LAST_ROW};   // p = 1/2, where the quantile is 0")
    print("constexpr int kQuantileRows = kQuantileLastRow - kQuantileFirstRow + 1;")
    print()
    print("// clang-format off")
    emit("kQuantileF32", "float", DEGREE_F32)
    print()
    emit("kQuantileF64", "double", DEGREE_F64)
    print("// clang-format on")
    print()
    print("}  // namespace fastinit")


if __name__ == "__main__":
    sys.exit(main())
