"""From a model, a scheme and rules to a plan. Every check is here or in the plan's engine, before anything is
written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastinit import agreement
from fastinit.checks import NAMELESS, check_dtype, check_tensor
from fastinit.depths import Depths, check_layers
from fastinit.distributions import Blocks, Constant, Distribution, ZeroRow, check_range, is_composed
from fastinit.fans import FanConvention, Fans, Geometry, block_fans, geometry_of
from fastinit.parametrized import computed_weights
from fastinit.plan import Plan, Row
from fastinit.presets import as_recipe
from fastinit.recipe import Recipe
from fastinit.registry import Scheme, as_scheme, at_layer, describe, distribution_of
from fastinit.rules import (
    Rule,
    RuleFinder,
    Selector,
    Treatment,
    as_fan,
    as_rules,
    default_treatment,
    ruled_treatment,
)
from fastinit.schemes import DepthScaled, Scaled
from fastinit.sharding import is_dtensor, is_flattened, local_tensor
from fastinit.streams import Renaming, canonical_name, renaming, unchanged

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class _Resolver:
    """From parameter and treatment to fans and distribution, remembering what equal parameters gave."""

    def __init__(self, fan: FanConvention, depths: Depths) -> None:
        self._fan = fan
        self._depths = depths
        self._known: dict[Any, tuple[Fans | None, Distribution]] = {}

    def __call__(
        self, name: str, own_name: str, module: nn.Module | None, tensor: torch.Tensor, treatment: Treatment
    ) -> tuple[Fans | None, Distribution]:
        scheme, rule, shape, dtype = treatment.scheme, treatment.rule, tensor.shape, tensor.dtype
        fan = self._fan if rule is None or rule.fan is None else rule.fan
        # torch's fans are those of the shape; the others look at the module.
        geometry = None if fan == "torch" else self._geometry(name, own_name, module, tensor, treatment, fan)
        depth = self._depths.of(name) if _looks_at_depth(scheme) else None
        if depth is not None and depth[0] is not None and not _differs_by_layer(scheme):
            depth = (0, depth[1])  # one answer for all layers
        key = (id(scheme), id(rule), shape, dtype, geometry, depth, treatment.zero_row)
        known = self._known.get(key)
        if known is None:
            try:
                known = _distribution(own_name, module, shape, treatment, fan, depth)
                check_dtype(dtype, name or NAMELESS, known[1])
                check_range(known[1], dtype)
            except (ValueError, TypeError) as error:
                message = str(error)
                label = name or NAMELESS
                if message.startswith(f"{label}: "):
                    raise
                shown = f"{describe(scheme)}: " if isinstance(scheme, Scheme) else ""
                lacks_fans = "fans need" in message
                hint = "; give it a rule with a scheme without fans, such as 'normal'" if lacks_fans else ""
                raise ValueError(f"{label}: {shown}{message}{hint}") from error
            self._known[key] = known
        return known

    def _geometry(
        self,
        name: str,
        own_name: str,
        module: nn.Module | None,
        tensor: torch.Tensor,
        treatment: Treatment,
        fan: FanConvention,
    ) -> Geometry | None:
        if not _needs_geometry(treatment):
            return None
        try:
            return geometry_of(fan, module, own_name, tensor.shape)
        except ValueError as error:
            raise ValueError(f"{name or NAMELESS}: {error}") from error


def _looks_at_depth(scheme: Scheme | tuple[Scheme, ...] | None) -> bool:
    if isinstance(scheme, tuple):
        return any(map(_looks_at_depth, scheme))
    return hasattr(scheme, "at_layer")


def _differs_by_layer(scheme: Any) -> bool:
    """Whether a scheme that looks at the depth looks at the layer, and not only at how many there are."""
    if isinstance(scheme, tuple):
        return any(map(_differs_by_layer, scheme))
    if isinstance(scheme, Scaled):
        return _differs_by_layer(scheme.scheme)
    if isinstance(scheme, DepthScaled):
        return scheme.by == "layer" or _differs_by_layer(scheme.scheme)
    return hasattr(scheme, "at_layer")  # of the user's own


def _needs_geometry(treatment: Treatment) -> bool:
    scheme = treatment.scheme
    if treatment.rule is not None and treatment.rule.split is not None:
        return True
    # Blocks matter to schemes of the shape, too: an orthogonal matrix a gate.
    return (
        scheme is not None
        and not isinstance(scheme, tuple)
        and (scheme.needs_fans or hasattr(scheme, "distribution_of"))
    )


def _distribution(
    own_name: str,
    module: nn.Module | None,
    shape: torch.Size,
    treatment: Treatment,
    fan: FanConvention,
    depth: tuple[int | None, int | None] | None,
) -> tuple[Fans | None, Distribution]:
    scheme, rule = treatment.scheme, treatment.rule
    assert scheme is not None
    schemes = scheme if isinstance(scheme, tuple) else (scheme,)
    if depth is not None:
        schemes = tuple(at_layer(each, *depth) for each in schemes)
    needs_fans = any(each.needs_fans for each in schemes)
    geometry = (
        geometry_of(fan, module, own_name, shape)
        if needs_fans or (_needs_geometry(treatment) and len(shape) >= 2)
        else None
    )
    dim, sizes = _blocks(shape, rule, geometry)
    fans: Fans | None = None
    if not sizes:
        fans = geometry.fans if needs_fans and geometry is not None else None
        distribution = distribution_of(schemes[0], shape, fans)
    else:
        each_scheme = schemes if len(schemes) > 1 else schemes * len(sizes)
        split = rule is not None and rule.split is not None
        parts = []
        for of_block, size in zip(each_scheme, sizes, strict=True):
            if of_block.needs_fans:
                assert geometry is not None
                fans = block_fans(geometry, shape, dim, size) if split else geometry.fans
            block_shape = (*shape[:dim], size, *shape[dim + 1 :])
            parts.append(distribution_of(of_block, block_shape, fans if of_block.needs_fans else None))
        # Elements that are sampled one by one alike need no blocks.
        alike = len(set(parts)) == 1 and not (is_composed(parts[0]) or hasattr(parts[0], "period"))
        distribution = parts[0] if alike else Blocks(dim, sizes, tuple(parts))
        if len(set(sizes)) > 1:
            fans = None  # every block has its own
    if treatment.zero_row is not None and distribution != Constant(0.0):
        if not shape or not -shape[0] <= treatment.zero_row < shape[0]:
            raise ValueError(f"zero_row: expected a row of shape {tuple(shape)}, got {treatment.zero_row}")
        if isinstance(distribution, Blocks) and distribution.dim == 0:
            raise ValueError("split: expected another dimension than the rows, of which one is a padding row")
        distribution = ZeroRow(treatment.zero_row % shape[0], shape[0], distribution)
    return fans, distribution


def _blocks(shape: torch.Size, rule: Rule | None, geometry: Geometry | None) -> tuple[int, tuple[int, ...]]:
    """(dimension, sizes) of the maps fused in a parameter; no sizes: it is one map."""
    split = None if rule is None else rule.split
    if rule is None or split is None:
        if geometry is None or geometry.blocks == 1:
            return 0, ()
        dim = geometry.out_dim
        return dim, (shape[dim] // geometry.blocks,) * geometry.blocks
    dim = rule.split_dim if rule.split_dim is not None else (0 if geometry is None else geometry.out_dim)
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"split_dim: expected a dimension of shape {tuple(shape)}, got {dim}")
    dim %= len(shape)
    if isinstance(split, int):
        if shape[dim] % split != 0:
            raise ValueError(
                f"split: expected dim {dim} to be divisible by {split}, got {shape[dim]} (shape {tuple(shape)})"
            )
        return dim, (shape[dim] // split,) * split
    if sum(split) != shape[dim]:
        raise ValueError(
            f"split: expected sizes that add up to {shape[dim]} (dim {dim} of {tuple(shape)}), got {split}"
        )
    return dim, split


def _init_row(
    name: str, own_name: str, module: nn.Module | None, tensor: torch.Tensor, treatment: Treatment, resolve: _Resolver
) -> Row:
    scheme = treatment.scheme
    assert scheme is not None
    check_tensor(tensor, name or NAMELESS)
    if tensor.numel() == 0:
        return Row(name, "init", tensor, scheme, None, None, "empty")
    fans, distribution = resolve(name, own_name, module, tensor, treatment)
    return Row(name, "init", tensor, scheme, fans, distribution, treatment.reason)


def plan_tensors(
    tensors: Iterable[torch.Tensor],
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None = None,
    fan: FanConvention = "torch",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Plan:
    """A plan that gives every tensor of a list the same scheme. `names` default to positions: "0", "1", ..."""
    scheme = as_scheme(scheme)
    tensors = list(tensors)
    if names is None:
        names = [str(position) for position in range(len(tensors))]
    elif len(names) != len(tensors):
        raise ValueError(f"names: expected {len(tensors)}, one a tensor, got {len(names)}")
    treatment = Treatment(scheme, "listed")
    resolve = _Resolver(as_fan(fan), Depths(()))
    canonical = [canonical_name(name) for name in names]
    if len(set(canonical)) != len(canonical):
        twice = next(name for name in canonical if canonical.count(name) > 1)
        raise ValueError(f"names: {twice!r} stands twice; tensors of one name would get the same values")
    rows = [
        _init_row(name, "", None, tensor, treatment, resolve) for name, tensor in zip(canonical, tensors, strict=True)
    ]
    return Plan(rows, seed=seed, generator=generator, backend=backend)


def plan(
    model: nn.Module,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    fan: FanConvention | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
    names: Renaming | None = None,
    layers: int | Mapping[str, int] | None = None,
) -> Plan:
    """What `init_model_` with the same arguments would write. Nothing is written, and no random number drawn.

    Every parameter and every buffer has a row with the reason for its treatment: the first rule that matches; else
    zeros for biases, ones for normalisation weights (zeros where the module computes 1 + weight), their published
    values for LoRA adapters, state spaces and slopes, the scheme for everything with two dimensions or more, with the
    padding row of an embedding zero. A parameter that several modules share is initialised once, under the first of
    its names in the order of `model.named_parameters()`. Parametrised weights are set through `right_inverse`, so that
    the weight in effect follows the scheme. DTensors are planned by their global shape, and this rank writes its part
    of them. Parameters on the meta device can be planned, for `materialize_` to write. Vectors that are none of these,
    integers, loaded weights (`_is_hf_initialized`) and all buffers are kept. Frozen parameters are initialised like
    others, and stay frozen.

    Args:
        model: any module with its parameters allocated.
        scheme: for the matrices: a registered name or a scheme; or a preset's name or a recipe.
        rules: `Rule` objects or (selector, scheme) pairs, the first match wins; before those of a recipe.
        fan: how to read fans where a rule does not say: "torch" (the default, torch.nn.init's), "module" (what the
            module computes), "jax", "keras", `Fans` or `FanAxes`. None: the recipe's, or "torch".
        seed: 0 <= seed < 2**64: every value becomes a pure function of it, of the name and of the position.
            None: a seed is drawn from `generator`, or from torch's default CPU generator, whenever the plan runs. The
            ranks that share DTensors, or replicas under a wrapper, then meet and take one of their seeds
            (`fastinit.agreement.shared_seed`): all of them must run the plan.
        generator: where to draw the seed from, if not from the default.
        backend: "auto", "native" or "torch".
        strict: refuse parameters that nothing covers, and rules of `rules` that match nothing; and compare what the
            ranks of every mesh plan for its DTensors, and their seeds: an exchange, in which all ranks must take part.
            Where none is given, the seeds that they took are compared as well, whenever the plan runs.
        names: of parameters in the whole, where `model` is a part of it: a pipeline stage, the experts of a rank. A
            mapping of names and their beginnings ({"layers.0": "layers.24"}), or a function from canonical name to
            canonical name. Rules see the names of the whole; parameters of one name in two stages (tied ones) get the
            same values.
        layers: how many layers the stacks of the whole have, for schemes that look at the depth: an int, or one for
            every prefix ({"encoder.block.": 12}). Needed with `names`, where the model does not tell.

    Raises:
        TypeError, ValueError: naming the parameter and what is wrong with it; under `strict`, on every rank of a mesh
            if it happens on one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_layers(layers)
    survey = _Survey(model, fan, renaming(names), layers)
    planned = partial(_plan, survey, scheme, rules, seed, generator, backend, strict)
    return _agreed(planned, survey.meshes()) if strict else planned()


