"""Any number of ranks, any placement: the bits of the whole. Real processes over gloo; torch itself cuts the whole."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import sharded
import torch
import torch.distributed as dist
import worlds
import zoo
from conftest import needs_native
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import fastinit
from fastinit.distributed import agreement
from fastinit.plans.rows import Row
from fastinit.run import engine
from fastinit.run.streams import draw_seed
from fastinit.schemes.distributions import Blocks, Constant, Normal, TruncNormal, Uniform, ZeroRow

pytestmark = needs_native

SEED = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS: dict[type, reference.Kind] = {
    Constant: "constant",
    Uniform: "uniform",
    Normal: "normal",
    TruncNormal: "trunc_normal",
}


@pytest.fixture(autouse=True, scope="module")
def _end_of_worlds() -> Iterator[None]:
    yield
    worlds.close_all()


@functools.cache
def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("outer", "middle", "inner")[-len(shape) :])


def blank(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model full of sevens, which nothing here is initialised to."""
    model = make().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_same_bits(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], told: object = "") -> None:
    assert found.keys() == wanted.keys(), told
    for name, tensor in found.items():
        other = wanted[name]
        assert tensor.dtype == other.dtype and tensor.numel() == other.numel(), (name, told)
        if tensor.numel() > 0:
            assert tensor.shape == other.shape and torch.equal(bits(tensor), bits(other)), (name, told)


# ---- every rank's part equals the slice of the whole ----


def _whole(model: str, scheme: str, dtype: str) -> nn.Module:
    """Initialised by one process, without any mesh."""
    make, arguments = sharded.MODELS[model]
    return fastinit.init_model_(blank(make, DTYPES[dtype]), scheme, seed=SEED, **arguments)


def _check_slices(model: str, layout: str, mesh_shape: tuple[int, ...], scheme: str, dtype: str) -> None:
    torch.manual_seed(1000 + dist.get_rank())
    make, arguments = sharded.MODELS[model]
    mesh, spread = mesh_of(mesh_shape), sharded.LAYOUTS[layout]
    wanted, found = _whole(model, scheme, dtype), blank(make, DTYPES[dtype])
    spread(wanted, mesh)
    spread(found, mesh)
    assert any(isinstance(parameter, DTensor) for parameter in found.parameters())
    with CommDebugMode() as communication:
        fastinit.init_model_(found, scheme, seed=SEED, **arguments)
    assert communication.get_total_counts() == 0
    assert_same_bits(sharded.held(found), sharded.held(wanted), (model, layout, mesh_shape, dist.get_rank()))


# Where a shard's elements lie is counted in elements, so dtypes and schemes say nothing about a mesh: every model and
# layout meets all sizes, dtypes and schemes, but not all of their products.
FSDP = [(model, layout) for model in ("tied_llama", "gpt", "mixture") for layout in ("fsdp", "columns")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_fsdp_holds_slices_of_the_whole(size: int, dtype: str) -> None:
    for case, (model, layout) in enumerate(FSDP):
        turn = (case + size // 2 + (dtype == "bfloat16")) % 2
        worlds.run(size, _check_slices, model, layout, (size,), ("xavier_uniform", "normal")[turn], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 4))])
