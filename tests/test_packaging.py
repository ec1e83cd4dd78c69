"""The compiled file depends on no torch, and setup.py and the build backend choose and find what they should."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from setuptools import Distribution

import fastinit

ROOT = Path(__file__).resolve().parent.parent

# What an extension that uses C++, threads and Python may need at run time; libpython is not among it.
RUNTIME_LIBRARIES = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}


@pytest.fixture(scope="module")
def build_info() -> dict[str, Any]:
    path = Path(fastinit.__file__).parent / "_build_info.json"
    assert path.is_file(), "the build writes this file whatever its outcome; was fastinit installed (pip install -e .)?"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def compiled_file(build_info: dict[str, Any]) -> Path:
    if build_info["build"] == "none":
        pytest.skip(f"the extension is not built: {build_info['reason']}")
    module = importlib.import_module("fastinit._C")
    assert module.__file__ is not None
    return Path(module.__file__)


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # setup.py adds to it
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compilers(setup_py: ModuleType) -> ModuleType:
    return importlib.import_module("compilers")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "_build_backend")])
    monkeypatch.delitem(sys.modules, "fastinit_build", raising=False)
    return importlib.import_module("fastinit_build")


def fake_torch(cuda: str | None, cuda_home: Path | None = None, site_packages: str = "/site-packages") -> Any:
    """What the build asks a torch for."""
    return SimpleNamespace(
        __version__="2.14.1",
        __file__=f"{site_packages}/torch/__init__.py",
        version=SimpleNamespace(cuda=cuda),
        utils=SimpleNamespace(cpp_extension=SimpleNamespace(CUDA_HOME=cuda_home and str(cuda_home))),
    )


class Elf(NamedTuple):
    undefined: set[str]  # dynamic symbols that it takes from elsewhere
    defined: set[str]  # and that it offers
    libraries: set[str]  # that it needs


def read_elf(path: Path) -> Elf:
    """The dynamic symbols and the needed libraries of a 64-bit little-endian ELF file.

    A few lines of our own instead of nm and readelf, so that the test runs where binutils is not installed.
    """
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", f"{path} is not 64-bit little-endian ELF"
    (section_offset,) = struct.unpack_from("<Q", data, 0x28)
    section_size, section_count = struct.unpack_from("<HH", data, 0x3A)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, section_offset + i * section_size) for i in range(section_count)
    ]

    def entries(section_type: int, layout: str) -> list[tuple[tuple[Any, ...], int]]:
        """Each entry of the section of this type, and where the strings that it names begin."""
        [section] = [s for s in sections if s[1] == section_type]
        table = data[section[4] : section[4] + section[5]]
        return [(entry, sections[section[6]][4]) for entry in struct.iter_unpack(layout, table)]

    def string(offset: int) -> str:
        return data[offset : data.index(b"\0", offset)].decode()

    dynsym, dynamic, needed = 11, 6, 1
    symbols = [(string(names + entry[0]), entry[3]) for entry, names in entries(dynsym, "<IBBHQQ")]
    return Elf(
        undefined={name for name, section in symbols if section == 0} - {""},
        defined={name for name, section in symbols if section != 0},
        libraries={string(names + value) for (tag, value), names in entries(dynamic, "<qQ") if tag == needed},
    )


def of_torch(symbol: str) -> bool:
    """Whether a mangled name lies in, or mentions a type of, at::, c10:: or torch::, or is of torch's C interface."""
    return re.search(r"N[VKRO]*(2at|3c10|5torch)|THP|aoti_torch", symbol) is not None


def test_symbols_of_torch_are_recognised() -> None:
    assert of_torch("_ZN2at4_ops5empty4callEv")
    assert of_torch("_ZNK3c1010TensorImpl4sizeEl")
    assert of_torch("_ZN5torch8autograd4nodeEv")
    assert of_torch("_Z3fooRKN2at6TensorE")
    assert not of_torch("_ZNSt6vectorIiSaIiEE2atEm")
    assert not of_torch("PyErr_SetString")


def test_compiled_file_has_no_undefined_symbol_of_torch(compiled_file: Path) -> None:
    undefined = read_elf(compiled_file).undefined
    assert "PyErr_SetString" in undefined, "the symbols were not read rightly"
    assert not [symbol for symbol in undefined if of_torch(symbol)]


