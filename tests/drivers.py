"""Kernels of the CUDA backend compiled for the CPU: shared libraries, each with a device of its own to run on.

Compiling takes half a minute a kernel, so what was made of the same files is kept in build/drivers (or in the folder
that FASTINIT_TEST_DRIVERS names), for every process and later run.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc")
CXX = os.environ.get("CXX", "c++")
# The flags of setup.py that decide about results.
NVCC_FLAGS = ["-O3", "-std=c++17", "--fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"]
CXX_FLAGS = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
]
CXX_FLAGS += ["-Wall", "-Wextra", "-Werror"]
EMULATION = ROOT / "tests" / "cuda_on_cpu"


def compile_ptx(folder: Path, *flags: str, source: Path = ROOT / "csrc/cuda/fill.cu") -> str:
    """What nvcc makes of the kernel. Skips without nvcc, unless FASTINIT_REQUIRE_NVCC is set."""
    if NVCC is None:
        if os.environ.get("FASTINIT_REQUIRE_NVCC"):
            pytest.fail("FASTINIT_REQUIRE_NVCC is set, and there is no nvcc")
        pytest.skip("needs nvcc")
    out = folder / "fill.ptx"
    command = [
        NVCC,
        *(flags or NVCC_FLAGS),
        f"-I{ROOT / 'csrc'}",
        "-arch=compute_90",
        "-ptx",
        str(source),
        "-o",
        str(out),
    ]
    subprocess.run(command, check=True, cwd=folder)
    return out.read_text(encoding="utf-8")


def compile_driver(folder: Path, kernel: str, *flags: str, source: Path = ROOT / "csrc") -> ctypes.CDLL:
    """The kernel's file of the folder `source`, with its host code. Every caller has a device of its own."""
    defined = f"-DSOURCE_{kernel.upper()}"
    return _loaded(folder, [defined, *flags], source, [path for path in sorted(source.rglob("*")) if path.is_file()])


def breakable_driver(folder: Path, kernel: str, breaks: Mapping[str, tuple[str, str, str]]) -> ctypes.CDLL:
    """The kernel's file, which `break_by` can break. A break is a file of csrc/cuda, what stands there once, and what
    stands there instead, with BREAK, true when it is this break's turn. One library for all, as compiling takes long.
    """
    source = folder / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    for number, (name, given, broken) in enumerate(breaks.values(), 1):
        file = source / "cuda" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(given) == 1, given
        file.write_text(text.replace(given, broken.replace("BREAK", f"(active_break == {number})")), encoding="utf-8")
    declaration = 'extern "C" { __attribute__((visibility("default"))) int active_break = 0; }\n'
    (folder / "active_break.h").write_text(declaration, encoding="utf-8")
    return compile_driver(folder, kernel, "-O0", "-include", str(folder / "active_break.h"), source=source)


def break_by(driver: ctypes.CDLL, breaks: Mapping[str, object], name: str | None) -> None:
    """Break the driver by the break of this name, or by none."""
    ctypes.c_int.in_dll(driver, "active_break").value = 0 if name is None else [*breaks].index(name) + 1


def ptx_driver(folder: Path, kernel: str, ptx: str) -> ctypes.CDLL:
    """What nvcc made of the kernel."""
    (folder / "kernel.ptx").write_text(ptx, encoding="utf-8")
    translate = [sys.executable, str(ROOT / "tests/ptx_to_cpp.py"), "kernel.ptx", "--entry-name", f"{kernel}_kernel"]
    subprocess.run([*translate, "-o", "kernel.h"], check=True, cwd=folder)
    sources = [folder / "kernel.h", *sorted((ROOT / "csrc").rglob("*.h"))]
    return _loaded(folder, [f'-DPTX_{kernel.upper()}="kernel.h"', f"-I{folder}"], ROOT / "csrc", sources)


def _loaded(folder: Path, flags: list[str], source: Path, sources: list[Path]) -> ctypes.CDLL:
    version = subprocess.run([CXX, "--version"], check=True, capture_output=True).stdout
    words = [*CXX_FLAGS, *(flag for flag in flags if str(folder) not in flag)]
    content = hashlib.sha256(version + " ".join(words).encode())
    for path in [*sources, *sorted(EMULATION.glob("*.h")), EMULATION / "driver.cpp"]:
        content.update(path.name.encode() + path.read_bytes())
    kept = Path(os.environ.get("FASTINIT_TEST_DRIVERS") or ROOT / "build" / "drivers")
    kept.mkdir(parents=True, exist_ok=True)
    compiled = kept / f"{content.hexdigest()[:32]}.so"
    with open(compiled.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process compiles it, the others wait
        if not compiled.exists():
            command = [CXX, "-x", "c++", *CXX_FLAGS, *flags, f"-I{source}", f"-I{EMULATION}"]
            out = compiled.with_suffix(".part")
            subprocess.run([*command, str(EMULATION / "driver.cpp"), "-o", str(out)], check=True, cwd=folder)
            out.rename(compiled)
    # A copy: the same file would be loaded once for all.
    _drivers.append(ctypes.CDLL(shutil.copy(compiled, folder / "driver.so")))
    return _drivers[-1]


_drivers: list[ctypes.CDLL] = []


def release_stacks() -> None:
    """Give back what the emulated threads hold: every stack is a mapping, and fastinit reads the list of all mappings
    for each tensor in memory that is not torch's."""
    for driver in _drivers:
        driver.release_stacks()
    _drivers.clear()