def test_tensor_parallelism_holds_slices_of_the_whole(size: int, dtype: str) -> None:
    for model in ("llama", "tied_llama"):
        worlds.run(size, _check_slices, model, "tensor_parallel", (size,), "trunc_normal", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mesh", [(2, 2), (1, 4), (4, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)], ids=str)
def test_fsdp_over_tensor_parallelism_holds_slices_of_the_whole(mesh: tuple[int, ...], dtype: str) -> None:
    """On meshes of three dimensions HSDP over tensor parallelism."""
    for model in ("llama", "tied_llama"):
        worlds.run(4, _check_slices, model, "fsdp_over_tensor_parallel", mesh, "kaiming_normal", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_offloaded_parameters_hold_slices_of_the_whole(dtype: str) -> None:
    for size in (2, 3):
        worlds.run(size, _check_slices, "gpt", "offloaded", (size,), "xavier_normal", dtype)


def _check_uneven_fsdp_over_tensor_parallelism(mesh_shape: tuple[int, ...], scheme: str) -> None:
    """Initialising needs no other rank, so that these may be simulated ones."""
    size = math.prod(mesh_shape)
    for rank in range(size):
        with worlds.simulated_rank(rank, size):
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("outer", "inner"))
            wanted, found = _whole("tied_llama", scheme, "float32"), blank(sharded.tied_llama)
            for model in (wanted, found):
                sharded.fsdp_over_tensor_parallel(model, mesh)
            fastinit.init_model_(found, scheme, seed=SEED)
            assert_same_bits(sharded.held(found), sharded.held(wanted), (mesh_shape, rank))


@pytest.mark.slow
def test_uneven_fsdp_over_tensor_parallelism_holds_slices_of_the_whole() -> None:
    """Where what FSDP2 leaves is not what distribute_tensor makes of the same placements: from six ranks on."""
    for mesh in [(3, 2), (4, 2), (2, 3), (3, 4)]:
        worlds.run_simulated(_check_uneven_fsdp_over_tensor_parallelism, mesh, "normal")


def _check_placements(model: str, mesh_shape: tuple[int, ...], scheme: str, dtype: str, at_most: int) -> None:
    """Every parameter with every placement, or with `at_most` of them: all of its own, if it has no more."""
    make, arguments = sharded.MODELS[model]
    mesh, whole = mesh_of(mesh_shape), _whole(model, scheme, dtype)
    # A tensor of n dimensions has (n + 1)^k placements on a mesh of k: steps of 7 meet them all, up to five dimensions.
    for turn in range(0, 7 * min(at_most, sharded.turns(whole, mesh)), 7):
        wanted, found = make().to(DTYPES[dtype]), blank(make, DTYPES[dtype])
        wanted.load_state_dict(whole.state_dict())
        spread = sharded.spread(turn)
        spread(wanted, mesh)
        spread(found, mesh)
        fastinit.init_model_(found, scheme, seed=SEED, **arguments)
        _assert_close_products(sharded.held(found), sharded.held(wanted), (model, mesh_shape, turn, dist.get_rank()))


def _assert_close_products(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], told: object) -> None:
    for name in [name for name in found if name.startswith(sharded.PRODUCTS)]:
        tensor, other = found.pop(name), wanted.pop(name)
        assert tensor.numel() == other.numel() and tensor.dtype == other.dtype, (name, told)
        if tensor.numel() > 0:
            # Of bfloat16 a unit in the last place: two roundings of values that differ in float32's last bits.
            allowed = 2e-6 + other.abs() * (2.0**-7 if tensor.dtype == torch.bfloat16 else 0.0)
            assert tensor.shape == other.shape and ((tensor - other).abs() <= allowed).all(), (name, told)
    assert_same_bits(found, wanted, told)


PLACED = [((2,), 99, dtype) for dtype in DTYPES] + [
    pytest.param(mesh, at_most, dtype, marks=pytest.mark.slow)
    for mesh, at_most, dtype in [
        ((3,), 99, "bfloat16"),
        ((4,), 99, "float32"),
        ((2, 2), 9, "float32"),
        ((1, 2, 2), 9, "bfloat16"),
        ((2, 1, 2), 9, "float32"),
    ]
]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "mixture", "patterns", "stacks"])
@pytest.mark.parametrize(("mesh", "at_most", "dtype"), PLACED, ids=str)
def test_all_placements_hold_slices_of_the_whole(mesh: tuple[int, ...], at_most: int, model: str, dtype: str) -> None:
    """Shards of every dimension and of several, replicas, uneven and empty shards."""
    worlds.run(math.prod(mesh), _check_placements, model, mesh, "kaiming_uniform", dtype, at_most)


