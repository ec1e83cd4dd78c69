"""The harness of the distributed tests: what a failing rank, one that hangs and one that dies look like."""

from __future__ import annotations

import os
import re
import time
import warnings

import pytest
import torch
import torch.distributed as dist
import worlds


def _sum_of_ranks() -> tuple[int, int, float]:
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return os.getpid(), dist.get_world_size(), total.item()


def _fail(*how: str) -> None:
    mine = how[dist.get_rank()]
    if mine == "warn":
        warnings.warn("this rank warns", stacklevel=1)
    if mine == "exit":
        os._exit(3)
    if mine == "hang":
        time.sleep(1000.0)


@pytest.mark.slow
def test_a_world_is_started_once_and_its_ranks_talk_to_each_other() -> None:
    first, second = worlds.run(3, _sum_of_ranks), worlds.run(3, _sum_of_ranks)
    assert first == second
    assert [answer[1:] for answer in first] == [(3, 3.0)] * 3
    assert len({process for process, *_ in first} | {os.getpid()}) == 4


@pytest.mark.slow
def test_ranks_that_fail_are_reported_and_the_next_check_gets_a_new_world() -> None:
    before = worlds.run(3, _sum_of_ranks)
    with pytest.raises(worlds.RankError) as caught:
        worlds.run(3, _fail, "warn", "exit", "hang", seconds=2.0)
    first, second, third = re.split("^rank ", str(caught.value), flags=re.MULTILINE)[1:]
    assert first.startswith("0 of 3:\nTraceback") and "in _fail" in first and "UserWarning: this rank warns" in first
    assert second == "1 of 3:\nits process ended, with 3\n"
    assert third == "2 of 3:\nno answer after another rank had failed"
    after = worlds.run(3, _sum_of_ranks)
    assert [answer[1:] for answer in after] == [(3, 3.0)] * 3
    assert not {process for process, *_ in before} & {process for process, *_ in after}


@pytest.mark.slow
def test_a_check_that_takes_too_long_fails() -> None:
    with pytest.raises(worlds.RankError, match=r"rank 0 of 1:\nno answer within 1 s"):
        worlds.run(1, _fail, "hang", seconds=1.0)
