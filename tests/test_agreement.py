"""Ranks that share a tensor use one seed where none is given, whatever else they have initialised before. Real
processes over gloo; and ranks that are threads."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor, zeros
from torch.testing._internal.distributed import multi_threaded_pg

import fastinit
from fastinit.distributed import agreement


@pytest.fixture(autouse=True, scope="module")
def _end_of_worlds() -> Iterator[None]:
    yield
    worlds.close_all()


@functools.cache
def mesh_of(*ranks: int) -> DeviceMesh:
    return DeviceMesh("cpu", list(ranks))


@functools.cache
def grid() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))


def drawn(mesh: DeviceMesh, placement: Placement | None = None, rows: int = 4) -> torch.Tensor:
    """This rank's part of a tensor on the mesh, initialised without a seed."""
    tensor = zeros(rows, 2, device_mesh=mesh, placements=[placement or Replicate()])
    fastinit.normal_(tensor)
    return tensor.to_local()


def gathered(tensor: torch.Tensor) -> list[Any]:
    """A tensor of every rank."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, tensor.tolist())
    return found


def assert_equal_everywhere(tensor: torch.Tensor) -> None:
    first, *others = gathered(tensor)
    assert any(map(any, first)), "it was written"
    assert all(other == first for other in others)


# ---- who agrees with whom ----


def _check_meshes() -> None:
    torch.manual_seed(1000 + dist.get_rank())
    everyone = mesh_of(0, 1, 2, 3)
    drawn(mesh_of(0, 3), Shard(0))
    assert_equal_everywhere(drawn(everyone))

    stage = grid()["inner"]
    for _ in range(2 - grid()["outer"].get_local_rank()):
        drawn(stage)
    stages = gathered(drawn(stage))
    assert stages[0] == stages[1] != stages[2] == stages[3]
    assert_equal_everywhere(drawn(everyone))

    if dist.get_rank() == 0:
        fastinit.init_model_(nn.Linear(3, 3), "normal")
        fastinit.zeros_(distribute_tensor(torch.ones(3), everyone, [Replicate()], src_data_rank=None))
    assert_equal_everywhere(drawn(everyone))


@pytest.mark.slow
def test_calls_on_other_meshes_do_not_matter() -> None:
    worlds.run(4, _check_meshes)


def _check_first_rank_of_a_mesh() -> None:
    torch.manual_seed(1001)
    wanted = fastinit.normal_(torch.empty(4, 2))
    torch.manual_seed(1000 + dist.get_rank())
    found = gathered(drawn(mesh_of(1, 3)))
    assert found[1] == found[3] == wanted.tolist()
    state = torch.get_rng_state()
    torch.manual_seed(1000 + dist.get_rank())
    fastinit.normal_(torch.empty(4, 2))
    assert torch.equal(torch.get_rng_state(), state), "ranks outside of the mesh draw, too"


@pytest.mark.slow
def test_a_mesh_without_rank_0_takes_the_seed_of_its_first_rank() -> None:
    worlds.run(4, _check_first_rank_of_a_mesh)


def _check_rank_without_elements() -> None:
    torch.manual_seed(1000 + dist.get_rank())
    everyone = mesh_of(0, 1, 2, 3)
    assert (drawn(everyone, Shard(0), rows=2).numel() > 0) == (dist.get_rank() < 2)
    assert_equal_everywhere(drawn(everyone))


def test_a_rank_takes_part_whether_it_holds_elements_or_not() -> None:
    worlds.run(4, _check_rank_without_elements)


def _on(mesh: DeviceMesh, *placements: Placement) -> nn.Parameter:
    made: DTensor = distribute_tensor(torch.zeros(4, 2), mesh, placements, src_data_rank=None)
    return nn.Parameter(made)


def _check_models_on_several_meshes() -> None:
    """The ranks of a model's meshes are connected, so that tensors outside of them are replicas as well."""
    torch.manual_seed(1000 + dist.get_rank())
    everyone, outer, inner = mesh_of(0, 1, 2, 3), grid()["outer"], grid()["inner"]
    models = {
        "experts": {"dense": _on(everyone, Replicate()), "experts": _on(outer, Replicate())},
        # No rank sees all ranks of these.
        "a grid, line by line": {"column": _on(outer, Replicate()), "row": _on(inner, Replicate())},
        "two meshes of the same ranks": {"a": _on(everyone, Replicate()), "b": _on(grid(), Replicate(), Replicate())},
        # Its one DTensor is not random.
        "a plain weight": {"bias": _on(everyone, Replicate())},
    }
    for parameters in models.values():
        model = nn.ParameterDict({**parameters, "plain": nn.Parameter(torch.zeros(4, 2))})
        fastinit.init_model_(model, "normal", rules=[("bias", "zeros")] if "bias" in model else [])
        for name, parameter in model.items():
            if name != "bias":
                assert_equal_everywhere(parameter.to_local() if isinstance(parameter, DTensor) else parameter)


