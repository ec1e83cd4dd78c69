"""The search for the values of buffers without memory: one way after the other, until each has a value."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from fastinit._torch import wraps_others
from fastinit.meta.buffer_ways import BUFFER_METHODS, MODULE_METHODS, Way, conventional, method, own_ways, rotary
from fastinit.meta.lost import Lost
from fastinit.meta.stand_ins import OnCpu, is_written, put_blank
from fastinit.rules.select import Rule
from fastinit.run.streams import derive_stream


class Search:
    """Goes through the ways to compute lost buffers, until all are found or no way is left."""

    def __init__(self, model: nn.Module, lost: Sequence[Lost], names: dict[nn.Module, str], seed: int) -> None:
        self._lost = lost
        self._names = names
        self._seed = seed
        self._tried: set[tuple[str, nn.Module]] = set()
        self._ancestors: dict[nn.Module, list[nn.Module]] = {model: []}  # for each module, the nearest first
        for module in model.modules():
            for child in module.children():
                self._ancestors.setdefault(child, [module, *self._ancestors[module]])
        self._within: dict[nn.Module, list[Lost]] = {}  # lost buffers in a module and its children
        for each in lost:
            for module in (each.module, *self._ancestors[each.module]):
                self._within.setdefault(module, []).append(each)

    def by_rules(self, rules: Sequence[tuple[Rule, Callable[[Any], Any]]]) -> None:
        for rule, function in rules:
            selected = [each for each in self._left() if rule.matches(each.name, each.module, each.tensor)]
            for module in dict.fromkeys(each.module for each in selected):
                of_module = [each for each in selected if each.module is module]
                error = self._run(str(rule), module, partial(function, module), of_module)
                missed = [each.name for each in of_module if not each.way]
                if missed:
                    why = f"its function raised {error}" if error else "; ".join(of_module[0].failed) or (
                        "its function has neither assigned nor filled it")  # fmt: skip
                    raise ValueError(f"buffers: {rule} selects {', '.join(missed)}, but {why}")

    def by_modules(self) -> None:
        for each in self._left():
            ways = [*own_ways(each.module), *self._initialisers(each.module)]
            if hasattr(each.module, "inv_freq") and hasattr(each.module, "config"):
                ways.append(("rope_init_fn", each.module, partial(rotary, each.module)))
            ways += [(f"{name}()", each.module, method(each.module, name)) for name in MODULE_METHODS]
            self._try(each, ways)
            is_known = each.places[0].is_buffer or each.tensor.numel() == 0
            value = conventional(each.own_name, each.module, each.tensor) if is_known and not each.way else None
            if value is not None:
                each.value, each.way = value, "follows from its name and shape"
        for each in self._left():
            for ancestor in self._ancestors[each.module]:
                ways = self._initialisers(ancestor)
                for name in (*BUFFER_METHODS, *MODULE_METHODS):
                    ways.append((f"{name}()", ancestor, method(ancestor, name)))
                self._try(each, ways)

    def _try(self, wanted: Lost, ways: Sequence[Way]) -> None:
        for label, module, function in ways:
            if wanted.way:
                return
            if function is not None and (label, module) not in self._tried:
                self._tried.add((label, module))
                way = f"{type(module).__name__}.{label}"
                error = self._run(way, module, function, [each for each in self._within[module] if not each.way])
                if error:
                    wanted.failed.append(f"{way} raised {error}")

    def _initialisers(self, module: nn.Module) -> list[Way]:
        """The `_init_weights` of the innermost transformers model around a module. It initialises all its modules."""
        for owner in (module, *self._ancestors[module]):
            module_type: Any = type(owner)
            if any(base.__name__ == "PreTrainedModel" for base in module_type.__mro__):
                label = f"_init_weights, by {module_type.__name__}"
                initialise: Any = owner._init_weights
                return [(label, module, partial(initialise, module))]
        return []

    def _left(self) -> list[Lost]:
        return [each for each in self._lost if not each.way]

    def _run(self, way: str, module: nn.Module, function: Callable[[], Any], wanted: Sequence[Lost]) -> str | None:
        """Let `function` compute as many of `wanted` as it can. If it raises, return the error and take no value."""
        key = derive_stream(self._seed, self._names[module]).key
        error = None
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            torch.device("cpu"),
            OnCpu(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(key)
            try:
                function()
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
        for each in wanted:
            if error is None:
                _take(each, way)
            if not each.way:
                put_blank(each)
        return error


def _take(each: Lost, way: str) -> None:
    """Take the value of a lost buffer from its place, if the module put one there."""
    value: Any = each.blank
    for place in each.places:
        held = place.holder().get(place.own_name, each.blank)
        if held is not each.blank:
            value = held
            break
    if value is None and not any(place.is_buffer for place in each.places):
        each.way = way  # an attribute that is not a tensor any more
        return
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return
    if value is each.blank and not is_written(value):
        return
    if wraps_others(value):
        each.failed.append(f"{way} gives a {type(value).__name__}, expected a plain tensor")
    elif value.shape != each.tensor.shape:
        each.failed.append(f"{way} gives shape {tuple(value.shape)}, expected {tuple(each.tensor.shape)}")
    elif _category(value.dtype) != _category(each.tensor.dtype):
        each.failed.append(f"{way} gives {value.dtype}, expected {each.tensor.dtype}")
    else:
        each.value, each.way = value.detach().clone(), way  # others may write to it again


def _category(dtype: torch.dtype) -> str:
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else str(dtype)
