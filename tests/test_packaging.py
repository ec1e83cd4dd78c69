"""The compiled file depends on no torch, and setup.py and the build backend choose and find what they should."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
def setup_py() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup_py")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "_build_backend")])
    monkeypatch.delitem(sys.modules, "fastinit_build", raising=False)
    return importlib.import_module("fastinit_build")


def read_elf(path: Path) -> tuple[set[str], set[str]]:
    """The undefined dynamic symbols and the needed libraries of a 64-bit little-endian ELF file.

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
    undefined = {string(names + entry[0]) for entry, names in entries(dynsym, "<IBBHQQ") if entry[3] == 0} - {""}
    libraries = {string(names + value) for (tag, value), names in entries(dynamic, "<qQ") if tag == needed}
    return undefined, libraries


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
    undefined, _ = read_elf(compiled_file)
    assert "PyErr_SetString" in undefined, "the symbols were not read rightly"
    assert not [symbol for symbol in undefined if of_torch(symbol)]


def test_compiled_file_links_the_language_runtime_only(compiled_file: Path) -> None:
    _, libraries = read_elf(compiled_file)
    assert "libc.so.6" in libraries, "the libraries were not read rightly"
    assert {library.split(".so")[0] for library in libraries} <= RUNTIME_LIBRARIES


def test_flags_fix_the_results_and_not_the_machine(setup_py: dict[str, Any], build_info: dict[str, Any]) -> None:
    flags = setup_py["CXX_FLAGS"]
    assert {"-ffp-contract=off", "-fno-fast-math"} <= set(flags)
    for forbidden in ("-march", "-mtune", "-std", "-ffast-math", "-Ofast", "-fopenmp"):
        assert not [flag for flag in flags if flag.startswith(forbidden)]
    if build_info["build"] != "none":
        assert build_info["flags"] == flags, "the extension was built with other flags; install again"


def test_build_info_says_what_was_built(build_info: dict[str, Any]) -> None:
    assert build_info["build"] in ("cpu", "cuda", "none")
    if build_info["build"] == "none":
        assert build_info["reason"]
    else:
        assert build_info["reason"] is None
        assert build_info["compiler"]
        assert build_info["torch"]


def test_all_sources_are_collected(setup_py: dict[str, Any]) -> None:
    extension = setup_py["extension"]()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cpp")}
    headers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h")}
    assert set(extension.sources) == sources
    assert set(extension.depends) == headers
    assert extension.sources == sorted(extension.sources)


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, "auto"), ("", "auto"), ("auto", "auto"), ("cpu", "cpu"), ("CPU", "cpu"), ("none", "none")],
)
def test_build_mode(setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch, value: str | None, mode: str) -> None:
    if value is None:
        monkeypatch.delenv("FASTINIT_BUILD", raising=False)
    else:
        monkeypatch.setenv("FASTINIT_BUILD", value)
    assert setup_py["build_mode"]() == mode


def test_unknown_build_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, as an installer would see it.
    monkeypatch.setenv("FASTINIT_BUILD", "gpu")
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "FASTINIT_BUILD=gpu is not one of auto, cpu, cuda, none" in result.stderr


def test_cuda_without_cuda_sources_is_refused(setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if setup_py["cuda_sources"]():
        pytest.skip("there are CUDA sources")
    monkeypatch.setenv("FASTINIT_BUILD", "cuda")
    with pytest.raises(SystemExit, match="no CUDA sources; use auto, cpu or none"):
        setup_py["build_mode"]()


def test_a_missing_compiler_is_named(setup_py: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(setup_py["BuildError"], match="no C\\+\\+ compiler: no-such-compiler does not run"):
        setup_py["find_compiler"]()


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
