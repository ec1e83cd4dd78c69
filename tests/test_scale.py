"""What sharding costs a rank, and whether it holds at the size of the largest models: 405 billion parameters over 1024
ranks, indices beyond 2^40."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference
import sharded
import torch
import torch.distributed as dist
import worlds
from conftest import needs_native
from peaks import memory, peak_memory
from sharded import WORLD_OF_1024, llama_405b, llama_405b_on_rank
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import fastinit
from fastinit.distributed import shards as sharding
from fastinit.distributed.shards import Box, MeshSplit
from fastinit.plans.rows import targets_of
from fastinit.run.index_maps import index_maps
from fastinit.run.targets import Target, begin_of, indices_of, indices_of_tensor

pytestmark = needs_native

MIB = 2**20


# ---- memory ----


def _memory_beyond_shard(scheme: str) -> tuple[int, int]:
    """(bytes that this rank holds, bytes that were needed)."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(20)), nn.Embedding(20_000, 1024))
    sharded.fsdp(model, mesh)
    model.to_empty(device="cpu")
    warm_up = nn.Linear(30, 30)
    fastinit.init_model_(warm_up, scheme, seed=0)  # what is loaded once
    before = memory()
    fastinit.init_model_(model, scheme, seed=0)
    grown = peak_memory() - before
    shard = sum(local.nbytes for local in sharded.held(model).values())
    return shard, grown


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_a_rank_needs_the_memory_of_its_shard_and_32_mib(size: int) -> None:
    total = 4 * (20 * 2048 * 2048 + 20_000 * 1024)
    found = worlds.run_fresh(size, _memory_beyond_shard, "trunc_normal", forked=False)
    assert sum(shard for shard, _ in found) == total
    for shard, grown in found:
        # What was written is the shard at least: the measurement sees it.
        assert shard - MIB < grown < shard + 32 * MIB


# ---- 405 billion parameters, 1024 ranks ----


def _memory_of_plan(rank: int) -> tuple[int, int]:
    """(elements of the model, bytes that planning it took)."""
    fastinit.plan(nn.Linear(3, 3), "xavier_normal", seed=0)  # what is loaded once
    with worlds.simulated_rank(rank, math.prod(WORLD_OF_1024)):
        model = llama_405b_on_rank(rank)
        before = memory()
        plan = fastinit.plan(model, "xavier_normal", seed=0)
        grown = peak_memory() - before
        share = sum(local.numel() for local in sharded.held(model).values())
        assert plan.numel == share
        return sum(parameter.numel() for parameter in model.parameters()), grown


@pytest.mark.slow
def test_a_rank_of_1024_plans_405_billion_parameters_in_500_mib() -> None:
    numel, grown = worlds.run_simulated_fresh(_memory_of_plan, 517, seconds=120.0)
    assert numel == 405_853_388_800
    assert grown < 500 * MIB


def _splits_at(tensor: DTensor, coordinate: Sequence[int]) -> list[MeshSplit]:
    found = []
    for placement, parts, which in zip(tensor.placements, tensor.device_mesh.shape, coordinate, strict=True):
        if not isinstance(placement, Replicate):
            shard: Any = placement
            found.append(MeshSplit(shard.dim, parts, which, getattr(shard, "split_factor", 1)))
    return found


def _assert_tiled(shape: Sequence[int], held: Sequence[Sequence[Box]], replicas: int) -> None:
    """That the boxes of all ranks cover every element as often as there are replicas: their volumes add up, and no two
    different ones meet."""
    every = [box for boxes in held for box in boxes]
    assert sum(math.prod(box.shape) for box in every) == math.prod(shape) * replicas
    distinct = sorted({(box.begin, box.shape) for box in every})
    assert len(distinct) * replicas == len(every)
    begin = np.array([begin for begin, _ in distinct])
    end = begin + np.array([lengths for _, lengths in distinct])
    meets = (np.maximum(begin[:, None], begin[None]) < np.minimum(end[:, None], end[None])).all(axis=2)
    assert meets.sum() == len(distinct), "boxes of two ranks meet"
    assert (begin >= 0).all() and (end <= np.array(shape)).all()


def _assert_maps_cover(target: Target) -> None:
    """That the index maps of a box begin and end where it does, and have as many elements."""
    strides = indices_of(target).strides
    first = sum(index * stride for index, stride in zip(begin_of(target), strides, strict=True))
    last = first + sum((size - 1) * stride for size, stride in zip(target.tensor.shape, strides, strict=True))
    maps = index_maps(target.tensor, indices_of_tensor(target))
    assert maps[0].global_offset == first
    length, rows = maps[-1].row_length, maps[-1].rows_per_slab
    slabs = maps[-1].numel // (length * rows)
    steps = (rows - 1) * maps[-1].row_index_step + (slabs - 1) * maps[-1].slab_index_step
    assert maps[-1].global_offset + steps + length - 1 == last
    assert sum(each.numel for each in maps) == target.tensor.numel()


