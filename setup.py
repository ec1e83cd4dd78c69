"""Builds the compiled module fastinit._C; everything else about the package stands in pyproject.toml.

FASTINIT_BUILD chooses what is compiled:

    auto   the CPU backend, and the CUDA backend where torch is built for CUDA and there is nvcc; a loud warning if
           either cannot be compiled: without the CUDA backend the CPU's is left, without both a pure-Python package
    cpu    the CPU backend, or an error
    cuda   the CPU and CUDA backends, or an error
    none   nothing

What came of it lies beside the package's modules in _build_info.json, so that the package can say it at run time.
The extension includes no torch header and links no libtorch: torch's BuildExtension only drives the compilers. One
compiled file therefore serves every torch version. The CUDA run-time is linked statically, and looks for the driver at
its first use only: neither building nor importing needs a GPU.
"""

from __future__ import annotations

import glob
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

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

# nvcc contracts a*b+c unless it is told not to; the next three are its defaults, stated because bits depend on them.
NVCC_FLAGS = [
    "-O3",
    "--fmad=false",
    "-ftz=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "-Xcompiler",
    "-fPIC,-ffp-contract=off,-fvisibility=hidden,-Wall,-Wextra",
]
CUDA_LINK_FLAGS = ["-ldl", "-lrt"]  # what libcudart_static.a needs beyond threads
# One for each family of GPUs since Turing; what compiles for 8.0 also runs on 8.7, for 10.0 on 10.3.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


class BuildError(Exception):
    """Why there is no extension, in words for the person who installs."""


