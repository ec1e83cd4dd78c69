"""Says what in PTX could make a GPU's bits differ from a CPU's, or make a kernel slow. The tests call it.

Values are the same everywhere because all arithmetic is exactly rounded, and contracted only where the source says so.
Hence no approximation, no flushing of subnormals, and a rounding mode in every instruction that rounds: ptxas may
contract mul.f32 and add.f32, but never mul.rn.f32 and add.rn.f32. An fma.rn that nvcc made by contraction looks like
one that the source asked for: compare `fma_counts` with what is expected, or the values (ptx_to_cpp.py).

    python tests/ptx_lint.py kernel.ptx    # prints the violations; exits with 1 if there are any
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from ptx_to_cpp import statements

INEXACT = {"approx": "an approximation", "full": "an approximation", "ftz": "flushes subnormals to zero"}
SPECIAL = {"sin", "cos", "ex2", "lg2", "rsqrt", "tanh"}
ROUNDING = {"add", "sub", "mul", "fma", "mad", "div", "sqrt", "rcp"}
FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}


def _opcode(statement: str) -> list[str]:
    """An instruction's opcode and modifiers, without the predicate."""
    words = re.sub(r"^@!?\S+ ", "", statement).split(" ")
    return words[0].split(".")


def _reason(statement: str) -> str | None:
    opcode, *modifiers = _opcode(statement)
    for modifier, reason in INEXACT.items():
        if modifier in modifiers:
            return reason
    if opcode in SPECIAL:
        return "a special function"
    # rcp.rn is 1 / x, rounded exactly; all other forms of it are approximations.
    if opcode in ROUNDING and FLOATS & set(modifiers) and "rn" not in modifiers:
        return "no .rn"
    if re.search(r"\.local\b", statement):
        return "local memory"
    if opcode == "call" or ".func" in statement:
        return "a function call"
    return None


def violations(ptx: str) -> list[str]:
    """'line: reason: instruction' for each."""
    return [f"{line}: {reason}: {text}" for line, text in statements(ptx) if (reason := _reason(text))]


def fma_counts(ptx: str) -> dict[str, int]:
    """The number of fused multiply-adds of each kernel."""
    counts: Counter[str] = Counter()
    entry = ""
    for _, text in statements(ptx):
        if match := re.search(r"\.entry ([\w$]+)", text):
            entry = match[1]
            counts[entry] = 0
        opcode, *modifiers = _opcode(text)
        counts[entry] += opcode in ("fma", "mad") and not FLOATS.isdisjoint(modifiers)
    del counts[""]
    return dict(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ptx", type=Path, nargs="+")
    parser.add_argument("--count-fma", action="store_true", help="print the number of fma of each kernel, too")
    arguments = parser.parse_args()
    found = 0
    for path in arguments.ptx:
        ptx = path.read_text()
        for violation in violations(ptx):
            print(f"{path}:{violation}")
            found += 1
        if arguments.count_fma:
            for entry, count in fma_counts(ptx).items():
                print(f"{path}: {count} fma in {entry}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
