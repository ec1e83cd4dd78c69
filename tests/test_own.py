"""The scheme "own": what a model's own code gives each parameter, read on a copy."""

from __future__ import annotations

import copy
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastinit
from fastinit.capture.own import Authors
from fastinit.schemes.distributions import TruncNormal


class Written(nn.Module):
    """A model in the style of transformers: constructors, then `_init_weights` for every module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=1)
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.gates = nn.LSTM(8, 8)
        self.zero = nn.Linear(8, 8)
        self.position = nn.Parameter(torch.empty(1, 9, 8))
        self.left = nn.Parameter(torch.eye(3)[0])
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(0.0, 0.5)
            module.weight.data[module.padding_idx].zero_()
        elif isinstance(module, Written):
            nn.init.zeros_(module.zero.weight)
            module.position.data.copy_(torch.outer(torch.arange(9.0), torch.arange(8.0)).sin())


def kinds(model: nn.Module) -> dict[str, str]:
    authors = Authors(model)
    return {
        f"{name}.{own_name}".lstrip("."): authors.of(module, own_name).kind
        for name, module in model.named_modules()
        for own_name, parameter in module._parameters.items()
        if parameter is not None
    }


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:no rule covers left")
def test_what_the_code_gives() -> None:
    model = Written()
    found = kinds(model)
    assert found["left"] == "unknown" and found["position"] == "table"
    assert {found[name] for name in ("zero.weight", "body.bias", "norm.weight", "norm.bias")} == {"constant"}
    assert {found[name] for name in ("table.weight", "body.weight", "gates.weight_hh_l0", "gates.bias_ih_l0")} == {
        "draw"
    }
    made = fastinit.plan(model, "own")
    told = {row.name: str(row.distribution) for row in made.rows}
    assert "0.02" in told["body.weight"] and "0.5" in told["table.weight"] and told["zero.weight"] == "0"
    model.norm.weight.data.fill_(5.0)
    model.position.data.fill_(5.0)
    model.left.data.fill_(5.0)
    fastinit.init_model_(model, "own", seed=0)
    assert not model.table.weight[1].any() and model.table.weight.std() > 0.3
    assert (model.norm.weight == 1).all() and not model.zero.weight.any()
    assert torch.equal(model.position[0], torch.outer(torch.arange(9.0), torch.arange(8.0)).sin())
    assert (model.left == 5).all()  # kept, and the warning names it


@needs_native
@pytest.mark.filterwarnings("ignore:no rule covers left")
def test_the_bits_of_fused() -> None:
    with fastinit.fused(seed=3):
        one = Written()
    other = fastinit.init_model_(Written(), "own", seed=3)
    for name, value in state(one).items():
        assert torch.equal(value, other.state_dict()[name]), name


def layers() -> nn.ModuleList:
    return nn.ModuleList([
        *(nn.Linear(4, 5), nn.Conv2d(3, 4, 3), nn.ConvTranspose1d(3, 4, 3), nn.Embedding(5, 4, padding_idx=0)),
        *(nn.Bilinear(3, 4, 5), nn.EmbeddingBag(5, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)),
        *(nn.RNN(3, 4), nn.GRU(3, 4), nn.LSTMCell(3, 4), nn.MultiheadAttention(8, 2), nn.RMSNorm(4), nn.PReLU()),
        *(nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.TransformerEncoderLayer(8, 2, 8)),
    ])  # fmt: skip


def test_torchs_own_classes() -> None:
    assert "unknown" not in kinds(layers()).values()


class Counting(nn.Module):
    """Its reset code changes everything that it can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 6))
        self.calls: list[int] = []
        self.counts = {"calls": 0, "inner": [0]}
        self.array = np.zeros(3)
        self.random = random.Random(0)
        self.register_buffer("buffer", torch.zeros(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.calls.append(1)
        self.counts["calls"] += 1  # type: ignore[operator]
        self.array += 1
        self.random.random()
        random.random()
        np.random.rand()
        torch.rand(1)
        torch.manual_seed(7)
        self.register_forward_hook(lambda *_: None)
        self.new = 1
        with torch.no_grad():
            self.weight.normal_(0, 0.3)
            self.buffer.add_(1)


def test_the_users_objects_are_left_alone() -> None:
    model = Counting()
    del model.new
    model.weight.grad = torch.ones(6, 6)
    hooks: list[int] = []
    model.weight.register_hook(lambda grad: hooks.append(1))
    before = state(model)

    def surroundings() -> tuple[Any, ...]:
        return (
            list(model.calls),
            copy.deepcopy(model.counts),
            model.array.tolist(),
            model.random.getstate(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            list(model._forward_hooks),
            sorted(model.__dict__),
            model.weight._version,
        )

    around = surroundings()
    fastinit.plan(model, "own")
    assert surroundings() == around and not hooks
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    fastinit.init_model_(model, "own", seed=0)
    assert surroundings()[:-1] == around[:-1]
    assert torch.equal(model.buffer, before["buffer"]) and (model.weight.grad == 1).all()
    assert 0.2 < model.weight.std() < 0.4


class Raising(nn.Linear):
    ready = False

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.ready:
            raise KeyError("nobody home")


def test_code_that_raises_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Raising(3, 3))
    model[1].ready = True
    before = state(model)
    with pytest.warns(fastinit.UncoveredWarning, match=r"1\.weight, 1\.bias .*Raising\.reset_parameters .*nobody home"):
        fastinit.init_model_(model, "own", seed=0)
    assert torch.equal(model[1].weight, before["1.weight"]) and torch.equal(model[1].bias, before["1.bias"])
    assert not torch.equal(model[0].weight, before["0.weight"])
    with pytest.raises(ValueError, match=r"strict: .*1\.weight.*nobody home"):
        fastinit.init_model_(model, "own", seed=0, strict=True)
    with pytest.raises(fastinit.ParameterError, match=r"1\.weight.*nobody home"):
        fastinit.init_model_(model, "zeros", [("1.weight", "own")], seed=0)
    assert torch.equal(model[1].weight, before["1.weight"])
    meta = copy.deepcopy(model).to("meta")
    with pytest.raises(ValueError, match=r"1\.weight .*nobody home"):
        fastinit.materialize_(meta, "own", device="cpu")
    assert meta[0].weight.is_meta


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = nn.Linear(3, 3)
    model.lock = threading.Lock()  # type: ignore[assignment]
    before = state(model)
    with pytest.warns(fastinit.UncoveredWarning, match=r"weight, bias .*copy\.deepcopy .*cannot pickle"):
        fastinit.init_model_(model, "own", seed=0)
    assert torch.equal(model.weight, before["weight"])


def test_code_that_looks_at_values() -> None:
    class Normalised(nn.Linear):
        def reset_parameters(self) -> None:
            super().reset_parameters()
            with torch.no_grad():
                self.weight.div_(self.weight.norm())
                if self.weight.max() > 0:
                    self.bias.zero_()
                self.weight[torch.randperm(3)] = self.weight.clone()

    model = Normalised(3, 3)
    fastinit.init_model_(model, "own", seed=0)
    assert model.weight.norm().item() == pytest.approx(1.0) and not model.bias.any()


def test_a_rule() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 40)})
    fastinit.init_model_(model, "zeros", [("head.weight", "own")], seed=0)
    assert not model["body"].weight.any() and not model["head"].bias.any()
    assert 0.2 < model["head"].weight.std() < 0.4 and model["head"].weight.abs().max() <= 0.5
    with pytest.raises(
        fastinit.ParameterError, match=r"left.*own: expected a parameter that its module's own code sets"
    ):
        fastinit.init_model_(Written(), "zeros", [("left", "own")], seed=0)
    with pytest.raises(ValueError, match="expected a parameter of a module"):
        fastinit.init_([torch.empty(3, 3)], "own", seed=0)


