"""Which elements a rank holds: by counting, and by what torch itself hands to every rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import fastinit
from fastinit.distributed import shards as sharding
from fastinit.distributed.held import local_tensor
from fastinit.distributed.shards import Box, MeshSplit

# A placement without torch: None for Replicate, d for Shard(d), (d, s) for _StridedShard(d, split_factor=s).
Sketch = int | tuple[int, int] | None

MESHES = [(1,), (2,), (3,), (4,), (2, 2), (3, 2), (2, 3), (1, 4), (2, 2, 2), (2, 1, 3)]
SHAPES = [(1,), (2,), (7,), (12,), (0,), (5, 3), (1, 9), (8, 12), (0, 4), (4, 6, 5), (3, 1, 2), (2, 3, 2, 3)]


def sketches(shape: Sequence[int], mesh: Sequence[int]) -> Iterator[tuple[Sketch, ...]]:
    """Every placement of a tensor without strides."""
    yield from itertools.product([None, *range(len(shape))], repeat=len(mesh))


def coordinates(mesh: Sequence[int]) -> Iterator[tuple[int, ...]]:
    yield from itertools.product(*map(range, mesh))


def splits(sketch: Sequence[Sketch], mesh: Sequence[int], coordinate: Sequence[int]) -> list[MeshSplit]:
    found = []
    for each, parts, which in zip(sketch, mesh, coordinate, strict=True):
        if each is not None:
            dim, stride = each if isinstance(each, tuple) else (each, 1)
            found.append(MeshSplit(dim, parts, which, stride))
    return found


def assembled(whole: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
    """The local tensor that boxes describe."""
    shape = [max((box.local[dim] + box.shape[dim] for box in boxes), default=0) for dim in range(whole.dim())]
    local = torch.full(shape, -1, dtype=whole.dtype)
    for box in boxes:
        held = tuple(slice(begin, begin + length) for begin, length in zip(box.begin, box.shape, strict=True))
        place = tuple(slice(begin, begin + length) for begin, length in zip(box.local, box.shape, strict=True))
        assert (local[place] == -1).all(), "two boxes in one place"
        local[place] = whole[held]
    assert (local != -1).all(), "a place without a box"
    return local


def numbered(shape: Sequence[int]) -> torch.Tensor:
    return torch.arange(math.prod(shape)).view(tuple(shape))


def chunked(whole: torch.Tensor, parts: int, which: int, dim: int) -> torch.Tensor:
    chunks = whole.chunk(parts, dim)
    return chunks[which] if which < len(chunks) else whole.narrow(dim, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_pieces_are_the_chunks_of_chunks(mesh: tuple[int, ...]) -> None:
    """Shard is torch.chunk, one mesh dimension after another."""
    for shape in SHAPES:
        whole = numbered(shape)
        for sketch in sketches(shape, mesh):
            for coordinate in coordinates(mesh):
                held = splits(sketch, mesh, coordinate)
                expected = whole
                for dim, parts, which, _ in held:
                    expected = chunked(expected, parts, which, dim)
                found = assembled(whole, sharding.boxes_held(shape, held))
                assert torch.equal(found.flatten(), expected.flatten()), (shape, sketch, coordinate)
                assert found.numel() == 0 or found.shape == expected.shape


def strided_sketches(shape: Sequence[int], mesh: Sequence[int]) -> Iterator[tuple[Sketch, ...]]:
    strides = {2, 3, *mesh, *(left * right for left, right in itertools.pairwise(mesh))} - {1}
    choices = [None, *range(len(shape)), *itertools.product(range(len(shape)), strides)]
    for sketch in itertools.product(choices, repeat=len(mesh)):
        if any(isinstance(each, tuple) for each in sketch):
            yield sketch


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_all_ranks_hold_every_element_once_for_every_replica(mesh: tuple[int, ...]) -> None:
    for shape in [(1,), (7,), (12,), (25,), (5, 8)]:
        whole = numbered(shape)
        for sketch in strided_sketches(shape, mesh):
            counts = torch.zeros(whole.numel(), dtype=torch.int64)
            for coordinate in coordinates(mesh):
                local = assembled(whole, sharding.boxes_held(shape, splits(sketch, mesh, coordinate)))
                counts += torch.bincount(local.flatten(), minlength=counts.numel())
            replicas = math.prod(size for size, each in zip(mesh, sketch, strict=True) if each is None)
            assert (counts == replicas).all(), (shape, sketch)


def test_pieces_of_scalars_and_of_whole_tensors() -> None:
    assert sharding.boxes_held((), []) == [Box((), (), ())]
    assert sharding.boxes_held((3, 4), []) == [Box((0, 0), (0, 0), (3, 4))]
    assert sharding.boxes_held((3, 0), []) == []


def test_a_strided_shard_that_comes_first_is_the_last_division() -> None:
    """FSDP2 over 3 ranks of tensor parallelism over 2: seven rows are 4 and 3, and those 2, 2, 0 and 1, 1, 1."""
    held = [sharding.intervals(7, splits([(0, 2), 0], (3, 2), coordinate)) for coordinate in coordinates((3, 2))]
    assert held == [[(0, 2)], [(4, 5)], [(2, 4)], [(5, 6)], [], [(6, 7)]]


def test_many_strides_hold_many_ranges() -> None:
    """As after a dimension was made from others: of the columns of 6 stretches, every second rank holds a half."""
    assert sharding.intervals(24, [MeshSplit(0, 2, 1, stride=6)]) == [(at + 2, at + 4) for at in range(0, 24, 4)]
    assert sharding.intervals(24, [MeshSplit(0, 2, 0, stride=6), MeshSplit(0, 3, 1)]) == [(8, 10), (12, 14)]


# ---- against torch: what its own functions leave on every rank of a simulated world ----


def as_placement(sketch: Sketch) -> Placement:
    if sketch is None:
        return Replicate()
    return _StridedShard(sketch[0], split_factor=sketch[1]) if isinstance(sketch, tuple) else Shard(sketch)


def _on_every_rank(mesh_shape: tuple[int, ...], check: Callable[[DeviceMesh], Any]) -> list[Any]:
    size = math.prod(mesh_shape)
    found = []
    for rank in range(size):
        with worlds.simulated_rank(rank, size):
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("a", "b", "c", "d")[: len(mesh_shape)])
            found.append(check(mesh))
    return found


def _check_held(tensor: DTensor, whole: torch.Tensor, told: object) -> None:
    """That the boxes of a distributed `whole` are what its local tensor holds."""
    boxes = sharding.local_boxes(tensor, "weight")
    local = local_tensor(tensor)
    assert torch.equal(assembled(whole, boxes).flatten(), local.flatten().long()), told


def _check_distributed() -> None:
    def check(mesh: DeviceMesh) -> None:
        for shape in SHAPES:
            whole = numbered(shape)
            for sketch in sketches(shape, mesh.shape):
                placements = [as_placement(each) for each in sketch]
                tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                told = (shape, sketch, mesh.get_coordinate())
                _check_held(tensor, whole, told)
                local_shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
                boxes = sharding.local_boxes(tensor, "weight")
                if math.prod(local_shape) > 0:
                    assert boxes == [Box((0,) * len(shape), offset, local_shape)], told
                else:
                    assert boxes == [], told

    for mesh_shape in MESHES:
        _on_every_rank(mesh_shape, check)


@pytest.mark.slow
def test_distribute_tensor_leaves_what_the_pieces_say() -> None:
    worlds.run_simulated(_check_distributed, seconds=120.0)


def _check_strided() -> None:
    def check(mesh: DeviceMesh) -> None:
        for shape in [(24,), (144,), (48, 24)]:
            whole = numbered(shape)
            for sketch in strided_sketches(shape, mesh.shape):
                placements = [as_placement(each) for each in sketch]
                strides = math.prod(each[1] for each in sketch if isinstance(each, tuple))
                if any(size % (math.prod(mesh.shape) * strides) for size in shape):
                    continue  # uneven
                _check_held(distribute_tensor(whole, mesh, placements, src_data_rank=None), whole, (shape, sketch))

    for mesh_shape in [(2,), (3,), (2, 2), (3, 2), (2, 2, 2)]:
        _on_every_rank(mesh_shape, check)


@pytest.mark.slow
def test_distribute_tensor_with_even_strides_leaves_what_the_pieces_say() -> None:
    worlds.run_simulated(_check_strided)


class _Numbered(nn.Module):
    """A matrix of numbered elements, as a layer and as an embedding; float64 holds them exactly."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        numbers = numbered((rows, columns)).double()
        self.linear = nn.Linear(columns, rows, bias=False)
        self.linear.weight = nn.Parameter(numbers)
        self.embedding = nn.Embedding(rows, columns, _weight=numbers.clone())


