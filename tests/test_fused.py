"""fused(): models of other people's code have the same distributions, constants and tables, written in one pass."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import Tensor, nn
from torch.nn import init
from torch.nn.init import trunc_normal_ as imported_by_name
from torch.nn.init import xavier_normal_
from torch.nn.utils import parametrizations

import fastinit
from fastinit._torch import tree_leaves
from fastinit.capture import casts, recorder


class Embedded(nn.Module):
    """A transformer's initialisation in the usual style: twice, in place, with ties and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16, padding_idx=3)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50, bias=False)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.scale = nn.Parameter(1e-5 * torch.ones(16), requires_grad=False)
        steps = 1.0 / (10000 ** (torch.arange(0, 16, 2) / 16))
        self.register_buffer("sinusoids", torch.outer(torch.arange(20.0), steps).sin())
        self.register_buffer("mask", torch.tril(torch.ones(20, 20)).bool(), persistent=False)
        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("linear2.weight"):
                with torch.no_grad():
                    parameter /= math.sqrt(2 * 6)
        self.token.data.normal_(std=0.02)
        self.head.weight = self.table.weight

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class Recurrent(nn.Module):
    """Orthogonal gates, a forget gate's bias, and what is left to the constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2)
        for name, parameter in self.lstm.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.data.chunk(4):
                    init.orthogonal_(gate)
            elif "bias_ih" in name:
                parameter.data.zero_()
                parameter.data[16:32].fill_(1.0)
        self.out = nn.Linear(16, 4)
        self.out.weight.data.mul_(0.1)


class Vision(nn.Module):
    """Spelt-out truncated normals, scaled copies, joined and permuted tensors, narrow dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4)
        self.norm = nn.BatchNorm2d(16)
        self.position = nn.Parameter(torch.randn(1, 40, 16) * 0.02)
        self.spelt_out = nn.Parameter(torch.empty(40, 30))
        with torch.no_grad():
            self.spelt_out.uniform_(2 * 0.0227501319 - 1, 2 * 0.9772498681 - 1)
            self.spelt_out.erfinv_().mul_(0.02 * math.sqrt(2.0)).add_(0.0).clamp_(-0.04, 0.04)
        self.named = nn.Parameter(imported_by_name(torch.empty(40, 30), std=0.3))
        self.also_named = nn.Parameter(xavier_normal_(torch.empty(40, 30)))
        self.joined = nn.Parameter(torch.cat([torch.zeros(10, 30), torch.randn(30, 30)]))
        self.narrow = nn.Linear(30, 40).to(torch.bfloat16)
        self.half = nn.Linear(30, 40).half()
        self.register_buffer("order", torch.randperm(40))
        self.register_buffer("coins", torch.empty(40, 30).bernoulli_(0.3))
        self.legacy = nn.Parameter(torch.Tensor(40, 30).uniform_(-1, 1))


