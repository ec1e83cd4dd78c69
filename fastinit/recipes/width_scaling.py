"""muP: std and learning rates that stay right when a model is widened (Yang, Hu et al. 2022, "Tensor Programs V")."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fastinit.distributed.held import global_shape
from fastinit.errors import ParameterError
from fastinit.recipes.files import Recipe, check_flag, check_model
from fastinit.recipes.presets import as_recipe
from fastinit.rules.finder import Names, RuleFinder
from fastinit.rules.roles import Roles, Treatment, ruled_treatment
from fastinit.rules.select import Rule, as_rules
from fastinit.rules.where import Where, exact_glob
from fastinit.run.names import named_modules, named_parameters
from fastinit.run.parametrized import computed_weights
from fastinit.schemes.base import Context, Scheme, as_scheme, check_choice
from fastinit.schemes.fans import FanConvention, Fans, Geometry, block_fans, geometry_of, module_geometry
from fastinit.schemes.named import Constant, Own, Scaled

Role = Literal["hidden", "input", "output", "vector", "fixed"]
Optimizer = Literal["adam", "sgd"]


class MuPRow(NamedTuple):
    """A parameter under muP.

    width_in, width_out: its numbers of inputs and outputs, as multiples of those in the base model.
    std_factor: multiplies the std of the base model's parameter.
    output_factor: what the model must multiply the layer's input by, or its output before the bias is added.
    adam, sgd: multiply the learning rate.
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
    """The recipe of `mup`. It has a row for every parameter, which `print` shows.

    The rows hold the names of the model that `mup` was called with. `names=` of `plan` leaves the rules with those
    parameters.
    """

    rows: tuple[MuPRow, ...] = ()

    def learning_rates(self, optimizer: Optimizer = "adam") -> dict[str, float]:
        """The multiplier of the learning rate for every parameter, by canonical name."""
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        return {row.name: float(getattr(row, optimizer)) for row in self.rows}

    def parameter_groups(self, model: nn.Module, lr: float, optimizer: Optimizer = "adam") -> list[dict[str, Any]]:
        """Groups for torch.optim: parameters of one multiplier together, with `lr` times it.

        Raises:
            TypeError: no model, or `lr` is no number.
            ValueError: an unknown optimizer, or a parameter that the recipe was not made for.
        """
        check_model(model)
        if isinstance(lr, bool) or not isinstance(lr, (Real, torch.Tensor)):
            raise TypeError(f"lr: expected a number, got {lr!r}")
        rates = self.learning_rates(optimizer)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, _, parameter in named_parameters(model):
            if name not in rates:
                raise ParameterError(name, "expected a parameter of the model that mup was called with")
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
    instead, which tied embeddings need: output weights keep sigma, the model multiplies their input by 1 / m_in, and
    their learning rates are 1 for Adam and m_in for SGD. Attention must divide by the width of a head instead of its
    root (definition 4.1).

    Inputs and outputs are what the module computes with the parameter. The rows of an embedding are looked up, so that
    their number is no width; tables that are added (`pos_embed`, `cls_token`) are vectors. The values of orthogonal
    matrices and identities become smaller by themselves in larger matrices; a factor makes up the difference.

    Args:
        model: the wide model. base: the same model at the width that its hyperparameters were tuned at, on any device
            ("meta" will do), or the shapes of its parameters by canonical name.
        scheme: what the base model is initialised with: a scheme, a preset or a recipe.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: base lacks a parameter, or has it with another number of dimensions; embedding and output share
            their weight without `output_multiplier`; a weight is parametrised.

    >>> wide, base = torch.nn.Linear(64, 64), torch.nn.Linear(16, 16)
    >>> print(mup(wide, base, "kaiming_normal"))
    name    shape  role    width in  width out  std x  output x  Adam lr x  SGD lr x
    weight  64x64  hidden  4         4          0.5    1         0.25       1
    bias    64     vector  1         4          1      1         1          4
    """
    check_model(model)
    check_flag("output_multiplier", output_multiplier)
    shapes = _Base(base)
    recipe = as_recipe(scheme, model)
    finder = RuleFinder(as_rules(recipe.rules))
    rows: list[MuPRow] = []
    first: dict[int, MuPRow] = {}  # id of a parameter -> its row
    roles = Roles(model, as_scheme(recipe.scheme))
    made: dict[Any, tuple[_Said, list[str]]] = {}  # what a rule says -> the parameters that it is for
    for each in named_modules(model):
        module = each.module
        for computed in computed_weights(module):
            name, _ = each.names_of(computed.own_name)
            raise ParameterError(name, "expected a weight that is a parameter itself, got a parametrised one")
        for own_name, parameter in module._parameters.items():
            if parameter is None:
                continue
            name, full_name = each.names_of(own_name)
            tied_to = first.get(id(parameter))
            base_shape = shapes.shape(name, parameter, None if tied_to is None else tied_to.name)
            row = _row(name, module, own_name, parameter, base_shape, output_multiplier)
            if tied_to is not None:
                if {row.role, tied_to.role} == {"input", "output"}:
                    if not output_multiplier:
                        raise ParameterError(
                            name,
                            f"is tied to {tied_to.name}, input and output weights at once: expected "
                            "output_multiplier=True",
                        )
                    rows.append(row)
                continue
            first[id(parameter)] = row
            rows.append(row)
            position = finder.find(Names(name, name, full_name), module, parameter)
            treatment = (
                roles.treatment(name, module, own_name, parameter)
                if position is None
                else ruled_treatment(finder.rules[position], module)
            )
            if treatment.scheme is None or isinstance(treatment.scheme, (Constant, Own)):
                continue
            said = _say(name, module, own_name, parameter, row, treatment, recipe.fan, shapes)
            if said is not None:
                key = (id(treatment.scheme), *said[1:], *(each.factor for each in said.schemes))
                made.setdefault(key, (said, []))[1].append(name)
    rules = [said.rule(of_rule) for said, of_rule in made.values()]
    source = f"Yang, Hu et al. 2022, Tensor Programs V, table {8 if output_multiplier else 3}"
    return MuP(recipe.scheme, [*rules, *recipe.rules], recipe.fan, "mup", source, tuple(rows))


class _Base:
    """The base model: the shapes of its parameters, and its modules where it is one."""

    def __init__(self, base: nn.Module | Mapping[str, Sequence[int]]) -> None:
        self._modules: dict[str, nn.Module] = {}
        self._shapes: Mapping[str, Sequence[int]]
        if isinstance(base, nn.Module):
            self._shapes = {name: global_shape(parameter) for name, _, parameter in named_parameters(base, ties=True)}
            for each in named_modules(base):
                for own_name in each.module._parameters:
                    self._modules[each.names_of(own_name)[0]] = each.module
        elif isinstance(base, Mapping):
            self._shapes = base
        else:
            raise TypeError(f"base: expected a torch.nn.Module or a mapping of names to shapes, got {base!r}")

    def shape(self, name: str, parameter: torch.Tensor, tied_to: str | None = None) -> tuple[int, ...]:
        known = name if tied_to is None or name in self._shapes else tied_to
        if known not in self._shapes:
            raise ParameterError(name, "expected a parameter of this name in the base model, found none")
        given: Any = self._shapes[known]
        if not isinstance(given, (tuple, list)) or not all(map(_is_size, given)):
            raise ParameterError(name, f"expected a shape in the base, got {given!r}")
        shape = tuple(given)
        own = global_shape(parameter, name)
        if len(shape) != len(own):
            raise ParameterError(name, f"expected {len(own)} dimensions in the base model, got shape {shape}")
        if any((size == 0) != (of_base == 0) for size, of_base in zip(own, shape, strict=True)):
            raise ParameterError(name, f"expected a base of no empty dimension, got shape {shape}")
        return shape

    def geometry(
        self, fan: FanConvention, name: str, module: nn.Module, own_name: str, shape: Sequence[int]
    ) -> Geometry:
        """How the base's parameter is a map.

        Raises:
            ValueError: the base is shapes alone, which leave the fans of this module open.
        """
        if name in self._modules:
            return geometry_of(fan, self._modules[name], own_name, shape)
        weight = name.removesuffix(own_name) + "weight"
        if len(shape) < 2 and fan in ("weight", "module") and weight in self._shapes:
            shape, own_name = tuple(self._shapes[weight]), "weight"
        found = geometry_of(fan, module, own_name, shape)
        if fan == "module" and len(shape) >= 2:
            wide = geometry_of(fan, module, own_name, global_shape(getattr(module, own_name)))
            if wide[1:] != found[1:] or found.groups != 1:
                raise ValueError(f"fans of {type(module).__name__}: expected a base that is a module, not shapes")
        return found


def _is_size(given: object) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool) and int(given) >= 0


class _Said(NamedTuple):
    """What a rule for a parameter under muP says."""

    schemes: tuple[Scaled, ...]
    fan: FanConvention | None
    split: int | tuple[int, ...] | None
    split_dim: int | None
    zero_row: int | None

    def rule(self, names: Sequence[str]) -> Rule:
        schemes = tuple(each.scheme if each.factor == 1.0 else each for each in self.schemes)
        scheme = schemes if len(schemes) > 1 else schemes[0]
        where = Where(name=tuple(map(exact_glob, names)))
        return Rule(where, scheme, self.fan, self.split, self.split_dim, self.zero_row, in_model=True)


def _say(
    name: str,
    module: nn.Module,
    own_name: str,
    parameter: torch.Tensor,
    row: MuPRow,
    treatment: Treatment,
    fan: FanConvention,
    base: _Base,
) -> _Said | None:
    """A rule that gives the parameter its std: the scheme with the fans of the base, times the factor of the role."""
    given = treatment.scheme
    assert given is not None
    schemes = given if isinstance(given, tuple) else (given,)
    rule = treatment.rule
    fan = fan if rule is None or rule.fan is None else rule.fan
    split = None if rule is None else rule.split
    base_shape, shape = base.shape(name, parameter), global_shape(parameter, name)
    try:
        # A scheme sees one map of a stack.
        stacked = geometry_of(fan, module, own_name, shape).stacked if len(shape) >= 3 else 0
        shapes = base_shape[stacked:], shape[stacked:]
        compared = [_compare(each, shapes, parameter.dtype, module, own_name) for each in schemes]
    except Exception as error:
        raise ParameterError(name, str(error)) from error
    scaled = tuple(
        Scaled(each, row.std_factor * of_each.shrinks) for each, of_each in zip(schemes, compared, strict=True)
    )
    needs_fans = any(of_each.asks_fans for of_each in compared)
    if not needs_fans and all(each.factor == 1.0 for each in scaled):
        return None  # the recipe's own rule or scheme says just this
    split_dim = None if rule is None else rule.split_dim
    zero_row = None if rule is None else rule.zero_row
    if split is not None and split_dim is None:
        split_dim = geometry_of(fan, module, own_name, shape).out_dim
    if not needs_fans:
        return _Said(scaled, None if rule is None else rule.fan, split, split_dim, zero_row)
    try:
        geometry = base.geometry(fan, name, module, own_name, base_shape)
        fans = geometry.fans
        if split is not None and split_dim is not None:
            fans = _fans_of_block(geometry, base_shape, split, split_dim)
        return _Said(scaled, fans, split, split_dim, zero_row)
    except ParameterError:
        raise
    except ValueError as error:
        raise ParameterError(name, str(error)) from error


def _fans_of_block(geometry: Geometry, shape: Sequence[int], split: int | tuple[int, ...], dim: int) -> Fans:
    """The fans that each of the equal blocks has in the base model."""
    dim %= len(shape)
    sizes = (1,) * split if isinstance(split, int) else split
    if len(set(sizes)) > 1 or shape[dim] % len(sizes) != 0:
        raise ValueError(f"split: expected equal blocks, in the base model too, or a scheme without fans, got {split}")
    return block_fans(geometry, shape, dim, shape[dim] // len(sizes))


class _Compared(NamedTuple):
    """A scheme in the base and in the wide model.

    `shrinks`: the factor by which its values become smaller with the shape alone, while fans and depth stay the same.
    Orthogonal matrices and identities shrink so. `asks_fans`: whether it looks at fans.
    """

    shrinks: float
    asks_fans: bool


class _SameFans(Context):
    """A context of another shape, but of the same fans and depth, that notes whether a scheme asks for fans."""

    asks_fans = False

    @property
    def fans(self) -> Fans:
        self.asks_fans = True
        return Fans(1, 1)


def _compare(
    scheme: Scheme, shapes: Sequence[Sequence[int]], dtype: torch.dtype, module: nn.Module, own_name: str
) -> _Compared:
    """`shapes` are the base's and the wide model's."""
    sizes, asks_fans = [], False
    for shape in shapes:
        context = _SameFans(shape, dtype, module=module, own_name=own_name, layer=0, layers=1)
        distribution = scheme.distribution(context)
        sizes.append(math.hypot(distribution.mean(), distribution.std()))
        asks_fans = asks_fans or context.asks_fans
    of_base, of_wide = sizes
    return _Compared(1.0 if of_base == of_wide or of_wide == 0.0 else of_base / of_wide, asks_fans)


# Learned tables that are parameters by themselves (pos_embed, cls_token ...). A model adds them.
_ADDED = re.compile(r"embed|token|position|latent|bias")


def _ratio(size: int, of_base: int) -> float:
    return 1.0 if size == of_base else size / of_base


def _row(
    name: str, module: nn.Module, own_name: str, parameter: torch.Tensor, base: tuple[int, ...], output_multiplier: bool
) -> MuPRow:
    shape = tuple(global_shape(parameter, name))
    role: Role
    if len(shape) < 2 or ("weight" not in own_name and _ADDED.search(own_name)):
        wider = math.prod(map(_ratio, shape, base))
        role = "fixed" if wider == 1.0 else "vector"
        return MuPRow(name, shape, role, 1.0, wider, 1.0, 1.0, 1.0, wider)
    geometry = module_geometry(module, own_name, shape)
    is_table = isinstance(module, (nn.Embedding, nn.EmbeddingBag))  # of any number of rows: they are looked up
    width_in = 1.0 if is_table else _ratio(shape[geometry.in_dim], base[geometry.in_dim])
    width_out = _ratio(shape[geometry.out_dim], base[geometry.out_dim])
    if width_in == 1.0:
        role = "fixed" if width_out == 1.0 else "input"
        return MuPRow(name, shape, role, 1.0, width_out, 1.0, 1.0, 1.0, width_out)
    if width_out == 1.0:
        if output_multiplier:
            return MuPRow(name, shape, "output", width_in, 1.0, 1.0, 1.0 / width_in, 1.0, width_in)
        return MuPRow(name, shape, "output", width_in, 1.0, 1.0 / width_in, 1.0, 1.0 / width_in, 1.0 / width_in)
    return MuPRow(name, shape, "hidden", width_in, width_out, width_in**-0.5, 1.0, 1.0 / width_in, width_out / width_in)
