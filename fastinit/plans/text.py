"""The rows of a plan as a table, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastinit.distributed.pieces import Box
from fastinit.plans.folding import folded
from fastinit.plans.rows import Row
from fastinit.schemes.base import describe

_COLUMNS = ("kind", "shape", "here", "dtype", "device", "scheme", "fan in/out", "distribution", "std", "why")


def as_table(rows: Sequence[Row]) -> str:
    """A line for each row, equal layers folded."""
    cells: dict[Any, tuple[str, ...]] = {}  # most rows of a model equal another row
    lines: list[tuple[str, tuple[str, ...]]] = []
    for row in rows:
        key: Any = (
            row.shape,
            row.dtype,
            row.device,
            row.distribution,
            row.fans,
            row.reason,
            row.kind,
            id(row.scheme),
        )
        key = (*key, row.action, row.boxes, row.frozen)
        if key not in cells:
            cells[key] = _cells(row)
        lines.append((row.name, cells[key]))
    table: list[tuple[str, ...]] = [("name", *_COLUMNS)]
    table += [(name, *others) for name, others in folded(lines)]
    kept = [at for at in range(len(table[0])) if any(line[at] for line in table[1:]) or at < 2]
    table = [tuple(line[at] for at in kept) for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _scheme_name(row: Row) -> str | None:
    if isinstance(row.scheme, tuple):
        return " | ".join(map(describe, row.scheme))
    return None if row.scheme is None else describe(row.scheme)


def as_record(row: Row) -> dict[str, Any]:
    """What `Plan.to_json` tells of a row."""
    distribution = row.distribution
    return {
        "name": row.name,
        "action": row.action,
        "kind": row.kind,
        "shape": None if row.shape is None else list(row.shape),
        "here": _here(row),
        "dtype": str(row.dtype).removeprefix("torch."),
        "device": str(row.device),
        "numel": row.numel,
        "bytes": row.numel * row.dtype.itemsize,
        "scheme": _scheme_name(row),
        "fan_in": None if row.fans is None else row.fans.fan_in,
        "fan_out": None if row.fans is None else row.fans.fan_out,
        "distribution": None if distribution is None else str(distribution),
        "mean": None if distribution is None else distribution.mean(),
        "std": None if distribution is None else distribution.std(),
        "covered": row.covered,
        "frozen": row.frozen,
        "reason": row.reason,
    }


def _cells(row: Row) -> tuple[str, ...]:
    """The cells of a row in the table, without its name."""
    distribution = row.distribution
    return (
        row.kind,
        "lazy" if row.shape is None else "x".join(map(str, row.shape)) or "scalar",
        _here(row) or "",
        str(row.dtype).removeprefix("torch."),
        str(row.device),
        _scheme_name(row) or row.action,
        "" if row.fans is None else f"{row.fans.fan_in}/{row.fans.fan_out}",
        "" if distribution is None else str(distribution),
        "" if distribution is None else f"{distribution.std():.4g}",
        f"{row.reason}; frozen" if row.frozen else row.reason,
    )


def _here(row: Row) -> str | None:
    """The indices of a distributed tensor that this rank writes."""
    if row.action != "init" or row.boxes is None or row.shape is None:
        return None
    return " and ".join(_box(box, row.shape) for box in row.boxes) or "nothing"


def _box(box: Box, shape: Sequence[int]) -> str:
    """
    >>> _box(Box((0, 0), (4, 0), (2, 3)), (8, 3))
    '[4:6, :]'
    """
    sizes = zip(box.begin, box.shape, shape, strict=True)
    return f"[{', '.join(':' if size == whole else f'{begin}:{begin + size}' for begin, size, whole in sizes)}]"
