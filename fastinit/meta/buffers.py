"""Computes the values of the buffers of a model that was built on the meta device.

Parameters are initialised anew, but a buffer has one right value, which new memory does not hold. The value is computed
here before anything is allocated, on the CPU and by the module's own code. The parameters stay on the meta device, so
this costs and disturbs nothing. If nobody can compute a buffer, an error names it.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from fastinit._torch import ORTHOGONALS, SPECTRAL_NORMS, wraps_others
from fastinit.capture.tapes import tape_of
from fastinit.errors import warn
from fastinit.meta.buffer_ways import BUFFER_METHODS, MODULE_METHODS, Way, conventional, method, own_ways, rotary
from fastinit.rules.select import KEEP, Rule, Selector
from fastinit.run.names import named_modules
from fastinit.run.parametrized import POWER_ITERATIONS, SpectralNorm
from fastinit.run.streams import derive_stream

_RECORDED = "recorded when it was built"


class _Place(NamedTuple):
    module: nn.Module
    own_name: str
    is_buffer: bool  # or a plain attribute

    def holder(self) -> dict[str, Any]:
        holder: dict[str, Any] = self.module._buffers if self.is_buffer else self.module.__dict__
        return holder


class _Lost:
    """A buffer without memory (or a tensor that is a plain attribute): its places in the model, and its value."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.tensor = tensor
        self.places: list[_Place] = []
        self.blank: torch.Tensor | None = None  # stands in for it while modules compute
        self.value: torch.Tensor | None = None
        self.way = ""  # how the value was found; empty: it has not been found
        self.failed: list[str] = []

    @property
    def module(self) -> nn.Module:
        return self.places[0].module

    @property
    def own_name(self) -> str:
        return self.places[0].own_name

    def described(self) -> str:
        size = "x".join(map(str, self.tensor.shape)) or "scalar"
        kind = "buffer" if self.places[0].is_buffer else "attribute"
        failed = "".join(f"; {each}" for each in self.failed)
        return f"{self.name} ({kind} of {type(self.module).__name__}, {self.tensor.dtype}, {size}{failed})"


