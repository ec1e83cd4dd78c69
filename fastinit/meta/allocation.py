"""Gives memory to a model that was built on the meta device. Others write values to it. Nothing is zeroed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from fastinit import _torch
from fastinit._torch import BATCH_NORMS, fsdp_parameters, wraps_others
from fastinit.errors import ParameterError, warn
from fastinit.run.index_maps import extent, overlaps_itself
from fastinit.run.memory import Span, check_overlaps, span_from
from fastinit.run.names import NamedModule, named_modules
from fastinit.run.parametrized import SpectralNorm


class _Found(NamedTuple):
    """A parameter or buffer, the first of its names, and all the places where modules have it."""

    name: str
    tensor: torch.Tensor
    places: list[tuple[nn.Module, str]]


def allocate_(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None, *, recurse: bool = True
) -> None:
    """Give every parameter and every buffer of `model` that is on the meta device memory on `device`.

    The memory is left as it comes, never zeroed. A parameter keeps its strides, its mesh and placements if it is a
    DTensor, its type, attributes, hooks and `requires_grad`. It stays the same object, so ties, optimizers and lists
    keep it. If an autograd graph has it, or something refers weakly to a DTensor, torch cannot exchange the memory.
    Then a new parameter takes its place in all modules of `model`, and a warning names it. The gradient is dropped, and
    so is `_is_hf_initialized`, because the new memory holds no loaded weight.

    Parameters that have memory already are left alone, whatever their device and dtype. Buffers that have memory are
    moved to `device`. A parameter that FSDP2 offloads goes to the CPU.

    Args:
        model: any module, before or after `fully_shard`, `parallelize_module` or a split into stages.
        device: where the memory is made; not meta.
        dtype: the dtype of the floating-point parameters; None: each keeps its own. Integer and complex parameters
            always keep theirs. So do buffers, since frequencies of a rotary embedding need their digits. The exceptions
            are buffers that torch wants in the dtype of a weight: statistics of a normalisation, and buffers of a
            parametrisation.
        recurse: False: only the parameters and buffers of `model` itself, without its children's.

    Raises:
        TypeError, ValueError: a parameter or buffer, which the message names, cannot be allocated: it is lazy, not
            dense, or shares memory with another one without being the same object. Nothing is changed then.
    """
    if device.type == "meta":
        raise ValueError("device: expected one with memory, got meta")
    modules = named_modules(model) if recurse else [NamedModule("", "", model)]
    parameters = _found(modules, "_parameters")
    buffers = _found(modules, "_buffers")
    _check([*parameters, *buffers], parameters)
    alike = buffers_like_weights(each.module for each in modules)
    kept = []
    with torch.no_grad(), _not_filled():
        for each in modules:
            _cut_graphs(each.module)
        offloaded = _offloaded(each.module for each in modules)
        for found in parameters:
            if found.tensor.is_meta:
                at = torch.device("cpu") if id(found.tensor) in offloaded else device
                kept.append(_allocate_parameter(found, at, dtype))
        for found in buffers:
            _allocate_buffer(found, device, dtype if id(found.tensor) in alike else None)
        if kept:
            _account_again(each.module for each in modules)
    for restore in kept:
        restore()


def _found(modules: Iterable[NamedModule], kind: str) -> list[_Found]:
    """Every parameter, or every buffer, once, in the order of the model."""
    found: dict[int, _Found] = {}
    for each in modules:
        for own_name, tensor in getattr(each.module, kind).items():
            if tensor is not None:
                name = each.names_of(own_name)[0]
                found.setdefault(id(tensor), _Found(name, tensor, [])).places.append((each.module, own_name))
    return list(found.values())


def _check(every: Iterable[_Found], parameters: Iterable[_Found]) -> None:
    lazy = [found.name for found in every if nn.parameter.is_lazy(found.tensor)]
    if lazy:
        raise ValueError(f"{', '.join(lazy)}: lazy, and without a shape; run a forward pass first")
    spans: dict[int, list[tuple[Span, str]]] = {}
    for name, tensor, _ in parameters:
        if not tensor.is_meta:
            continue
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
            kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else f"layout {tensor.layout}"
            raise ParameterError(name, f"expected a dense (strided) tensor, got {kind}")
        if wraps_others(tensor) or tensor.numel() == 0:
            continue
        if overlaps_itself(tensor):
            raise ParameterError(
                name,
                f"several elements share memory (shape {tuple(tensor.shape)}, strides {tensor.stride()}), as after "
                "expand(); clone() it",
            )
        begin = int(tensor.storage_offset()) * tensor.element_size()
        span = span_from(begin, extent(tensor), tensor)
        spans.setdefault(_torch.storage_key(tensor), []).append((span, name))
    for sharing in spans.values():
        check_overlaps(sharing)


def buffers_like_weights(modules: Iterable[nn.Module]) -> set[int]:
    """Buffers that torch expects in the dtype of a weight of the same module."""
    found: set[int] = set()
    for module in modules:
        if isinstance(module, (*BATCH_NORMS, parametrize.ParametrizationList)):
            found |= {id(buffer) for buffer in module.buffers()}
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                found |= {id(module._buffers[hook.name + ending]) for ending in ("_u", "_v")}
    return found


@contextmanager
def _not_filled() -> Iterator[None]:
    """Keep deterministic algorithms from filling new memory. All of it is written later."""
    setting: Any = torch.utils.deterministic
    before = setting.fill_uninitialized_memory
    setting.fill_uninitialized_memory = False
    try:
        yield
    finally:
        setting.fill_uninitialized_memory = before


def _cut_graphs(module: nn.Module) -> None:
    """Let the weights that hooks have computed on meta go their own way: their graphs hold the originals."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            computed = module.__dict__.get(hook.name)
            if isinstance(computed, torch.Tensor) and computed.is_meta:
                module.__dict__[hook.name] = computed.detach()


