"""Rows, and how the contestants of one are timed."""
# mypy: disable-error-code="no-untyped-call"
# Events have no types.

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from on_gpu.settings import Settings


class Wanted(NamedTuple):
    """At least so much of another contestant's speed."""

    least: float
    of: str  # "of fill_" or "x torch"


@dataclass
class Work:
    """One row: contestants that do the same work on the same memory."""

    name: str
    numel: int
    num_bytes: int
    contestants: dict[str, Callable[[], object]]
    wanted: tuple[Wanted, ...] = ()
    whole_calls: bool = False  # one call a sample, the host's time included
    one_launch: bool = False  # of the contestant "fastinit", counted
    notes: dict[str, Any] = field(default_factory=dict)


def seconds_of(work: Callable[[], object], calls: int, settings: Settings) -> float:
    """Of one call, by events on the device. It is idle before, so that time spent on the host counts where it waits."""
    settings.synchronize()
    if not settings.on_gpu:
        before = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - before) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def warm_up(work: Work, settings: Settings) -> dict[str, float]:
    """Once each, and then until the clocks have risen. Returns about how long each takes."""
    for each in work.contestants.values():
        each()
    settings.synchronize()
    heating = work.contestants.get("fill") or next(iter(work.contestants.values()))
    until = time.perf_counter() + 10 * settings.sample_seconds
    while time.perf_counter() < until:
        heating()
        settings.synchronize()
    return {name: seconds_of(each, 1, settings) for name, each in work.contestants.items()}


def measure(work: Work, settings: Settings) -> dict[str, Any]:
    """The medians of all contestants, their samples taken in turns."""
    about = warm_up(work, settings)
    calls: dict[str, int] = {}
    repetitions: dict[str, int] = {}
    for name, seconds in about.items():
        whole = work.whole_calls and name in ("torch", "fastinit")
        calls[name] = 1 if whole else max(1, min(200, math.ceil(settings.sample_seconds / max(seconds, 1e-7))))
        # What takes seconds is sampled less often: at least five times.
        affordable = math.floor(4.0 / max(seconds * calls[name], 1e-7))
        repetitions[name] = max(min(5, settings.repetitions), min(settings.repetitions, affordable))
    samples: dict[str, list[float]] = {name: [] for name in about}
    names = list(about)
    gc.collect()
    gc.disable()
    try:
        for turn in range(max(repetitions.values())):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]  # nobody always comes after the same one
                if turn < repetitions[name]:
                    samples[name].append(seconds_of(work.contestants[name], calls[name], settings))
    finally:
        gc.enable()
    return summary(work, samples, calls)


def summary(work: Work, samples: dict[str, list[float]], calls: dict[str, int]) -> dict[str, Any]:
    seconds: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        seconds[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "iqr": quartiles[2] - quartiles[0],
            "samples": len(values),
            "calls_a_sample": calls[name],
        }
    median = {name: each["median"] for name, each in seconds.items()}
    ours = median.get("fastinit", median.get("kernel", math.nan))
    ratio_to_torch = median["torch"] / ours if "torch" in median else None
    share_of_fill = median["fill"] / ours if "fill" in median else None
    measured = {"x torch": ratio_to_torch, "of fill_": share_of_fill}
    wanted = []
    for wish in work.wanted:
        value = measured[wish.of]
        wanted.append({**wish._asdict(), "measured": value, "reached": value is not None and value >= wish.least})
    return {
        "work": work.name,
        "numel": work.numel,
        "bytes": work.num_bytes,
        "seconds": seconds,
        "gigabytes_per_second": {name: work.num_bytes / value / 1e9 for name, value in median.items()},
        "values_per_second": work.numel / ours,
        "ratio_to_torch": ratio_to_torch,
        "share_of_fill": share_of_fill,
        "kernel_share_of_fill": median["fill"] / median["kernel"] if {"fill", "kernel"} <= median.keys() else None,
        "wanted": wanted,
        **work.notes,
    }
