"""The main job: every parameter of a model, or of a list, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from fastinit.fans import FanConvention
from fastinit.planner import plan, plan_tensors
from fastinit.recipe import Recipe
from fastinit.registry import Scheme
from fastinit.rules import Rule, Selector
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
