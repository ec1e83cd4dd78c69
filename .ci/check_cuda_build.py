"""Checks what nvcc made of the CUDA kernels: check_cuda_build.py LOG KEPT COMPILED_FILE. Needs no GPU.

LOG is the output of a build with NVCC_APPEND_FLAGS="-Xptxas -v -Werror all-warnings --keep --keep-dir KEPT", and
COMPILED_FILE is the extension that it made. From ptxas' report in LOG, for every kernel and architecture: no stack
frame, nothing spilled, and no more registers than the occupancy allows that the kernel asks for. From the PTX in KEPT,
the rules of tests/ptx_lint.py. From the machine code in COMPILED_FILE: all the architectures, no local memory, and no
approximation by the special-function unit. (The tests compile the same files by C++17, the standard of the oldest
torch.) Prints a line for each, with what is amiss below it, and exits with 1 if
anything is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"


class Limits(NamedTuple):
    """What may be in the machine code of a file's kernel."""

    # Of each kernel, the most registers a thread may use, by architecture. A multiprocessor has 65 536, and a warp
    # takes them in steps of 8 a thread. They are to suffice for as many blocks as the kernel's __launch_bounds__ asks.
    registers: dict[str, dict[str, int]]
    # Operations of the special-function unit. They are approximations all: these are where an exact one begins, which
    # corrects what they give.
    special: tuple[str, ...]


ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")
_INTEGER_DIVISION = ("MUFU.RCP",)
_DIVISION_AND_ROOT = ("MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H", "MUFU.RSQ64H")  # div.rn and sqrt.rn
# Blocks of 128 threads: 4, 5 of 9.0, 3 before 8.0 and from 10.0 on, 2 from 12.0 on.
_FIVE_EIGHTHS = dict(zip(ARCHITECTURES, (168, 128, 128, 96, 168, 255), strict=True))
LIMITS = {
    "fill": Limits(
        {
            # Blocks of 128 threads: 7, 8 of 9.0, 6 before 8.0 and from 10.0 on, 4 from 12.0 on.
            "fill_kernel": dict(zip(ARCHITECTURES, (80, 72, 72, 64, 80, 128), strict=True)),
        },
        _INTEGER_DIVISION,
    ),
    "fill_single": Limits({"fill_single_kernel": _FIVE_EIGHTHS}, _INTEGER_DIVISION),
    "rewrite": Limits({"rewrite_kernel": _FIVE_EIGHTHS}, _INTEGER_DIVISION),
    # 2 blocks of 256 threads.
    "orthogonal": Limits({"orthogonal_kernel": dict.fromkeys(ARCHITECTURES, 128)}, _DIVISION_AND_ROOT),
}


