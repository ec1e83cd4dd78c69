"""Whole models: GPT-2 XL and Llama 3.2 1B, on warm and on freshly allocated memory; and ten thousand small tensors."""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import Allocated, Shapes, allocate, gpt2_xl, llama_3_2_1b

import fastinit
from fastinit.cli.demo import Llama, build_fused
from fastinit.rules.lists import plan_tensors

MODELS: dict[str, Callable[[], Shapes]] = {"GPT-2 XL": gpt2_xl, "Llama 3.2 1B": llama_3_2_1b}
CONTESTANTS = ["torch", "fastinit", "fill"]


def usual_loop(parameters: list[torch.nn.Parameter]) -> None:
    """xavier_uniform_ for matrices, zeros and ones for vectors, as training scripts do it."""
    for parameter in parameters:
        if parameter.dim() >= 2:
            torch.nn.init.xavier_uniform_(parameter)
        else:
            torch.nn.init.zeros_(parameter)


def fill_all(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(0.5)


@pytest.fixture(scope="module", autouse=True)
def large_tensors_outside_the_heap() -> None:
    """glibc would serve tensors of up to 32 MiB from its heap once some were freed, from memory touched before."""
    ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: 1 MiB, and no longer adjusted


def give_memory_back() -> None:
    """To the system, from Python's and from the C library's heap."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _work(contestant: str) -> Callable[[Allocated], object]:
    return {
        "torch": lambda allocated: usual_loop(allocated.parameters),
        "fastinit": lambda allocated: fastinit.init_model_(allocated.model, "xavier_uniform"),
        "fill": lambda allocated: fill_all(allocated.parameters),
    }[contestant]


@pytest.fixture(scope="module")
def warm_models() -> dict[tuple[str, torch.dtype], Allocated]:
    return {}


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_warm(
    race: Callable[..., None],
    warm_models: dict[tuple[str, torch.dtype], Allocated],
    name: str,
    dtype: torch.dtype,
    contestant: str,
) -> None:
    key = (name, dtype)
    if key not in warm_models:
        warm_models.clear()  # one at a time: they are large
        warm_models[key] = allocate(MODELS[name](), dtype)
        fill_all(warm_models[key].parameters)
    allocated = warm_models[key]
    numel = sum(parameter.numel() for parameter in allocated.parameters)
    work = _work(contestant)
    group = f"{name}, {str(dtype).removeprefix('torch.')}, xavier_uniform, warm memory"
    race(group, contestant, numel, lambda: work(allocated), rounds=2 if contestant == "torch" else 5)


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("name", MODELS)
def test_fresh(
    race: Callable[..., None],
    warm_models: dict[tuple[str, torch.dtype], Allocated],
    name: str,
    contestant: str,
) -> None:
    warm_models.clear()
    held: list[Allocated] = []
    numel = sum(torch.Size(shape).numel() for _, shape in MODELS[name]())

    def renew() -> None:
        held.clear()
        give_memory_back()
        # Touched once, as huge pages, and given back: on a virtual machine the first touch of memory that the host has
        # taken back would cost many times what the guest's own page faults do. Then new.
        fastinit.init_model_(allocate(MODELS[name](), torch.float32).model, "xavier_uniform")
        give_memory_back()
        before = resident_bytes()
        held.append(allocate(MODELS[name](), torch.float32))
        assert resident_bytes() - before < numel * 4 // 20, "the allocator handed out memory that was touched before"

    work = _work(contestant)
    group = f"{name}, float32, xavier_uniform, freshly allocated memory"
    race(group, contestant, numel, lambda: work(held[0]), rounds=3, setup=renew)


@pytest.mark.parametrize("contestant", ["torch", "fastinit", "fastinit, same plan again"])
def test_small(race: Callable[..., None], contestant: str) -> None:
    tensors = [torch.zeros(10, 100) for _ in range(10_000)]
    plan = plan_tensors(tensors, "xavier_uniform")

    def loop() -> None:
        for tensor in tensors:
            torch.nn.init.xavier_uniform_(tensor)

    work = {
        "torch": loop,
        "fastinit": lambda: fastinit.init_(tensors, "xavier_uniform"),
        "fastinit, same plan again": plan.run_,
    }[contestant]
    race("10 000 tensors of 1 000 values, xavier_uniform", contestant, 10_000_000, work, rounds=9)


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
@pytest.mark.parametrize("threads", [1, 64], indirect=True)
def test_few_values(race: Callable[..., None], threads: int, contestant: str) -> None:
    """200 calls for 100 values each: under a millisecond a call, for no thread is started."""
    tensor = torch.zeros(100)
    function = torch.nn.init.normal_ if contestant == "torch" else fastinit.normal_

    def calls() -> None:
        for _ in range(200):
            function(tensor)

    group = f"100 values, normal, a call each, {'1 thread' if threads == 1 else f'{threads} threads allowed'}"
    race(group, contestant, 200 * tensor.numel(), calls)


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_building(race: Callable[..., None], contestant: str) -> None:
    """Llama 3.2 1B from its class, whose modules and whose own code initialise it. fill_: its memory, filled once."""
    numel = sum(torch.Size(shape).numel() for _, shape in llama_3_2_1b())

    def llama() -> torch.nn.Module:
        return Llama(layers=16, width=2048, hidden=8192, vocabulary=128256)

    work = {
        "torch": llama,
        "fastinit": lambda: build_fused(llama),
        "fill": lambda: fill_all(allocate(llama_3_2_1b(), torch.float32).parameters),
    }[contestant]
    group = "building Llama 3.2 1B from its class (fastinit: under fused())"
    race(group, contestant, numel, work, rounds=2 if contestant == "torch" else 3)


@pytest.mark.parametrize("contestant", ["torch", "fastinit"])
def test_building_small_modules(race: Callable[..., None], contestant: str) -> None:
    """1 000 modules of 72 values each: what recording costs. The rate counts modules."""

    def modules() -> torch.nn.Module:
        return torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(1000))

    work = modules if contestant == "torch" else lambda: build_fused(modules)
    race("building 1 000 small modules (modules a second)", contestant, 1000, work, rounds=9)


TEN_RULES = [(f"*.layer{position}.*", "normal") for position in range(9)] + [("*c_proj.weight", "kaiming_normal")]


@pytest.mark.filterwarnings("ignore:no parameter matches")
@pytest.mark.parametrize("contestant", ["a scheme", "a preset", "ten rules", "fans of the modules"])
def test_planning(race: Callable[..., None], contestant: str) -> None:
    """GPT-2 XL's 580 parameters, in modules that nobody knows, with all checks. The rate counts parameters."""
    model = allocate(gpt2_xl(), torch.float32).model
    plan = {
        "a scheme": lambda: fastinit.plan(model, "xavier_uniform"),
        "a preset": lambda: fastinit.plan(model, "gpt2"),
        "ten rules": lambda: fastinit.plan(model, "xavier_uniform", TEN_RULES),
        "fans of the modules": lambda: fastinit.plan(model, "xavier_uniform", fan="module"),
    }[contestant]
    race("planning GPT-2 XL (parameters a second)", contestant, len(list(model.parameters())), plan, rounds=20)


class Own(torch.nn.Module):
    """Two layers, of the first of which the module's own code tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.first.weight, std=0.02)


SMALL: dict[str, Callable[[], torch.nn.Module]] = {
    "layers": lambda: torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(1500)),
    "layers with reset code": lambda: torch.nn.ModuleList(Own() for _ in range(750)),
}


@pytest.mark.filterwarnings("ignore:no parameter matches")
@pytest.mark.parametrize("contestant", ["torch", "a plan", "a preset's plan", "a plan and its first run", "again"])
@pytest.mark.parametrize("which", SMALL)
def test_planning_small_layers(race: Callable[..., None], which: str, contestant: str) -> None:
    """3 000 small parameters. torch: `normal_` for each of them. The rate counts parameters."""
    model = SMALL[which]()
    plan = fastinit.plan(model, "kaiming_normal")

    def loop() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()

    work = {
        "torch": loop,
        "a plan": lambda: fastinit.plan(model, "kaiming_normal"),
        "a preset's plan": lambda: fastinit.plan(model, "gpt2"),
        "a plan and its first run": lambda: fastinit.init_model_(model, "kaiming_normal"),
        "again": plan.run_,
    }[contestant]
    race(f"planning 3 000 small parameters: {which} (parameters a second)", contestant, 3000, work, rounds=9)


@pytest.mark.parametrize("contestant", ["a scheme", "a preset"])
def test_printing(race: Callable[..., None], contestant: str) -> None:
    """The table of GPT-2 XL's plan: under 50 milliseconds. The rate counts parameters."""
    model = allocate(gpt2_xl(), torch.float32).model
    plan = fastinit.plan(model, "gpt2" if contestant == "a preset" else "xavier_uniform")
    race("printing GPT-2 XL's plan (parameters a second)", contestant, len(plan.rows), lambda: str(plan), rounds=20)


@pytest.mark.parametrize("contestant", ["half", "whole"])
def test_scaling(race: Callable[..., None], contestant: str) -> None:
    """Doubling the parameters doubles the time."""
    numel = 2**27 if contestant == "half" else 2**28
    tensor = torch.empty(numel).fill_(0.5)
    race(
        "scaling: 2^27 and 2^28 values, uniform, float32",
        contestant,
        numel,
        lambda: fastinit.uniform_(tensor),
        rounds=9,
    )
