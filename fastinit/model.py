"""The main job: every parameter of a model, or of a list, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from fastinit.distributed import agreement
from fastinit.errors import UncoveredWarning, warn
from fastinit.meta.allocation import allocate_
from fastinit.meta.buffers import plan_restoration
from fastinit.plans import Plan
from fastinit.recipes.files import Recipe, check_flag, check_model
from fastinit.recipes.presets import as_recipe
from fastinit.rules.depths import check_layers
from fastinit.rules.select import Rule, RuleFinder, Selector, as_rules
from fastinit.rules.survey import Survey, plan_tensors
from fastinit.run.names import Renamer, Renaming
from fastinit.schemes.base import Scheme, as_scheme
from fastinit.schemes.fans import FanConvention

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def init_model_(
    model: ModuleT,
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
) -> ModuleT:
    """Initialise every parameter of `model` in one pass, and return it.

    Matrices get `scheme`, biases zeros, normalisation weights ones, padding rows zeros. A parameter that several
    modules share is written once. `rules` come before these defaults. `fastinit.plan` takes the same arguments and
    shows the outcome without writing.

    The value of a weight depends on the seed, its canonical name, its position and its distribution alone: not on the
    device, the number of threads, the memory format or the rest of the model.

    Args:
        model: any module whose parameters have memory. DTensors are taken like tensors.
        scheme: for the matrices: a name ("xavier_uniform"), a scheme (`VarianceScaling(2.0)`), a preset ("gpt2") or a
            recipe (`load_recipe`).
        rules: pairs of a selector and a scheme, such as `("*.head.weight", "zeros")`. The first that matches wins.
        fan: how fan_in and fan_out are read: "torch" (the default) as torch.nn.init does, from the shape; "module"
            from what the module computes; "jax", "keras", `Fans(in, out)` or `FanAxes`.
        seed: an int in [0, 2**64) makes every value a pure function of it. None draws a seed.
        generator: where that seed is drawn from; None: torch's default CPU generator (`torch.manual_seed` governs it).
        backend: "native" refuses what the native code cannot fill, "torch" goes through torch.nn.init, "auto" chooses.
        strict: refuse parameters that no rule and no default covers, and rules that match nothing.
        names: canonical names in the whole, where `model` is a part of it: a pipeline stage, the experts of a rank.
        layers: how many layers the whole has, for schemes that look at the depth.

    Raises:
        ParameterError: a ValueError and TypeError that names the parameter and what is wrong with it.
        TypeError, ValueError: an argument that is wrong by itself. Nothing is written in any case.

    >>> model = torch.nn.Linear(3, 2)
    >>> init_model_(model, "xavier_uniform", seed=0).bias.tolist()
    [0.0, 0.0]
    """
    plan(
        model,
        scheme,
        rules,
        fan=fan,
        seed=seed,
        generator=generator,
        backend=backend,
        strict=strict,
        names=names,
        layers=layers,
    ).run_()
    return model


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
            ranks that share DTensors, or replicas under a wrapper, then meet and take one of their seeds: all of them
            must run the plan (docs/DISTRIBUTED.md).
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
        ParameterError: a ValueError and TypeError that names the parameter and what is wrong with it.
        TypeError, ValueError: an argument that is wrong by itself. Under `strict`, on every rank of a mesh if it
            happens on one.
    """
    check_model(model)
    check_flag("strict", strict)
    check_layers(layers)
    survey = Survey(model, Renamer(names), layers)
    planned = partial(_plan, survey, scheme, rules, fan, seed, generator, backend, strict)
    return _agreed(planned, survey.meshes()) if strict else planned()


def _plan(
    survey: Survey,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None,
    fan: FanConvention | None,
    seed: int | None,
    generator: torch.Generator | None,
    backend: str,
    strict: bool,
) -> Plan:
    recipe = as_recipe(scheme, survey.model)
    own_rules = as_rules(rules)
    rows = survey.rows(
        as_scheme(recipe.scheme), recipe.fan if fan is None else fan, RuleFinder([*own_rules, *as_rules(recipe.rules)])
    )
    # A recipe serves many models; that one lacks a part of what it has rules for is no mistake.
    survey.report_unmatched(own_rules, strict)
    groups = survey.wrapper_groups()
    made = Plan(rows, seed=seed, generator=generator, backend=backend, seed_groups=groups, strict=strict)
    _report_uncovered(made, strict)
    return made


