"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import drivers
import numpy as np
import pytest
import torch

import fastinit.run.table
from fastinit import _native
from fastinit.run import engine
from fastinit.schemes.distributions import Distribution

needs_native = pytest.mark.skipif(_native.module is None, reason=f"needs the native code: {_native.reason}")

needs_fma = pytest.mark.skipif(
    _native.module is None
    or not _native.module.orthogonal_cpu_fits(1024, 1024, fastinit.run.table.DTYPES[torch.float64]),
    reason="without fused multiply-add, all but the smallest orthogonal matrices are made by products",
)

needs_peaks = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux alone tells how much memory was needed"
)

INSTRUCTION_SETS = _native.module.supported_isas() if _native.module else []
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def pytest_configure(config: pytest.Config) -> None:
    if _native.module is None:
        # Installed without the extension, everything falls back, and says so at first use.
        config.addinivalue_line("filterwarnings", "ignore::fastinit.FallbackWarning")
    if hasattr(config, "workerinput"):
        # A worker of several has a core for itself. Two threads of torch would wait for the other worker's, which takes
        # up to ten times as long. Tests of threads choose their number.
        torch.set_num_threads(1)


def without_address(value: object) -> str:
    """A test's id, the same in every process, of what may hold a function."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def library_of_models(name: str) -> Any:
    """A library that tests marked `zoo` need. Skips without it, unless FASTINIT_REQUIRE_ZOO is set."""
    if os.environ.get("FASTINIT_REQUIRE_ZOO"):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def fill_native_row(
    tensor: torch.Tensor, distribution: Distribution, *, seed: int, name_id: bytes, **fields: int
) -> None:
    """Fill a tensor by a row of the native table (csrc/core/task.h): the index map is `fields`, or one whole row."""
    native = _native.module
    assert native is not None
    table = np.zeros(1, np.dtype(native.task_dtype()))
    table["data"], table["numel"] = tensor.data_ptr(), tensor.numel()
    table["row_length"], table["rows_per_slab"], table["element_memory_step"] = tensor.numel(), 1, 1
    for field, value in fields.items():
        table[field] = value
    table["name_id"] = np.frombuffer(name_id, "V16")
    table["dtype"] = fastinit.run.table.DTYPES[tensor.dtype]
    table["distribution"] = distribution.code
    table["parameter"] = distribution.parameters() + (0.0,) * (5 - len(distribution.parameters()))
    assert native.prepare(table) is None
    native.fill_cpu(table, seed, torch.get_num_threads())


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once for every instruction set of this machine."""
    monkeypatch.setenv("FASTINIT_FORCE_ISA", request.param)
    return str(request.param)


@pytest.fixture(autouse=True, scope="module")
def _end_of_emulated_threads() -> Iterator[None]:
    yield
    drivers.release_stacks()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the package had been installed without the extension."""
    monkeypatch.setattr(_native, "module", None)
    monkeypatch.setattr(_native, "reason", "taken away by a test")
    engine._warn_once.cache_clear()
    yield
    engine._warn_once.cache_clear()


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
