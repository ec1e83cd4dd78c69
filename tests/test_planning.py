"""What equal parameters of equal modules get is found once in a plan, and it is what each would get by itself."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.rules.roles import Roles


class Scaled(nn.Module):
    """A normalisation with a switch, which may be a bool or a number."""

    def __init__(self, switch: Any) -> None:
        super().__init__()
        self.zero_centered_gamma = switch
        self.weight = nn.Parameter(torch.ones(8))


class ScaledNorm(Scaled):
    pass


class LayerScale(nn.Module):
    def __init__(self, init_values: float) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.ones(8))


class Bare(nn.Module):
    """A module that nobody knows, with parameters of these shapes."""

    def __init__(self, child: nn.Module | None = None, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        if child is not None:
            self.child = child


class Resets(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.map = nn.Linear(8, 8)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.map.weight, self.value)


def with_own(shape: tuple[int, ...]) -> nn.Module:
    """A layer of torch.nn with a parameter of which its class does not tell."""
    module = nn.Linear(8, 8)
    module.proj = nn.Parameter(torch.ones(shape))
    return module


def switched(module: nn.Module) -> nn.Module:
    module.zero_centered_gamma = True  # type: ignore[assignment]
    return module


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def marked(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.note = "an attribute of its own"  # type: ignore[attr-defined]
    return module


# Modules that look alike at first sight. Each stands beside others of its class, shape or names.
ALIKE: dict[str, Callable[[], list[nn.Module]]] = {
    "layers": lambda: [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8), nn.LayerNorm(8)],
    "dtypes": lambda: [nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8, dtype=torch.float64)],
    "devices": lambda: [nn.Linear(8, 8), nn.Linear(8, 8, device="meta"), nn.Linear(8, 8)],
    "frozen": lambda: [nn.Linear(8, 8), frozen(nn.Linear(8, 8)), nn.Linear(8, 8)],
    "attributes": lambda: [nn.Linear(8, 8), marked(nn.Linear(8, 8)), nn.Linear(8, 8)],
    "groups": lambda: [nn.Conv2d(8, 8, 3), nn.Conv2d(32, 8, 3, groups=4), nn.ConvTranspose2d(8, 8, 3)],
    "padding": lambda: [nn.Embedding(6, 8), nn.Embedding(6, 8, padding_idx=1), nn.Embedding(6, 8, padding_idx=2)],
    "own parameters": lambda: [with_own((8, 8)), with_own((8,)), with_own((1, 8)), with_own((2, 8, 8))],
    "a switch": lambda: [ScaledNorm(1), ScaledNorm(True), ScaledNorm(False), Scaled(True)],
    "a switch on torch's": lambda: [nn.LayerNorm(8), switched(nn.LayerNorm(8)), nn.LayerNorm(8)],
    "numbers": lambda: [LayerScale(0.1), LayerScale(0.2), LayerScale(0.1), nn.PReLU(), nn.PReLU(init=0.5)],
    "shapes": lambda: [Bare(weight=(8, 8)), Bare(weight=(8,)), Bare(weight=(8, 8, 8)), Bare(weight=(8, 1, 8))],
    "siblings": lambda: [Bare(b=(8,), x_bias=(8,)), Bare(w=(8, 8), x_bias=(8,)), Bare(w=(2, 8, 8), x_bias=(2, 8))],
    "children": lambda: [Bare(x_bias=(8,)), Bare(nn.Linear(8, 8), x_bias=(8,)), Bare(nn.ReLU(), x_bias=(8,))],
    "stacks": lambda: [Bare(weight=(4, 8, 8)), nn.Conv1d(8, 4, 8), Bare(weight=(4, 8, 8))],
    "reset code": lambda: [Resets(1.0), Resets(2.0), nn.Linear(8, 8), Resets(1.0)],
}


def named(modules: list[nn.Module]) -> nn.Module:
    """Layers with numbers, and some of the modules under names of adapters and state spaces."""
    model = nn.Module()
    model.h = nn.ModuleList(modules)
    model.dt_proj, model.lora_B, model.proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
    return model


RULES: list[tuple[Any, Any]] = [
    (nn.LayerNorm, fastinit.Normal(1.0, 0.1)),
    ("h.1.*", "orthogonal"),
    (fastinit.Where(type="Linear", role="bias"), "ones"),
    (lambda name, module, parameter: name == "h.2.weight", fastinit.Normal()),
]


def planned(model: nn.Module, scheme: Any, rules: Any, fan: Any) -> tuple[Any, list[str], Any]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = fastinit.plan(model, scheme, rules, fan=fan, seed=0)
        except ValueError as error:
            return str(error), [], None
    return made.rows, [str(each.message) for each in told], sorted(made._guessed)


@pytest.mark.parametrize("fan", [None, "torch", "module"])
@pytest.mark.parametrize("rules", [None, RULES], ids=["no rules", "rules"])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "by fan_out", "gpt2", "by layer"])
@pytest.mark.parametrize("which", ALIKE)
def test_equal_modules_get_what_each_gets_by_itself(
    monkeypatch: pytest.MonkeyPatch, which: str, scheme: str, rules: Any, fan: Any
) -> None:
    given: Any = scheme
    if scheme == "by fan_out":
        given = fastinit.VarianceScaling(1.0, "fan_out")
    if scheme == "by layer":
        given = fastinit.DepthScaled(fastinit.Normal(std=0.02), by="layer")
        rules = [(f"{name}.*", "zeros") for name in ("proj", "dt_proj", "lora_B")] + (rules or [])  # in no layer
    model = named(ALIKE[which]())
    shared = planned(model, given, rules, fan)
    monkeypatch.setattr(Roles, "alike", lambda self, name, module: None)
    assert shared == planned(model, given, rules, fan)


def test_two_parameters_are_told_of_that_have_one_canonical_name() -> None:
    inner = nn.Module()
    inner.weight, inner._orig_mod = nn.Parameter(torch.ones(8, 8)), nn.Linear(8, 8)
    with pytest.raises(fastinit.ParameterError, match="two parameters have this canonical name"):
        fastinit.plan(nn.Sequential(inner), "kaiming_normal")


def test_every_parameter_is_named_in_warnings() -> None:
    model = nn.ModuleList(nn.ConvTranspose2d(16, 2, 3) for _ in range(3))
    with pytest.warns(fastinit.FanWarning, match=r"0\.weight.*1\.weight.*2\.weight"):
        fastinit.plan(model, "kaiming_normal")


def test_lists_of_equal_tensors_of_several_kinds() -> None:
    tensors = [torch.ones(4, 4), torch.ones(4, 4, dtype=torch.float64), torch.ones(4, 4), torch.ones(2, 8)]
    fastinit.init_(tensors, "xavier_uniform", names=list("abcd"), seed=0)
    for name, tensor in zip("abcd", tensors, strict=True):
        alone = torch.ones_like(tensor)
        fastinit.init_([alone], "xavier_uniform", names=[name], seed=0)
        assert torch.equal(tensor, alone)


def test_planning_leaves_no_cycles() -> None:
    """Memory of a model is free as soon as nobody has the model, and not when Python next looks for cycles."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    weight = weakref.ref(model[0].weight)
    gc.collect()
    gc.disable()
    try:
        made = fastinit.plan(model, "kaiming_normal")
        del made, model
        assert weight() is None
    finally:
        gc.enable()