def test_all_tensors_of_a_model_have_one_seed() -> None:
    worlds.run(4, _check_models_on_several_meshes)


def _check_conflict() -> str:
    """Ranks 0 and 1 give their seeds to 2 and 3 before these meet."""
    meshes = [mesh_of(0, 2), mesh_of(1, 3), mesh_of(2, 3)]
    weights = [_on(mesh, Replicate()) for mesh in meshes if dist.get_rank() in mesh.mesh]
    try:
        fastinit.init_(weights, "normal", names=["first", "second"][: len(weights)])
    except ValueError as error:
        assert all((weight.to_local() == 0.0).all() for weight in weights)
        return str(error)
    return ""


def test_a_rank_that_is_given_two_seeds_says_so() -> None:
    told = worlds.run(4, _check_conflict)
    assert told[3].startswith(
        "seed: expected an int, got None: rank 2 gives ranks 2, 3 another seed than rank 1 gives ranks 1, 3, and this "
        "rank, 3, shares tensors with both"
    )


def _check_wrapper() -> None:
    torch.manual_seed(1000 + dist.get_rank())
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    which = dist.get_rank() // 2
    for _ in range(1 + which):
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 4, bias=False), process_group=groups[which])
        fastinit.init_model_(model, "normal")
    found = gathered(model.module.weight)
    assert found[0] == found[1] != found[2] == found[3]


def test_replicas_under_a_wrapper_agree_within_its_process_group() -> None:
    worlds.run(4, _check_wrapper)


def _check_replicate() -> None:
    from torch.distributed._composable.replicate import replicate

    torch.manual_seed(1000 + dist.get_rank())
    which = dist.get_rank() // 2
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for among in ({"process_group": groups[which]}, {"device_mesh": grid()["inner"]}):
        for _ in range(1 + which):  # the pairs do not wait for each other
            model = replicate(nn.Linear(2, 4, bias=False), **among)
            fastinit.init_model_(model, "normal")
        found = gathered(model.weight)
        assert found[0] == found[1] != found[2] == found[3]
        model(torch.ones(1, 2))  # only now replicate makes its DistributedDataParallel
        for _ in range(1 + which):
            fastinit.init_model_(model, "normal")
        again = gathered(model.weight)
        assert found[0] != again[0] == again[1] != again[2] == again[3]
    whole = replicate(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)))
    fastinit.init_model_(whole, "normal")
    for parameter in whole.parameters():
        if parameter.dim() > 1:
            assert_equal_everywhere(parameter)


def test_composable_replicas_agree_within_their_process_group() -> None:
    worlds.run(4, _check_replicate)


