"""Builds the compiled module fastinit._C; everything else about the package stands in pyproject.toml.

FASTINIT_BUILD chooses what is compiled; docs/INSTALL.md explains its values. What came of it lies beside the package's
modules in _build_info.json, so that the package can say it at run time.

The extension includes no torch header and links no libtorch: torch's BuildExtension only drives the compilers, and
where there is no torch, setuptools drives the C++ compiler. One compiled file therefore serves every torch version.
The CUDA run-time is linked statically, and looks for the driver at its first use only: neither building nor importing
needs a GPU.
"""

from __future__ import annotations

import glob
import importlib.machinery
import json
import os
import platform
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build_backend"))
import compilers  # noqa: E402

MODES = ("auto", "cpu", "cuda", "none")

# The results must be the same to the bit on every machine: no contraction of a*b+c, no fast-math, no -march (the
# instruction set is chosen at run time). BuildExtension adds the -std that its torch wants; a second one would clash.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-fast-math", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
CXX_FLAGS += ["-DNDEBUG", "-pthread", "-Wall", "-Wextra"]

# On macOS threads are part of the system's library, and std::aligned_alloc came with macOS 10.15, after the release
# that some Pythons were built for.
LINK_FLAGS = [] if sys.platform == "darwin" else ["-pthread"]
if sys.platform == "darwin":
    os.environ.setdefault("MACOSX_DEPLOYMENT_TARGET", "11.0")

# nvcc contracts a*b+c unless it is told not to; the next three are its defaults, stated because bits depend on them.
NVCC_FLAGS = ["-O3", "--fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"]
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-ffp-contract=off,-fvisibility=hidden,-Wall,-Wextra"]


