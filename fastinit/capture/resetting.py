"""Reset code: found in modules and their classes, and run on a copy of the model on meta."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from fastinit.capture.answers import ModuleTapes, agree, tapes_of_module
from fastinit.capture.builders import libraries
from fastinit.capture.constructors import Told, runs_of, set_after, set_before
from fastinit.capture.contexts import recorded
from fastinit.capture.copies import copied_on_meta
from fastinit.capture.passed import as_called, is_for_each
from fastinit.capture.recorder import Recorder
from fastinit.capture.repeats import Repeats, repeats_of
from fastinit.run.names import NamedModule


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


def read_resetting(
    modules: Sequence[NamedModule], found: dict[int, ModuleTapes], failures: dict[int, str], *, exact: bool
) -> None:
    """Run the model's reset code on a copy of the model. `modules` are all of it, itself first.

    Unless this is to be exact, a copy with a few of many equal layers is tried first.
    """
    repeats = None if exact else repeats_of([each.module for each in modules])
    of_few: dict[int, str] = {}
    read = None if repeats is None else _read(modules, repeats, of_few)
    if read is None:
        read = _read(modules, None, failures)
    else:
        failures.update(of_few)
    assert read is not None
    for key, taped in read.items():
        if (before := found.get(key)) is not None:
            taped = ModuleTapes(
                {**taped.tapes, **{name: each for name, each in before.tapes.items() if each is not None}}
            )
        found[key] = taped


def _read(
    modules: Sequence[NamedModule], repeats: Repeats | None, failures: dict[int, str]
) -> dict[int, ModuleTapes] | None:
    """The tapes of all modules. With `repeats`, one layer stands for others. None: it cannot, as it turns out."""
    copied = copied_on_meta([each.module for each in modules], () if repeats is None else repeats.groups)
    if copied is None:
        return None
    model = modules[0].module
    not_run: dict[int, str] = {}
    recorder = Recorder(0, on_meta=True)
    for tensor in copied.tensors:
        recorder.watch(tensor)

    def is_in_vain() -> bool:
        """Whether the layers that are left out have to be read."""
        return repeats is not None and (bool(failures) or recorder.has_shown or copied.names.were_asked)

    def reset() -> None:
        with torch.no_grad():
            for module, other in reversed(copied.pairs):  # as they were constructed
                if is_in_vain():
                    return
                code = _reset_code(other)
                if code is not None and code[0] == _OF_LORA:  # what its constructor calls, among much else
                    attempt(module, other, code)
                    continue
                set_to(set_before(module))
                attempt(module, other, code)
                for run in runs_of(module):
                    if code is None or run.path or run.code != code[0]:
                        of: Any = run.of(module)
                        attempt(of, copied.twins[id(of)], (str(run), partial(run.again, other)))
                set_to(set_after(module))
            code = _reset_code_of_model(copied.model)
            if code is not None and not any(run.code == code[0] and not run.path for run in runs_of(model)):
                attempt(model, copied.model, code)

    def set_to(told_of: dict[tuple[int, str], Told | None]) -> None:
        for (key, own_name), told in told_of.items():
            _set(recorder, copied.twins[key]._parameters[own_name], told)

    def attempt(of: nn.Module, other: nn.Module, code: _Code | None) -> None:
        if code is None:
            return
        name, run = code
        if run is None:
            not_run[id(of)] = f"{type(of).__name__}.{name} is not run: its constructor passes arguments that are gone"
            return
        try:
            run()
        except Exception as error:
            failures[id(of)] = cannot_run(f"{type(of).__name__}.{name}", error)
            for tensor in (*other.parameters(), *other.buffers()):  # what it wrote before it failed does not count
                recorder.forget_tensor(tensor)

    recorded(reset, recorder)
    if is_in_vain():
        return None
    taped: dict[int, ModuleTapes] = {}  # by the id of a twin
    for own in modules:
        twin = copied.twins[id(own.module)]
        if id(twin) not in taped:
            taped[id(twin)] = tapes_of_module(recorder, twin, "its reset code", partial(_canonical, own))
    if repeats is not None and not agree(repeats, copied.twins, taped):
        return None
    failures.update(not_run)
    return {id(own.module): taped[id(copied.twins[id(own.module)])] for own in modules}


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


_OF_MODULE = ("reset_parameters", "_reset_parameters")
_OF_LORA = "reset_lora_parameters"
_OF_MODEL = ("initialize_weights", "init_weights", "init_states", "initialize_parameters")


# The name of code, and how to run it; None: with arguments that are gone.
_Code = tuple[str, Callable[[], Any] | None]


def _reset_code(module: nn.Module) -> _Code | None:
    """A module's reset code, and its name: the method of the most derived class that has one."""
    of_lora: Any = getattr(module, _OF_LORA, None)
    found = _first(module, _OF_MODULE)
    if found is not None or not callable(of_lora):
        return found
    return _OF_LORA, partial(_reset_lora, module)


def _reset_lora(module: Any) -> None:
    """Run PEFT's reset code. The parts of an adapter, which have been reset before, are plain modules."""
    parts = module.lora_A, module.lora_embedding_A
    for adapter in dict.fromkeys(key for each in parts for key in each):
        module.reset_lora_parameters(adapter, True)


def _reset_code_of_model(model: nn.Module) -> _Code | None:
    """The code that a model has for all of its modules, and its name."""
    each = getattr(model, "_init_weights", None)
    if callable(each) and _takes(each, 1) and not any(hasattr(model, name) for name in _OF_MODEL[:1]):
        if is_for_each(model, "_init_weights"):
            return "_init_weights", partial(model.apply, each)
        return "_init_weights", as_called(model, "_init_weights", each)
    return _first(model, _OF_MODEL)


def _first(module: nn.Module, names: Sequence[str]) -> _Code | None:
    for name in names:
        method = getattr(module, name, None)
        if callable(method):
            run = as_called(module, name, method)
            if run is None or run is not method or _takes(method, 0):
                return name, run
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
