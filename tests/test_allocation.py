"""Memory for models on the meta device: what it keeps, what it never does, and what FSDP2 and DTensor make of it."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastinit.meta.allocation import _offloaded, allocate_

CPU = torch.device("cpu")


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


class Allocations(TorchDispatchMode):
    """The operators that run, and the bytes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta and "detach" not in function.name():
            self.names.add(function.name())
            self.nbytes += result.nbytes
        return result


def test_everything_gets_memory_once_and_nothing_is_written() -> None:
    model = on_meta(lambda: nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Embedding(9, 4)))
    expected = sum(each.nbytes for each in [*model.parameters(), *model.buffers()])
    with Allocations() as seen:
        allocate_(model, CPU)
    assert all(each.device == CPU for each in [*model.parameters(), *model.buffers()])
    assert seen.names == {"aten::empty_like"} and seen.nbytes == expected


def test_deterministic_algorithms_do_not_fill_it() -> None:
    model = on_meta(lambda: nn.Linear(1000, 1000, bias=False))
    torch.use_deterministic_algorithms(True)
    try:
        allocate_(model, CPU)
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()  # the setting is on again
    finally:
        torch.use_deterministic_algorithms(False)
    assert not model.weight.isnan().all()


def test_a_parameter_stays_the_same_object_with_all_that_hangs_on_it() -> None:
    model = on_meta(lambda: nn.Linear(3, 4))
    weight, bias = model.weight, model.bias.requires_grad_(False)
    weight.note, weight._is_hf_initialized = "kept", True
    optimizer = torch.optim.SGD([weight], lr=1.0)
    allocate_(model, CPU)
    assert model.weight is weight and model.bias is bias and optimizer.param_groups[0]["params"][0] is weight
    assert weight.note == "kept" and weight.requires_grad and not bias.requires_grad
    assert not hasattr(weight, "_is_hf_initialized")
    weight.data.fill_(1.0), bias.fill_(0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert weight.detach().eq(0.0).all()


def test_a_parameter_that_is_referred_to_weakly_stays_the_same_object() -> None:
    model = on_meta(lambda: nn.Linear(3, 4))
    references = [weakref.ref(model.weight), weakref.ref(model.bias)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    allocate_(model, CPU)
    assert references[0]() is model.weight and references[1]() is model.bias and model.weight.device == CPU
    model.weight.data.fill_(1.0), model.bias.data.fill_(0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert model.weight.detach().eq(0.0).all()


def test_a_parameter_in_an_autograd_graph_is_replaced_in_every_module() -> None:
    def build() -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["b"].weight = model["a"].weight
        return model

    model = on_meta(build)
    old = model["a"].weight
    old.note = "kept"
    graph = old * old
    with pytest.warns(UserWarning, match=r"^a\.weight: an autograd graph"):
        allocate_(model, CPU)
    assert old.is_meta and graph.is_meta
    assert model["a"].weight is model["b"].weight and model["a"].weight.device == CPU
    assert isinstance(model["a"].weight, nn.Parameter) and model["a"].weight.note == "kept"


def test_ties_hold_across_modules_even_when_these_are_allocated_one_by_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("mask", torch.ones(4))
            self.embed.register_buffer("mask", self.mask)

    model = on_meta(Tied)
    allocate_(model.embed, CPU, recurse=False)
    assert model.head.weight is model.embed.weight and model.head.weight.device == CPU
    assert model.mask.is_meta
    model = on_meta(Tied)
    allocate_(model, CPU)
    assert model.head.weight is model.embed.weight and model.embed.mask is model.mask


def test_recurse_false_leaves_the_children() -> None:
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2)))
    model.register_parameter("scale", nn.Parameter(torch.empty(2, device="meta")))
    allocate_(model, CPU, recurse=False)
    assert not model.scale.is_meta and model[0].weight.is_meta


def test_dtype_is_that_of_floating_point_parameters() -> None:
    model = on_meta(lambda: nn.Linear(3, 2))
    model.register_parameter("phase", nn.Parameter(torch.empty(2, dtype=torch.complex64, device="meta")))
    packed = nn.Parameter(torch.empty(2, dtype=torch.int8, device="meta"), requires_grad=False)
    model.register_parameter("packed", packed)
    model.register_buffer("inv_freq", torch.empty(2, device="meta"))
    allocate_(model, CPU, torch.bfloat16)
    assert model.weight.dtype == model.bias.dtype == torch.bfloat16
    assert model.phase.dtype == torch.complex64 and model.packed.dtype == torch.int8
    assert model.inv_freq.dtype == torch.float32


