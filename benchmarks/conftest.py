"""What the benchmarks share: threads, and groups in which every contestant does the same work in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

# (contestants, setup) -> nothing; records one group. Contestant "fill" is tensor.fill_, the memory limit.
Work = Callable[..., object]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets torch's number of threads, which fastinit follows, for one benchmark. 0: all there are."""
    before = torch.get_num_threads()
    wanted: int = getattr(request, "param", 0) or before
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.fixture
def race(benchmark: Any, threads: int) -> Callable[..., None]:
    """Times one contestant of a group: race(group, contestant, values, bytes, work, rounds=..., setup=...)."""

    def run(
        group: str,
        contestant: str,
        numel: int,
        work: Work,
        *,
        rounds: int = 5,
        setup: Work | None = None,
        warm: int = 1,
    ) -> None:
        benchmark.group = group
        benchmark.extra_info.update(contestant=contestant, numel=numel, threads=threads)
        benchmark.pedantic(work, setup=setup, rounds=rounds, warmup_rounds=0 if setup else warm)

    return run
