"""What constructors say stays known through what is done later and elsewhere; what nobody understands is kept."""

import warnings
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from test_constructors import SCHEME, SET, of, of_quietly
from torch import nn

import fastinit

# ---- what others do later, and elsewhere ----


class Inner(nn.Module):
    def __init__(self, level: float = -2.0) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.eye(4))
        self.map = nn.Linear(4, 4)
        nn.init.constant_(self.map.bias, level)
        self.other = nn.Linear(4, 4)
        nn.init.ones_(self.other.bias)


class Outer(nn.Module):
    """Derived classes do something to what is here. None of them writes to biases, or to `mixing`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.end = nn.Linear(4, 4)


class ByMethod(Outer):
    def __init__(self) -> None:
        super().__init__()
        self.init_()

    def init_(self) -> None:
        nn.init.kaiming_normal_(self.end.weight)


class Everywhere(Outer):
    def __init__(self) -> None:
        super().__init__()
        self.apply(self.set)

    def set(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)


class OnLocals(Outer):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        kernel = torch.zeros(size)
        kernel[0] = 1.0
        self.register_buffer("kernel", kernel)
        try:
            kernel[1] = 0.5
        except IndexError:
            kernel.zero_()


class OverModules(Outer):
    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                module.weight.data.normal_(std=0.1)


class ByFunction(Outer):
    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.apply(lambda module: init_maps(module, std))
        init_maps(self.end, std)


class WithArguments(Outer):
    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.init_end(std)

    def init_end(self, std: float) -> None:
        nn.init.normal_(self.end.weight, std=std)


def init_maps(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)


@pytest.mark.parametrize("kind", [Outer, ByMethod, Everywhere, OnLocals, OverModules, ByFunction, WithArguments])
def test_what_is_written_elsewhere_takes_nothing_back(kind: Any) -> None:
    model = kind()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.UncoveredWarning)
        plan = fastinit.plan(model, SCHEME, seed=0)
        plan.run_()
    reasons = {row.name: row.reason for row in plan.rows}
    assert reasons["inner.map.bias"] == SET and reasons["inner.other.bias"] == "author: ones"
    for name in ("inner.mixing", "inner.map.bias", "inner.other.bias"):
        assert torch.equal(model.get_parameter(name), before[name]), name
    assert not torch.equal(model.inner.map.weight, before["inner.map.weight"])


def test_what_may_have_been_set_later_is_kept_unless_it_was_drawn() -> None:
    class Later(Outer):
        def __init__(self, level: float = 3.0) -> None:
            super().__init__()
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.bias.data.add_(level)

    class DrawnLater(Outer):
        def __init__(self, std: float = 3.0) -> None:
            super().__init__()
            for parameter in self.inner.parameters():
                parameter.data.normal_(std=std)

    assert of_quietly(Later(), "inner.other.bias") == SET
    assert of_quietly(DrawnLater(), "inner.other.bias") == "bias"
    assert of_quietly(DrawnLater(), "inner.mixing") == "linear map of Inner"


class Keyed(nn.Module):
    """What is written under a key that is gone may be any of the modules there. None of these has a bias."""

    def __init__(self, key: str = "a") -> None:
        super().__init__()
        self.maps = nn.ModuleDict()
        self.maps[key] = nn.Linear(4, 4, bias=False)
        self.maps[key].weight = nn.Parameter(torch.arange(16.0).view(4, 4))
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)


def test_parameters_that_are_none_are_left_out() -> None:
    model = Keyed()
    with pytest.warns(fastinit.UncoveredWarning, match="maps.a.weight: kept") as warned:
        plan = fastinit.plan(model, "own")
    assert [len(warned), "cannot run" in str(warned[0].message)] == [1, False]
    assert {row.name: row.reason for row in plan.rows}["scale"] == "own: its reset code"


class Adapted(nn.Module):
    """As PEFT's layers are: the reset code is one way of many, which the constructor reaches through a method."""

    def __init__(self, adapter: str = "default", initial: Any = True) -> None:
        super().__init__()
        self.lora_A, self.lora_B, self.lora_embedding_A = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        self.update_layer(adapter, initial)

    def update_layer(self, adapter: str, initial: Any) -> None:
        self.lora_A[adapter] = nn.Linear(4, 2, bias=False)
        self.lora_B[adapter] = nn.Linear(2, 4, bias=False)
        if initial == "structured":
            self.lora_A[adapter].weight = nn.Parameter(torch.arange(8.0).view(2, 4))
            self.lora_B[adapter].weight.data = torch.arange(8.0).view(4, 2)
        elif initial:
            self.reset_lora_parameters(adapter, initial)

    def reset_lora_parameters(self, adapter: str, initial: Any) -> None:
        nn.init.kaiming_uniform_(self.lora_A[adapter].weight, a=5**0.5)
        nn.init.zeros_(self.lora_B[adapter].weight)


