"""Initial values made once more, a few MiB at a time, beside the tensors that they are for.

It serves whatever reads or rewrites filled tensors, where the native code has no single pass for the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from fastinit.run import engine
from fastinit.run.index_maps import box_of, boxes, overlaps_itself
from fastinit.run.orthogonal import compute_dtype
from fastinit.run.targets import Target, begin_of

# Bytes of values that are made at a time: so few that most are in the cache. A tensor that is computed as a whole may
# take more.
SCRATCH_BYTES = 2**24

Key = TypeVar("Key")


def reads_in_place(target: Target, backend: str) -> bool:
    """Whether the native code compares a tensor with its initial values in one pass, without memory for them."""
    tensor = target.tensor
    return (
        target.device.type == "cpu"
        and target.distribution.needs == "element"
        and engine.fills_natively(target, backend)
        and tensor.data_ptr() % tensor.element_size() == 0
        and (tensor.is_contiguous() or not overlaps_itself(tensor))
    )


def pieces(target: Target, backend: str) -> Iterator[Target]:
    """Boxes of a target whose values fit into the scratch memory; the whole of it where it is computed as a whole."""
    if target.distribution.needs == "tensor" or not engine.fills_natively(target, backend):
        yield target
        return
    for begin, shape in boxes(target.tensor.shape, SCRATCH_BYTES // target.dtype.itemsize):
        if shape == tuple(target.tensor.shape):
            yield target
            continue
        at = tuple(first + offset for first, offset in zip(begin_of(target), begin, strict=True))
        yield target._replace(tensor=box_of(target.tensor.detach(), begin, shape), begin=at)


def staged(
    of: Iterable[tuple[Target, Key]], backend: str, seed: int, *, unrounded: bool = False
) -> Iterator[tuple[Target, Key, torch.Tensor]]:
    """Targets, whatever the caller keeps with them, and their initial values in memory of their own.

    Values are made for several targets at a time, as many as fit into the scratch memory, and are gone when the next
    ones are made. `unrounded`: those that the native code makes for 16-bit dtypes come in float32, before rounding.
    """
    batch: list[tuple[Target, Key]] = []
    nbytes = 0
    for target, key in of:
        size = target.tensor.numel() * target.dtype.itemsize
        if batch and nbytes + size > SCRATCH_BYTES:
            yield from _made(batch, backend, seed, unrounded)
            batch, nbytes = [], 0
        batch.append((target, key))
        nbytes += size
    yield from _made(batch, backend, seed, unrounded)


def _made(
    batch: Sequence[tuple[Target, Key]], backend: str, seed: int, unrounded: bool
) -> Iterator[tuple[Target, Key, torch.Tensor]]:
    if not batch:
        return
    made = [_with_scratch(target, backend, unrounded) for target, _ in batch]
    engine.Program(made, backend).run_(seed, None)
    for (target, key), scratch in zip(batch, made, strict=True):
        yield target, key, scratch.tensor


def _with_scratch(target: Target, backend: str, unrounded: bool) -> Target:
    tensor = target.tensor
    if engine.fills_natively(target, backend):
        dtype = compute_dtype(target.dtype) if unrounded else target.dtype
        return target._replace(tensor=torch.empty_like(tensor, dtype=dtype), dtype=dtype)
    # torch's random numbers depend on the strides.
    scratch = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return target._replace(tensor=scratch)