def _tensor_parallel(by: str) -> dict[str, ParallelStyle]:
    style = ColwiseParallel if by == "rows" else RowwiseParallel
    return {"linear": style(), "embedding": RowwiseParallel() if by == "rows" else ColwiseParallel()}


def _check_fully_sharded() -> int:
    uneven = 0

    def check(mesh: DeviceMesh) -> list[str]:
        names = mesh.mesh_dim_names
        assert names is not None
        outcomes = []
        for rows, by in itertools.product([1, 2, 3, 7, 8, 12, 13, 25], ["rows", "columns"]):
            model = _Numbered(rows, 5)
            parallelize_module(model, mesh[names[-1]], _tensor_parallel(by), src_data_rank=None)
            fully_shard(model, mesh=mesh[names[:-1]])
            for weight in model.parameters():
                assert isinstance(weight, DTensor)
                _check_held(weight, numbered((rows, 5)), (rows, by, mesh.get_coordinate()))
                assert weight.device_mesh.get_coordinate() == mesh.get_coordinate()
            outcomes.append(str(weight.placements))
        return outcomes

    for mesh_shape in [(2, 2), (3, 2), (2, 3), (4, 2), (2, 2, 2), (2, 3, 2)]:
        found = _on_every_rank(mesh_shape, check)
        assert all(outcomes == found[0] for outcomes in found)
        uneven += sum("_S(0, " in outcome or "_StridedShard(dim=0" in outcome for outcome in found[0])
    return uneven