class Restoration:
    """Values for the buffers of a model that are on the meta device, to be written once the buffers have memory.

    `reasons` tells for the canonical name of each buffer how its value was found.
    """

    def __init__(self, lost: Sequence[_Lost], modules: Sequence[nn.Module]) -> None:
        self._lost = lost
        self._modules = modules
        self._versions: dict[int, int] = {}
        self._recorded = {(place.module, place.own_name)
                          for each in lost if each.way == _RECORDED for place in each.places}  # fmt: skip
        self.reasons = {each.name: each.way for each in lost}
        self._without_base = [(chain, each) for chain in modules for each in _without_base(chain)]

    @torch.no_grad()
    def restore_(self, device: torch.device, modules: Container[nn.Module] | None = None) -> None:
        """Write the values, once `allocate_` has given the buffers memory. Plain attributes are put on `device`.

        With `modules`, only buffers that one of these modules is the first to hold.
        """
        for each in self._lost:
            if modules is not None and each.module not in modules:
                continue
            buffers = [place.holder()[place.own_name] for place in each.places if place.is_buffer]
            target = buffers[0] if buffers else None
            if target is not None and target.is_meta:
                raise ValueError(f"{each.name}: is on the meta device still; allocate the model first")
            if target is None and each.value is not None:
                target = each.value.to(device, each.tensor.dtype)
            elif target is not None and each.value is not None:
                _write(target, each.value)
                if not target.is_inference():
                    self._versions[id(target)] = target._version
            for place in each.places:
                if not place.is_buffer:
                    place.holder()[place.own_name] = target
        for chain, orthogonal in self._without_base:
            original: Any = chain.original
            rows = max(orthogonal.shape[-2:])
            basis = torch.eye(rows, dtype=original.dtype, device=original.device)
            orthogonal.base = basis.expand(*orthogonal.shape[:-2], rows, rows).clone()

    def values(self) -> dict[str, torch.Tensor]:
        """The values by the canonical names of the buffers, in the buffers' dtypes, for who writes them elsewhere."""
        return {each.name: each.value.to(each.tensor.dtype) for each in self._lost if each.value is not None}

    @torch.no_grad()
    def settle_(self, own: Container[int] = ()) -> None:
        """Compute the values that follow from the parameters, once these are initialised.

        They are spectral_norm's estimates of the largest singular value, unless setting the weight has updated them,
        and the weights that the older weight_norm and spectral_norm compute before a forward pass. `own` are the ids of
        parameters that got what their author's code gives. Recorded estimates fit those already.
        """
        for module in self._modules:
            if isinstance(module, parametrize.ParametrizationList) and not self._fits(module, own):
                self._settle_parametrization(module)
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm) and self._is_as_restored(module._buffers[hook.name + "_u"]):
                    fits = id(module._parameters[hook.name + "_orig"]) in own
                    if not (fits and (module, hook.name + "_u") in self._recorded):
                        for _ in range(POWER_ITERATIONS):
                            hook.compute_weight(module, do_power_iteration=True)
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
                elif isinstance(hook, WeightNorm) and module.__dict__[hook.name].is_meta:
                    setattr(module, hook.name, hook.compute_weight(module))

    def _fits(self, chain: Any, own: Container[int]) -> bool:
        """Whether the estimates of a parametrisation were recorded together with the values of its parameters."""
        recorded = all((each, "_u") in self._recorded for each in chain if isinstance(each, SPECTRAL_NORMS))
        return recorded and all(id(each) in own for each in chain._parameters.values())

    def _settle_parametrization(self, chain: Any) -> None:
        if not any(
            isinstance(each, SPECTRAL_NORMS) and self._is_as_restored(each._buffers.get("_u")) for each in chain
        ):
            return
        values: Any = (
            (chain.original,) if chain.is_tensor else [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
        )
        for each in chain:
            training = each.training
            if isinstance(each, SPECTRAL_NORMS):
                each.train()
                for _ in range(POWER_ITERATIONS):
                    each(*values)
            each.eval()
            values = (each(*values),)
            each.train(training)

    def _is_as_restored(self, buffer: torch.Tensor | None) -> bool:
        return buffer is not None and id(buffer) in self._versions and self._versions[id(buffer)] == buffer._version


def _without_base(chain: nn.Module) -> list[Any]:
    """torch's orthogonal parametrisations that got no basis, since right_inverse does nothing on the meta device.

    They cannot compute a weight without a basis. The identity serves until setting the weight sets the basis, too.
    """
    if not isinstance(chain, parametrize.ParametrizationList):
        return []
    return [each for each in chain if isinstance(each, ORTHOGONALS) and each._buffers.get("base", chain) is None]


def _write(target: Any, value: torch.Tensor) -> None:
    if hasattr(target, "placements"):  # a DTensor
        from torch.distributed.tensor import distribute_tensor

        # Every rank has computed the whole value, so none asks another.
        mesh, placements = target.device_mesh, target.placements
        sharded = distribute_tensor(value.to(target.dtype), mesh, placements, src_data_rank=None)
        target.to_local().copy_(sharded.to_local())
    else:
        target.copy_(value)


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
    lost = _find(model)
    _check_selectors(rules, model, lost, strict)
    for each in lost:
        _replay(each, seed)
    if any(not each.way for each in lost):
        _check_whole(names)
        with _stand_ins(list(names), lost):
            search = _Search(model, lost, names, seed)
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


def _replay(each: _Lost, seed: int) -> None:
    """Take the value that was recorded when the model was built (capture/)."""
    for place in each.places:
        tape = tape_of(place.module, place.own_name)
        if tape is not None:
            with torch.no_grad():
                each.value = tape.replay(seed).clone()
            each.way = _RECORDED
            return


def _as_rules(given: Sequence[tuple[Selector, Callable[[Any], Any]]] | None) -> list[tuple[Rule, Callable[[Any], Any]]]:
    rules = []
    for pair in given or ():
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            raise TypeError(f"buffers: expected (selector, function of the module) pairs, got {pair!r}")
        rules.append((Rule(pair[0], KEEP), pair[1]))
    return rules


def _check_selectors(
    rules: Sequence[tuple[Rule, Callable[[Any], Any]]], model: nn.Module, lost: Sequence[_Lost], strict: bool
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
            raise ValueError(f"{name}: spectral_norm needs the whole weight, got a sharded one; materialise it before")


def _find(model: nn.Module) -> list[_Lost]:
    """Buffers and plain attributes that are on meta, each object once, without weights that hooks compute."""
    found: dict[int, _Lost] = {}
    for of in named_modules(model):
        module = of.module
        computed = {
            hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))
        }
        held = [(own_name, tensor, True) for own_name, tensor in module._buffers.items()]
        held += [(own_name, value, False) for own_name, value in module.__dict__.items() if own_name not in computed]
        for own_name, tensor, is_buffer in held:
            if not isinstance(tensor, torch.Tensor) or isinstance(tensor, nn.Parameter):
                continue
            if nn.parameter.is_lazy(tensor) or not tensor.is_meta:
                continue
            name = of.names_of(own_name)[0]
            found.setdefault(id(tensor), _Lost(name, tensor)).places.append(_Place(module, own_name, is_buffer))
    return list(found.values())


# Every byte of a stand-in has this value until somebody writes to it.
_BLANK = 0xA5


def _blank(like: torch.Tensor) -> torch.Tensor:
    size = like.numel() * like.element_size()
    return torch.full((size,), _BLANK, dtype=torch.uint8, device="cpu").view(like.dtype).view(like.shape)


def _is_written(blank: torch.Tensor) -> bool:
    """Whether every element of a stand-in was written, or for elements of one byte, whether any was.

    A written byte may happen to equal the blank.
    """
    same = blank.reshape(-1).view(torch.uint8).view(-1, blank.element_size()) == _BLANK
    whole = same.all(dim=1)
    return not bool(whole.all() if blank.element_size() == 1 else whole.any())