def test_compiled_file_links_the_language_runtime_only(compiled_file: Path) -> None:
    libraries = read_elf(compiled_file).libraries
    assert "libc.so.6" in libraries, "the libraries were not read rightly"
    assert {library.split(".so")[0] for library in libraries} <= RUNTIME_LIBRARIES


def test_compiled_file_shares_no_cuda_runtime(compiled_file: Path) -> None:
    # torch's own lies in the same process: neither may end up with functions of the other.
    elf = read_elf(compiled_file)
    assert "PyInit__C" in elf.defined, "the symbols were not read rightly"
    assert not [name for name in elf.undefined | elf.defined if re.match(r"_*cu(da|rand|[A-Z])", name)]


def test_compiled_file_is_what_was_asked_for(build_info: dict[str, Any], compiled_file: Path) -> None:
    assert importlib.import_module("fastinit._C").HAS_CUDA is (build_info["build"] == "cuda")


def test_flags_fix_the_results_and_not_the_machine(setup_py: ModuleType, build_info: dict[str, Any]) -> None:
    flags = setup_py.CXX_FLAGS
    assert {"-ffp-contract=off", "-fno-fast-math"} <= set(flags)
    for forbidden in ("-march", "-mtune", "-std", "-ffast-math", "-Ofast", "-fopenmp"):
        assert not [flag for flag in flags if flag.startswith(forbidden)]
    if build_info["build"] != "none":
        assert build_info["flags"] == flags, "the extension was built with other flags; install again"

    nvcc_flags = setup_py.NVCC_FLAGS
    assert {"--fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"} <= set(nvcc_flags)
    # torch adds no -gencode where it finds "arch" in any flag.
    assert not [flag for flag in nvcc_flags if re.search("fast|std|arch", flag)]
    if build_info["build"] == "cuda":
        assert build_info["nvcc_flags"] == nvcc_flags, "the extension was built with other flags; install again"


def test_build_info_says_what_was_built(build_info: dict[str, Any]) -> None:
    assert build_info["build"] in ("cpu", "cuda", "none")
    if build_info["build"] == "none":
        assert build_info["reason"]
    else:
        assert build_info["reason"] is None
        assert build_info["compiler"]
        assert "torch" in build_info  # None where the build found none
    if build_info["build"] == "cuda":
        assert build_info["nvcc"]
        assert build_info["cuda_architectures"]
    assert (build_info["without_cuda"] is None) == (build_info["build"] != "cpu")


TOOLKIT = ("nvcc 13.0", "9.0+PTX", ["-isystem", "/headers"], ["/libcudart_static.a", "-ldl", "-lrt"])


def test_all_sources_are_collected(setup_py: ModuleType) -> None:
    for torch_module, toolkit, suffixes in (
        (None, None, {".cpp"}),
        (fake_torch(None), None, {".cpp"}),
        (fake_torch("13.0"), setup_py.compilers.Toolkit(*TOOLKIT), {".cpp", ".cu"}),
    ):
        files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        sources = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in suffixes}
        extension = setup_py.extension(torch_module, toolkit)
        assert set(extension.sources) == sources
        assert extension.sources == sorted(extension.sources)


def test_only_the_cuda_extension_knows_of_cuda(setup_py: ModuleType) -> None:
    extension = setup_py.extension(fake_torch("13.0"), None)
    assert extension.extra_compile_args == {"cxx": setup_py.CXX_FLAGS}
    assert extension.extra_link_args == ["-pthread"]

    extension = setup_py.extension(fake_torch("13.0"), setup_py.compilers.Toolkit(*TOOLKIT))
    assert extension.extra_compile_args["cxx"] == [*setup_py.CXX_FLAGS, "-DFASTINIT_CUDA"]
    flags = [*setup_py.NVCC_FLAGS, "-isystem", "/headers"]
    assert extension.extra_compile_args["nvcc"][: len(flags)] == flags
    assert extension.extra_link_args == ["-pthread", "/libcudart_static.a", "-ldl", "-lrt"]
    assert extension.libraries == []


def test_without_torch_only_the_standard_is_added(setup_py: ModuleType) -> None:
    with_torch, without = setup_py.extension(fake_torch(None), None), setup_py.extension(None, None)
    assert without.extra_compile_args == ["-std=c++17", *with_torch.extra_compile_args["cxx"]]
    assert without.extra_link_args == with_torch.extra_link_args


