"""The table of small orthogonal matrices. The native code makes all matrices of a table in one pass.

orthogonal.py makes the larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastinit import _native
from fastinit.run import cuda
from fastinit.run.orthogonal import Matrix
from fastinit.run.streams import name_id
from fastinit.run.table import DTYPES


def fill_small(matrices: Sequence[Matrix], seed: int) -> list[Matrix]:
    """Write the matrices that are small enough for the native code, all of a device together. Returns the others.

    Raises:
        RuntimeError: the CUDA run-time's error.
    """
    small: dict[torch.device, list[Matrix]] = {}
    others = []
    for matrix in matrices:
        if matrix.tensor.numel() == 0:
            continue
        if is_small(matrix):
            small.setdefault(matrix.tensor.device, []).append(matrix)
        else:
            others.append(matrix)
    for device, group in small.items():
        _fill_together(device, group, seed)
    return others


def is_small(matrix: Matrix) -> bool:
    """Whether the native code takes the matrix.

    Only shape, dtype and device decide: neither the other matrices nor the layout may change how one is rounded.
    """
    assert _native.module is not None
    device = matrix.tensor.device
    fits: bool = (
        _native.module.orthogonal_cuda_fits(*matrix.shape, DTYPES[matrix.tensor.dtype], device.index)
        if device.type == "cuda"
        else _native.module.orthogonal_cpu_fits(*matrix.shape, DTYPES[matrix.tensor.dtype])
    )
    return fits


def _fill_together(device: torch.device, matrices: list[Matrix], seed: int) -> None:
    assert _native.module is not None
    # The longest work begins first, so that the device does not end on a single long matrix.
    matrices.sort(key=lambda matrix: matrix.tensor.numel() * min(matrix.shape), reverse=True)
    views, copied = [], []
    for matrix in matrices:
        try:
            views.append(matrix.tensor.view(matrix.box_shape()))
        except RuntimeError:  # no matrix has such strides
            views.append(matrix.tensor.new_empty(matrix.box_shape()))
            copied.append((matrix.tensor, views[-1]))
    table = orthogonal_table(matrices, views)
    try:
        if device.type == "cuda":
            cuda.fill_orthogonal(table, device, seed)
        else:
            _native.module.orthogonal_cpu(table, seed, torch.get_num_threads())
    finally:  # an interrupted run has written something, too
        torch.autograd.graph.increment_version(views)
    for tensor, view in copied:
        tensor.copy_(view.view(tensor.shape))


def orthogonal_table(matrices: Sequence[Matrix], views: Sequence[torch.Tensor]) -> NDArray[np.void]:
    """A row of the native OrthogonalMatrix struct for each matrix. Each view has the shape of its matrix's box."""
    assert _native.module is not None
    table = np.zeros(len(matrices), np.dtype(_native.module.orthogonal_dtype()))
    table["data"] = [view.data_ptr() for view in views]
    table["rows"], table["columns"] = np.array([matrix.shape for matrix in matrices]).T
    table["first_row"], table["end_row"] = np.array([matrix.row_interval() for matrix in matrices]).T
    table["first_column"], table["end_column"] = np.array([matrix.column_interval() for matrix in matrices]).T
    table["row_memory_step"], table["column_memory_step"] = np.array([view.stride() for view in views]).T
    table["global_offset"] = [matrix.indices.offset for matrix in matrices]
    table["row_index_step"], table["column_index_step"] = np.array([matrix.indices.strides for matrix in matrices]).T
    table["name_id"] = np.frombuffer(b"".join([name_id(matrix.name) for matrix in matrices]), dtype="V16")
    table["gain"] = [matrix.gain for matrix in matrices]
    table["dtype"] = [DTYPES[view.dtype] for view in views]
    return table
