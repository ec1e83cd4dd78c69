"""The fingerprint of 64 million values, beside torch's sum and fill_, which do nothing but read or write memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fastinit

NUMEL = 2**26
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@pytest.mark.parametrize("threads", [0, 1], ids=["all threads", "1 thread"], indirect=True)
@pytest.mark.parametrize("contestant", ["torch", "fastinit", "fill"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprint(race: Callable[..., None], threads: int, contestant: str, dtype: str) -> None:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.full((NUMEL,), 0.5, dtype=DTYPES[dtype]), requires_grad=False)
    weight = module.weight
    work: dict[str, Callable[[], object]] = {
        "torch": weight.sum,
        "fastinit": lambda: fastinit.fingerprint(module),
        "fill": lambda: weight.fill_(0.5),
    }
    group = f"fingerprint (torch: sum), {dtype}, 2^26 values, {threads} thread{'s' * (threads > 1)}"
    race(group, contestant, NUMEL, work[contestant], rounds=9)
