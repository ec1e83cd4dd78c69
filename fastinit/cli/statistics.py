"""`fastinit report`: what the tensors of safetensors files are like, read in pieces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from fastinit.cli.files import Entry, files_of, mapped, read_header
from fastinit.run.index_maps import box_of, boxes

_AT_ONCE = 2**20


class Statistics(NamedTuple):
    """Of the finite values of a tensor; NaN where there are none. `zeros` and `nonfinite` count elements."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    mean: float
    std: float
    least: float
    largest: float
    zeros: int
    nonfinite: int


@torch.no_grad()
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
    count = zeros = nonfinite = 0
    total = squares = 0.0
    least, largest, shift = math.inf, -math.inf, None
    for begin, shape in boxes(tensor.shape, _AT_ONCE):
        values = box_of(tensor, begin, shape)
        values = (values.real if values.is_complex() else values).double().flatten()
        finite = values[values.isfinite()]
        nonfinite += values.numel() - finite.numel()
        if finite.numel() == 0:
            continue
        if shift is None:  # near the mean, so that the sum of squares keeps its digits
            shift = float(finite.mean())
        count += finite.numel()
        zeros += finite.numel() - int(finite.count_nonzero())
        least, largest = min(least, float(finite.min())), max(largest, float(finite.max()))
        finite = finite - shift
        total += float(finite.sum())
        squares += float(finite.square().sum())
    if count == 0 or shift is None:
        return Statistics(*entry, math.nan, math.nan, math.nan, math.nan, 0, nonfinite)
    variance = max(0.0, squares / count - (total / count) ** 2)
    return Statistics(*entry, shift + total / count, math.sqrt(variance), least, largest, zeros, nonfinite)


def table(statistics: list[Statistics]) -> str:
    """The statistics as aligned text."""
    lines: list[tuple[str, ...]] = [("name", "shape", "dtype", "mean", "std", "min", "max", "zeros", "not finite")]
    for each in statistics:
        numbers = [f"{value:.4g}" for value in each[3:7]]
        shape = "x".join(map(str, each.shape)) or "scalar"
        count = max(1, math.prod(each.shape))
        ends = (f"{each.zeros / count:.1%}", str(each.nonfinite))
        lines.append((each.name, shape, str(each.dtype).removeprefix("torch."), *numbers, *ends))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
