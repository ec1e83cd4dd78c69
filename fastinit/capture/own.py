"""What a model's own code gives each of its parameters: from its tapes, or from its code, run on a copy on meta."""

from __future__ import annotations

import copy
import inspect
import random
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from types import FunctionType, MethodType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastinit._torch import typed_like
from fastinit.capture.constructors import told_of
from fastinit.capture.contexts import name_draws, recorded
from fastinit.capture.graph import Geometry, View, draws_of
from fastinit.capture.recorder import Recorder
from fastinit.capture.repeats import built_without, inner, pairs, repeats_of
from fastinit.capture.tapes import Tape, Taped, distribution_of, has_tapes, is_complete, tape_of, with_tapes
from fastinit.distributed.held import global_shape
from fastinit.run.names import NamedModule, named_modules, unwrapped
from fastinit.schemes.distributions import Constant, Distribution

Kind = Literal["draw", "constant", "pattern", "table", "unknown"]


class Author(NamedTuple):
    """What a module's own code gives a parameter.

    kind: "draw": random numbers. "constant": one value. "pattern": a known arrangement, such as a diagonal. "table":
        values that its code computes. "unknown": nothing is known.
    distribution: None if it is unknown.
    reason: the code that tells, or why none does.
    """

    kind: Kind
    distribution: Distribution | None
    reason: str


def _author(tape: Tape, reason: str) -> Author:
    distribution = distribution_of(tape)
    if isinstance(distribution, Taped) and tape.view.at.shape.numel() <= _FEW:
        return _looked_at(distribution, reason)
    if distribution.is_random():
        return Author("draw", distribution, reason)
    if isinstance(distribution, Constant):
        return Author("constant", distribution, reason)
    return Author("table" if isinstance(distribution, Taped) else "pattern", distribution, reason)


_FEW = 2**16  # elements that are soon computed; code that sets elements one by one sets fewer


def _looked_at(distribution: Taped, reason: str) -> Author:
    """The answer for the steps that make a small tensor: its values tell what the steps alone do not.

    What random steps have drawn may be overwritten element by element, so that the seed changes nothing.
    """
    values = distribution.tape.replay(0)
    if distribution.is_random() and not torch.equal(values, distribution.tape.replay(1)):
        return Author("draw", distribution, reason)
    values = values.flatten()
    if values.numel() > 0 and not values.is_complex() and bool((values == values[0]).all()):
        return Author("constant", Constant(values[0].item()), reason)
    return Author("table", distribution, reason)


_NO_CONSTANTS: dict[str, Author] = {}