def test_buffers_that_torch_computes_with_beside_a_weight_follow_its_dtype() -> None:
    def build() -> nn.Module:
        normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        return nn.Sequential(normed, nn.BatchNorm1d(6), nn.utils.spectral_norm(nn.Linear(6, 2)))

    model = on_meta(build)
    allocate_(model, CPU, torch.bfloat16)
    for each in [*model.parameters(), *model.buffers()]:
        each.data.fill_(1)
    assert model(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(4, 3, 5, 5, device="meta").to(memory_format=torch.channels_last),
        torch.empty(3, 7, device="meta").t(),
        torch.empty(0, 3, device="meta"),
        torch.empty((), device="meta"),
    ],
    ids=["channels_last", "transposed", "empty", "scalar"],
)
def test_strides_are_kept(tensor: torch.Tensor) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    allocate_(module, CPU)
    assert module.weight.shape == tensor.shape and module.weight.stride() == tensor.stride()


class Special(nn.Parameter):
    pass


def test_the_type_of_a_parameter_is_kept() -> None:
    module = nn.Module()
    module.weight = Special(torch.empty(2, device="meta"))
    module.table = nn.Buffer(torch.empty(2, device="meta"), persistent=False)
    allocate_(module, CPU)
    assert type(module.weight) is Special and isinstance(module.table, nn.Buffer)
    assert "table" in module._non_persistent_buffers_set


def test_hooks_still_run_and_can_still_be_removed() -> None:
    model = on_meta(lambda: nn.Linear(2, 2, bias=False))
    ran = []
    handles = [
        model.weight.register_hook(lambda gradient: ran.append("gradient")),
        model.weight.register_post_accumulate_grad_hook(lambda parameter: ran.append("accumulated")),
    ]
    allocate_(model, CPU)
    model(torch.ones(1, 2)).sum().backward()
    assert ran == ["gradient", "accumulated"]
    for handle in handles:
        handle.remove()
    model(torch.ones(1, 2)).sum().backward()
    assert len(ran) == 2


def test_parametrised_weights() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.utils.weight_norm(nn.Linear(3, 3))
        )

    with pytest.warns(FutureWarning, match="weight_norm"):
        model = on_meta(build)
    allocate_(model, CPU)
    for each in model.parameters():
        each.data.fill_(1.0)
    assert torch.allclose(model[0].weight, torch.full((3, 3), 3**-0.5))
    assert model(torch.ones(1, 3)).isfinite().all()


def test_recurrent_layers_compute_with_what_they_were_given() -> None:
    torch.manual_seed(0)
    expected = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    model = on_meta(lambda: nn.LSTM(3, 4, num_layers=2, batch_first=True))
    allocate_(model, CPU)
    for own, other in zip(model.parameters(), expected.parameters(), strict=True):
        own.data.copy_(other)
    inputs = torch.randn(2, 5, 3)
    assert torch.equal(model(inputs)[0], expected(inputs)[0])


def test_what_has_memory_is_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias = nn.Parameter(torch.empty(2, device="meta"))
    before = {name: id(each) for name, each in model.state_dict(keep_vars=True).items()}
    weight = model[0].weight.detach().clone()
    allocate_(model, CPU, torch.float64)
    assert {name: id(each) for name, each in model.state_dict(keep_vars=True).items()} == before
    assert model[0].weight.dtype == torch.float32 and torch.equal(model[0].weight, weight)
    assert model[0].bias.dtype == torch.float64


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.LazyBatchNorm1d())


def expanded() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(1, 3).expand(4, 3))
    return module


def sharing() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    return model


def sparse() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(3, 3, layout=torch.sparse_coo))
    return module


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lazy, "1.weight, 1.bias, 2.weight, 2.bias, 2.running_mean, 2.running_var: lazy"),
        (expanded, r"weight: several elements share memory \(shape \(4, 3\), strides \(0, 1\)\)"),
        (sharing, "b.weight: shares memory with a.weight; make them one Parameter"),
        (sparse, "weight: expected a dense .* got layout torch.sparse_coo"),
    ],
)
def test_what_cannot_be_allocated_is_refused_before_anything_changes(build: Any, message: str) -> None:
    model = on_meta(build)
    with pytest.raises((TypeError, ValueError), match=message):
        allocate_(model, CPU)
    assert all(each.is_meta or nn.parameter.is_lazy(each) for each in model.parameters())


def test_views_of_one_storage_that_do_not_meet_are_separate_parameters() -> None:
    flat = torch.empty(10, device="meta")
    module = nn.Module()
    module.a, module.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    allocate_(module, CPU)
    assert module.a.data_ptr() != module.b.data_ptr() and module.b.shape == (6,)


def test_meta_is_no_device_to_allocate_on() -> None:
    with pytest.raises(ValueError, match="device: expected one with memory, got meta"):
        allocate_(nn.Linear(1, 1), torch.device("meta"))


