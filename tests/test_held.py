"""Shards that are no DTensors: Megatron-LM's, ZeRO-3's and registered kinds, at any coordinate, against the whole.

Megatron-LM and DeepSpeed are not needed: what stands in for them here is made from their public layouts.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from conftest import needs_native
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor.debug import CommDebugMode

import fastinit
from fastinit.audit import fingerprints as prints
from fastinit.distributed.held import global_shape, held_of
from fastinit.run.names import canonical_name
from fastinit.run.streams import draw_seed

pytestmark = needs_native


class Block(nn.Module):
    """A table with a padding row, a fused gate and up projection, a stack of maps, vectors."""

    def __init__(self, width: int = 16, ranks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(4 * ranks, width, padding_idx=1)
        self.fc1 = nn.Linear(width, 4 * ranks)
        self.fc2 = nn.Linear(2 * ranks, width)
        self.norm = nn.LayerNorm(width)
        self.stack = nn.Module()
        self.stack.experts = nn.Parameter(torch.rand(3, 2 * ranks, 5))


RULES = [("fc1.bias", fastinit.Uniform(-1.0, 1.0))]
SCHEMES: list[Any] = ["xavier_uniform", fastinit.TruncNormal(std=0.02)]


def dense(scheme: Any, dtype: torch.dtype, ranks: int) -> nn.Module:
    return fastinit.init_model_(Block(ranks=ranks).to(dtype), scheme, RULES, seed=3, fan="module")


def sums(model: nn.Module, *, plain: bool = True) -> dict[str, int]:
    """The hashes of what is held here of each parameter; with `plain`, also of those that are no shards."""
    found = {}
    for name, parameter in model.named_parameters():
        held = held_of(parameter, name)
        if held is not None or plain:
            key = prints.key_of(name, parameter.dtype, global_shape(parameter))
            boxes = [prints.Hashed(key, *box) for box in prints._boxes(parameter, held)]
            found[name] = sum(prints.sums(boxes)) % 2**64
    return found


def added(totals: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return {name: (totals.get(name, 0) + more.get(name, 0)) % 2**64 for name in totals | more}


# ---- Megatron-LM: strips of a dimension ----

DIVIDED = {
    "embed.weight": (0, 1),
    "fc1.weight": (0, 2),
    "fc1.bias": (0, 2),
    "fc2.weight": (1, 1),
    "stack.experts": (1, 1),
}


def strips(whole: torch.Tensor, dim: int, stride: int, rank: int, size: int) -> torch.Tensor:
    """What Megatron-LM itself leaves on a rank: every size-th of size * stride equal pieces, one behind the other."""
    pieces = whole.split(whole.shape[dim] // (size * stride), dim)
    return torch.cat(pieces[rank::size], dim)


def divide(parameter: torch.Tensor, dim: int, stride: int, rank: int, size: int) -> nn.Parameter:
    """A stand-in for a parameter that Megatron-LM has divided: its part, with Megatron's attributes."""
    local: Any = nn.Parameter(torch.full_like(strips(parameter.detach(), dim, stride, rank, size), 7.0))
    local.tensor_model_parallel, local.partition_dim, local.partition_stride = True, dim, stride
    return local


def megatron(model: nn.Module, rank: int, size: int) -> nn.Module:
    """A stand-in for a model of Megatron-LM on one rank, which is not installed here."""
    for name, (dim, stride) in DIVIDED.items():
        holder, _, own_name = name.rpartition(".")
        module = model.get_submodule(holder)
        setattr(module, own_name, divide(model.get_parameter(name), dim, stride, rank, size))
    for parameter in model.parameters():
        if not hasattr(parameter, "tensor_model_parallel"):
            parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "ranks"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (1024, [0, 1, 513, 1023])])
