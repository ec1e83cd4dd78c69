"""muP: std and learning rates that stay right when a model is widened (Yang, Hu et al. 2022, "Tensor Programs V")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fastinit.fans import geometry_of, module_geometry
from fastinit.presets import as_recipe
from fastinit.recipe import Recipe
from fastinit.registry import Scheme, as_scheme, check_choice
from fastinit.rules import Rule, RuleFinder, Where, as_rules, default_treatment, ruled_treatment
from fastinit.schemes import Constant, Scaled
from fastinit.streams import canonical_name

Role = Literal["hidden", "input", "output", "vector", "fixed"]
Optimizer = Literal["adam", "sgd"]


class MuPRow(NamedTuple):
    """A parameter under muP. `width_in`, `width_out`: how many times as many inputs and outputs as in the base model.

    `std_factor` multiplies the std that the base model's parameter has; `output_factor` is what the model must
    multiply the layer's output by; `adam` and `sgd` multiply the learning rate.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    width_in: float
    width_out: float
    std_factor: float
    output_factor: float
    adam: float
    sgd: float


@dataclass(frozen=True)
class MuP(Recipe):
    """The recipe of `mup`, with a row for every parameter: `print` shows them, `parameter_groups` is for the
    optimizer."""

    rows: tuple[MuPRow, ...] = ()

    def learning_rates(self, optimizer: Optimizer = "adam") -> dict[str, float]:
        """The multiplier of the learning rate for every parameter, by canonical name."""
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        return {row.name: float(getattr(row, optimizer)) for row in self.rows}

    def parameter_groups(self, model: nn.Module, lr: float, optimizer: Optimizer = "adam") -> list[dict[str, Any]]:
        """Groups for torch.optim: parameters of one multiplier together, with `lr` times it.

        Raises:
            ValueError: a parameter that the recipe was not made for.
        """
        rates = self.learning_rates(optimizer)
        groups: dict[float, list[nn.Parameter]] = {}
        for full_name, parameter in model.named_parameters():
            name = canonical_name(full_name)
            if name not in rates:
                raise ValueError(f"{name}: expected a parameter of the model that mup was called with")
            groups.setdefault(rates[name], []).append(parameter)
        return [{"params": parameters, "lr": lr * rate} for rate, parameters in groups.items()]

    def __str__(self) -> str:
        titles = ("name", "shape", "role", "width in", "width out", "std x", "output x", "Adam lr x", "SGD lr x")
        lines = [titles]
        for row in self.rows:
            numbers = (f"{number:.6g}" for number in row[3:])
            lines.append((row.name, "x".join(map(str, row.shape)), row.role, *numbers))  # type: ignore[arg-type]
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def mup(
    model: nn.Module,
    base: nn.Module | Mapping[str, Sequence[int]],
    scheme: str | Scheme | Recipe,
    *,
    output_multiplier: bool = False,
) -> MuP:
    """The maximal update parametrisation of a model, relative to a narrower `base` model.

    A dimension that differs from the base's has a width, m times the base's. With sigma the std that `scheme` gives the
    parameter in the base model:

        role     m > 1 for       std                     Adam lr    SGD lr
        input    outputs         sigma                   1          m_out
        hidden   both            sigma / sqrt(m_in)      1 / m_in   m_out / m_in
        output   inputs          sigma / m_in            1 / m_in   1 / m_in
        vector   its only one    as the base's           1          m

    (Yang et al. 2022, table 3, relative to a base as in its section B.1). With `output_multiplier` its table 8
    instead, which tied embeddings need: output weights keep sigma, the model multiplies their product by 1 / m_in, and
    their learning rates are 1 for Adam and m_in for SGD. Attention must divide by the width of a head instead of its
    root (definition 4.1).

    Args:
        model: the wide model. base: the same model at the width that its hyperparameters were tuned at, on any device
            ("meta" will do), or the shapes of its parameters by canonical name.
        scheme: what the base model is initialised with: a scheme, a preset or a recipe.

    Raises:
        ValueError: base lacks a parameter, or has it with another number of dimensions.

    >>> wide, base = torch.nn.Linear(64, 64), torch.nn.Linear(16, 16)
    >>> print(mup(wide, base, "kaiming_normal"))
    name    shape  role    width in  width out  std x  output x  Adam lr x  SGD lr x
    weight  64x64  hidden  4         4          0.5    1         0.25       1
    bias    64     vector  1         4          1      1         1          4
    """
    if isinstance(base, nn.Module):
        base = {canonical_name(name): parameter.shape for name, parameter in base.named_parameters()}
    recipe = as_recipe(scheme, model)
    finder = RuleFinder(as_rules(recipe.rules))
    rows: list[MuPRow] = []
    names: dict[Any, list[str]] = {}  # what a rule says -> the parameters it is for
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for own_name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = canonical_name(f"{prefix}.{own_name}" if prefix else own_name)
            base_shape = _base_shape(name, parameter, base)
            row = _row(name, module, own_name, parameter, base_shape, output_multiplier)
            rows.append(row)
            position = finder.find(name, module, parameter)
            treatment = (
                default_treatment(name, module, own_name, parameter, parameter.dim(), as_scheme(recipe.scheme))
                if position is None
                else ruled_treatment(finder.rules[position], module)
            )
            schemes, rule = treatment.scheme, treatment.rule
            if schemes is None or isinstance(schemes, Constant) or parameter.dim() < 2:
                continue
            scaled = tuple(
                _scaled(each, row.std_factor) for each in (schemes if isinstance(schemes, tuple) else (schemes,))
            )
            fan = recipe.fan if rule is None or rule.fan is None else rule.fan
            needs_fans = any(each.needs_fans for each in scaled)
            fans = geometry_of(fan, module, own_name, base_shape).fans if needs_fans else None
            split = None if rule is None else rule.split
            if split is not None and fans is not None:
                raise ValueError(f"{name}: split: expected a scheme without fans under muP, got {rule}")
            said = (
                scaled if isinstance(schemes, tuple) else scaled[0],
                fans,
                split,
                None if rule is None else rule.split_dim,
            )
            names.setdefault(said, []).append(name)
    made = [
        Rule(Where(name=tuple(of_rule)), scaled, fans, split, split_dim)
        for (scaled, fans, split, split_dim), of_rule in names.items()
    ]
    source = "Yang, Hu et al. 2022, Tensor Programs V, table 8" if output_multiplier else "Yang et al. 2022, table 3"
    return MuP(recipe.scheme, [*made, *recipe.rules], recipe.fan, "mup", source, tuple(rows))


