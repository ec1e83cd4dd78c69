"""verify: what a plan wrote is what it would write, and any change is found, whatever the model was made into since."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import worlds
from conftest import needs_native
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import parametrizations, parametrize

import fastinit
from fastinit.run import engine, scratch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=2)
        self.conv = nn.Conv2d(3, 5, 3)
        self.attention = nn.MultiheadAttention(6, 2)
        self.lstm = nn.LSTM(6, 4)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.narrow = nn.Linear(6, 7, dtype=torch.bfloat16)
        self.wide = nn.Linear(6, 7, dtype=torch.float64)
        self.kept = nn.Parameter(torch.rand(5))


RULES = [("conv.weight", "dirac"), ("wide.*", "trunc_normal"), ("kept", fastinit.KEEP)]


def made() -> tuple[nn.Module, fastinit.Plan]:
    model = Net()
    plan = fastinit.plan(model, "kaiming_normal", RULES, seed=3)
    plan.run_()
    return model, plan


def written(plan: fastinit.Plan) -> list[str]:
    return [row.name for row in plan.rows if row.action == "init"]


def flip(tensor: torch.Tensor, index: int, bit: int = 0) -> None:
    """Flip a bit of an element, whatever the strides."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    view = tensor.detach().view(integers)
    at = torch.unravel_index(torch.tensor(index), tensor.shape)
    view[at] ^= 1 << bit


def test_what_a_plan_wrote_is_found_unchanged() -> None:
    model, plan = made()
    assert fastinit.verify(model, plan) == ()
    with torch.no_grad():
        model.kept.zero_()
        model.norm.running_mean.fill_(4.0)
    assert fastinit.verify(model, plan) == ()  # what it would not write


