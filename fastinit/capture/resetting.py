"""Reset code: found in modules and their classes, and run on a copy of the model on meta."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastinit._torch import typed_like
from fastinit.capture.answers import ModuleTapes, tapes_of_module
from fastinit.capture.builders import libraries
from fastinit.capture.constructors import Told, runs_of, set_after, set_before
from fastinit.capture.contexts import recorded
from fastinit.capture.recorder import Recorder
from fastinit.distributed.held import global_shape
from fastinit.run.names import NamedModule, named_modules


def cannot_run(code: str, error: Exception) -> str:
    return f"{code} cannot run on a copy: {type(error).__name__}: {error}"


@lru_cache(maxsize=4096)
def _has_reset_code(module_type: type) -> bool:
    """Whether a class of somebody else than torch has reset code, or overrides torch's."""
    for name in (*_OF_MODULE, *_OF_MODEL, "reset_lora_parameters", "_init_weights"):
        method = getattr(module_type, name, None)
        if callable(method) and not str(getattr(method, "__module__", "")).startswith(("torch.", "fastinit.")):
            return True
    return False


def modules_with_code(model: nn.Module) -> set[int]:
    """The ids of modules of which code of somebody else than torch tells: with reset code, or below such a module."""
    found: set[int] = set()
    for module in model.modules():
        if id(module) not in found and tells_of_all(module):
            found.update(map(id, module.modules()))
        for run in runs_of(module):
            of: Any = run.of(module)
            if id(of) not in found:
                found.update(map(id, of.modules()))
    return found


def tells_of_all(module: nn.Module) -> bool:
    kind: Any = type(module)
    return tells(kind) or "pretrained_cfg" in module.__dict__


def tells(module_type: type) -> bool:
    return _has_reset_code(module_type) or bool(libraries(module_type))


def read_resetting(model: nn.Module, found: dict[int, ModuleTapes], failures: dict[int, str]) -> None:
    """Run the model's reset code on a copy of the model."""
    twin, tensors = _copy_on_meta(model)
    recorder = Recorder(0, on_meta=True)
    for tensor in tensors:
        recorder.watch(tensor)

    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    twins = {id(module): other for module, other in pairs}

    def reset() -> None:
        with torch.no_grad():
            for module, other in reversed(pairs):  # as they were constructed
                set_to(set_before(module))
                code = _reset_code(other)
                attempt(module, other, code)
                for run in runs_of(module):
                    if code is None or run.path or run.code != code[0]:
                        of: Any = run.of(module)
                        attempt(of, twins[id(of)], (str(run), partial(run.again, other)))
                set_to(set_after(module))
            code = _reset_code_of_model(twin)
            if code is not None and not any(run.code == code[0] and not run.path for run in runs_of(model)):
                attempt(model, twin, code)

    def set_to(told_of: dict[tuple[int, str], Told | None]) -> None:
        for (key, own_name), told in told_of.items():
            _set(recorder, twins[key]._parameters[own_name], told)

    def attempt(of: nn.Module, other: nn.Module, code: tuple[str, Callable[[], Any]] | None) -> None:
        if code is None:
            return
        try:
            code[1]()
        except Exception as error:
            failures[id(of)] = cannot_run(f"{type(of).__name__}.{code[0]}", error)
            for tensor in (*other.parameters(), *other.buffers()):  # how far it came is nobody's business
                recorder.forget_tensor(tensor)

    recorded(reset, recorder)
    for own, other in zip(named_modules(model), named_modules(twin), strict=True):
        taped = tapes_of_module(recorder, other.module, "its reset code", partial(_canonical, own))
        if (before := found.get(id(own.module))) is not None:
            taped = ModuleTapes(
                {**taped.tapes, **{name: each for name, each in before.tapes.items() if each is not None}}
            )
        found[id(own.module)] = taped


def _set(recorder: Recorder, parameter: Any, told: Told | None) -> None:
    """Let a parameter of the copy be what a constructor says in so many words."""
    if told is None:  # it draws, or nobody knows what it does
        return
    if told.value is None:
        recorder.forget_tensor(parameter)
    else:
        parameter.fill_(told.value)


def _canonical(of: NamedModule, own_name: str) -> str:
    return of.names_of(own_name)[0]


def _copy_on_meta(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A deep copy of a model whose tensors are on meta, and these tensors. Nothing of the model is shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers, module.__dict__):
            for tensor in holder.values():
                if isinstance(tensor, Tensor) and id(tensor) not in memo:
                    if holder is module.__dict__ and _is_number(tensor):
                        memo[id(tensor)] = tensor.clone()  # strides of a head, say, of which its biases follow
                    else:
                        memo[id(tensor)] = _on_meta(tensor)
        for each in module.__dict__.values():  # a module has a dozen, mostly for hooks, and each takes deepcopy long
            if type(each) in (dict, OrderedDict) and not each:
                memo[id(each)] = type(each)()
    tensors = [each for each in memo.values() if isinstance(each, Tensor) and each.is_meta]
    twin: nn.Module = copy.deepcopy(model, memo)
    for module in twin.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    return twin, tensors


_FEW = 64


def _is_number(tensor: Tensor) -> bool:
    """Whether an attribute is a few numbers that its author has computed, and nothing that is trained."""
    is_plain = type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided
    return is_plain and not tensor.requires_grad and tensor.numel() <= _FEW


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty(global_shape(tensor), dtype=tensor.dtype, device="meta")
    twin = typed_like(tensor, empty) if type(tensor) is nn.Parameter else empty
    twin.__dict__.update({key: value for key, value in tensor.__dict__.items() if key != "_is_hf_initialized"})
    return twin


_OF_MODULE = ("reset_parameters", "_reset_parameters")
_OF_MODEL = ("initialize_weights", "init_weights", "init_states", "initialize_parameters")


def _reset_code(module: nn.Module) -> tuple[str, Callable[[], Any]] | None:
    """A module's reset code, and its name: the method of the most derived class that has one."""
    of_lora: Any = getattr(module, "reset_lora_parameters", None)
    found = _first(module, _OF_MODULE)
    if found is not None or not callable(of_lora):
        return found
    return "reset_lora_parameters", partial(_reset_lora, module)


def _reset_lora(module: Any) -> None:
    """Run PEFT's reset code. The parts of an adapter, which have been reset before, are plain modules."""
    parts = module.lora_A, module.lora_embedding_A
    for adapter in dict.fromkeys(key for each in parts for key in each):
        module.reset_lora_parameters(adapter, True)


def _reset_code_of_model(model: nn.Module) -> tuple[str, Callable[[], Any]] | None:
    """The code that a model has for all of its modules, and its name."""
    each = getattr(model, "_init_weights", None)
    if callable(each) and _takes(each, 1) and not any(hasattr(model, name) for name in _OF_MODEL[:1]):
        return "_init_weights", partial(model.apply, each)
    return _first(model, _OF_MODEL)


def _first(module: nn.Module, names: Sequence[str]) -> tuple[str, Callable[[], Any]] | None:
    for name in names:
        method = getattr(module, name, None)
        if callable(method) and _takes(method, 0):
            return name, method
    return None


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with this number of arguments."""
    if isinstance(function, MethodType) and isinstance(function.__func__, FunctionType):
        return _method_takes(function.__func__, count + 1)  # of a class, which many modules have
    return _binds(function, count)


@lru_cache(maxsize=4096)
def _method_takes(function: FunctionType, count: int) -> bool:
    return _binds(function, count)


def _binds(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True