def _scaled(scheme: Scheme, factor: float) -> Scheme:
    return scheme if factor == 1.0 else Scaled(scheme, factor)


def _base_shape(name: str, parameter: torch.Tensor, base: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    if name not in base:
        raise ValueError(f"{name}: expected a parameter of this name in the base model, found none")
    shape = tuple(base[name])
    if len(shape) != parameter.dim():
        raise ValueError(f"{name}: expected {parameter.dim()} dimensions in the base model, got shape {shape}")
    return shape


def _row(
    name: str, module: nn.Module, own_name: str, parameter: torch.Tensor, base: tuple[int, ...], output_multiplier: bool
) -> MuPRow:
    shape = tuple(parameter.shape)
    role: Role
    if len(shape) < 2:
        wider = shape[0] / base[0] if shape else 1.0
        role = "fixed" if wider == 1.0 else "vector"
        return MuPRow(name, shape, role, 1.0, wider, 1.0, 1.0, 1.0, wider)
    geometry = module_geometry(module, own_name, shape)
    width_in = shape[geometry.in_dim] / base[geometry.in_dim]
    width_out = shape[geometry.out_dim] / base[geometry.out_dim]
    if width_in == 1.0:
        role = "fixed" if width_out == 1.0 else "input"
        return MuPRow(name, shape, role, 1.0, width_out, 1.0, 1.0, 1.0, width_out)
    if width_out == 1.0:
        if output_multiplier:
            return MuPRow(name, shape, "output", width_in, 1.0, 1.0, 1.0 / width_in, 1.0, width_in)
        return MuPRow(name, shape, "output", width_in, 1.0, 1.0 / width_in, 1.0, 1.0 / width_in, 1.0 / width_in)
    return MuPRow(name, shape, "hidden", width_in, width_out, width_in**-0.5, 1.0, 1.0 / width_in, width_out / width_in)
