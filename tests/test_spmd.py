"""Tensors with SPMD types (spmd_types, torchtitan): local tensors that are annotated for each mesh axis.

The package itself is used where it is installed. Elsewhere a stand-in made from its public interface takes its place:
`get_local_type`, `get_partition_spec`, and axes with `size()` and `layout.all_ranks_from_zero()`.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds
from conftest import needs_native
from torch import nn

import fastinit
from fastinit.distributed import spmd
from fastinit.distributed.held import held_of
from fastinit.run.streams import draw_seed

pytestmark = needs_native


class Kind(Enum):
    R = "R"
    V = "V"
    P = "P"


@dataclass(frozen=True)
class Layout:
    parts: tuple[tuple[int, int], ...]

    def all_ranks_from_zero(self) -> list[int]:
        places = itertools.product(*(range(count) for count, _ in self.parts))
        return [sum(at * step for at, (_, step) in zip(place, self.parts, strict=True)) for place in places]


@dataclass(frozen=True)
class Axis:
    layout: Layout

    def size(self) -> int:
        return len(self.layout.all_ranks_from_zero())


def axis(*parts: tuple[int, int]) -> Axis:
    return Axis(Layout(parts))


def stand_in() -> Any:
    return SimpleNamespace(
        get_local_type=lambda tensor: getattr(tensor, "_local_type", None) or {},
        get_partition_spec=lambda tensor: getattr(tensor, "_spec", None),
    )


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spmd_types", stand_in())


def annotated(tensor: torch.Tensor, spec: Any, **kinds: Any) -> Any:
    parameter: Any = nn.Parameter(tensor)
    dividing = [each for entry in spec for each in (entry if isinstance(entry, tuple) else (entry,)) if each]
    parameter._local_type = {**dict.fromkeys(dividing, Kind.V), **kinds.get("types", {})}
    parameter._spec = tuple(spec)
    return parameter


DP, TP, PP = axis((2, 4)), axis((4, 1)), axis((2, 8))  # a mesh of 2 x 2 x 4
SPECS: list[tuple[Any, ...]] = [(TP,), (None, TP), (TP, DP), ((DP, TP),), ((TP, DP),), (DP, (PP, TP)), (axis((8, 1)),)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_parts_at_any_rank_are_the_parts_of_parts(spec: tuple[Any, ...]) -> None:
    """The dense tensor, cut along each dimension by one axis after another."""
    worlds.run_simulated(_check_parts, spec)


def _check_parts(spec: tuple[Any, ...]) -> None:
    sys.modules["spmd_types"] = stand_in()
    try:
        whole = torch.empty(16, 16)
        fastinit.init_([whole], "xavier_normal", names=["w"], seed=5)
        for rank in range(16):
            place = {DP: rank // 4 % 2, TP: rank % 4, PP: rank // 8, axis((8, 1)): rank % 8}
            part = whole
            for dim, entry in enumerate(spec):
                for each in entry if isinstance(entry, tuple) else (entry,):
                    part = part if each is None else part.chunk(each.size(), dim)[place[each]]
            with worlds.simulated_rank(rank, 16):
                local = annotated(torch.zeros(part.shape), spec, types={axis((2, 8)): Kind.R} if PP not in spec else {})
                fastinit.init_([local], "xavier_normal", names=["w"], seed=5)
                assert torch.equal(local, part), (spec, rank)
    finally:
        del sys.modules["spmd_types"]


def test_what_no_type_tells_is_refused_by_name() -> None:
    for kind, problem in ((Kind.P, "is partial on mesh axis"), (Kind.V, "and nothing says how")):
        tensor: Any = annotated(torch.ones(4, 4), (), types={TP: kind})
        with pytest.raises(fastinit.ParameterError, match=f"^w: .*{problem}"):
            fastinit.init_([tensor], "normal", names=["w"], seed=0)
        assert (tensor == 1).all()
    with pytest.raises(fastinit.ParameterError, match=r"^w: is annotated on mesh axis .* does not tile 1 of them"):
        fastinit.init_([annotated(torch.ones(4, 4), (TP,))], "normal", names=["w"], seed=0)
    with pytest.raises(fastinit.ParameterError, match=r"^w: its partition spec"):
        fastinit.init_([annotated(torch.ones(4), (None, TP))], "normal", names=["w"], seed=0)


def _check_seeds() -> None:
    sys.modules["spmd_types"] = stand_in()
    try:
        rank = torch.distributed.get_rank()
        both = axis((2, 1))
        model = nn.ParameterDict({"a": annotated(torch.zeros(3, 4), (both,))})
        model["b"] = annotated(torch.zeros(5, 4), (), types={both: Kind.R})
        fastinit.init_model_(model, "normal", generator=torch.Generator().manual_seed(rank))
        seed = draw_seed(torch.Generator().manual_seed(0))
        for name, shape in (("a", (6, 4)), ("b", (5, 4))):
            whole = torch.empty(shape)
            fastinit.init_([whole], "normal", names=[name], seed=seed)
            assert torch.equal(model[name], whole[3 * rank : 3 * rank + 3] if name == "a" else whole)
        dense = nn.ParameterDict({"a": torch.empty(6, 4), "b": torch.empty(5, 4)})
        fastinit.init_model_(dense, "normal", seed=seed)
        assert fastinit.fingerprint(model) == fastinit.fingerprint(dense)
    finally:
        del sys.modules["spmd_types"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_and_replicas_of_real_processes_take_one_seed() -> None:
    worlds.run(2, _check_seeds)
    worlds.close_all()


def _check_package() -> None:
    types: Any = importlib.import_module("spmd_types")
    tensor_axis, data_axis = types.MeshAxis.of(4, 1), types.MeshAxis.of(2, 4)
    with worlds.simulated_rank(6, 8):
        parameter = nn.Parameter(torch.zeros(2, 3))
        types.assert_type(parameter, {tensor_axis: types.S(0), data_axis: types.R})
        held = held_of(parameter, "w")
    assert held is not None
    assert (held.shape, held.pieces[0].begin, held.copies, held.is_first) == (torch.Size((8, 3)), (4, 0), 2, False)
    assert tuple(held.ranks) == tuple(range(8))


@pytest.mark.skipif(importlib.util.find_spec("spmd_types") is None, reason="spmd_types is not installed")
def test_the_package_itself() -> None:
    worlds.run_simulated(_check_package)


def test_places_on_axes_of_several_steps() -> None:
    several = axis((2, 8), (2, 1))  # ranks 0, 1, 8, 9
    assert [spmd._place(several, rank) for rank in (0, 1, 8, 9, 2, 11)] == [0, 1, 2, 3, 0, 3]
    assert spmd._ranks([several], 11) == (2, 3, 10, 11)
