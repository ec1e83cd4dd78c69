"""Ways to compute a module's buffers again: the module's own methods, and values that follow from a name and a shape.

buffer_search.py decides in which order they are tried, and which of their values it believes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fastinit._torch import SPECTRAL_NORMS
from fastinit.run.parametrized import SpectralNorm

# Its name, the module that it belongs to, and the function to call; None: the module has no method of that name.
Way = tuple[str, nn.Module, Callable[[], Any] | None]

# Methods that compute nothing but buffers. They are from torch's BatchNorm and InstanceNorm, timm, AReaL, torchtune and
# torchvision's Swin (whose version 2 computes a table of coordinates in the method for the bias).
BUFFER_METHODS = (
    "reset_running_stats",
    "init_non_persistent_buffers",
    "init_buffers",
    "rope_init",
    "define_relative_position_index",
    "define_relative_position_bias_table",
)
# Methods that initialise a module, buffers included. They are from torch and litgpt, torchtitan and nanochat, NeMo
# AutoModel, and DINOv3. They cost nothing where parameters have no memory.
MODULE_METHODS = ("reset_parameters", "init_weights", "initialize_weights", "_init_weights")


def method(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """A method without required arguments, except for the device of the buffers; None: there is none of that name."""
    found = getattr(module, name, None)
    if not callable(found):
        return None
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    device = {"buffer_device": torch.device("cpu")} if any(each.name == "buffer_device" for each in parameters) else {}
    for each in parameters:
        required = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if required and each.name not in device:
            return None
    return lambda: found(**device)


def own_ways(module: nn.Module) -> Iterator[Way]:
    """Ways that a module has for its buffers alone, and the way in which torch's spectral_norm begins."""
    if isinstance(module, SPECTRAL_NORMS):
        yield "starts at random", module, partial(_start, module, "_u", "_v", module.eps)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            start = partial(_start, module, f"{hook.name}_u", f"{hook.name}_v", hook.eps)
            yield f"{hook.name} starts at random", module, start
    for name in BUFFER_METHODS:
        yield f"{name}()", module, method(module, name)


def _start(module: Any, u: str, v: str, eps: float) -> None:
    """Begin as torch's spectral_norm does. The rest needs the weight: see `Restoration.settle_`."""
    for name in (u, v):
        functional.normalize(getattr(module, name).normal_(), dim=0, eps=eps, out=getattr(module, name))


def rotary(module: Any) -> None:
    """Compute the frequencies of a rotary embedding of transformers that is outside of its models."""
    function = getattr(module, "rope_init_fn", None)
    if function is None and getattr(module, "rope_type", None) == "default":
        function = module.compute_default_rope_parameters
    if function is None:
        function = sys.modules["transformers.modeling_rope_utils"].ROPE_INIT_FUNCTIONS[module.rope_type]
    frequencies = function(module.config)[0]
    module.inv_freq = frequencies
    if hasattr(module, "original_inv_freq"):
        module.original_inv_freq = frequencies.clone()


_INTEGERS = (torch.int64, torch.int32)


def conventional(name: str, module: nn.Module, like: torch.Tensor) -> torch.Tensor | None:
    """The value of a buffer whose name, type, shape and dtype leave no doubt; None: they do."""
    shape, dtype = tuple(like.shape), like.dtype
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device="cpu")
    is_row = len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)
    if name == "position_ids" and dtype in _INTEGERS and is_row:
        return torch.arange(shape[-1], dtype=dtype, device="cpu").view(shape)
    if name == "token_type_ids" and dtype in _INTEGERS and is_row:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    if "num_batches_tracked" in module._buffers:
        return _statistics(name, module, shape, dtype)
    if "c_attn" in module._modules:  # GPT-2's, nanoGPT's and minGPT's attention
        if name == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]:
            return torch.ones(shape[2:], dtype=dtype, device="cpu").tril().view(shape)
        if name == "masked_bias" and shape == () and dtype.is_floating_point:
            return torch.tensor(-1e4, dtype=dtype, device="cpu")
    return None


def _statistics(name: str, module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    """First statistics of a normalisation that counts batches as torch's does: mean 0, variance 1, no batch seen."""
    mean, variance = module._buffers.get("running_mean"), module._buffers.get("running_var")
    if mean is None or variance is None or mean.shape != variance.shape or mean.dim() != 1:
        return None
    if name == "num_batches_tracked" and shape == () and dtype == torch.int64:
        return torch.tensor(0, dtype=dtype, device="cpu")
    if name in ("running_mean", "running_var") and dtype.is_floating_point:
        return torch.full(shape, float(name == "running_var"), dtype=dtype, device="cpu")
    return None
