"""materialize_ and the adapters: what was built on the meta device becomes what was built with memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import needs_native
from torch import distributed, nn

import fastinit
from fastinit import adapters

SEED = 11


class Tied(nn.Module):
    """Tied, padded, with statistics, a frozen weight, a parametrised one, and buffers of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8, padding_idx=3)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("position_ids", torch.arange(6).view(1, -1), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens[:, self.position_ids[0]])
        x = self.norm(self.conv(x.mT)).mT
        made: torch.Tensor = self.head(self.normed(self.frozen(x)))
        return made


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    wanted, given = one.state_dict(), other.state_dict()
    assert wanted.keys() == given.keys()
    pairs = [(name, wanted[name], given[name]) for name in wanted]
    pairs += [(name, buffer, dict(other.named_buffers())[name]) for name, buffer in one.named_buffers()]
    for name, a, b in pairs:
        assert a.dtype == b.dtype and torch.equal(a, b), name


def is_all_meta(model: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("scheme", ["xavier_uniform", "trunc_normal", "orthogonal"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@needs_native
def test_it_is_the_model_that_was_built_with_memory(scheme: str, dtype: torch.dtype | None) -> None:
    wanted = Tied()
    if dtype is not None:
        wanted.to(dtype)
        wanted.norm.running_mean = torch.zeros(8, dtype=dtype)
    rules = [
        ("frozen.weight", scheme),
        ("frozen.bias", "zeros"),
    ]  # which would else be kept where it can be
    fastinit.init_model_(wanted, scheme, rules, seed=SEED)
    given = fastinit.materialize_(on_meta(Tied), scheme, rules, device="cpu", dtype=dtype, seed=SEED)
    assert_same(wanted, given)
    assert given.head.weight is given.embed.weight
    assert not given.frozen.weight.requires_grad and given.conv.weight.requires_grad
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(wanted.eval()(tokens), given.eval()(tokens))


def test_the_global_seed_governs() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(fastinit.materialize_(on_meta(lambda: nn.Linear(5, 5)), "normal", device="cpu").weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_what_has_memory_stays_where_it_is_and_is_initialised() -> None:
    model = nn.Sequential(nn.Linear(4, 4), on_meta(lambda: nn.Linear(4, 4)))
    there = model[0].weight
    fastinit.materialize_(model, "ones", device="cpu", seed=0)
    assert model[0].weight is there and (there == 1.0).all() and (model[1].weight == 1.0).all()


class Counted(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.temperature = nn.Parameter(torch.rand(3))


class Tabled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("table", torch.arange(4.0) * 3)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Tied, {"scheme": "nonsense"}, "scheme: got 'nonsense', did you mean"),
        (Tied, {"rules": [("conv.weight", fastinit.KEEP)]}, r"nothing would write to: conv.weight"),
        (Counted, {}, r"nothing would write to: steps"),
        (Scaled, {}, r"nothing would write to: temperature"),
        (Tabled, {}, r"cannot restore table \(buffer of Tabled"),
        (Tied, {"device": "meta"}, "device: expected one with memory, got meta"),
        (Tied, {"seed": -1}, "seed: expected 0 <= seed"),
        (lambda: nn.LazyLinear(3), {}, "weight: is not initialised yet"),
    ],
)
def test_refusals_change_nothing(make: Callable[[], nn.Module], options: dict[str, object], message: str) -> None:
    model = on_meta(make)
    with pytest.raises(ValueError, match=message):
        fastinit.materialize_(model, **{"scheme": "normal", "device": "cpu", **options})  # type: ignore[arg-type]
    assert isinstance(model, nn.LazyLinear) or is_all_meta(model)


def test_buffers_that_the_user_can_compute() -> None:
    def table(module: nn.Module) -> None:
        module.table = torch.arange(4.0) * 3

    model = fastinit.materialize_(on_meta(Tabled), "normal", device="cpu", buffers=[("table", table)])
    assert model.table.tolist() == [0.0, 3.0, 6.0, 9.0]


def test_unused_rules_warn_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fastinit.materialize_(on_meta(Tied), "xavier_normal", [("nothing", "zeros")], device="cpu", seed=0)
    assert [str(each.message) for each in caught] == ["no parameter matches rule 'nothing'"]


def test_plans_on_meta_can_be_read_and_not_run() -> None:
    rules = [("frozen.*", "zeros")]
    plan = fastinit.plan(on_meta(Tied), "xavier_uniform", rules, seed=0)
    assert "embed.weight" in str(plan) and plan.numel == fastinit.plan(Tied(), "xavier_uniform", rules).numel
    with pytest.raises(ValueError, match=r"is on the meta device and has no memory; use fastinit.materialize_"):
        plan.run_()


# ---- Adapters ----


class Titan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.norm = nn.BatchNorm1d(6)

    init_weights = adapters.init_weights("trunc_normal", seed=SEED)


def test_init_weights_after_to_empty() -> None:
    wanted = fastinit.init_model_(Titan(), "trunc_normal", seed=SEED)
    given = on_meta(Titan).to_empty(device="cpu")
    for tensor in (*given.parameters(), *given.buffers()):
        tensor.data.fill_(77)
    given.init_weights(buffer_device="cpu")
    assert_same(wanted, given)
    given.init_weights()
    assert_same(wanted, given)


def test_init_weights_refuses_what_nothing_covers_and_keeps_the_buffers() -> None:
    model = Scaled()
    model.register_buffer("table", torch.ones(3))
    initialise = adapters.init_weights("normal")
    with pytest.raises(ValueError, match="no rule covers temperature"):
        initialise(model)
    table = model.table
    with pytest.raises(ValueError, match="cannot restore table"):
        adapters.init_weights("normal", [("temperature", "ones")])(model)
    assert model.table is table


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7))
    return nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(7, 6))