def test_megatron_shards_are_strips_of_the_whole(size: int, ranks: list[int], dtype: torch.dtype) -> None:
    for scheme in SCHEMES:
        whole = dense(scheme, dtype, size)
        for rank in ranks:
            with fastinit.tensor_parallel(rank, size):
                part = megatron(Block(ranks=size).to(dtype), rank, size)
                plan = fastinit.plan(part, scheme, RULES, seed=3, fan="module")
                fastinit.init_model_(part, scheme, RULES, seed=3, fan="module")
                assert fastinit.verify(part, plan) == ()
                wanted = fastinit.plan(whole, scheme, RULES, seed=3, fan="module")
                assert [(row.name, row.shape, row.fans, row.distribution) for row in plan.rows] == [
                    (row.name, row.shape, row.fans, row.distribution) for row in wanted.rows
                ]
            for name, parameter in whole.named_parameters():
                dim, stride = DIVIDED.get(name, (0, 0))
                own = parameter if stride == 0 else strips(parameter, dim, stride, rank, size)
                assert torch.equal(part.get_parameter(name), own), (name, rank, size)


@pytest.mark.parametrize("size", [2, 5])
def test_the_hashes_of_megatron_shards_add_up(size: int) -> None:
    totals: dict[str, int] = {}
    for rank in range(size):
        with fastinit.tensor_parallel(rank, size):
            part = megatron(Block(ranks=size), rank, size)
            fastinit.init_model_(part, "xavier_uniform", RULES, seed=3, fan="module")
            totals = added(totals, sums(part, plain=rank == 0))
    assert totals == sums(dense("xavier_uniform", torch.float32, size))


def _layer(**attributes: Any) -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.full((6, 4), 7.0))
    for name, value in attributes.items():
        setattr(model.weight, name, value)
    return model


def _refused(model: nn.Module, problem: str, **options: Any) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=problem):
        fastinit.init_model_(model, "xavier_uniform", **{"seed": 0, **options})
    assert all(map(torch.equal, before, model.parameters()))


def test_megatron_shards_of_unknown_place_are_refused_by_name() -> None:
    model = _layer(tensor_model_parallel=True, partition_dim=0, partition_stride=1)
    _refused(model, r"^weight: is one of the parts .* along dimension 0, and nobody says which.*tensor_parallel")
    fastinit.init_model_(model, "xavier_uniform", [("weight", fastinit.KEEP)], seed=0)  # which needs nothing


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"partition_dim": 2}, r"expected a partition_dim in \[0, 2\).*got 2"),
        ({"partition_dim": -1}, "got -1"),
        ({}, "got None"),
        ({"partition_dim": 1, "partition_stride": 3}, "a partition_stride that divides the 4 elements .*, got 3"),
        ({"partition_dim": 0, "partition_stride": 0}, "got 0"),
    ],
)
def test_contradicting_attributes_are_refused_by_name(attributes: dict[str, Any], problem: str) -> None:
    with fastinit.tensor_parallel(0, 2):
        _refused(_layer(tensor_model_parallel=True, **attributes), f"^weight: .*{problem}")


def test_a_rank_out_of_range_is_refused() -> None:
    for arguments in ((2, 2), (-1, 2), (0, 0), (True, 2)):
        with pytest.raises(ValueError, match=r"rank: expected|size: expected"), fastinit.tensor_parallel(*arguments):
            pass
    with pytest.raises(ValueError, match="expected both or none"), fastinit.tensor_parallel(0, 2, expert_rank=0):
        pass


def test_shards_without_known_ranks_need_a_seed() -> None:
    with fastinit.tensor_parallel(1, 2):
        model = _layer(tensor_model_parallel=True, partition_dim=0)
        _refused(model, r"^weight: is a shard, and which ranks hold the others .* seed=", seed=None)
        fastinit.init_model_(model, "zeros")  # nothing random


def test_torch_s_functions_never_take_a_megatron_shard_for_the_whole() -> None:
    weight: Any = divide(torch.empty(6, 8), 0, 1, 1, 2)
    before = weight.detach().clone()
    for refused in (lambda: fastinit.xavier_uniform_(weight), lambda: fastinit.eye_(weight)):
        with pytest.raises(fastinit.ParameterError, match=r"nobody says which"):
            refused()
    with fastinit.tensor_parallel(1, 2):
        with pytest.raises(fastinit.ParameterError, match=r"cannot agree on a seed"):
            fastinit.xavier_uniform_(weight)
        assert torch.equal(weight, before)
        fastinit.eye_(weight)
    assert torch.equal(weight, torch.eye(6, 8)[3:])
    with fastinit.tensor_parallel(0, 1):
        torch.manual_seed(0)
        fastinit.xavier_uniform_(weight)
    torch.manual_seed(0)
    assert torch.equal(weight, fastinit.xavier_uniform_(torch.empty(3, 8)))


