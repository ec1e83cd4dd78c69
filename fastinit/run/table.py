"""The table for the native code: a structured array with a row for each tensor, or several where one is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from fastinit import _native
from fastinit.errors import ParameterError
from fastinit.run.index_maps import IndexMap, index_maps
from fastinit.run.streams import name_id
from fastinit.run.targets import Target, indices_of_tensor, sampled_blocks

# csrc/core/task.h
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_PADDING = tuple((0.0,) * (5 - length) for length in range(6))
# csrc/core/prepare.h
_PREPARE_ERRORS = {
    1: "no value of {dtype} lies within {distribution}",
    2: "{distribution} lies more than 6 sigma to one side of its mean; float32 cannot sample so far out",
}


class Table:
    """Rows of the native Task struct, ready for sampling.

    Raises:
        ValueError: naming the tensor whose distribution cannot be sampled in its dtype.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        whole_tensors: list[tuple[Target, int]] = []  # and addresses; one row each, of consecutive elements
        mapped: list[tuple[Target, int, IndexMap]] = []
        for target in targets:
            is_whole = target.indices is None and target.begin is None and target.tensor.is_contiguous()
            if is_whole and target.distribution.blocks() is None:
                whole_tensors.append((target, target.tensor.data_ptr()))
                continue
            for block in sampled_blocks(target):
                address, itemsize = block.tensor.data_ptr(), block.tensor.element_size()
                for index_map in index_maps(block.tensor, indices_of_tensor(block)):
                    mapped.append((block, address + index_map.data_offset * itemsize, index_map))

        table = np.zeros(len(whole_tensors) + len(mapped), dtype=_task_dtype())
        table["data"] = [address for _, address in whole_tensors] + [address for _, address, _ in mapped]
        if whole_tensors:
            rows = table[: len(whole_tensors)]
            rows["numel"] = rows["row_length"] = [target.tensor.numel() for target, _ in whole_tensors]
            rows["rows_per_slab"] = rows["element_memory_step"] = 1
        if mapped:
            rows = table[len(whole_tensors) :]
            columns = zip(*(index_map for _, _, index_map in mapped), strict=True)
            for field, column in zip(IndexMap._fields, columns, strict=True):
                if field != "data_offset":
                    rows[field] = column
        owners = [target for target, _ in whole_tensors] + [target for target, _, _ in mapped]
        for row in np.flatnonzero(table["data"] % 8):
            owner, address = owners[row], int(table["data"][row])
            itemsize = owner.tensor.element_size()
            if address % itemsize:
                raise ParameterError(
                    owner.name,
                    f"its memory begins at an address that is not a multiple of the {itemsize} bytes of an element; "
                    "clone() it first",
                )
        distributions: list[Any] = [owner.distribution for owner in owners]  # all of them sampled
        table["name_id"] = np.frombuffer(b"".join([name_id(owner.name) for owner in owners]), dtype="V16")
        table["dtype"] = [DTYPES[owner.tensor.dtype] for owner in owners]
        table["distribution"] = [distribution.code for distribution in distributions]
        parameters = [distribution.parameters() for distribution in distributions]
        table["parameter"] = [numbers + _PADDING[len(numbers)] for numbers in parameters]
        error = _module().prepare(table)
        if error is not None:
            row, code = error
            reason = _PREPARE_ERRORS[code].format(dtype=owners[row].tensor.dtype, distribution=distributions[row])
            raise ParameterError(owners[row].name, reason)
        table.setflags(write=False)
        self.rows = table

    def fill_cpu(self, seed: int, threads: int) -> None:
        """Write all values, to tensors in the memory of the CPU. The interpreter's lock is released meanwhile.

        The table does not change, so any number of threads may run it at the same time.
        """
        _module().fill_cpu(self.rows, seed, threads)


def _module() -> Any:
    assert _native.module is not None, "a table is made only where the native code is there"
    return _native.module


@cache
def _task_dtype() -> np.dtype[np.void]:
    dtype: np.dtype[np.void] = np.dtype(_module().task_dtype())
    return dtype
