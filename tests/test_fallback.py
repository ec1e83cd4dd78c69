"""Through torch.nn.init: when asked, and where the native code is missing or does not apply."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit import _native


def build() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 8, padding_idx=1), nn.Linear(8, 6), nn.LayerNorm(6), nn.Conv1d(6, 4, 3))


def plain_loop(model: nn.Module, initialise: str) -> None:
    """What backend="torch" stands for: torch.nn.init calls in the order of the modules."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):
            getattr(nn.init, initialise)(module.weight)
            if isinstance(module, nn.Embedding):
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
            else:
                nn.init.zeros_(module.bias)


INITIALISERS = ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_"]


def assert_same_parameters(left: nn.Module, right: nn.Module) -> None:
    for (name, first), (_, second) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("initialise", [*INITIALISERS, "trunc_normal_"])
def test_torch_backend_gives_the_numbers_of_the_plain_loop(initialise: str) -> None:
    expected, ours = build(), build()
    torch.manual_seed(8)
    plain_loop(expected, initialise)
    after = torch.get_rng_state()
    torch.manual_seed(8)
    fastinit.init_model_(ours, initialise.removesuffix("_"), backend="torch")
    assert_same_parameters(expected, ours)
    assert torch.equal(after, torch.get_rng_state())


def test_torch_backend_draws_from_the_generator_it_is_given() -> None:
    expected, ours = torch.empty(50), torch.empty(50)
    nn.init.normal_(expected, generator=torch.Generator().manual_seed(4))
    fastinit.init_([ours], "normal", generator=torch.Generator().manual_seed(4), backend="torch")
    assert torch.equal(expected, ours)


def test_torch_backend_with_a_seed_depends_on_names_alone() -> None:
    first, second = torch.empty(50), torch.empty(50)
    fastinit.init_([torch.empty(3), first], "normal", names=["other", "weight"], seed=2, backend="torch")
    fastinit.init_([second], "normal", names=["weight"], seed=2, backend="torch")
    assert torch.equal(first, second)


def test_missing_native_code_falls_back_and_says_so_once(without_native: None) -> None:
    expected, ours = build(), build()
    torch.manual_seed(8)
    plain_loop(expected, "xavier_uniform_")
    torch.manual_seed(8)
    with pytest.warns(fastinit.FallbackWarning, match="not available .taken away by a test.*torch.nn.init") as caught:
        fastinit.init_model_(ours, "xavier_uniform")
    assert len(caught) == 1
    assert_same_parameters(expected, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.init_model_(ours, "xavier_uniform")


def test_native_backend_refuses_by_name(without_native: None) -> None:
    with pytest.raises(ValueError, match=r"1\.weight: backend='native' cannot fill it: .*taken away by a test"):
        fastinit.init_model_(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "normal", backend="native")


@needs_native
def test_complex_matrices_fall_back_and_other_tensors_do_not() -> None:
    from fastinit.run import engine

    engine._warn_once.cache_clear()
    real, complex_ = torch.empty(50, 50), torch.empty(50, 50, dtype=torch.complex64)
    with pytest.warns(fastinit.FallbackWarning, match="does not make Orthogonal in torch.complex64"):
        fastinit.init_([real, complex_], "orthogonal", names=["real", "complex"], seed=2)
    alone = torch.empty(50, 50)
    fastinit.init_([alone], "orthogonal", names=["real"], seed=2)
    assert torch.equal(alone, real)
    assert complex_.imag.std() > 0.05
    with pytest.raises(ValueError, match="complex: backend='native' cannot fill it"):
        fastinit.init_([real, complex_], "orthogonal", names=["real", "complex"], backend="native")


@pytest.mark.slow
def test_info_prints_what_is_there() -> None:
    result = subprocess.run([sys.executable, "-m", "fastinit", "info"], capture_output=True, text=True, check=True)
    assert torch.__version__ in result.stdout
    if _native.module is None:
        assert "torch.nn.init" in result.stdout
    else:
        assert "Philox4x32-10: as published" in result.stdout and _native.module.active_isa() in result.stdout


@pytest.mark.slow
def test_a_wrong_known_answer_is_not_trusted() -> None:
    code = (
        "import fastinit._C as c; c.philox4x32 = lambda counter, key: [1, 2, 3, 4]\n"
        "import importlib, fastinit._native as n; importlib.reload(n)\n"
        "assert n.module is None and 'wrong Philox' in n.reason, n.reason"
    )
    if _native.module is None:
        pytest.skip(f"there is no native code to distrust: {_native.reason}")
    subprocess.run([sys.executable, "-c", code], check=True)