def test_one_bit_of_any_parameter_is_found() -> None:
    model, plan = made()
    parameters = dict(model.named_parameters())
    for name in written(plan):
        tensor = parameters[name]
        for index in (0, tensor.numel() // 2, tensor.numel() - 1):
            for bit in (0, 8 * tensor.element_size() - 1):
                flip(tensor, index, bit)
                assert fastinit.verify(model, plan) == (name,)
                flip(tensor, index, bit)
    assert fastinit.verify(model, plan) == ()


def test_names_come_in_the_order_of_the_plan_and_no_more_than_the_limit() -> None:
    model, plan = made()
    other = fastinit.plan(model, "kaiming_normal", RULES, seed=4)
    random = [row.name for row in plan.rows if row.action == "init" and row.distribution.std() > 0]
    random.remove("conv.weight")
    assert len(random) > 6
    assert fastinit.verify(model, other, limit=100) == tuple(random)
    assert fastinit.verify(model, other, limit=2) == tuple(random[:2])
    assert fastinit.verify(model, other.filter("wide.*")) == tuple(name for name in random if name.startswith("wide"))


def test_by_bits() -> None:
    model = nn.Linear(3, 4, bias=False)
    plan = fastinit.plan(model, fastinit.Constant(float("nan")), seed=0)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    plan = fastinit.plan(model, "zeros", seed=0)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    with torch.no_grad():
        model.weight[1, 1] = -0.0
    assert fastinit.verify(model, plan) == ("weight",)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_and_memory_formats(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(9, 5)).to(dtype)
    plan = fastinit.plan(model, "normal", seed=5)
    plan.run_()
    model[0].to(memory_format=torch.channels_last)
    model[1].weight = nn.Parameter(model[1].weight.detach().t().contiguous().t())
    padded = torch.zeros(5, 20, dtype=dtype)
    assert fastinit.verify(model, plan) == ()
    model[1].weight = nn.Parameter(padded[:, ::2][:, :9].copy_(model[1].weight.detach()))
    assert fastinit.verify(model, plan) == ()
    flip(model[1].weight, 44)
    flip(model[0].weight, 6 * 4 * 9 - 1)
    assert fastinit.verify(model, plan) == ("0.weight", "1.weight")


@needs_native
@pytest.mark.parametrize("nbytes", [8, 100, 3000])
def test_in_pieces(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """A few values at a time are the same values, and no more than fit are ever there."""
    monkeypatch.setattr(scratch, "SCRATCH_BYTES", nbytes)
    monkeypatch.setattr(sys.modules["fastinit.audit.verification"], "reads_in_place", lambda *_: False)  # as on a GPU
    model, plan = made()
    split = nn.Linear(6, 20)
    rules = [fastinit.Rule("weight", ("normal", "zeros", "ones", "kaiming_uniform"), split=4)]
    of_split = fastinit.plan(split, "normal", rules, seed=1)
    of_split.run_()
    held: list[int] = []
    made_before = engine.Program

    class Watched(made_before):  # type: ignore[misc,valid-type]
        def __init__(self, targets: list[engine.Target], *arguments: object) -> None:
            held.append(sum(target.tensor.nbytes for target in targets))
            super().__init__(targets, *arguments)

    monkeypatch.setattr(engine, "Program", Watched)
    assert fastinit.verify(model, plan) == fastinit.verify(split, of_split) == ()
    assert 0 < max(held) <= nbytes and sum(held) == plan.nbytes + of_split.nbytes
    flip(model.wide.weight, 30)
    flip(model.embedding.weight, 65)
    assert fastinit.verify(model, plan) == ("embedding.weight", "wide.weight")
    flip(split.weight, 119)
    assert fastinit.verify(split, of_split) == ("weight",)


COMPOSED = {
    "orthogonal": (fastinit.Orthogonal(gain=3.0), (40, 24), 1e-4),
    "delta_orthogonal": (fastinit.DeltaOrthogonal(), (8, 6, 3, 3), 1e-4),
    "spectral": (fastinit.scheme("svd", values=[5.0, 2.0, 1.0]), (6, 3), 1e-4),
    "identity_plus_orthogonal": (fastinit.scheme("identity_plus_orthogonal"), (16, 16), 1e-4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", COMPOSED)
def test_products_of_matrices_are_compared_to_rounding(name: str, dtype: torch.dtype) -> None:
    scheme, shape, step = COMPOSED[name]
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
    plan = fastinit.plan(model, "normal", [("weight", scheme)], seed=6)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    before = model.weight.detach().clone()
    flip(model.weight, 0)  # one unit in the last place
    assert fastinit.verify(model, plan) == ()
    with torch.no_grad():
        model.weight.copy_(before.double() * (1 + 0.1 * torch.finfo(dtype).eps))
        assert fastinit.verify(model, plan) == ()
        largest = before.abs().argmax().item()
        model.weight.view(-1)[largest] += step if dtype != torch.bfloat16 else 0.1
    assert fastinit.verify(model, plan) == ("weight",)
    with torch.no_grad():
        model.weight.copy_(before)
        model.weight.view(-1)[1] = float("nan")
    assert fastinit.verify(model, plan) == ("weight",)


@pytest.mark.parametrize("scheme", ["sparse", "dirac", "eye", "zer_o", "log_range"])
def test_other_patterns_are_compared_to_the_bit(scheme: str) -> None:
    model = nn.Conv1d(4, 4, 3) if scheme == "dirac" else nn.Linear(8, 8)
    chosen = fastinit.scheme("sparse", sparsity=0.5) if scheme == "sparse" else scheme
    plan = fastinit.plan(model, chosen, seed=7)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    flip(model.weight, 5)
    assert fastinit.verify(model, plan) == ("weight",)


def test_lstm_with_an_orthogonal_matrix_a_gate() -> None:
    model = nn.LSTM(5, 8)
    plan = fastinit.plan(model, "orthogonal", fan="module", seed=8)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    with torch.no_grad():
        model.weight_hh_l0[20, 3] += 1e-3
    assert fastinit.verify(model, plan) == ("weight_hh_l0",)


# ---- other instances of the model ----


def test_a_plan_of_another_instance() -> None:
    model, _ = made()
    torch.manual_seed(99)
    _, plan = made()
    assert fastinit.verify(model, plan) == ()
    assert fastinit.verify(copy.deepcopy(model), plan) == ()
    wrapped = nn.DataParallel(nn.ModuleDict({"_orig_mod": model}))
    assert fastinit.verify(wrapped, plan) == ()
    with torch.device("meta"):
        planned = fastinit.plan(nn.Linear(4, 4), "normal", seed=0)
    real = fastinit.init_model_(nn.Linear(4, 4), "normal", seed=0)
    assert fastinit.verify(real, planned) == ()


def test_parts_of_a_model() -> None:
    whole = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    plan = fastinit.plan(whole, "normal", seed=2)
    plan.run_()
    stage = nn.Sequential(*whole[2:])
    names = {"0": "2", "1": "3"}
    assert fastinit.verify(stage, plan.filter(lambda row: row.name[0] in "23"), names=names) == ()
    assert fastinit.verify(stage, fastinit.plan(stage, "normal", seed=2, names=names), names=names) == ()
    with pytest.raises(ValueError, match=r"^0\.weight: the model has no such parameter"):
        fastinit.verify(stage, plan, names=names)


def test_reads_only() -> None:
    model, plan = made()
    before = [(each.detach().clone(), each._version, each.requires_grad) for each in model.parameters()]
    state = torch.get_rng_state()
    fastinit.verify(model, plan)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, (value, version, requires_grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert (parameter._version, parameter.requires_grad) == (version, requires_grad)


# ---- parametrised weights ----


class Halves(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.cat([first, second])

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = weight.chunk(2)
        return first, second


def in_halves() -> nn.Module:
    model = nn.Linear(6, 6)
    parametrize.register_parametrization(model, "weight", Halves())
    return model


PARAMETRISED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
    "orthogonal, cayley": lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"),
    "halves": in_halves,
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Linear(6, 6)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_parametrised_weights(kind: str) -> None:
    model, other = PARAMETRISED[kind](), PARAMETRISED[kind]()
    scheme = "orthogonal" if kind.startswith("orthogonal") else "normal"
    plan = fastinit.plan(model, scheme, seed=9)
    plan.run_()
    assert fastinit.verify(model, plan) == ()
    for _ in range(3):
        model(torch.rand(2, 6))  # in training, which updates estimates of norms
    assert fastinit.verify(model, plan) == ()
    another = fastinit.plan(other, scheme, seed=10)
    assert fastinit.verify(model, another) == ("weight",)
    for each in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("base"))]:
        if each.dim() == 2:
            with torch.no_grad():
                each[1, 0] += 0.125
            assert fastinit.verify(model, plan) == ("weight",)
            with torch.no_grad():
                each[1, 0] -= 0.125
    plain = nn.Linear(6, 6)
    assert fastinit.verify(fastinit.init_model_(plain, scheme, seed=9), plan) == ()


# ---- through torch ----


@pytest.mark.filterwarnings("ignore::fastinit.ZerosWarning")
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_through_torch(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "auto":
        request.getfixturevalue("without_native")
    model = nn.Sequential(nn.Linear(30, 40), nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last))
    model[0].weight = nn.Parameter(torch.empty(40, 60)[:, ::2])
    with torch.no_grad():
        model[0].weight.zero_()
    make = lambda seed: fastinit.plan(model, "normal", seed=seed, backend=backend)  # noqa: E731
    if backend == "auto":
        with pytest.warns(fastinit.FallbackWarning):
            make(1).run_()
    else:
        make(1).run_()
    assert fastinit.verify(model, make(1)) == ()
    assert fastinit.verify(model, make(2)) == ("0.weight", "1.weight")
    flip(model[1].weight, 17)
    assert fastinit.verify(model, make(1)) == ("1.weight",)


def test_complex_parameters() -> None:
    for dtype in (torch.complex64, torch.complex128):
        model = nn.Linear(4, 4, dtype=dtype)
        plan = fastinit.plan(model, "zeros", seed=0)
        plan.run_()
        assert fastinit.verify(model, plan) == ()
        with torch.no_grad():
            model.weight[2, 2] = complex(0.0, -0.0)
        assert fastinit.verify(model, plan) == ("weight",)


# ---- errors ----


def test_a_plan_without_a_seed_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^plan: expected one with a seed"):
        fastinit.verify(model, fastinit.plan(model, "normal"))


def test_what_does_not_fit_the_plan_is_refused() -> None:
    plan = fastinit.plan(nn.Linear(3, 2), "normal", seed=0)
    with pytest.raises(ValueError, match=r"^weight: the model has no such parameter"):
        fastinit.verify(nn.ReLU(), plan)
    with pytest.raises(ValueError, match=r"^bias: the model has no such parameter"):
        fastinit.verify(nn.Linear(3, 2, bias=False), plan)
    with pytest.raises(ValueError, match=r"^weight: planned as \(2, 3\) torch.float32, the model's is \(3, 2\)"):
        fastinit.verify(nn.Linear(2, 3), plan)
    with pytest.raises(ValueError, match=r"^weight: planned as .* torch.float32, the model's is .* torch.float64"):
        fastinit.verify(nn.Linear(3, 2, dtype=torch.float64), plan)
    with pytest.raises(ValueError, match=r"^weight: is on the meta device"):
        fastinit.verify(nn.Linear(3, 2, device="meta"), plan)


def test_arguments_are_checked() -> None:
    model = nn.Linear(2, 2)
    plan = fastinit.plan(model, "normal", seed=0)
    with pytest.raises(TypeError, match="model: expected"):
        fastinit.verify(plan, plan)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan: expected"):
        fastinit.verify(model, model)  # type: ignore[arg-type]
    for limit in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="limit: expected"):
            fastinit.verify(model, plan, limit=limit)  # type: ignore[arg-type]


# ---- over ranks ----


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 10, padding_idx=6)
        self.up = nn.Linear(10, 14)
        self.down = nn.Linear(14, 10)
        self.norm = nn.LayerNorm(10)


RULES_OF_BLOCK = [("down.weight", "orthogonal"), ("up.bias", "normal")]


def _sharded(mesh_shape: tuple[int, ...], tensor_parallel: bool) -> list[tuple[str, ...]]:
    plan = fastinit.plan(Block(), "normal", RULES_OF_BLOCK, seed=11)
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("dp", "tp")[: len(mesh_shape)])
    model = Block()
    if tensor_parallel:
        parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    own = fastinit.plan(model, "normal", RULES_OF_BLOCK, seed=11)
    own.run_()
    found = [fastinit.verify(model, plan), fastinit.verify(model, own)]
    dense = fastinit.init_model_(Block(), "normal", RULES_OF_BLOCK, seed=11)
    found.append(fastinit.verify(dense, own))
    with torch.no_grad():
        weight = model.embedding.weight
        assert isinstance(weight, DTensor)
        if dist.get_rank() == 0:
            flip(weight.to_local(), 3)
    found.append(fastinit.verify(model, plan))
    found.append(fastinit.verify(model, fastinit.plan(Block(), "normal", RULES_OF_BLOCK, seed=12), limit=1))
    return found


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize(("size", "mesh", "tensor_parallel"), [(2, (2,), False), (3, (3,), False), (4, (2, 2), True)])
def test_sharded_models(size: int, mesh: tuple[int, ...], tensor_parallel: bool) -> None:
    found = worlds.run(size, _sharded, mesh, tensor_parallel)
    for rank, (by_dense, by_own, dense, changed, other) in enumerate(found):
        assert by_dense == by_own == dense == ()
        assert changed == (("embedding.weight",) if rank == 0 else ())
        assert other == ("embedding.weight",)


def _first_fully_sharded() -> None:
    model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    plan = fastinit.plan(nn.Linear(4, 4), "normal", seed=1)
    assert fastinit.verify(model, plan) == (("weight",) if dist.get_rank() == 0 else ("weight", "bias"))
    fastinit.init_model_(model, "normal", seed=1)
    assert fastinit.verify(model, plan) == ()


@pytest.mark.slow
@needs_native
def test_first_version_of_fsdp() -> None:
    worlds.run(2, _first_fully_sharded)