@pytest.mark.parametrize("program", [["g++"], ["ccache", "g++"]], ids=" ".join)
def test_pythons_own_flags_compile_nothing(
    compilers: ModuleType, monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    class Command:
        compiler = SimpleNamespace(
            compiler_so=[*program, "-pthread", "-O2", "-march=native", "-fPIC"],
            compiler_so_cxx=[*program, "-ffast-math", "-Wall"],
            linker_so=[*program, "-shared"],
        )

        def build_extensions(self) -> None:
            pass

    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CPPFLAGS", "CFLAGS", "CXXFLAGS"):
        monkeypatch.setenv(name, f"-D{name} -D'{name} TWO'")
    compilers.with_own_flags(Command)().build_extensions()
    asked = [word for name in ("CPPFLAGS", "CFLAGS", "CXXFLAGS") for word in (f"-D{name}", f"-D{name} TWO")]
    assert Command.compiler.compiler_so == Command.compiler.compiler_so_cxx == [*program, "-fPIC", *asked]
    assert Command.compiler.linker_so == [*program, "-shared"]

    monkeypatch.setenv("CXX", "cross-g++ --sysroot=/root")
    compilers.with_own_flags(Command)().build_extensions()
    assert Command.compiler.compiler_so == [*program, "-fPIC", *asked]
    assert Command.compiler.compiler_so_cxx == ["cross-g++", "--sysroot=/root", "-fPIC", *asked]


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (None, "auto"),
        ("", "auto"),
        ("auto", "auto"),
        ("cpu", "cpu"),
        ("CPU", "cpu"),
        ("cuda", "cuda"),
        ("none", "none"),
    ],
)
def test_build_mode(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str | None, mode: str) -> None:
    if value is None:
        monkeypatch.delenv("FASTINIT_BUILD", raising=False)
    else:
        monkeypatch.setenv("FASTINIT_BUILD", value)
    assert setup_py.build_mode() == mode


def test_unknown_build_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, as an installer would see it.
    monkeypatch.setenv("FASTINIT_BUILD", "gpu")
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "FASTINIT_BUILD=gpu is not one of auto, cpu, cuda, none" in result.stderr


class Outcome(NamedTuple):
    info: dict[str, Any]
    attempts: list[str]  # what was compiled, or tried
    errors: str  # what was printed to stderr