@pytest.mark.slow
def test_compiled_calls_know_a_megatron_shard() -> None:
    weight: Any = divide(torch.empty(6, 8), 0, 1, 1, 2)

    @torch.compile(backend="eager")
    def step() -> None:
        fastinit.eye_(weight)

    with fastinit.tensor_parallel(1, 2):
        step()
    assert torch.equal(weight, torch.eye(6, 8)[3:])


def test_a_fingerprint_of_a_part_is_refused() -> None:
    with fastinit.tensor_parallel(1, 2):
        model = _layer(tensor_model_parallel=True, partition_dim=0)
        with pytest.raises(ValueError, match=r"weight: is a shard, and which ranks hold the others"):
            fastinit.fingerprint(model)


def test_the_global_size_of_a_module_is_compared() -> None:
    class ColumnParallelLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output_size = 12
            self.weight = nn.Parameter(torch.full((6, 4), 7.0))
            self.weight.tensor_model_parallel, self.weight.partition_dim = True, 0  # type: ignore[attr-defined]

    with fastinit.tensor_parallel(1, 4):
        _refused(ColumnParallelLinear(), r"^weight: expected a global size of 12 .*output_size says, got 24")
    with fastinit.tensor_parallel(1, 2):
        assert fastinit.plan(ColumnParallelLinear(), "normal", seed=0).rows[0].shape == (12, 4)


def test_transformer_engine_marks_of_modules_that_divide_nothing_are_refused() -> None:
    model = _layer(tensor_model_parallel=True, partition_dim=0)
    model.parallel_mode = None
    with fastinit.tensor_parallel(1, 2):
        _refused(model, "^weight: its tensor_model_parallel is True, but its module has no parallel_mode")
    with fastinit.tensor_parallel(0, 1):
        assert fastinit.plan(model, "normal", seed=0).rows[0].shape == (6, 4)


def test_experts_of_several_ranks_need_names() -> None:
    model = _layer(allreduce=False, tensor_model_parallel=True, partition_dim=0)
    with fastinit.tensor_parallel(1, 2, expert_rank=0, expert_size=1, expert_parallel_rank=1, expert_parallel_size=2):
        _refused(model, "^weight: is an expert's .*2 ranks share out the experts")
        fastinit.init_model_(model, "normal", seed=0, names={"weight": "experts.1.weight"})
    whole = torch.empty(6, 4)
    fastinit.init_([whole], "normal", names=["experts.1.weight"], seed=0)
    assert torch.equal(model.weight, whole)  # it is not divided itself


@pytest.fixture
def parallel_state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What stands in for megatron.core.parallel_state."""
    state = SimpleNamespace(
        model_parallel_is_initialized=lambda: True,
        get_tensor_model_parallel_rank=lambda: 1,
        get_tensor_model_parallel_world_size=lambda: 3,
        get_expert_tensor_parallel_rank=lambda: 0,
        get_expert_tensor_parallel_world_size=lambda: 2,
        get_expert_model_parallel_rank=lambda: 0,
        get_expert_model_parallel_world_size=lambda: 1,
    )
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)
    return state


def test_megatron_itself_is_asked_for_the_ranks(parallel_state: Any) -> None:
    def begin(model: nn.Module) -> tuple[Any, Any]:
        (row,) = fastinit.plan(model, "normal", seed=0).rows
        assert row.boxes is not None
        return row.shape, row.boxes[0].begin

    of_dense = _layer(tensor_model_parallel=True, partition_dim=0)
    of_expert = _layer(tensor_model_parallel=True, partition_dim=1, allreduce=False)
    assert begin(of_dense) == ((18, 4), (6, 0))
    assert begin(of_expert) == ((6, 8), (0, 0))
    with fastinit.tensor_parallel(1, 2):  # what the caller says counts
        assert begin(of_dense) == ((12, 4), (6, 0))
    parallel_state.get_expert_model_parallel_world_size = lambda: 4
    _refused(of_expert, "^weight: is an expert's .*4 ranks share out the experts")
    parallel_state.model_parallel_is_initialized = lambda: False
    _refused(of_dense, "nobody says which")


def test_the_adapter_gives_a_rank_its_slice_of_the_whole() -> None:
    initialise = fastinit.adapters.init_method("xavier_uniform", generator=torch.Generator().manual_seed(4))
    with fastinit.tensor_parallel(1, 4):
        weight = _layer(tensor_model_parallel=True, partition_dim=0).weight
        initialise(weight)
    whole = torch.empty(24, 4)
    fastinit.init_([whole], "xavier_uniform", names=[""], seed=draw_seed(torch.Generator().manual_seed(4)))
    assert torch.equal(weight, whole[6:12])


def test_a_megatron_model_on_meta_is_materialised() -> None:
    whole = dense("xavier_uniform", torch.float32, 2)
    with torch.device("meta"):
        part = megatron(Block(ranks=2), 1, 2)
    with fastinit.tensor_parallel(1, 2):
        fastinit.materialize_(part, "xavier_uniform", RULES, device="cpu", seed=3, fan="module")
    for name, (dim, stride) in DIVIDED.items():
        own = part.get_parameter(name)
        assert own.partition_stride == stride  # type: ignore[attr-defined]
        assert torch.equal(own, strips(whole.get_parameter(name), dim, stride, 1, 2)), name


# ---- ZeRO-3: a flat range ----


class _Group:
    """A stand-in for a process group of DeepSpeed."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