def test_hooks_do_not_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    model[0].register_forward_pre_hook(lambda *_: seen.append(1))
    model[0].weight.register_hook(lambda grad: seen.append(1))
    fastinit.init_model_(model, "own", seed=0)
    assert not seen and len(model._forward_hooks) == 1 and model[0].weight.abs().max() <= 0.5
    model(torch.ones(4)).sum().backward()
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_are_named(name: str) -> None:
    model = getattr(parametrizations, name)(nn.Linear(6, 6))
    before = state(model)
    with pytest.warns(fastinit.UncoveredWarning, match="weight"):
        fastinit.init_model_(model, "own", seed=0)
    assert not torch.equal(model.bias, before["bias"]) and model.bias.abs().max() <= 1 / 6**0.5
    for key, value in state(model).items():
        assert key == "bias" or torch.equal(value, before[key]), key


def test_a_tied_parameter_is_read_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.table.weight

    model = fastinit.init_model_(Tied(), "own", seed=0)
    assert model.head.weight is model.table.weight and model.table.weight.std() > 0.3


MODELS: dict[str, Callable[[], nn.Module]] = {"layers": layers, "Counting": Counting}


@needs_native
@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_meta_that_was_built_without_us(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    other = fastinit.init_model_(MODELS[name](), "own", seed=0)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(key)), key