def build_mode() -> str:
    mode = os.environ.get("FASTINIT_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"FASTINIT_BUILD={mode} is not one of {', '.join(MODES)}")
    return mode


def find_torch() -> Any:
    """The module torch, or None."""
    try:
        import torch
        import torch.utils.cpp_extension
    except Exception as error:
        print(f"fastinit: compiling without torch: {describe(error)}", flush=True)
        return None
    return torch


def extension(torch: Any, toolkit: compilers.Toolkit | None) -> Extension:
    """The extension, with the CUDA backend if there is a toolkit."""

    def find(*patterns: str) -> list[str]:
        return sorted(path for pattern in patterns for path in glob.glob(pattern, root_dir=ROOT))

    # The keys are BuildExtension's own convention.
    flags: Any = {"cxx": [*CXX_FLAGS]} if torch is not None else ["-std=c++17", *CXX_FLAGS]
    if toolkit is not None:
        flags["cxx"].append("-DFASTINIT_CUDA")
        threads = os.environ.get("MAX_JOBS", "0")  # for several architectures at a time; 0: one for each core
        flags["nvcc"] = [*NVCC_FLAGS, *toolkit.compile_flags, "--threads", threads]
    return Extension(
        "fastinit._C",
        # CMakeLists.txt collects the same files by the same patterns (without the binding, which needs Python).
        sources=find("csrc/binding.cpp", "csrc/cpu/*.cpp") + (find("csrc/cuda/*.cu") if toolkit else []),
        include_dirs=[str(ROOT / "csrc")],  # absolute: ninja runs elsewhere
        extra_compile_args=flags,
        extra_link_args=[*LINK_FLAGS, *(toolkit.link_flags if toolkit else [])],
        language="c++",
    )


class Build(build):
    # Where there is no extension setuptools leaves build_ext out; here it must run even then, to say why.
    sub_commands: ClassVar = [(name, None if name == "build_ext" else test) for name, test in build.sub_commands]


class BuildExt(build_ext):
    """Decides, compiles, and records the outcome."""

    def run(self) -> None:
        mode = build_mode()
        folder = ROOT / "fastinit" if self.inplace else Path(self.build_lib, "fastinit")
        # What an earlier build in place left for this Python must not be imported.
        for name in ("_build_info.json", *("_C" + suffix for suffix in importlib.machinery.EXTENSION_SUFFIXES)):
            (folder / name).unlink(missing_ok=True)
        info: dict[str, object] = {"build": "none", "reason": None, "without_cuda": None}
        if mode == "none":
            info["reason"] = "FASTINIT_BUILD=none was set when it was installed"
        else:
            try:
                info |= self.compile(mode)
            # Whatever goes wrong, auto promises a package that works.
            except Exception as error:
                if mode != "auto":
                    raise SystemExit(f"FASTINIT_BUILD={mode}: {describe(error)}") from error
                info["reason"] = describe(error)
                self.extensions = []
                warn("its compiled module: it works through torch.nn.init, slowly", describe(error), "cpu")
        info["python"] = platform.python_version()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def compile(self, mode: str) -> dict[str, object]:
        """Compiles what the mode asks for, and returns what is to be recorded."""
        info: dict[str, object] = {"build": "cpu", "compiler": compilers.find_compiler(), "flags": CXX_FLAGS}
        torch = find_torch()
        info["torch"] = None if torch is None else str(torch.__version__)
        info["without_cuda"] = "FASTINIT_BUILD=cpu was set when it was installed"
        if mode != "cpu":
            try:
                toolkit = compilers.find_toolkit(torch)
                self.compile_extension(torch, toolkit)
                info |= {"build": "cuda", "without_cuda": None, "nvcc": toolkit.nvcc, "nvcc_flags": NVCC_FLAGS}
                return info | {"cuda_architectures": toolkit.architectures}
            except Exception as error:
                if mode == "cuda":
                    raise
                info["without_cuda"] = describe(error)
                if torch is not None and torch.version.cuda is not None:
                    warn("its CUDA backend: tensors on a GPU go through torch.nn.init", describe(error), "cuda")
        self.compile_extension(torch, None)
        return info

    def compile_extension(self, torch: Any, toolkit: compilers.Toolkit | None) -> None:
        import pybind11.setup_helpers

        ext = extension(torch, toolkit)
        ext.include_dirs.append(pybind11.get_include())
        self.distribution.ext_modules = [ext]
        if torch is None:
            pybind11.setup_helpers.ParallelCompile("MAX_JOBS").install()
            compiling = compilers.with_own_flags(build_ext)(self.distribution)
        else:
            # A venv's python started by its path does not have the venv's bin folder, with ninja in it, on PATH.
            os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
            compiling = compilers.with_own_flags(torch.utils.cpp_extension.BuildExtension)(self.distribution)
        if toolkit is not None:
            os.environ["TORCH_CUDA_ARCH_LIST"] = toolkit.architectures
            os.environ.setdefault("NVCC_CCBIN", os.environ.get("CXX", "c++"))  # one host compiler for all files
        compiling.build_lib = self.build_lib
        compiling.ensure_finalized()
        compiling.inplace = self.inplace
        time_needed = "a minute" if toolkit is None else "five minutes"
        print(f"fastinit: compiling, which takes two cores about {time_needed}", flush=True)
        start = time.monotonic()
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            try:
                with compilers.copied_output(log.name):
                    compiling.run()
            except Exception as error:
                reason = compilers.first_error(log.read()) or describe(error)
                raise compilers.BuildError(f"compiling failed: {reason}") from error
        print(f"fastinit: compiled in {time.monotonic() - start:.0f} s", flush=True)


def describe(error: Exception) -> str:
    return str(error) if isinstance(error, compilers.BuildError) else f"{type(error).__name__}: {error}"


def warn(lacking: str, reason: str, mode: str) -> None:
    remedy = f"FASTINIT_BUILD={mode} makes this an error and shows the compiler's messages."
    text = f"WARNING: fastinit is installed WITHOUT {lacking}.\nReason: {reason}\n{remedy}"
    print(f"\n{'*' * 100}\n{text}\n{'*' * 100}\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Built in a folder of its own, outside the source tree: setuptools packs whatever lies in it.
    with tempfile.TemporaryDirectory(prefix="fastinit-") as scratch:
        options = {"build": {"build_base": scratch}}
        if "sdist" not in sys.argv:  # which packs the metadata, too
            options["egg_info"] = {"egg_base": scratch}
        setup(
            # What the extension consists of is known only when it is compiled.
            ext_modules=[] if build_mode() == "none" else [Extension("fastinit._C", [])],
            cmdclass={"build": Build, "build_ext": BuildExt},
            options=options,
        )
