"""Fills tensors of devices for which there is no kernel: the CPU makes the values, piece by piece, and they are copied.

So every device has the same bits. There are two buffers. Where memory can be pinned, the CPU fills one of them while
the device still reads the other; elsewhere a copy ends before the next piece begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastinit.run.index_maps import box_of, boxes
from fastinit.run.progress import Meter
from fastinit.run.table import Table
from fastinit.run.targets import Target, begin_of

STAGING_BYTES = 2**26  # of both buffers
_ALIGNMENT = 64  # of what lies in a buffer: a cache line, and whatever a vector register stores


class _Buffer:
    """A buffer in the CPU's memory, pinned where the device's copies can use that."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._event: torch.Event | None = None
        try:
            self.memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
            self._event = torch.Event(device=device)
        except (RuntimeError, NotImplementedError, ValueError):  # torch knows no pinned memory, or no events, for it
            self.memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    @torch.no_grad()
    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy from this buffer, in the order of the device's current stream: pairs of a place there and values."""
        for there, values in pairs:
            there.copy_(values, non_blocking=self._event is not None)
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until no copy reads the buffer any more."""
        if self._event is not None:
            self._event.synchronize()


def fill(targets: Sequence[Target], seed: int, threads: int, meter: Meter | None = None) -> None:
    """Write targets, all of which are sampled and on one device.

    Raises:
        ParameterError: a distribution that cannot be sampled in its dtype; nothing is written of its piece and those
            that follow. `check` finds it beforehand.
    """
    pieces = list(_pieces(targets))
    if not pieces:
        return
    nbytes = max(map(_bytes_of, pieces))
    buffers = [_Buffer(nbytes, targets[0].device) for _ in pieces[:2]]
    try:
        for number, piece in enumerate(pieces):
            buffer = buffers[number % 2]
            buffer.wait()
            made, begin = [], 0
            for target in piece:
                values = buffer.memory[begin : begin + _bytes_of_box(target)].view(target.dtype)
                made.append(target._replace(tensor=values.view(target.tensor.shape), device=values.device))
                begin += _aligned(_bytes_of_box(target))
            Table(made).fill_cpu(seed, threads)
            buffer.copy([(target.tensor, values.tensor) for target, values in zip(piece, made, strict=True)])
            if meter is not None:
                meter.advance(sum(map(_bytes_of_box, piece)))
    finally:
        for buffer in buffers:
            buffer.wait()


def check(targets: Sequence[Target]) -> None:
    """Raise ParameterError where a distribution cannot be sampled in its dtype. Nothing is written.

    An element decides as well as all of them, so each target shows one of its own.
    """
    for target in targets:
        if target.tensor.numel() > 0:
            for begin, shape in boxes(target.tensor.shape, 1):
                ones = torch.empty(shape, dtype=target.dtype, device="cpu")
                Table([_box(target, begin, shape)._replace(tensor=ones, device=ones.device)])
                break


def _box(target: Target, begin: Sequence[int], shape: Sequence[int]) -> Target:
    """A box of a target's tensor."""
    if tuple(shape) == tuple(target.tensor.shape):
        return target
    at = tuple(map(sum, zip(begin_of(target), begin, strict=True)))
    return target._replace(tensor=box_of(target.tensor.detach(), begin, shape), begin=at)


def _pieces(targets: Sequence[Target]) -> Iterator[list[Target]]:
    """What fits into a buffer, in order: boxes of large tensors, and small tensors together."""
    most = STAGING_BYTES // 2
    piece: list[Target] = []
    nbytes = 0
    for target in targets:
        if target.tensor.numel() == 0:
            continue
        for begin, shape in boxes(target.tensor.shape, most // target.dtype.itemsize):
            box = _box(target, begin, shape)
            if piece and nbytes + _bytes_of_box(box) > most:
                yield piece
                piece, nbytes = [], 0
            piece.append(box)
            nbytes += _aligned(_bytes_of_box(box))
    if piece:
        yield piece


def _bytes_of_box(target: Target) -> int:
    return target.tensor.numel() * target.dtype.itemsize


def _bytes_of(piece: Sequence[Target]) -> int:
    return sum(_aligned(_bytes_of_box(target)) for target in piece)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
