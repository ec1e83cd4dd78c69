"""The compiled file depends on no torch, and setup.py and the build backend choose and find what they should."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
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


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "_build_backend")])
    monkeypatch.delitem(sys.modules, "fastinit_build", raising=False)
    return importlib.import_module("fastinit_build")


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
        assert build_info["torch"]
    if build_info["build"] == "cuda":
        assert build_info["nvcc"]
        assert build_info["cuda_architectures"]
    assert (build_info["without_cuda"] is None) == (build_info["build"] != "cpu")


def test_all_sources_are_collected(setup_py: ModuleType) -> None:
    toolkit = setup_py.Toolkit("nvcc", "9.0", ["/headers"], "/libcudart_static.a")
    for extension, suffixes in (
        (setup_py.extension(None), {".cpp"}),
        (setup_py.extension(toolkit), {".cpp", ".cu"}),
    ):
        files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        sources = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in suffixes}
        headers = {path.relative_to(ROOT).as_posix() for path in files if path.suffix == ".h"}
        assert set(extension.sources) == sources
        assert set(extension.depends) == headers
        assert extension.sources == sorted(extension.sources)


def test_only_the_cuda_extension_knows_of_cuda(setup_py: ModuleType) -> None:
    extension = setup_py.extension(None)
    assert extension.extra_compile_args == {"cxx": setup_py.CXX_FLAGS}
    assert extension.extra_objects == []

    toolkit = setup_py.Toolkit("nvcc", "9.0", ["/headers"], "/libcudart_static.a")
    extension = setup_py.extension(toolkit)
    assert extension.extra_compile_args["cxx"] == [*setup_py.CXX_FLAGS, "-DFASTINIT_CUDA"]
    assert extension.extra_compile_args["nvcc"][: len(setup_py.NVCC_FLAGS)] == setup_py.NVCC_FLAGS
    assert extension.include_dirs[-1] == "/headers"
    assert extension.extra_objects == ["/libcudart_static.a"]
    assert extension.libraries == []


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

    def run(mode: str, torch_cuda: str | None, *, toolkit: bool = True, failing: tuple[str, ...] = ()) -> Outcome:
        attempts: list[str] = []

        def find_toolkit(torch: Any) -> Any:
            if torch.cuda is None:
                raise setup_py.BuildError("torch is a build without CUDA")
            if not toolkit:
                raise setup_py.BuildError("no nvcc")
            return setup_py.Toolkit("nvcc 13.0", "9.0+PTX", [], "/libcudart_static.a")

        def compile_extension(_: Any, toolkit: Any) -> None:
            attempts.append("cpu" if toolkit is None else "cuda")
            if attempts[-1] in failing:
                raise setup_py.BuildError(f"compiling for {attempts[-1]} failed")

        monkeypatch.setenv("FASTINIT_BUILD", mode)
        monkeypatch.setattr(setup_py, "find_compiler", lambda: "c++ 14")
        monkeypatch.setattr(setup_py, "inspect_torch", lambda: setup_py.Torch("2.14", torch_cuda, "/cuda"))
        monkeypatch.setattr(setup_py, "find_toolkit", find_toolkit)
        monkeypatch.setattr(setup_py.BuildExt, "compile_extension", compile_extension)
        command = setup_py.BuildExt(Distribution({"ext_modules": [setup_py.extension(None)]}))
        command.build_lib = str(tmp_path)
        command.run()
        info = json.loads((tmp_path / "fastinit" / "_build_info.json").read_text())
        return Outcome(info, attempts, capsys.readouterr().err)

    return run


def test_auto_builds_cuda_where_it_can(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", "13.0")
    assert info["build"] == "cuda"
    assert info["reason"] is info["without_cuda"] is None
    assert info["nvcc"] == "nvcc 13.0"
    assert info["cuda_architectures"] == "9.0+PTX"
    assert attempts == ["cuda"]
    assert errors == ""


def test_auto_beside_a_cpu_torch_says_nothing(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", None)
    assert info["build"] == "cpu"
    assert info["reason"] is None
    assert info["without_cuda"] == "torch is a build without CUDA"
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
    info, attempts, errors = build("auto", "13.0", **circumstances)
    assert info["build"] == "cpu"
    assert info["reason"] is None
    assert info["without_cuda"] == reason
    assert "nvcc" not in info
    assert attempts == attempted
    assert "WITHOUT its CUDA backend" in errors
    assert f"Reason: {reason}\nFASTINIT_BUILD=cuda makes this an error" in errors


def test_auto_without_any_compiler_is_pure_python(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("auto", "13.0", failing=("cuda", "cpu"))
    assert info["build"] == "none"
    assert info["reason"] == "compiling for cpu failed"
    assert info["without_cuda"] is None
    assert attempts == ["cuda", "cpu"]
    assert "WITHOUT its compiled module" in errors


def test_cpu_leaves_cuda_alone(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("cpu", "13.0")
    assert info["build"] == "cpu"
    assert info["without_cuda"] == "FASTINIT_BUILD=cpu was set when it was installed"
    assert attempts == ["cpu"]
    assert errors == ""


def test_none_compiles_nothing(build: Callable[..., Outcome]) -> None:
    info, attempts, errors = build("none", "13.0")
    assert info["build"] == "none"
    assert info["reason"] == "FASTINIT_BUILD=none was set when it was installed"
    assert attempts == []
    assert errors == ""


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "circumstances", "message"),
    [
        ("cuda", None, {}, "FASTINIT_BUILD=cuda: torch is a build without CUDA"),
        ("cuda", "13.0", {"toolkit": False}, "FASTINIT_BUILD=cuda: no nvcc"),
        ("cuda", "13.0", {"failing": ("cuda",)}, "FASTINIT_BUILD=cuda: compiling for cuda failed"),
        ("cpu", "13.0", {"failing": ("cpu",)}, "FASTINIT_BUILD=cpu: compiling for cpu failed"),
    ],
)
def test_what_was_insisted_on_is_an_error(
    build: Callable[..., Outcome], mode: str, torch_cuda: str | None, circumstances: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"^{message}$"):
        build(mode, torch_cuda, **circumstances)


@pytest.mark.parametrize(
    ("known", "architectures"),
    [
        # CUDA 13.0's, in nvcc's own order; 12.6's; 11.5's
        ("75 80 86 87 88 89 90 100 110 103 120 121", "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        ("50 52 53 60 61 62 70 72 75 80 86 87 89 90", "7.5;8.0;8.6;8.9;9.0+PTX"),
        ("35 37 50 52 53 60 61 62 70 72 75 80 86 87", "7.5;8.0;8.6+PTX"),
    ],
)
def test_architectures_are_those_that_nvcc_knows(setup_py: ModuleType, known: str, architectures: str) -> None:
    listed = "".join(f"compute_{number}\n" for number in known.split())
    assert setup_py.default_architectures(listed) == architectures


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


def find_toolkit(setup_py: ModuleType, folder: Path | None, cuda: str | None = "13.0") -> Any:
    return setup_py.find_toolkit(setup_py.Torch("2.14.1", cuda, None if folder is None else str(folder)))


def test_toolkit_is_found(setup_py: ModuleType, toolkit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = find_toolkit(setup_py, toolkit_folder)
    assert toolkit.nvcc == "Cuda compilation tools, release 13.0, V13.0.88"
    assert toolkit.architectures == "9.0;12.0+PTX"
    assert toolkit.include_dirs == []
    assert toolkit.runtime == str(toolkit_folder / "lib" / "libcudart_static.a")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert find_toolkit(setup_py, toolkit_folder).architectures == "8.0"


@pytest.mark.parametrize("header", ["cuda_runtime.h", "crt/host_config.h"])
def test_nvidia_wheels_complete_a_toolkit(
    setup_py: ModuleType, toolkit_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, header: str
) -> None:
    wheel = tmp_path / "site-packages" / "nvidia" / "cu13"
    (wheel / "lib").mkdir(parents=True)
    (wheel / "lib" / "libcudart_static.a").touch()
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert setup_py.nvidia_wheels("13")[0] == wheel

    (toolkit_folder / "include" / header).unlink()
    toolkit = find_toolkit(setup_py, toolkit_folder)
    assert toolkit.include_dirs[0] == str(wheel / "include")
    assert toolkit.runtime == str(toolkit_folder / "lib" / "libcudart_static.a"), "the toolkit's own comes first"

    (toolkit_folder / "lib" / "libcudart_static.a").unlink()
    assert find_toolkit(setup_py, toolkit_folder).runtime == str(wheel / "lib" / "libcudart_static.a")


def test_what_lacks_for_cuda_is_named(
    setup_py: ModuleType, toolkit_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(message: str, folder: Path | None, cuda: str | None = "13.0") -> None:
        with pytest.raises(setup_py.BuildError, match=message):
            find_toolkit(setup_py, folder, cuda)

    check("^torch 2.14.1 is a build without CUDA$", toolkit_folder, None)
    check("^no CUDA toolkit: nvcc is not on PATH, CUDA_HOME is not set", None)
    check(f"^no nvcc: {tmp_path}/bin/nvcc does not run", tmp_path)
    check("^torch 2.14.1 is built for CUDA 12.8 and needs an nvcc 12: .* release 13.0", toolkit_folder, "12.8")
    monkeypatch.setattr(setup_py, "nvidia_wheels", lambda major: [])
    (toolkit_folder / "lib" / "libcudart_static.a").unlink()
    check(f"^no libcudart_static.a in {toolkit_folder}/stubs, ", toolkit_folder)


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ('fill.cu(58): error: identifier "x" is undefined\n1 error detected', 'error: identifier "x" is undefined'),
        ("a.cpp:1:10: fatal error: b.h: No such file or directory", "error: b.h: No such file or directory"),
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
            "fatal   : Unsupported gpu architecture 'compute_50'",
        ),
        (
            "ptxas error   : Entry function uses too much shared data",
            "error   : Entry function uses too much shared data",
        ),
        ("ninja: no work to do.", None),
    ],
)
def test_compiler_errors_are_found(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str, error: str | None
) -> None:
    (tmp_path / "build.ninja").touch()
    (tmp_path / "ninja").write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    (tmp_path / "ninja").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert setup_py.compiler_error(str(tmp_path)) == error


def test_a_missing_compiler_is_named(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(setup_py.BuildError, match="no C\\+\\+ compiler: no-such-compiler does not run"):
        setup_py.find_compiler()


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
    monkeypatch.delenv("FASTINIT_BUILD", raising=False)
    monkeypatch.setattr(backend, "target_directories", lambda: [str(empty), str(full)])

    before = list(sys.path)
    assert backend.get_requires_for_build_wheel() == []
    assert sys.path == [*before, str(full)], "at the end, so that no other package of the target comes first"


def test_backend_asks_for_torch_only_if_there_is_none(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide_torch(monkeypatch)
    monkeypatch.setattr(backend, "target_directories", lambda: [str(tmp_path)])
    monkeypatch.delenv("FASTINIT_BUILD", raising=False)
    before = list(sys.path)
    assert backend.get_requires_for_build_wheel() == [backend.TORCH_REQUIREMENT]
    assert backend.get_requires_for_build_editable() == [backend.TORCH_REQUIREMENT]
    assert backend.get_requires_for_build_sdist() == []
    assert sys.path == before

    monkeypatch.setenv("FASTINIT_BUILD", "none")
    assert backend.get_requires_for_build_wheel() == []


def test_backend_and_project_require_the_same_torch(backend: ModuleType) -> None:
    assert f'dependencies = ["{backend.TORCH_REQUIREMENT}", ' in (ROOT / "pyproject.toml").read_text()
