"""Loops of constructors over what is below a module: `for module in self.modules()`, and over parameters by name."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from test_constructors import SCHEME
from torch import nn

import fastinit


class Block(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.last_norm = nn.Conv1d(size, size, 3), nn.BatchNorm1d(size), nn.BatchNorm1d(size)


class Net(nn.Module):
    """Derived classes set what is here in loops."""

    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())
        self.rnn = nn.GRU(4, 4, num_layers=2)
        self.head = nn.Linear(4, 1)


class OverModules(Net):
    def __init__(self) -> None:
        super().__init__()
        for m in self.modules():
            if isinstance(m, nn.Conv1d):
                count = m.kernel_size[0] * m.out_channels
                m.weight.data.normal_(0.0, math.sqrt(2.0 / count))
                if m.bias is not None:
                    nn.init.constant_(m.bias, 0.1)
            elif isinstance(m, (nn.BatchNorm1d, nn.GroupNorm)):
                m.weight.data.fill_(0.5)
                m.bias.data.zero_()
        for m in self.modules():
            if isinstance(m, Block):
                nn.init.zeros_(m.last_norm.weight)


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        for name, module in self.named_modules():
            if name.endswith(".norm"):
                nn.init.constant_(module.weight, 0.5)
            elif "last" in name:
                nn.init.zeros_(module.weight)
            if type(module).__name__ == "Conv1d" and hasattr(module, "bias"):
                nn.init.constant_(module.bias, 0.1)
            if module.__class__.__name__.find("Norm") != -1:
                nn.init.zeros_(module.bias)


class Children(Net):
    def __init__(self) -> None:
        super().__init__()
        for child in self.layers.children():
            nn.init.constant_(child.norm.weight, 0.5)
            for name, each in child.named_children():
                if name == "last_norm":
                    nn.init.zeros_(each.weight)
                elif name == "conv":
                    nn.init.constant_(each.bias, 0.1)
                if any(part in name for part in ("norm", "scale")):
                    nn.init.zeros_(each.bias)


class Parameters(Net):
    def __init__(self) -> None:
        super().__init__()
        for name, p in self.layers.named_parameters():
            if p.dim() > 1:
                nn.init.xavier_normal_(p)
            elif name in ("0.conv.bias", "1.conv.bias"):
                nn.init.constant_(p, 0.1)
            elif not name.endswith("bias"):
                nn.init.constant_(p, 0.5 if "last" not in name else 0.0)
            elif len(p.shape) == 1:
                p.data.fill_(0)


class Continuing(Net):
    def __init__(self) -> None:
        super().__init__()
        for name, m in self.named_modules():
            if not name.startswith("layers"):
                continue
            if isinstance(m, nn.Conv1d):
                nn.init.constant_(m.bias, 0.1)
                continue
            elif not hasattr(m, "running_mean"):
                continue
            nn.init.zeros_(m.bias)
            if "last" in name:
                nn.init.zeros_(m.weight)
                continue
            nn.init.constant_(m.weight, 0.5)


SETS = {
    "layers.0.conv.weight": "linear map of Conv1d",
    "layers.1.conv.bias": "author: 0.1",
    "layers.0.norm.weight": "author: 0.5",
    "layers.1.norm.bias": "author: zeros",
    "layers.0.last_norm.weight": "author: zeros",
    "layers.1.last_norm.bias": "author: zeros",
    "head.bias": "bias",
}


def reasons(model: nn.Module) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.UncoveredWarning)
        warnings.simplefilter("ignore", fastinit.FanWarning)
        return {row.name: row.reason for row in fastinit.plan(model, SCHEME, seed=0).rows}


@pytest.mark.parametrize("kind", [OverModules, Named, Children, Parameters, Continuing])
def test_what_a_loop_sets_is_known(kind: Any) -> None:
    for prefix, model in (("", kind()), ("0.", nn.Sequential(kind())), ("", kind().to("meta"))):
        found = reasons(model)
        assert {name: found[prefix + name] for name in SETS} == SETS


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, num_layers=2)
        for name, p in self.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.eye_(p)
            elif name.startswith("bias_ih"):
                nn.init.constant_(p, -1.0)


def test_parameters_of_a_recurrent_map_are_told_by_their_names() -> None:
    found = reasons(Recurrent())
    for layer in ("l0", "l1"):
        assert found[f"rnn.weight_hh_{layer}"].endswith("set by its constructor, and no code tells to what")
        assert found[f"rnn.weight_ih_{layer}"] == "linear map of GRU" and found[f"rnn.bias_hh_{layer}"] == "bias"
        assert found[f"rnn.bias_ih_{layer}"] == "author: -1"


class Replacing(OverModules):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(Block(), nn.Linear(4, 2))
        self.added = Block()


def test_what_comes_after_a_loop_was_not_set_by_it() -> None:
    found = reasons(Replacing())
    assert found["layers.0.norm.weight"] == "author: 0.5" and found["layers.0.last_norm.weight"] == "author: zeros"
    assert found["head.0.norm.weight"] == found["added.last_norm.weight"] == "norm scale"
    assert found["head.0.conv.bias"] == found["added.conv.bias"] == "bias"


class Perhaps(Net):
    """What no attribute tells is not known: whether norms that end a branch begin as zeros."""

    def __init__(self, *, zero_init: bool = False, inside: bool = False) -> None:
        super().__init__()
        for m in self.modules():
            if isinstance(m, nn.BatchNorm1d):
                nn.init.constant_(m.weight, 1)
                nn.init.constant_(m.bias, 0.25)
        if zero_init:
            for m in self.modules():
                if isinstance(m, Block):
                    nn.init.constant_(m.last_norm.weight, 0)
        for m in self.modules():
            if isinstance(m, Block) and inside:
                nn.init.constant_(m.norm.weight, 0)


def test_what_a_loop_sets_perhaps_is_taken_for_what_it_is_mostly() -> None:
    model = Perhaps(zero_init=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.FanWarning)
        plan = fastinit.plan(model, SCHEME, seed=0)  # nothing is uncovered
    found = {row.name: row.reason for row in plan.rows}
    assert found["layers.0.norm.weight"] == found["layers.1.last_norm.weight"] == "norm scale"
    assert found["layers.0.norm.bias"] == "author: 0.25"
    with pytest.warns(fastinit.ConstantWarning, match=r"hold another now: layers\.0\.last_norm\.weight \(0, now 1\)"):
        plan.run_()


class Keyed(nn.Module):
    """Its list has names."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.parts.add_module("first", Block())
        self.named = nn.Sequential()
        self.named.add_module("first", Block())
        for m in self.modules():
            if isinstance(m, nn.BatchNorm1d):
                nn.init.constant_(m.weight, 0.5)