def _offloaded(modules: Iterable[nn.Module]) -> set[int]:
    """Parameters that FSDP2 keeps on the CPU and brings to the device when it computes."""
    return {id(each.sharded_param) for module in modules for each in fsdp_parameters(module) if each.offload_to_cpu}


def _empty_like(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    """New memory for `tensor`: its strides, its type, its mesh and placements."""
    given = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
    empty = torch.empty_like(tensor, device=device, dtype=given)
    if wraps_others(tensor):
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(empty, requires_grad=tensor.requires_grad)
        return empty.requires_grad_(tensor.requires_grad)
    return _torch.typed_like(tensor, empty)


def _attributes(tensor: torch.Tensor) -> dict[str, Any]:
    return {key: value for key, value in tensor.__dict__.items() if key != "_is_hf_initialized"}


def _allocate_parameter(found: _Found, device: torch.device, dtype: torch.dtype | None) -> Callable[[], None]:
    """Give a parameter memory, and return a function that restores its attributes and hooks."""
    parameter: Any = found.tensor
    attributes = _attributes(parameter)
    hooks = _torch.gradient_hooks(parameter)
    fresh: Any = _empty_like(parameter, device, dtype)
    try:
        _torch.take_memory(parameter, fresh)
        allocated = parameter
    except RuntimeError:
        allocated = fresh
        warn(
            f"{found.name}: an autograd graph or a weak reference has the parameter on meta, so a new one takes its "
            "place in the model; whoever holds the old one, such as an optimizer, must take the new one"
        )
        for module, own_name in found.places:
            module._parameters[own_name] = allocated

    def restore() -> None:
        allocated.__dict__.pop("_is_hf_initialized", None)
        allocated.__dict__.update(attributes)
        _torch.set_gradient_hooks(allocated, hooks)

    return restore


def _allocate_buffer(found: _Found, device: torch.device, dtype: torch.dtype | None) -> None:
    buffer = found.tensor
    if buffer.is_meta:
        moved = _empty_like(buffer, device, dtype)
    elif wraps_others(buffer):
        return  # its mesh says where it is
    else:
        moved = buffer.to(device)
    if moved is not buffer:
        moved.__dict__.update(_attributes(buffer))
        for module, own_name in found.places:
            module._buffers[own_name] = moved


def _account_again(modules: Iterable[nn.Module]) -> None:
    """Let FSDP2 look at its shards again."""
    for module in modules:
        for each in fsdp_parameters(module):
            # Module.to and to_empty do the same. It pads and pins the shard. The first forward pass would otherwise do
            # that, and exchange the memory of shards that somebody may hold by then.
            each.reset_sharded_param()