@pytest.mark.slow
def test_fully_shard_over_tensor_parallelism_leaves_what_the_pieces_say() -> None:
    """Also where rows do not divide evenly, where torch's own reading of the placements would be another."""
    assert worlds.run_simulated(_check_fully_sharded) > 0


def _check_expert_parallel() -> None:
    """Experts over `b`, their rows over `c`, and FSDP2 over both: three divisions of one dimension."""

    def check(mesh: DeviceMesh) -> None:
        for rows in [1, 5, 8, 16, 17, 31]:
            whole = numbered((rows, 3))
            layer = nn.Linear(3, rows, bias=False)
            inner = distribute_tensor(whole.double(), mesh["b", "c"], [Shard(0), Shard(0)], src_data_rank=None)
            layer.weight = nn.Parameter(inner)
            fully_shard(layer, mesh=mesh["a"])
            weight = layer.weight
            assert isinstance(weight, DTensor) and len(weight.placements) == 3
            _check_held(weight, whole, (rows, mesh.get_coordinate()))

    for mesh_shape in [(2, 2, 2), (3, 2, 2), (2, 3, 2)]:
        _on_every_rank(mesh_shape, check)


@pytest.mark.slow
def test_fully_shard_over_expert_and_tensor_parallelism_leaves_what_the_pieces_say() -> None:
    worlds.run_simulated(_check_expert_parallel)


def _check_fully_sharded_on_columns() -> None:
    def check(mesh: DeviceMesh) -> None:
        model = _Numbered(6, 24)
        parallelize_module(model, mesh["b"], _tensor_parallel("columns"), src_data_rank=None)
        fully_shard(model, mesh=mesh["a"], shard_placement_fn=lambda parameter: Shard(1))
        for weight in model.parameters():
            assert isinstance(weight, DTensor)
            assert isinstance(weight.placements[0], _StridedShard) and weight.placements[0].dim == 1
            _check_held(weight, numbered((6, 24)), mesh.get_coordinate())

    for mesh_shape in [(2, 2), (3, 2), (2, 4)]:
        _on_every_rank(mesh_shape, check)


@pytest.mark.slow
def test_fully_shard_of_columns_leaves_what_the_pieces_say() -> None:
    worlds.run_simulated(_check_fully_sharded_on_columns)


def _check_uneven_strides() -> list[str]:
    """distribute_tensor reads [_StridedShard(0, 2), Shard(0)] of 7 rows from left to right."""

    def check(mesh: DeviceMesh) -> str:
        placements = [_StridedShard(0, split_factor=2), Shard(0)]
        tensor = distribute_tensor(numbered((7,)), mesh, placements, src_data_rank=None)
        try:
            _check_held(tensor, numbered((7,)), None)
        except ValueError as error:
            return str(error)
        return ""

    return _on_every_rank((3, 2), check)


@pytest.mark.slow
def test_an_uneven_strided_shard_that_is_not_fully_shards_is_refused_by_name() -> None:
    *right, fifth, sixth = worlds.run_simulated(_check_uneven_strides)
    assert right == [""] * 4
    assert fifth.startswith("weight: expected a local tensor of shape (0,) for (7,) as ") and "got (1,)" in fifth
    assert sixth.startswith("weight: expected a local tensor of shape (1,) for (7,) as ") and "got (0,)" in sixth