def build_mode() -> str:
    mode = os.environ.get("FASTINIT_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"FASTINIT_BUILD={mode} is not one of {', '.join(MODES)}")
    return mode


def find(*patterns: str) -> list[str]:
    """Files below the root, sorted, so that a build does not depend on the order of directory entries."""
    return sorted(path for pattern in patterns for path in glob.glob(pattern, root_dir=ROOT))


def cpu_sources() -> list[str]:
    # CMakeLists.txt collects the same files by the same patterns (without the binding, which needs Python).
    return find("csrc/binding.cpp", "csrc/cpu/*.cpp")


def cuda_sources() -> list[str]:
    return find("csrc/cuda/*.cu")


def extension(toolkit: Toolkit | None) -> Extension:
    """The extension, with the CUDA backend if there is a toolkit."""
    # The keys are BuildExtension's own convention.
    flags = {"cxx": [*CXX_FLAGS]}
    if toolkit is not None:
        flags["cxx"].append("-DFASTINIT_CUDA")
        flags["nvcc"] = [*NVCC_FLAGS, "--threads", str(max_jobs())]  # architectures at the same time
    return Extension(
        f"{PACKAGE}.{MODULE}",
        sources=cpu_sources() + (cuda_sources() if toolkit else []),
        depends=find("csrc/*.h", "csrc/*/*.h"),
        include_dirs=[str(ROOT / "csrc"), *(toolkit.include_dirs if toolkit else [])],  # absolute: ninja runs elsewhere
        extra_compile_args=flags,  # type: ignore[arg-type]
        extra_objects=[toolkit.runtime] if toolkit else [],
        extra_link_args=LINK_FLAGS + (CUDA_LINK_FLAGS if toolkit else []),
        language="c++",
    )


def max_jobs() -> int:
    """MAX_JOBS, or as many compilers as there are cores and 2 GiB of memory for each."""
    wanted = os.environ.get("MAX_JOBS", "")
    if wanted.isdigit():
        return int(wanted)
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


class Torch(NamedTuple):
    """What matters here of the installed torch."""

    version: str
    cuda: str | None  # the CUDA version that it is built for
    cuda_home: str | None  # where it finds a toolkit: CUDA_HOME, or else by PATH, or else /usr/local/cuda


def inspect_torch() -> Torch:
    try:
        # Only here: torch takes seconds to import, and the commands that compile nothing must work without it.
        import pybind11  # noqa: F401
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except Exception as error:
        raise BuildError(f"the build needs torch and pybind11: {describe(error)}") from error
    return Torch(str(torch.__version__), torch.version.cuda, CUDA_HOME)


class Toolkit(NamedTuple):
    """What the CUDA backend is compiled with."""

    nvcc: str  # its version, in its own words
    architectures: str  # in the words of TORCH_CUDA_ARCH_LIST
    include_dirs: list[str]  # beyond those that nvcc knows
    runtime: str  # the path of libcudart_static.a


def find_toolkit(torch: Torch) -> Toolkit:
    if torch.cuda is None:
        raise BuildError(f"torch {torch.version} is a build without CUDA")
    if torch.cuda_home is None:
        raise BuildError("no CUDA toolkit: nvcc is not on PATH, CUDA_HOME is not set, and there is no /usr/local/cuda")
    nvcc = Path(torch.cuda_home, "bin", "nvcc")
    version = ask(nvcc, "--version")
    release = re.search(r"^.*release (\d+)\..*$", version, re.MULTILINE)
    major = torch.cuda.split(".")[0]
    if release is None or release[1] != major:
        # BuildExtension would refuse it, too.
        found = release[0] if release else version
        raise BuildError(
            f"torch {torch.version} is built for CUDA {torch.cuda} and needs an nvcc {major}: {nvcc} is {found}"
        )

    # nvcc itself knows best where the rest of its toolkit is: what lies on PATH may be a link or a script.
    folders = ask(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
    includes = [Path(folder) for folder in re.findall(r'"-I([^"]+)"', folders)]
    libraries = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', folders)]
    libraries += [Path(torch.cuda_home, "lib64"), Path(torch.cuda_home, "lib")]
    wheels = nvidia_wheels(major)
    libraries += [wheel / "lib" for wheel in wheels]
    runtime = find_file("libcudart_static.a", libraries)
    if runtime is None:
        raise BuildError(f"no libcudart_static.a in {', '.join(map(str, libraries))}")
    complete = all(find_file(header, includes) for header in ("cuda_runtime.h", "crt/host_config.h"))
    return Toolkit(
        nvcc=release[0],
        architectures=os.environ.get("TORCH_CUDA_ARCH_LIST") or default_architectures(ask(nvcc, "--list-gpu-arch")),
        include_dirs=[] if complete else [str(wheel / "include") for wheel in wheels],
        runtime=str(runtime),
    )


def ask(nvcc: Path, *options: str) -> str:
    """All that nvcc prints."""
    try:
        return subprocess.run(
            [nvcc, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"no nvcc: {nvcc} does not run (CUDA_HOME, else PATH, says where it is)") from error


def find_file(name: str, folders: Iterable[Path]) -> Path | None:
    """The file of this name in the first folder that has one."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def nvidia_wheels(major: str) -> list[Path]:
    """Where the wheels that a CUDA build of torch requires keep headers and libraries of the CUDA run-time."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    return [
        path
        for folder in folders or []
        for name in (f"cu{major}", "cuda_runtime")
        if (path := Path(folder, name)).is_dir()
    ]


def default_architectures(known: str) -> str:
    """Those of ARCHITECTURES that nvcc knows, by its --list-gpu-arch; and PTX of the newest, for GPUs newer than it."""
    names = known.split()
    return ";".join(a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in names) + "+PTX"


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

        info: dict[str, object] = {"build": "none", "reason": None, "without_cuda": None}
        if mode == "none":
            info["reason"] = "FASTINIT_BUILD=none was set when it was installed"
        else:
            try:
                self.compile(mode, info)
            # Whatever goes wrong, auto promises a package that works.
            except Exception as error:
                if mode != "auto":
                    raise SystemExit(f"FASTINIT_BUILD={mode}: {describe(error)}") from error
                info["reason"] = describe(error)
                info["without_cuda"] = None
                self.extensions = []
                warn("its compiled module: it works through torch.nn.init, slowly", describe(error), "cpu")

        info["python"] = sysconfig.get_config_var("SOABI")
        self.package_dir.mkdir(parents=True, exist_ok=True)
        (self.package_dir / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def remove_old(self) -> None:
        """Removes what an earlier build left for this Python: nothing stale may be imported or packed."""
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            (self.package_dir / (MODULE + suffix)).unlink(missing_ok=True)
        (self.package_dir / "_build_info.json").unlink(missing_ok=True)

    def compile(self, mode: str, info: dict[str, object]) -> None:
        info["compiler"] = find_compiler()
        info["flags"] = CXX_FLAGS
        torch = inspect_torch()
        info["torch"] = torch.version

        if mode == "cpu":
            info["without_cuda"] = "FASTINIT_BUILD=cpu was set when it was installed"
        else:
            try:
                toolkit = find_toolkit(torch)
                self.compile_extension(toolkit)
            except Exception as error:
                if mode == "cuda":
                    raise
                info["without_cuda"] = describe(error)
                if torch.cuda is not None:
                    warn("its CUDA backend: tensors on a GPU go through torch.nn.init", describe(error), "cuda")
            else:
                info["build"] = "cuda"
                info["nvcc"] = toolkit.nvcc
                info["cuda_architectures"] = toolkit.architectures
                info["nvcc_flags"] = NVCC_FLAGS
                return
        self.compile_extension(None)
        info["build"] = "cpu"

    def compile_extension(self, toolkit: Toolkit | None) -> None:
        import pybind11
        from torch.utils.cpp_extension import BuildExtension

        os.environ["MAX_JOBS"] = str(max_jobs())
        if toolkit is not None:
            os.environ["TORCH_CUDA_ARCH_LIST"] = toolkit.architectures
            if "CXX" in os.environ:
                os.environ.setdefault("NVCC_CCBIN", os.environ["CXX"])  # one host compiler for all files
        if shutil.which("ninja") is None:
            # A venv's python started by its path does not have the venv's bin folder, with ninja in it, on PATH.
            os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

        ext = extension(toolkit)
        ext.include_dirs.append(pybind11.get_include())
        self.distribution.ext_modules = [ext]
        compiling = BuildExtension(self.distribution)
        compiling.build_lib = self.build_lib
        # An editable install would use a temporary folder; in a lasting one ninja compiles only what changed.
        name = f"temp-{'cpu' if toolkit is None else 'cuda'}-{sysconfig.get_config_var('SOABI')}"
        compiling.build_temp = str(ROOT / "build" / name)
        compiling.ensure_finalized()
        compiling.inplace = self.inplace
        Path(compiling.build_temp, "build.ninja").unlink(missing_ok=True)  # an older one's errors are not this one's
        try:
            compiling.run()
        except Exception as error:
            raise BuildError(f"compiling failed: {compiler_error(compiling.build_temp) or describe(error)}") from error


def compiler_error(build_temp: str) -> str | None:
    """What the compiler objected to first. Installers hide its messages, and BuildExtension does not pass them on."""
    if shutil.which("ninja") is None or not Path(build_temp, "build.ninja").is_file():
        return None
    again = subprocess.run(["ninja"], cwd=build_temp, stdout=subprocess.PIPE, text=True, check=False)
    found = re.search(r"(error|fatal) *: .*", again.stdout)  # nvcc's own and ptxas' have blanks
    return found.group(0) if found else None


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"


def warn(lacking: str, reason: str, mode: str) -> None:
    line = "*" * 100
    print(
        f"\n{line}\nWARNING: fastinit is installed WITHOUT {lacking}.\nReason: {reason}"
        f"\nFASTINIT_BUILD={mode} makes this an error and shows the compiler's messages.\n{line}\n",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    setup(
        # What it really consists of is known only when it is compiled.
        ext_modules=[] if build_mode() == "none" else [extension(None)],
        cmdclass={"build": Build, "build_ext": BuildExt},
    )
