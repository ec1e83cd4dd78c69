"""Whether a normalisation multiplies by 1 + w, so that its weight starts at zero: found by asking the module."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fastinit._torch import in_fake_mode, modes_off
from fastinit.distributed.held import global_shape

# Switches of TransformerEngine, x-transformers and their kin.
_SWITCHES = ("zero_centered_gamma", "unit_offset", "add_unit_offset")

_answers: dict[tuple[Any, ...], bool] = {}


def computes_one_plus(module: nn.Module, own_name: str) -> bool:
    """Whether the factor `own_name` of a normalisation is added to one. A switch of the module tells, or a trial.

    In the trial, the module's class runs forward on the CPU, with all of its parameters zero. If it computes x * w, its
    output is zero, or a shift that no input changes. If it computes x * (1 + w), or adds x, it is not, and w = -1 gives
    something else. If the module cannot run alone, the answer is no.
    """
    kind: Any = type(module)
    if (given := _switch(module)) is not None:
        return given
    if kind.__module__.startswith("torch.nn."):
        return False
    parameter = module._parameters[own_name]
    assert parameter is not None
    # Attributes that are plain numbers may switch between the two ways.
    plain = {name: each for name, each in module.__dict__.items() if type(each) in (bool, int, float, str)}
    shape = global_shape(parameter)
    key = kind, own_name, tuple(shape), tuple(sorted(plain.items()))
    if key not in _answers:
        if in_fake_mode():
            return False  # and nothing to remember
        _answers[key] = _adds_one(module, own_name, shape.numel())
    return _answers[key]


def has_switch(module: nn.Module) -> bool:
    """Whether an attribute of a module tells how it computes."""
    return _switch(module) is not None


def _switch(module: nn.Module) -> bool | None:
    attributes: dict[str, Any] = module.__dict__
    module_type: Any = type(module)  # mypy takes the types of modules for unhashable
    if attributes.keys().isdisjoint(_SWITCHES) and not _class_switches(module_type):  # as nearly always
        return None
    for switch in _SWITCHES:
        given = attributes.get(switch, getattr(module_type, switch, None))
        if isinstance(given, bool):
            return given
    return None


@lru_cache(maxsize=4096)
def _class_switches(module_type: type) -> bool:
    return any(hasattr(module_type, switch) for switch in _SWITCHES)


def _adds_one(module: nn.Module, own_name: str, size: int) -> bool:
    """Whether a module gives something but zero while its parameters are zero, and something else again for -1."""
    with modes_off(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = _twin_at_zero(module)
        for shape in ((2, size), (2, 3, size), (2, size, 3, 3), (2, 3, 3, size), (2, size, 3)):
            values = torch.linspace(-1.0, 1.0, torch.Size(shape).numel(), device="cpu", dtype=torch.float32)
            values = values.reshape(shape)
            for arguments in ((values,), (values, values)):  # gated normalisations take a second one
                twin._parameters[own_name].zero_()  # type: ignore[union-attr]
                result = _result(module, twin, arguments)
                if result is None or result.shape != values.shape or not bool(result.isfinite().all()):
                    continue
                if not bool((result != 0).any()):
                    return False
                same = _result(module, twin, tuple(each.square() for each in arguments))
                if same is not None and torch.equal(same, result):
                    return False  # a shift alone, which a buffer may hold
                twin._parameters[own_name].fill_(-1.0)  # type: ignore[union-attr]
                other = _result(module, twin, arguments)
                if other is not None and not torch.equal(other, result):
                    return True
                # Otherwise an input of this shape does not meet the parameter, and another shape is tried.
    return False


def _result(module: nn.Module, twin: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor | None:
    try:
        result = type(module).forward(twin, *arguments)
    except Exception:  # another layout of its input, or a module that needs more
        return None
    return result if isinstance(result, Tensor) else None


def _twin_at_zero(module: nn.Module) -> nn.Module:
    """A module of the same class and attributes, without hooks and children, on the CPU, in float32."""
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if isinstance(value, OrderedDict) and name.endswith("_hooks"):
            twin.__dict__[name] = OrderedDict()
    twin.__dict__["training"] = False
    twin.__dict__["_modules"] = {}
    for own, make in (("_parameters", torch.zeros), ("_buffers", torch.ones)):
        twin.__dict__[own] = {
            name: None if each is None else make(global_shape(each), device="cpu", dtype=torch.float32)
            for name, each in module.__dict__[own].items()
        }
    return twin
