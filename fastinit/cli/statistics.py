"""`fastinit report`: what the tensors of safetensors files are like, read in pieces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from fastinit.audit.statistics import statistics
from fastinit.cli.files import Entry, files_of, mapped, read_header


class Statistics(NamedTuple):
    """Of the finite values of a tensor; NaN where there are none. `zeros` and `nonfinite` count values, of which a
    complex number has two."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    mean: float
    std: float
    least: float
    largest: float
    zeros: int
    nonfinite: int


def run(path: Path) -> list[Statistics]:
    """The statistics of every tensor of a file, or of all files of an index.

    Raises:
        Mistake: a file cannot be read.
    """
    found = []
    for each in files_of(path):
        header = read_header(each)
        tensors = mapped(each, header)
        found += [_of_tensor(header.entries[name], tensor) for name, tensor in tensors.items()]
    return found


def _of_tensor(entry: Entry, tensor: torch.Tensor) -> Statistics:
    found = statistics(tensor)
    return Statistics(*entry, found.mean, found.std, found.low, found.high, found.zeros, found.non_finite)


def table(rows: list[Statistics]) -> str:
    """The statistics as aligned text."""
    lines: list[tuple[str, ...]] = [("name", "shape", "dtype", "mean", "std", "min", "max", "zeros", "not finite")]
    for each in rows:
        numbers = [f"{value:.4g}" for value in each[3:7]]
        shape = "x".join(map(str, each.shape)) or "scalar"
        count = max(1, math.prod(each.shape) * (2 if each.dtype.is_complex else 1))
        ends = (f"{each.zeros / count:.1%}", str(each.nonfinite))
        lines.append((each.name, shape, str(each.dtype).removeprefix("torch."), *numbers, *ends))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
