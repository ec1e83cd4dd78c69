"""What is read in the text of constructors: constants that would be lost otherwise, and nothing that may be wrong."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastinit

SCHEME = "kaiming_normal"


def of(model: nn.Module, name: str, scheme: str = SCHEME) -> tuple[str, str]:
    """(what a plan gives a parameter, the reason)."""
    row = next(each for each in fastinit.plan(model, scheme, seed=0).rows if each.name == name)
    return str(row.distribution), row.reason


class Head(nn.Module):
    def __init__(self, width: int = 4, prior: float = 0.01, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.prior = prior
        self.logits = nn.Linear(width, 3)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))
        self.gates = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False))
        if self.gated:
            self.gates[0].bias.data.fill_(np.log(math.e))
        if self.gates[2].bias is not None:
            nn.init.ones_(self.logits.bias)
        with torch.no_grad():
            self.norm = nn.LayerNorm(width)
            self.norm.weight.fill_(0.5)


def test_constants_of_a_constructor_stay_under_any_scheme() -> None:
    model = nn.Sequential(Head(), Head(prior=0.5, gated=False))
    assert of(model, "0.logits.bias") == ("-4.59512", "author: -4.59512")
    assert of(model, "1.logits.bias")[1] == "author: zeros"
    assert of(model, "0.gates.0.bias")[1] == "author: ones" and of(model, "1.gates.0.bias")[1] == "bias"
    assert of(model, "0.logits.weight")[1] == "linear map of Linear"
    assert of(model, "0.logits.bias", "own")[1] == "own: as its constructor is written"
    fresh = {name: each.clone() for name, each in model.named_parameters() if name.endswith(".bias")}
    fastinit.init_model_(model, SCHEME, seed=0)
    for name in ("0.logits.bias", "1.logits.bias", "0.gates.0.bias"):
        torch.testing.assert_close(model.get_parameter(name), fresh[name])
    meta = nn.Sequential(Head().to("meta"))
    fastinit.materialize_(meta, SCHEME, device="cpu", seed=0)
    assert torch.allclose(meta.get_parameter("0.logits.bias"), torch.tensor(-math.log(99)))


def test_a_constant_that_was_computed_from_what_is_gone_is_kept() -> None:
    class Gone(nn.Module):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)
            self.map.bias.data.fill_(bias)

    model = Gone(-3.0)
    with pytest.warns(fastinit.UncoveredWarning, match=r"map\.bias"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert (model.map.bias == -3.0).all()
    with pytest.raises(ValueError, match=r"map\.bias"):
        fastinit.init_model_(model, SCHEME, seed=0, strict=True)


@pytest.mark.parametrize("way", ["assigned", "filled", "by torch.nn.init", "drawn"])
def test_patterns_in_a_bias_are_kept(way: str) -> None:
    class Forgetful(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.way = way
            self.lstm = nn.LSTM(3, 4)
            if self.way == "assigned":
                self.lstm.bias_hh_l0.data[4:8] = 1.0
            if self.way == "filled":
                self.lstm.bias_hh_l0.data[4:8].fill_(1.0)
            if self.way == "by torch.nn.init":
                nn.init.ones_(self.lstm.bias_hh_l0[4:8])
            if self.way == "drawn":
                self.lstm.bias_hh_l0.data[4:8] = torch.rand(4)

    model = Forgetful(way)
    before = model.lstm.bias_hh_l0.detach().clone()
    if way == "drawn":
        assert of(model, "lstm.bias_hh_l0")[1] == "bias"
        return
    with pytest.warns(fastinit.UncoveredWarning, match=r"lstm\.bias_hh_l0"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert torch.equal(model.lstm.bias_hh_l0, before) and (model.lstm.bias_ih_l0 == 0.0).all()


class Set(nn.Module):
    """Sets a constant. Those derived from it may set it again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        nn.init.constant_(self.inner[-1].bias, val=2.0)


class SetAgain(Set):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(tensor=self.inner[1].bias, val=5)


class InLoop(Set):
    def __init__(self) -> None:
        super().__init__()
        for each in self.modules():
            if isinstance(each, nn.Linear):
                nn.init.zeros_(each.bias)


