"""Models of other libraries, built again on meta from a config or from an architecture's name."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.capture.answers import ModuleTapes, agree, parameters_of, tapes_of_module
from fastinit.capture.contexts import recorded
from fastinit.capture.guard import nothing_drawn
from fastinit.capture.recorder import Recorder
from fastinit.capture.repeats import built_without, pairs, repeats_of
from fastinit.distributed.held import global_shape
from fastinit.run.names import NamedModule, named_modules


class Builder(NamedTuple):
    """How to build a module of another library again. Builders with equal keys build equal models."""

    key: tuple[Any, ...]
    build: Callable[[], nn.Module]


@lru_cache(maxsize=4096)
def libraries(module_type: type) -> frozenset[str]:
    """The classes of other libraries that a class is derived from and that say how they are built."""
    names = {base.__name__ for base in module_type.__mro__ if not base.__module__.startswith("torch.")}
    return frozenset(names & {"PeftModel", "PreTrainedModel", "ModelMixin", "ConfigMixin"})


def builder_of(module: Any) -> Builder | None:
    """How to build a module of another library again; None where nobody says."""
    kind: Any = type(module)
    of = libraries(kind)
    if not of and "pretrained_cfg" not in module.__dict__:  # as nearly always
        return None
    own: Any = next(base for base in kind.__mro__ if not base.__module__.startswith("torch."))
    if "PeftModel" in of and (peft := sys.modules.get("peft")) is not None:
        base = builder_of(module.get_base_model())
        if base is None:
            return None
        configs = module.peft_config
        return Builder((*base.key, repr(configs)), partial(_peft_model, peft, base.build, configs))
    if "PreTrainedModel" in of and getattr(module, "config", None) is not None:
        return Builder((own, repr(module.config.to_dict())), partial(_of_config, own, module.config))
    if {"ModelMixin", "ConfigMixin"} <= of:  # of diffusers
        return Builder((own, repr(module.config)), partial(own.from_config, dict(module.config)))
    architecture = module.__dict__.get("pretrained_cfg")
    if isinstance(architecture, dict) and isinstance(architecture.get("architecture"), str):
        timm: Any = sys.modules.get("timm")  # it is loaded if it has made the model
        if timm is None:
            return None
        name, classes = architecture["architecture"], getattr(module, "num_classes", None)
        return Builder((own, name, classes), partial(timm.create_model, name, num_classes=classes))
    return None


def _of_config(kind: Any, config: Any) -> nn.Module:
    """A model of transformers, whose constructor may change its config."""
    built: nn.Module = kind(copy.deepcopy(config))
    return built


def _peft_model(peft: Any, base: Callable[[], nn.Module], configs: Any) -> nn.Module:
    """A model with PEFT's adapters, anew. `configs` has a configuration for the name of each."""
    made: Any = None
    for name, config in configs.items():
        if made is None:
            made = peft.get_peft_model(base(), copy.deepcopy(config), adapter_name=name)
        else:
            made.add_adapter(name, copy.deepcopy(config))
    built: nn.Module = made
    return built


class _TwinModule(NamedTuple):
    """A module of a model that was built again: the shapes of its parameters, and their tapes."""

    shapes: dict[str, torch.Size]
    taped: ModuleTapes


_Twin = dict[str, _TwinModule]  # by the canonical names of modules that have parameters
_twins: dict[tuple[Any, ...], _Twin] = {}  # the latest ones: a model is often planned twice
_MOST_TWINS = 4


def _kept(key: tuple[Any, ...], twin: _Twin | None) -> _Twin | None:
    if twin is not None:
        while len(_twins) >= _MOST_TWINS:
            _twins.pop(next(iter(_twins)))
        _twins[key] = twin
    return twin


def _twin(builder: Builder, reason: str) -> _Twin | None:
    """What is recorded when a model is built again; None if it cannot be built."""
    recorder = Recorder(0, on_meta=True)
    try:
        model = recorded(builder.build, recorder)
    except Exception:
        return None
    modules = ((each.name, each.module) for each in named_modules(model))
    return {name: _twin_module(recorder, name, module, reason) for name, module in modules if parameters_of(module)}


def _twin_module(recorder: Recorder, name: str, module: nn.Module, reason: str) -> _TwinModule:
    shapes = {own_name: parameter.shape for own_name, parameter in parameters_of(module).items()}
    return _TwinModule(shapes, tapes_of_module(recorder, module, reason, f"{name}.{{}}".format if name else str))


def _abridged_twin(builder: Builder, reason: str, modules: Sequence[NamedModule]) -> _Twin | None:
    """The same from a few of many equal layers; None if there are none, or if what they are given differs."""
    repeats = repeats_of([each.module for each in modules])
    if repeats is None:
        return None
    recorder = Recorder(0, on_meta=True)
    try:
        model, standing = recorded(partial(built_without, repeats, builder.build), recorder)
    except Exception:
        return None
    twins = None if recorder.has_shown else pairs(repeats, standing, modules[0].module, model)
    if twins is None:
        return None
    read: dict[int, _TwinModule] = {}  # by the id of a module of the twin
    found: _Twin = {}
    for each in modules:
        twin = twins.get(id(each.module))
        if twin is None:
            return None
        if twin._parameters and parameters_of(twin):
            if id(twin) not in read:
                read[id(twin)] = _twin_module(recorder, each.name, twin, reason)
            found[each.name] = read[id(twin)]
    if not agree(repeats, twins, {key: each.taped for key, each in read.items()}):
        return None
    return found


def read_building(
    modules: Sequence[NamedModule], builder: Builder, found: dict[int, ModuleTapes], *, exact: bool
) -> bool:
    """Build a twin of a model under the recorder. False: it cannot be built, or turns out to be another model.

    `modules` are all of the model, itself first, with their names in it.
    """
    twin = _twin_of(modules, builder, exact=exact)
    if twin is None:
        return False
    told: dict[int, ModuleTapes] = {}
    for each in modules:
        own = each.module._parameters
        if not own:
            continue
        shapes = {own_name: global_shape(parameter) for own_name, parameter in own.items() if parameter is not None}
        if not shapes:
            continue
        other = twin.get(each.name)
        if other is None or shapes != other.shapes:
            return False
        told[id(each.module)] = other.taped
    if len(told) != len(twin):
        return False
    found.update(told)
    return True


def _twin_of(modules: Sequence[NamedModule], builder: Builder, *, exact: bool) -> _Twin | None:
    """The twin of a model; None if it cannot be built. Nothing is run for one that was kept."""
    reason = f"its class, built again from {type(modules[0].module).__name__}'s description"
    key = (*builder.key, reason, torch.get_default_dtype())
    abridged_key = (*key, "abridged")
    twin = _twins.get(key)
    if twin is None and not exact:
        twin = _twins.get(abridged_key)
    if twin is None:
        with nothing_drawn():
            twin = None if exact else _kept(abridged_key, _abridged_twin(builder, reason, modules))
            if twin is None:
                twin = _kept(key, _twin(builder, reason))
    return twin