def _plan(
    survey: _Survey,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None,
    seed: int | None,
    generator: torch.Generator | None,
    backend: str,
    strict: bool,
) -> Plan:
    recipe = as_recipe(scheme, survey.model)
    own_rules = as_rules(rules)
    rows = survey.rows(recipe, RuleFinder([*own_rules, *as_rules(recipe.rules)]))
    # A recipe serves many models; that one lacks a part of what it has rules for is no mistake.
    _report_unmatched([rule for at, rule in enumerate(own_rules) if at not in survey.matched], strict)
    groups = survey.wrapper_groups()
    made = Plan(rows, seed=seed, generator=generator, backend=backend, seed_groups=groups, strict=strict)
    if strict and made.uncovered:
        raise ValueError("strict: no rule covers " + ", ".join(made.uncovered))
    return made


def _agreed(planned: Callable[[], Plan], meshes: Sequence[DeviceMesh]) -> Plan:
    """The plan, once the ranks of all meshes have compared theirs."""
    if not meshes:
        return planned()
    try:
        made = planned()
    except Exception as error:
        agreement.check_agreement([(mesh, []) for mesh in meshes], str(error))
        raise
    agreement.check_agreement([(mesh, made.entries(mesh)) for mesh in meshes], None)
    return made


class _Survey:
    """One walk through a model, in the order of its named_parameters()."""

    def __init__(
        self,
        model: nn.Module,
        fan: FanConvention | None,
        rename: Callable[[str], str],
        layers: int | Mapping[str, int] | None,
    ) -> None:
        self.model = model
        self._modules = list(model.named_modules())
        self._fan = fan
        self._rename = rename
        self._layers = layers
        self.matched: set[int] = set()

    def meshes(self) -> list[DeviceMesh]:
        """Those of the model's DTensors, each once, in the order of the parameters."""
        found: dict[DeviceMesh, None] = {}
        for _, module in self._modules:
            for parameter in module._parameters.values():
                if is_dtensor(parameter):
                    found.setdefault(parameter.device_mesh)
        return list(found)

    def wrapper_groups(self) -> set[agreement.Ranks]:
        """The ranks on which a wrapper holds the model to be the same: DistributedDataParallel, FSDP1.

        Raises:
            ValueError: FSDP1 has cut the parameters into flat pieces.
        """
        groups: set[agreement.Ranks] = set()
        for prefix, module in self._modules:
            if is_flattened(module):
                raise ValueError(
                    f"{prefix or 'model'}: its parameters are flat pieces under FullyShardedDataParallel; "
                    "initialise inside FullyShardedDataParallel.summon_full_params(model), or before wrapping"
                )
            wrapped: Any = module
            if isinstance(module, nn.parallel.DistributedDataParallel):
                groups.add(agreement.ranks_of(wrapped.process_group))
            elif type(module).__name__ == "FullyShardedDataParallel":
                groups.add(agreement.ranks_of(wrapped.process_group))
                if (between := getattr(wrapped, "_inter_node_pg", None)) is not None:  # HYBRID_SHARD
                    groups.add(agreement.ranks_of(between))
        return groups

    def _name(self, prefix: str, own_name: str) -> str:
        return self._rename(canonical_name(f"{prefix}.{own_name}" if prefix else own_name))

    def _names_in_stacks(self) -> Iterator[str]:
        """Names that have all numbers of layers in them: one a module, where the module's own has a number."""
        for prefix, module in self._modules:
            for own_name, parameter in module._parameters.items():
                if parameter is not None:
                    yield self._name(prefix, own_name)
                    if any(part.isdigit() for part in prefix.split(".")):
                        break

    def rows(self, recipe: Recipe, finder: RuleFinder) -> list[Row]:
        """A row a parameter and buffer."""
        self._scheme = as_scheme(recipe.scheme)
        self._finder = finder
        depths = Depths(self._names_in_stacks(), self._layers, of_part=self._rename is not unchanged)
        self._resolve = _Resolver(as_fan(recipe.fan if self._fan is None else self._fan), depths)
        rows: list[Row] = []
        names: dict[str, str] = {}  # canonical name -> name in the model
        first_name: dict[int, str] = {}  # id of a parameter -> canonical name
        computed: dict[int, str] = {}  # id of an original -> the weight that is set through it
        for prefix, module in self._modules:
            if "parametrizations" in module._modules or module._forward_pre_hooks:
                rows += self._computed_rows(prefix, module, names, computed, first_name)
            for own_name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                full_name = f"{prefix}.{own_name}" if prefix else own_name
                name = self._rename(canonical_name(full_name))
                if id(parameter) in first_name:
                    reason = f"tied to {first_name[id(parameter)]}"
                    rows.append(Row(name, "tied", parameter, None, None, None, reason))
                    continue
                if id(parameter) in computed:
                    first_name[id(parameter)] = name
                    reason = f"holds {computed[id(parameter)]}"
                    rows.append(Row(full_name, "original", parameter, None, None, None, reason))
                    continue
                if names.setdefault(name, full_name) != full_name:
                    raise ValueError(
                        f"{name}: two parameters have this canonical name, {names[name]} and {full_name}; "
                        "rename a module"
                    )
                first_name[id(parameter)] = name
                treatment = self._treatment(name, own_name, module, parameter)
                if treatment.scheme is None:
                    rows.append(Row(name, "keep", parameter, None, None, None, treatment.reason, treatment.covered))
                else:
                    rows.append(_init_row(name, own_name, module, parameter, treatment, self._resolve))
            for own_name, buffer in module._buffers.items():
                if buffer is not None:
                    name = self._name(prefix, own_name)
                    reason = "buffer of a parametrisation" if "parametrizations." in prefix else "buffer: kept"
                    rows.append(Row(name, "buffer", buffer, None, None, None, reason))
        return rows

    def _treatment(self, name: str, own_name: str, module: nn.Module, parameter: torch.Tensor) -> Treatment:
        position = self._finder.find(name, module, parameter)
        if position is not None:
            self.matched.add(position)
            return ruled_treatment(self._finder.rules[position], module)
        if getattr(parameter, "_is_hf_initialized", False) and not local_tensor(parameter).is_meta:
            return Treatment(None, "loaded weights (_is_hf_initialized): kept")
        # A lazy parameter has no shape; taken for a matrix it meets the check that says so.
        dimensions = 2 if nn.parameter.is_lazy(parameter) else parameter.dim()
        return default_treatment(name, module, own_name, parameter, dimensions, self._scheme)

    def _computed_rows(
        self,
        prefix: str,
        module: nn.Module,
        names: dict[str, str],
        computed: dict[int, str],
        first_name: dict[int, str],
    ) -> list[Row]:
        rows = []
        for each in computed_weights(module):
            full_name = f"{prefix}.{each.own_name}" if prefix else each.own_name
            name = self._rename(canonical_name(full_name))
            names[name] = full_name
            planned = (computed | first_name).get
            tied = next((found for each_of in each.originals if (found := planned(id(each_of))) is not None), None)
            if tied is not None:
                rows.append(Row(name, "tied", each.weight, None, None, None, f"computed from what {tied} holds"))
                continue
            treatment = self._treatment(name, each.own_name, module, each.weight)
            for original in each.originals:
                computed[id(original)] = name
            if treatment.scheme is None:
                rows.append(Row(name, "keep", each.weight, None, None, None, treatment.reason, treatment.covered))
                continue
            reason = f"{treatment.reason}; {each.reason}"
            row = _init_row(name, each.own_name, module, each.weight, treatment._replace(reason=reason), self._resolve)
            rows.append(row._replace(assignment=each.setter))
        return rows


def _report_unmatched(rules: Sequence[Rule], strict: bool) -> None:
    if not rules:
        return
    message = "no parameter matches " + ", ".join(map(str, rules))
    if strict:
        raise ValueError(f"strict: {message}")
    warnings.warn(message, stacklevel=3)
