"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastinit import _native, engine

needs_native = pytest.mark.skipif(_native.module is None, reason=f"needs the native code: {_native.reason}")

INSTRUCTION_SETS = _native.module.supported_isas() if _native.module else []
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def pytest_configure(config: pytest.Config) -> None:
    if _native.module is None:
        # Installed without the extension, everything falls back, and says so at first use.
        config.addinivalue_line("filterwarnings", "ignore::fastinit.FallbackWarning")


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once for every instruction set of this machine."""
    monkeypatch.setenv("FASTINIT_FORCE_ISA", request.param)
    return str(request.param)


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