def load(path: Path) -> ModuleType:
    """A Python file as a module, wherever it lies."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_tool(name: str) -> str:
    """A program of the toolkit. Triton's wheel, which a CUDA build of torch requires, holds those that only read."""
    toolkit = os.environ.get("CUDA_HOME", "")  # the order in which torch looks, and with it setup.py
    folders = [*([f"{toolkit}/bin"] if toolkit else []), os.environ["PATH"], "/usr/local/cuda/bin"]
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations if triton is not None else None) or []:
        folders.append(os.path.join(folder, "backends", "nvidia", "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit(f"no {name} in {', '.join(folders)}")
    return found


def run(*command: str | Path) -> str:
    """All that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed:\n{done.stdout}")
    return done.stdout


class Kernel(NamedTuple):
    """What ptxas reports of a kernel for an architecture."""

    registers: int
    memory: tuple[int, int, int]  # bytes of stack frame, of spill stores, of spill loads


def read_report(log: str) -> dict[tuple[str, str], Kernel]:
    """By kernel and architecture: {("fill_kernel", "9.0"): ...}."""
    kernels = {}
    entry = r"Compiling entry function '\w*?\d(?P<name>[a-z_]+_kernel)E\w*' for 'sm_(?P<major>\d+)(?P<minor>\d)'"
    for part in re.split(r"(?=Compiling entry function)", log):
        found = re.match(entry, part)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if found and memory and registers:
            stack, stores, loads = map(int, memory.groups())
            key = found["name"], f"{found['major']}.{found['minor']}"
            kernels[key] = Kernel(int(registers[1]), (stack, stores, loads))
    return kernels


def check_kernel(kernel: Kernel | None, most: int) -> list[str]:
    if kernel is None:
        return ["ptxas' report of it is missing, or cannot be read"]
    problems = []
    if kernel.registers > most:
        problems.append(f"{kernel.registers} registers, but at most {most} leave room for the blocks asked for")
    if any(kernel.memory):
        problems.append("stack frame {} bytes, spill stores {} bytes, spill loads {} bytes".format(*kernel.memory))
    return problems


def check_machine_code(code: str, special: tuple[str, ...]) -> list[str]:
    # /*0a10*/   @!P0 MUFU.RCP R2, R2 ;
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    if "EXIT" not in opcodes or not any(opcode.startswith("STG") for opcode in opcodes):
        return ["the machine code cannot be read"]
    bad = {opcode for opcode in opcodes if opcode.startswith(("LDL", "STL"))}
    bad |= {opcode for opcode in opcodes if opcode.startswith("MUFU") and opcode not in special}
    return [f"{opcodes.count(opcode)} times {opcode}" for opcode in sorted(bad)]


def check_extension(path: Path) -> list[str]:
    """That the compiled module holds sound machine code of each file for each architecture, and PTX for the newest."""
    names = [f"sm_{architecture.replace('.', '')}" for architecture in ARCHITECTURES]
    problems = []
    for option, expected in (("--list-elf", names), ("--list-ptx", names[-1:])):
        held = re.findall(r"\.(sm_\w+)\.", run(find_tool("cuobjdump"), option, path))
        if sorted(held) != sorted(expected * len(LIMITS)):
            problems.append(f"cuobjdump {option}: {held}, expected {len(LIMITS)} times {expected}")
    # One "Function" for each kernel and architecture.
    functions = re.split(r"Function : ", run(find_tool("cuobjdump"), "-sass", path))[1:]
    for name, limits in LIMITS.items():
        for kernel in limits.registers:
            codes = [code for code in functions if re.match(rf"\w*\d{kernel}E", code)]
            if len(codes) != len(ARCHITECTURES):
                problems.append(f"{kernel}: machine code for {len(codes)} of {len(ARCHITECTURES)} architectures")
            problems += [
                f"{name}, {kernel}: {found}" for code in codes for found in check_machine_code(code, limits.special)
            ]
    return problems


def ptx_lint() -> Callable[[str], list[str]]:
    sys.path.insert(0, str(ROOT / "tests"))
    violations: Callable[[str], list[str]] = load(ROOT / "tests" / "ptx_lint.py").violations
    return violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("log", "kept", "compiled_file"):
        parser.add_argument(argument, type=Path)
    arguments = parser.parse_args()

    compilers = load(ROOT / "_build_backend" / "compilers.py")
    assert compilers.ARCHITECTURES == ARCHITECTURES, "each architecture that is built needs its limits here"
    assert sorted(LIMITS) == sorted(path.stem for path in SOURCES.glob("*.cu")), "each file needs its limits here"

    problems = []

    def report(line: str, found: list[str]) -> None:
        print(line, *found, sep="\n    ")
        problems.extend(found)

    kernels = read_report(arguments.log.read_text())
    violations = ptx_lint()
    for name, limits in LIMITS.items():
        for architecture in ARCHITECTURES:
            for kernel, most in limits.registers.items():
                seen = kernels.get((kernel, architecture))
                line = f"{kernel}, {architecture}: {seen.registers if seen else 'no'} registers"
                report(line, check_kernel(seen, most[architecture]))
            if architecture not in compilers.PTX_OF:
                ptx = arguments.kept / f"{name}.compute_{architecture.replace('.', '')}.ptx"
                report(ptx.name, violations(ptx.read_text()))
    report(arguments.compiled_file.name, check_extension(arguments.compiled_file))
    print(f"{len(problems)} problems" if problems else "good")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
