"""The main job: every parameter of a model, or of a list, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fastinit.allocation import allocate_
from fastinit.buffers import plan_restoration
from fastinit.fans import FanConvention
from fastinit.plan import Plan
from fastinit.planner import plan, plan_tensors
from fastinit.recipe import Recipe
from fastinit.registry import Scheme
from fastinit.rules import Rule, Selector
from fastinit.sharding import local_tensor
from fastinit.streams import Renaming

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

    Matrices get `scheme`, biases zeros, normalisation weights ones, padding rows zeros, shared parameters once;
    `rules` come before these defaults. In place of a scheme: a preset's name ("gpt2"), or a recipe (`load_recipe`).
    `fastinit.plan` takes the same arguments, documents them and shows the outcome without writing.

    The value of a weight depends on the seed, its canonical name, its position and its distribution alone: not on the
    device, the number of threads, the memory format or the rest of the model.

    Raises:
        TypeError, ValueError: naming the parameter and what is wrong with it. Nothing is written then.

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
    left = [row for row in made.rows if row.action == "keep" and local_tensor(row.tensor).is_meta]
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
