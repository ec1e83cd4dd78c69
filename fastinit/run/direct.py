"""The short way of one tensor to its values: a dense tensor on the CPU, all of it drawn from one distribution.

Values, seeds and versions are those of the long way (plans.py, engine.py), which takes everything else and tells what
is wrong. It costs many times as much as filling a small tensor does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fastinit import _native
from fastinit.run.memory import is_usual
from fastinit.run.streams import draw_seed
from fastinit.run.table import Table
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Distribution

_MOST = 2**20  # elements; filling more takes longer than the long way


def takes(tensor: torch.Tensor) -> bool:
    """Whether a tensor can go the short way, as it lies now."""
    if _native.module is None or not is_usual(tensor) or tensor.device.type != "cpu":
        return False
    if not 0 < tensor.numel() <= _MOST or not tensor.is_contiguous():
        return False
    address, size, storage = tensor.data_ptr(), tensor.element_size(), tensor.untyped_storage()
    end = (int(tensor.storage_offset()) + tensor.numel()) * size
    return address != 0 and address % size == 0 and end <= storage.nbytes() and bool(storage.resizable())


def fill(tensor: torch.Tensor, distribution: Distribution, generator: torch.Generator | None) -> None:
    """Write a sampled distribution to a tensor that `takes` accepts, under the empty name."""
    encoded, dtype = _rows(distribution, tensor.numel(), tensor.dtype)
    rows = np.frombuffer(bytearray(encoded), dtype)
    rows["data"] = tensor.data_ptr()
    seed = draw_seed(generator) if distribution.is_random() else 0
    try:
        _native.module.fill_cpu(rows, seed, torch.get_num_threads())  # type: ignore[union-attr]
    finally:  # an interrupted fill has written something, too
        torch.autograd.graph.increment_version([tensor])


@lru_cache(maxsize=1024)
def _rows(distribution: Distribution, numel: int, dtype: torch.dtype) -> tuple[bytes, np.dtype[Any]]:
    """A prepared table for any tensor of this size and dtype: only its address is left to be set. Its bytes, since
    NumPy's copies leave out what lies between the fields."""
    tensor = torch.empty(numel, dtype=dtype, device="cpu")
    rows = Table([Target("", tensor, tensor.shape, dtype, tensor.device, distribution)]).rows
    return rows.tobytes(), rows.dtype
