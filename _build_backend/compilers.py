"""What setup.py compiles with: the C++ compiler, the CUDA toolkit, and what they print."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Those of torch's own wheels. What is compiled for 8.0 also runs on 8.7, for 8.6 on 8.9, for 10.0 on 10.3.
ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")

# Whose PTX serves an architecture that has none of its own: it would be the same to the letter, for nothing in csrc/
# tells these apart, and making it is half of the work.
PTX_OF = {"8.6": "8.0"}


class BuildError(Exception):
    """Why something cannot be compiled, in words for the person who installs."""


class Toolkit(NamedTuple):
    nvcc: str  # its version, in its own words
    architectures: str  # in the words of TORCH_CUDA_ARCH_LIST
    compile_flags: list[str]
    link_flags: list[str]


def find_compiler() -> str:
    """The first line of the compiler's --version; everything here compiles with the same command."""
    try:
        return ask(os.environ.get("CXX", "c++"), "--version").partition("\n")[0]
    except BuildError as error:
        raise BuildError(f"no C++ compiler: {error} (on Debian: apt install g++)") from error


def find_toolkit(torch: Any) -> Toolkit:
    """The CUDA toolkit that fits the module torch, which is None where there is no torch."""
    if torch is None:
        raise BuildError("the build cannot import torch (--no-build-isolation shows it that of the environment)")
    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} is a build without CUDA")
    home = torch.utils.cpp_extension.CUDA_HOME
    if home is None:
        raise BuildError("no CUDA toolkit: nvcc is not on PATH, CUDA_HOME is not set, and there is no /usr/local/cuda")
    nvcc = Path(home, "bin", "nvcc")
    version = ask(nvcc, "--version")
    release = re.search(r"^.*release (\d+)\..*$", version, re.MULTILINE)
    major = torch.version.cuda.split(".")[0]
    if release is None or release[1] != major:
        # BuildExtension would refuse it, too.
        wanted = f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and needs an nvcc {major}"
        raise BuildError(f"{wanted}: {nvcc} is {release[0] if release else version}")

    # nvcc itself knows best where its libraries are: what lies on PATH may be a link or a script. What the toolkit
    # lacks comes from the wheels that a CUDA build of torch requires; -isystem comes after nvcc's own folders.
    steps = ask(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
    folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', steps)]
    nvidia = Path(torch.__file__).parents[1] / "nvidia"
    wheels = [wheel for wheel in (nvidia / f"cu{major}", nvidia / "cuda_runtime") if wheel.is_dir()]
    folders += [wheel / "lib" for wheel in wheels]
    runtime = next((path for folder in folders if (path := folder / "libcudart_static.a").is_file()), None)
    if runtime is None:
        raise BuildError(f"no libcudart_static.a in {', '.join(map(str, folders))}")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")  # torch makes flags of it
    gencode = []
    if not architectures:
        architectures = default_architectures(ask(nvcc, "--list-gpu-arch"))
        gencode = gencode_flags(architectures)
    return Toolkit(
        nvcc=release[0],
        architectures=architectures,
        compile_flags=[flag for wheel in wheels for flag in ("-isystem", f"{wheel}/include")] + gencode,
        link_flags=[str(runtime), "-ldl", "-lrt"],  # what it needs beyond threads
    )


def with_own_flags(command: Any) -> Any:
    """The class of build_ext, compiling with none of the flags that Python itself was compiled with.

    They differ from one Python to the next, and may hold what results must not depend on, as -march and -ffast-math.
    macOS's name the processors to compile for, and stay.
    """

    class WithOwnFlags(command):  # type: ignore[misc]
        def build_extensions(self) -> None:
            for name, variable in (("compiler_so", "CC"), ("compiler_so_cxx", "CXX")):
                if hasattr(self.compiler, name) and sys.platform != "darwin":
                    setattr(self.compiler, name, own_command(getattr(self.compiler, name), variable))
            super().build_extensions()

    return WithOwnFlags


def own_command(words: list[str], variable: str) -> list[str]:
    """The compiler of a command and what the user adds to every compilation, without the command's other flags.

    A compiler that the user names by the variable keeps its options, as --sysroot.
    """
    named = shlex.split(os.environ.get(variable, ""))
    program = named or itertools.takewhile(lambda word: not word.startswith("-"), words)
    asked = (os.environ.get(name, "") for name in ("CPPFLAGS", "CFLAGS", "CXXFLAGS"))
    return [*program, "-fPIC", *shlex.split(" ".join(asked))]


def default_architectures(known: str) -> str:
    """Those of ARCHITECTURES that nvcc knows, by its --list-gpu-arch; and PTX of the newest, for GPUs newer than it."""
    names = known.split()
    return ";".join(each for each in ARCHITECTURES if f"compute_{each.replace('.', '')}" in names) + "+PTX"


def gencode_flags(architectures: str) -> list[str]:
    """What default_architectures says, for nvcc. torch adds none where there are some."""
    flags = []
    for each in architectures.removesuffix("+PTX").split(";"):
        virtual, real = (number.replace(".", "") for number in (PTX_OF.get(each, each), each))
        flags.append(f"-gencode=arch=compute_{virtual},code=sm_{real}")
    return [*flags, f"-gencode=arch=compute_{virtual},code=compute_{virtual}"]


def ask(program: str | Path, *options: str) -> str:
    """All that a compiler prints."""
    try:
        return subprocess.run(
            [program, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{program} does not run") from error


@contextlib.contextmanager
def copied_output(path: str) -> Iterator[None]:
    """Also writes to a file what this process and those that it starts print: BuildExtension's errors lack it."""
    saved = [os.dup(1), os.dup(2)]
    with subprocess.Popen(["tee", path], stdin=subprocess.PIPE) as tee:
        try:
            for stream in (1, 2):
                os.dup2(tee.stdin.fileno(), stream)
            yield
        finally:
            for stream, original in enumerate(saved, 1):
                os.dup2(original, stream)
                os.close(original)


def first_error(output: str) -> str | None:
    """What a compiler or the linker objected to first."""
    found = re.search(r"^.*\b(error|fatal) *: .*", output, re.MULTILINE)  # nvcc's own and ptxas' have blanks
    return found and found[0]
