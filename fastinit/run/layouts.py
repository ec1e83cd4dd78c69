"""Where and how tensors lie in memory: what a plan that runs again compares before it writes."""

from __future__ import annotations

from operator import attrgetter
from typing import Protocol

import torch

from fastinit import _native
from fastinit.run.memory import EXCHANGE_API


class Layout(Protocol):
    """The addresses, devices, dtypes, shapes and strides of tensors, and the sizes of their storages, which may become
    too small where they are."""

    def is_of(self, tensors: list[torch.Tensor]) -> bool: ...


def layout_of(tensors: list[torch.Tensor]) -> Layout:
    """Every run of a plan compares the layout of all of its tensors, which may be ten thousand: in one native call, or,
    if some of them are such as no native code can look at, in one pass in C for each property."""
    if _native.module is not None and EXCHANGE_API is not None:
        layout: Layout | None = _native.module.layout_of(
            EXCHANGE_API, tensors, torch.Tensor.untyped_storage, torch.UntypedStorage.nbytes
        )
        if layout is not None:
            return layout
    return _Properties(tensors)


class _Properties:
    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._found = self._look(tensors)

    def is_of(self, tensors: list[torch.Tensor]) -> bool:
        try:
            return self._look(tensors) == self._found
        except RuntimeError:  # one has no memory any more
            return False

    @staticmethod
    def _look(tensors: list[torch.Tensor]) -> tuple[list[object], ...]:
        # Shapes and strides are kept as hashes: so many tuples that stay would set the garbage collector off.
        return (
            list(map(torch.Tensor.data_ptr, tensors)),
            list(map(hash, map(attrgetter("shape"), tensors))),
            list(map(hash, map(torch.Tensor.stride, tensors))),
            list(map(attrgetter("dtype"), tensors)),
            list(map(torch.Tensor.is_conj, tensors)),
            list(map(torch.Tensor.is_neg, tensors)),
            list(map(torch.UntypedStorage.nbytes, map(torch.Tensor.untyped_storage, tensors))),
        )