class Authors:
    """Answers for one model. Its code is run when somebody first asks, and never on the model itself.

    `everything`: whether the code of torch's own classes is asked throughout, in one go with the rest.
    `exact`: whether every layer is read. Else, what a few of many equal layers agree on goes for all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        everything: bool = False,
        exact: bool = True,
        modules: Sequence[NamedModule] | None = None,
    ) -> None:
        self._model = model
        self._exact = exact
        self._exactly: Authors | None = None
        self._named = named_modules(model) if modules is None else modules
        self._modules = [each.module for each in self._named]
        self._everything = everything
        self._with_code: set[int] | None = None
        self._read: dict[int, _Taped] | None = None  # by the ids of modules
        self._failures: dict[int, str] = {}  # id of a module, or of the model -> what its code raised
        self._known: dict[tuple[int, str], Author] = {}
        self._constants: dict[int, dict[str, Author]] | None = None  # by the ids of modules

    def exactly(self) -> Authors:
        """The same, with every layer read."""
        if self._exact:
            return self
        if self._exactly is None:
            self._exactly = Authors(self._model, everything=self._everything, modules=self._named)
        return self._exactly

    def tell_of(self, module: nn.Module) -> bool:
        """Whether code of somebody else than torch tells of a module: its tapes, its class or one around it."""
        if self._with_code is None:
            self._with_code = self._found_with_code() if self._any_has_code() else set()
            self._with_code.update(map(id, with_tapes(self._modules)))
        return bool(self._with_code) and id(module) in self._with_code

    def _found_with_code(self) -> set[int]:
        model = unwrapped(self._model)
        if model is self._model and _tells_of_all(model):  # as nearly always: one walk is spared
            return set(map(id, self._modules))
        return _with_code(model)

    def _any_has_code(self) -> bool:
        """Whether any module, or a wrapper around it, may have code of somebody else than torch."""
        kinds: set[Any] = set(map(type, self._modules))
        return any(map(_tells, kinds)) or any("pretrained_cfg" in each.__dict__ for each in self._modules)

    def constants_of(self, module: nn.Module) -> Mapping[str, Author]:
        """The parameters of a module of which constructors say, in so many words, that they are constant."""
        if self._constants is None:
            self._constants = {}
            for (key, name), told in told_of(self._modules).items():
                distribution = None if told.value is None else Constant(told.value)
                answer = Author("constant", distribution, "as its constructor is written")
                self._constants.setdefault(key, {})[name] = answer
        return self._constants.get(id(module), _NO_CONSTANTS)

    def of(self, module: nn.Module, own_name: str) -> Author:
        """What the code gives the parameter `own_name` of `module`."""
        key = id(module), own_name
        if key not in self._known:
            self._known[key] = self._found(module, own_name)
        return self._known[key]

    def told(self, module: nn.Module) -> Hashable:
        """What the code gives all parameters of `module`: equal where two modules are told the same."""
        if not has_tapes(module):
            taped = self._taped(module)
            return None if taped is None else taped.told()
        authors = ((own_name, self.of(module, own_name)) for own_name in module._parameters)
        return _interned(tuple((own_name, each.kind, each.distribution) for own_name, each in authors))

    def _found(self, module: nn.Module, own_name: str) -> Author:
        tape = tape_of(module, own_name)
        if tape is not None:
            if not is_complete(tape):
                return Author("unknown", None, "its code has not written to all of it")
            return _author(tape, "as recorded when it was built")
        constant = self.constants_of(module).get(own_name)
        if constant is not None and not self.tell_of(module):  # what torch's reset code did has been overwritten
            return constant
        taped = self._taped(module)
        found = None if taped is None else taped.author(own_name)
        if found is not None or constant is not None:
            return found or constant  # type: ignore[return-value]
        failed = self._failures.get(id(module))
        if not failed and self._failures:
            failed = self._failures.get(id(unwrapped(self._model)))
        return Author("unknown", None, failed or "no code of its own sets it")

    def _taped(self, module: nn.Module) -> _Taped | None:
        """The tapes of the code that tells of a module; None if none tells."""
        if not self._everything and not self.tell_of(module):
            return self._attempt(module).get(id(module)) if _is_of_torch(type(module)) else None
        if self._read is None:
            self._read = self._attempt(unwrapped(self._model))
        return self._read.get(id(module))

    def _attempt(self, model: nn.Module) -> dict[int, _Taped]:
        try:
            modules = self._named if model is self._model else named_modules(model)
            return _read(modules, self._failures, exact=self._exact)
        except Exception as error:
            self._failures[id(model)] = _cannot_run("copy.deepcopy", error)
            return {}

    def failures(self) -> list[str]:
        """What was raised by code of the model that was run on a copy, each with the name of its module."""
        raised = {**self._failures, **({} if self._exactly is None else self._exactly._failures)}
        if not raised:
            return []
        return [
            f"{each.name}: {raised[id(each.module)]}" if each.name else raised[id(each.module)]
            for each in named_modules(self._model)
            if id(each.module) in raised
        ]


def _cannot_run(code: str, error: Exception) -> str:
    return f"{code} cannot run on a copy: {type(error).__name__}: {error}"


_of_thread = threading.local()


def check_not_read() -> None:
    """Raise RuntimeError if the caller is a model's own code, which is being read on a copy."""
    if getattr(_of_thread, "is_reading", False):
        raise RuntimeError("it calls fastinit itself, which decides without it")


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Keep the states of the random number generators of Python and NumPy. torch's draws are recorded, not made."""
    python, numpy = random.getstate(), np.random.get_state()
    _of_thread.is_reading = True
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _of_thread.is_reading = False
        random.setstate(python)
        np.random.set_state(numpy)


