"""deferred(): models on meta that remember how their values are made, and materialize_ from what they remember."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import Tensor, nn

import fastinit


class Relative(nn.Module):
    """Attention with the buffers that timm and swin compute, in part through Python numbers."""

    def __init__(self, size: int = 3, heads: int = 2) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.3, 4)]
        self.places = torch.arange(5).tolist()
        width = int(torch.tensor([4, 8]).max())
        self.qkv = nn.Linear(width, 3 * width)
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        offsets = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0).contiguous()
        offsets[:, :, 0] += size - 1
        offsets[:, :, 1] += size - 1
        offsets[:, :, 0] *= 2 * size - 1
        self.register_buffer("relative_position_index", offsets.sum(-1))
        self.bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu_(1), persistent=False)
        self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.register_buffer("from_numpy", torch.from_numpy(np.arange(4.0)))
        self.frequencies = 1.0 / (10000 ** (torch.arange(0, 8, 2) / 8))  # a plain attribute
        table = np.random.RandomState(0).rand(4, width)
        self.position = nn.Parameter(torch.zeros(1, 4, width), requires_grad=False)
        self.position.data.copy_(torch.from_numpy(table).float().unsqueeze(0))
        self.tie = self.position
        if grid[0, 0] == 0:
            self.flag = True


class Legacy(nn.Module):
    """torch.Tensor(3, 4) asks no mode, and has memory."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = nn.Parameter(torch.Tensor(30, 20))
        self.parts = nn.Parameter(torch.FloatTensor(4, 4))
        self.register_buffer("numbers", torch.LongTensor([1, 2]))
        nn.init.xavier_uniform_(self.drawn)
        self.parts.data.normal_(std=3.0)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Relative": Relative,
    "Legacy": Legacy,
    "recurrent": lambda: nn.LSTM(8, 16, num_layers=2, bidirectional=True),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def has_tapes(model: nn.Module) -> bool:
    return any("_fastinit_tapes" in module.__dict__ for module in model.modules())


@needs_native
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_fused(name: str) -> None:
    with fastinit.deferred(seed=3):
        model = MODELS[name]()
    assert all(each.is_meta for each in model.parameters()) and has_tapes(model)
    assert fastinit.materialize_(model, "own", device="cpu", seed=3) is model
    with fastinit.fused(seed=3):
        other = MODELS[name]()
    assert same_bits(model, other) and not has_tapes(model)
    for key, parameter in other.named_parameters():
        assert model.get_parameter(key).requires_grad == parameter.requires_grad


def test_code_that_looks_at_values() -> None:
    plain = Relative()
    with fastinit.deferred():
        model = Relative()
    assert (model.rates, model.places, model.flag) == (plain.rates, plain.places, True)
    fastinit.materialize_(model, "own", device="cpu")
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer) and model.get_buffer(name).dtype == buffer.dtype, name
    assert torch.equal(model.frequencies, plain.frequencies) and torch.equal(model.position, plain.position)
    assert model.tie is model.position


@needs_native
def test_another_scheme_takes_buffers_from_the_tapes() -> None:
    with fastinit.deferred():
        model = Relative()
    fastinit.materialize_(
        model, "kaiming_normal", [("bias_table", "zeros"), ("position", "zeros")], device="cpu", seed=0
    )
    plain = Relative()
    rules = [("bias_table", "zeros"), ("position", "zeros")]
    fastinit.init_model_(plain, "kaiming_normal", rules, seed=0)
    assert same_bits(model, plain) and not has_tapes(model)


def test_a_plan_prints_what_the_code_does() -> None:
    with fastinit.deferred():
        model = Relative()
    made = fastinit.plan(model, "own")
    found = {row.name: str(row.distribution) for row in made.rows if row.distribution is not None}
    assert found["qkv.weight"].startswith("U[-0.35") and found["qkv.bias"].startswith("U[-0.35")
    assert "0.02" in found["bias_table"]
    assert found["position"] == "a table, by its author's code"


@needs_native
def test_copies_keep_the_tapes_and_pickles_drop_them() -> None:
    with fastinit.deferred():
        model = Relative()
    copied = copy.deepcopy(model)
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    assert has_tapes(copied)
    fastinit.materialize_(copied, "own", device="cpu", seed=0)
    assert same_bits(model, copied)
    with fastinit.deferred():
        other = Relative()
    assert all(not tapes for module in pickle.loads(pickle.dumps(other)).modules()
               for tapes in [module.__dict__.get("_fastinit_tapes")])  # fmt: skip
    torch.save(other, io.BytesIO())


@needs_native
def test_several_models_of_one_context() -> None:
    with fastinit.deferred():
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    for model in (other, one):
        fastinit.materialize_(model, "own", device="cpu", seed=0)
    with fastinit.fused(seed=0):
        alone = nn.Linear(4, 4)
    assert same_bits(one, alone) and same_bits(other, alone)  # the seed of materialize_ is the model's own


def test_numbers_that_were_read_stay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(20, 20))
            self.norm = self.weight.norm().item()
            with torch.no_grad():
                self.weight.div_(self.norm)

    with fastinit.deferred(seed=4):
        model = Scaled()
    fastinit.materialize_(model, "own", device="cpu", seed=5)
    assert model.weight.norm().item() == pytest.approx(1.0)