def test_modules_with_names_in_lists_are_found() -> None:
    found = reasons(Keyed())
    assert found["parts.first.norm.weight"] == found["named.first.last_norm.weight"] == "author: 0.5"


class Own(nn.Module):
    """What a module of one's own holds stays as it is where a loop does not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((4,), 0.3))
        self.mixing = nn.Parameter(torch.eye(4))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.map = Own(), nn.Linear(4, 4)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for name, p in self.named_parameters():
            if name == "map.bias":
                nn.init.constant_(p, 2.0)


def test_loops_reach_no_further_than_their_conditions() -> None:
    assert reasons(Around()) == {
        "own.gate": "author: 0.3",
        "own.mixing": "linear map of Own",
        "map.weight": "linear map of Linear",
        "map.bias": "author: 2",
    }


# ---- functions that set values, whatever they are called, and numbers under local names ----


def prior(head: nn.Linear, p: float = 0.01, *, shift: float = 0.0) -> None:
    nn.init.constant_(head.bias, shift - math.log((1 - p) / p))


def quiet(norm: nn.BatchNorm1d, level: float) -> None:
    if level > 0:
        norm.weight.data.fill_(level)
    else:
        nn.init.zeros_(norm.weight)


def interpolating(up: nn.ConvTranspose2d) -> None:
    weight = up.weight.data
    size = weight.size(2)
    for i in range(size):
        for j in range(size):
            weight[0, 0, i, j] = (1 - abs(i / 2 - 0.75)) * (1 - abs(j / 2 - 0.75))
    for channel in range(1, weight.size(0)):
        weight[channel, 0, :, :] = weight[0, 0, :, :]


class Functions(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.usual, self.other, self.shifted = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)
        prior(self.usual)
        prior(self.other, 0.5)
        prior(self.shifted, p=0.5, shift=-3.0)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        for head in self.heads:
            prior(head, 0.5)
        share = 0.25
        level = 2.0 * share
        self.norm, self.silent = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        quiet(self.norm, level)
        quiet(self.silent, 0.0)
        self.direct = nn.Linear(4, 1)
        nn.init.constant_(self.direct.bias, -math.log((1 - share) / share))
        if size > 4:
            share = 0.5
        nn.init.constant_(self.norm.bias, share)
        for i in range(1, 3):
            up = nn.ConvTranspose2d(size, size, 4, groups=size, bias=False)
            interpolating(up)
            setattr(self, f"up_{i}", up)


def test_functions_are_followed_whatever_they_are_called() -> None:
    found = reasons(Functions())
    assert found["usual.bias"] == f"author: {-math.log(99):.6g}" and found["other.bias"] == "author: zeros"
    assert found["shifted.bias"] == "author: -3" and found["heads.1.bias"] == "author: zeros"
    assert found["norm.weight"] == "author: 0.5" and found["silent.weight"] == "author: zeros"
    assert found["direct.bias"] == f"author: {-math.log(3):.6g}"
    for name in ("norm.bias", "up_1.weight", "up_2.weight"):  # what is not known is kept, and named
        assert found[name].endswith("set by its constructor, and no code tells to what"), found[name]
