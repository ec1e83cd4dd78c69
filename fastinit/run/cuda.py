"""Tables on CUDA devices. A table is uploaded once for every stream that it runs on, and one kernel launch fills
it, or blends what is there with it.

Nothing here waits for the device. The memory comes from torch's caching allocators, in the order of the stream.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from fastinit import _native
from fastinit.run.table import Table

# Images that captured graphs read at every replay: some 240 bytes for each tensor of a captured plan. Nobody can tell
# which replay is the last, so they stay.
_kept_for_graphs: list[torch.Tensor] = []


def obstacle() -> str | None:
    """Why the native code cannot fill CUDA tensors, or None."""
    assert _native.module is not None
    if not _native.module.HAS_CUDA:
        return f"the native code is built without a backend for cuda{_why_without()}"
    if torch.version.cuda is None:
        return "the native code is built for CUDA, and this torch is not"
    return None


@cache
def _why_without() -> str:
    reason = _native.build_info().get("without_cuda")
    return f" ({reason})" if reason else ""


class _Upload:
    """Bytes that kernels read, copied to their device once for every stream."""

    def __init__(self, image: NDArray[np.uint8], device: torch.device) -> None:
        self._image = torch.from_numpy(image)
        self._device = device
        self._uploaded: dict[int, torch.Tensor] = {}  # stream handle -> the image on the device

    def on_current_stream(self) -> tuple[torch.Tensor, int]:
        """The image on the device, ready on its current stream, and the stream's handle.

        The caller must hold the image until the kernel is enqueued.
        """
        stream = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            on_device = self._captured() if torch.cuda.is_current_stream_capturing() else self._copied(stream)
        return on_device, stream.cuda_stream

    def _copied(self, stream: torch.cuda.Stream) -> torch.Tensor:
        on_device = self._uploaded.get(stream.cuda_stream)
        if on_device is None:
            # A copy from pageable memory would wait for the stream, so the memory is pinned. The allocator keeps it
            # until the copy is done.
            on_device = self._image.pin_memory().to(self._device, non_blocking=True)
            self._uploaded[stream.cuda_stream] = on_device
        return on_device

    def _captured(self) -> torch.Tensor:
        if self._uploaded:  # before the capture began, which waited for all streams
            on_device = next(iter(self._uploaded.values()))
            _kept_for_graphs.append(on_device)
            return on_device
        pinned = self._image.pin_memory()
        _kept_for_graphs.append(pinned)
        return pinned.to(self._device, non_blocking=True)


class CudaTable:
    """The rows of a table whose tensors all lie on one device."""

    def __init__(self, table: Table, device: torch.device) -> None:
        assert _native.module is not None
        image, self._num_chunks = _native.module.cuda_table(table.rows)
        self._num_tasks = len(table.rows)
        self._device = device
        self._upload = _Upload(image, device)

    def fill(self, seed: int | torch.Tensor) -> None:
        """Enqueue the kernel on the device's current stream. It reads a seed that is a tensor from the device's memory.

        Raises:
            RuntimeError: the CUDA run-time's error. Nothing was enqueued.
        """
        assert _native.module is not None
        image, stream = self._upload.on_current_stream()
        number, seed_address = (0, seed.data_ptr()) if isinstance(seed, torch.Tensor) else (seed, 0)
        _native.module.fill_cuda(
            image.data_ptr(), self._num_tasks, self._num_chunks, number, self._device.index, stream, seed_address
        )

    def blend(self, keep: float, scale: float, seed: int) -> None:
        """Enqueue the kernel that makes keep * element + scale * value of every element. Raises as `fill`."""
        assert _native.module is not None
        image, stream = self._upload.on_current_stream()
        sizes = self._num_tasks, self._num_chunks
        _native.module.blend_cuda(image.data_ptr(), *sizes, keep, scale, seed, self._device.index, stream)

    def fill_where(self, mask_addresses: NDArray[np.uint64], seed: int) -> None:
        """Enqueue the kernel that fills the elements whose byte in a mask is 1. Raises as `fill`."""
        assert _native.module is not None
        image, stream = self._upload.on_current_stream()
        masks, _ = _Upload(mask_addresses.view(np.uint8), self._device).on_current_stream()
        sizes = self._num_tasks, self._num_chunks
        _native.module.fill_where_cuda(image.data_ptr(), *sizes, masks.data_ptr(), seed, self._device.index, stream)


def fill_orthogonal(table: NDArray[np.void], device: torch.device, seed: int) -> None:
    """Enqueue the kernel for a table of orthogonal matrices (matrix_table.py) on the device's current stream.

    Raises:
        RuntimeError: the CUDA run-time's error. Nothing was enqueued.
    """
    assert _native.module is not None
    shared_bytes = _native.module.check_orthogonal(table)
    image, stream = _Upload(table.view(np.uint8), device).on_current_stream()
    _native.module.orthogonal_cuda(image.data_ptr(), len(table), shared_bytes, seed, device.index, stream)


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a CUDA device is being captured into a graph."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
