"""One tensor of 64 million values: every distribution and dtype, one thread and all. And calls for small tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

import fastinit

SHAPE = (8192, 8192)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
INITIALISERS: dict[str, tuple[Callable[..., object], Callable[..., object], int]] = {
    # name: torch's, ours, rounds for torch
    "uniform": (torch.nn.init.uniform_, fastinit.uniform_, 5),
    "xavier_uniform": (torch.nn.init.xavier_uniform_, fastinit.xavier_uniform_, 5),
    "normal": (torch.nn.init.normal_, fastinit.normal_, 5),
    "kaiming_normal": (torch.nn.init.kaiming_normal_, fastinit.kaiming_normal_, 5),
    "trunc_normal at 2 sigma": (torch.nn.init.trunc_normal_, fastinit.trunc_normal_, 2),
}
# The kernels of xavier and kaiming are those of uniform and normal: one dtype shows it.
CASES = [
    (name, dtype)
    for name in INITIALISERS
    for dtype in DTYPES
    if dtype == "float32" or name in ("uniform", "normal", "trunc_normal at 2 sigma")
]


@functools.cache
def _tensor(dtype: str) -> torch.Tensor:
    tensor = torch.empty(SHAPE, dtype=DTYPES[dtype])
    return tensor.fill_(0.5)  # touched: warm memory


@pytest.mark.parametrize("threads", [0, 1], ids=["all threads", "1 thread"], indirect=True)
@pytest.mark.parametrize("contestant", ["torch", "fastinit", "fill"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_fill(race: Callable[..., None], threads: int, contestant: str, name: str, dtype: str) -> None:
    tensor = _tensor(dtype)
    theirs, ours, rounds = INITIALISERS[name]
    work = {"torch": theirs, "fastinit": ours, "fill": lambda each: each.fill_(0.5)}[contestant]
    slow = contestant == "torch"
    group = f"{name}, {dtype}, 8192 x 8192, {threads} thread{'s' * (threads > 1)}"
    race(group, contestant, tensor.numel(), lambda: work(tensor), rounds=rounds if slow else 9, warm=0 if slow else 1)


# Whose kernels differ; eye and dirac are constants with a diagonal.
CALLS = [
    "zeros_",
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "kaiming_normal_",
    "eye_",
    "orthogonal_",
    "sparse_",
]
_CALLS_A_ROUND = 200


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("order", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("name", CALLS)
def test_calls(race: Callable[..., None], contestant: str, name: str, dtype: str, order: int) -> None:
    """Calls for one matrix of 1 to 65 536 elements: no slower than torch. The rate counts calls."""
    if name == "orthogonal_" and dtype == "bfloat16":
        pytest.skip("torch has no decomposition in bfloat16")
    matrix = torch.zeros(order, order, dtype=DTYPES[dtype])
    arguments = (0.1,) if name == "sparse_" else ()
    initialise = getattr(torch.nn.init if contestant == "torch" else fastinit.functional, name)
    calls = _CALLS_A_ROUND if order < 64 else 20

    def work() -> None:
        for _ in range(calls):
            initialise(matrix, *arguments)

    race(f"{name} of {order} x {order}, {dtype} (calls a second)", contestant, calls, work, rounds=20)