class _Taped:
    """The tapes of one module's parameters, by their names in it, and which code each is of; None: no code sets it."""

    __slots__ = ("_authors", "_told", "names", "tapes")

    def __init__(self, tapes: dict[str, tuple[Tape, str] | None]) -> None:
        self.names = tuple(tapes)
        self.tapes = tapes
        self._authors: dict[str, Author] = {}
        self._told: Hashable = None

    def author(self, own_name: str) -> Author | None:
        """The answer for a parameter; None if its code does not set it."""
        found = self._authors.get(own_name)
        if found is None:
            tape = self.tapes.get(own_name)
            if tape is None:
                return None
            found = self._authors[own_name] = _author(*tape)
        return found

    def agrees(self, other: _Taped) -> bool:
        """Whether another module is given the same."""
        return self.told() is other.told() or (
            self.names == other.names and all(_agree(self.author(each), other.author(each)) for each in self.names)
        )

    def counts_calls(self) -> bool:
        """Whether random numbers of a parameter follow from the number of calls before, and not from its name."""
        tapes = (each[0] for each in self.tapes.values() if each is not None)
        return any(draw.model is None for tape in tapes for draw in draws_of(tape.view.node))

    def told(self) -> Hashable:
        """All answers."""
        if self._told is None:
            self._told = _interned(tuple(
                (own_name, "unknown", None) if (found := self.author(own_name)) is None else (own_name, *found[:2])
                for own_name in self.names
            ))  # fmt: skip
        return self._told


def _agree(one: Author | None, other: Author | None) -> bool:
    if one is None or other is None or one.kind != other.kind or one.distribution == other.distribution:
        return one is other or (one is not None and other is not None and one[:2] == other[:2])
    both = one.distribution, other.distribution
    tables = [each.tape.replay(0) for each in both if type(each) is Taped and one.kind == "table"]
    return len(tables) == 2 and torch.equal(*tables)


class _Told:
    """Answers for all parameters of a module. Equal answers are one object, so that to compare them takes no time."""

    __slots__ = ("__weakref__", "answers")

    def __init__(self, answers: Any) -> None:
        self.answers = answers


_all_told: weakref.WeakValueDictionary[Any, _Told] = weakref.WeakValueDictionary()


def _interned(answers: tuple[Any, ...]) -> Hashable:
    try:
        return _all_told.setdefault(answers, _Told(answers))
    except TypeError:  # a distribution of somebody else that cannot be hashed
        return _Told(answers)


def _read(modules: Sequence[NamedModule], failures: dict[int, str], *, exact: bool) -> dict[int, _Taped]:
    """For each module whose parameters the model's code sets: their tapes. `modules` are all, the model first.

    What the code of a module raises is added to `failures`.
    """
    found: dict[int, _Taped] = {}
    with _nothing_drawn():
        rebuilt: set[str] = set()
        for each in modules:
            if "" in rebuilt:
                break
            if any(each.name == name or each.name.startswith(f"{name}.") for name in rebuilt):
                continue
            builder = _builder(each.module)
            if builder is None:
                continue
            within = modules if each.module is modules[0].module else named_modules(each.module)
            if _read_building(within, builder, found, exact=exact):
                rebuilt.add(each.name)
        if "" not in rebuilt:
            _read_resetting(modules[0].module, found, failures)
    return found


class _Builder(NamedTuple):
    """How to build a module of another library again. Builders with equal keys build equal models."""

    key: tuple[Any, ...]
    build: Callable[[], nn.Module]


@lru_cache(maxsize=4096)
def _libraries(module_type: type) -> frozenset[str]:
    """The classes of other libraries that a class is derived from and that say how they are built."""
    names = {base.__name__ for base in module_type.__mro__ if not base.__module__.startswith("torch.")}
    return frozenset(names & {"PeftModel", "PreTrainedModel", "ModelMixin", "ConfigMixin"})


