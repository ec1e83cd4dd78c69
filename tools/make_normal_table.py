"""Writes csrc/core/normal_table.h: piecewise polynomials of the normal quantile.

Run by hand when the table's definition changes (needs mpmath and NumPy); the result is checked in, because its bits
are part of the stream format (docs/STREAM.md).

    python tools/make_normal_table.py > csrc/core/normal_table.h

For an upper-tail probability p the table gives x = Q^-1(p) with Q(x) = erfc(x / sqrt 2) / 2. Row r covers the
half octave of p whose float32 bits, shifted right by 22, are r: the exponent and the top bit of the mantissa.
The polynomial's variable is z in [-0.25, 0.25): the other 22 bits of the mantissa, less a quarter, so that
p = low + octave * (z + 1/4), with low the row's lower end and octave the power of two at or below it.

The float polynomials have degree 6, but six coefficients a row: on a GPU each costs shared-memory bandwidth. The
seventh is RATIO_F32 times the sixth, in all rows: Q^-1 is much like a logarithm of the mantissa, so that the ratio
hardly depends on the octave. Left free it would be -0.63 .. -0.67 in rows that begin at a power of two, -0.46 .. -0.48
in the others, where the sixth power counts for little, and -0.28 in row 251, which ends in p = 1/2. Only that row and
the one before it depend much on the choice, and -0.465 .. -0.475 keeps both within the error that docs/STREAM.md
promises.
"""

from __future__ import annotations

import re

import mpmath as mp
import numpy as np
from numpy.typing import NDArray

FIRST_ROW = 122  # p in [2^-66, 1.5 * 2^-66)
LAST_ROW = 252  # p = 1/2 exactly: rounding can reach it, nothing beyond it
POWERS_F32 = 6
RATIO_F32 = -15 / 32
DEGREE_F64 = 14

F64 = NDArray[np.float64]

mp.mp.dps = 60


def quantile(p: mp.mpf) -> mp.mpf:
    return -mp.sqrt(2) * mp.erfinv(2 * p - 1)


def row_quantile(row: int, z: mp.mpf) -> mp.mpf:
    low, octave = row_interval(row)
    return quantile(low + octave * (z + mp.mpf(1) / 4))


def row_interval(row: int) -> tuple[mp.mpf, mp.mpf]:
    """Lower end of the row, and the octave's power of two."""
    octave = mp.ldexp(1, row // 2 - 127)
    return octave * (1 + mp.mpf(row % 2) / 2), octave


# ---- double: interpolation ----


def fit_f64(row: int) -> list[float]:
    """Coefficients in z, lowest power first, by interpolation at the Chebyshev points."""
    if row == LAST_ROW:
        return [0.0] * (DEGREE_F64 + 1)
    # The last row before 1/2 ends in a zero of Q^-1: divide it out, so that the error is relative there too.
    zero_at_end = row == LAST_ROW - 1
    points = DEGREE_F64 if zero_at_end else DEGREE_F64 + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * points)) / 4 for k in range(points)]
    values = []
    for z in nodes:
        x = row_quantile(row, z)
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
    return [float(c) for c in coefficients]


# ---- float: the least largest error that float coefficients allow ----


def fit_f32(row: int) -> list[float]:
    """Coefficients of 1, z, .. z^4 and z^5 (1 + RATIO_F32 z), each a float.

    They are rounded one by one, from the one whose rounding harms most; those after it are fitted anew each time.
    """
    if row == LAST_ROW:
        return [0.0] * POWERS_F32
    grid = [-mp.cos(mp.pi * k / 64) / 4 for k in range(65)]
    basis = mp.matrix([[*(z**j for j in range(5)), z**5 * (1 + RATIO_F32 * z)] for z in grid])
    exact = mp.matrix([row_quantile(row, z) for z in grid])
    # Least squares in many digits comes close; from there double serves.
    start = mp.lu_solve(basis, exact)
    rest = doubles(exact - basis * start)[:, 0]
    columns, x, z = doubles(basis), doubles(exact)[:, 0], doubles(mp.matrix(grid))[:, 0]
    # What docs/STREAM.md promises, less what the last two steps round away: the table may err by what is left.
    allowed = np.where(x < 0.1, 1.6e-8, 1.4e-7 * x) - half_ulp(x) - np.abs(z) * half_ulp(np.float64(start[1]))
    coefficients = []
    for j in range(POWERS_F32):
        change = minimax(columns[:, j:], rest, allowed)[0]
        rounded = float(np.float32(float(start[j] + change)))
        rest = rest - float(rounded - start[j]) * columns[:, j]
        coefficients.append(rounded)
    return coefficients


def minimax(columns: F64, values: F64, allowed: F64) -> F64:
    """The combination of columns whose largest error, as a part of the allowed one, is least.

    Least squares again and again, each weight multiplied by the error that it left (Lawson, 1961); a hundred times
    come within a percent.
    """
    weight: F64 = np.ones_like(values)
    for _ in range(100):
        root = np.sqrt(weight) / allowed
        solution = np.linalg.lstsq(columns * root[:, np.newaxis], values * root, rcond=None)[0].astype(np.float64)
        weight = weight * np.abs(columns @ solution - values) / allowed
        weight = weight / weight.sum()
    return solution


def half_ulp(x: F64 | np.float64) -> F64:
    """The largest error of rounding a result near x to float."""
    return 0.5 * np.spacing(np.abs(x).astype(np.float32)).astype(np.float64)


def doubles(matrix: mp.matrix) -> F64:
    return np.array(matrix.tolist(), np.float64)


def emit(name: str, ctype: str, rows: list[list[float]]) -> None:
    powers = len(rows[0])
    print(f"FASTINIT_TABLE({ctype}, {name}, {powers}, kQuantileRows) = {{")
    for power in range(powers):
        print(f"    {{  // z^{power}")
        line = "     "
        for coefficients in rows:
            value = coefficients[power]
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
    print(f"constexpr float kQuantileRatio = {RATIO_F32}f;  // float: of z^6's coefficient to that of z^5")
    print()
    rows = range(FIRST_ROW, LAST_ROW + 1)
    print("// clang-format off")
    emit("kQuantileF32", "float", [fit_f32(row) for row in rows])
    print()
    emit("kQuantileF64", "double", [fit_f64(row) for row in rows])
    print("// clang-format on")
    print()
    print("}  // namespace fastinit")


if __name__ == "__main__":
    main()