def _check_reference(model: str, layout: str, mesh_shape: tuple[int, ...], scheme: str, dtype: str) -> int:
    """Local values against the format's reference, at the global indices that torch's slicing leaves on this rank."""
    make, arguments = sharded.MODELS[model]
    mesh, spread = mesh_of(mesh_shape), sharded.LAYOUTS.get(layout) or sharded.spread(int(layout))
    numbered, found = make().double(), blank(make, DTYPES[dtype])
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    spread(numbered, mesh)
    spread(found, mesh)
    plan = fastinit.plan(found, scheme, seed=SEED, **arguments)
    plan.run_()
    indices, values = sharded.held(numbered), sharded.held(found)
    compared = 0
    for row in plan.rows:
        if row.action == "init" and row.distribution is not None:
            index = indices[row.name].long().flatten().numpy()
            wanted = _referenced(row, dtype, index, row.distribution)
            local = values[row.name].flatten()
            as_numpy = bits(local).numpy().view(np.uint16) if dtype == "bfloat16" else local.numpy()
            assert np.array_equal(as_numpy, wanted), (row.name, dist.get_rank())
            compared += len(index) if row.distribution.is_random() else 0
    return compared


def _referenced(row: Row, dtype: Any, index: np.ndarray[Any, Any], distribution: Any) -> np.ndarray[Any, Any]:
    if isinstance(distribution, ZeroRow):
        dim, sizes = 0, (distribution.row, 1, distribution.rows - distribution.row - 1)
        each: tuple[Any, ...] = (distribution.rest, Constant(0.0), distribution.rest)
    elif isinstance(distribution, Blocks):
        dim, sizes, each = distribution.dim, distribution.sizes, distribution.each
    else:
        return reference.sample(KINDS[type(distribution)], distribution.parameters(), dtype, SEED, row.name, index)
    shape = row.tensor.shape
    block = np.repeat(np.arange(len(sizes)), sizes)[index // shape[dim + 1 :].numel() % shape[dim]]
    every = [_referenced(row, dtype, index, of_block) for of_block in each]
    return np.choose(block, every)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layout", "mesh"), [("fsdp", (3,)), ("fsdp", (2, 2)), ("3", (4,)), ("11", (2, 2)), ("20", (2, 1, 2))], ids=str
)
def test_every_rank_holds_what_the_format_says(layout: str, mesh: tuple[int, ...], dtype: str) -> None:
    for model, scheme in [("tied_llama", "normal"), ("gpt", "trunc_normal"), ("mixture", "xavier_uniform")]:
        counts = worlds.run(math.prod(mesh), _check_reference, model, layout, mesh, scheme, dtype)
        total = sum(parameter.numel() for parameter in sharded.MODELS[model][0]().parameters())
        assert sum(counts) > 0.9 * total


# ---- replicas, seeds, communication ----


def _gathered(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, tensor.contiguous(), group=group)
    return every


def _check_replicas() -> None:
    torch.manual_seed(1000 + dist.get_rank())
    mesh = mesh_of((2, 2))
    model = blank(sharded.tied_llama)
    sharded.fsdp(model, mesh)
    fastinit.init_model_(model, "normal", seed=SEED)
    for name, local in sharded.held(model).items():
        first, second = _gathered(local, mesh.get_group(0))
        assert torch.equal(first, second), name
    shards = _gathered(sharded.held(model)["layers.0.attention.wq.weight"], mesh.get_group(1))
    assert not torch.equal(*shards)


@pytest.mark.slow
def test_replicas_are_equal_whatever_torchs_seed_is() -> None:
    worlds.run(4, _check_replicas)


def _check_drawn_seed(wrap: bool) -> None:
    """With seed=None on every rank, rank 0's; and every rank's generator is as if it had drawn the seeds."""
    wholes, parts = [blank(sharded.llama) for _ in range(2)], [blank(sharded.llama) for _ in range(2)]
    torch.manual_seed(1000)
    for whole in wholes:
        fastinit.init_model_(whole, "normal")
    if not wrap:
        for model in (*wholes, *parts):
            sharded.fsdp(model, mesh_of((3,)))
    torch.manual_seed(1000 + dist.get_rank())
    with CommDebugMode() as communication:
        for part in parts:
            fastinit.init_model_(nn.parallel.DistributedDataParallel(part) if wrap else part, "normal")
    assert wrap or communication.get_total_counts() == 0, "the seed goes through the store"
    state = torch.get_rng_state()
    torch.manual_seed(1000 + dist.get_rank())
    for part, whole in zip(parts, wholes, strict=True):
        assert_same_bits(sharded.held(part), sharded.held(whole))
        draw_seed(None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True], ids=["DTensors", "DistributedDataParallel"])
