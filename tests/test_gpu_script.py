"""What the sanitizers watch on a machine with a GPU (benchmarks/gpu.py) runs, here on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import needs_native

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@needs_native
def test_the_plan_that_sanitizers_watch_has_the_bits_of_the_cpu() -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run", "--small-plan"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("tensors on cpu, 0 differences from the CPU\n")