def _builder(module: Any) -> _Builder | None:
    """How to build a module of another library again; None where nobody says."""
    kind: Any = type(module)
    of = _libraries(kind)
    own: Any = next(base for base in kind.__mro__ if not base.__module__.startswith("torch."))
    if "PeftModel" in of and (peft := sys.modules.get("peft")) is not None:
        base = _builder(module.get_base_model())
        if base is None:
            return None
        configs = module.peft_config
        return _Builder((*base.key, repr(configs)), partial(_peft_model, peft, base.build, configs))
    if "PreTrainedModel" in of and getattr(module, "config", None) is not None:
        return _Builder((own, repr(module.config.to_dict())), partial(own, copy.deepcopy(module.config)))
    if {"ModelMixin", "ConfigMixin"} <= of:  # of diffusers
        return _Builder((own, repr(module.config)), partial(own.from_config, dict(module.config)))
    architecture = module.__dict__.get("pretrained_cfg")
    if isinstance(architecture, dict) and isinstance(architecture.get("architecture"), str):
        timm: Any = sys.modules.get("timm")  # it is loaded if it has made the model
        if timm is None:
            return None
        name, classes = architecture["architecture"], getattr(module, "num_classes", None)
        return _Builder((own, name, classes), partial(timm.create_model, name, num_classes=classes))
    return None


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
    taped: _Taped


_Twin = dict[str, _TwinModule]  # by the canonical names of modules that have parameters
_twins: dict[tuple[Any, ...], _Twin] = {}  # the latest ones: a model is often planned twice
_MOST_TWINS = 4


def _kept(key: tuple[Any, ...], twin: _Twin | None) -> _Twin | None:
    if twin is not None:
        while len(_twins) >= _MOST_TWINS:
            _twins.pop(next(iter(_twins)))
        _twins[key] = twin
    return twin


def _twin(builder: _Builder, reason: str) -> _Twin | None:
    """What is recorded when a model is built again; None if it cannot be built."""
    recorder = Recorder(0, on_meta=True)
    try:
        model = recorded(builder.build, recorder)
    except Exception:
        return None
    modules = ((each.name, each.module) for each in named_modules(model))
    return {name: _twin_module(recorder, name, module, reason) for name, module in modules if _parameters_of(module)}


def _twin_module(recorder: Recorder, name: str, module: nn.Module, reason: str) -> _TwinModule:
    shapes = {own_name: parameter.shape for own_name, parameter in _parameters_of(module).items()}
    return _TwinModule(shapes, _taped(recorder, module, reason, f"{name}.{{}}".format if name else str))


def _abridged_twin(builder: _Builder, reason: str, modules: Sequence[NamedModule]) -> _Twin | None:
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
    for name, module in ((each.name, each.module) for each in modules):
        twin = twins.get(id(module))
        if twin is None:
            return None
        if _parameters_of(twin):
            if id(twin) not in read:
                read[id(twin)] = _twin_module(recorder, name, twin, reason)
            found[name] = read[id(twin)]
    # Only a whole twin makes all calls, which some numbers follow from.
    if any(each.taped.counts_calls() for each in read.values()):
        return None
    for group in repeats.groups:
        first, *others = (twins[id(layer)] for layer in group.read())
        for each in zip(inner(first), *map(inner, others), strict=True):
            taped = [read[id(module)].taped for module in each if id(module) in read]
            if taped and not (len(taped) == len(each) and all(map(taped[0].agrees, taped[1:]))):
                return None
    return found


def _parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {own_name: each for own_name, each in module._parameters.items() if each is not None}


def _read_building(modules: Sequence[NamedModule], builder: _Builder, found: dict[int, _Taped], *, exact: bool) -> bool:
    """Build a twin of a model under the recorder. False: it cannot be built, or turns out to be another model.

    `modules` are all of the model, itself first, with their names in it.
    """
    reason = f"its class, built again from {type(modules[0].module).__name__}'s description"
    key = (*builder.key, reason, torch.get_default_dtype())
    twin = _twins.get(key)
    if twin is None and not exact:
        twin = _twins.get((*key, "abridged")) or _kept((*key, "abridged"), _abridged_twin(builder, reason, modules))
    if twin is None:
        twin = _kept(key, _twin(builder, reason))
    if twin is None:
        return False
    told: dict[int, _Taped] = {}
    for each in modules:
        if each.module._parameters and (own := _parameters_of(each.module)):
            other = twin.get(each.name)
            if other is None or other.shapes != {key: global_shape(parameter) for key, parameter in own.items()}:
                return False
            told[id(each.module)] = other.taped
    if len(told) != len(twin):
        return False
    found.update(told)
    return True


