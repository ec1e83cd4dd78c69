"""Checks of tensors before anything is written into them. Errors name the parameter. Nothing is written here."""

from __future__ import annotations

import ctypes
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit._torch import in_transform, is_on_meta, version_of
from fastinit.distributed.held import are_plain, is_sharded, local_tensor, local_tensors
from fastinit.distributed.wrapped import packed
from fastinit.errors import ParameterError
from fastinit.run.index_maps import extent, overlaps_itself
from fastinit.schemes.distributions import Distribution


class Span(NamedTuple):
    """The memory of a tensor: addresses [begin, end). A `dense` tensor has all elements between them."""

    begin: int
    end: int
    dense: bool
    foreign: bool  # not allocated by torch, so it may be mapped read-only
    strides: tuple[tuple[int, int], ...]  # (size, step in bytes) of every dimension that is longer than 1
    element_bytes: int


@lru_cache(maxsize=1024)
def _is_plain(tensor_type: type[torch.Tensor]) -> bool:
    """Whether tensors of this type have memory of their own, and are not wrappers around others."""
    return tensor_type.__torch_dispatch__ is torch.Tensor.__torch_dispatch__


# Torch's table of functions that tell native code where a tensor lies (DLPack). None: this torch has none.
EXCHANGE_API: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

USUAL_TYPES = frozenset({torch.nn.Parameter, torch.Tensor})
_USUAL_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
# float8_e8m0fnu has powers of two alone, and is not sampled.
FLOAT8_DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
SAMPLED_DTYPES = _USUAL_DTYPES | FLOAT8_DTYPES  # real ones


