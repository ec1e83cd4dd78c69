"""Parts of a run: commands with a time limit each, one after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from on_gpu import ROOT
from on_gpu.record import Record


def find_tool(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        for pattern in ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda-*/bin"):
            for path in sorted(Path("/").glob(f"{pattern[1:]}/{name}"), reverse=True):
                return str(path)
    return found


@dataclass(frozen=True)
class Part:
    """A command with a time limit. Its output goes into a log; a pattern picks the line that tells the outcome."""

    name: str
    command: Sequence[str]
    limit: float
    log: str
    telling: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = True


def telling_line(text: str, pattern: str) -> str:
    found = [line.strip(" =\n") for line in text.splitlines() if pattern and pattern in line]
    return found[-1][:150] if found else ""


class Runner:
    """Runs parts one after the other, whatever becomes of each, within one time limit."""

    def __init__(self, record: Record, out: Path, most_seconds: float) -> None:
        self._record, self._out = record, out
        self._deadline = time.monotonic() + most_seconds
        self.failed: list[str] = []

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def skip(self, name: str, why: str) -> None:
        self._note(name, 0.0, "not run", why, failed=False)

    def run(self, part: Part) -> bool:
        limit = min(part.limit, self.left())
        if limit < 5.0:
            self._note(part.name, 0.0, "not run", "no time was left", failed=part.required)
            return False
        print(f"---- {part.name} (at most {limit:.0f} s)", flush=True)
        before = time.monotonic()
        path = self._out / part.log
        begin = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            log.write(f"---- {part.name}: {' '.join(part.command)}\n".encode())
            log.flush()
            status = self._wait(part, log, limit)
        with path.open("rb") as log:
            log.seek(begin)
            text = log.read().decode(errors="replace")
        outcome = "passed" if status == 0 else "out of time" if status is None else f"failed ({status})"
        self._note(
            part.name,
            time.monotonic() - before,
            outcome,
            telling_line(text, part.telling),
            part.required and status != 0,
        )
        if status != 0:
            print("\n".join(text.splitlines()[-25:]), flush=True)
        return status == 0

    def _wait(self, part: Part, log: Any, limit: float) -> int | None:
        """The exit status, or None where the limit was reached. Nothing that the part started is left behind."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **part.environment}
        try:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 127
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self._signal(process, signal.SIGINT)  # pytest sums up what it has done so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10.0)
            return None
        finally:
            self._signal(process, signal.SIGKILL)
            process.wait()

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], which: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, which)

    def _note(self, name: str, seconds: float, outcome: str, detail: str, failed: bool) -> None:
        if failed:
            self.failed.append(name)
        entry = {"part": name, "outcome": outcome, "seconds": round(seconds, 1), "detail": detail}
        self._record.add("parts", entry)
        print(f"     {outcome}, {seconds:.1f} s  {detail}", flush=True)
