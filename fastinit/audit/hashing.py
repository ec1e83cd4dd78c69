"""The sum of the hashes of a tensor's elements (docs/FINGERPRINT.md), by native code on the CPU or by torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import blake2b
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import torch

from fastinit import _native
from fastinit._native import FINGERPRINT_VERSION
from fastinit.run.exact import safe_threads
from fastinit.run.index_maps import BoxIndices, box_of, boxes

MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_PERSON = b"fastprnt" + FINGERPRINT_VERSION.to_bytes(8, "little")

_NATIVE_BYTES = (1, 2, 4, 8)
_NATIVE_DIMENSIONS = 8  # csrc/core/fingerprint.h
# Elements that torch's operations take at a time, with three or four 64-bit integers for each: at most 32 MiB. On a CPU
# they fit into its cache.
_AT_ONCE = 2**20
_AT_ONCE_ON_CPU = 2**15


class Hashed(NamedTuple):
    """A tensor that is a box of the parameter with this key. `indices` says which of its elements it has."""

    key: int
    tensor: torch.Tensor
    indices: BoxIndices


def key_of(name: str, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """64 bits of BLAKE2b of a parameter's canonical name, dtype and global shape."""
    text = "\0".join((name, str(dtype).removeprefix("torch."), ",".join(map(str, shape))))
    return int.from_bytes(blake2b(text.encode(), digest_size=8, person=_PERSON).digest(), "little")


@torch.no_grad()
def sums(hashed: Sequence[Hashed]) -> list[int]:
    """One sum modulo 2^64 for each tensor. Writes nothing. Extra memory is at most 32 MiB."""
    found = [0] * len(hashed)
    natively: list[int] = []
    by_torch: list[tuple[int, torch.Tensor]] = []
    for position, (key, tensor, indices) in enumerate(hashed):
        if tensor.numel() == 0:
            continue
        if _is_native(tensor):
            natively.append(position)
        else:
            by_torch.append((position, _sum_by_torch(tensor.detach(), key, indices)))
    if natively:
        native = _native.module
        assert native is not None
        table = _table([hashed[position] for position in natively])
        for position, total in zip(natively, native.fingerprint_cpu(table, torch.get_num_threads()), strict=True):
            found[position] = int(total)
    # Each device is waited for once.
    for device in {total.device for _, total in by_torch}:
        of_device = [(position, total) for position, total in by_torch if total.device == device]
        totals = torch.stack([total for _, total in of_device]).tolist()
        for (position, _), total in zip(of_device, totals, strict=True):
            found[position] = total & MASK
    return found


def _is_native(tensor: torch.Tensor) -> bool:
    return (
        _native.module is not None
        and tensor.device.type == "cpu"
        and tensor.element_size() in _NATIVE_BYTES
        and tensor.dim() <= _NATIVE_DIMENSIONS
    )


def _table(hashed: Sequence[Hashed]) -> np.ndarray[Any, Any]:
    """Rows of the native FingerprintTask struct."""
    table = np.zeros(len(hashed), dtype=_task_dtype())
    table["data"] = [tensor.data_ptr() for _, tensor, _ in hashed]
    table["numel"] = [tensor.numel() for _, tensor, _ in hashed]
    table["key"] = [key for key, _, _ in hashed]
    table["global_offset"] = [indices.offset for _, _, indices in hashed]
    table["element_bytes"] = [tensor.element_size() for _, tensor, _ in hashed]
    table["dimensions"] = [_dimensions(tensor, indices) for _, tensor, indices in hashed]
    return table


@cache
def _task_dtype() -> np.dtype[np.void]:
    assert _native.module is not None
    dtype: np.dtype[np.void] = np.dtype(_native.module.fingerprint_dtype())
    return dtype


Dimension = tuple[int, int, int]  # size, step in memory, step of the global index


def _dimensions(tensor: torch.Tensor, indices: BoxIndices) -> list[Dimension]:
    """The tensor in as few dimensions as possible, the longest step in memory first, and 1s before them."""
    steps = zip(tensor.shape, tensor.stride(), indices.strides, strict=True)
    merged: list[Dimension] = []
    for size, step, index_step in sorted(steps, key=lambda each: -each[1]):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * step and merged[-1][2] == size * index_step:
            size *= merged.pop()[0]
        merged.append((size, step, index_step))
    return [(1, 1, 1)] * (_NATIVE_DIMENSIONS - len(merged)) + merged


@safe_threads()
def _sum_by_torch(tensor: torch.Tensor, key: int, indices: BoxIndices) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    at_once = _AT_ONCE_ON_CPU if tensor.device.type == "cpu" else _AT_ONCE
    for begin, shape in boxes(tensor.shape, at_once):
        box = box_of(tensor, begin, shape)
        offset = indices.offset + sum(map(mul, begin, indices.strides))
        # The state before the mixing is key + index * _STEP, and the index is a sum over the dimensions.
        state = torch.full((), _signed(key + offset * _STEP), dtype=torch.int64, device=tensor.device)
        for dim, (size, stride) in enumerate(zip(box.shape, indices.strides, strict=True)):
            steps = torch.arange(size, device=tensor.device) * _signed(stride * _STEP)
            state = state + steps.view(-1, *[1] * (box.dim() - dim - 1))
        state = state.reshape(-1)
        for word in _words(box):
            state = _mixed(state.bitwise_xor_(word))
        total += state.sum()
    return total


def _words(box: torch.Tensor) -> Iterator[torch.Tensor]:
    """The elements' bits as int64. Elements of 16 bytes give two tensors, their low and their high halves."""
    flat, size = box.reshape(-1), box.element_size()
    if size == 1:
        yield flat.view(torch.uint8).to(torch.int64)
    elif size == 2:
        yield flat.view(torch.int16).to(torch.int64).bitwise_and_(0xFFFF)
    elif size == 4:
        yield flat.view(torch.int32).to(torch.int64).bitwise_and_(0xFFFFFFFF)
    elif size == 8:
        yield flat.view(torch.int64)
    else:
        yield from flat.contiguous().view(torch.int64).view(-1, size // 8).unbind(1)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser, in place. Its products are modulo 2^64."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (64 - shift) - 1))  # >> copies the sign
        if multiplier != 1:
            x.mul_(_signed(multiplier))
    return x


def _signed(x: int) -> int:
    """The int64 that is x modulo 2^64."""
    return ((x + 2**63) & MASK) - 2**63
