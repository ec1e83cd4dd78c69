"""What initial weights that can be made again allow, in place: blends, and readings of how far weights have moved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastinit

NUMEL = 2**26  # 256 MiB of float32, beyond all caches
DISTRIBUTIONS = {"normal": fastinit.Normal(0.0, 0.02), "uniform": fastinit.Uniform(-0.1, 0.1)}
SCALE = 1e-3


@pytest.fixture(scope="module")
def weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(NUMEL))


@pytest.mark.parametrize("contestant", ["torch", "fastinit", "mul_", "run_", "progress", "where", "verify", "distance"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@torch.no_grad()
def test_regenerate(race: Callable[..., None], weight: nn.Parameter, distribution: str, contestant: str) -> None:
    """torch's loop perturbs by numbers of a seed; mul_ is the memory's limit of whatever reads and writes a tensor."""
    model = nn.ParameterDict({"w": weight})
    plan = fastinit.plan(model, "normal", [("w", DISTRIBUTIONS[distribution])], seed=0)
    plan.run_()
    mask = torch.arange(NUMEL) % 2 == 0

    def loop() -> None:
        torch.manual_seed(1)
        noise = torch.empty_like(weight)
        weight.add_(noise.normal_() if distribution == "normal" else noise.uniform_(-0.1, 0.1), alpha=SCALE)

    work: dict[str, Callable[[], object]] = {
        "torch": loop,
        "fastinit": lambda: plan.blend_(1.0, SCALE, seed=1),
        "mul_": lambda: weight.mul_(1.0),
        "run_": plan.run_,
        "progress": lambda: plan.run_(progress=lambda done, total: None),
        "where": lambda: plan.run_(where={"w": mask}),
        "verify": lambda: fastinit.verify(model, plan),
        "distance": lambda: fastinit.distance(model, plan),
    }
    race(f"blend of {distribution}, float32", contestant, NUMEL, work[contestant], rounds=5)