def by_inverse(tensor: torch.Tensor, std: float, low: float, high: float) -> None:
    """How timm and others draw a truncated normal distribution."""
    least, most = (0.5 + 0.5 * math.erf(each / std / math.sqrt(2)) for each in (low, high))
    with torch.no_grad():
        tensor.uniform_(2 * least - 1, 2 * most - 1).erfinv_().mul_(std * math.sqrt(2)).add_(0.0).clamp_(low, high)


@pytest.mark.parametrize("std", [0.02, 0.0883, 0.18, 0.25, 0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-2.0, 1.0)])
def test_a_truncated_normal_by_its_inverse_is_one_whatever_its_bounds(std: float, bounds: tuple[float, float]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8))
            by_inverse(self.weight, std, *bounds)

    with fastinit.deferred():
        model = Model()
    found = fastinit.plan(model, "own").rows[0].distribution
    assert isinstance(found, TruncNormal)
    assert (found.center, found.low, found.high) == (0.0, *bounds) and found.sigma == pytest.approx(std)


@pytest.mark.parametrize("least", [-1.0, -3.0])
def test_a_clamp_that_cuts_is_no_truncated_normal(least: float) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8))
            with torch.no_grad():
                nn.init.trunc_normal_(self.weight, a=-5.0, b=5.0).clamp_(min=least)

    with fastinit.deferred():
        model = Model()
    assert not isinstance(fastinit.plan(model, "own").rows[0].distribution, TruncNormal)


class Passing(nn.Module):
    """Its constructor calls its reset code with arguments."""

    def __init__(self, zero: bool = True, std: float = 3.0, deep: bool = False) -> None:
        super().__init__()
        self.std = std
        self.token, self.map, self.norm = nn.Parameter(torch.zeros(4)), nn.Linear(4, 4), nn.LayerNorm(4)
        self.pass_on(zero, deep)

    def pass_on(self, zero: bool, deep: bool) -> None: ...

    def init_weights(self, zero: bool = True, std: float = 1.0) -> None:
        nn.init.normal_(self.token, std=std)
        nn.init.constant_(self.norm.weight, 0.0 if zero else 1.0)


class Gone(Passing):
    def __init__(self, zero: bool = True) -> None:
        super().__init__(zero)
        self.init_weights(zero)


class Kept(Passing):
    def __init__(self, zero: bool = True, std: float = 3.0) -> None:
        super().__init__(zero, std)
        self.init_weights(False, std=self.std)


class Each(Passing):
    """Its method has one argument, and takes no modules."""

    def __init__(self, value: float = 2.0) -> None:
        super().__init__()
        self._init_weights(value)

    def _init_weights(self, value: float) -> None:
        nn.init.constant_(self.norm.weight, value)


@pytest.mark.parametrize("zero", [False, True])
def test_reset_code_is_not_run_without_its_arguments(zero: bool) -> None:
    model = Gone(zero)
    token, scale = model.token.detach().clone(), model.norm.weight.detach().clone()
    with pytest.warns(fastinit.UncoveredWarning, match=r"token, .* \(Gone\.init_weights is not run: .* gone\)"):
        plan = fastinit.plan(model, "own", seed=0)
    assert plan.uncovered == ("token", "norm.weight")
    with pytest.warns(fastinit.UncoveredWarning, match=r"no rule covers token, norm\.weight"):
        plan = fastinit.plan(model, "xavier_uniform", seed=0)
    plan.run_()
    assert torch.equal(model.norm.weight, scale) and torch.equal(model.token, token)


def test_reset_code_is_run_with_the_arguments_that_its_constructor_passed() -> None:
    found = {row.name: row.reason for row in fastinit.plan(Kept(), "xavier_uniform", seed=0).rows}
    assert found["token"] == "author: N(0, 3^2)" and found["norm.weight"] == "author: ones"
    with pytest.warns(fastinit.UncoveredWarning, match="token"):
        plan = fastinit.plan(Each(), "xavier_uniform", seed=0)
    assert "norm.weight" in plan.uncovered  # what its constructor set it to is gone