def layers() -> nn.Module:
    """torch.nn's classes that have parameters."""
    return nn.ModuleList([
        *(nn.Linear(20, 30), nn.Bilinear(8, 9, 30), nn.Embedding(40, 20, padding_idx=0), nn.EmbeddingBag(40, 20)),
        *(nn.Conv1d(20, 30, 3), nn.Conv2d(10, 12, 3, groups=2), nn.Conv3d(6, 8, 3), nn.ConvTranspose2d(10, 12, 3)),
        *(nn.LayerNorm(7), nn.GroupNorm(2, 8), nn.BatchNorm1d(5), nn.InstanceNorm2d(3, affine=True), nn.RMSNorm(6)),
        *(nn.PReLU(4), nn.RNN(12, 16), nn.LSTM(12, 16), nn.GRU(12, 16), nn.LSTMCell(12, 16), nn.GRUCell(12, 16)),
        *(nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2, kdim=12, vdim=12, add_bias_kv=True)),
        nn.Transformer(16, 2, 1, 1, 32),
        nn.AdaptiveLogSoftmaxWithLoss(16, 40, [10, 20]),
    ])  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layers": layers,
    "Embedded": Embedded,
    "Recurrent": Recurrent,
    "Vision": Vision,
}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_as_without_it(name: str) -> None:
    make = MODELS[name]
    torch.manual_seed(0)
    plain = [tensors(make()) for _ in range(4)]
    fused = []
    for seed in range(4):
        with fastinit.fused(seed=seed):
            model = make()
        fused.append(tensors(model))
    assert list(plain[0]) == list(fused[0])
    for key, wanted in plain[0].items():
        given = fused[0][key]
        assert (given.shape, given.stride(), given.dtype) == (wanted.shape, wanted.stride(), wanted.dtype), key
        assert (type(given), given.requires_grad) == (type(wanted), wanted.requires_grad), key
        assert given.is_leaf
        if torch.equal(wanted, plain[1][key]):
            assert torch.equal(wanted, given), key
            continue
        assert not torch.equal(given, fused[1][key]), key
        # Where one element has one value in every plain model, it has it here, too.
        stacked = torch.stack([each[key] for each in plain])
        fixed = (stacked == stacked[0]).all(dim=0) & (stacked[0] == stacked[0].round())
        if len(stacked.unique()) > 2:  # or chance may bring one value four times
            assert torch.equal(wanted[fixed], given[fixed]), key
        one, two = (torch.stack([each[key].detach().double() for each in models]) for models in (plain, fused))
        if one.numel() > 200:
            error = one.std() / math.sqrt(one.numel())
            assert abs(one.mean() - two.mean()) < 8 * error, key
            assert two.std().item() == pytest.approx(one.std().item(), rel=8 / math.sqrt(one.numel())), key
        assert two.abs().max() <= 1.8 * one.abs().max(), key


def test_ties_stay_tied() -> None:
    with fastinit.fused(seed=0):
        model = Embedded()
    assert model.head.weight is model.table.weight
    assert not model.table.weight[3].any()
    assert model.block.linear2.weight.std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.2)


def test_gates() -> None:
    with fastinit.fused(seed=0):
        model = Recurrent()
    for gate in model.lstm.weight_hh_l1.detach().chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
    assert model.lstm.bias_ih_l0.sum() == 16 and (model.lstm.bias_ih_l0[16:32] == 1).all()


@needs_native
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_bits_of_deferred(name: str) -> None:
    with fastinit.fused(seed=7):
        one = MODELS[name]()
    with fastinit.deferred(seed=7):
        other = MODELS[name]()
    assert all(each.is_meta for each in tensors(other).values())
    fastinit.materialize_(other, "own", device="cpu", seed=7)
    assert same_bits(one, other)
    for key, tensor in tensors(one).items():
        assert (tensor.stride(), tensor.dtype) == (tensors(other)[key].stride(), tensors(other)[key].dtype), key


@needs_native
def test_the_bits_of_any_number_of_threads(all_threads: None) -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with fastinit.fused(seed=7):
            found.append(nn.ModuleList([Recurrent(), Embedded()]))
    assert same_bits(*found)


@needs_native
def test_the_bits_of_init_model() -> None:
    with fastinit.fused(seed=3):
        one = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
        for layer in one:
            init.xavier_normal_(layer.weight)
            init.zeros_(layer.bias)
    assert same_bits(one, fastinit.init_model_(copy.deepcopy(one), "xavier_normal", seed=3))


def test_models_of_one_context_differ() -> None:
    with fastinit.fused(seed=0):
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    assert not torch.equal(one.weight, other.weight)


def test_without_a_seed_torch_seeds_it() -> None:
    def make() -> nn.Module:
        with fastinit.fused():
            return nn.Linear(9, 9)

    torch.manual_seed(3)
    one, two = make(), make()
    torch.manual_seed(3)
    assert same_bits(one, make()) and same_bits(two, make()) and not same_bits(one, two)


