"""Computes the values of the buffers of a model that was built on the meta device.

Parameters are initialised anew, but a buffer has one right value, which new memory does not hold. The value is computed
here before anything is allocated, on the CPU and by the module's own code. The parameters stay on the meta device, so
this costs and disturbs nothing. If nobody can compute a buffer, an error names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastinit._torch import SPECTRAL_NORMS, wraps_others
from fastinit.capture.tapes import tape_of
from fastinit.errors import ParameterError, warn
from fastinit.meta.buffer_search import Search
from fastinit.meta.lost import RECORDED, Lost, lost_in
from fastinit.meta.restoration import Restoration
from fastinit.meta.stand_ins import stand_ins
from fastinit.rules.select import KEEP, Rule, Selector
from fastinit.run.names import named_modules
from fastinit.run.parametrized import SpectralNorm


def plan_restoration(
    model: nn.Module,
    buffers: Sequence[tuple[Selector, Callable[[Any], Any]]] | None = None,
    *,
    seed: int = 0,
    strict: bool = False,
) -> Restoration:
    """Find the value of every buffer of `model` that is on the meta device. The model itself is not changed.

    The first way that gives a value counts:

    1. `buffers`, the user's own functions.
    2. The module's own code: `reset_running_stats`, torchtune's `rope_init`, timm's `init_non_persistent_buffers`, the
       `_init_weights` of a transformers model and others. The `init_weights` or `reset_parameters` of a module that
       holds the module come last. The vectors of torch's spectral_norm start at random, and `settle_` does the rest.
    3. A convention, where name, type, shape and dtype together leave no doubt: `position_ids`, `token_type_ids`,
       statistics of a normalisation, the causal mask of GPT-2's attention.

    All of it runs on the CPU, so on any device and every rank the values are those of a model built on the CPU. Tensors
    on the meta device that are plain attributes of a module count as buffers, because nothing else would bring them to
    a device. Buffers that have memory are left alone.

    Args:
        model: any module, before anything is allocated.
        buffers: pairs of a selector and a function of the module, which computes the selected buffers in place or
            assigns them: `("*.rope.*", lambda module: module.make_tables())`. Selectors are those of rules: a glob on
            the canonical name, module types, a `Where` or others. While the function runs, the module's buffers are on
            the CPU. Its parameters are on meta, since they have no values yet.
        seed: the seed of random buffers. Together with the name of the module it gives their random numbers.
        strict: refuse pairs that select no buffer, rather than warn.

    Raises:
        TypeError, ValueError: buffers cannot be restored, or a pair fails to do it. The message names them.
    """
    rules = _as_rules(buffers)
    names = {each.module: each.name for each in named_modules(model)}
    lost = lost_in(model)
    _check_selectors(rules, model, lost, strict)
    for each in lost:
        _replay(each, seed)
    if any(not each.way for each in lost):
        _check_whole(names)
        with stand_ins(list(names), lost):
            search = Search(model, lost, names, seed)
            search.by_rules(rules)
            search.by_modules()
        for each in lost:
            each.blank = None
        left = [each for each in lost if not each.way]
        if left:
            raise ValueError(
                f"cannot restore {', '.join(each.described() for each in left)}: built on the meta device, and no way "
                f"is known to compute it again; give one: buffers=[({left[0].name!r}, lambda module: ...)], a function "
                "that assigns or fills it"
            )
    return Restoration(lost, list(names))


def _replay(each: Lost, seed: int) -> None:
    """Take the value that was recorded when the model was built (capture/)."""
    for place in each.places:
        tape = tape_of(place.module, place.own_name)
        if tape is not None:
            with torch.no_grad():
                each.value = tape.replay(seed).clone()
            each.way = RECORDED
            return


def _as_rules(given: Sequence[tuple[Selector, Callable[[Any], Any]]] | None) -> list[tuple[Rule, Callable[[Any], Any]]]:
    rules = []
    for pair in given or ():
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            raise TypeError(f"buffers: expected (selector, function of the module) pairs, got {pair!r}")
        rules.append((Rule(pair[0], KEEP), pair[1]))
    return rules


def _check_selectors(
    rules: Sequence[tuple[Rule, Callable[[Any], Any]]], model: nn.Module, lost: Sequence[Lost], strict: bool
) -> None:
    if not rules:
        return
    every = [(each.names_of(own_name)[0], each.module, buffer)
             for each in named_modules(model) for own_name, buffer in each.module._buffers.items()
             if buffer is not None]  # fmt: skip
    every += [(each.name, each.module, each.tensor) for each in lost]
    unmatched = [str(rule) for rule, _ in rules if not any(rule.matches(*each) for each in every)]
    if unmatched:
        message = f"buffers: no buffer matches {', '.join(unmatched)}"
        if strict:
            raise ValueError(f"strict: {message}")
        warn(message)


def _check_whole(names: dict[nn.Module, str]) -> None:
    """Raise ValueError if spectral_norm has a sharded weight. Its estimates follow from the whole weight."""
    for module, name in names.items():
        weights: list[Any] = []
        if isinstance(module, parametrize.ParametrizationList):
            estimates = [each._buffers.get("_u") for each in module if isinstance(each, SPECTRAL_NORMS)]
            if any(each is not None and each.is_meta for each in estimates):
                weights += module._parameters.values()
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and getattr(module, hook.name + "_u").is_meta:
                weights.append(module._parameters[hook.name + "_orig"])
        if any(wraps_others(weight) for weight in weights):
            raise ParameterError(name, "spectral_norm needs the whole weight, got a sharded one; materialise it before")