@pytest.fixture
def build(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs build_ext with a fake torch, toolkit and compiler."""
    real_find_toolkit = setup_py.compilers.find_toolkit

    def run(mode: str, torch: Any, *, toolkit: bool = True, failing: tuple[str, ...] = ()) -> Outcome:
        attempts: list[str] = []

        def find_toolkit(torch: Any) -> Any:
            if torch is None or torch.version.cuda is None:
                return real_find_toolkit(torch)
            if not toolkit:
                raise setup_py.compilers.BuildError("no nvcc")
            return setup_py.compilers.Toolkit(*TOOLKIT)

        def compile_extension(_: Any, torch: Any, toolkit: Any) -> None:
            attempts.append("cpu" if toolkit is None else "cuda")
            if attempts[-1] in failing:
                raise setup_py.compilers.BuildError(f"compiling for {attempts[-1]} failed")

        monkeypatch.setenv("FASTINIT_BUILD", mode)
        monkeypatch.setattr(setup_py.compilers, "find_compiler", lambda: "c++ 14")
        monkeypatch.setattr(setup_py, "find_torch", lambda: torch)
        monkeypatch.setattr(setup_py.compilers, "find_toolkit", find_toolkit)
        monkeypatch.setattr(setup_py.BuildExt, "compile_extension", compile_extension)
        command = setup_py.BuildExt(Distribution({"ext_modules": [setup_py.extension(None, None)]}))
        command.build_lib = str(tmp_path)
        command.run()
        info = json.loads((tmp_path / "fastinit" / "_build_info.json").read_text())
        return Outcome(info, attempts, capsys.readouterr().err)

    return run


def test_auto_builds_cuda_where_it_can(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", fake_torch("13.0"))
    assert info["build"] == "cuda"
    assert info["reason"] is info["without_cuda"] is None
    assert info["torch"] == "2.14.1"
    assert info["nvcc"] == "nvcc 13.0"
    assert info["cuda_architectures"] == "9.0+PTX"
    assert attempts == ["cuda"]
    assert errors == ""


def test_auto_beside_a_cpu_torch_says_nothing(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", fake_torch(None))
    assert info["build"] == "cpu"
    assert info["reason"] is None
    assert info["without_cuda"] == "torch 2.14.1 is a build without CUDA"
    assert attempts == ["cpu"]
    assert errors == ""


@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_the_cpu_backend_needs_no_torch(build: Callable[..., Outcome], mode: str) -> None:
    info, attempts, errors = build(mode, None)
    assert info["build"] == "cpu"
    assert info["reason"] is info["torch"] is None
    assert info["python"] == platform.python_version()
    assert ("the build cannot import torch" in info["without_cuda"]) == (mode == "auto")
    assert attempts == ["cpu"]
    assert errors == ""


@pytest.mark.parametrize(
    ("circumstances", "reason", "attempted"),
    [
        ({"toolkit": False}, "no nvcc", ["cpu"]),
        ({"failing": ("cuda",)}, "compiling for cuda failed", ["cuda", "cpu"]),
    ],
)
def test_auto_without_cuda_is_loud_beside_a_cuda_torch(
    build: Callable[..., Outcome], circumstances: dict[str, Any], reason: str, attempted: list[str]
) -> None:
    info, attempts, errors = build("auto", fake_torch("13.0"), **circumstances)
    assert info["build"] == "cpu"
    assert info["reason"] is None
    assert info["without_cuda"] == reason
    assert "nvcc" not in info
    assert attempts == attempted
    assert "WITHOUT its CUDA backend" in errors
    assert f"Reason: {reason}\nFASTINIT_BUILD=cuda makes this an error" in errors


def test_auto_without_any_compiler_is_pure_python(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", fake_torch("13.0"), failing=("cuda", "cpu"))
    assert info["build"] == "none"
    assert info["reason"] == "compiling for cpu failed"
    assert info["without_cuda"] is None
    assert attempts == ["cuda", "cpu"]
    assert "WITHOUT its compiled module" in errors


def test_cpu_leaves_cuda_alone(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("cpu", fake_torch("13.0"))
    assert info["build"] == "cpu"
    assert info["without_cuda"] == "FASTINIT_BUILD=cpu was set when it was installed"
    assert attempts == ["cpu"]
    assert errors == ""


def test_none_compiles_nothing(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("none", fake_torch("13.0"))
    assert info["build"] == "none"
    assert info["reason"] == "FASTINIT_BUILD=none was set when it was installed"
    assert attempts == []
    assert errors == ""


@pytest.mark.parametrize(
    ("mode", "torch", "circumstances", "message"),
    [
        ("cuda", None, {}, "FASTINIT_BUILD=cuda: the build cannot import torch .*--no-build-isolation.*"),
        ("cuda", fake_torch(None), {}, "FASTINIT_BUILD=cuda: torch 2.14.1 is a build without CUDA"),
        ("cuda", fake_torch("13.0"), {"toolkit": False}, "FASTINIT_BUILD=cuda: no nvcc"),
        ("cuda", fake_torch("13.0"), {"failing": ("cuda",)}, "FASTINIT_BUILD=cuda: compiling for cuda failed"),
        ("cpu", fake_torch("13.0"), {"failing": ("cpu",)}, "FASTINIT_BUILD=cpu: compiling for cpu failed"),
    ],
)
def test_what_was_insisted_on_is_an_error(
    build: Callable[..., Outcome], mode: str, torch: Any, circumstances: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"^{message}$"):
        build(mode, torch, **circumstances)


@pytest.mark.parametrize(
    ("known", "architectures"),
    [
        # CUDA 13.0's, in nvcc's own order; 12.6's; 11.5's
        ("75 80 86 87 88 89 90 100 110 103 120 121", "7.5;8.0;8.6;9.0;10.0;12.0+PTX"),
        ("50 52 53 60 61 62 70 72 75 80 86 87 89 90", "7.5;8.0;8.6;9.0+PTX"),
        ("35 37 50 52 53 60 61 62 70 72 75 80 86 87", "7.5;8.0;8.6+PTX"),
    ],
)
def test_architectures_are_those_that_nvcc_knows(compilers: ModuleType, known: str, architectures: str) -> None:
    listed = "".join(f"compute_{number}\n" for number in known.split())
    assert compilers.default_architectures(listed) == architectures
    flags = compilers.gencode_flags(architectures)
    real = [flag.partition("code=sm_")[2] for flag in flags[:-1]]
    assert real == architectures.removesuffix("+PTX").replace(".", "").split(";")
    newest = re.search(r"arch=(compute_\d+)", flags[-2])
    assert newest is not None
    assert flags[-1] == f"-gencode=arch={newest[1]},code={newest[1]}"


def test_the_source_knows_no_difference_between_architectures_of_the_same_ptx(compilers: ModuleType) -> None:
    """Else one of them would get the other's code."""
    asked = [
        int(number)
        for file in (ROOT / "csrc").rglob("*")
        if file.is_file()
        for number in re.findall(r"__CUDA_ARCH__ *[<>=!]+ *(\d+)", file.read_text(encoding="utf-8"))
    ]
    assert asked
    for one, other in compilers.PTX_OF.items():
        low, high = sorted(int(each.replace(".", "")) * 10 for each in (one, other))
        assert not [number for number in asked if low < number <= high]


@pytest.fixture
def toolkit_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit whose nvcc only answers questions."""
    folder = tmp_path / "cuda"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "include/crt/host_config.h", "lib/libcudart_static.a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "bin" / "nvcc").write_text(
        f"""#!/bin/sh
case $1 in
  --version) echo 'nvcc: NVIDIA (R) Cuda compiler driver'; echo 'Cuda compilation tools, release 13.0, V13.0.88';;
  --list-gpu-arch) echo compute_90; echo compute_120;;
  --dryrun) echo '#$ INCLUDES="-I{folder}/include"  '; echo '#$ LIBRARIES=  "-L{folder}/stubs" "-L{folder}/lib"';;