DRAWS: dict[str, Callable[[], Tensor]] = {
    "a layer": lambda: nn.Linear(5, 5).weight,
    "randperm": lambda: torch.randperm(9),
    "randint": lambda: torch.randint(0, 9, (20,)),
    "randint_like": lambda: torch.randint_like(torch.ones(20), 9),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal of tensors": lambda: torch.normal(torch.zeros(3), 1.0),
    "bernoulli": lambda: torch.bernoulli(torch.full((20,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 5),
    "poisson": lambda: torch.poisson(torch.ones(20)),
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
    "complex, in place": lambda: torch.empty(3, dtype=torch.complex64).normal_(),
    "complex, by torch.nn.init": lambda: init.normal_(torch.empty(3, dtype=torch.complex64)),
    "integers": lambda: torch.empty(20, dtype=torch.long).random_(0, 9),
    "dropout": lambda: nn.functional.dropout(torch.ones(20), 0.5),
    "dropout of a parameter": lambda: nn.functional.dropout(nn.Parameter(torch.ones(20)), 0.5).detach(),
    "out=": lambda: torch.randn(3, out=torch.empty(3)),
    "a distribution": lambda: torch.distributions.Beta(torch.ones(3), 1.0).sample(),
    "a forward pass": lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)(torch.ones(1, 2, 8)).detach(),
    "a float read": lambda: torch.tensor([torch.rand(()).item()]),
    "an estimate": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)).weight.detach(),
}


@pytest.mark.parametrize("context", [fastinit.fused, fastinit.deferred])
@pytest.mark.parametrize("name", DRAWS)
def test_all_draws_follow_the_seed_and_leave_the_generator_alone(name: str, context: Any) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        with context(seed=seed):
            found.append(DRAWS[name]().tolist())  # reads it, so that a number has to be there
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] != found[2]


GENERATED: dict[str, Callable[[torch.Generator], Tensor]] = {
    "randn": lambda generator: torch.randn(5, generator=generator),
    "uniform_": lambda generator: torch.empty(5).uniform_(generator=generator),
    "normal_": lambda generator: init.normal_(torch.empty(5), generator=generator),
    "trunc_normal_": lambda generator: init.trunc_normal_(torch.empty(5), generator=generator),
    "kaiming_uniform_": lambda generator: init.kaiming_uniform_(torch.empty(5, 5), generator=generator),
    "orthogonal_": lambda generator: init.orthogonal_(torch.empty(5, 5), generator=generator),
    "randperm": lambda generator: torch.randperm(9, generator=generator),
    "bernoulli": lambda generator: torch.bernoulli(torch.full((9,), 0.5), generator=generator),
    "multinomial": lambda generator: torch.multinomial(torch.ones(9), 5, generator=generator),
}


@pytest.mark.parametrize("name", GENERATED)
def test_callers_generators_give_torchs_numbers(name: str) -> None:
    wanted = GENERATED[name](torch.Generator().manual_seed(3))
    with fastinit.fused(seed=0):
        given = GENERATED[name](torch.Generator().manual_seed(3))
    assert torch.equal(given, wanted)


# ---- Readers ----


def saved(tensor: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    loaded: Tensor = torch.load(file)
    return loaded


def through_grad(tensor: Tensor) -> float:
    weight = nn.Parameter(tensor)
    (weight * weight).sum().backward()
    assert weight.grad is not None
    return float(weight.grad.sum())


READERS: dict[str, Callable[[Tensor], Any]] = {
    "slice": lambda t: t[3:9].sum().item(),
    "std": lambda t: t.std().item(),
    "item": lambda t: t[7].item(),
    "float": lambda t: float(t[7]),
    "int": lambda t: int(t[7] * 100),
    "bool": lambda t: bool(t[7] > 0),
    "numpy": lambda t: t.numpy().sum(),
    "asarray": lambda t: np.asarray(t).sum(),
    "memoryview": lambda t: bytes(memoryview(t.numpy())),
    "data_ptr": lambda t: (t.data_ptr(), list((torch.frombuffer(bytearray(t.numpy()), dtype=t.dtype)).tolist())),
    "tolist": lambda t: t.tolist(),
    "iteration": lambda t: [float(each) for each in t],
    "max": lambda t: float(max(t)),
    "contains": lambda t: 100.0 in t,
    "repr": repr,
    "format": lambda t: f"{t[0]:.3f}",
    "storage": lambda t: t.untyped_storage().tolist(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)).tolist(),
    "save": lambda t: saved(t).tolist(),
    "dlpack": lambda t: torch.from_dlpack(t).tolist(),
    "equal": lambda t: torch.equal(t, t.clone()),
    "allclose": lambda t: torch.allclose(t, t + 0.0),
    "deepcopy": lambda t: copy.deepcopy(t).tolist(),
    "autograd": through_grad,
    "unique": lambda t: t.unique().tolist(),
    "nonzero": lambda t: (t > 0).nonzero().tolist(),
    "vmap": lambda t: torch.func.vmap(lambda row: row.sum())(t.view(5, 10)).tolist(),
    "set_": lambda t: torch.empty(0).set_(t.untyped_storage()).tolist(),
}


