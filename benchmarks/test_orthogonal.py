"""Orthogonal matrices, against torch.nn.init.orthogonal_, which factorises one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import allocate

import fastinit

SHAPES = {
    "64 x 64": (64, 64),
    "256 x 256": (256, 256),
    "512 x 512": (512, 512),
    "1024 x 1024": (1024, 1024),
    "4096 x 4096": (4096, 4096),
    "4096 x 1024": (4096, 1024),
    "1024 x 4096": (1024, 4096),
    "11008 x 4096": (11008, 4096),
}


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
@pytest.mark.parametrize("name", SHAPES)
def test_orthogonal_alone(race: Callable[..., None], name: str, contestant: str) -> None:
    tensor = torch.zeros(SHAPES[name])
    function = torch.nn.init.orthogonal_ if contestant == "torch" else fastinit.orthogonal_
    rounds = 200 if tensor.numel() < 2**18 else 10 if tensor.numel() < 2**24 else 4 if name == "4096 x 4096" else 2
    race(f"orthogonal, float32, {name}", contestant, tensor.numel(), lambda: function(tensor), rounds=rounds)


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
def test_orthogonal_together(race: Callable[..., None], contestant: str) -> None:
    tensors = [torch.zeros(256, 256) for _ in range(64)]

    def loop() -> None:
        for tensor in tensors:
            torch.nn.init.orthogonal_(tensor)

    work = loop if contestant == "torch" else lambda: fastinit.init_(tensors, "orthogonal")
    race("orthogonal, float32, 64 of 256 x 256", contestant, 64 * 2**16, work, rounds=20)


def gpt2_medium() -> list[tuple[str, tuple[int, ...]]]:
    """The matrices of 24 layers of width 1024, and the embeddings (Radford et al. 2019, table 2)."""
    width = 1024
    shapes: list[tuple[str, tuple[int, ...]]] = [("wte.weight", (50257, width)), ("wpe.weight", (1024, width))]
    for layer in range(24):
        block = f"h.{layer}."
        shapes += [(block + "attn.c_attn.weight", (3 * width, width)), (block + "attn.c_proj.weight", (width, width))]
        shapes += [(block + "mlp.c_fc.weight", (4 * width, width)), (block + "mlp.c_proj.weight", (width, 4 * width))]
    return shapes


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
def test_orthogonal_model(race: Callable[..., None], contestant: str) -> None:
    allocated = allocate(gpt2_medium(), torch.float32)
    with torch.no_grad():
        for parameter in allocated.parameters:
            parameter.fill_(0.5)

    def loop() -> None:
        for parameter in allocated.parameters:
            torch.nn.init.orthogonal_(parameter)

    work = loop if contestant == "torch" else lambda: fastinit.init_model_(allocated.model, "orthogonal")
    numel = sum(parameter.numel() for parameter in allocated.parameters)
    race(
        "orthogonal, float32, GPT-2 medium, all matrices",
        contestant,
        numel,
        work,
        rounds=1 if contestant == "torch" else 3,
    )