class Applied(Set):
    def __init__(self) -> None:
        super().__init__()
        self.apply(self.set)

    def set(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class Replaced(Set):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])


class Drawn(Set):
    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.inner[1].bias)


class Either(Set):
    def __init__(self, other: bool = False) -> None:
        super().__init__()
        if other:
            nn.init.zeros_(self.inner[1].bias)


class Early(Set):
    def __init__(self, early: bool = True) -> None:
        super().__init__()
        if early:
            return
        nn.init.constant_(self.inner[1].bias, 6.0)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.set = Set()
        nn.init.constant_(self.set.inner[1].bias, 9.0)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Set, "inner.1.bias", "author: 2"),
        (Set, "inner.0.bias", "bias"),
        (SetAgain, "inner.1.bias", "author: 5"),
        (InLoop, "inner.1.bias", "bias"),
        (Applied, "inner.1.bias", "author: zeros"),
        (Replaced, "inner.1.bias", "bias"),
        (Drawn, "inner.1.bias", "bias"),
        (Either, "inner.1.bias", "bias"),
        (Early, "inner.1.bias", "bias"),
        (Around, "set.inner.1.bias", "author: 9"),
    ],
)
def test_the_last_statement_decides_and_what_is_not_understood_makes_unknown(
    kind: Any, name: str, expected: str
) -> None:
    assert of(kind(), name)[1] == expected
    assert of(nn.Sequential(kind()), f"0.{name}")[1] == expected


def test_what_a_model_does_to_its_parts_counts_more_than_what_they_say() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Set()
            self.apply(lambda module: None)

    class WithCode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Set()

        def init_weights(self) -> None:
            nn.init.constant_(self.part.inner[1].bias, 3.0)

    assert of(Model(), "part.inner.1.bias")[1] == "bias"
    assert of(WithCode(), "part.inner.1.bias")[1] == "author: 3"


def test_a_constructor_without_a_text_may_do_anything_to_its_parts() -> None:
    namespace: dict[str, Any] = {"__name__": "untold", "nn": nn, "Set": Set}
    exec("class Untold(nn.Module):\n  def __init__(self):\n    super().__init__(); self.part = Set()", namespace)
    assert of(namespace["Untold"](), "part.inner.1.bias")[1] == "bias"


def test_placeholders_are_no_statements() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))
            self.bias = nn.Parameter(torch.full((4,), 7.0))

    assert of(Own(), "weight")[1] == "linear map of Own" and of(Own(), "bias")[1] == "bias"


def test_reading_touches_nothing() -> None:
    calls = []

    class Property(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)
            nn.init.constant_(self.map.bias, self.level)

        @property
        def level(self) -> float:
            calls.append("level")
            return 1.0

    model = Property()
    calls.clear()
    state = torch.get_rng_state()
    with pytest.warns(fastinit.UncoveredWarning, match=r"map\.bias"):
        assert "no code tells to what" in of(model, "map.bias")[1]
    assert calls == [] and torch.equal(state, torch.get_rng_state())


def test_a_layer_that_passes_some_shapes_as_they_are_does_not_add_one() -> None:
    class ChannelNorm(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dim() == 3:
                x = super().forward(x.transpose(1, 2)).transpose(1, 2)
            return x

    assert (fastinit.init_model_(ChannelNorm(6), SCHEME, seed=0).weight == 1.0).all()


def test_tables_of_biases_and_scales_of_heads_are_no_maps() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_biases = nn.Parameter(torch.zeros(6, 49))
            self.relative_position_bias_table = nn.Parameter(torch.zeros(49, 6))
            self.q_scale = nn.Parameter(torch.ones(6, 1, 8))
            self.out = nn.Parameter(torch.zeros(6, 8))

    with pytest.warns(fastinit.UncoveredWarning, match="attention_biases, relative_position_bias_table, q_scale"):
        rows = {row.name: row for row in fastinit.plan(Attention(), SCHEME, seed=0).rows}
    assert [name for name, row in rows.items() if row.action == "init"] == ["out"]