def test_without_a_seed_all_ranks_take_that_of_the_first(wrap: bool) -> None:
    worlds.run(3, _check_drawn_seed, wrap)


def _check_no_communication() -> None:
    with CommDebugMode() as communication:
        dist.all_reduce(torch.ones(3))
    assert communication.get_total_counts() == 1, "it would be seen"
    model = blank(sharded.GPT)
    sharded.fsdp(model, mesh_of((2, 2)))

    def no_store() -> None:
        raise AssertionError("an int seed needs no store")

    store, agreement._store = agreement._store, no_store
    try:
        with CommDebugMode() as communication:
            fastinit.plan(model, "normal", seed=SEED).run_()
            fastinit.init_(list(model.parameters()), "normal", seed=SEED)
    finally:
        agreement._store = store
    assert communication.get_total_counts() == 0


def test_an_int_seed_needs_no_communication() -> None:
    worlds.run(4, _check_no_communication)


def _initialise_alone() -> None:
    model = blank(sharded.llama)
    sharded.fsdp(model, mesh_of((3,)))
    if dist.get_rank() == 1:
        fastinit.init_model_(model, "normal", seed=SEED)


def test_with_an_int_seed_no_rank_waits_for_another() -> None:
    """Whatever kind of communication there might be: the other ranks take no part."""
    worlds.run(3, _initialise_alone, seconds=20.0)


# ---- tensors by themselves ----


def _check_tensors() -> None:
    mesh = mesh_of((3,))
    whole, matrix = torch.empty(7, 5), torch.empty(8, 4)
    fastinit.init_([whole, matrix], "normal", names=["a", "b"], seed=SEED)
    found = [distribute_tensor(torch.zeros(7, 5), mesh, [Shard(1)]), distribute_tensor(torch.zeros(8, 4), mesh)]
    fastinit.init_(found, "normal", names=["a", "b"], seed=SEED)
    wanted = [distribute_tensor(whole, mesh, [Shard(1)]), distribute_tensor(matrix, mesh)]
    for tensor, other in zip(found, wanted, strict=True):
        assert torch.equal(tensor.to_local(), other.to_local())
    for function in (fastinit.xavier_uniform_, fastinit.trunc_normal_, fastinit.orthogonal_, fastinit.eye_):
        torch.manual_seed(1000)
        function(whole)
        torch.manual_seed(1000 + dist.get_rank())
        tensor = distribute_tensor(torch.zeros(7, 5), mesh, [Shard(0)])
        assert function(tensor) is tensor
        other = distribute_tensor(whole, mesh, [Shard(0)])
        torch.testing.assert_close(tensor.to_local(), other.to_local(), rtol=0, atol=2e-6)


def test_functions_and_lists_take_distributed_tensors() -> None:
    worlds.run(3, _check_tensors)


# ---- parts of a model ----


def _stage(depth: int, stages: int, which: int, tied: bool) -> tuple[nn.Module, dict[str, str]]:
    """One of the stages of a Llama, its layers counted from zero; and the names of its parts in the whole."""
    model = zoo.Llama(20, depth, 50, key_width=10, hidden=31)
    first, last = depth * which // stages, depth * (which + 1) // stages
    names = {f"layers.{layer - first}": f"layers.{layer}" for layer in range(first, last)}
    model.layers = nn.ModuleDict({str(layer - first): model.layers[str(layer)] for layer in range(first, last)})
    if which > 0:
        del model.tok_embeddings
    if which < stages - 1:
        del model.norm, model.output
    elif tied:
        names["output.weight"] = "tok_embeddings.weight"
    return blank(lambda: model), names