def _check_hybrid() -> None:
    """FSDP1 shards over rows of a grid and replicates over its columns."""
    rows = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    columns = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    rank = dist.get_rank()
    model = FullyShardedDataParallel(
        nn.Linear(2, 4, bias=False),
        process_group=(rows[rank // 2], columns[rank % 2]),
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        device_id=torch.device("cpu"),
    )
    torch.manual_seed(1000 + rank)
    with FullyShardedDataParallel.summon_full_params(model):
        fastinit.init_model_(model, "normal")
        assert_equal_everywhere(model.module.weight)


def test_fsdp1_agrees_over_shards_and_replicas() -> None:
    worlds.run(4, _check_hybrid)


# ---- calls that fail, ranks that do not come ----


def _check_refused_call() -> None:
    torch.manual_seed(1000 + dist.get_rank())
    mesh = mesh_of(0, 1)
    if dist.get_rank() == 1:
        with pytest.raises(ValueError, match="backend"):
            fastinit.init_([_on(mesh, Replicate())], "normal", backend="nativ")
    assert_equal_everywhere(drawn(mesh))
    timeout, agreement.TIMEOUT = agreement.TIMEOUT, timedelta(seconds=1)
    tensor = _on(mesh, Replicate())
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"seed: ranks 1 did not come within 1 s for this rank, 0; .*same int"):
            fastinit.init_([tensor], "normal")
    assert (tensor.to_local() == 0.0).all()
    dist.barrier()
    agreement.TIMEOUT = timeout
    for _ in range(2):
        assert_equal_everywhere(drawn(mesh))


@pytest.mark.slow
def test_a_call_that_fails_on_one_rank_shifts_nothing() -> None:
    worlds.run(2, _check_refused_call)


def _check_lost_first_rank() -> None:
    agreement.TIMEOUT = timedelta(seconds=2)
    mesh = mesh_of(0, 1, 2)
    drawn(mesh)
    if dist.get_rank() == 0:
        os._exit(3)
    tensor = zeros(4, 2, device_mesh=mesh, placements=[Replicate()])
    with pytest.raises(RuntimeError, match=r"seed: ranks 0 did not come within 2 s for this rank, [12]; "):
        fastinit.normal_(tensor)
    assert (tensor.to_local() == 0.0).all()


@pytest.mark.slow
def test_the_others_say_that_the_first_rank_is_lost() -> None:
    with pytest.raises(
        worlds.RankError, match=r"^rank 0 of 3:\nits process ended, with 3$"
    ):  # and no other rank failed
        worlds.run_fresh(3, _check_lost_first_rank)


def _check_interrupt() -> None:
    mesh = mesh_of(0, 1)
    if dist.get_rank() == 0:
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                drawn(mesh)
        finally:
            signal.signal(signal.SIGINT, handler)
    dist.barrier()
    assert_equal_everywhere(drawn(mesh))


@pytest.mark.slow
def test_a_rank_that_waits_can_be_interrupted() -> None:
    worlds.run(2, _check_interrupt)


def _check_store() -> tuple[int, int]:
    mesh = mesh_of(0, 1)
    kept = []
    for calls in (1, 5):
        for _ in range(calls):
            drawn(mesh)
        dist.barrier()
        kept.append(len([key for key in agreement._store().list_keys() if "fastinit" in key]))
        dist.barrier()  # the next meeting begins when both have counted
    return kept[0], kept[1]


@pytest.mark.slow
def test_a_meeting_leaves_nothing_but_its_outcome_in_the_store() -> None:
    once, often = worlds.run(2, _check_store)[0]
    assert once == often > 0


def _check_next_group(path: str) -> None:
    """After a call of one rank alone. Over the same part of a store, gloo would find the addresses of the old group."""
    rank, timeout = dist.get_rank(), agreement.TIMEOUT
    for life in range(2):
        dist.destroy_process_group()
        store = dist.PrefixStore(f"life {life}", dist.FileStore(path, 2))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
        mesh = DeviceMesh("cpu", [0, 1])
        torch.manual_seed(1000 + rank)
        assert_equal_everywhere(drawn(mesh))
        if life == 0 and rank == 0:
            agreement.TIMEOUT = timedelta(seconds=1)
            with pytest.raises(RuntimeError, match="ranks 1 did not come"):
                drawn(mesh)
            agreement.TIMEOUT = timeout
        dist.barrier()


@pytest.mark.slow
def test_another_process_group_begins_afresh(tmp_path: Path) -> None:
    worlds.run_fresh(2, _check_next_group, str(tmp_path / "store"))


# ---- under strict ----


def _check_strict(differs: bool) -> str:
    model = nn.Linear(8, 8)
    fully_shard(model, mesh=mesh_of(0, 1, 2, 3))
    before = model.weight.to_local().clone()
    torch.manual_seed(1000 + dist.get_rank())
    shared: Callable[..., int] = agreement.shared_seed
    if differs and dist.get_rank() == 2:
        agreement.shared_seed = lambda *arguments: shared(*arguments) ^ 1
    try:
        fastinit.init_model_(model, "normal", strict=True)
    except ValueError as error:
        assert torch.equal(model.weight.to_local(), before)
        return str(error)
    finally:
        agreement.shared_seed = shared
    return ""


def test_under_strict_the_seeds_that_ranks_took_are_compared() -> None:
    assert worlds.run(4, _check_strict, False) == [""] * 4
    for told in worlds.run(4, _check_strict, True):
        assert told.startswith("strict: rank 2 and rank 0 differ in the seed drawn: ")


# ---- ranks that are no processes ----


def _check_threads() -> None:
    """Rank 0 initialises once more than the others, on a mesh of its own with rank 1."""
    size, found, store = 4, {}, dist.HashStore()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    multi_threaded_pg._install_threaded_pg()

    def be(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
        own = torch.Generator().manual_seed(1000 + rank)
        everyone = frozenset(range(size))
        found[rank] = [agreement.shared_seed(own.initial_seed(), [frozenset({0, 1})])]
        found[rank] += [agreement.shared_seed(own.initial_seed() + call, [everyone]) for call in range(3)]

    threads = [threading.Thread(target=be, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert found == {rank: [1000 if rank < 2 else 1000 + rank, 1000, 1001, 1002] for rank in range(size)}


@pytest.mark.slow
def test_threads_as_ranks_agree() -> None:
    worlds.run_simulated_fresh(_check_threads)


def _check_simulated() -> None:
    with worlds.simulated_rank(3, 8):
        model = nn.Linear(16, 16)
        fully_shard(model, mesh=init_device_mesh("cpu", (8,)))
        torch.manual_seed(1000)
        fastinit.init_model_(model, "normal")
        found = model.weight.to_local().clone()
    whole = nn.Linear(16, 16)
    torch.manual_seed(1000)
    assert torch.equal(found, fastinit.init_model_(whole, "normal").weight[6:8])


@pytest.mark.slow
def test_a_rank_whose_others_are_not_there_waits_for_nobody() -> None:
    worlds.run_simulated(_check_simulated)