def _check_tiling(sample: Sequence[int]) -> int:
    """The boxes of all ranks, counted and compared; those of a sample of ranks are the ones that they plan."""
    coordinates = list(itertools.product(*map(range, WORLD_OF_1024)))
    arithmetic: dict[str, list[list[Box]]] = {}
    for rank in sample:
        with worlds.simulated_rank(rank, math.prod(WORLD_OF_1024)):
            model = llama_405b_on_rank(rank, 1)
            for name, tensor in model.named_parameters():
                assert isinstance(tensor, DTensor)
                if name not in arithmetic:
                    held = [sharding.boxes_held(tensor.shape, _splits_at(tensor, each)) for each in coordinates]
                    _assert_tiled(tensor.shape, held, sharding.num_replicas(tensor))
                    arithmetic[name] = held
            planned: dict[str, list[tuple[tuple[int, ...], ...]]] = {}
            for row in fastinit.plan(model, "xavier_normal", seed=0).rows:
                for target in targets_of(row, row.tensor):
                    _assert_maps_cover(target)
                    planned.setdefault(target.name, []).append((begin_of(target), tuple(target.tensor.shape)))
            for name, held in arithmetic.items():
                assert planned.get(name, []) == [(box.begin, box.shape) for box in held[rank]], (name, rank)
    return len(arithmetic)


@pytest.mark.slow
def test_the_plans_of_1024_ranks_tile_every_parameter_once() -> None:
    found = worlds.run_simulated(_check_tiling, [0, 1, 7, 8, 517, 1016, 1023], seconds=120.0)
    assert found == len(list(llama_405b(1).parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1000,), (1001, 70), (1023, 3), (5, 127)], ids=str)
def test_uneven_plans_of_1024_ranks_tile_a_parameter_once(shape: tuple[int, ...]) -> None:
    for first, second in itertools.product(range(len(shape)), repeat=2):
        for stride in (1, 8) if first == second else (1,):
            coordinates = itertools.product(*map(range, WORLD_OF_1024))
            splits = [
                [MeshSplit(first, 128, data, stride), MeshSplit(second, 8, tensor)] for data, tensor in coordinates
            ]
            _assert_tiled(shape, [sharding.boxes_held(shape, each) for each in splits], 1)


# ---- global indices beyond 2^32 and 2^40 ----


def _check_huge(
    rank: int, size: int, shape: tuple[int, ...], dim: int, scheme: str, dtype: str, sampled: int
) -> tuple[int, int]:
    """A rank's part of a tensor of `shape`, against the reference; (its first global index, its last)."""
    with worlds.simulated_rank(rank, size):
        mesh = init_device_mesh("cpu", (size,))
        local_shape = list(shape)
        local_shape[dim] //= size
        stride = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
        local = torch.full(local_shape, 7.0, dtype=getattr(torch, dtype))
        tensor = DTensor.from_local(
            local, mesh, [Shard(dim)], run_check=False, shape=torch.Size(shape), stride=tuple(stride)
        )
        plan = fastinit.plan(nn.ParameterDict({"weight": tensor}), scheme, rules=[("weight", scheme)], seed=5)
        plan.run_()
    generator = np.random.default_rng(rank)
    at = [generator.integers(0, length, sampled) for length in local_shape]
    for which, length in zip(at, local_shape, strict=True):
        which[:2] = 0, length - 1
    index = sum((which + (rank * local_shape[dim] if d == dim else 0)) * stride[d] for d, which in enumerate(at))
    [row] = plan.rows
    distribution: Any = row.distribution
    kind: reference.Kind = "uniform" if scheme == "uniform" else "normal"
    wanted = reference.sample(
        kind, distribution.parameters(), "bfloat16" if dtype == "bfloat16" else "float32", 5, "weight", index
    )
    found = local[tuple(torch.from_numpy(which) for which in at)]
    as_numpy = found.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else found.numpy()
    assert np.array_equal(as_numpy, wanted)
    return int(index.min()), int(index.max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "dim", "beyond"),
    [((2**22, 2**20), 0, 2**40), ((3, 2**40), 1, 2**40), ((2**18, 2**16), 0, 2**32), ((5, 2**30), 1, 2**32)],
    ids=str,
)
def test_values_at_huge_global_indices_are_those_of_the_format(
    shape: tuple[int, ...], dim: int, beyond: int, dtype: str
) -> None:
    size = 2**20 if beyond == 2**40 else 2**14
    for rank in (size - 1, size // 2 + 3):
        _, last = worlds.run_simulated(_check_huge, rank, size, shape, dim, "normal", dtype, 20_000)
        assert last > beyond
