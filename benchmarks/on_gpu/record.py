"""The record of a run: one JSON file, and one table of it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from run import processor

import fastinit
from on_gpu import ROOT
from on_gpu.tables import render


def command_output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures come from. FASTINIT_COMMIT names the commit where the tree is a copy without its history."""
    found: dict[str, Any] = {
        "gpu": None,
        "driver": command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "fastinit": fastinit.__version__,
        "commit": os.environ.get("FASTINIT_COMMIT") or command_output("git", "rev-parse", "HEAD"),
        "changed_files": command_output("git", "status", "--porcelain", "--untracked-files=no"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = properties.name
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["l2_cache_mib"] = round(getattr(properties, "L2_cache_size", 0) / 2**20, 1)
    return found


class Record:
    """gpu.json and gpu.txt in a folder. Several processes add to it, one after the other."""

    def __init__(self, out: Path, afresh: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._json, self._text = out / "gpu.json", out / "gpu.txt"
        self.data: dict[str, Any] = {"machine": {}, "parts": [], "results": [], "counters": []}
        if not afresh:
            self.load()

    def load(self) -> None:
        if self._json.exists():
            self.data = json.loads(self._json.read_text(encoding="utf-8"))

    def save(self) -> None:
        for path, text in ((self._json, json.dumps(self.data, indent=1)), (self._text, render(self.data))):
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(text + "\n", encoding="utf-8")
            unfinished.replace(path)  # a reader, and a kill at any moment, finds the old file or the new one

    def add(self, key: str, entry: dict[str, Any]) -> None:
        self.load()
        self.data[key].append(entry)
        self.save()