@contextmanager
def _stand_ins(modules: Sequence[nn.Module], lost: Sequence[_Lost]) -> Iterator[None]:
    """Give the modules stand-ins for their tensors, and put everything back afterwards.

    Buffers on meta become blank memory on the CPU, other buffers copies, and parameters are on meta.
    """
    kinds = ("_parameters", "_buffers", "_modules")
    before = [
        (
            module,
            dict(module.__dict__),
            [dict(module.__dict__[kind]) for kind in kinds],
            set(module._non_persistent_buffers_set),
        )
        for module in modules
    ]
    instead: dict[int, torch.Tensor] = {}
    for each in lost:
        each.blank = instead[id(each.tensor)] = _blank(each.tensor)

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in instead:
            instead[id(tensor)] = _twin(tensor)
        return instead[id(tensor)]

    try:
        for module in modules:
            for holder in (module._parameters, module._buffers, module.__dict__):
                for own_name, value in holder.items():
                    if isinstance(value, torch.Tensor):
                        holder[own_name] = stand_in(value)  # type: ignore[assignment]
            for own_name, value in module.__dict__.items():
                if own_name not in kinds:
                    module.__dict__[own_name] = _copied(value)
        yield
    finally:
        for module, attributes, held, transient in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for kind, members in zip(kinds, held, strict=True):
                module.__dict__[kind].clear()
                module.__dict__[kind].update(members)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(transient)


def _copied(value: Any) -> Any:
    """A copy of a container and of those within it, because a module's code may write to them."""
    if type(value) in (list, set, deque):
        return type(value)(map(_copied, value))
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copied(each)) for key, each in value.items())
    return copy.copy(value) if isinstance(value, (list, dict, set, deque, bytearray, np.ndarray)) else value


class _StandIn(nn.Parameter):
    """A parameter without memory."""


class _OnCpu(TorchFunctionMode):
    """Tells code that asks a stand-in for its device, to compute buffers there, that it is the CPU."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function == _DEVICE and isinstance(args[0], _StandIn):
            return torch.device("cpu")
        return function(*args, **(kwargs or {}))


_DEVICE: Any = getattr(torch.Tensor, "device").__get__  # noqa: B009 (typed as a device)


@torch.no_grad()
def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """A stand-in to write to freely: for a parameter one without memory, for a buffer a copy."""
    if nn.parameter.is_lazy(tensor):
        return tensor
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or wraps_others(tensor):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if not isinstance(tensor, nn.Parameter):
            return empty
        twin = _StandIn(empty, requires_grad=tensor.requires_grad)
        twin.__dict__.update(tensor.__dict__)
        return twin
    return tensor.detach().to("cpu", copy=True)


class _Search:
    """Goes through the ways to compute lost buffers, until all are found or no way is left."""

    def __init__(self, model: nn.Module, lost: Sequence[_Lost], names: dict[nn.Module, str], seed: int) -> None:
        self._lost = lost
        self._names = names
        self._seed = seed
        self._tried: set[tuple[str, nn.Module]] = set()
        self._ancestors: dict[nn.Module, list[nn.Module]] = {model: []}  # for each module, the nearest first
        for module in model.modules():
            for child in module.children():
                self._ancestors.setdefault(child, [module, *self._ancestors[module]])
        self._within: dict[nn.Module, list[_Lost]] = {}  # lost buffers in a module and its children
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

    def _try(self, wanted: _Lost, ways: Sequence[Way]) -> None:
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

    def _left(self) -> list[_Lost]:
        return [each for each in self._lost if not each.way]

    def _run(self, way: str, module: nn.Module, function: Callable[[], Any], wanted: Sequence[_Lost]) -> str | None:
        """Let `function` compute as many of `wanted` as it can. If it raises, return the error and take no value."""
        key = derive_stream(self._seed, self._names[module]).key
        error = None
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            torch.device("cpu"),
            _OnCpu(),
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
                _put_blank(each)
        return error


def _take(each: _Lost, way: str) -> None:
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
    if value is each.blank and not _is_written(value):
        return
    if wraps_others(value):
        each.failed.append(f"{way} gives a {type(value).__name__}, expected a plain tensor")
    elif value.shape != each.tensor.shape:
        each.failed.append(f"{way} gives shape {tuple(value.shape)}, expected {tuple(each.tensor.shape)}")
    elif _category(value.dtype) != _category(each.tensor.dtype):
        each.failed.append(f"{way} gives {value.dtype}, expected {each.tensor.dtype}")
    else:
        each.value, each.way = value.detach().clone(), way  # others may write to it again


def _put_blank(each: _Lost) -> None:
    assert each.blank is not None
    each.blank.view(-1).view(torch.uint8).fill_(_BLANK)
    for place in each.places:
        place.holder()[place.own_name] = each.blank


def _category(dtype: torch.dtype) -> str:
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else str(dtype)
