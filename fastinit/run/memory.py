"""What a tensor must be before anything is written into it. Errors name the parameter; nothing is written here."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from fastinit._torch import in_transform
from fastinit.distributed.shards import local_tensor
from fastinit.errors import NAMELESS as NAMELESS
from fastinit.run.index_maps import extent, overlaps_itself
from fastinit.schemes.distributions import (
    Blocks,
    Distribution,
    Normal,
    Orthogonal,
    Sparse,
    Spectral,
    Uniform,
    ZeroRow,
    is_random,
)


class Span(NamedTuple):
    """The memory of a tensor: addresses [begin, end)."""

    begin: int
    end: int
    contiguous: bool
    foreign: bool  # not allocated by torch: it may be mapped read-only


@lru_cache(maxsize=1024)
def _is_plain(tensor_type: type[torch.Tensor]) -> bool:
    """Whether tensors of this type are their own memory, rather than wrappers around others."""
    return tensor_type.__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` can be written to, once it has memory: it may be on the meta device.

    Raises:
        TypeError: not a tensor, a wrapper around others, or of another layout.
        ValueError: a lazy one, an inference tensor, or a lazily negated or conjugated view.
    """
    check_dense(tensor, name)
    if local_tensor(tensor).is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name}: is an inference tensor; write to it inside torch.inference_mode()")


def check_dense(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` is a dense tensor, or a DTensor whose local tensor is one. It may be on the meta device.

    Raises:
        TypeError: not a tensor, a wrapper around others (inside torch.func.vmap, say), or of another layout.
        ValueError: a lazy one, or a lazily negated or conjugated view.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if torch.nn.parameter.is_lazy(tensor):
        raise ValueError(f"{name}: is not initialised yet (a lazy parameter has no shape); run a forward pass first")
    if in_transform(tensor):
        raise TypeError(f"{name}: expected a plain tensor, got one inside torch.func; initialise it outside")
    tensor = local_tensor(tensor)
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.is_quantized:
        raise TypeError(f"{name}: expected a floating-point tensor, got a quantized one ({tensor.dtype})")
    if tensor.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if not _is_plain(type(tensor)):
        raise TypeError(f"{name}: expected a plain tensor, got {type(tensor).__name__}, a wrapper around others")
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{name}: is a lazily negated or conjugated view; resolve it first")


def check_readable(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` is a dense tensor, or a DTensor whose local tensor is one, that has values.

    Raises:
        TypeError, ValueError: as `check_dense`.
        ValueError: no memory (meta, freed).
    """
    check_dense(tensor, name)
    local = local_tensor(tensor)
    if local.is_meta:
        raise ValueError(f"{name}: is on the meta device and has no values; materialise the model first")
    if local.numel() > 0 and local.device.type in ("cpu", "cuda"):
        check_allocated(local, name)


_RANDOM_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_COMPLEX_DTYPES = frozenset({torch.complex64, torch.complex128})


def check_dtype(dtype: torch.dtype, name: str, distribution: Distribution) -> None:
    """Raise TypeError unless values of `distribution` can be sampled in `dtype`; constants can be in any."""
    if dtype in _RANDOM_DTYPES or not is_random(distribution):
        return
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"{name}: expected a floating-point dtype, got {dtype}")
    if dtype not in _COMPLEX_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {dtype}")
    if not isinstance(distribution, (Uniform, Normal, Orthogonal, Spectral, Sparse, Blocks, ZeroRow)):
        raise TypeError(f"{name}: {distribution} has no meaning in {dtype}")


def memory_span(tensor: torch.Tensor, name: str) -> Span:
    """The memory of a non-empty tensor.

    Raises:
        ValueError: elements share memory, or the storage is smaller than the tensor (freed, or resized to nothing).
    """
    contiguous = tensor.is_contiguous()
    if not contiguous and overlaps_itself(tensor):
        raise ValueError(
            f"{name}: several elements share memory (shape {tuple(tensor.shape)}, strides {tensor.stride()}), "
            "as after expand(); pass the tensor that owns it, or clone()"
        )
    begin, length = check_allocated(tensor, name)
    return Span(begin, begin + length, contiguous, not tensor.untyped_storage().resizable())


def check_allocated(tensor: torch.Tensor, name: str) -> tuple[int, int]:
    """The address of a non-empty tensor, and how many bytes its elements reach over.

    Raises:
        ValueError: the storage is smaller than the tensor (freed, or resized to nothing).
    """
    begin = tensor.data_ptr()
    storage = tensor.untyped_storage()
    length = tensor.numel() * tensor.element_size() if tensor.is_contiguous() else extent(tensor)
    if begin == 0 or tensor.storage_offset() * tensor.element_size() + length > storage.nbytes():
        raise ValueError(f"{name}: its storage of {storage.nbytes()} bytes is smaller than the tensor; was it freed?")
    return begin, length


def check_overlaps(spans: Sequence[tuple[Span, str]]) -> None:
    """Raise ValueError if two tensors share memory: which of them would win depends on the order.

    A tensor that begins among the elements of a contiguous one does. Tensors whose address ranges cross otherwise
    (columns of one matrix, say) are let pass.
    """
    reached, owner = 0, ""  # how far the contiguous tensors so far reach, and the one that reaches farthest
    for span, name in sorted(spans):
        if span.begin < reached:
            raise ValueError(f"{name}: shares memory with {owner}; make them one Parameter (tie them), or clone() one")
        if span.contiguous:
            reached, owner = span.end, name


def check_writable(spans: Sequence[tuple[Span, str]]) -> None:
    """Raise ValueError if memory that torch did not allocate is mapped read-only.

    Read from /proc/self/maps; systems without it offer no way to know.
    """
    foreign = [(span, name) for span, name in spans if span.foreign]
    if not foreign or not sys.platform.startswith("linux"):
        return
    begins, mappings = [], []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            addresses, permissions = line.split(maxsplit=2)[:2]
            begin, end = (int(address, 16) for address in addresses.split("-"))
            begins.append(begin)
            mappings.append((end, "w" in permissions))
    for span, name in foreign:
        # A tensor may reach over several mappings: look at each.
        at = bisect_right(begins, span.begin) - 1
        while 0 <= at < len(begins) and begins[at] < span.end:
            end, writable = mappings[at]
            if span.begin < end and not writable:
                raise ValueError(f"{name}: its memory is read-only (mapped without write permission); clone() it first")
            at += 1