def _is_of_torch(module_type: type) -> bool:
    return module_type.__module__.startswith("torch.")


@lru_cache(maxsize=4096)
def _has_reset_code(module_type: type) -> bool:
    """Whether a class of somebody else than torch has reset code, or overrides torch's."""
    for name in (*_OF_MODULE, *_OF_MODEL, "reset_lora_parameters", "_init_weights"):
        method = getattr(module_type, name, None)
        if callable(method) and not str(getattr(method, "__module__", "")).startswith(("torch.", "fastinit.")):
            return True
    return False


def _with_code(model: nn.Module) -> set[int]:
    """The ids of modules of which code of somebody else than torch tells: with reset code, or below such a module."""
    found: set[int] = set()
    for module in model.modules():
        if id(module) not in found and _tells_of_all(module):
            found.update(map(id, module.modules()))
    return found


def _tells_of_all(module: nn.Module) -> bool:
    kind: Any = type(module)
    return _tells(kind) or "pretrained_cfg" in module.__dict__


def _tells(module_type: type) -> bool:
    return _has_reset_code(module_type) or bool(_libraries(module_type))


def _read_resetting(model: nn.Module, found: dict[int, _Taped], failures: dict[int, str]) -> None:
    """Run the model's reset code on a copy of the model."""
    twin, tensors = _copy_on_meta(model)
    recorder = Recorder(0, on_meta=True)
    for tensor in tensors:
        recorder.watch(tensor)

    def reset() -> None:
        with torch.no_grad():
            for module, other in reversed(list(zip(model.modules(), twin.modules(), strict=True))):
                attempt(module, other, _reset_code(other))
            attempt(model, twin, _reset_code_of_model(twin))

    def attempt(of: nn.Module, other: nn.Module, code: tuple[str, Callable[[], Any]] | None) -> None:
        if code is None:
            return
        try:
            code[1]()
        except Exception as error:
            failures[id(of)] = _cannot_run(f"{type(of).__name__}.{code[0]}", error)
            for tensor in (*other.parameters(), *other.buffers()):  # how far it came is nobody's business
                recorder.forget_tensor(tensor)

    recorded(reset, recorder)
    for own, other in zip(named_modules(model), named_modules(twin), strict=True):
        taped = _taped(recorder, other.module, "its reset code", partial(_canonical, own))
        if (before := found.get(id(own.module))) is not None:
            taped = _Taped({**taped.tapes, **{name: each for name, each in before.tapes.items() if each is not None}})
        found[id(own.module)] = taped


def _taped(recorder: Recorder, module: nn.Module, reason: str, name_of: Callable[[str], str]) -> _Taped:
    """The tapes of the parameters of a module. `name_of` gives their names in the model."""
    tapes: dict[str, tuple[Tape, str] | None] = {}
    for own_name, parameter in _parameters_of(module).items():
        tape = _tape(recorder, parameter, name_of(own_name))
        tapes[own_name] = None if tape is None else (tape, reason)
    return _Taped(tapes)


def _canonical(of: NamedModule, own_name: str) -> str:
    return of.names_of(own_name)[0]


def _tape(recorder: Recorder, tensor: Tensor, name: str) -> Tape | None:
    """The tape of a tensor; None if nobody has written to all of it."""
    stored = recorder.stored(tensor)
    if stored is None:
        return None
    tape = Tape(View(stored.content, Geometry.of(tensor)), name, 0)
    if not is_complete(tape):
        return None
    name_draws(stored, 0, name)
    return tape


def _copy_on_meta(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A deep copy of a model whose tensors are on meta, and these tensors. Nothing of the model is shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers, module.__dict__):
            for tensor in holder.values():
                if isinstance(tensor, Tensor) and id(tensor) not in memo:
                    memo[id(tensor)] = _on_meta(tensor)
        for each in module.__dict__.values():  # a module has a dozen, mostly for hooks, and each takes deepcopy long
            if type(each) in (dict, OrderedDict) and not each:
                memo[id(each)] = type(each)()
    tensors = [each for each in memo.values() if isinstance(each, Tensor)]
    twin: nn.Module = copy.deepcopy(model, memo)
    for module in twin.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    return twin, tensors


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
