"""Biases of gates and ramps over channels against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import DTYPES, needs_native
from scipy import stats
from torch import nn

import fastinit
from fastinit.run.engine import Program
from fastinit.run.targets import Target
from fastinit.schemes import distributions
from fastinit.schemes.distributions import LogOfUniform

CELLS: dict[str, tuple[Any, int]] = {
    "LSTM": (lambda n: nn.LSTM(3, n, num_layers=2, bidirectional=True), 4),
    "LSTM with projections": (lambda n: nn.LSTM(3, n, proj_size=2), 4),
    "LSTMCell": (lambda n: nn.LSTMCell(3, n), 4),
    "GRU": (lambda n: nn.GRU(3, n, bidirectional=True), 3),
    "GRUCell": (lambda n: nn.GRUCell(3, n), 3),
}


def biases(model: nn.Module, which: str) -> list[torch.Tensor]:
    found = [p.detach() for name, p in model.named_parameters() if name.rpartition(".")[2].startswith(f"bias_{which}")]
    assert found
    return found


@pytest.mark.parametrize(("make", "gates"), CELLS.values(), ids=CELLS.keys())
def test_chrono(make: Any, gates: int) -> None:
    units, t_max = 400, 784
    model = make(units)
    fastinit.init_model_(model, "xavier_uniform", [("*bias_*", fastinit.Chrono(t_max))], seed=0, fan="module")
    for bias in biases(model, "hh"):
        assert not bias.any()
    law = stats.uniform(1.0, t_max - 2.0)
    for bias in biases(model, "ih"):
        each = bias.double().view(gates, units)
        assert stats.kstest(each[1].exp().numpy(), law.cdf).pvalue > 1e-4
        assert not each[2:].any()
        assert torch.equal(each[0], -each[1]) if gates == 4 else not each[0].any()
    firsts = [float(bias[units]) for bias in biases(model, "ih")]
    assert len(set(firsts)) == len(firsts)


def test_a_unit_of_chrono_forgets_within_the_steps_that_its_bias_says() -> None:
    """The paper's argument: with b = log T, an undisturbed state falls to about 1 / e in T + 1 steps."""
    lstm = nn.LSTMCell(1, 50)
    fastinit.init_model_(lstm, "zeros", [("bias_*", fastinit.Chrono(100.0))], seed=1)
    state, steps = torch.ones(1, 50), lstm.bias_ih[50:100].exp() + 1.0
    left = torch.empty(50)
    hidden, cell = torch.zeros(1, 50), state
    for step in range(1, 102):
        hidden, cell = lstm(torch.zeros(1, 1), (hidden, cell))
        left = torch.where((steps.round() == step), cell[0], left)
    assert ((left - math.exp(-1.0)).abs() < 0.13).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_native
def test_chrono_takes_the_random_numbers_of_the_forget_gates_units(dtype: torch.dtype) -> None:
    lstm = nn.LSTM(3, 64, dtype=dtype)
    fastinit.init_model_(lstm, "zeros", [("bias_*", fastinit.Chrono(50))], seed=4)
    logs = torch.empty(256, dtype=torch.float64)
    fastinit.init_([logs], fastinit.LogOfUniform(1.0, 49.0), seed=4, names=["bias_ih_l0"])
    wanted = torch.cat([-logs[:64], logs[:64], torch.zeros(128, dtype=torch.float64)])
    assert torch.equal(lstm.bias_ih_l0, wanted.to(dtype))
    assert fastinit.verify(lstm, fastinit.plan(lstm, "zeros", [("bias_*", fastinit.Chrono(50))], seed=4)) == ()


@pytest.mark.parametrize("begin", [0, 3, 8, 19])
def test_a_shard_of_chrono_has_the_values_of_the_whole(begin: int) -> None:
    law = distributions.Chrono(1.0, 99.0, 5, (-1, 1, 0, 0))
    tensors = torch.empty(20), torch.empty(min(7, 20 - begin))
    for tensor, at in zip(tensors, (None, (begin,)), strict=True):
        target = Target("w", tensor, tensors[0].shape, tensor.dtype, tensor.device, law, None, at)
        Program([target], "auto").run_(1, None)
    assert torch.equal(tensors[1], tensors[0][begin : begin + 7])