AVAILABLE, NOT_AVAILABLE, INFLIGHT = (SimpleNamespace(name=name) for name in ("AVAILABLE", "NOT_AVAILABLE", "INFLIGHT"))


def partition(parameter: Any, rank: int, size: int, *, gathered: bool = False) -> None:
    """A stand-in for deepspeed.zero.Init: what that leaves of a parameter on a rank."""
    whole = parameter.detach()
    each = -(-whole.numel() // size)
    parameter.ds_id, parameter.ds_shape, parameter.ds_numel = 0, whole.shape, whole.numel()
    parameter.ds_process_group, parameter.ds_secondary_tensor = _Group(rank, size), None
    parameter.ds_tensor = torch.full((each,), 7.0, dtype=whole.dtype)
    parameter.ds_tensor.ds_numel = each
    parameter.ds_tensor.status, parameter.ds_tensor.final_location = AVAILABLE, None
    parameter.ds_status = AVAILABLE if gathered else NOT_AVAILABLE
    if not gathered:
        parameter.data = torch.empty(0, dtype=whole.dtype)


def range_of(whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A rank's part of a flat, padded tensor."""
    each = -(-whole.numel() // size)
    padded = torch.zeros(each * size, dtype=whole.dtype)
    padded[: whole.numel()] = whole.detach().flatten()
    return padded[rank * each : (rank + 1) * each]


def zero3(model: nn.Module, rank: int, size: int, **options: Any) -> nn.Module:
    """A stand-in for a model under DeepSpeed's ZeRO-3, which is not installed here."""
    for parameter in model.parameters():
        partition(parameter, rank, size, **options)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "ranks"), [(1, [0]), (2, [0, 1]), (7, range(7)), (1024, [0, 1, 13, 512, 1023])])
def test_zero3_holds_ranges_of_the_whole(size: int, ranks: list[int], dtype: torch.dtype) -> None:
    for scheme in SCHEMES:
        whole = dense(scheme, dtype, 5)
        wanted = fastinit.plan(whole, scheme, RULES, seed=3, fan="module")
        for rank in ranks:
            part = zero3(Block(ranks=5).to(dtype), rank, size)
            plan = fastinit.plan(part, scheme, RULES, seed=3, fan="module")
            assert [(row.name, row.shape, row.fans, row.reason, row.distribution) for row in plan.rows] == [
                (row.name, row.shape, row.fans, row.reason, row.distribution) for row in wanted.rows
            ]
            fastinit.init_model_(part, scheme, RULES, seed=3, fan="module")
            assert fastinit.verify(part, plan) == () == fastinit.verify(part, wanted)
            for name, parameter in whole.named_parameters():
                own: Any = part.get_parameter(name)
                assert torch.equal(own.ds_tensor, range_of(parameter, rank, size)), (name, rank, size)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "filled"), [(3, 3), (1024, 321)])
