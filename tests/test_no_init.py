"""no_init(): random values are left out, constants and tables are not; what was never written can be named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit.capture import contexts


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.zero = nn.Parameter(torch.randn(4).zero_())
        self.mixed = nn.Embedding(6, 4, padding_idx=2)
        self.register_buffer("mask", torch.ones(4, 4).tril())
        self.register_buffer("noise", torch.randn(4))
        nn.init.zeros_(self.linear.bias)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of random distributions that were written at each time."""
    counts: list[int] = []
    write = contexts.Recorder.write

    def counted(self: Any, wanted: Any, replay: Any) -> None:
        wanted = list(wanted)
        counts.append(sum(bool(contexts.draws_of(stored.content)) for stored, _ in wanted))
        write(self, wanted, replay)

    monkeypatch.setattr(contexts.Recorder, "write", counted)
    return counts


def test_constants_and_tables_are_written_and_random_values_are_not(drawn: list[int]) -> None:
    torch.manual_seed(0)
    with fastinit.no_init():
        model = Model()
    assert sum(drawn) == 0
    assert not model.linear.bias.any() and not model.zero.any()
    assert (model.norm.weight == 1).all() and (model.norm.running_var == 1).all()
    assert torch.equal(model.mask, torch.ones(4, 4).tril())
    model.load_state_dict(Model().state_dict())


def test_what_is_read_inside_is_written() -> None:
    with fastinit.no_init():
        weight = nn.Linear(30, 30).weight
        assert 0.05 < weight.std() < 0.2
    assert 0.05 < weight.std() < 0.2


def test_check_names_what_was_never_written() -> None:
    def build() -> None:
        with fastinit.no_init(check=True):
            Model()
            model.append(Model())

    model: list[Model] = []
    with pytest.raises(ValueError, match="no_init: never written: ") as caught:
        build()
    named = str(caught.value).removeprefix("no_init: never written: ").split(", ")
    assert sorted(set(named)) == ["linear.weight", "mixed.weight"]  # buffers are no parameters


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_count(assign: bool) -> None:
    wanted = Model().state_dict()
    with fastinit.no_init(check=True):
        model = Model()
        model.load_state_dict(wanted, assign=assign)
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_weights_that_the_checkpoint_lacks_are_named() -> None:
    wanted = {name: value for name, value in Model().state_dict().items() if name != "mixed.weight"}

    def build() -> None:
        with fastinit.no_init(check=True):
            Model().load_state_dict(wanted, strict=False)
            model.load_state_dict(wanted, strict=False)

    with fastinit.no_init():
        model = Model()
    build()  # what was not built inside, and what is gone, is not asked for

    def keep() -> None:
        with fastinit.no_init(check=True):
            kept.append(Model())
            kept[0].load_state_dict(wanted, strict=False)

    kept: list[Model] = []
    with pytest.raises(ValueError, match=r"never written: mixed\.weight$"):
        keep()


def test_writes_of_other_kinds_count() -> None:
    with fastinit.no_init(check=True):
        model = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(4)])
        model[0].weight.data.copy_(torch.ones(4, 4))
        nn.init.ones_(model[1].weight)
        model[2].weight = nn.Parameter(torch.ones(4, 4))
        model[3].weight.data = torch.ones(4, 4)
    for layer in model:
        assert (layer.weight == 1).all()


def test_an_exception_is_not_hidden_by_the_check() -> None:
    def build() -> None:
        with fastinit.no_init(check=True):
            models.append(Model())
            raise KeyError("nobody")

    models: list[Model] = []
    with pytest.raises(KeyError, match="nobody"):
        build()


def test_the_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    with fastinit.no_init():
        Model()
    once = torch.get_rng_state()
    torch.manual_seed(0)
    with fastinit.no_init():
        Model()
        Model()
    assert torch.equal(torch.get_rng_state(), once)  # one seed a context, whatever is built


@pytest.mark.parametrize("check", [1, "yes", None])
def test_bad_arguments(check: Any) -> None:
    with pytest.raises(TypeError, match="check: expected True or False"):
        fastinit.no_init(check=check)
