"""The text of a record, as tables. It knows the JSON and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table_of(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Columns: the first and the last aligned to the left, the others to the right."""
    rows = [list(titles), *map(list, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    last = len(titles) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def render(data: dict[str, Any]) -> str:
    sections = ["\n".join(f"{key}: {value}" for key, value in data["machine"].items() if value not in (None, ""))]
    if data["parts"]:
        lines = [(each["part"], number(each["seconds"], 1), each["outcome"], each["detail"]) for each in data["parts"]]
        sections.append(table_of(("part", "seconds", "outcome", ""), lines))
    if data["results"]:
        sections.append(render_results(data["results"]))
    if data["counters"]:
        sections.append(render_counters(data["counters"]))
    return "\n\n".join(sections)


def render_results(results: Sequence[dict[str, Any]]) -> str:
    titles = ("work", "torch", "fastinit", "kernel", "fill_", "ms", "iqr", "Gvalues/s", "x torch", "of fill_", "wanted")
    lines = []
    for each in results:
        if "error" in each:
            lines.append((each["work"], *[""] * 9, "ERROR: " + each["error"].splitlines()[-1]))
            continue
        speed = each["gigabytes_per_second"]
        ours = each["seconds"].get("fastinit") or each["seconds"]["kernel"]
        wishes = [
            f"{wish['least']:g} {wish['of']}: {'reached' if wish['reached'] else 'MISSED'}" for wish in each["wanted"]
        ]
        if "launches" in each:
            wishes.append(f"launches: {each['launches']}")
        lines.append(
            (
                each["work"],
                *(number(speed.get(contestant), 0) for contestant in ("torch", "fastinit", "kernel", "fill")),
                number(ours["median"] * 1e3, 3),
                number(100.0 * ours["iqr"] / ours["median"], 1) + "%",
                number(each["values_per_second"] / 1e9, 1),
                number(each["ratio_to_torch"], 1),
                number(each["share_of_fill"], 3),
                "; ".join(wishes),
            )
        )
    about = (
        "torch, fastinit, kernel, fill_: GB/s of memory written, from the medians. fastinit: run_() of a plan that is "
        "made; kernel: the launch alone.\nms, iqr, Gvalues/s, x torch, of fill_: of fastinit; medians of events on the "
        "device. Of a blend, memory read and written. A row without wanted figures is for information."
    )
    return table_of(titles, lines) + "\n\n" + about


def render_counters(counters: Sequence[dict[str, Any]]) -> str:
    names = sorted({name for each in counters for name in each["metrics"]})
    titles = ("counter", *(each["kernel"] for each in counters), "")
    lines = [(name, *(number(each["metrics"].get(name), 2) for each in counters), "") for name in names]
    return table_of(titles, lines)
