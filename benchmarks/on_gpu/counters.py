"""The hardware's counters, read with ncu."""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from on_gpu import ROOT, SCRIPT
from on_gpu.parts import find_tool
from on_gpu.record import Record

PROFILED = (
    ("uniform", "bfloat16"),
    ("normal", "bfloat16"),
    ("normal", "float32"),
    ("uniform", "float32"),
    ("trunc_normal", "float32"),
)
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "WarpStateStats",
    "InstructionStats",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "LaunchStats",
)
_PIPES = ("alu", "fma", "fmaheavy", "lsu", "xu")
METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_write.sum",
    "dram__bytes_read.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    *(f"sm__inst_executed_pipe_{pipe}.avg.pct_of_peak_sustained_active" for pipe in _PIPES),
    *(f"sm__inst_executed_pipe_{pipe}.sum" for pipe in _PIPES),
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "launch__registers_per_thread",
)
_KEPT_PREFIXES = ("smsp__average_warps_issue_stalled_", "launch__occupancy_limit_", "sm__maximum_warps_per")


def parse_counters(text: str) -> list[dict[str, Any]]:
    """From ncu's raw page as CSV: a line of names, a line of units, a line a kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, units, *kernels = list(csv.reader(io.StringIO("\n".join(lines))))
    found = []
    for place, kernel in enumerate(kernels):
        metrics: dict[str, Any] = {}
        for name, unit, value in zip(names, units, kernel, strict=True):
            if name not in METRICS and not name.startswith(_KEPT_PREFIXES):
                continue
            try:
                metrics[f"{name} [{unit}]" if unit else name] = float(value.replace(",", ""))
            except ValueError:
                continue
        label = "-".join(PROFILED[place]) if place < len(PROFILED) else f"kernel {place}"
        found.append({"kernel": label, "metrics": metrics})
    return found


def profile(arguments: argparse.Namespace) -> int:
    """Reads the hardware's counters with ncu, into gpu.json and ncu-fill_kernel.txt."""
    ncu = find_tool("ncu")
    if ncu is None:
        print("no ncu")
        return 1
    program = [sys.executable, str(SCRIPT), *["--dry-run"] * arguments.dry_run]
    for kind, dtype_name in PROFILED:
        program += ["--one", kind, dtype_name]
    command = [ncu, "--clock-control", "none", "--target-processes", "all", "--kernel-name", "regex:fill_kernel"]
    command += ["--launch-count", str(len(PROFILED)), "--force-overwrite"]
    for section in SECTIONS:
        command += ["--section", section]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "counters.ncu-rep"
        # Which counters there are depends on the chip: one that is unknown must not take the others along.
        for chosen in (["--metrics", ",".join(METRICS)], []):
            result = subprocess.run([*command, *chosen, "-o", str(report), *program], check=False, cwd=ROOT)
            if result.returncode == 0 and report.exists():
                break
        if not report.exists():
            return 1
        read = [ncu, "--import", str(report), "--print-units", "base", "--page"]
        details = subprocess.run([*read, "details"], capture_output=True, text=True, check=False).stdout
        (arguments.out / "ncu-fill_kernel.txt").write_text(details, encoding="utf-8")
        raw = subprocess.run([*read, "raw", "--csv"], capture_output=True, text=True, check=False).stdout
    record = Record(arguments.out, afresh=False)
    record.data["counters"] = parse_counters(raw)
    record.save()
    return 0 if len(record.data["counters"]) == len(PROFILED) else 1