def test_the_hashes_of_zero3_parts_add_up(size: int, filled: int) -> None:
    """All ranks that hold any element: the largest parameter has 320."""
    totals: dict[str, int] = {}
    for rank in range(filled):
        part = zero3(Block(ranks=5), rank, size)
        fastinit.init_model_(part, "xavier_uniform", RULES, seed=3, fan="module")
        totals = added(totals, sums(part))
    assert totals == sums(dense("xavier_uniform", torch.float32, 5))


def test_a_gathered_parameter_is_written_whole_and_in_its_part() -> None:
    whole = dense("xavier_uniform", torch.float32, 5)
    part = fastinit.init_model_(
        zero3(Block(ranks=5), 1, 3, gathered=True), "xavier_uniform", RULES, seed=3, fan="module"
    )
    for name, parameter in whole.named_parameters():
        own: Any = part.get_parameter(name)
        assert torch.equal(own, parameter) and torch.equal(own.ds_tensor, range_of(parameter, 1, 3))


def test_a_plan_follows_a_parameter_that_is_gathered_or_partitioned_again() -> None:
    model: Any = nn.Linear(5, 3, bias=False)
    whole = fastinit.init_model_(nn.Linear(5, 3, bias=False), "normal", seed=0).weight
    partition(model.weight, 1, 2)
    plan = fastinit.plan(model, "normal", seed=0)
    plan.run_()
    model.weight.data, model.weight.ds_status = torch.full((3, 5), 7.0), AVAILABLE
    model.weight.ds_tensor.fill_(7.0)
    plan.run_()
    assert torch.equal(model.weight, whole) and torch.equal(model.weight.ds_tensor, range_of(whole, 1, 2))


def test_torch_s_functions_fill_a_partitioned_parameter() -> None:
    parameter: Any = nn.Parameter(torch.empty(6, 4))
    partition(parameter, 4, 5)
    fastinit.functional.ones_(parameter)
    assert torch.equal(parameter.ds_tensor, range_of(torch.ones(6, 4), 4, 5))
    with pytest.raises(ValueError, match="which ranks hold the others is not known"):
        fastinit.functional.xavier_uniform_(parameter)
    del parameter.ds_tensor
    with pytest.raises(ValueError, match="ZeRO-3, but has no ds_tensor"):
        fastinit.functional.normal_(parameter)


def test_orthogonal_matrices_under_zero3_are_parts_of_the_whole() -> None:
    whole = fastinit.init_model_(nn.Linear(9, 7, bias=False), "orthogonal", seed=0).weight
    for rank in range(3):
        model: Any = nn.Linear(9, 7, bias=False)
        partition(model.weight, rank, 3)
        fastinit.init_model_(model, "orthogonal", seed=0)
        assert torch.allclose(model.weight.ds_tensor, range_of(whole, rank, 3), atol=1e-6)


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda parameter: setattr(parameter, name, value)


def _on_part(name: str, value: Any) -> Callable[[Any], None]:
    return lambda parameter: setattr(parameter.ds_tensor, name, value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda parameter: delattr(parameter, "ds_tensor"), "but has no ds_tensor"),
        (_set("ds_tensor", None), "expected a contiguous ds_tensor of one dimension, got None"),
        (_set("ds_tensor", torch.zeros(2, 12)), r"got shape \(2, 12\)"),
        (_set("ds_tensor", torch.zeros(7)), "expected parts of 12 elements, 24 .*a ds_tensor of 7 on rank 1"),
        (_set("ds_numel", 23), "got ds_numel 23"),
        (_set("ds_shape", torch.Size((6, 5))), "expected parts of 15 elements, 30"),
        (_set("ds_process_group", _Group(1, 4)), "expected parts of 6 elements"),
        (_set("ds_status", INFLIGHT), "its ds_status is inflight"),
        (_set("ds_status", AVAILABLE), r"gathered \(ds_status\): expected shape \(6, 4\), got \(0,\)"),
        (_set("data", torch.full((6, 4), 7.0)), "expected it to be empty, got shape"),
        (_set("ds_secondary_tensor", torch.zeros(12)), "a secondary or quantised partition"),
        (_set("tensor_model_parallel", True), "divided by tensor parallelism, too"),
        (_on_part("status", NOT_AVAILABLE), "its part is not in memory .*NVMe"),
        (_on_part("final_location", "nvme"), "its part is not in memory .*final_location nvme"),
    ],
)
def test_zero3_that_cannot_be_understood_is_refused_by_name(change: Callable[[Any], None], problem: str) -> None:
    model: Any = _layer()
    partition(model.weight, 1, 2)
    change(model.weight)
    _refused(model, f"^weight: is partitioned by DeepSpeed's ZeRO-3, .*{problem}")
    part = getattr(model.weight, "ds_tensor", None)
    assert part is None or part.numel() == 0 or float(part.max()) in (0.0, 7.0)