def _in_the_whole(names: Mapping[str, str], name: str) -> str:
    for part, other in names.items():
        if name == part or name.startswith(f"{part}."):
            return other + name[len(part) :]
    return name


def _check_stages(depth: int, stages: int, tied: bool, by_function: bool) -> set[str]:
    """A stage on every rank, or on several that share it by FSDP2."""
    whole = zoo.Llama(20, depth, 50, key_width=10, hidden=31)
    if tied:
        whole.output.weight = whole.tok_embeddings.weight
    rules = [("*.wo.weight", fastinit.DepthScaled(fastinit.Normal(std=0.3)))]
    rules += [("*.w2.weight", fastinit.DepthScaled(fastinit.Normal(std=0.3), by="layer"))]
    fastinit.init_model_(whole, "xavier_normal", rules, seed=SEED)
    mesh = mesh_of((stages, dist.get_world_size() // stages))
    stage, names = _stage(depth, stages, mesh.get_local_rank(0), tied)
    slices = dict(whole.named_parameters(remove_duplicate=False))
    if mesh.size(1) > 1:
        sharded.fsdp(whole, mesh["inner"])
        sharded.fsdp(stage, mesh["inner"])
        slices = dict(whole.named_parameters(remove_duplicate=False))
    renaming = functools.partial(_in_the_whole, names) if by_function else names
    fastinit.init_model_(stage, "xavier_normal", rules, seed=SEED, names=renaming, layers=depth)
    found, every = sharded.held(stage), sharded.held(whole)
    assert slices.keys() == every.keys()
    assert_same_bits(found, {name: every[_in_the_whole(names, name)] for name in found})
    return {_in_the_whole(names, name) for name in found}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("size", "stages"), [(2, 2), (4, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_stages_of_a_pipeline_equal_the_whole(size: int, stages: int, tied: bool) -> None:
    for by_function in (False, True):
        names = set[str]().union(*worlds.run(size, _check_stages, 6, stages, tied, by_function))
        every = {name for name, _ in zoo.Llama(depth=6).named_parameters()}
        assert names == (every - {"output.weight"} if tied else every)


def _check_layers_needed() -> None:
    stage, names = _stage(6, 2, dist.get_rank(), False)
    rules = [("*.wo.weight", fastinit.DepthScaled(fastinit.Normal(std=0.3)))]
    with pytest.raises(ValueError, match=r"layers\.\d\.attention\.wo\.weight: .*pass layers="):
        fastinit.plan(stage, "normal", rules, seed=SEED, names=names)


def test_a_stage_whose_scheme_needs_the_depth_of_the_whole_must_be_told() -> None:
    worlds.run(2, _check_layers_needed)


def _check_experts() -> None:
    """Experts in a list of which every rank has its own, counted from zero."""
    whole = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(6, 5) for _ in range(6)), "gate": nn.Linear(6, 6)})
    fastinit.init_model_(whole, "kaiming_uniform", seed=SEED)
    rank, each = dist.get_rank(), 6 // dist.get_world_size()
    part = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(6, 5) for _ in range(each)), "gate": nn.Linear(6, 6)})
    names = {f"experts.{expert}": f"experts.{rank * each + expert}" for expert in range(each)}
    fastinit.init_model_(part, "kaiming_uniform", seed=SEED, names=names)
    every = sharded.held(whole)
    assert_same_bits(sharded.held(part), {name: every[_in_the_whole(names, name)] for name in sharded.held(part)})


def test_experts_of_a_rank_equal_those_of_the_whole() -> None:
    worlds.run(3, _check_experts)


def _check_layer_added() -> None:
    small, large = (zoo.Llama(20, depth, 50, key_width=10, hidden=31) for depth in (2, 3))
    for model in (small, large):
        sharded.fsdp_over_tensor_parallel(model, mesh_of((2, 2)))
        fastinit.init_model_(model, "normal", seed=SEED)
    every = sharded.held(large)
    assert any(name.startswith("layers.2.") for name in every)
    assert_same_bits(sharded.held(small), {name: every[name] for name in sharded.held(small)})