@pytest.mark.slow
def test_importing_does_not_import_the_distributed_tensor() -> None:
    code = (
        "import sys, fastinit.meta.allocation, fastinit.meta.buffers; "
        "assert not [name for name in sys.modules if name.startswith(('torch.distributed.tensor', 'transformers'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process as a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own
@pytest.mark.usefixtures("alone")
def test_a_stage_of_a_pipeline() -> None:
    from torch.distributed.pipelining import SplitPoint, pipeline

    model = on_meta(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    pipe = pipeline(model, (torch.empty(2, 3, device="meta"),), split_spec={"1": SplitPoint.BEGINNING})
    stage: Any = pipe.get_stage_module(1)
    allocate_(stage, CPU)
    for each in stage.parameters():
        each.data.fill_(1.0)
    assert torch.equal(stage(torch.ones(2, 4)), torch.full((2, 5), 5.0))


@pytest.mark.usefixtures("alone")
def test_parameters_that_fsdp_offloads_are_found() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = on_meta(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    fully_shard(model[0], mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    fully_shard(model[1], mesh=mesh)
    assert _offloaded(model.modules()) == {id(each) for each in model[0].parameters()}
    allocate_(model, CPU)
    for each in model.parameters():
        each.data.fill_(1.0)
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 5), 17.0))


def value(parameter: Any) -> torch.Tensor:
    """Any value that differs from element to element."""
    return torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape).sub(3.0).div(parameter.numel())


def fill(model: nn.Module, rank: int, size: int) -> None:
    """What an initialiser does: write each rank's rows into its local tensors."""
    for parameter in model.parameters():
        rows = value(parameter).chunk(size)
        local: Any = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        with torch.no_grad():
            local.copy_(rows[rank] if rank < len(rows) else rows[0][:0])


class Uneven(nn.Module):
    """Seven rows over two ranks, a single one, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.inner = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1), nn.Linear(1, 5))
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.inner(self.embed(tokens)))
        return output


def _fsdp() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    tokens = torch.tensor([0, 6, 3])
    expected = Uneven()
    for parameter in expected.parameters():
        parameter.data.copy_(value(parameter))
    expected(tokens).square().mean().backward()
    offload, mixed = CPUOffloadPolicy(pin_memory=False), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for settings in ({}, {"offload_policy": offload}, {"mp_policy": mixed}, {"reshard_after_forward": False}):
        model: Any = on_meta(Uneven)
        for layer in model.inner:
            fully_shard(layer, mesh=mesh, **settings)
        fully_shard(model, mesh=mesh, **settings)
        before = {name: (id(each), each.placements, each.stride()) for name, each in model.named_parameters()}
        allocate_(model, CPU)
        after = {name: (id(each), each.placements, each.stride()) for name, each in model.named_parameters()}
        assert after == before and model.head.weight is model.embed.weight
        assert all(type(each) is DTensor and each.device == CPU for each in model.parameters())
        locals_then = [each.to_local().data_ptr() for each in model.parameters()]
        fill(model, rank, 2)
        tolerance = {"rtol": 0.05, "atol": 0.05} if "mp_policy" in settings else {"rtol": 1e-5, "atol": 1e-6}
        output = model(tokens)
        torch.testing.assert_close(output.float(), expected(tokens), **tolerance)
        output.float().square().mean().backward()
        for own, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(own.grad.full_tensor().float(), other.grad, **tolerance)
        # No pass exchanged the memory, and what is written to it later is seen.
        assert [each.to_local().data_ptr() for each in model.parameters()] == locals_then
        for each in model.parameters():
            each.to_local().detach().zero_()
        assert model(tokens).eq(0.0).all()


@pytest.mark.slow
def test_fsdp2_with_uneven_shards_ties_offload_and_mixed_precision() -> None:
    worlds.run(2, _fsdp)


def _tensor_parallel() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    mesh = init_device_mesh("cpu", (2,))
    model: Any = on_meta(build)
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    allocate_(model, CPU, torch.float64)
    assert model[0].weight.placements == (Shard(0),) and model[2].weight.placements == (Shard(1),)
    assert model[2].bias.placements == (Replicate(),) and model[0].weight.device_mesh == mesh
    assert model[2].weight.shape == (3, 6) and model[2].weight.to_local().shape == (3, 3)
    assert model[2].weight.dtype == torch.float64 and model[2].weight.to_local().is_contiguous()
    for each in model.parameters():
        each.to_local().detach().fill_(0.5)
    expected = build().double()
    for each in expected.parameters():
        each.data.fill_(0.5)
    inputs = torch.ones(2, 4, dtype=torch.float64)
    torch.testing.assert_close(model(inputs), expected(inputs))


@pytest.mark.slow
def test_parallelize_module() -> None:
    worlds.run(2, _tensor_parallel)


def _two_dimensions() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    model: Any = on_meta(lambda: nn.Sequential(nn.Linear(4, 12, bias=False), nn.ReLU()))
    parallelize_module(model, mesh["model"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    before = (model[0].weight.placements, model[0].weight.stride())
    allocate_(model, CPU)
    weight = model[0].weight
    assert (weight.placements, weight.stride()) == before and weight.to_local().shape == (3, 4)
    weight.to_local().detach().fill_(0.5)
    torch.testing.assert_close(model(torch.ones(2, 4)), torch.full((2, 6), 2.0))


@pytest.mark.slow
def test_fully_shard_over_parallelize_module() -> None:
    worlds.run(4, _two_dimensions)