def test_adapters_are_what_their_reset_code_gives() -> None:
    model = Adapted()
    nn.init.ones_(model.lora_B["default"].weight)
    plan = fastinit.plan(model, "own")
    plan.run_()
    assert {row.name: str(row.distribution) for row in plan.rows} == {
        "lora_A.default.weight": "U[-0.5, 0.5]",
        "lora_B.default.weight": "0",
    }
    assert not model.lora_B["default"].weight.any()


def test_code_that_fails_when_it_is_run_again_may_have_set_anything() -> None:
    class Fails(Outer):
        def __init__(self) -> None:
            super().__init__()
            self.scale: Any = 2.0
            self.init_end()
            self.scale = None

        def init_end(self) -> None:
            nn.init.constant_(self.inner.other.bias, 1.0 * self.scale)

    model = Fails()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinit.UncoveredWarning)
        fastinit.init_model_(model, SCHEME, seed=0)
    assert (model.inner.other.bias == 2.0).all() and (model.inner.map.bias == -2.0).all()


def diagonal(size: int) -> torch.Tensor:
    return 3 * torch.eye(size)


def drawn(size: int) -> torch.Tensor:
    return nn.init.orthogonal_(torch.empty(size, size))


class Computed(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()

        def tiled(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat(2, 1)

        self.eye = nn.Parameter(torch.eye(size).mul(-0.5))
        self.halves = nn.Parameter(torch.ones(size, size).mul(-0.5))
        self.scaled = nn.Parameter(torch.ones(size, size) / np.sqrt(size)).requires_grad_(True)
        self.triangle = nn.Parameter(torch.tril(torch.ones(size, size)))
        self.chosen = nn.Parameter(torch.where(torch.eye(size) > 0, 5.0, -5.0))
        self.tiled = nn.Parameter(tiled(torch.eye(size)))
        rows = torch.empty(size, size)
        for at in range(size):
            rows[at] = float(at)
        self.rows = nn.Parameter(rows)
        waves = torch.zeros(size, size)
        waves[:, 0::2] = torch.sin(torch.arange(size).float())[:, None]
        self.waves = nn.Parameter(waves)
        self.given = nn.Parameter(diagonal(size))
        self.lists = nn.Parameter(torch.tensor([[0.5] * size] * size))
        noise = torch.randn(size, size)
        noise[0] = 0.0
        self.noise = nn.Parameter(noise)
        self.orthogonal = nn.Parameter(drawn(size))
        self.of_map = nn.Parameter(nn.Linear(size, size).weight.detach())
        self.memory = nn.Parameter(torch.empty(size, size).t())


def test_what_is_no_draw_is_kept_though_nobody_understands_it() -> None:
    model = Computed()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with pytest.warns(fastinit.UncoveredWarning):
        plan = fastinit.plan(model, SCHEME, seed=0)
    reasons = {row.name: row.reason for row in plan.rows}
    assert reasons.pop("halves") == "author: -0.5"
    sampled = {name for name, reason in reasons.items() if reason == "linear map of Computed"}
    assert sampled == {"noise", "orthogonal", "of_map", "memory"}
    plan.run_()
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters() if name not in sampled)


def test_structures_of_torch_nn_init_are_no_draws() -> None:
    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Conv1d(4, 4, 3)
            nn.init.dirac_(self.filter.weight)
            self.map = nn.Linear(4, 4)
            nn.init.eye_(self.map.weight)

    model = Structured()
    before = model.filter.weight.detach().clone()
    with pytest.warns(fastinit.UncoveredWarning, match=r"filter\.weight, map\.weight"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert torch.equal(model.filter.weight, before) and torch.equal(model.map.weight, torch.eye(4))


# ---- constructors that are hard to read ----


class Adapter(Protocol):
    def parts(self) -> list[nn.Module]: ...


class WithProtocol(nn.Module, Adapter):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        nn.init.constant_(self.map.bias, 0.25)


class Unindented(nn.Module):
    def __init__(self) -> None:
        """Lines of a string may stand
        anywhere."""
        super().__init__()
        self.map = nn.Linear(4, 4)
        nn.init.constant_(self.map.bias, 0.25)


class Returns(nn.Module):
    def __init__(self, early: bool = False) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        nn.init.constant_(self.map.bias, 0.25)
        if early:
            return
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.end = nn.Linear(4, 4)
        nn.init.constant_(self.end.bias, 0.75)


def test_constructors_of_protocols_and_with_returns_are_read() -> None:
    for model in (WithProtocol(), Unindented(), Returns(), Returns(early=True)):
        assert of(model, "map.bias")[1] == "author: 0.25"
    assert of(Returns(), "scale")[1] == "author: 0.5"  # since it is there, it was made
    with pytest.warns(fastinit.ConstantWarning, match=r"end\.bias \(0\.75\)"):
        fastinit.init_model_(Returns(), SCHEME, seed=0)


class Noise(nn.Module):
    """Its constraint and its property set what it makes, as those of gpytorch do."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.raw_noise = nn.Parameter(torch.zeros(1))
        self.raw_scale = nn.Parameter(torch.zeros(1))
        self.register_constraint("raw_noise", start)
        self.scale = start
        self.untouched = nn.Parameter(torch.full((1,), 0.125))

    def register_constraint(self, name: str, start: float) -> None:
        self.initialize(**{name: start})

    def initialize(self, **values: float) -> None:
        for name, value in values.items():
            getattr(self, name).data.fill_(value)

    @property
    def scale(self) -> Any:
        return self.raw_scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.raw_scale.data.fill_(value)


def test_methods_and_properties_may_set_what_was_made() -> None:
    model = Noise()
    with pytest.warns(fastinit.UncoveredWarning, match="raw_noise, raw_scale"):
        fastinit.init_model_(model, SCHEME, seed=0)
    assert [each.item() for each in model.parameters()] == [0.5, 0.5, 0.125]


def test_methods_that_make_parameters_and_modules_are_read() -> None:
    class Making(nn.Module):
        def __init__(self, size: int = 4) -> None:
            super().__init__()
            self.build(size)
            self.given = self.scales(size)
            self.layer = self.normed(size)
            self.listed = nn.ParameterList([nn.Parameter(torch.ones(size, size)) for _ in range(2)])

        def build(self, size: int) -> None:
            self.built = nn.Parameter(-2 * torch.ones(size, size))

        def scales(self, size: int) -> nn.Parameter:
            return nn.Parameter(torch.full((size, size), 0.5))

        def normed(self, size: int) -> nn.Module:
            norm = nn.BatchNorm1d(size)
            nn.init.constant_(norm.weight, 0.2)
            return nn.Sequential(nn.Linear(size, size), norm)

    rows = {row.name: row.reason for row in fastinit.plan(Making(), SCHEME, seed=0).rows}
    assert rows["built"] == "author: -2" and rows["given"] == "author: 0.5" and rows["layer.1.weight"] == "author: 0.2"
    assert rows["listed.0"] == rows["listed.1"] == "author: ones"


def test_tensors_that_a_function_fills_hold_what_it_gives() -> None:
    class Filling(nn.Module):
        def __init__(self, size: int = 4, offset: bool = False) -> None:
            super().__init__()
            self.offset = offset
            weight, bias = torch.zeros(size, size), torch.zeros(size)
            self.fill_(weight, bias)
            self.weight = nn.Parameter(weight)
            other = torch.zeros(size, size)
            other = spread_(other)
            self.other = nn.Parameter(other)
            lower, _ = torch.linalg.qr(torch.randn(size, size))
            self.lower = nn.Parameter(lower)
            self.gain = nn.Parameter(torch.zeros(size))
            nn.init.constant_(self.gain, 1.0 - float(offset))

        def fill_(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
            weight.uniform_(-1.0, 1.0)
            bias.uniform_(-1.0, 1.0)

    rows = {row.name: row.reason for row in fastinit.plan(Filling(), SCHEME, seed=0).rows}
    assert rows.pop("gain") == "author: ones"
    assert set(rows.values()) == {"linear map of Filling"}


def spread_(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.uniform_(-0.5, 0.5)


def exists(value: Any) -> bool:
    """A function that is one expression."""
    return value is not None


def default(value: Any, otherwise: Any) -> Any:
    return value if exists(value) else otherwise


class Conditional(nn.Module):
    """Asks by functions of its author whether there is something to set."""

    def __init__(self, size: int = 4, level: float | None = None, is_mixed: bool = True) -> None:
        super().__init__()
        self.level = level
        self.mixing = nn.Conv1d(size, size, 3) if is_mixed else None
        self.head = nn.Linear(size, 1)
        self.scale = nn.Parameter(default(self.level, 0.25) * torch.ones(size))
        if exists(self.mixing):
            nn.init.dirac_(self.mixing.weight)
            nn.init.ones_(self.mixing.bias)
        if not exists(level):
            nn.init.constant_(self.head.bias, -4.0)
        if other.exists(self.head):  # that is another function of this name
            nn.init.constant_(self.head.weight, 0.5)


class other:
    @staticmethod
    def exists(value: Any) -> bool:
        return isinstance(value, nn.Conv1d)


def test_conditions_that_a_function_gives_are_known() -> None:
    model = nn.Sequential(Conditional(), Conditional(level=2.0), Conditional(is_mixed=False))
    with pytest.warns(fastinit.UncoveredWarning, match=r"covers 0\.mixing\.weight, 1\.mixing\.weight: kept"):
        rows = {row.name: row.reason for row in fastinit.plan(model, SCHEME, seed=0).rows}
    assert rows["0.mixing.bias"] == rows["1.mixing.bias"] == "author: ones" and "2.mixing.bias" not in rows
    assert rows["0.head.bias"] == rows["2.head.bias"] == "author: -4" and rows["1.head.bias"] == "bias"
    assert rows["0.scale"] == "author: 0.25" and rows["1.scale"] == "author: 2"
    assert rows["0.head.weight"] == "linear map of Linear"
