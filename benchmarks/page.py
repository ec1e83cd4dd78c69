"""Writes docs/PERFORMANCE.md from the committed results: benchmarks/page.py. No figure is written by hand there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "PERFORMANCE.md"

_HEAD = """# Performance

Each table compares contestants of one run, on one machine. `benchmarks/page.py` draws it from a file under
`benchmarks/results/`. `fill_` does nothing but write memory: it is the limit. `benchmarks/README.md` says how the
figures are measured, what misses its target, and why.
"""


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{_number(seconds * scale)} {unit}"
    return f"{_number(seconds * 1e6)} us"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join([_row(*heading), _row(*["---"] * len(heading)), *(_row(*row) for row in rows)])


def cpu_section(results: dict[str, Any]) -> str:
    """Best of several rounds, in millions of values a second."""
    machine, rows = results["machine"], []
    for record in results["results"]:
        rates = record["values_per_second"]
        if "fastinit" not in rates or "torch" not in rates or "(calls a second)" in record["work"]:
            continue
        share = f"{rates['fastinit'] / rates['fill']:.2f}" if "fill" in rates else ""
        cells = [_number(rates[each] / 1e6) for each in ("torch", "fastinit")]
        rows.append((record["work"], *cells, f"{_number(rates['fastinit'] / rates['torch'])}", share))
    about = ", ".join(str(machine[key]) for key in ("processor", "cores", "torch") if key in machine)
    heading = ("work", "torch, M values/s", "fastinit, M values/s", "times torch", "of `fill_`")
    return f"Machine: {about}.\n\n{_table(heading, rows)}"


def gpu_section(results: dict[str, Any]) -> str:
    """Medians; what writes memory in GB/s, all else as a time."""
    machine, rows = results["machine"], []
    for record in results["results"]:
        seconds = record["seconds"]
        if "fastinit" not in seconds or "torch" not in seconds:
            continue
        rates = record.get("gigabytes_per_second", {})
        cells = [_time(seconds[each]["median"]) for each in ("torch", "fastinit")]
        written = f"{rates['fastinit']:.0f}" if "fastinit" in rates else ""
        share = f"{record['share_of_fill']:.2f}" if record.get("share_of_fill") else ""
        ratio = seconds["torch"]["median"] / seconds["fastinit"]["median"]
        rows.append((record["work"], *cells, _number(ratio), written, share))
    about = ", ".join(str(machine[key]) for key in ("gpu", "torch", "cuda", "driver") if key in machine)
    heading = ("work", "torch", "fastinit", "times torch", "GB/s", "of `fill_`")
    return f"Machine: {about}.\n\n{_table(heading, rows)}"


# What is measured, by the end of the file's name; without one, it is the fills.
_TITLES = {
    "-fresh-memory": "memory that was never touched before",
    "-orthogonal": "orthogonal matrices, fingerprints, planning",
    "-all": "everything, one run",
}


def _title(path: Path, machine: dict[str, Any]) -> str:
    if "gpu" in machine:
        return str(machine["gpu"])
    what = next((title for end, title in _TITLES.items() if path.stem.endswith(end)), "fills")
    return f"{machine['processor'].split(',')[0]}: {what}"


def page() -> str:
    """The whole page, a processor's rows before a GPU's, and fills before the rest."""
    parts = [_HEAD]
    for path in sorted((HERE / "results").glob("*.json"), key=lambda path: (path.name.startswith("gpu"), path.stem)):
        results = json.loads(path.read_text(encoding="utf-8"))
        if not results.get("results"):
            continue
        section = gpu_section(results) if path.name.startswith("gpu") else cpu_section(results)
        parts.append(f"## {_title(path, results['machine'])}\n\n{section}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
