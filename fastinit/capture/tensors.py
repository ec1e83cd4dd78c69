"""Questions about tensors that calls are about: what kind they are, and how they lie in their storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastinit import _torch
from fastinit._torch import tree_leaves

TENSORS = (Tensor, nn.Parameter, nn.Buffer)  # the types of tensors that are no more than that


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among arguments, with those that wrappers are around.

    Dictionaries are left out: torch's functions take none but the memo of a deep copy, which has all that was copied.
    """
    found: list[Tensor] = []
    for each in (*args, *kwargs.values()):
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += [leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)]
    for leaf in found:  # grows meanwhile
        if wraps(leaf):
            found += _torch.wrapped_tensors(leaf)
    return found


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has one storage of elements, and is no wrapper around others."""
    return type(tensor) in TENSORS and tensor.layout is torch.strided and not _torch.in_transform(tensor)


def wraps(tensor: Tensor) -> bool:
    return (type(tensor) not in TENSORS and _torch.wraps_others(tensor)) or _torch.in_transform(tensor)


def versions_of(tensors: Iterable[Tensor]) -> dict[int, int]:
    """How often each tensor was written to, by its id. Tensors of inference mode do not count it."""
    return {id(each): 0 if each.is_inference() else each._version for each in tensors}


def overlaps(tensor: Tensor) -> bool:
    """Whether elements of a tensor share memory, as after `expand`. Nobody may write to them."""
    if tensor.is_contiguous():
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def is_packed(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
    return memory_format is torch.contiguous_format and tensor.is_contiguous()


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, each element once."""
    if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