esac
"""
    )
    (folder / "bin" / "nvcc").chmod(0o755)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return folder


def test_toolkit_is_found(compilers: ModuleType, toolkit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = fake_torch("13.0", toolkit_folder)
    toolkit = compilers.find_toolkit(torch)
    assert toolkit.nvcc == "Cuda compilation tools, release 13.0, V13.0.88"
    assert toolkit.architectures == "9.0;12.0+PTX"
    ninety = "-gencode=arch=compute_90,code=sm_90"
    assert toolkit.compile_flags == [
        ninety,
        *(f"-gencode=arch=compute_120,code={each}_120" for each in ("sm", "compute")),
    ]
    assert toolkit.link_flags[0] == str(toolkit_folder / "lib" / "libcudart_static.a")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    toolkit = compilers.find_toolkit(torch)
    assert (toolkit.architectures, toolkit.compile_flags) == ("8.0", [])  # torch makes flags of it


@pytest.mark.parametrize("folder", ["cu13", "cuda_runtime"])
def test_nvidia_wheels_complete_a_toolkit(
    compilers: ModuleType, toolkit_folder: Path, tmp_path: Path, folder: str
) -> None:
    wheel = tmp_path / "site-packages" / "nvidia" / folder
    (wheel / "lib").mkdir(parents=True)
    (wheel / "lib" / "libcudart_static.a").touch()
    torch = fake_torch("13.0", toolkit_folder, f"{tmp_path}/site-packages")
    toolkit = compilers.find_toolkit(torch)
    assert toolkit.compile_flags[:2] == ["-isystem", f"{wheel}/include"], "nvcc's own headers come first"
    assert toolkit.link_flags[0] == str(toolkit_folder / "lib" / "libcudart_static.a"), "the toolkit's own comes first"

    (toolkit_folder / "lib" / "libcudart_static.a").unlink()
    assert compilers.find_toolkit(torch).link_flags[0] == str(wheel / "lib" / "libcudart_static.a")


def test_what_lacks_for_cuda_is_named(compilers: ModuleType, toolkit_folder: Path, tmp_path: Path) -> None:
    def check(message: str, folder: Path | None, cuda: str | None = "13.0") -> None:
        with pytest.raises(compilers.BuildError, match=message):
            compilers.find_toolkit(fake_torch(cuda, folder))

    check("^torch 2.14.1 is a build without CUDA$", toolkit_folder, None)
    check("^no CUDA toolkit: nvcc is not on PATH, CUDA_HOME is not set", None)
    check(f"^{tmp_path}/bin/nvcc does not run$", tmp_path)
    check("^torch 2.14.1 is built for CUDA 12.8 and needs an nvcc 12: .* release 13.0", toolkit_folder, "12.8")
    (toolkit_folder / "lib" / "libcudart_static.a").unlink()
    check(f"^no libcudart_static.a in {toolkit_folder}/stubs, ", toolkit_folder)


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        (
            'In file included from b.h:2,\nfill.cu(58): error: identifier "x" is undefined\nb.h(1): error: another',
            'fill.cu(58): error: identifier "x" is undefined',
        ),
        (
            "a.cpp:1:10: fatal error: b.h: No such file or directory\ncompilation terminated.",
            "a.cpp:1:10: fatal error: b.h: No such file or directory",
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
        ),
        (
            "ptxas error   : Entry function uses too much shared data",
            "ptxas error   : Entry function uses too much shared data",
        ),
        ("g++ -Werror -c a.cpp\na.cpp:1:1: warning: a comma\nninja: no work to do.", None),
    ],
)
def test_compiler_errors_are_found(compilers: ModuleType, printed: str, error: str | None) -> None:
    assert compilers.first_error(printed) == error


def test_output_is_kept_and_shown(compilers: ModuleType, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(subprocess.CalledProcessError), compilers.copied_output(str(log)):
        subprocess.run(["sh", "-c", "echo of a child; echo of its errors >&2; false"], check=True)
    print("after it", file=sys.stderr)
    assert log.read_text() == "of a child\nof its errors\n"
    assert capfd.readouterr() == (log.read_text(), "after it\n")


def test_a_missing_compiler_is_named(compilers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(compilers.BuildError, match=r"^no C\+\+ compiler: no-such-compiler does not run"):
        compilers.find_compiler()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, without what builds have left in it."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    for name in ("fastinit", "csrc", "_build_backend"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def files_below(folder: Path) -> set[str]:
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


# In a process of its own, with or without torch: what sys.modules holds as None cannot be imported.
SETUP_PY = """
import runpy, sys
if sys.argv.pop(1) == "without torch":
    sys.modules["torch"] = None
