"""Checks what nvcc makes of the CUDA kernels: check_cuda_build.py [COMPILED_FILE]. Needs nvcc and cuobjdump, no GPU.

From the compiler's report, for every architecture: no warning, no stack frame, nothing spilled, and no more registers
than the occupancy allows that the kernel asks for. From the PTX, the rules of tests/ptx_lint.py. From the machine code:
no local memory, and no approximation by the special-function unit. With COMPILED_FILE, the extension: that it holds all
the architectures. Prints a line for each, with what is amiss below it, and exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "csrc" / "cuda" / "fill.cu"

# The most registers a thread may use, by architecture. A multiprocessor has 65 536. They are to suffice for as many
# blocks of 256 threads as fill_kernel's __launch_bounds__ asks for: 4, 3 from 10.0 on, 2 from 12.0 on; and a warp takes
# them in steps of 8 a thread.
MOST_REGISTERS = {"7.5": 64, "8.0": 64, "8.6": 64, "8.9": 64, "9.0": 64, "10.0": 80, "12.0": 128}

# Approximations all, but integer division begins with this one and corrects what it gives.
ALLOWED_SPECIAL = "MUFU.RCP"

# Each torch's BuildExtension has its own: 2.11's the first, 2.14's the second.
STANDARDS = ("-std=c++17", "-std=c++20")


class Compiled(NamedTuple):
    report: str  # what nvcc and ptxas said
    ptx: str
    machine_code: str


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


def compile_kernels(architecture: str, flags: list[str]) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "fill.cubin")
        report = run(
            *(find_tool("nvcc"), "-cubin", f"-arch=sm_{architecture.replace('.', '')}", STANDARDS[1], *flags),
            *("-Xptxas", "-v", "--keep", "--keep-dir", folder, "-o", cubin, SOURCE),
        )
        return Compiled(report, Path(folder, "fill.ptx").read_text(), run(find_tool("cuobjdump"), "-sass", cubin))


def compile_host_side(flags: list[str]) -> None:
    """The half of the file that the CPU runs, which is the same for all architectures."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            *(find_tool("nvcc"), "-c", "-arch=sm_90", STANDARDS[0], *flags, "-Xcompiler", "-Werror"),
            *("-o", Path(folder, "fill.o"), SOURCE),
        )


def check_report(report: str, most_registers: int) -> list[str]:
    problems = []
    kernels = report.count("Compiling entry function")
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if kernels == 0 or len(registers) != kernels or len(memory) < kernels:
        problems.append(f"this report of ptxas cannot be read:\n{report}")
    if any(number > most_registers for number in registers):
        problems.append(f"{registers} registers, but at most {most_registers} leave room for the blocks asked for")
    for stack, stores, loads in memory:
        if (stack, stores, loads) != ("0", "0", "0"):
            problems.append(f"stack frame {stack} bytes, spill stores {stores} bytes, spill loads {loads} bytes")
    return problems


def check_machine_code(code: str) -> list[str]:
    # /*0a10*/   @!P0 MUFU.RCP R2, R2 ;
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    if "EXIT" not in opcodes or not any(opcode.startswith("STG") for opcode in opcodes):
        return ["the machine code cannot be read"]
    bad = {opcode for opcode in opcodes if opcode.startswith(("LDL", "STL"))}
    bad |= {opcode for opcode in opcodes if opcode.startswith("MUFU") and opcode != ALLOWED_SPECIAL}
    return [f"{opcodes.count(opcode)} times {opcode}" for opcode in sorted(bad)]


def check_extension(path: Path, architectures: tuple[str, ...]) -> list[str]:
    """That the compiled module holds machine code for each architecture, and PTX of the newest."""
    names = [f"sm_{architecture.replace('.', '')}" for architecture in architectures]
    problems = []
    for option, expected in (("--list-elf", names), ("--list-ptx", names[-1:])):
        held = re.findall(r"\.(sm_\w+)\.", run(find_tool("cuobjdump"), option, path))
        if sorted(held) != sorted(expected):
            problems.append(f"cuobjdump {option}: {held}, expected {expected}")
    return problems


def ptx_lint() -> Callable[[str], list[str]]:
    sys.path.insert(0, str(ROOT / "tests"))
    violations: Callable[[str], list[str]] = load(ROOT / "tests" / "ptx_lint.py").violations
    return violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compiled_file", type=Path, nargs="?")
    arguments = parser.parse_args()

    setup_py = load(ROOT / "setup.py")
    assert tuple(MOST_REGISTERS) == setup_py.ARCHITECTURES, "each architecture of setup.py needs its limit here"
    flags = [*setup_py.NVCC_FLAGS, "--expt-relaxed-constexpr", "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}"]
    violations = ptx_lint()

    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        host_side = pool.submit(compile_host_side, flags)
        compilations = {name: pool.submit(compile_kernels, name, flags) for name in MOST_REGISTERS}
        for architecture, compilation in compilations.items():
            compiled = compilation.result()
            found = check_report(compiled.report, MOST_REGISTERS[architecture])
            found += check_machine_code(compiled.machine_code)
            found += violations(compiled.ptx)
            used = ", ".join(re.findall(r"Used (.*)", compiled.report))
            print(f"{architecture}: {used}", *found, sep="\n    ")
            problems += found
        host_side.result()
    if arguments.compiled_file is not None:
        found = check_extension(arguments.compiled_file, setup_py.ARCHITECTURES)
        print(arguments.compiled_file.name, *found, sep="\n    ")
        problems += found
    print(f"{len(problems)} problems" if problems else "good")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
