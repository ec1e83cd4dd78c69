"""Tables on CUDA devices: uploaded once for every stream that they run on, and filled by one kernel launch each.

Nothing here waits for the device. The memory comes from torch's caching allocators, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastinit import _native
from fastinit.orthogonal import Matrix
from fastinit.streams import name_id
from fastinit.table import DTYPES, Table

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


class _Upload:
    """Bytes that kernels read, copied to their device once for every stream."""

    def __init__(self, image: NDArray[np.uint8], device: torch.device) -> None:
        self._image = torch.from_numpy(image)
        self._device = device
        self._uploaded: dict[int, torch.Tensor] = {}  # stream handle -> the image on the device

    def on_current_stream(self) -> tuple[torch.Tensor, int]:
        """The image as the device's current stream finds it, to be held until the kernel is enqueued; the handle."""
        stream = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            on_device = self._captured() if torch.cuda.is_current_stream_capturing() else self._copied(stream)
        return on_device, stream.cuda_stream

    def _copied(self, stream: torch.cuda.Stream) -> torch.Tensor:
        on_device = self._uploaded.get(stream.cuda_stream)
        if on_device is None:
            # Pinned, for a copy from pageable memory would wait for the stream. The allocator keeps the pinned memory
            # until the copy is done.
            on_device = self._image.pin_memory().to(self._device, non_blocking=True)
            self._uploaded[stream.cuda_stream] = on_device
        return on_device

    def _captured(self) -> torch.Tensor:
        if self._uploaded:  # before the capture, which began by waiting for all streams
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

    def fill(self, seed: int) -> None:
        """Enqueue the kernel on the device's current stream.

        Raises:
            RuntimeError: the CUDA run-time's error. Nothing was enqueued.
        """
        assert _native.module is not None
        image, stream = self._upload.on_current_stream()
        _native.module.fill_cuda(image.data_ptr(), self._num_tasks, self._num_chunks, seed, self._device.index, stream)


def fill_orthogonal(matrices: Sequence[Matrix], seed: int) -> list[Matrix]:
    """Write the matrices on CUDA devices that a block of threads can hold, in one launch a device. Returns the others.

    Raises:
        RuntimeError: the CUDA run-time's error.
    """
    small: dict[torch.device, list[Matrix]] = {}
    others = []
    for matrix in matrices:
        if matrix.tensor.device.type == "cuda" and _fits_a_block(matrix):
            small.setdefault(matrix.tensor.device, []).append(matrix)
        else:
            others.append(matrix)
    for device, group in small.items():
        _fill_orthogonal_on(device, group, seed)
    return others


def _fits_a_block(matrix: Matrix) -> bool:
    """By shape, dtype and device alone: neither the other matrices nor the layout may change how one is rounded."""
    assert _native.module is not None
    index = matrix.tensor.device.index
    fits: bool = _native.module.orthogonal_cuda_fits(*matrix.shape, DTYPES[matrix.tensor.dtype], index)
    return fits


def _fill_orthogonal_on(device: torch.device, matrices: Sequence[Matrix], seed: int) -> None:
    assert _native.module is not None
    # What takes long begins first, so that the device is not left with it at the end.
    matrices = sorted(matrices, key=lambda matrix: matrix.tensor.numel() * min(matrix.shape), reverse=True)
    views, copied = [], []
    for matrix in matrices:
        try:
            views.append(matrix.tensor.view(matrix.shape))
        except RuntimeError:  # its strides are no matrix's
            views.append(matrix.tensor.new_empty(matrix.shape))
            copied.append((matrix.tensor, views[-1]))
    table = orthogonal_table(matrices, views)
    shared_bytes = _native.module.check_orthogonal(table)
    image, stream = _Upload(table.view(np.uint8), device).on_current_stream()
    _native.module.orthogonal_cuda(image.data_ptr(), len(matrices), shared_bytes, seed, device.index, stream)
    torch.autograd.graph.increment_version(views)
    for tensor, view in copied:
        tensor.copy_(view.view(tensor.shape))


def orthogonal_table(matrices: Sequence[Matrix], views: Sequence[torch.Tensor]) -> NDArray[np.void]:
    """A row of the native OrthogonalMatrix struct for each matrix, to be written to its view, which has its shape."""
    assert _native.module is not None
    table = np.zeros(len(matrices), np.dtype(_native.module.orthogonal_dtype()))
    table["data"] = [view.data_ptr() for view in views]
    table["rows"], table["columns"] = np.array([matrix.shape for matrix in matrices]).T
    table["row_memory_step"], table["column_memory_step"] = np.array([view.stride() for view in views]).T
    table["global_offset"] = [matrix.part.offset for matrix in matrices]
    table["row_index_step"], table["column_index_step"] = np.array([matrix.part.strides for matrix in matrices]).T
    table["name_id"] = np.frombuffer(b"".join([name_id(matrix.name) for matrix in matrices]), dtype="V16")
    table["gain"] = [matrix.gain for matrix in matrices]
    table["dtype"] = [DTYPES[view.dtype] for view in views]
    return table


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a CUDA device is being captured into a graph."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
