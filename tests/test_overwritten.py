"""What a run overwrites although somebody has set it, and what of that is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastinit


class Set(nn.Module):
    """What code that nobody reads has set."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last_norm = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.maps = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("drawn", "one", "identity", "rows", "columns")})
        self.logit, self.gate = nn.Linear(8, 1), nn.Linear(8, 1)
        self.tall = nn.Module()
        self.tall.bias = nn.Parameter(torch.empty(5, 1))
        self.scalar = nn.Module()
        self.scalar.bias = nn.Parameter(torch.empty(()))


def test_what_is_overwritten_is_said() -> None:
    model = Set()
    with torch.no_grad():
        model.norm.weight.fill_(0.5)
        model.last_norm.weight.zero_()
        model.conv.bias.fill_(2.0)
        model.logit.bias.fill_(-4.6)
        model.gate.bias.fill_(0.3)  # torch may have drawn it
        model.tall.bias.fill_(-1.0)
        model.scalar.bias.fill_(0.182)
        model.maps["one"].weight.fill_(3.0)
        nn.init.eye_(model.maps["identity"].weight)
        model.maps["rows"].weight[1:] = model.maps["rows"].weight[0].clone()
        model.maps["columns"].weight[:, 1:] = model.maps["columns"].weight[:, :1].clone()
    plan = fastinit.plan(model, "kaiming_normal", seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan.run_()
    said = {str(each.message).split(": ")[0]: str(each.message).split(": ")[1].split("; ")[0] for each in caught}
    assert {each.category for each in caught} == {fastinit.ConstantWarning}
    assert said == {
        "these linear maps held one value, or a pattern such as a diagonal, and are drawn now": "maps.one.weight (3), "
        "maps.identity.weight (a pattern), maps.rows.weight (a pattern), maps.columns.weight (a pattern)",
        "these biases held one value, and are zero now": "conv.bias (2), logit.bias (-4.6), tall.bias (-1), "
        "scalar.bias (0.182)",
        "these parameters held one value, and hold another now": "norm.weight (0.5, now 1), "
        "last_norm.weight (0, now 1)",
    }
    fastinit.init_model_(model, "kaiming_normal", seed=1)  # what fastinit has written, it may overwrite


def test_what_rules_write_is_not_looked_at() -> None:
    model = Set()
    for module in model.maps.values():
        nn.init.eye_(module.weight)
    nn.init.constant_(model.norm.weight, 0.5)
    nn.init.zeros_(model.tall.bias), nn.init.zeros_(model.scalar.bias)
    fastinit.init_model_(model, "normal", [("maps.*.weight", "normal"), ("norm.weight", "ones")], seed=0)


@pytest.mark.parametrize("only_maps", [False, True])
def test_memory_that_was_filled_is_overwritten_in_silence(only_maps: bool) -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 or not only_maps:
                parameter.fill_(7.0)
    fastinit.init_model_(model, "kaiming_normal", seed=0)
    new = Set().to("meta").to_empty(device="cpu")
    for parameter in new.parameters():  # nothing has written to it
        parameter.untyped_storage().copy_(torch.zeros_like(parameter).untyped_storage())
    fastinit.init_model_(new, "kaiming_normal", seed=0)


def test_all_names_are_said() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(101))
    for layer in layers:
        nn.init.zeros_(layer.weight)
    with pytest.warns(fastinit.ZerosWarning, match=r": 0\.weight, 1\.weight, .*, 99\.weight and 1 more;"):
        fastinit.init_model_(layers, "xavier_uniform", seed=0)


def test_constants_of_an_author_that_the_module_does_not_hold_are_said() -> None:
    class Reset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

        def init_weights(self) -> None:
            nn.init.zeros_(self.norm.weight)

    with pytest.warns(fastinit.ConstantWarning, match=r"hold another now: norm\.weight \(1, now 0\);"):
        fastinit.init_model_(Reset(), "xavier_uniform", seed=0)


class Empty(nn.Module):
    """A module that makes its parameters of memory, and one that is built of such modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8))
        data = torch.empty(8, 8)
        self.bias = nn.Parameter(data[0])
        self.register_parameter("table", nn.Parameter(torch.empty(16, 8)))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Empty() for _ in range(2))


def an_identity(*shape: int) -> torch.Tensor:
    return torch.eye(*shape) if len(shape) > 1 else torch.ones(shape)


def one_value(*shape: int) -> torch.Tensor:
    return torch.full(shape, 7.0)


HELD = an_identity, one_value


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("kind", [Empty, Several])
def test_memory_that_no_constructor_has_written_to_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], held: Callable[..., torch.Tensor]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", held)
        model = kind()
    fastinit.init_model_(model, "xavier_uniform", seed=0)  # a warning is an error


@pytest.mark.parametrize("held", HELD)
def test_what_was_written_to_such_memory_later_is_said(held: Callable[..., torch.Tensor]) -> None:
    model = Several()
    with torch.no_grad():
        model.parts[0].weight.copy_(held(8, 8))
    with pytest.warns(fastinit.ConstantWarning, match=r"are drawn now: parts\.0\.weight \([^)]+\);"):
        fastinit.init_model_(model, "xavier_uniform", seed=0)


def test_what_a_constructor_writes_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Around(nn.Module):
        def __init__(self, spread: float) -> None:
            super().__init__()
            self.part = Empty()
            for each in self.part.parameters():
                nn.init.trunc_normal_(each.data, std=spread)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", one_value)
        patched.setattr(nn.init, "trunc_normal_", lambda each, std: each.copy_(an_identity(*each.shape)))
        model = Around(0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastinit.init_model_(model, "xavier_uniform", seed=0)
    said = " ".join(str(each.message) for each in caught)
    assert "part.weight (a pattern)" in said and "part.bias (1)" in said
