"""Writes tests/vectors/stream_v1.json and complex_v1.json, the golden values of stream version 1, from
tests/reference.py alone.

Run by hand; the files are checked in and never edited. A released version's values never change.

    python tests/make_golden.py > tests/vectors/stream_v1.json
    python tests/make_golden.py complex > tests/vectors/complex_v1.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any, get_args

import numpy as np
import reference
from reference import DType, Kind

COUNT = 16  # values written out, at the first indices and at the later ones
HASHED = 100_003  # values in a digest: no multiple of any block, vector or chunk
LATER = 2**40 + 2**32 + 2**31 + 5  # all parts of an index count, and it is no multiple of four

NAMES = ("", "0", "weight", "layers.17.attention.wq.weight", "couche.été.poids", "层.权重", "x" * 300)
SEEDS = (0, 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1)

INFINITY = float("inf")
CASES: tuple[tuple[Kind, tuple[float, ...]], ...] = (
    ("constant", (1.0 / 3.0,)),
    ("constant", (-70_000.0,)),  # beyond float16
    ("uniform", (0.0, 1.0)),
    ("uniform", (-0.05103103630798288, 0.05103103630798288)),
    ("uniform", (-0.3, 7.1)),
    ("uniform", (1.0001, 1.0002)),  # 839 numbers of float32, none of float16 and bfloat16
    ("normal", (0.0, 1.0)),
    ("normal", (0.5, 0.02)),
    ("normal", (0.0, 1e-6)),  # subnormal in float16
    ("trunc_normal", (0.0, 1.0, -2.0, 2.0)),
    ("trunc_normal", (0.1, 0.02, 0.06, 0.16)),
    ("trunc_normal", (0.0, 1.0, 1.25, 3.5)),
    ("trunc_normal", (0.0, 1.0, -3.5, -1.25)),
    ("trunc_normal", (0.0, 0.02, -2.0, 2.0)),  # absolute bounds that truncate nothing
    ("trunc_normal", (0.0, 1.0, -0.003, 0.002)),  # level
    ("trunc_normal", (0.0, 1.0, -(2.0**-8), 2.0**-8)),  # just level
    ("trunc_normal", (0.0, 1.0, -(2.0**-8), 0.00391)),  # just not level
    ("trunc_normal", (0.0, 1.0, -1.0, 1e-17)),  # all words are negative
    ("trunc_normal", (0.0, 1.0, -1.0, 0.0)),
    ("trunc_normal", (0.0, 1.0, 2.2, 2.3)),  # both formulas of Q
    ("trunc_normal", (0.0, 1.0, -6.0, 37.0)),
    ("trunc_normal", (0.0, 1.0, 6.0, 6.5)),
    ("trunc_normal", (0.0, 1.0, -0.5, INFINITY)),
    ("trunc_normal", (0.0, 1.0, 4.5, INFINITY)),
    ("trunc_normal", (1.0, 0.5, -INFINITY, -1.5)),
)


def bit_patterns(values: reference.Values) -> str:
    """Hexadecimal digits of each value, the most significant first."""
    bits = values.view(f"u{values.itemsize}")
    return " ".join(f"{int(each):0{2 * values.itemsize}x}" for each in bits)


def digest(values: reference.Values) -> str:
    """SHA-256 over the bytes of the values, little-endian."""
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _stream(seed: int, name: str) -> dict[str, Any]:
    stream = reference.stream(seed, name)
    at = np.array([0, 1, 2, 3, LATER], np.uint64)
    return {
        "seed": seed,
        "key": f"{stream.key:016x}",
        "counter_high": f"{stream.counter_high:016x}",
        "words": bit_patterns(reference.words(stream, at)),
        "tail_words": bit_patterns(reference.tail_words(stream, at)),
    }


def _case(number: int, kind: Kind, parameters: tuple[float, ...]) -> dict[str, Any]:
    seed, name = SEEDS[number % len(SEEDS)], NAMES[number % len(NAMES)]
    record: dict[str, Any] = {
        "kind": kind,
        "parameters": [repr(parameter) for parameter in parameters],  # as text, for the infinities
        "seed": seed,
        "name": name,
        "values": {},
    }
    dtype: DType
    for dtype in get_args(DType):
        try:
            values = reference.sample(kind, parameters, dtype, seed, name, np.arange(HASHED))
        except reference.Refused:
            record["values"][dtype] = None
            continue
        later = reference.sample(kind, parameters, dtype, seed, name, LATER + np.arange(COUNT))
        record["values"][dtype] = {
            "first": bit_patterns(values[:COUNT]),
            "later": bit_patterns(later),
            "sha256": digest(values),
        }
    return record


def golden() -> dict[str, Any]:
    """Everything that the file holds."""
    return {
        "about": (
            "Golden values of the stream format (docs/STREAM.md), made by tests/make_golden.py. Bits of words and "
            "values in hexadecimal. words, tail_words: at indices 0 .. 3 and later_index. first: the values from index "
            "0; later: those from later_index; sha256: of the little-endian bytes of the values at 0 .. hashed - 1; "
            "null: refused."
        ),
        "stream_version": reference.STREAM_VERSION,
        "later_index": LATER,
        "hashed": HASHED,
        "names": [
            {
                "name": name,
                "id": reference.name_id(name).hex(),
                "streams": [_stream(seed, name) for seed in SEEDS],
            }
            for name in NAMES
        ],
        "distributions": [_case(number, kind, parameters) for number, (kind, parameters) in enumerate(CASES)],
    }


PARTS: dict[str, DType] = {"complex64": "float32", "complex128": "float64"}


def _complex_case(number: int, kind: Kind, parameters: tuple[float, ...]) -> dict[str, Any]:
    seed, name = SEEDS[number % len(SEEDS)], NAMES[number % len(NAMES)]
    values = {}
    for dtype, parts in PARTS.items():
        every = reference.sample_complex(kind, parameters, parts, seed, name, np.arange(HASHED))
        later = reference.sample_complex(kind, parameters, parts, seed, name, LATER + np.arange(COUNT))
        values[dtype] = {
            "first": bit_patterns(every[:COUNT].ravel()),
            "later": bit_patterns(later.ravel()),
            "sha256": digest(every),
        }
    return {"kind": kind, "parameters": list(map(repr, parameters)), "seed": seed, "name": name, "values": values}


def golden_complex() -> dict[str, Any]:
    """Everything that the file of complex values holds."""
    cases = [(kind, parameters) for kind, parameters in CASES if kind != "trunc_normal"]
    return {
        "about": (
            "Golden complex values of the stream format (docs/STREAM.md, section 7), by tests/make_golden.py. Bits in "
            "hexadecimal, of the real and the imaginary part of each value in turn. first: the values from index 0; "
            "later: those from later_index; sha256: of the little-endian bytes of the values at 0 .. hashed - 1."
        ),
        "stream_version": reference.STREAM_VERSION,
        "later_index": LATER,
        "hashed": HASHED,
        "distributions": [_complex_case(number, kind, parameters) for number, (kind, parameters) in enumerate(cases)],
    }


if __name__ == "__main__":
    json.dump(golden_complex() if sys.argv[1:] == ["complex"] else golden(), sys.stdout, indent=1, ensure_ascii=True)
    print()
