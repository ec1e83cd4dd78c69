"""Builds the compiled module fastinit._C; everything else about the package stands in pyproject.toml.

FASTINIT_BUILD chooses what is compiled:

    auto   the CPU extension; without a compiler, or if compiling fails, a pure-Python package and a loud warning
    cpu    the CPU extension, or an error
    cuda   the CPU and CUDA extension, or an error
    none   nothing

What came of it lies beside the package's modules in _build_info.json, so that the package can say it at run time.
The extension includes no torch header and links no libtorch: torch's BuildExtension only drives the compilers. One
compiled file therefore serves every torch version.
"""

from __future__ import annotations

import glob
import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "fastinit"
MODULE = "_C"
MODES = ("auto", "cpu", "cuda", "none")

# The results must be the same to the bit on every machine: no contraction of a*b+c, no fast-math, no -march (the
# instruction set is chosen at run time). BuildExtension adds the -std that its torch wants; a second one would clash.
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
]
LINK_FLAGS = ["-pthread"]


class BuildError(Exception):
    """Why there is no extension, in words for the person who installs."""


def build_mode() -> str:
    mode = os.environ.get("FASTINIT_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"FASTINIT_BUILD={mode} is not one of {', '.join(MODES)}")
    if mode == "cuda" and not cuda_sources():
        raise SystemExit("FASTINIT_BUILD=cuda: this version of fastinit has no CUDA sources; use auto, cpu or none")
    return mode


def find(*patterns: str) -> list[str]:
    """Files below the root, sorted, so that a build does not depend on the order of directory entries."""
    return sorted(path for pattern in patterns for path in glob.glob(pattern, root_dir=ROOT))


def cpu_sources() -> list[str]:
    # CMakeLists.txt collects the same files by the same patterns (without the binding, which needs Python).
    return find("csrc/binding.cpp", "csrc/cpu/*.cpp")


def cuda_sources() -> list[str]:
    return find("csrc/cuda/*.cu")


def extension() -> Extension:
    return Extension(
        f"{PACKAGE}.{MODULE}",
        sources=cpu_sources(),
        depends=find("csrc/*.h", "csrc/*/*.h"),
        include_dirs=[str(ROOT / "csrc")],  # absolute, since ninja runs in the build folder
        extra_compile_args={"cxx": CXX_FLAGS},  # type: ignore[arg-type]  # a dict is BuildExtension's own convention
        extra_link_args=LINK_FLAGS,
        language="c++",
    )


def default_max_jobs() -> int:
    """As many compilers as there are cores and 2 GiB of memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory_bytes // (2 << 30)))


def find_compiler() -> str:
    """The first line of the compiler's --version; BuildExtension compiles with the same command."""
    command = os.environ.get("CXX", "c++")
    try:
        output = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
        return output.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise BuildError(f"no C++ compiler: {command} does not run (on Debian: apt install g++)") from error


class Build(build):
    # Where there is no extension setuptools leaves build_ext out; here it must run even then, to say why.
    sub_commands: ClassVar = [(name, None if name == "build_ext" else test) for name, test in build.sub_commands]

    def run(self) -> None:
        # setuptools packs whatever lies in this folder: files of an earlier build would come along.
        shutil.rmtree(Path(self.build_lib, PACKAGE), ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Decides, compiles through torch's BuildExtension, and records the outcome."""

    def run(self) -> None:
        mode = build_mode()
        self.package_dir = ROOT / PACKAGE if self.inplace else Path(self.build_lib, PACKAGE)
        self.remove_old()

        info = {"build": "none", "reason": None, "compiler": None, "flags": None, "torch": None}
        if mode == "none":
            info["reason"] = "FASTINIT_BUILD=none was set when it was installed"
        else:
            try:
                self.compile(info)
                info["build"] = "cpu"
            # Whatever goes wrong, auto promises a package that works.
            except Exception as error:
                if mode != "auto":
                    raise SystemExit(f"FASTINIT_BUILD={mode}: {describe(error)}") from error
                info["reason"] = describe(error)
                self.extensions = []
                print(banner(info["reason"]), file=sys.stderr, flush=True)

        info["python"] = sysconfig.get_config_var("SOABI")
        self.package_dir.mkdir(parents=True, exist_ok=True)
        (self.package_dir / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def remove_old(self) -> None:
        """Removes what an earlier build left for this Python: nothing stale may be imported or packed."""
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            (self.package_dir / (MODULE + suffix)).unlink(missing_ok=True)
        (self.package_dir / "_build_info.json").unlink(missing_ok=True)

    def compile(self, info: dict[str, object]) -> None:
        info["compiler"] = find_compiler()
        info["flags"] = CXX_FLAGS
        os.environ.setdefault("MAX_JOBS", str(default_max_jobs()))

        try:
            # Only here: torch takes seconds to import, and the commands that compile nothing must work without it.
            import pybind11
            import torch
            from torch.utils.cpp_extension import BuildExtension
        except Exception as error:
            raise BuildError(f"the build needs torch and pybind11: {describe(error)}") from error
        info["torch"] = str(torch.__version__)

        if shutil.which("ninja") is None:
            # A venv's python started by its path does not have the venv's bin folder, with ninja in it, on PATH.
            os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

        for ext in self.extensions:
            ext.include_dirs.append(pybind11.get_include())
        compiling = BuildExtension(self.distribution)
        compiling.build_lib = self.build_lib
        # An editable install would use a temporary folder; in a lasting one ninja compiles only what changed.
        compiling.build_temp = str(ROOT / "build" / f"temp-{sysconfig.get_config_var('SOABI')}")
        compiling.ensure_finalized()
        compiling.inplace = self.inplace
        try:
            compiling.run()
        except Exception as error:
            raise BuildError(f"compiling failed: {compiler_error(compiling.build_temp) or describe(error)}") from error


def compiler_error(build_temp: str) -> str | None:
    """What the compiler objected to first. Installers hide its messages, and BuildExtension does not pass them on."""
    if shutil.which("ninja") is None or not Path(build_temp, "build.ninja").is_file():
        return None
    again = subprocess.run(["ninja"], cwd=build_temp, stdout=subprocess.PIPE, text=True, check=False)
    found = re.search(r"error: .*", again.stdout)
    return found.group(0) if found else None


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"


def banner(reason: object) -> str:
    line = "*" * 100
    return (
        f"\n{line}\nWARNING: fastinit is installed WITHOUT its compiled module: it works through torch.nn.init, slowly."
        f"\nReason: {reason}\nFASTINIT_BUILD=cpu makes this an error and shows the compiler's messages.\n{line}\n"
    )


if __name__ == "__main__":
    setup(
        ext_modules=[] if build_mode() == "none" else [extension()],
        cmdclass={"build": Build, "build_ext": BuildExt},
    )