# ---- real processes ----


@pytest.fixture(autouse=True, scope="module")
def _end_of_worlds() -> Iterator[None]:
    yield
    worlds.close_all()


def _pairs() -> Any:
    """The process group of this rank and its neighbour: tensor parallelism over two, replicated over the others."""
    groups = [dist.new_group([first, first + 1]) for first in range(0, dist.get_world_size(), 2)]
    return groups[dist.get_rank() // 2]


def _check_megatron() -> None:
    group, rank = _pairs(), dist.get_rank() % 2
    whole = dense("xavier_uniform", torch.float32, 2)
    with fastinit.tensor_parallel(rank, 2, group=group):
        part = megatron(Block(ranks=2), rank, 2)
        fastinit.init_model_(part, "xavier_uniform", RULES, seed=3, fan="module")
        assert fastinit.fingerprint(part) == fastinit.fingerprint(whole)
        # Without a seed, the pair takes that of its first rank.
        generator = torch.Generator().manual_seed(dist.get_rank())
        fastinit.init_model_(part, "xavier_uniform", RULES, generator=generator, fan="module")
        weight = divide(torch.empty(6, 8), 1, 1, rank, 2)
        fastinit.kaiming_normal_(weight, generator=torch.Generator().manual_seed(dist.get_rank()))
    seed = draw_seed(torch.Generator().manual_seed(dist.get_rank() - rank))
    drawn = torch.empty(6, 8)
    fastinit.init_([drawn], "kaiming_normal", names=[""], seed=seed)
    assert torch.equal(weight, strips(drawn, 1, 1, rank, 2)), "torch's functions know the shard, too"
    fastinit.init_model_(whole, "xavier_uniform", RULES, seed=seed, fan="module")
    for name, (dim, stride) in DIVIDED.items():
        assert torch.equal(part.get_parameter(name), strips(whole.get_parameter(name), dim, stride, rank, 2)), name


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_megatron_shards_of_real_processes(size: int) -> None:
    worlds.run(size, _check_megatron)


def _check_ranks_that_disagree() -> None:
    """Both processes of a pair say that they hold the first part."""
    group, place = _pairs(), dist.get_rank() % 2
    part = megatron(Block(ranks=2), place, 2)
    before = [parameter.detach().clone() for parameter in part.parameters()]
    if place == 1:
        message = "^rank: expected 1, the place of this process in its group, got 0"
        with pytest.raises(ValueError, match=message), fastinit.tensor_parallel(0, 2, group=group):
            fastinit.init_model_(part, "xavier_uniform", RULES, seed=3)
        assert all(map(torch.equal, before, part.parameters()))
    message = "^group: expected one of 4 ranks, got 2"
    with pytest.raises(ValueError, match=message), fastinit.tensor_parallel(place, 4, group=group):
        fastinit.init_model_(part, "xavier_uniform", RULES, seed=3)
    assert all(map(torch.equal, before, part.parameters()))


def test_ranks_that_contradict_their_process_group_are_refused() -> None:
    worlds.run(2, _check_ranks_that_disagree)


def _check_zero3() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = dense("xavier_uniform", torch.float32, 5)
    part = zero3(Block(ranks=5), rank, size)
    for parameter in part.parameters():
        parameter.ds_process_group = dist.group.WORLD  # type: ignore[attr-defined]
    fastinit.init_model_(part, "xavier_uniform", RULES, seed=3, fan="module")
    assert fastinit.fingerprint(part) == fastinit.fingerprint(whole)
    weight: Any = part.get_parameter("fc1.weight")
    fastinit.functional.normal_(weight, generator=torch.Generator().manual_seed(rank))
    drawn = torch.empty(20, 16)
    fastinit.init_([drawn], "normal", names=[""], seed=draw_seed(torch.Generator().manual_seed(0)))
    assert torch.equal(weight.ds_tensor, range_of(drawn, rank, size))
    fastinit.init_model_(part, "normal", generator=torch.Generator().manual_seed(rank))
    seed = draw_seed(torch.Generator().manual_seed(0))
    fastinit.init_model_(whole, "normal", seed=seed)
    assert fastinit.fingerprint(part) == fastinit.fingerprint(whole)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_zero3_of_real_processes(size: int) -> None:
    worlds.run(size, _check_zero3)


# ---- FSDP1: ranges in flat parameters ----


class Tied(nn.Module):
    """Nested units, a padding row, a head that is tied, and a frozen map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 6)) for _ in range(2))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


TIED_RULES = [("*.0.bias", fastinit.Uniform(-1.0, 1.0))]


def _fully_sharded(use_orig_params: bool, strategy: ShardingStrategy) -> Any:
    model = Tied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    options: dict[str, Any] = {
        "device_id": torch.device("cpu"), "use_orig_params": use_orig_params, "sharding_strategy": strategy
    }  # fmt: skip
    for position, layer in enumerate(model.layers):
        model.layers[position] = FullyShardedDataParallel(layer, **options)
    return FullyShardedDataParallel(model, **options)


def _held_now(model: Any) -> list[tuple[str, Any]]:
    return [(name, sorted(module._parameters)) for name, module in model.named_modules()]


def _check_flat(use_orig_params: bool, strategy: ShardingStrategy) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, of FSDP1
    warnings.simplefilter("ignore", UserWarning)
    rank = dist.get_rank()
    whole = fastinit.init_model_(Tied(), "xavier_uniform", TIED_RULES, seed=3)
    model = _fully_sharded(use_orig_params, strategy)
    before = _held_now(model)
    plan = fastinit.plan(model, "xavier_uniform", TIED_RULES, seed=3)
    wanted = fastinit.plan(whole, "xavier_uniform", TIED_RULES, seed=3)
    assert [(row.name, row.action, row.shape, row.fans, row.distribution) for row in plan.rows] == [
        (row.name, row.action, row.shape, row.fans, row.distribution) for row in wanted.rows
    ]
    with CommDebugMode() as communication:
        plan.run_()
    assert communication.get_total_counts() == 0
    assert _held_now(model) == before  # nothing of the model itself has changed
    assert fastinit.verify(model, wanted) == ()
    assert fastinit.fingerprint(model) == fastinit.fingerprint(whole)

    def check(against: nn.Module) -> None:
        with FullyShardedDataParallel.summon_full_params(model):
            full = {canonical_name(name): value for name, value in model.named_parameters()}
            assert full.keys() == dict(against.named_parameters()).keys()
            for name, value in against.named_parameters():
                assert torch.equal(full[name], value), name

    check(whole)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(11).unsqueeze(0)).square().sum().backward()
    optimizer.step()
    assert fastinit.verify(model, wanted) != ()
    plan.run_()  # after FSDP1's own lazy initialisation, which moves shards
    check(whole)
    # Without a seed, all take that of the first rank.
    fastinit.init_model_(model, "normal", generator=torch.Generator().manual_seed(rank))
    check(fastinit.init_model_(Tied(), "normal", seed=draw_seed(torch.Generator().manual_seed(0))))
    if strategy is ShardingStrategy.FULL_SHARD:
        full = FullyShardedDataParallel.summon_full_params(model)
        with full, pytest.raises(ValueError, match=r"embed\.weight: .* that is gathered now"):
            plan.run_()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD])
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flat_shards_hold_ranges_of_the_whole(use_orig_params: bool, strategy: ShardingStrategy) -> None:
    for size in (2, 3):
        worlds.run(size, _check_flat, use_orig_params, strategy)


# ---- kinds that others register ----


class _Halves(nn.Parameter):
    """The odd or the even rows of a matrix."""


@pytest.fixture
def halves() -> Iterator[None]:
    def held(tensor: torch.Tensor) -> fastinit.Held:
        rows, columns = tensor.shape
        if columns == 1:
            raise ValueError("expected more than one column")
        begin = int(tensor.is_odd)  # type: ignore[attr-defined]
        pieces = [fastinit.Piece((2 * row + begin, 0), tensor.detach()[row : row + 1]) for row in range(rows)]
        return fastinit.Held(torch.Size((2 * rows, columns)), pieces)

    forget = fastinit.register_shards(_Halves, held)
    yield
    forget()


@pytest.mark.usefixtures("halves")
def test_a_registered_kind_is_treated_by_its_global_shape() -> None:
    whole = fastinit.init_model_(nn.Linear(4, 6, bias=False), "xavier_uniform", seed=0).weight
    for is_odd in (False, True):
        model: Any = nn.Linear(4, 3, bias=False)
        model.weight = _Halves(torch.full((3, 4), 7.0))
        model.weight.is_odd = is_odd
        plan = fastinit.plan(model, "xavier_uniform", seed=0)
        assert plan.rows[0].fans == (4, 6) and plan.rows[0].shape == (6, 4) and plan.numel == 12
        plan.run_()
        assert torch.equal(model.weight, whole[int(is_odd) :: 2]) and fastinit.verify(model, plan) == ()
        fastinit.init_([model.weight], "xavier_uniform", names=["weight"], seed=0)
        assert torch.equal(model.weight, whole[int(is_odd) :: 2])


def test_torch_s_functions_ask_registered_kinds() -> None:
    weight: Any = nn.Parameter(torch.empty(3, 8))
    weight.is_second_half = True
    forget = fastinit.register_shards(
        lambda tensor: hasattr(tensor, "is_second_half"),
        lambda tensor: fastinit.Held(torch.Size((6, 8)), [fastinit.Piece((3, 0), tensor.detach())]),
    )
    fastinit.eye_(weight)
    forget()
    assert torch.equal(weight, torch.eye(6, 8)[3:])


@pytest.mark.usefixtures("halves")
def test_a_refusal_of_a_registered_kind_names_the_parameter() -> None:
    model: Any = _layer()
    model.weight = _Halves(torch.full((3, 1), 7.0))
    model.weight.is_odd = False
    _refused(model, "^weight: expected more than one column")


def test_what_a_registered_kind_gives_is_checked() -> None:
    def refused(held: Any, problem: str) -> None:
        forget = fastinit.register_shards(_Halves, held)
        model: Any = _layer()
        model.weight = _Halves(torch.full((3, 4), 7.0))
        try:
            _refused(model, problem)
        finally:
            forget()

    half = torch.empty(3, 4, dtype=torch.bfloat16)
    refused(lambda tensor: None, "^weight: its registered kind of shards gives NoneType")
    refused(
        lambda tensor: fastinit.Held(torch.Size((6, 4)), [fastinit.Piece((4, 0), tensor.detach())]),
        r"^weight: expected pieces of a tensor of shape \(6, 4\), got \(3, 4\) at \(4, 0\)",
    )
    refused(
        lambda tensor: fastinit.Held(torch.Size((6, 4)), [fastinit.Piece((0, 0), half)]),
        "^weight: expected its local memory in torch.float32, got torch.bfloat16",
    )
    with pytest.raises(TypeError, match="is_one: expected"):
        fastinit.register_shards("Half", lambda tensor: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="held: expected"):
        fastinit.register_shards(_Halves, None)  # type: ignore[arg-type]


def test_ranges_of_any_shape_are_the_elements_in_order() -> None:
    for shape in ((), (1,), (7,), (3, 4), (2, 3, 4), (1, 5, 1, 2), (0, 3), (3, 0, 2)):
        numel = math.prod(shape)
        whole = torch.arange(1, numel + 1).view(shape)
        for begin in range(numel + 2):
            for length in range(numel + 3):
                memory = torch.full((length,), -1)
                held = fastinit.Held.flat(shape, begin, memory)
                for piece in held.pieces:
                    box = tuple(slice(at, at + size) for at, size in zip(piece.begin, piece.tensor.shape, strict=True))
                    piece.tensor.copy_(whole[box])
                for padding in held.padding:
                    padding.zero_()
                wanted = torch.zeros(numel + 2 + numel + 3, dtype=memory.dtype)
                wanted[:numel] = whole.flatten()
                assert torch.equal(memory, wanted[begin : begin + length]), (shape, begin, length)
                assert len(held.pieces) <= 2 * len(shape) or not shape