@pytest.mark.parametrize("name", [pytest.param(each, marks=needs_native if each == "vmap" else ()) for each in READERS])
def test_readers_see_written_values(name: str) -> None:
    with fastinit.fused(seed=0):
        tensor = torch.randn(50)
        given = READERS[name](tensor)
    assert 0.5 < tensor.std() < 1.5
    wanted = READERS[name](tensor.detach())
    assert given == wanted


def test_steps_after_a_reader() -> None:
    with fastinit.fused(seed=0):
        tensor = torch.randn(50)
        read = tensor.clone()
        assert tensor.data_ptr()
        tensor.mul_(2.0)
        tensor[:10].normal_(100.0, 0.1)
    assert torch.equal(tensor[10:], 2 * read[10:])
    assert (tensor[:10] > 90).all()


@needs_native
def test_a_part_of_a_copy_belongs_to_the_copy() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Sequential(nn.Linear(3, 3))))
        model = copy.deepcopy(model)  # which registers no module
        model[0], model[1][0][0] = nn.Linear(3, 2), nn.Linear(2, 3)
        return model

    with fastinit.fused(seed=0):
        copied = make()
    with fastinit.fused(seed=0):
        built = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Sequential(nn.Linear(2, 3))))
    with fastinit.deferred():
        later = make()
    fastinit.materialize_(later, "own", device="cpu", seed=0)
    for name, parameter in built.named_parameters():
        assert torch.equal(copied.get_parameter(name), parameter), name
        assert torch.equal(later.get_parameter(name), parameter), name


def test_the_memo_of_a_deep_copy_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with every tensor: a search for each would take time with the square of the model."""
    searched: list[Any] = []
    monkeypatch.setattr(recorder, "tree_leaves", lambda tree: (searched.append(tree), tree_leaves(tree))[1])
    with fastinit.fused(seed=0):
        copy.deepcopy(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))  # buffers are copied by Tensor.__deepcopy__
    assert not any(isinstance(tree, dict) for tree in searched)


def test_copies_are_equal() -> None:
    with fastinit.fused(seed=0):
        source = torch.randn(20, 10)
        copies = {
            "clone": source.clone(),
            "deepcopy": copy.deepcopy(source),
            "copy_": torch.empty(20, 10).copy_(source),
            "copy_ of other strides": torch.empty(10, 20).copy_(source.t()).t(),
            "contiguous": source.t().contiguous().t(),
            "cat": torch.cat([source])[:20],
            "affine and back": (source * 2) / 2,
            "foreach": torch._foreach_add([source], 0.0)[0],
            "double": source.double().float(),
            "expanded": source.expand(2, 20, 10).clone()[1],
        }
        assert source.contiguous() is source
    for name, each in copies.items():
        assert torch.equal(each, source), name


@needs_native  # torch draws other numbers in another dtype
def test_a_cast_copy_has_the_rounded_values() -> None:
    with fastinit.fused(seed=0):
        source = torch.randn(20, 10)
        narrow = source.to(torch.bfloat16)
    assert torch.equal(narrow, source.to(torch.bfloat16))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_moved_to_another_device_is_made_there(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other device is the same one under another name: tests/test_cuda.py has real ones."""
    elsewhere = torch.device("cpu", 0)

    def device_of(function: object, args: tuple[object, ...], *rest: object) -> torch.device:
        return elsewhere if elsewhere in args or function is torch.Tensor.cuda else torch.device("cpu")

    with fastinit.fused(seed=0):
        expected = [torch.randn(20, 10), torch.randn(20, 10).abs(), torch.randn(10, 20).t()[2:7]]
    written: list[object] = []
    monkeypatch.setattr(casts, "device_of", device_of)
    settle = recorder.Recorder.settle
    with fastinit.fused(seed=0):
        monkeypatch.setattr(
            recorder.Recorder, "settle", lambda self, these: written.extend(these := list(these)) or settle(self, these)
        )
        given = [torch.randn(20, 10), torch.randn(20, 10).abs(), torch.randn(10, 20).t()[2:7]]
        moved = [each.to(elsewhere, dtype) for each in given]
        moved.append(given[0].cuda())
        assert not written
        monkeypatch.setattr(recorder.Recorder, "settle", settle)
    for each, source in zip(moved, [*expected, expected[0]], strict=True):
        assert torch.equal(each, source.to(each.dtype)) and each.data_ptr() != source.data_ptr()