def _check_partial() -> None:
    def check(mesh: DeviceMesh) -> None:
        tensor = DTensor.from_local(torch.ones(4, 4), mesh, [Shard(1), Partial()], run_check=False)
        with pytest.raises(ValueError, match=r"layers\.0\.weight: its placement Partial\(sum\) on mesh dimension 1"):
            sharding.local_boxes(tensor, "layers.0.weight")

    _on_every_rank((2, 2), check)


def test_partial_is_refused_by_name_on_every_rank() -> None:
    worlds.run_simulated(_check_partial)


def _check_partial_over_one_rank() -> None:
    def check(mesh: DeviceMesh) -> None:
        dense = torch.empty(4, 4)
        fastinit.init_([dense], "xavier_uniform", names=["w"], seed=0)
        coordinate = mesh.get_coordinate()
        assert coordinate is not None
        own = dense.chunk(2)[coordinate[0]]
        tensor = DTensor.from_local(torch.empty(2, 4), mesh, [Shard(0), Partial()], run_check=False)
        fastinit.init_([tensor], "xavier_uniform", names=["w"], seed=0)
        assert torch.equal(tensor.to_local(), own)
        assert [box.begin for box in sharding.local_boxes(tensor, "w")] == [(2 * coordinate[0], 0)]

    _on_every_rank((2, 1), check)


def test_partial_over_one_rank_holds_values() -> None:
    worlds.run_simulated(_check_partial_over_one_rank)


def _check_wrong_local_shape() -> None:
    def check(mesh: DeviceMesh) -> None:
        wrong = DTensor.from_local(torch.ones(3, 5), mesh, [Shard(0)], run_check=False, shape=(7, 5), stride=(5, 1))
        message = r"weight: expected a local tensor of shape \(4, 5\) for \(7, 5\) as .*Shard.*, got \(3, 5\)"
        if mesh.get_coordinate() == (0,):
            with pytest.raises(ValueError, match=message):
                sharding.local_boxes(wrong, "weight")
        else:
            assert sharding.local_boxes(wrong, "weight") == [Box((0, 0), (4, 0), (3, 5))]
        none = DTensor.from_local(torch.ones(0), mesh, [Shard(0)], run_check=False, shape=(7, 5), stride=(5, 1))
        with pytest.raises(ValueError, match=r"weight: expected a local tensor of shape .*, got \(0,\)"):
            sharding.local_boxes(none, "weight")

    _on_every_rank((2,), check)


def test_a_local_tensor_of_another_shape_is_refused_by_name() -> None:
    worlds.run_simulated(_check_wrong_local_shape)


def test_an_unknown_placement_is_refused_by_name() -> None:
    class Diagonal(Placement):
        def is_replicate(self) -> bool:
            return False

        def is_partial(self, reduce_op: str | None = None) -> bool:
            return False

        def __repr__(self) -> str:
            return "Diagonal()"

    tensor: Any = SimpleNamespace(
        device_mesh=SimpleNamespace(shape=(2,), get_coordinate=lambda: (0,)), placements=(Diagonal(),), dim=lambda: 2
    )
    with pytest.raises(ValueError, match=r"weight: expected placements Shard and Replicate, got Diagonal\(\)"):
        sharding.splits_of(tensor, "weight")


def _check_replicas() -> list[tuple[bool, int]]:
    def check(mesh: DeviceMesh) -> tuple[bool, int]:
        tensor = distribute_tensor(numbered((6,)), mesh, [Replicate(), Shard(0), Replicate()], src_data_rank=None)
        return sharding.is_first_replica(tensor), sharding.num_replicas(tensor)

    return _on_every_rank((2, 2, 2), check)


def test_the_first_of_the_replicas() -> None:
    found = worlds.run_simulated(_check_replicas)
    assert found == [(rank in (0, 2), 4) for rank in range(8)]


def _check_outside() -> None:
    for rank in range(4):
        with worlds.simulated_rank(rank, 4):
            mesh = DeviceMesh("cpu", [1, 2])
            tensor = distribute_tensor(numbered((6, 2)), mesh, [Shard(0)], src_data_rank=None)
            boxes = sharding.local_boxes(tensor, "weight")
            assert boxes == {1: [Box((0, 0), (0, 0), (3, 2))], 2: [Box((0, 0), (3, 0), (3, 2))]}.get(rank, [])
            assert sharding.is_first_replica(tensor) == (rank in (1, 2))


def test_a_rank_outside_of_the_mesh_holds_nothing() -> None:
    worlds.run_simulated(_check_outside)


def test_plain_tensors_are_left_alone() -> None:
    tensor = torch.ones(3)
    assert not sharding.is_dtensor(tensor) and not sharding.is_dtensor("tensor")
    assert local_tensor(tensor) is tensor
