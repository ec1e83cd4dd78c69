"""Wrapper subclasses: tensors without memory of their own, around others (`__tensor_flatten__`), as quantisation has.

A wrapper around a single floating-point tensor of the same shape and dtype is filled through that tensor. Other
wrappers hold packed or quantised values, which only their own library can write. DTensors do not count as such
wrappers, but may be around some.
"""

from __future__ import annotations

from typing import Any

import torch

from fastinit._torch import in_transform, local_part, wrapped_tensors, wraps_others
from fastinit.distributed.pieces import Held, Piece
from fastinit.distributed.shards import is_dtensor

_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


def _is_wrapper(tensor: Any) -> bool:
    return (
        type(tensor) not in _PLAIN_TYPES
        and isinstance(tensor, torch.Tensor)
        and wraps_others(tensor)
        and not (is_dtensor(tensor) or in_transform(tensor) or tensor.is_nested)
    )


def _inner(wrapper: torch.Tensor) -> torch.Tensor | None:
    """The one tensor that a wrapper is around, down to the innermost; None: it is around others."""
    found = wrapped_tensors(wrapper)
    if len(found) != 1 or (found[0].shape, found[0].dtype, found[0].device) != (
        wrapper.shape,
        wrapper.dtype,
        wrapper.device,
    ):
        return None
    return _inner(found[0]) if _is_wrapper(found[0]) else found[0]


def is_wrapped(tensor: Any) -> bool:
    """Whether a tensor is a wrapper that is filled through its one inner tensor."""
    if not _is_wrapper(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    inner = _inner(tensor)
    return inner is not None and type(inner) in _PLAIN_TYPES


def local_tensors(tensor: Any) -> list[torch.Tensor]:
    """The inner tensor."""
    inner = _inner(tensor)
    assert inner is not None
    return [inner]


def held_of_wrapped(tensor: Any, name: str) -> Held:
    """The whole tensor, in the memory of the inner one."""
    (inner,) = local_tensors(tensor)
    return Held(tensor.shape, [Piece((0,) * tensor.dim(), inner.detach())])


def packed(tensor: Any) -> str | None:
    """What a wrapper is around, if nothing but its own library can write its values; None: it is no such wrapper."""
    if type(tensor) in _PLAIN_TYPES:
        return None
    local = local_part(tensor) if is_dtensor(tensor) else tensor
    if not _is_wrapper(local) or (local is tensor and is_wrapped(tensor)):
        return None
    inner = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in wrapped_tensors(local))
    return f"{type(local).__name__} around {inner or 'no tensor'}: packed or quantised"
