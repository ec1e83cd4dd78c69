"""trace_signal: what it measures is what passes, its verdicts are those of the textbooks, and it leaves no trace."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.audit.signal import Comparison, Trace, course, text_plot
from fastinit.audit.statistics import statistics

DEPTH, WIDTH = 100, 64


def network(activation: type[nn.Module] = nn.ReLU, depth: int = DEPTH) -> nn.Sequential:
    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=torch.float64), activation()) for _ in range(depth))
    return nn.Sequential(*layers)


def batch(rows: int = 128) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def traced(activation: type[nn.Module], scheme: Any) -> Trace:
    return fastinit.trace_signal(fastinit.init_model_(network(activation), scheme, seed=0), batch())


# ---- what is measured ----


def test_activations_and_gradients_are_those_of_autograd() -> None:
    model = fastinit.init_model_(network(nn.Tanh, depth=3), "xavier_uniform", seed=1)
    x = batch()
    outputs = []
    for layer in model:
        for each in layer:
            x = each(x)
            outputs.append(x)
    gradients = torch.autograd.grad(x.square().sum(), outputs)
    found = fastinit.trace_signal(model, batch(), lambda output: output.square().sum())
    assert [each.name for each in found.layers] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    assert [each.kind for each in found.layers[:2]] == ["Linear", "Tanh"]
    for layer, output, gradient in zip(found.layers, outputs, gradients, strict=True):
        assert layer.activation == pytest.approx(statistics(output), rel=1e-9)
        assert layer.gradient == pytest.approx(statistics(gradient), rel=1e-9)


def test_zeros_of_a_relu_are_counted() -> None:
    (_, relu) = fastinit.trace_signal(fastinit.init_model_(network(depth=1), "kaiming_normal", seed=0), batch()).layers
    assert relu.activation.zeros / relu.activation.numel == pytest.approx(0.5, abs=0.05)


def test_a_relu_in_place_changes_nothing_of_what_is_measured() -> None:
    def of(inplace: bool) -> Trace:
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=inplace), nn.Linear(WIDTH, 3))
        return fastinit.trace_signal(fastinit.init_model_(model, "kaiming_normal", seed=0), batch().float())

    assert of(True).layers == of(False).layers


def test_modules_with_children_count_where_none_of_these_ran() -> None:
    model = nn.MultiheadAttention(8, 2)  # its out_proj is never called
    found = fastinit.trace_signal(model, tuple(torch.randn(3, 5, 2, 8)))
    assert [each.kind for each in found.layers] == ["MultiheadAttention"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.twice = nn.ReLU()

    def forward(self, x: torch.Tensor, *, scale: float) -> dict[str, torch.Tensor]:
        for layer in self.h:
            x = x + scale * self.twice(layer(x))
        return {"out": x, "ids": torch.arange(3)}


def test_layers_are_chosen_and_keywords_passed() -> None:
    arguments = {"x": torch.ones(2, 8), "scale": 0.5}
    found = fastinit.trace_signal(Residual(), arguments, layers="h.?")
    assert [each.name for each in found.layers] == ["h.0", "h.1", "h.2"]
    assert all(each.gradient is not None for each in found.layers)
    every = fastinit.trace_signal(Residual(), arguments)
    assert [each.name for each in every.layers] == ["h.0", "twice", "h.1", "twice", "h.2", "twice"]
    with pytest.raises(ValueError, match="no module of 'nowhere' returned"):
        fastinit.trace_signal(Residual(), arguments, layers="nowhere")


def test_a_frozen_model_has_no_gradients() -> None:
    found = fastinit.trace_signal(network(depth=2).requires_grad_(False), batch())
    assert found.gradients is None and all(each.gradient is None for each in found.layers)
    assert found.verdicts()[0].startswith("signal: ") and len(found.verdicts()) == 1


# ---- no trace is left ----


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.register_buffer("calls", torch.zeros(()))
        self.other = self.calls
        self.seen = 0
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.last = x
        self.calls.add_(1)
        x = self.spectral(self.body(x))
        if self.fails:
            raise RuntimeError("as asked")
        self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(fails: bool, training: bool) -> None:
    model = Stateful().train(training)
    model.fails = fails
    x = torch.randn(16, 8)
    model.body[0].weight.grad = torch.ones(8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="as asked"):
            fastinit.trace_signal(model, x)
    else:
        fastinit.trace_signal(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.named_buffers()} == objects
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.body[0].weight.grad, torch.ones(8, 8))
    assert model.body[2].training is training and model.seen == 0 and not hasattr(model, "last")
    assert [each.grad for each in model.parameters()].count(None) == len(list(model.parameters())) - 1
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_two_traces_are_equal() -> None:
    model = Stateful()
    assert (
        fastinit.trace_signal(model, torch.ones(4, 8)).layers == fastinit.trace_signal(model, torch.ones(4, 8)).layers
    )


# ---- verdicts ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "scheme", "signal", "gradient"),
    [
        (nn.ReLU, fastinit.Normal(std=1.0), "exploding", "exploding"),
        (nn.ReLU, fastinit.Normal(std=0.01), "vanishing", "vanishing"),
        (nn.ReLU, "kaiming_normal", "level", "level"),
        (nn.ReLU, "xavier_normal", "vanishing", "vanishing"),
        (nn.Tanh, fastinit.Normal(std=1.0), "level", "exploding"),
        (nn.Tanh, fastinit.Normal(std=0.01), "vanishing", "vanishing"),
        (nn.Tanh, "orthogonal", "level", "level"),
        (nn.ReLU, "zeros", "no signal", "vanishing"),
    ],
)
def test_verdicts_are_those_of_the_textbooks(
    activation: type[nn.Module], scheme: Any, signal: str, gradient: str
) -> None:
    found = traced(activation, scheme)
    assert (found.activations.verdict, found.gradients and found.gradients.verdict) == (signal, gradient)


def of_stds(*stds: float) -> list[tuple[str, Any]]:
    return [(str(at), statistics(torch.tensor([-std, std], dtype=torch.float64))) for at, std in enumerate(stds)]


def test_the_verdict_names_the_layer_from_which_on_it_holds() -> None:
    assert course(of_stds(*(2.0**-at for at in range(30))))[:2] == ("vanishing", "4")  # 2^-4 < 1/10 <= 2^-3
    assert course(of_stds(1.0, 100.0, 1.0, 1.0, 1e4, 1e4))[:2] == ("exploding", "4")
    assert course(of_stds(1.0, 0.0, 0.0)) == ("vanishing", "1", 0.0)
    assert course(of_stds(1.0, 1.4, 0.6, 9.0)).verdict == "level"
    assert course(of_stds(*(1.03**at for at in range(101)))).verdict == "level"  # 19 times in a hundred layers
    assert course(of_stds(*(1.1**at for at in range(31)))).verdict == "exploding"  # 17 times in thirty
    assert course(of_stds(1.0, math.inf, 1.0))[:2] == ("not finite", "1")


# ---- how it is shown ----


def test_the_table_and_json_have_a_line_for_each_layer() -> None:
    found = fastinit.trace_signal(fastinit.init_model_(network(depth=3), "kaiming_normal", seed=0), batch())
    lines = str(found).split("\n")
    assert len(lines) == 1 + 6 + 2 and lines[-2].startswith("signal: level") and lines[-1].startswith("gradient: level")
    records = json.loads(found.to_json())
    assert [each["activation"]["std"] for each in records] == [each.activation.std for each in found.layers]


def test_a_text_plot_falls_where_the_signal_falls() -> None:
    text = traced(nn.ReLU, fastinit.Normal(std=0.01)).text_plot(width=40, height=10)
    lines = text.split("\n")
    assert lines[0].split("|")[1].index("*") == 0 and lines[9].split("|")[1].rindex("*") == 39
    assert lines[-2:] == ["* signal", "o gradient"]
    assert "|" in text_plot({"nothing": [0.0, math.nan]}, 10, 4)


def test_without_matplotlib_a_plot_is_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = fastinit.trace_signal(network(depth=2), batch())
    assert found.plot() == found.text_plot() == capsys.readouterr().out.rstrip("\n")


def test_matplotlib_draws_a_curve_for_signal_and_gradient() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    found = compared()
    axes = found.plot()
    assert len(axes.lines) == 6 and axes.get_yscale() == "log"
    assert found["orthogonal"].plot(axes) is axes and len(axes.lines) == 8


def test_a_plot_marks_where_nothing_can_be_drawn() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    axes = traced(nn.ReLU, "zeros").plot()
    assert [each.get_offsets().tolist() for each in axes.collections] == [[[1, 0.02]], [[1, 0.02]]]
    assert axes.get_xlim()[0] == 0.5


def compared() -> Comparison:
    return fastinit.compare(
        lambda: network(nn.Tanh, 30), ["xavier_normal", fastinit.Normal(std=1.0), "orthogonal"], batch()
    )


def test_schemes_are_compared_by_name() -> None:
    found = compared()
    assert list(found.traces) == ["xavier_normal", "normal", "orthogonal"]
    lines = str(found).split("\n")
    assert len(lines) == 6 and lines[2].startswith("normal         signal: level")
    assert "exploding from" in lines[3] and found.text_plot().count("orthogonal") == 1
    twice = {"small": fastinit.Normal(std=0.01), "large": fastinit.Normal(std=1.0)}
    assert list(fastinit.compare(lambda: network(depth=2), twice, batch()).traces) == ["small", "large"]
    with pytest.raises(ValueError, match="schemes: two of them"):
        fastinit.compare(lambda: network(depth=2), ["ones", "ones"], batch())


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="model: expected"):
        fastinit.trace_signal(torch.relu, batch())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loss: expected"):
        fastinit.trace_signal(network(depth=1), batch(), lambda output: output)
    with pytest.raises(fastinit.ParameterError, match=r"0\.0\.weight: is on the meta device"):
        fastinit.trace_signal(network(depth=1).to("meta"), batch())