@needs_native
@pytest.mark.filterwarnings("ignore")  # torch's own, of FSDP1 on a CPU
@pytest.mark.usefixtures("world_of_one")
def test_fsdp1_initialises_module_by_module() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    wanted = fastinit.init_model_(nested(), "xavier_normal", seed=SEED)
    model = on_meta(nested)
    initialise = adapters.param_init_fn(model, "xavier_normal", device="cpu", seed=SEED)
    seen: list[int] = []

    def logged(module: nn.Module) -> None:
        initialise(module)
        seen.append(sum(parameter.is_meta for parameter in model.parameters()))

    wrapped = FullyShardedDataParallel(
        model,
        param_init_fn=logged,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy({nn.Sequential}),
        use_orig_params=True,
    )
    assert len(seen) > 1 and seen[0] > seen[-1] == 0
    with FullyShardedDataParallel.summon_full_params(wrapped):
        full = {fastinit.run.names.canonical_name(name): value for name, value in wrapped.named_parameters()}
        for name, value in wanted.named_parameters():
            assert torch.equal(full[name], value), name
        again = {name: value.clone() for name, value in full.items()}
        fastinit.init_model_(wrapped, "xavier_normal", seed=SEED)
        for name, value in full.items():
            assert torch.equal(again[name], value), name
    for parameter in wrapped.parameters():
        parameter.data.fill_(7.0)
    fastinit.init_model_(wrapped, "xavier_normal", seed=SEED)  # the flat shards themselves
    with FullyShardedDataParallel.summon_full_params(wrapped):
        for name, value in full.items():
            assert torch.equal(again[name], value), name


@needs_native
def test_param_init_fn_plans_all_before_it_begins() -> None:
    with pytest.raises(ValueError, match="nothing would write to: temperature"):
        adapters.param_init_fn(on_meta(Scaled), "normal", device="cpu")
    with pytest.raises(ValueError, match=r"normed.weight: is set through a parametrization"):
        adapters.param_init_fn(on_meta(Tied), "normal", device="cpu")
    with pytest.raises(ValueError, match="cannot restore table"):
        adapters.param_init_fn(on_meta(Tabled), "normal", device="cpu")


def test_param_init_fn_keeps_ties() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    model = on_meta(tied)
    initialise = adapters.param_init_fn(model, "normal", device="cpu", seed=3)
    for module in reversed(model):
        initialise(module)
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0].weight, fastinit.init_model_(tied(), "normal", seed=3)[0].weight)


def test_init_method_follows_the_generator() -> None:
    init_method = adapters.init_method(fastinit.Normal(std=0.02))
    weights = [torch.empty(200, 200) for _ in range(3)]
    for weight, seed in zip(weights, (1, None, 1), strict=True):
        if seed is not None:
            torch.manual_seed(seed)
        init_method(weight)
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.03)
    own = adapters.init_method("ones", generator=torch.Generator().manual_seed(4))
    own(weights[0])
    assert (weights[0] == 1.0).all()
    with pytest.raises(ValueError, match=r"scheme: got 'nonsense', did you mean"):
        adapters.init_method("nonsense")
