"""Checks what nvcc makes of the CUDA kernels: check_cuda_build.py [COMPILED_FILE]. Needs nvcc and cuobjdump, no GPU.

From the compiler's report, for every file and architecture: no warning, no stack frame, nothing spilled, and no more
registers than the occupancy allows that the kernel asks for. From the PTX, the rules of tests/ptx_lint.py. From the
machine code: no local memory, and no approximation by the special-function unit. With COMPILED_FILE, the extension:
that it holds all the architectures. Prints a line for each, with what is amiss below it, and exits with 1 if anything
is.
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
SOURCES = ROOT / "csrc" / "cuda"


class Limits(NamedTuple):
    """What may be in the machine code of a file's kernel."""

    # Of each kernel, the most registers a thread may use, by architecture. A multiprocessor has 65 536, and a warp
    # takes them in steps of 8 a thread. They are to suffice for as many blocks as the kernel's __launch_bounds__ asks.
    registers: dict[str, dict[str, int]]
    # Operations of the special-function unit. They are approximations all: these are where an exact one begins, which
    # corrects what they give.
    special: tuple[str, ...]


ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
_INTEGER_DIVISION = ("MUFU.RCP",)
_DIVISION_AND_ROOT = ("MUFU.RCP", "MUFU.RSQ", "MUFU.RCP64H", "MUFU.RSQ64H")  # div.rn and sqrt.rn
LIMITS = {
    "fill": Limits(
        {
            # Blocks of 128 threads: 7, 8 of 9.0, 6 before 8.0 and from 10.0 on, 4 from 12.0 on.
            "fill_kernel": dict(zip(ARCHITECTURES, (80, 72, 72, 72, 64, 80, 128), strict=True)),
            # 4, 5 of 9.0, 3 before 8.0 and from 10.0 on, 2 from 12.0 on.
            "fill_single_kernel": dict(zip(ARCHITECTURES, (168, 128, 128, 128, 96, 168, 255), strict=True)),
            "blend_kernel": dict(zip(ARCHITECTURES, (168, 128, 128, 128, 96, 168, 255), strict=True)),
        },
        _INTEGER_DIVISION,
    ),
    # 2 blocks of 256 threads.
    "orthogonal": Limits({"orthogonal_kernel": dict.fromkeys(ARCHITECTURES, 128)}, _DIVISION_AND_ROOT),
}

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


def compile_kernels(name: str, architecture: str, flags: list[str]) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, f"{name}.cubin")
        report = run(
            *(find_tool("nvcc"), "-cubin", f"-arch=sm_{architecture.replace('.', '')}", STANDARDS[1], *flags),
            *("-Xptxas", "-v", "--keep", "--keep-dir", folder, "-o", cubin, SOURCES / f"{name}.cu"),
        )
        return Compiled(report, Path(folder, f"{name}.ptx").read_text(), run(find_tool("cuobjdump"), "-sass", cubin))


def compile_host_side(name: str, flags: list[str]) -> None:
    """The half of the file that the CPU runs, which is the same for all architectures."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            *(find_tool("nvcc"), "-c", "-arch=sm_90", STANDARDS[0], *flags, "-Xcompiler", "-Werror"),
            *("-o", Path(folder, f"{name}.o"), SOURCES / f"{name}.cu"),
        )


def check_report(report: str, most_registers: dict[str, int]) -> list[str]:
    problems = []
    kernels = re.findall(r"Compiling entry function '\w*?\d(?P<name>[a-z_]+_kernel)E", report)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if sorted(kernels) != sorted(most_registers) or len(registers) != len(kernels) or len(memory) < len(kernels):
        problems.append(f"this report of ptxas cannot be read:\n{report}")
    for kernel, number in zip(kernels, registers, strict=False):
        if number > (most := most_registers.get(kernel, 0)):
            problems.append(f"{kernel}: {number} registers, but at most {most} leave room for the blocks asked for")
    for stack, stores, loads in memory:
        if (stack, stores, loads) != ("0", "0", "0"):
            problems.append(f"stack frame {stack} bytes, spill stores {stores} bytes, spill loads {loads} bytes")
    return problems


def check_machine_code(code: str, special: tuple[str, ...]) -> list[str]:
    # /*0a10*/   @!P0 MUFU.RCP R2, R2 ;
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    if "EXIT" not in opcodes or not any(opcode.startswith("STG") for opcode in opcodes):
        return ["the machine code cannot be read"]
    bad = {opcode for opcode in opcodes if opcode.startswith(("LDL", "STL"))}
    bad |= {opcode for opcode in opcodes if opcode.startswith("MUFU") and opcode not in special}
    return [f"{opcodes.count(opcode)} times {opcode}" for opcode in sorted(bad)]


def check_extension(path: Path, architectures: tuple[str, ...]) -> list[str]:
    """That the compiled module holds machine code of each file for each architecture, and PTX for the newest."""
    names = [f"sm_{architecture.replace('.', '')}" for architecture in architectures]
    problems = []
    for option, expected in (("--list-elf", names), ("--list-ptx", names[-1:])):
        held = re.findall(r"\.(sm_\w+)\.", run(find_tool("cuobjdump"), option, path))
        if sorted(held) != sorted(expected * len(LIMITS)):
            problems.append(f"cuobjdump {option}: {held}, expected {len(LIMITS)} times {expected}")
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
    built = load(ROOT / "_build_backend" / "compilers.py").ARCHITECTURES
    assert built == ARCHITECTURES, "each architecture that is built needs its limits here"
    assert sorted(LIMITS) == sorted(path.stem for path in SOURCES.glob("*.cu")), "each file needs its limits here"
    flags = [*setup_py.NVCC_FLAGS, "--expt-relaxed-constexpr", "-Werror", "all-warnings", f"-I{ROOT / 'csrc'}"]
    violations = ptx_lint()

    problems = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        host_sides = [pool.submit(compile_host_side, name, flags) for name in LIMITS]
        compilations = {
            (name, architecture): pool.submit(compile_kernels, name, architecture, flags)
            for name in LIMITS
            for architecture in ARCHITECTURES
        }
        for (name, architecture), compilation in compilations.items():
            compiled, limits = compilation.result(), LIMITS[name]
            found = check_report(
                compiled.report, {kernel: most[architecture] for kernel, most in limits.registers.items()}
            )
            found += check_machine_code(compiled.machine_code, limits.special)
            found += violations(compiled.ptx)
            used = ", ".join(re.findall(r"Used (.*)", compiled.report))
            print(f"{name}, {architecture}: {used}", *found, sep="\n    ")
            problems += found
        for host_side in host_sides:
            host_side.result()
    if arguments.compiled_file is not None:
        found = check_extension(arguments.compiled_file, ARCHITECTURES)
        print(arguments.compiled_file.name, *found, sep="\n    ")
        problems += found
    print(f"{len(problems)} problems" if problems else "good")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