def test_foreach_and_out() -> None:
    with fastinit.fused(seed=0):
        many = [torch.randn(10) for _ in range(3)]
        before = [each.clone() for each in many]
        torch._foreach_mul_(many, 2.0)
        into = torch.mul(before[0], 3, out=torch.empty(10))
        over = torch.add(torch.ones(10), 1, out=torch.randn(10))
    assert all(torch.equal(one, 2 * other) for one, other in zip(many, before, strict=True))
    assert torch.equal(into, 3 * before[0]) and (over == 2).all()


def test_what_torch_refuses() -> None:
    with fastinit.fused(seed=0):
        weight = nn.Parameter(torch.randn(5, 5))
        for write in (
            weight.normal_,
            weight.uniform_,
            weight.zero_,
            lambda: weight.mul_(2),
            lambda: weight.bernoulli_(),
        ):
            with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
                write()
        with pytest.raises(RuntimeError, match="single memory location"):
            torch.randn(1, 5).expand(5, 5).mul_(2)
        with pytest.raises(RuntimeError, match="single memory location"):
            torch.empty(1, 5).expand(5, 5).normal_()
        with pytest.raises(RuntimeError, match="size of tensor"):
            weight.data.copy_(torch.ones(7, 7))
        with pytest.raises(ValueError, match="2 or more dimensions"):
            init.orthogonal_(torch.empty(5))
    assert 0.5 < weight.std() < 1.5  # still written, and not garbage


def test_odd_tensors() -> None:
    with fastinit.fused(seed=0):
        empty = torch.randn(0, 3)
        joined = torch.cat([empty, torch.randn(2, 3)])
        scalar = torch.randn(()).mul_(0.0).add_(3.0)
        init.uniform_(torch.empty(0))
        legacy = torch.FloatTensor(3, 4).normal_()
        pairs = torch.randn(1000, 2)
        torch.view_as_complex(pairs).mul_(2j)
        sparse = torch.eye(3).to_sparse()
        strided = init.normal_(torch.empty(40, 30).t())
        channels_last = init.kaiming_normal_(torch.empty(8, 4, 3, 3).to(memory_format=torch.channels_last))
    assert joined.shape == (2, 3) and joined.std() > 0.1
    assert scalar == 3 and legacy.std() > 0.1 and sparse.to_dense().sum() == 3
    assert pairs.std().item() == pytest.approx(2.0, rel=0.1)
    assert strided.std().item() == pytest.approx(1.0, rel=0.2) and not strided.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last) and channels_last.std() > 0.1


def test_one_value_whatever_the_memory_format() -> None:
    weights = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with fastinit.fused(seed=0):
            weights.append(nn.Conv2d(4, 8, 3).to(memory_format=memory_format).weight)
    assert torch.equal(*weights)


