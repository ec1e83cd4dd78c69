"""The short way of one tensor to its values: a dense tensor on the CPU, all of it drawn from one distribution.

Values, seeds and versions are those of the long way (plans.py, engine.py), which costs many times as much as filling a
small tensor does. The long way takes everything else, and tells what is wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastinit import _native
from fastinit._torch import in_modes, increment_version
from fastinit.run.memory import is_usual
from fastinit.run.streams import draw_seed
from fastinit.run.table import Table
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Distribution

_MOST = 2**20  # elements; filling more takes longer than the long way


class PreparedRow(NamedTuple):
    """A row of the native table, for any tensor of its size and dtype: only the address is left to be set."""

    task: bytes
    nbytes: int  # of the tensor
    element_bytes: int
    is_random: bool


def takes(tensor: object) -> bool:
    """Whether something is a tensor that may go the short way, as far as it shows without its memory."""
    return (
        _native.module is not None
        and isinstance(tensor, torch.Tensor)
        and is_usual(tensor)
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not in_modes()
    )


def prepared_row(distribution: Distribution, shape: torch.Size, dtype: torch.dtype) -> PreparedRow | None:
    """The row for a distribution; None: only the long way leads to such values.

    Raises:
        ParameterError: the distribution cannot be sampled in this dtype.
    """
    numel = shape.numel()
    if distribution.needs != "element" or distribution.blocks() is not None or not 0 < numel <= _MOST:
        return None
    tensor = torch.empty(numel, dtype=dtype, device="cpu")
    rows = Table([Target("", tensor, tensor.shape, dtype, tensor.device, distribution)]).rows
    return PreparedRow(rows.tobytes(), numel * dtype.itemsize, dtype.itemsize, distribution.is_random())


def fill(tensor: torch.Tensor, row: PreparedRow, generator: torch.Generator | None) -> bool:
    """Write to a tensor that `takes` accepts, under the empty name. False: nothing is done, since its memory is not as
    usual: freed, too small, of another owner, or at an odd address."""
    address, storage = tensor.data_ptr(), tensor.untyped_storage()
    end = storage.data_ptr() + storage.nbytes()
    if address % row.element_bytes or address + row.nbytes > end or not storage.resizable():
        return False
    seed = draw_seed(generator) if row.is_random else 0
    try:
        _native.module.fill_row(row.task, address, seed, torch.get_num_threads())  # type: ignore[union-attr]
    finally:  # an interrupted fill has written something, too
        increment_version((tensor,))
    return True
