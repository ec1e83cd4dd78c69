"""A table on a CUDA device: uploaded once for every stream that it runs on, and filled by one kernel launch.

Nothing here waits for the device. The memory comes from torch's caching allocators, in the order of the stream.
"""

from __future__ import annotations

import torch

from fastinit import _native
from fastinit.table import Table

# What a captured graph reads whenever it is replayed. Nobody can tell when the last replay was, so it stays: the table
# of a captured plan, some 240 bytes a tensor.
_kept_for_graphs: list[torch.Tensor] = []


def obstacle() -> str | None:
    """Why the native code cannot fill CUDA tensors, or None."""
    assert _native.module is not None
    if not _native.module.HAS_CUDA:
        return "the native code is built without a backend for cuda"
    if torch.version.cuda is None:
        return "the native code is built for CUDA, and this torch is not"
    return None


class CudaTable:
    """The rows of a table whose tensors all lie on one device."""

    def __init__(self, table: Table, device: torch.device) -> None:
        assert _native.module is not None
        image, self._num_chunks = _native.module.cuda_table(table.rows)
        self._num_tasks = len(table.rows)
        self._device = device
        self._image = torch.from_numpy(image)
        self._uploaded: dict[int, torch.Tensor] = {}  # stream handle -> the image on the device

    def fill(self, seed: int) -> None:
        """Enqueue the kernel on the device's current stream.

        Raises:
            RuntimeError: the CUDA run-time's error. Nothing was enqueued.
        """
        assert _native.module is not None
        stream = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            on_device = self._captured_upload() if torch.cuda.is_current_stream_capturing() else self._upload(stream)
        _native.module.fill_cuda(
            on_device.data_ptr(), self._num_tasks, self._num_chunks, seed, self._device.index, stream.cuda_stream
        )

    def _upload(self, stream: torch.cuda.Stream) -> torch.Tensor:
        on_device = self._uploaded.get(stream.cuda_stream)
        if on_device is None:
            # Pinned, for a copy from pageable memory would wait for the stream. The allocator keeps the pinned memory
            # until the copy is done.
            on_device = self._image.pin_memory().to(self._device, non_blocking=True)
            self._uploaded[stream.cuda_stream] = on_device
        return on_device

    def _captured_upload(self) -> torch.Tensor:
        if self._uploaded:  # before the capture, which began by waiting for all streams
            on_device = next(iter(self._uploaded.values()))
            _kept_for_graphs.append(on_device)
            return on_device
        pinned = self._image.pin_memory()
        _kept_for_graphs.append(pinned)
        return pinned.to(self._device, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a CUDA device is being captured into a graph."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