# ---- Contexts ----


def test_nested_contexts_are_as_if_alone() -> None:
    with fastinit.fused(seed=1):
        with fastinit.fused(seed=0):
            inner = nn.Linear(5, 5)
        outer = nn.Linear(5, 5)
        with fastinit.no_init():
            normalisation, left = nn.LayerNorm(5), nn.Linear(5, 5)
            assert left.weight is not None
    with fastinit.fused(seed=0):
        alone = nn.Linear(5, 5)
    with fastinit.fused(seed=1):
        also_alone = nn.Linear(5, 5)
    assert same_bits(inner, alone) and same_bits(outer, also_alone)
    assert (normalisation.weight == 1).all()


def test_what_an_outer_context_has_recorded_stays_its_own() -> None:
    with fastinit.fused(seed=1):
        outer = nn.Linear(5, 5)
        with fastinit.fused(seed=0):
            init.constant_(outer.weight, 3.0)
            init.uniform_(outer.bias, 10, 11)
            copied = nn.Parameter(torch.empty(5))
            copied.data.copy_(outer.bias)
        outer.bias.data.mul_(2)
    assert (outer.weight == 3).all()
    assert (outer.bias >= 20).all() and torch.equal(outer.bias, 2 * copied)


@needs_native
@pytest.mark.parametrize("is_outside", [True, False])
def test_fused_and_deferred_nested(is_outside: bool) -> None:
    outside, inside = (fastinit.deferred(), fastinit.fused(seed=1)) if is_outside else (
        fastinit.fused(seed=1), fastinit.deferred())  # fmt: skip
    with outside:
        with inside:
            model = nn.Linear(5, 5)
        after = nn.Linear(5, 5)
    assert model.weight.is_meta and after.weight.is_meta is is_outside
    fastinit.materialize_(model, "own", device="cpu", seed=0)
    with fastinit.fused(seed=0):
        alone = nn.Linear(5, 5)
    assert same_bits(model, alone)


@needs_native
def test_fastinits_own_functions_inside() -> None:
    with fastinit.fused(seed=1):
        model = nn.Linear(5, 5)
        fastinit.init_model_(model, "xavier_normal", seed=0)
        with fastinit.deferred():
            other = nn.Linear(5, 5)
        fastinit.materialize_(other, "own", device="cpu", seed=0)
    assert same_bits(model, fastinit.init_model_(nn.Linear(5, 5), "xavier_normal", seed=0))
    assert same_bits(other, fastinit.init_model_(nn.Linear(5, 5), "own", seed=0))


def test_an_exception_goes_on_over_written_memory() -> None:
    made: list[nn.Linear] = []

    def build() -> None:
        with fastinit.fused(seed=0):
            made.append(nn.Linear(30, 30))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert 0.08 < made[0].weight.std() < 0.13
    assert init.orthogonal_.__module__ == "torch.nn.init"  # and everything is as before


def test_left_twice_out_of_order_or_elsewhere() -> None:
    context = fastinit.fused(seed=0)
    with pytest.raises(RuntimeError, match="fused: left without having been entered"):
        context.__exit__(None, None, None)
    with context:
        pass
    with pytest.raises(RuntimeError, match="fused: left without having been entered, or twice"):
        context.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="fused: entered before"):
        context.__enter__()
    outer, inner = fastinit.fused(seed=0), fastinit.no_init()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="fused: left before no_init, which was entered after it"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    raised: list[str] = []

    def leave() -> None:
        try:
            outer.__exit__(None, None, None)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert raised == ["fused: left in another thread than the one that entered it"]
    outer.__exit__(None, None, None)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0"])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="seed"):
        fastinit.fused(seed=seed)


def test_threads_that_start_inside_see_written_memory() -> None:
    seen: list[float] = []
    with fastinit.fused(seed=0):
        tensor = torch.randn(500)
        thread = threading.Thread(target=lambda: seen.append(tensor.std().item()))
        thread.start()
        thread.join()
        later = torch.randn(500)
    assert seen == [tensor.std().item()] and 0.8 < seen[0] < 1.2 and 0.8 < later.std() < 1.2