@pytest.mark.parametrize("make", [CELLS["LSTM"][0], CELLS["LSTMCell"][0]], ids=["LSTM", "LSTMCell"])
def test_forget_bias(make: Any) -> None:
    model = make(5)
    fastinit.init_model_(model, "xavier_uniform", [("*bias_*", fastinit.ForgetBias(2.0))], seed=0, fan="module")
    for bias in biases(model, "ih"):
        assert bias.view(4, 5).tolist() == [[0.0] * 5, [2.0] * 5, [0.0] * 5, [0.0] * 5]
    for bias in biases(model, "hh"):
        assert not bias.any()


@pytest.mark.parametrize(
    ("model", "name", "scheme", "message"),
    [
        (
            nn.RNN(3, 4),
            "bias_ih_l0",
            fastinit.Chrono(9),
            "bias_hh of an LSTM or a GRU, got bias_ih_l0 of RNN",
        ),
        (nn.LSTM(3, 4), "weight_ih_l0", fastinit.Chrono(9), "got weight_ih_l0 of LSTM"),
        (nn.Linear(3, 4), "bias", fastinit.Chrono(9), "got bias of Linear"),
        (nn.GRU(3, 4), "bias_ih_l0", fastinit.ForgetBias(), "bias_ih or bias_hh of an LSTM, got bias_ih_l0 of GRU"),
    ],
)
def test_what_has_no_such_gates_is_refused(model: nn.Module, name: str, scheme: Any, message: str) -> None:
    before = model.get_parameter(name).clone()
    with pytest.raises(ValueError, match=rf"^{name}: .*{message}$"):
        fastinit.init_model_(model, "orthogonal", [(name, scheme)], seed=0)
    assert torch.equal(model.get_parameter(name), before)


def test_a_tensor_alone_has_no_gates() -> None:
    with pytest.raises(ValueError, match=r"got a tensor alone$"):
        fastinit.init_([torch.empty(8)], fastinit.Chrono(9))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastinit.Chrono(1.5), ValueError, r"t_max: expected t_max >= 2, got 1\.5"),
        (lambda: fastinit.Chrono(math.inf), ValueError, "t_max: expected a finite number"),
        (lambda: fastinit.Chrono("a"), TypeError, "t_max: expected a number"),  # type: ignore[arg-type]
        (lambda: fastinit.ForgetBias(math.nan), ValueError, "value: expected a finite number"),
        (lambda: fastinit.LogOfUniform(0.0, 1.0), ValueError, "low, high: expected 0 < low <= high"),
        (lambda: fastinit.Ramp(0.0, math.inf), ValueError, "last: expected a finite number"),
        (lambda: fastinit.scheme("rwkv7_ramp", head_size=1), ValueError, "head_size: expected head_size >= 2, got 1"),
        (lambda: fastinit.scheme("rwkv7_mix", power=-1.0), ValueError, "power: expected power >= 0"),
    ],
)
def test_wrong_arguments_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


@pytest.mark.parametrize(("low", "high"), [(1.0, 16.0), (1.0, 1e5), (1e-6, 1.0), (3.0, 3.0), (3.0, 3.0 + 1e-9)])
def test_the_moments_of_logs_of_uniforms(low: float, high: float) -> None:
    found = LogOfUniform(low, high)
    points = torch.linspace(low, high, 4_000_001, dtype=torch.float64).log()
    assert found.mean() == pytest.approx(float(points.mean()), rel=1e-5, abs=1e-9)
    assert found.std() == pytest.approx(float(points.std(correction=0)), rel=1e-4, abs=1e-7)
    assert found.bounds() == (math.log(low), math.log(high))


def test_ramps() -> None:
    tensors = [torch.empty(5), torch.empty(2, 3), torch.empty(1)]
    fastinit.init_(tensors, fastinit.Ramp(1.0, -1.0))
    assert tensors[0].tolist() == [1.0, 0.5, 0.0, -0.5, -1.0]
    assert tensors[1].tolist() == [[1.0, 0.0, -1.0]] * 2
    assert tensors[2].tolist() == [1.0]
    with pytest.raises(ValueError, match="expected 1 dimension or more, got a scalar"):
        fastinit.init_([torch.empty(())], fastinit.Ramp(1.0, -1.0))


def test_a_series_tells_what_it_is() -> None:
    assert str(distributions.Series((1.0, 0.5, 0.0))) == "1 ... 0, 3 values"
    assert distributions.Series((1.0, 0.5)).scaled(2.0) == distributions.Series((2.0, 1.0))