sys.argv[0] = "setup.py"
runpy.run_path("setup.py", run_name="__main__")
"""

# An extension that compiles in a second.
SMALL_BINDING = """
#include <Python.h>
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C"};
  return PyModule_Create(&definition);
}
"""


def build_in_place(tree: Path, torch: str, binding: str) -> subprocess.CompletedProcess[str]:
    for source in tree.glob("csrc/cpu/*.cpp"):
        source.unlink()
    (tree / "csrc" / "binding.cpp").write_text(binding)
    return subprocess.run(
        [sys.executable, "-c", SETUP_PY, torch, "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "FASTINIT_BUILD": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("torch", ["with torch", "without torch"])
def test_a_build_leaves_nothing_but_its_products_in_the_source_tree(tree: Path, torch: str) -> None:
    stale = tree / "fastinit" / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    stale.write_text("of an earlier build")
    before = files_below(tree)
    done = build_in_place(tree, torch, SMALL_BINDING)
    assert done.returncode == 0, done.stderr
    # binding.cpp stands for all sources here.
    assert {name for name in files_below(tree) ^ before if not name.startswith("csrc/cpu/")} == {
        "fastinit/_build_info.json"
    }
    assert stale.read_bytes()[:4] == b"\x7fELF"
    info = json.loads((tree / "fastinit" / "_build_info.json").read_text())
    assert info["build"] == "cpu"
    assert (info["torch"] is None) == (torch == "without torch")
    assert re.search("^fastinit: compiling, .* about .*\n(.*\n)*fastinit: compiled in [0-9]+ s$", done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("torch", ["with torch", "without torch"])
def test_a_failed_build_tells_the_first_error(tree: Path, torch: str) -> None:
    done = build_in_place(tree, torch, "#error not today\n#error nor tomorrow\n")
    assert done.returncode != 0
    reason = r"FASTINIT_BUILD=cpu: compiling failed: \S*csrc/binding.cpp:1:2: error: #error not today"
    assert re.fullmatch(reason, done.stderr.rstrip().splitlines()[-1])


@pytest.mark.slow
def test_distributions_hold_the_files_of_the_tree(tree: Path, tmp_path: Path) -> None:
    """All that is in the tree, sub-packages too, and nothing that an earlier build has left."""
    (tree / "fastinit" / "kept" / "deeper").mkdir(parents=True)
    for name in ("__init__.py", "deeper/__init__.py", "deeper/stub.pyi"):
        (tree / "fastinit" / "kept" / name).touch()
    package, sources = ({f"{folder}/{name}" for name in files_below(tree / folder)} for folder in ("fastinit", "csrc"))
    if (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "ls-files", "fastinit", "csrc"], cwd=ROOT, capture_output=True, text=True)
        assert {name for name in tracked.stdout.splitlines() if (ROOT / name).exists()} <= package | sources
    for name in ("_C.stale.so", "_build_info.json", "__pycache__/stale.pyc", "kept/_C.stale.so"):
        (tree / "fastinit" / name).parent.mkdir(exist_ok=True)
        (tree / "fastinit" / name).touch()
    for folder in tree / "build" / "lib", *(tree / "build").glob("lib*"):
        (folder / "fastinit" / "gone").mkdir(parents=True)
        (folder / "fastinit" / "gone" / "__init__.py").touch()

    before = files_below(tree)
    environment = {**os.environ, "FASTINIT_BUILD": "none", "PYTHONPATH": "_build_backend"}
    for hook in ("get_requires_for_build_wheel", "build_wheel", "build_sdist"):
        argument = repr(str(tmp_path)) if hook.startswith("build") else ""
        code = f"import fastinit_build; fastinit_build.{hook}({argument})"
        subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, check=True)
        assert files_below(tree) == before or hook == "build_sdist"
    [sdist], [wheel] = tmp_path.glob("*.tar.gz"), tmp_path.glob("*-none-any.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert {name for name in names if name.startswith(("fastinit/", "csrc/"))} == package | sources
    assert {"setup.py", "_build_backend/compilers.py", "_build_backend/fastinit_build.py"} <= names
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package | {"fastinit/_build_info.json"}


def run_info(folder: Path, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run(
        [sys.executable, "-m", "fastinit", "info"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_info_tells_what_runs_and_what_it_was_built_with(tree: Path) -> None:
    info = {"build": "none", "reason": "to test", "torch": "2.9.0", "python": "3.9.7"}
    (tree / "fastinit" / "_build_info.json").write_text(json.dumps(info))
    lines = dict(re.split(": +", line, maxsplit=1) for line in run_info(tree).splitlines())
    assert lines["python"] == platform.python_version()
    assert lines["torch"].split(",")[0] == torch.__version__
    assert lines["built with python"] == "3.9.7"
    assert lines["built with torch"] == "2.9.0"


@pytest.mark.slow
def test_an_unbuilt_source_tree_says_what_it_is(tree: Path) -> None:
    assert f"Python imported fastinit from its source tree, {tree}, where it is not built" in run_info(tree)
    (tree / "setup.py").unlink()
    assert f"{tree}/fastinit lacks _build_info.json, which every build writes" in run_info(tree)


@pytest.mark.slow
def test_info_names_an_unknown_instruction_set(compiled_file: Path) -> None:
    assert re.search("^in use: +none: FASTINIT_FORCE_ISA: .*'sse9'$", run_info(ROOT, FASTINIT_FORCE_ISA="sse9"), re.M)


def hide_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))


def test_backend_finds_the_torch_of_the_target(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    (empty / "torch").mkdir(parents=True)  # what an uninstalled torch may leave
    (full / "torch").mkdir(parents=True)
    (full / "torch" / "version.py").touch()
    hide_torch(monkeypatch)
    monkeypatch.setattr(backend, "target_directories", lambda: [str(empty), str(full)])

    before = list(sys.path)
    backend.expose_torch()
    assert sys.path == [*before, str(full)], "at the end, so that no other package of the target comes first"


def test_backend_does_without_a_torch(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_torch(monkeypatch)
    monkeypatch.setattr(backend, "target_directories", lambda: [str(tmp_path)])
    before = list(sys.path)
    backend.expose_torch()
    assert sys.path == before
    assert "torch" not in re.search(r"^requires = .*$", (ROOT / "pyproject.toml").read_text(), re.M)[0]
