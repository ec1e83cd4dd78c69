"""What is done on a machine with a GPU: `make gpu OUT=dir`, or parts of it by hand.

    python benchmarks/gpu.py --out DIR          the benchmarks, with a fastinit that is built for CUDA
    python benchmarks/gpu.py --all --out DIR    build, tests, sanitizer, benchmarks, counters: `make gpu`

Needs no network. Writes gpu.json and gpu.txt into DIR after every row and every part, so that whatever breaks off later
takes nothing along; at most eight files in all. With --dry-run, on the CPU and with tiny tensors: it shows that the
script works, and its figures mean nothing. What is done lies in on_gpu/, a file for each job: a row goes into rows.py.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from on_gpu import SCRIPT
from on_gpu.counters import profile
from on_gpu.measuring import Work, measure
from on_gpu.parts import Part, Runner, find_tool
from on_gpu.record import Record, machine
from on_gpu.rows import works
from on_gpu.settings import Settings, native
from on_gpu.tables import render
from on_gpu.watched import one_launch_each, small_plan

MOST_SECONDS = 465.0  # of everything


def run_row(name: str, make: Callable[[], Work], settings: Settings) -> dict[str, Any]:
    """A row's figures, or what went wrong with it."""
    try:
        work = make()
        if work.one_launch and settings.on_gpu:
            before = native().cuda_launches()
            work.contestants["fastinit"]()
            work.notes["launches"] = native().cuda_launches() - before
            assert work.notes["launches"] == 1, f"{work.notes['launches']} launches, not one"
        return measure(work, settings)
    except Exception as error:  # whatever it is, the other rows are to be measured
        traceback.print_exc()
        return {"work": name, "error": f"{type(error).__name__}: {error}"}


def benchmark(arguments: argparse.Namespace) -> int:
    settings = Settings.of(arguments)
    if settings.on_gpu and not native().HAS_CUDA:
        raise SystemExit("the native code is built without CUDA; FASTINIT_BUILD=cuda, or make gpu")
    record = Record(arguments.out, afresh=not arguments.append)
    record.data["machine"] = machine()
    record.data["results"] = []
    record.save()
    failed = 0
    for name, make in works(settings, arguments.quick):
        before = time.perf_counter()
        result = run_row(name, make, settings)
        failed += "error" in result
        record.add("results", result)
        if settings.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - before:6.1f} s  {result['work']}", flush=True)
    if not arguments.append:
        print("\n" + render(record.data))
    return 1 if failed else 0


CHECK = """
import torch
from fastinit import _native
assert _native.module is not None, _native.reason
assert _native.module.HAS_CUDA, "built without CUDA"
assert torch.cuda.is_available(), "no GPU"
print("found:", torch.cuda.get_device_name(), "and an extension for it")
"""


def pytest_command(*arguments: str) -> list[str]:
    # Deprecations in whatever packages lie there are no business of this suite, which takes warnings for errors.
    quiet = ["-W", "default::DeprecationWarning", "-W", "default::FutureWarning"]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=10", *quiet, *arguments]


def everything(arguments: argparse.Namespace) -> int:
    """Build, tests, sanitizer, benchmarks, counters; the rest of the test suite with the time that is left."""
    out: Path = arguments.out
    dry = arguments.dry_run
    own = [sys.executable, str(SCRIPT), "--out", str(out)]
    own += ["--quick"] * arguments.quick + ["--dry-run"] * dry
    out.mkdir(parents=True, exist_ok=True)
    for old in ("build.log", "cuda-tests.log", "benchmarks.log", "sanitizer.log", "ncu-fill_kernel.txt", "tests.log"):
        (out / old).unlink(missing_ok=True)
    record = Record(out, afresh=True)
    record.data["machine"] = machine()
    record.save()
    runner = Runner(record, out, arguments.seconds)
    if not dry:
        arch = record.data["machine"].get("compute_capability")
        environment = {"FASTINIT_BUILD": "cuda"}
        if arch is not None:
            environment["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or arch
        build = [sys.executable, "setup.py", "build_ext", "--inplace"]
        runner.run(Part("build", build, 150.0, "build.log", environment=environment))
        runner.run(Part("check", [sys.executable, "-c", CHECK], 40.0, "build.log", "found:"))
    on_cpu = {"FASTINIT_TEST_CUDA_DEVICE": "cpu"} if dry else {}
    runner.run(
        Part("CUDA tests", pytest_command("tests/test_cuda.py"), 120.0, "cuda-tests.log", " in ", environment=on_cpu)
    )
    runner.run(Part("benchmarks", [*own, "--append"], 150.0, "benchmarks.log"))
    sanitizer = find_tool("compute-sanitizer")
    # Without torch's cache of memory, a tensor's neighbours are not another tensor's, and a write outside is seen.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool, options in (("memcheck", ["--report-api-errors", "no"]), ("racecheck", [])):
        if sanitizer is None:
            runner.skip(tool, "no compute-sanitizer")
            continue
        # All our kernels have the namespace in their names.
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *options, "--kernel-name", "kns=fastinit"]
        command += [sys.executable, str(SCRIPT), "--small-plan", *["--dry-run"] * dry]
        runner.run(Part(tool, command, 75.0, "sanitizer.log", "SUMMARY", uncached))
    if arguments.quick or find_tool("ncu") is None:
        runner.skip("counters", "asked to be quick" if arguments.quick else "no ncu")
    else:
        runner.run(Part("counters", [*own, "--profile"], 90.0, "benchmarks.log", "==ERROR==", required=False))
    # Without what takes long, if there is little time.
    chosen = "not cuda" if runner.left() > 180.0 else "not cuda and not slow"
    rest = pytest_command("tests", "-m", chosen, *["--collect-only"] * dry)
    if arguments.gpu_only:
        runner.skip("other tests", "asked for what needs a GPU")
    else:
        runner.run(Part("other tests", rest, runner.left(), "tests.log", " in "))
    record.load()
    print("\n" + render(record.data))
    print(f"\nin {out}; " + (f"FAILED: {', '.join(runner.failed)}" if runner.failed else "all parts passed"))
    return 1 if runner.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="the folder for gpu.json and gpu.txt")
    parser.add_argument("--all", action="store_true", help="build, tests, sanitizer, benchmarks, counters")
    parser.add_argument("--quick", action="store_true", help="smaller tensors, fewer samples, no counters")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: figures mean nothing")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="with --all: the most that it may take")
    parser.add_argument("--gpu-only", action="store_true", help="with --all: without tests that need no GPU")
    parser.add_argument("--append", action="store_true", help="add to the gpu.json that is there")
    parser.add_argument("--small-plan", action="store_true", help="a few MB of everything, for sanitizers")
    parser.add_argument(
        "--one", nargs=2, metavar=("KIND", "DTYPE"), action="append", help="1 GiB of it, for a profiler"
    )
    parser.add_argument("--profile", action="store_true", help="the counters, with ncu")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if arguments.all:
        return everything(arguments)
    if arguments.small_plan:
        return small_plan(arguments)
    if arguments.one:
        return one_launch_each(arguments)
    if arguments.profile:
        return profile(arguments)
    return benchmark(arguments)


if __name__ == "__main__":
    sys.exit(main())