def test_adding_or_removing_a_layer_changes_no_other_parameter() -> None:
    worlds.run(4, _check_layer_added)


# ---- meta device, checkpoints ----


def _check_from_meta() -> None:
    mesh = mesh_of((2, 2))
    wanted = fastinit.init_model_(sharded.llama(), "normal", seed=SEED)
    sharded.fsdp_over_tensor_parallel(wanted, mesh)
    with torch.device("meta"):
        model = sharded.llama()
    sharded.fsdp_over_tensor_parallel(model, mesh)
    planned = fastinit.plan(model, "normal", seed=SEED)
    with pytest.raises(ValueError, match=r"tok_embeddings\.weight: is on the meta device"):
        planned.run_()
    model.to_empty(device="cpu")
    plan = fastinit.plan(model, "normal", seed=SEED)
    plan.run_()
    assert_same_bits(sharded.held(model), sharded.held(wanted))
    for row, other in zip(planned.rows, plan.rows, strict=True):
        assert row._replace(device=other.device, reason=other.reason) == other


@pytest.mark.slow
def test_a_model_from_the_meta_device() -> None:
    worlds.run(4, _check_from_meta)


def _check_materialized(model: str, layout: str, mesh_shape: tuple[int, ...], dtype: str, first: bool) -> None:
    """Before or after the model is spread: what was never on meta, ties and all."""
    make, arguments = sharded.MODELS[model]
    mesh, spread = mesh_of(mesh_shape), sharded.LAYOUTS[layout]
    wanted = _whole(model, "xavier_uniform", dtype)
    spread(wanted, mesh)
    with torch.device("meta"):
        found = make()
    options: dict[str, Any] = {"device": "cpu", "dtype": DTYPES[dtype], "seed": SEED, **arguments}
    with CommDebugMode() as communication:
        if first:
            fastinit.materialize_(found, "xavier_uniform", **options)
        spread(found, mesh)
        if not first:
            fastinit.materialize_(found, "xavier_uniform", **options)
    assert first or communication.get_total_counts() == 0
    assert_same_bits(sharded.held(found), sharded.held(wanted), (model, layout, mesh_shape, first))
    tied = [len(list(each.parameters())) for each in (found, wanted)]
    assert tied[0] == tied[1]


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_materialised_models_hold_slices_of_the_whole(first: bool) -> None:
    for size in (2, 3, 4):
        for model in ("tied_llama", "gpt", "mixture"):
            worlds.run(size, _check_materialized, model, "fsdp", (size,), "bfloat16", first)
    worlds.run(4, _check_materialized, "llama", "fsdp_over_tensor_parallel", (2, 2), "float32", first)
    worlds.run(2, _check_materialized, "llama", "tensor_parallel", (2,), "float32", first)


class _Tabled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("table", torch.arange(4.0) * 3)


def _check_not_materialized() -> None:
    """A buffer that cannot be restored, a parameter that would keep what its memory holds: on every rank."""
    for rules, message in (((), r"cannot restore table"), ([("linear.bias", fastinit.KEEP)], r"linear\.bias")):
        with torch.device("meta"):
            model = _Tabled()
        fully_shard(model, mesh=mesh_of((2, 2)))
        for strict in (False, True):
            with pytest.raises(ValueError, match=message):
                fastinit.materialize_(model, "normal", rules, device="cpu", seed=SEED, strict=strict)
        assert all(parameter.to_local().is_meta for parameter in model.parameters())  # type: ignore[attr-defined]


def test_what_cannot_be_materialised_is_refused_by_name_on_every_rank() -> None:
    worlds.run(4, _check_not_materialized)


def _volume(box: str, shape: torch.Size) -> int:
    """Of "2:5, :" in shape (7, 4): 12."""
    ranges = [slice(*(int(end) if end else None for end in each.split(":"))) for each in box.split(", ") if each]
    return math.prod(len(range(size)[held]) for held, size in zip(ranges, shape, strict=True))