def _report_uncovered(made: Plan, strict: bool) -> None:
    if strict and made.uncovered:
        raise ValueError("strict: no rule covers " + ", ".join(made.uncovered))
    # Without memory they cannot be kept, and materialize_ refuses them.
    names = [row.name for row in made.rows if not row.covered and row.device.type != "meta"]
    if not names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    warn(f"no rule covers {shown}: kept as they are; give them a rule, or KEEP", UncoveredWarning)


_SHOWN = 6


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


def materialize_(
    model: ModuleT,
    scheme: str | Scheme | Recipe,
    rules: Sequence[Rule | tuple[Selector, Any]] | None = None,
    *,
    device: torch.device | str | int,
    dtype: torch.dtype | None = None,
    buffers: Sequence[tuple[Selector, Callable[[Any], Any]]] | None = None,
    fan: FanConvention | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    strict: bool = False,
    names: Renaming | None = None,
    layers: int | Mapping[str, int] | None = None,
) -> ModuleT:
    """Give a model that was built on the meta device its memory, its buffers and its initial values; return it.

    Before or after `fully_shard`, `parallelize_module` and splitting into pipeline stages: every rank allocates and
    writes its own part. Parameters that are one object stay one. New memory is not zeroed first. Buffers get the values
    that they would have had without the meta device; those that were not on meta are moved. Parameters that have
    memory stay where they are, and are initialised like the others.

    Args:
        model: any module.
        device: where to, for parameters and buffers on meta; parameters that FSDP2 offloads go to the CPU.
        dtype: of the floating-point parameters that are on meta; None: each keeps its own.
        buffers: (selector, function of the module) pairs for buffers that only the user can compute:
            `("*.rope.*", lambda module: module.make_tables())` assigns or fills what is selected.
        scheme, rules, fan, seed, generator, backend, strict, names, layers: as for `plan`.

    Raises:
        TypeError, ValueError: as `plan` does, before anything is changed; and naming parameters that would be left
            without values, and buffers that nobody knows to compute. Where values do not fit a new `dtype`, memory is
            there by then, with nothing written to it.

    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(3, 2)
    >>> materialize_(model, "xavier_uniform", device="cpu", seed=0).bias.tolist()
    [0.0, 0.0]
    """
    device = torch.device(device)
    if device.type == "meta":
        raise ValueError("device: expected one with memory, got meta")
    planned = partial(
        plan,
        model,
        scheme,
        rules,
        fan=fan,
        seed=seed,
        generator=generator,
        backend=backend,
        names=names,
        layers=layers,
    )
    check_all_written(planned(strict=strict))
    restoration = plan_restoration(model, buffers, seed=seed or 0, strict=strict)
    allocate_(model, device, dtype)
    restoration.restore_(device)
    with warnings.catch_warnings():  # they were given
        warnings.simplefilter("ignore")
        made = planned()
    made.run_()
    restoration.settle_()
    return model


def check_all_written(made: Plan) -> None:
    """Refuse what would be left as it is while its memory holds nothing yet."""
    left = [row for row in made.rows if row.action == "keep" and row.device.type == "meta"]
    if left:
        raise ValueError(
            "parameters on the meta device that nothing would write to: "
            + ", ".join(f"{row.name} ({row.reason})" for row in left)
            + "; give them a rule"
        )


def init_(
    tensors: Iterable[torch.Tensor],
    scheme: str | Scheme,
    *,
    names: Sequence[str] | None = None,
    fan: FanConvention = "torch",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> None:
    """Initialise a list of tensors with one scheme, in one pass.

    `names` decide, with the seed, which random numbers a tensor gets; they default to positions ("0", "1", ...).

    Raises:
        TypeError, ValueError: naming the tensor and what is wrong with it. Nothing is written then.

    >>> weight = torch.empty(2, 3)
    >>> init_([weight], "kaiming_normal", seed=0)
    """
    plan_tensors(tensors, scheme, names=names, fan=fan, seed=seed, generator=generator, backend=backend).run_()