def test_other_threads_are_not_recorded() -> None:
    made: list[Tensor] = []

    def draw() -> None:
        made.append(torch.randn(5, generator=torch.Generator().manual_seed(0)))
        made.append(init.orthogonal_(torch.empty(5, 5)))

    with fastinit.fused(seed=0):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join()
        assert torch.allclose(made[1] @ made[1].T, torch.eye(5), atol=1e-5)
    assert torch.equal(made[0], torch.randn(5, generator=torch.Generator().manual_seed(0)))


def test_under_the_meta_device() -> None:
    with torch.device("meta"), fastinit.fused(seed=0):
        one = nn.Linear(5, 5)
    with fastinit.fused(seed=0), torch.device("meta"):
        two, on_cpu = nn.Linear(5, 5), nn.Linear(5, 5, device="cpu")
    assert one.weight.is_meta and two.weight.is_meta and 0.1 < on_cpu.weight.std() < 0.5


def test_under_accelerates_empty_weights() -> None:
    accelerate = pytest.importorskip("accelerate")
    with fastinit.fused(seed=0), accelerate.init_empty_weights():
        one = Embedded()
    with accelerate.init_empty_weights(), fastinit.fused(seed=0):
        two = Embedded()
    for model in (one, two):
        assert all(each.is_meta for each in model.parameters())
        assert torch.equal(model.mask, torch.tril(torch.ones(20, 20)).bool())


@pytest.mark.parametrize("lose", ["resize", "set"])
def test_memory_that_is_gone(lose: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fastinit.fused(seed=0):
            model = nn.Linear(30, 30)
            before = model.weight.data
            if lose == "resize":
                model.weight.untyped_storage().resize_(0)  # as FSDP1 frees memory
            else:
                model.weight.data = torch.empty(0)
    if lose == "set":
        assert before.std().item() == pytest.approx(0.105, rel=0.2)
    else:
        assert model.weight.untyped_storage().nbytes() == 0
    assert 0.05 < model.bias.std() < 0.2


def test_memory_that_is_lost_behind_torchs_back() -> None:
    def build() -> None:
        with fastinit.fused(seed=0):
            weight = torch.empty(30)
            storage = weight.untyped_storage()
            weight.normal_()
            storage.resize_(0)

    with pytest.raises(fastinit.ParameterError, match="memory was freed or made smaller"):
        build()


def test_lost_memory_is_named_after_its_parameter_and_nothing_is_written() -> None:
    models: list[nn.Linear] = []

    def build() -> None:
        with fastinit.fused(seed=0):
            model = nn.Linear(4, 3)
            models.append(model)
            storage = model.weight.untyped_storage()
            model.bias.detach().fill_(7.0)
            nn.init.normal_(model.weight)
            nn.init.normal_(model.bias)
            storage.resize_(0)

    with pytest.raises(fastinit.ParameterError, match=r"^weight: its memory was freed"):
        build()
    assert (models[0].bias == 7.0).all()


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_dtensors(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    with fastinit.fused(seed=0):
        drawn = distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)])
        init.normal_(drawn, std=3.0)
        with torch.no_grad():
            drawn.mul_(2)
        local = torch.randn(40, 40)
        around = DTensor.from_local(local, mesh, [Shard(0)])
        around.mul_(5)
    assert drawn.to_local().std().item() == pytest.approx(6.0, rel=0.4)
    assert around.to_local().std().item() == pytest.approx(5.0, rel=0.1) and local.std().item() == pytest.approx(
        5.0, rel=0.1
    )


@needs_native
def test_parametrizations() -> None:
    for parametrize in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        with fastinit.fused(seed=0):
            one = parametrize(nn.Linear(6, 6))
        with fastinit.deferred(seed=0):
            other = parametrize(nn.Linear(6, 6))
        fastinit.materialize_(other, "own", device="cpu", seed=0)
        assert same_bits(one, other), parametrize
        assert torch.equal(one(torch.ones(6)), other(torch.ones(6)))