def _check_same_plan() -> None:
    for model in ("tied_llama", "gpt", "mixture"):
        make, arguments = sharded.MODELS[model]
        whole, found = make(), make()
        sharded.spread(1)(found, mesh_of((3,)))
        planned = fastinit.plan(found, "xavier_normal", seed=SEED, strict=True, **arguments)
        wanted = fastinit.plan(whole, "xavier_normal", seed=SEED, **arguments)
        for row, other in zip(planned.rows, wanted.rows, strict=True):
            assert row._replace(boxes=other.boxes) == other
        for record, local in zip(json.loads(planned.to_json()), planned.rows, strict=True):
            if local.action == "init":
                boxes = [] if record["here"] == "nothing" else re.findall(r"\[(.*?)\]", record["here"])
                numel = sum(_volume(box, local.tensor.shape) for box in boxes)
                assert numel == sharded.held(found)[local.name].numel(), record


def test_plans_are_of_global_shapes_and_fans() -> None:
    worlds.run(3, _check_same_plan)


def _checkpointed(path: str, write: bool) -> None:
    mesh = mesh_of((dist.get_world_size(),))
    for model in ("tied_llama", "mixture"):
        make, arguments = sharded.MODELS[model]
        fresh, read = blank(make), blank(make)
        sharded.fsdp(fresh, mesh)
        sharded.fsdp(read, mesh)
        fastinit.init_model_(fresh, "trunc_normal", seed=SEED, **arguments)
        where = str(Path(path) / model)
        if write:
            checkpoint.save(fresh.state_dict(), checkpoint_id=where)
        else:
            state = read.state_dict()
            checkpoint.load(state, checkpoint_id=where)
            read.load_state_dict(state)
            assert_same_bits(sharded.held(read), sharded.held(fresh))


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_read_by_two_equals_a_fresh_start(tmp_path: Path) -> None:
    worlds.run(4, _checkpointed, str(tmp_path), True)
    worlds.run(2, _checkpointed, str(tmp_path), False)


# ---- cost ----


def _count_sampled() -> tuple[int, int]:
    """(elements that the native code samples, elements that this rank holds)."""
    counted = 0

    class Counting(engine.Table):
        def fill_cpu(self, seed: int, threads: int, meter: Any = None) -> None:
            nonlocal counted
            counted += int(self.rows["numel"].sum())
            super().fill_cpu(seed, threads, meter)

    model = sharded.llama()
    sharded.fsdp(model, mesh_of((dist.get_world_size(),)))
    table, engine.Table = engine.Table, Counting
    try:
        fastinit.init_model_(model, "normal", seed=SEED)
    finally:
        engine.Table = table
    return counted, sum(local.numel() for local in sharded.held(model).values())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_samples_its_share_and_no_more(size: int) -> None:
    found = worlds.run(size, _count_sampled)
    assert all(counted == share for counted, share in found)
    assert sum(counted for counted, _ in found) == sum(parameter.numel() for parameter in sharded.llama().parameters())


# ---- what is wrong is said by name, on every rank, before anything is written ----


def _refused(model: nn.Module, message: str, **arguments: Any) -> None:
    before = {name: local.clone() for name, local in sharded.held(model).items()}
    with pytest.raises(ValueError, match=message):
        fastinit.init_model_(model, "normal", seed=SEED, **arguments)
    assert_same_bits(sharded.held(model), before)


