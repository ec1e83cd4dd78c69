"""Runs the benchmarks and prints one table of ratios: `make bench`, or benchmarks/run.py [--json FILE] [-k WORD].

Every row compares contestants of one run on one machine. Times are the best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import fastinit
from fastinit import _native

HERE = Path(__file__).parent


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure(keyword: str | None) -> list[dict[str, Any]]:
    """One record a group: its name, the contestants' values a second, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider", "--benchmark-only"]
        command += [f"--benchmark-json={raw}", "--benchmark-disable-gc", "--benchmark-quiet", "--no-header"]
        command += ["-o", "filterwarnings=default", "-o", "testpaths="]
        if keyword:
            command += ["-k", keyword]
        subprocess.run(command, check=True, cwd=HERE)
        benchmarks = json.loads(raw.read_text(encoding="utf-8"))["benchmarks"]
    groups: dict[str, dict[str, Any]] = {}
    for each in benchmarks:
        group = groups.setdefault(each["group"], {"work": each["group"], "seconds": {}, "values_per_second": {}})
        contestant, seconds = each["extra_info"]["contestant"], each["stats"]["min"]
        group["seconds"][contestant] = seconds
        group["values_per_second"][contestant] = each["extra_info"]["numel"] / seconds
    return list(groups.values())


def table(records: list[dict[str, Any]]) -> str:
    lines = [f"{'work':72}{'torch':>9}{'fastinit':>10}{'fill_':>9}{'ratio':>8}{'of fill_':>10}"]
    lines.append(f"{'':72}{'million values a second':>28}")
    for record in records:
        rates = record["values_per_second"]
        for contestant in rates:
            if contestant in ("torch", "fill"):
                continue
            label = record["work"] + ("" if contestant == "fastinit" else f": {contestant}")
            cells = [rates.get("torch"), rates[contestant], rates.get("fill")]
            text = "".join(
                f"{'' if cell is None else format(cell / 1e6, '.0f' if cell >= 1e7 else '.2f'):>{width}}"
                for cell, width in zip(cells, (9, 10, 9), strict=True)
            )
            ratio = f"{rates[contestant] / rates['torch']:.1f}" if "torch" in rates else ""
            share = f"{rates[contestant] / rates['fill']:.2f}" if "fill" in rates else ""
            lines.append(f"{label:72}{text}{ratio:>8}{share:>10}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    parser.add_argument("-k", dest="keyword", help="only benchmarks that match, as pytest's -k")
    arguments = parser.parse_args()
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": _native.module.active_isa() if _native.module else None,
        "torch": torch.__version__,
        "fastinit": fastinit.__version__,
        "python": platform.python_version(),
    }
    records = measure(arguments.keyword)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, "results": records}, indent=1) + "\n", encoding="utf-8")
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()) + "\n")
    print(table(records))
    print(f"\nwritten to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