def test_a_parameter_that_nobody_writes_is_refused() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Parameter(torch.empty(4, 4))
            self.linear = nn.Linear(4, 4)

    with fastinit.deferred():
        model = Left()
    with pytest.raises(ValueError, match=r"left \(its code has not written to all of it"):
        fastinit.materialize_(model, "own", device="cpu")
    assert model.linear.weight.is_meta
    fastinit.materialize_(model, "own", [("left", "zeros")], device="cpu")
    assert not model.left.any() and model.linear.weight.std() > 0.1


def test_under_devices() -> None:
    with torch.device("meta"), fastinit.deferred():
        one = nn.Linear(5, 5)
    with fastinit.deferred(), torch.device("cpu"):
        two, three = nn.Linear(5, 5), nn.Linear(5, 5, device="cpu")
    for model in (one, two, three):
        assert model.weight.is_meta
        fastinit.materialize_(model, "own", device="cpu", seed=0)
    assert torch.equal(one.weight, two.weight) and torch.equal(two.weight, three.weight)


def test_code_that_asks_whether_it_is_on_meta_runs() -> None:
    class Careful(nn.Linear):
        def reset_parameters(self) -> None:
            if self.weight.is_meta or self.weight.device.type == "meta":
                return
            super().reset_parameters()

    with fastinit.deferred():
        model = Careful(5, 5)
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    assert 0.1 < model.weight.std() < 0.5


def test_an_exception_goes_on() -> None:
    def build() -> None:
        with fastinit.deferred():
            nn.Linear(5, 5)
            raise KeyError("nobody")

    with pytest.raises(KeyError, match="nobody"):
        build()
    assert not nn.Linear(5, 5).weight.is_meta


def test_casts() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 20).to(torch.bfloat16), nn.Linear(20, 20).half(), nn.Linear(20, 20).double())

    with fastinit.deferred():
        model = make()
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    with fastinit.fused(seed=0):
        other = make()
    assert same_bits(model, other)
    assert [layer.weight.dtype for layer in model] == [torch.bfloat16, torch.float16, torch.float64]
    with fastinit.deferred():
        wide = nn.Linear(20, 20)
    fastinit.materialize_(wide, "own", device="cpu", dtype=torch.bfloat16, seed=0)
    assert torch.equal(wide.weight, model[0].weight) is False  # another name, other numbers
    assert wide.weight.dtype is torch.bfloat16


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("fake", store=distributed.HashStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


@needs_native
def test_a_shard_is_a_slice_of_the_whole(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 8)
            self.gates = nn.Parameter(torch.empty(8, 2))
            for gate in self.gates.data.chunk(2):
                nn.init.orthogonal_(gate)
            self.table = nn.Parameter(torch.arange(8.0).sin())
            self.position = nn.Parameter(torch.randn(8, 4) * torch.arange(4.0))
            self.register_buffer("mask", torch.ones(3, 3).tril())

    with fastinit.deferred():
        model = Model()
    whole = copy.deepcopy(model)
    fastinit.materialize_(whole, "own", device="cpu", seed=0)
    fully_shard(model, mesh=mesh)
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.to_local(), whole.get_parameter(name)[4:]), name
    assert torch.equal(model.mask, whole.mask)


def test_random_steps_follow_the_seed_through_torch_too() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Parameter(torch.randperm(50).float())
            self.table = nn.Parameter(torch.arange(50.0).cos())

    def made(seed: int | None, backend: str = "torch") -> list[torch.Tensor]:
        with fastinit.deferred():
            model = Shuffled()
        fastinit.materialize_(model, "own", device="cpu", seed=seed, backend=backend)
        return [each.detach() for each in model.parameters()]

    with fastinit.fused(seed=5):
        usual = Shuffled()
    for one, other in zip(made(5), usual.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(made(5)[0], made(6)[0])
    torch.manual_seed(0)
    one, other = made(None)[0], made(None)[0]
    torch.manual_seed(0)
    assert torch.equal(made(None)[0], one) and not torch.equal(one, other)


class InitialisedByUs(nn.Module):
    """Its constructor calls this package."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        fastinit.orthogonal_(self.first.weight)
        fastinit.init_model_(self.second, "xavier_normal", seed=3)
        fastinit.init_([self.third.weight, self.third.bias], "ones")


def test_calls_of_ours_are_recorded() -> None:
    with fastinit.deferred():
        model = InitialisedByUs()
    assert all(each.is_meta for each in model.parameters())
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    torch.testing.assert_close(model.first.weight @ model.first.weight.t(), torch.eye(8))
    usual = InitialisedByUs()
    for one, other in ((model.second, usual.second), (model.third, usual.third)):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_what_has_no_memory_yet_is_neither_written_nor_read() -> None:
    plan = fastinit.plan(nn.Linear(4, 4), "ones", seed=0)
    with fastinit.deferred():
        model = nn.Linear(4, 4)
        for call in (
            lambda: fastinit.plan(model, "ones", seed=0).run_(),
            lambda: fastinit.plan(model, "ones", seed=0).blend_(0.5, 0.5),
            lambda: fastinit.verify(model, plan),
            lambda: fastinit.distance(model, plan),
            lambda: fastinit.fingerprint(model),
            lambda: fastinit.report(model),
            lambda: fastinit.init_([model.weight], "xavier_normal", generator=torch.Generator()),
        ):
            with pytest.raises(fastinit.ParameterError):
                call()
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    assert bool(model.weight.std() > 0)