def is_usual(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of the usual kind: this rank has all of it, and the checks below find nothing.

    This comes first, because these checks take most of the time of planning a model of thousands of parameters.
    """
    return (
        type(tensor) in USUAL_TYPES
        and not is_sharded(tensor)
        and tensor.dtype in _USUAL_DTYPES
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_neg() or tensor.is_inference() or in_transform(tensor))
    )


def are_usual(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors are usual and have no attributes: one pass in C for each question."""
    return (
        are_plain(tensors)
        and _USUAL_DTYPES.issuperset(map(_DTYPE, tensors))
        and _STRIDED.issuperset(map(_LAYOUT, tensors))
        and not any(map(_IS_NESTED, tensors))
        and not any(map(torch.Tensor.is_neg, tensors))
        and not any(map(torch.Tensor.is_inference, tensors))
        and not any(map(in_transform, tensors))
    )


_DTYPE, _LAYOUT, _IS_NESTED = map(attrgetter, ("dtype", "layout", "is_nested"))
_STRIDED = frozenset({torch.strided})


def check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` can be written to once it has memory. It may be on the meta device.

    Raises:
        TypeError: not a tensor, a wrapper around others, or of another layout.
        ValueError: a lazy parameter, an inference tensor, or a lazily negated or conjugated view.
    """
    if is_usual(tensor):
        return
    check_dense(tensor, name)
    if any(local.is_inference() for local in local_tensors(tensor)) and not torch.is_inference_mode_enabled():
        raise ParameterError(name, "is an inference tensor; write to it inside torch.inference_mode()")


def check_dense(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` is a dense tensor, or a shard whose local tensors are. It may be on the meta device.

    Raises:
        TypeError: not a tensor, a wrapper around others (inside torch.func.vmap, say), or of another layout.
        ValueError: a lazy parameter, or a lazily negated or conjugated view.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ParameterError(name, f"expected a torch.Tensor, got {type(tensor).__name__}")
    if torch.nn.parameter.is_lazy(tensor):
        raise ParameterError(name, "is not initialised yet (a lazy parameter has no shape); run a forward pass first")
    if in_transform(tensor):
        raise ParameterError(name, "expected a plain tensor, got one inside torch.func; initialise it outside")
    for local in local_tensors(tensor):
        _check_local(local, name)


def _check_local(tensor: torch.Tensor, name: str) -> None:
    if tensor.layout is not torch.strided:
        raise ParameterError(name, f"expected a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.is_quantized:
        raise ParameterError(name, f"expected a floating-point tensor, got a quantized one ({tensor.dtype})")
    if tensor.is_nested:
        raise ParameterError(name, "expected a dense tensor, got a nested one")
    if (why := packed(tensor)) is not None:
        raise ParameterError(name, f"expected a plain tensor, got {why}")
    if not _is_plain(type(tensor)):
        raise ParameterError(name, f"expected a plain tensor, got {type(tensor).__name__}, a wrapper around others")
    if tensor.is_neg() or tensor.is_conj():
        raise ParameterError(name, "is a lazily negated or conjugated view; resolve it first")


def check_readable(tensor: torch.Tensor, name: str) -> None:
    """Raise unless `tensor` is a dense tensor that has values, or a shard whose local tensors are.

    Raises:
        TypeError, ValueError: as `check_dense`.
        ValueError: no memory (meta, freed).
    """
    check_dense(tensor, name)
    for local in local_tensors(tensor):
        if is_on_meta(local):
            raise ParameterError(name, "is on the meta device and has no values; materialise the model first")
        if local.numel() > 0 and local.device.type in ("cpu", "cuda"):
            check_allocated(local, name)


_COMPLEX_DTYPES = frozenset({torch.complex64, torch.complex128})


def check_dtype(dtype: torch.dtype, distribution: Distribution) -> None:
    """Raise TypeError unless values of `distribution` can be sampled in `dtype`. Constants fit any dtype."""
    if dtype in _USUAL_DTYPES or not distribution.is_random():
        return
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(f"expected a floating-point dtype, got {dtype}")
    if dtype in FLOAT8_DTYPES:
        for block in distribution.each_block():
            if block.needs != "element":
                raise TypeError(f"expected float16, bfloat16, float32 or float64 for {block}, got {dtype}")
        return
    if dtype not in _COMPLEX_DTYPES:
        raise TypeError(f"expected float16, bfloat16, float32 or float64, or an 8-bit float with a sign, got {dtype}")
    for block in distribution.each_block():
        if not block.takes_complex:
            raise TypeError(f"{block} has no meaning in {dtype}")


def memory_span(tensor: torch.Tensor, name: str) -> Span:
    """The memory of a tensor: an empty span if it has no elements.

    Raises:
        ParameterError: elements share memory, or the storage is smaller than the tensor (freed, or resized to nothing).
    """
    size, nbytes = tensor.element_size(), tensor.nbytes
    if nbytes == 0:
        return Span(0, 0, True, False, (), size)
    if tensor.is_contiguous():  # nearly all are: the short way
        begin, storage = tensor.data_ptr(), tensor.untyped_storage()
        if begin != 0 and tensor.storage_offset() * size + nbytes <= storage.nbytes():
            return tuple.__new__(Span, (begin, begin + nbytes, True, not storage.resizable(), (), size))
    elif overlaps_itself(tensor):
        raise ParameterError(
            name,
            f"several elements share memory (shape {tuple(tensor.shape)}, strides {tensor.stride()}), as after "
            "expand(); pass the tensor that owns it, or clone()",
        )
    begin, length = check_allocated(tensor, name)
    return span_from(begin, length, tensor, foreign=not tensor.untyped_storage().resizable())


def span_from(begin: int, length: int, tensor: torch.Tensor, *, foreign: bool = False) -> Span:
    """The memory of a non-empty tensor whose elements lie in the `length` bytes from address `begin` on."""
    size = tensor.element_size()
    dense = length == tensor.numel() * size
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    strides = () if dense else tuple((length, step * size) for length, step in sizes if length > 1)
    return Span(begin, begin + length, dense, foreign, strides, size)


def check_allocated(tensor: torch.Tensor, name: str) -> tuple[int, int]:
    """The address of a non-empty tensor, and the number of bytes from there to the end of its last element.

    Raises:
        ParameterError: the storage is smaller than the tensor (freed, or resized to nothing).
    """
    begin = tensor.data_ptr()
    storage = tensor.untyped_storage()
    length = tensor.numel() * tensor.element_size() if tensor.is_contiguous() else extent(tensor)
    if begin == 0 or tensor.storage_offset() * tensor.element_size() + length > storage.nbytes():
        raise ParameterError(name, f"its storage of {storage.nbytes()} bytes is smaller than the tensor; was it freed?")
    return begin, length


def constant_of(tensor: torch.Tensor) -> float | None:
    """The value that all elements of a tensor on the CPU have, if there are several, and if it is not zero."""
    if not tensor.is_cpu:
        return None
    local = local_tensor(tensor).detach()
    if local.numel() < 2 or not local.is_floating_point() or not local.is_contiguous():
        return None
    size, begin = local.element_size(), local.data_ptr()
    first = ctypes.string_at(begin, size)
    if not any(first) or first != ctypes.string_at(begin + local.nbytes - size, size):  # as nearly always
        return None
    value = local.view(-1)[0]
    return float(value) if all(bool((piece == value).all()) for piece in _pieces(local)) else None


def was_set_to_zero(tensor: torch.Tensor, *, by_its_code: bool = False) -> bool:
    """Whether somebody has written to a tensor on the CPU, and left it all zero. New memory may be zero by itself.

    by_its_code: whether the code that made it says zeros, so that it was written.
    """
    if not tensor.is_cpu or (version_of(tensor) == 0 and not by_its_code):
        return False
    local = local_tensor(tensor)
    if local.numel() == 0 or any(ctypes.string_at(local.data_ptr(), local.element_size())):
        return False
    return not any(bool(piece.any()) for piece in _pieces(local.detach()))


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A non-empty tensor piece by piece: asked for all elements at once, torch keeps a byte of each answer."""
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), _PIECE)
    else:
        yield from torch.split(tensor, max(1, _PIECE * len(tensor) // tensor.numel()))


_PIECE = 2**18


def spans_of_kept(named: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[Span, str]]:
    """The memory of tensors that are not written, as far as they have any that can be told."""
    found = []
    for name, tensor in named:
        for local in local_tensors(tensor):
            if local.device.type in ("cpu", "cuda") and local.layout is torch.strided and _is_plain(type(local)):
                try:
                    found.append((memory_span(local, name), name))
                except (ParameterError, RuntimeError):  # freed, say, or expanded
                    continue
    return found


def check_overlaps(spans: Sequence[tuple[Span, str]], kept: Sequence[tuple[Span, str]] = ()) -> None:
    """Raise ParameterError if two tensors share elements, since the order of writing would then decide their values; or
    if a tensor shares some with one that is to be kept.

    Views of one tensor that have no element in common pass: columns of a matrix, say.
    """
    written = [(span, name, True) for span, name in spans]
    crossing: list[tuple[Span, str, bool]] = []  # spans that reach beyond the begin of the present one
    reached = 0
    for span, name, is_written in sorted([*written, *((span, name, False) for span, name in kept)]):
        if span.begin < reached:
            crossing = [other for other in crossing if other[0].end > span.begin]
            for other, owner, other_is_written in crossing:
                if (is_written or other_is_written) and _share_elements(span, other):
                    first, second = (owner, name) if is_written else (name, owner)
                    kept_one = "" if is_written and other_is_written else ", which is kept"
                    raise ParameterError(
                        second,
                        f"shares memory with {first}{kept_one}; make them one Parameter (tie them), or clone() one",
                    )
        else:
            crossing = []
        if span.end > span.begin:
            crossing.append((span, name, is_written))
            reached = max(reached, span.end)


# How many steps NumPy may search for a common element. Views made by slicing take a few.
_MOST_WORK = 100_000


def _share_elements(span: Span, other: Span) -> bool:
    """Whether two tensors whose addresses cross have an element in common. If the search takes too long: yes."""
    if span.dense and other.dense:
        return True
    most_work: Any = _MOST_WORK
    try:
        return bool(np.shares_memory(_array(span), _array(other), max_work=most_work))
    except np.exceptions.TooHardError:
        return True


class _Addresses:
    """The addresses of a tensor in the form of NumPy's array interface. Nothing is read from them."""

    def __init__(self, span: Span) -> None:
        dimensions = span.strides or (((span.end - span.begin) // span.element_bytes, span.element_bytes),)
        self.__array_interface__ = {
            "version": 3,
            "data": (span.begin, True),
            "typestr": f"|V{span.element_bytes}",
            "shape": tuple(size for size, _ in dimensions),
            "strides": tuple(step for _, step in dimensions),
        }


def _array(span: Span) -> np.ndarray[Any, Any]:
    return np.asarray(_Addresses(span))


def check_writable(spans: Sequence[tuple[Span, str]]) -> None:
    """Raise ValueError if memory that torch did not allocate is mapped read-only.

    The mappings are read from /proc/self/maps. On systems without that file nothing is checked.
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
        # A tensor may lie in several mappings, so each is looked at.
        at = bisect_right(begins, span.begin) - 1
        while 0 <= at < len(begins) and begins[at] < span.end:
            end, writable = mappings[at]
            if span.begin < end and not writable:
                raise ParameterError(
                    name, "its memory is read-only (mapped without write permission); clone() it first"
                )
            at += 1
