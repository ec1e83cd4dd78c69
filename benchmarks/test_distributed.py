"""Planning Llama 3.1 405B on one of 1024 ranks. This process is that rank; the others are not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fastinit

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import sharded
import worlds

RANK, RANKS = 517, 1024


@pytest.mark.parametrize("contestant", ["a rank of 1024", "not distributed"])
def test_planning_of_a_rank(race: Callable[..., None], contestant: str) -> None:
    """Under 5 seconds, as long as nothing is gathered or listed rank by rank. The rate counts parameters."""
    with worlds.simulated_rank(RANK, RANKS):
        model = sharded.llama_405b_on_rank(RANK) if contestant == "a rank of 1024" else sharded.llama_405b()
        race(
            "planning Llama 3.1 405B (parameters a second)",
            contestant,
            len(list(model.parameters())),
            lambda: fastinit.plan(model, "xavier_normal", seed=0),
            rounds=3,
        )
