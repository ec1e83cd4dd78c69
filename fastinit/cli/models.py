"""A model as the command line names it -> the model on the meta device, and a plan for it.

A name is that of a published architecture, the path of a transformers config.json, or `module:callable`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.capture.contexts import deferred
from fastinit.cli.architectures import ARCHITECTURES
from fastinit.cli.mistakes import Mistake
from fastinit.errors import ParameterError
from fastinit.meta.allocation import buffers_like_weights
from fastinit.model import plan
from fastinit.plans.planned import Plan
from fastinit.recipes.files import Recipe, load_recipe, recipe_from_data
from fastinit.run.names import named_modules, named_parameters

DTYPES = ("float32", "bfloat16", "float16", "float64")


class Named(NamedTuple):
    """What a command line says of a model, and enough to build it again.

    `config` is the text of the config.json, and `rules` the recipe of a file, as JSON; None where there is none.
    """

    model: str
    config: str | None
    scheme: str | None
    rules: str | None
    seed: int
    dtype: str | None


class Planned(NamedTuple):
    """A model on the meta device with its plan, and the name of the scheme or recipe that the plan follows."""

    model: nn.Module
    plan: Plan
    scheme: str


def named(
    model: str, *, scheme: str | None = None, rules: str | None = None, seed: int = 0, dtype: str | None = None
) -> Named:
    """What the arguments say; files that they name are read now.

    Raises:
        Mistake: a file cannot be read.
    """
    config = None
    if model.endswith(".json"):
        config = _read(Path(model), "MODEL")
    recipe = None
    if rules is not None:
        try:
            recipe = load_recipe(rules).to_json(indent=None)
        except (OSError, ValueError) as error:
            raise Mistake(f"--rules: {error}") from error
    return Named(model, config, scheme, recipe, seed, dtype)


def planned(given: Named) -> Planned:
    """Build a model on the meta device and plan it.

    Raises:
        Mistake: nobody knows the model, its own code fails, or the plan refuses it.
    """
    model, default = _built(given)
    scheme: str | Recipe = given.scheme or default
    followed = given.scheme or default
    if given.rules is not None:
        recipe = recipe_from_data(json.loads(given.rules))
        followed = recipe.name or "the recipe given"
        if given.scheme is not None:
            recipe = Recipe(given.scheme, recipe.rules, recipe.fan, recipe.name, recipe.source)
            followed = f"{given.scheme}, with the rules of the recipe"
        scheme = recipe
    if given.dtype is not None:
        _change_dtype(model, getattr(torch, given.dtype))
    try:
        return Planned(model, plan(model, scheme, seed=given.seed), followed)
    except (ParameterError, ValueError, TypeError) as error:
        raise Mistake(str(error)) from error


def _built(given: Named) -> tuple[nn.Module, str]:
    """The model on the meta device, and the scheme that it gets where none is asked for."""
    if given.config is not None:
        return _deferred(_of_config(given.config, given.model), given.model), "own"
    if ":" in given.model:
        found = _of_callable(given.model)
        if isinstance(found, nn.Module):
            return found, "own"
        return _deferred(found, given.model), "own"
    architecture = ARCHITECTURES.get(given.model.lower())
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise Mistake(
            f"MODEL: expected module:callable, a path to a config.json, or one of {known}; got {given.model!r}"
        )
    return _deferred(architecture.build, given.model), architecture.preset


def _deferred(build: Callable[[], Any], name: str) -> nn.Module:
    try:
        with deferred():
            model = build()
    except Exception as error:  # of the user's own code
        raise Mistake(f"MODEL: {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise Mistake(f"MODEL: expected {name} to return a torch.nn.Module, got {type(model).__name__}")
    return model


def _of_callable(given: str) -> Any:
    where, _, attribute = given.rpartition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        found: Any = _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # of the user's own code
        raise Mistake(f"MODEL: cannot import {where!r}: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Mistake(f"MODEL: {where!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise Mistake(f"MODEL: expected {given} to be callable, got {type(found).__name__}")
    return found


def _module_of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _of_config(text: str, name: str) -> Callable[[], Any]:
    """The constructor of the model that a transformers config describes. Code of the Hub is never run."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise Mistake(f"MODEL: {name} is no valid JSON: {error}") from error
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str):
        raise Mistake(f"MODEL: expected a transformers config with a model_type, got {name}")
    try:
        import transformers
    except ImportError as error:
        raise Mistake("MODEL: a config.json needs transformers; pip install transformers") from error
    if kind not in transformers.CONFIG_MAPPING:
        raise Mistake(f"MODEL: the transformers that is installed knows no model_type {kind!r}")
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:
        raise Mistake(f"MODEL: {name}: {type(error).__name__}: {error}") from error
    for class_name in data.get("architectures") or ():
        if isinstance(class_name, str) and isinstance(getattr(transformers, class_name, None), type):
            maker: Any = getattr(transformers, class_name)
            return lambda: maker(config)
    auto: Any = transformers.AutoModel
    return lambda: auto.from_config(config)


def _change_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the floating-point parameters a dtype, and the buffers that follow weights, as materialize_ does."""
    modules = named_modules(model)
    alike = buffers_like_weights(each.module for each in modules)
    buffers = [buffer for each in modules for buffer in each.module._buffers.values() if id(buffer) in alike]
    for tensor in (*(parameter for _, _, parameter in named_parameters(model)), *buffers):
        if tensor is not None and tensor.is_floating_point():
            on_meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
            tensor.data = on_meta if tensor.is_meta else tensor.detach().to(dtype)


def _read(path: Path, argument: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{argument}: cannot read {path}: {error}") from error