def _check_refusals() -> None:
    mesh = mesh_of((2, 2))
    model = blank(sharded.llama)
    sharded.fsdp(model, mesh)
    weight = DTensor.from_local(torch.full((20, 10), 7.0), mesh, [Shard(1), Partial()], run_check=False)
    model.layers["1"].attention.wo.weight = nn.Parameter(weight)  # type: ignore[index,union-attr]
    _refused(model, r"layers\.1\.attention\.wo\.weight: .*Partial\(sum\) on mesh dimension 1")
    _refused(model, r"layers\.1\.attention\.wo\.weight: .*Partial\(sum\) on mesh dimension 1", strict=True)

    model = blank(sharded.llama)
    local = torch.full((9, 20), 7.0)
    weight = DTensor.from_local(local, mesh, [Shard(0), Replicate()], run_check=False, shape=(20, 20), stride=(20, 1))
    model.layers["1"].attention.wo.weight = nn.Parameter(weight)  # type: ignore[index,union-attr]
    _refused(model, r"layers\.1\.attention\.wo\.weight: expected a local tensor of shape \(10, 20\) .* got \(9, 20\)")


def test_what_cannot_be_initialised_is_refused_by_name_on_every_rank() -> None:
    worlds.run(4, _check_refusals)


def _check_missing_rank() -> None:
    agreement.TIMEOUT = timedelta(seconds=2)
    mesh, model = mesh_of((2,)), blank(sharded.llama)
    if dist.get_rank() == 1:  # it forgot to shard
        fastinit.init_model_(model, "normal", seed=SEED, strict=True)
        return
    sharded.fsdp(model, mesh)
    message = r"strict: ranks 1 did not come within 2 s for this rank, 0; all ranks of a mesh must pass"
    with pytest.raises(RuntimeError, match=message):
        fastinit.init_model_(model, "normal", seed=SEED, strict=True)
    assert all((local == 7.0).all() for local in sharded.held(model).values())


@pytest.mark.slow
def test_under_strict_nobody_waits_for_ever_for_a_rank_that_forgot_to_shard() -> None:
    worlds.run_fresh(2, _check_missing_rank)


def _check_missing_seed() -> None:
    agreement.TIMEOUT = timedelta(seconds=2)
    model = blank(sharded.llama)
    sharded.fsdp(model, mesh_of((2,)))
    if dist.get_rank() == 1:
        with pytest.raises(
            RuntimeError, match=r"seed: ranks 0 did not come within 2 s for this rank, 1; .* all ranks of a mesh must"
        ):
            fastinit.init_model_(model, "normal")
        assert all((local == 7.0).all() for local in sharded.held(model).values())


@pytest.mark.slow
def test_nobody_waits_for_ever_for_a_seed() -> None:
    worlds.run_fresh(2, _check_missing_seed)


def _check_disagreement(what: str) -> str:
    """With strict=True, when one rank differs all ranks hear of it."""
    odd_one = dist.get_rank() == 2
    make: Callable[[], nn.Module] = sharded.llama
    if what == "model" and odd_one:
        make = functools.partial(zoo.Llama, 20, 3, 50, key_width=10, hidden=32)
    model = blank(make)
    sharded.fsdp(model, mesh_of((2, 2)))
    scheme = "xavier_normal" if what == "scheme" and odd_one else "xavier_uniform"
    seed = SEED + 1 if what == "seed" and odd_one else SEED
    if what == "failure" and odd_one:
        weight = DTensor.from_local(torch.full((20,), 7.0), mesh_of((2, 2)), [Partial(), Replicate()], run_check=False)
        model.norm.weight = nn.Parameter(weight)
    with pytest.raises(ValueError, match=r"strict|weight") as caught:
        fastinit.init_model_(model, scheme, seed=seed, strict=True)
    assert all((local == 7.0).all() for local in sharded.held(model).values())
    return str(caught.value)


@pytest.mark.parametrize("what", ["model", "scheme", "seed", "failure"])
def test_under_strict_all_ranks_hear_what_one_does_otherwise(what: str) -> None:
    pattern = {
        "model": r"rank 2 .*layers\.0\.feed_forward\.w1\.weight|rank 0 .*layers\.0\.feed_forward\.w1\.weight",
        "scheme": r"rank \d and rank \d differ in tok_embeddings\.weight",
        "seed": r"rank \d and rank \d differ in .*seed",
        "failure": r"norm\.weight: .*Partial\(sum\)",
    }[what]
    for told in worlds.run(4, _check_disagreement, what):
        assert re.search(pattern, told), told
