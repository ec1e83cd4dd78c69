"""What presets share: what torch does by itself, and what they ask of a model."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from torch import nn

from fastinit.distributed.held import global_shape
from fastinit.recipes.files import check_model
from fastinit.rules.select import Rule
from fastinit.run.names import named_parameters, unwrapped
from fastinit.schemes.named import Constant, Normal, VarianceScaling, kaiming_uniform

ZEROS = Constant(0.0)

# What torch.nn.Linear and the convolutions do by themselves: weight and bias U(+-1 / sqrt(fan_in)).
TORCH_WEIGHT = kaiming_uniform(a=math.sqrt(5.0))
TORCH_BIAS = VarianceScaling(1.0 / 3.0, "fan_in", "uniform")


def torch_defaults(name: str) -> list[Rule]:
    """Rules that give the layer `name` what torch gives it."""
    return [Rule(f"{name}.weight", TORCH_WEIGHT), Rule(f"{name}.bias", TORCH_BIAS, fan="weight")]


def check_given(model: object) -> None:
    """Raise TypeError unless `model` is a module or None."""
    if model is not None:
        check_model(model)


def check_positive(name: str, given: object) -> None:
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{name}: expected a number, got {given!r}")
    if not 0.0 < float(given) < math.inf:
        raise ValueError(f"{name}: expected {name} > 0, got {given!r}")


def config_of(model: nn.Module | None, key: str, default: Any) -> Any:
    """A field of a transformers model's config, else the default."""
    value = None if model is None else getattr(getattr(unwrapped(model), "config", None), key, None)
    return default if value is None else value


def shape_of(model: nn.Module | None, pattern: str) -> tuple[int, ...] | None:
    """The shape of the first parameter whose canonical name has the pattern."""
    for name, _, parameter in named_parameters(model) if model is not None else ():
        if re.search(pattern, name):
            return tuple(global_shape(parameter, name))
    return None


def normal_of(
    model: nn.Module | None, std: float | None, key: str = "initializer_range", default: float = 0.02
) -> Normal:
    """N(0, std^2); the std comes from the config's field `key` unless it is given."""
    return Normal(std=std if std is not None else config_of(model, key, default))
