"""materialize_(build=...): a model that was built on meta without fastinit reads its values from a twin."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import nn
from torch.nn.utils import parametrizations

import fastinit

SEED = 5


class Attention(nn.Module):
    """Its tables follow from arguments that it does not keep, and no method computes them again."""

    def __init__(self, width: int = 8, side: int = 3) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        nn.init.trunc_normal_(self.query.weight, std=0.02)
        self.scale = nn.Parameter(torch.log(10 * torch.ones(width, 1)))
        points = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        self.register_buffer("offsets", (points[:, None] - points[None]).abs().sum(-1), persistent=False)
        self.register_buffer("zeros", torch.zeros(width), persistent=False)
        self.register_buffer("known", torch.from_numpy(np.arange(4.0)))
        self.span = torch.linspace(0, 1, side)


class Model(nn.Module):
    def __init__(self, depth: int = 2, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width, padding_idx=0)
        self.layers = nn.ModuleList(Attention(width) for _ in range(depth))
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def fused(make: Callable[[], nn.Module]) -> nn.Module:
    with fastinit.fused(seed=SEED):
        return make()


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    found = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    for name, module in model.named_modules():
        found |= {f"{name}.{key}": each for key, each in module.__dict__.items() if isinstance(each, torch.Tensor)}
    return found


def assert_same(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> None:
    assert wanted.keys() == given.keys()
    for name, one in wanted.items():
        assert one.dtype == given[name].dtype and torch.equal(one, given[name]), name


def is_untouched(model: nn.Module) -> bool:
    every = [each for name, each in tensors(model).items() if "known" not in name]
    return all(each.is_meta for each in every) and not any(
        "_fastinit_tapes" in module.__dict__ and module.__dict__["_fastinit_tapes"] for module in model.modules()
    )


@needs_native
def test_it_is_the_model_that_was_built_with_memory() -> None:
    model = fastinit.materialize_(on_meta(Model), "own", device="cpu", seed=SEED, build=Model)
    assert_same(tensors(fused(Model)), tensors(model))
    assert model.head.weight is model.embed.weight
    assert not any("_fastinit_tapes" in module.__dict__ for module in model.modules())


def test_nobody_else_knows_those_buffers() -> None:
    with pytest.raises(ValueError, match=r"cannot restore layers\.0\.offsets"):
        fastinit.materialize_(on_meta(Model), "xavier_uniform", [("*.scale", "ones")], device="cpu", seed=SEED)


def test_under_another_scheme_only_buffers_are_the_twins() -> None:
    rules = [("*.scale", "ones")]
    wanted = fastinit.init_model_(Model(), "xavier_uniform", rules, seed=SEED)
    given = fastinit.materialize_(on_meta(Model), "xavier_uniform", rules, device="cpu", seed=SEED, build=Model)
    assert_same(tensors(wanted), tensors(given))


@needs_native
def test_a_stage_reads_from_the_whole() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Attention()])

    names = {"layers.0": "layers.1"}
    stage = fastinit.materialize_(on_meta(Stage), "own", device="cpu", seed=SEED, names=names, build=Model)
    assert_same(tensors(fused(Model).get_submodule("layers.1")), tensors(stage.get_submodule("layers.0")))


@needs_native
def test_a_model_that_was_recorded_keeps_its_own_tapes() -> None:
    with fastinit.deferred():
        model = Model()
        nn.init.ones_(model.layers[0].query.weight)
    fastinit.materialize_(model, "own", device="cpu", seed=SEED, build=Model)
    assert (model.layers[0].query.weight == 1).all()
    assert torch.equal(model.layers[1].query.weight, fused(Model).layers[1].query.weight)


@needs_native
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_an_orthogonal_weight_gets_its_basis(shape: tuple[int, int]) -> None:
    def make() -> nn.Module:
        return parametrizations.orthogonal(nn.Linear(*shape))

    wanted = fused(make)
    given = fastinit.materialize_(on_meta(make), "own", device="cpu", seed=SEED, build=make)
    assert_same(tensors(wanted), tensors(given))
    with fastinit.deferred(seed=SEED):  # the basis needs numbers while the model is built
        deferred = make()
    assert_same(tensors(wanted), tensors(fastinit.materialize_(deferred, "own", device="cpu", seed=SEED)))


@needs_native
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_estimates_of_spectral_norm_are_those_of_the_plain_construction(norm: Any) -> None:
    def make() -> nn.Module:
        made: nn.Module = norm(nn.Linear(12, 8))
        return made

    wanted = {name: each for name, each in tensors(fused(make)).items() if name != ".weight"}
    with fastinit.deferred():
        deferred = make()
    for model, build in ((deferred, None), (on_meta(make), make)):
        fastinit.materialize_(model, "own", device="cpu", seed=SEED, build=build)
        assert_same(wanted, {name: each for name, each in tensors(model).items() if name != ".weight"})
    # Under another scheme the estimates follow the new weight.
    other = fastinit.materialize_(on_meta(make), "xavier_uniform", device="cpu", seed=SEED, build=make)
    other(torch.zeros(1, 12))
    assert torch.linalg.matrix_norm(other.weight.detach(), 2).item() == pytest.approx(1, abs=0.1)


def raising() -> nn.Module:
    raise KeyError("no such config")


def with_more() -> nn.Module:
    model = Model()
    model.more = nn.Linear(2, 2)
    return model


def with_fewer_buffers() -> nn.Module:
    model = Model()
    del model.layers[1]._buffers["zeros"]
    return model


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (7, TypeError, "build: expected a function that builds the model, got 7"),
        (lambda: 7, TypeError, "build: expected a function that returns a module, got int"),
        (raising, KeyError, "no such config"),
        (lambda: Model(depth=1), fastinit.ParameterError, r"layers\.1\.\S+: is in the model, but not in the one that"),
        (lambda: Model(width=4), fastinit.ParameterError, r"embed\.weight: has shape \(11, 8\), but \(11, 4\) in the"),
        (with_more, fastinit.ParameterError, r"more\.weight: is in the model that build makes, but not in the one to"),
        (with_fewer_buffers, fastinit.ParameterError, r"layers\.1\.zeros: is in the model, but not in the one that"),
    ],
)
def test_another_model_is_refused_and_nothing_is_changed(build: Any, kind: type[Exception], message: str) -> None:
    model = on_meta(Model)
    with pytest.raises(kind, match=message):
        fastinit.materialize_(model, "own", device="cpu", seed=SEED, build=build)
    assert is_untouched(model)


def test_the_model_itself_is_no_twin() -> None:
    model = on_meta(Model)
    with pytest.raises(ValueError, match="build: expected a function that builds the model again"):
        fastinit.materialize_(model, "own", device="cpu", build=lambda: model)


def test_a_later_error_takes_everything_back() -> None:
    def make() -> nn.Module:
        return parametrizations.orthogonal(nn.Linear(12, 8))

    model = on_meta(make)
    with pytest.raises(ValueError, match="nothing would write to"):
        fastinit.materialize_(model, "own", [("bias", fastinit.KEEP)], device="cpu", build=make)
    assert is_untouched(model) and model.get_buffer("parametrizations.weight.0.base") is None


def test_the_adapter_takes_a_twin() -> None:
    model = Model().to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastinit.adapters.init_weights("xavier_uniform", [("*.scale", "ones")], seed=SEED, build=Model)(model)
    assert torch.equal(model.layers[1].offsets, Model().layers[1].offsets)
