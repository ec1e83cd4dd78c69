"""The fingerprint: as its page defines it, on every path; the same on every sharding; another one after any change."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import worlds
from conftest import needs_native
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import parametrizations

import fastinit
from fastinit import _native
from fastinit.audit import hashing
from fastinit.audit.fingerprints import _prints, _Ranks, _ranks_of, _reduced
from fastinit.run.index_maps import BoxIndices, box_of, boxes

# ---- docs/FINGERPRINT.md in NumPy ----

U64 = NDArray[np.uint64]
_PERSON = b"fastprnt" + (1).to_bytes(8, "little")


def mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes(name: str, tensor: torch.Tensor) -> U64:
    """What every element adds."""
    text = f"{name}\0{str(tensor.dtype).split('.')[1]}\0{','.join(str(size) for size in tensor.shape)}"
    key = int.from_bytes(blake2b(text.encode(), digest_size=8, person=_PERSON).digest(), "little")
    raw = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()
    size = tensor.element_size()
    words = np.frombuffer(raw, dtype=f"<u{min(size, 8)}").astype(np.uint64).reshape(-1, max(size // 8, 1))
    state = np.uint64(key) + np.arange(tensor.numel(), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for column in range(words.shape[1]):
        state = mix(state ^ words[:, column])
    return state


def reference(**tensors: torch.Tensor) -> int:
    return sum(int(hashes(name, tensor).sum(dtype=np.uint64)) for name, tensor in tensors.items()) % 2**64


def module_of(**tensors: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module


def printed(**tensors: torch.Tensor) -> int:
    return fastinit.fingerprint(module_of(**tensors))


@pytest.fixture(params=["native", "torch", "torch in small pieces"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once for every way to compute."""
    if request.param == "native":
        if _native.module is None:
            pytest.skip(f"needs the native code: {_native.reason}")
    else:
        monkeypatch.setattr(hashing, "_is_native", lambda tensor: False)
        if request.param == "torch in small pieces":
            monkeypatch.setattr(hashing, "_AT_ONCE_ON_CPU", 7)
    return str(request.param)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def random_bits(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bit patterns, NaN with payloads among them."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(2, tuple(shape), generator=generator).bool()
    numbers = torch.randint(256, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return numbers.view(dtype).reshape(tuple(shape))


# ---- as defined ----


def test_golden() -> None:
    specials = torch.tensor([[0.0, -0.0, 1.0], [float("inf"), -1.5, 2.0**-149]])
    assert printed(weight=specials) == 0x436687B3A2293D7C
    assert printed(weight=specials.double()) == 0x6246FF48370459A5
    assert printed(weight=specials.half()) == 0xDD79420F3773538F
    assert printed(weight=specials.bfloat16()) == 0xA8351C656C9BA1B9
    assert printed(weight=specials.to(torch.complex128)) == 0x1B9C9FC544E81D7A
    assert printed(weight=torch.arange(1000)) == 0x998E444EC62DBB66
    assert printed(weight=torch.tensor(True)) == 0xDAA41517BC5596B0
    assert printed(weight=torch.empty(0, 3)) == 0
    assert printed(**{f"w{i}": torch.full((i, i), float(i)) for i in range(1, 6)}) == 0x21586A78537B353D


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS], ids=str)
def test_equals_the_reference(path: str, dtype: torch.dtype) -> None:
    for shape in [(), (1,), (7,), (64,), (0, 3), (129, 3), (2, 3, 4, 5), (1, 1, 9), (3, 1, 1), (2,) * 9]:
        tensor = random_bits(shape, dtype)
        assert printed(weight=tensor) == reference(weight=tensor), shape


def layouts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values, otherwise in memory. Four dimensions."""
    padded = torch.zeros([size + 3 for size in tensor.shape], dtype=tensor.dtype)
    inner = padded[tuple(slice(1, 1 + size) for size in tensor.shape)]
    every_second = torch.zeros([2 * size for size in tensor.shape], dtype=tensor.dtype)[::2, ::2, ::2, ::2]
    return {
        "channels_last": tensor.to(memory_format=torch.channels_last),
        "transposed": tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "inner": inner.copy_(tensor),
        "every second": every_second.copy_(tensor),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128, torch.int8], ids=str)
def test_does_not_depend_on_memory_formats(path: str, dtype: torch.dtype) -> None:
    tensor = torch.arange(4 * 5 * 6 * 7).view(4, 5, 6, 7).to(dtype)
    for name, same in layouts(tensor).items():
        assert torch.equal(same, tensor) and same.stride() != tensor.stride()
        assert printed(weight=same) == reference(weight=tensor), name
    expanded = torch.arange(7).to(dtype).expand(3, 7)
    assert printed(weight=expanded) == reference(weight=expanded)


@needs_native
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
def test_does_not_depend_on_instruction_sets_and_threads(isa: str, dtype: torch.dtype, all_threads: None) -> None:
    tensors = {f"w{i}": random_bits(shape, dtype, i) for i, shape in enumerate([(300, 401), (5,), (70001,), (9, 2)])}
    tensors["columns"] = random_bits((300, 401), dtype, 9).t()
    expected = reference(**tensors)
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        assert printed(**tensors) == expected


def test_indices_beyond_32_bits(path: str) -> None:
    key = hashing.key_of("w", torch.float32, (2**40,))
    for first in (2**32 - 2, 2**40 - 5):
        states = np.uint64(key) + np.arange(first, first + 5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        part = hashing.Hashed(key, torch.zeros(5), BoxIndices(first, (1,)))
        assert hashing.sums([part]) == [int(mix(states).sum(dtype=np.uint64))]


# ---- any change is noticed ----


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.complex128], ids=str)
def test_every_bit_counts_and_flips_half_of_the_fingerprint(dtype: torch.dtype) -> None:
    """Strict avalanche: a change of any bit of any element flips every bit of the fingerprint half of the time."""
    samples, bits = 2000, 8 * dtype.itemsize
    size = dtype.itemsize
    elements = random_bits((samples,), dtype, 5)
    before = hashes("w", elements)
    chances = np.zeros((bits, 64))
    for bit in range(bits):
        changed = elements.view(torch.uint8).view(samples, size).clone()
        changed[:, bit // 8] ^= 1 << bit % 8
        after = hashes("w", changed.view(dtype).view(samples))
        assert (after != before).all()
        flips = (before ^ after)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
        chances[bit] = flips.mean(axis=0)
    # Of `bits` * 64 means with a standard error of 0.011, none beyond 5.5 of them, and no bit that is off on average.
    assert np.abs(chances - 0.5).max() < 5.5 * 0.5 / math.sqrt(samples)
    assert np.abs(chances.mean(axis=0) - 0.5).max() < 6.0 * 0.5 / math.sqrt(samples * bits)
    assert np.abs(chances.mean(axis=1) - 0.5).max() < 6.0 * 0.5 / math.sqrt(samples * 64)


def test_every_bit_of_an_index_flips_half_of_what_is_added() -> None:
    """Zeros at two indices that differ in one bit."""
    indices = np.arange(4096, dtype=np.uint64)
    key, step = np.uint64(hashing.key_of("w", torch.float32, (2**40,))), np.uint64(0x9E3779B97F4A7C15)
    before = mix(key + indices * step)
    for bit in range(40):
        after = mix(key + (indices ^ np.uint64(1 << bit)) * step)
        flips = (before ^ after)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
        assert np.abs(flips.mean(axis=0) - 0.5).max() < 5.5 * 0.5 / math.sqrt(4096)


def test_a_changed_element_changes_the_fingerprint(path: str) -> None:
    tensor = random_bits((3, 5), torch.float32)
    seen = {printed(weight=tensor)}
    for index in range(15):
        for bit in range(32):
            changed = tensor.clone()
            changed.view(torch.int32).view(-1)[index] ^= torch.tensor(1 << bit).to(torch.int32)
            seen.add(printed(weight=changed))
    assert len(seen) == 1 + 15 * 32


@pytest.mark.slow
def test_nothing_cancels() -> None:
    """Moves, exchanges, and what sums and differences overlook: all give other numbers, which look random."""
    values = torch.rand(64)
    seen = [printed(weight=values)]
    for i, j in itertools.combinations(range(64), 2):
        exchanged = values.clone()
        exchanged[i], exchanged[j] = values[j], values[i]
        seen.append(printed(weight=exchanged))
        moved = values.clone()
        moved[i], moved[j] = values[i] + 1, values[j] - 1
        seen.append(printed(weight=moved))
    for shift in range(1, 64):
        seen.append(printed(weight=values.roll(shift)))
    seen += [printed(weight=each) for each in (-values, values.flip(0), torch.zeros(64), -torch.zeros(64))]
    assert len(set(seen)) == len(seen)
    counts = np.bincount(np.array(seen, dtype=np.uint64).astype(np.int64) & 15, minlength=16)
    expected = len(seen) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45.0  # chi-square with 15 degrees: once in 10^4


def test_constant_tensors_differ() -> None:
    seen = {printed(weight=torch.full((size,), value)) for size in range(1, 40) for value in (0.0, -0.0, 1.0, 2.0)}
    assert len(seen) == 39 * 4


def test_names_shapes_and_dtypes_count() -> None:
    a, b = torch.rand(4, 6), torch.rand(4, 6)
    numbers = [
        printed(a=a, b=b),
        printed(a=b, b=a),
        printed(a=a, c=b),
        printed(a=a.view(6, 4), b=b),
        printed(a=a.view(24), b=b),
        printed(a=a.view(1, 4, 6), b=b),
        printed(a=a.double(), b=b),
        printed(a=a.view(torch.int32), b=b),
        printed(a=a),
        printed(b=b),
    ]
    assert len(set(numbers)) == len(numbers)
    assert (numbers[-2] + numbers[-1]) % 2**64 == numbers[0]
    assert printed(b=b, a=a) == numbers[0]  # in any order


def test_negative_zero_and_nan_count_by_their_bits() -> None:
    assert printed(w=torch.tensor([0.0])) != printed(w=torch.tensor([-0.0]))
    quiet, other = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert printed(w=quiet) != printed(w=other)
    assert printed(w=quiet) == printed(w=quiet.clone())


# ---- what of a model counts ----


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_parameters_count_once() -> None:
    model = Tied()
    assert fastinit.fingerprint(model) == reference(**{"embedding.weight": model.embedding.weight})


def test_wrappers_do_not_count() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    expected = fastinit.fingerprint(model)
    wrapped = nn.DataParallel(nn.ModuleDict({"_orig_mod": model}))
    assert fastinit.fingerprint(wrapped) == expected


def test_parametrised_weights_count_by_what_they_are_computed_from() -> None:
    model = parametrizations.weight_norm(nn.Linear(3, 4))
    parametrised = model.parametrizations.weight
    assert fastinit.fingerprint(model) == reference(
        **{"weight.0": parametrised.original0, "weight.1": parametrised.original1, "bias": model.bias}
    )


def test_buffers_do_not_count() -> None:
    model = nn.BatchNorm1d(4)
    before = fastinit.fingerprint(model)
    model.running_mean.fill_(1.0)
    assert fastinit.fingerprint(model) == before
    assert fastinit.fingerprint(nn.ReLU()) == 0


def test_names_are_those_in_the_whole() -> None:
    layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    first, second = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])
    whole = fastinit.fingerprint(layers)
    parts = [fastinit.fingerprint(first), fastinit.fingerprint(second, names={"0": "2", "1": "3"})]
    assert sum(parts) % 2**64 == whole
    assert fastinit.fingerprint(second, names=lambda name: f"{int(name[0]) + 2}{name[1:]}") == parts[1]


def test_reads_only(path: str) -> None:
    model = nn.Linear(30, 20)
    model.weight.requires_grad_(True)
    before = model.weight.detach().clone(), model.weight._version, torch.get_rng_state()
    fastinit.fingerprint(model)
    assert torch.equal(model.weight, before[0]) and model.weight._version == before[1]
    assert model.weight.grad_fn is None and torch.equal(torch.get_rng_state(), before[2])
    numbers = np.arange(12.0)
    numbers.flags.writeable = False
    readonly = torch.empty(12, dtype=torch.float64)
    readonly.set_(torch.frombuffer(bytearray(numbers.tobytes()), dtype=torch.float64))
    assert printed(w=readonly) == reference(w=torch.arange(12.0, dtype=torch.float64))
    with torch.inference_mode():
        inference = nn.Linear(2, 2)
    assert fastinit.fingerprint(inference) == reference(weight=inference.weight, bias=inference.bias)


def test_memory_that_is_mapped_read_only(tmp_path: Path) -> None:
    values = torch.rand(5000)
    (tmp_path / "values").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "values"), shared=False, size=5000)
    assert printed(w=mapped) == reference(w=values)


def test_several_threads_at_a_time() -> None:
    model = nn.Linear(700, 300)
    expected = fastinit.fingerprint(model)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(fastinit.fingerprint(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (5, 7), (1, 2, 3, 4), (3, 1, 50)])
@pytest.mark.parametrize("most", [1, 6, 1000])
def test_boxes_make_up_a_tensor(shape: tuple[int, ...], most: int) -> None:
    """What bounds the memory of torch's operations, on a GPU say."""
    numbers = torch.arange(math.prod(shape)).view(shape)
    parts = []
    for begin, of_box in boxes(shape, most):
        assert math.prod(of_box) <= most
        box = box_of(numbers, begin, of_box)
        assert box.shape == of_box and (box.numel() == 0 or box.flatten()[0] == numbers[begin])
        parts.append(box.flatten())
    assert torch.equal(torch.cat(parts), numbers.flatten())


# ---- errors ----


def test_parameters_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^1\.weight: is on the meta device and has no values"):
        fastinit.fingerprint(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")))
    with pytest.raises(ValueError, match=r"^weight: is not initialised yet"):
        fastinit.fingerprint(nn.LazyLinear(2))
    freed = nn.Linear(2, 2)
    freed.weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"^weight: its storage of 0 bytes is smaller than the tensor"):
        fastinit.fingerprint(freed)
    with pytest.raises(TypeError, match=r"^w: expected a dense"):
        printed(w=torch.eye(3).to_sparse())


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got Tensor"):
        fastinit.fingerprint(torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^same: two parameters have this name, weight and bias"):
        fastinit.fingerprint(nn.Linear(2, 2), names=lambda name: "same")
    with pytest.raises(TypeError, match="names: expected a mapping"):
        fastinit.fingerprint(nn.Linear(2, 2), names=3)  # type: ignore[arg-type]


@needs_native
def test_the_native_table_is_checked() -> None:
    native = _native.module
    assert native is not None
    good = hashing._table([hashing.Hashed(1, torch.zeros(4, 3), BoxIndices(0, (3, 1)))])
    native.fingerprint_cpu(good, 1)
    for field, value, what in [
        ("element_bytes", 3, "elements of 3 bytes"),
        ("numel", 11, "do not make up 11"),
        ("data", 0, "without memory"),
        ("dimensions", 0, "a dimension of size 0"),
    ]:
        bad = good.copy()
        bad[field] = value
        with pytest.raises(ValueError, match=what):
            native.fingerprint_cpu(bad, 1)


# ---- over ranks ----


def net() -> nn.Module:
    """Sizes that do not divide evenly, a scalar, nothing, and a tied weight."""
    torch.manual_seed(1)
    model = nn.Module()
    model.first = nn.Linear(6, 10)
    model.second = nn.Linear(10, 7, bias=False, dtype=torch.bfloat16)
    model.third = nn.Linear(7, 3, dtype=torch.float64)
    model.scale = nn.Parameter(torch.rand(()))
    model.nothing = nn.Parameter(torch.rand(0, 4))
    model.tied = nn.Linear(6, 10)
    model.tied.weight = model.first.weight
    return model


def distributed(model: nn.Module, place: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """The model with every parameter replaced, the tied ones by one."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in replaced:
                    replaced[id(parameter)] = nn.Parameter(place(parameter.detach()), requires_grad=False)
                module._parameters[name] = replaced[id(parameter)]
    return model


MESHES = {1: [(1,)], 2: [(2,), (1, 2)], 3: [(3,)], 4: [(4,), (2, 2)]}


def _every_placement(mesh_shape: tuple[int, ...]) -> None:
    mesh = init_device_mesh("cpu", mesh_shape)
    expected = reference(**dict(net().named_parameters()))
    assert fastinit.fingerprint(net()) == expected
    for placements in itertools.product([Replicate(), Shard(0), Shard(1)], repeat=len(mesh_shape)):

        def place(tensor: torch.Tensor, placements: Sequence[Any] = placements) -> torch.Tensor:
            fitting = [Replicate() if each.is_shard() and each.dim >= tensor.dim() else each for each in placements]
            return distribute_tensor(tensor, mesh, fitting)

        model = distributed(net(), place)
        assert fastinit.fingerprint(model) == expected, placements
        assert fastinit.fingerprint(model, replicated=False) == expected, placements


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mesh"),
    [
        pytest.param(size, mesh, marks=[pytest.mark.slow] if size > 2 else [])
        for size, meshes in MESHES.items()
        for mesh in meshes
    ],
)
def test_does_not_depend_on_the_sharding(size: int, mesh: tuple[int, ...]) -> None:
    worlds.run(size, _every_placement, mesh)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.up = nn.Linear(10, 14)
        self.down = nn.Linear(14, 10)
        self.norm = nn.LayerNorm(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.down(self.up(x).relu()))
        return result


def _fully_sharded(mesh_shape: tuple[int, ...], names: tuple[str, ...], tensor_parallel: bool) -> None:
    expected = reference(**dict(Block().named_parameters()))
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    model = Block()
    if tensor_parallel:
        parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        for parameter in model.norm.parameters():
            assert not isinstance(parameter, DTensor)
    fully_shard(model, mesh=mesh["dp"] if tensor_parallel else mesh)
    assert fastinit.fingerprint(model) == expected
    assert fastinit.fingerprint(model, replicated=False) == expected
    if dist.get_rank() == dist.get_world_size() - 1:
        with torch.no_grad():
            model.norm.weight.to_local()[-1] += 1.0
    for replicated in (True, False):
        if tensor_parallel or len(mesh_shape) > 1:  # the last rank has a copy of what others have, too
            message = _message(lambda: fastinit.fingerprint(model, replicated=replicated))  # noqa: B023
            assert message.startswith("norm.weight: replicas differ")
        else:
            assert fastinit.fingerprint(model, replicated=replicated) != expected


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_fsdp(size: int) -> None:
    worlds.run(size, _fully_sharded, (size,), ("dp",), False)


@pytest.mark.slow
def test_hybrid_sharded() -> None:
    worlds.run(4, _fully_sharded, (2, 2), ("replicate", "shard"), False)


@pytest.mark.slow
def test_fsdp_over_tensor_parallel() -> None:
    """A _StridedShard over both; and the norm, on a mesh of the data parallel ranks for every part of the others."""
    worlds.run(4, _fully_sharded, (2, 2), ("dp", "tp"), True)


def _data_parallel() -> None:
    expected = reference(**dict(Block().named_parameters()))
    model = nn.parallel.DistributedDataParallel(Block())
    assert fastinit.fingerprint(model) == expected
    assert fastinit.fingerprint(model, replicated=False) == expected


@pytest.mark.parametrize("size", [1, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 3))])
def test_data_parallel(size: int) -> None:
    worlds.run(size, _data_parallel)


def _first_fully_sharded(use_orig_params: bool) -> None:
    expected = reference(**dict(Block().named_parameters()))
    model = FullyShardedDataParallel(Block(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    assert fastinit.fingerprint(model) == expected
    with FullyShardedDataParallel.summon_full_params(model):
        assert fastinit.fingerprint(model) == expected


@pytest.mark.slow
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_first_version_of_fsdp(use_orig_params: bool) -> None:
    worlds.run(2, _first_fully_sharded, use_orig_params)


def _message(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    return str(caught.value)


def _with_one_changed_replica(wrong_rank: int, as_dtensor: bool, replicated: bool) -> str:
    model = net()
    if as_dtensor:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        distributed(model, lambda tensor: distribute_tensor(tensor, mesh, [Replicate()]))
    before = fastinit.fingerprint(model, replicated=replicated)
    if dist.get_rank() == wrong_rank:
        weight = model.second.weight.detach()
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        local.view(torch.int16)[3, 4] ^= 1
    message = _message(lambda: fastinit.fingerprint(model, replicated=replicated))
    if dist.get_rank() == wrong_rank:
        local.view(torch.int16)[3, 4] ^= 1
    assert fastinit.fingerprint(model, replicated=replicated) == before
    return message


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("as_dtensor", [True, False])
@pytest.mark.parametrize(("size", "wrong_rank"), [(2, 0), (2, 1), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_a_replica_with_another_bit_is_an_error_on_every_rank(
    size: int, wrong_rank: int, as_dtensor: bool, replicated: bool
) -> None:
    messages = worlds.run(size, _with_one_changed_replica, wrong_rank, as_dtensor, replicated)
    assert len(set(messages)) == 1 and messages[0].startswith("second.weight: replicas differ")


def _one_rank_fails(replicated: bool) -> str:
    model = nn.Linear(3, 3, device="meta" if dist.get_rank() == 1 else "cpu")
    message = _message(lambda: fastinit.fingerprint(model, replicated=replicated))
    dist.barrier()
    return message


@pytest.mark.parametrize("replicated", [True, False])
def test_a_rank_that_fails_leaves_none_waiting(replicated: bool) -> None:
    first, second, third = worlds.run(3, _one_rank_fails, replicated)
    assert first == third and first.startswith("group: another rank of it could not")
    assert second.startswith("weight: is on the meta device")


def _stages() -> None:
    """Three stages of a model whose head is tied to its first layer."""
    torch.manual_seed(3)
    layers = [nn.Linear(4, 4) for _ in range(4)]
    whole = nn.Sequential(*layers)
    whole.head = nn.Linear(4, 4)
    whole.head.weight = layers[0].weight
    expected = fastinit.fingerprint(whole, group=dist.new_subgroups(1)[0])
    rank = dist.get_rank()
    stage: nn.Module = nn.Sequential(*[layers[:2], layers[2:3], layers[3:]][rank])
    names = [{}, {"0": "2"}, {"0": "3", "head.weight": "0.weight"}][rank]
    if rank == 2:
        stage.head = nn.Linear(4, 4)
        with torch.no_grad():
            stage.head.weight.copy_(layers[0].weight)
            stage.head.bias.copy_(whole.head.bias)
    assert fastinit.fingerprint(stage, names=names, replicated=False) == expected
    message = _message(lambda: fastinit.fingerprint(stage, names=names))
    assert message.startswith("replicated: the ranks of the group hold parameters of different names")
    with torch.no_grad():
        if rank == 2:
            stage.head.weight[0, 0] += 1.0
    message = _message(lambda: fastinit.fingerprint(stage, names=names, replicated=False))
    assert message.startswith("0.weight: replicas differ")


def test_pipeline_stages() -> None:
    worlds.run(3, _stages)


def _sharded_stages() -> None:
    """Two stages, each over a mesh of two ranks, with a tied weight; and ranks outside of a mesh."""
    torch.manual_seed(4)
    whole = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5))
    whole[1].weight = whole[0].weight
    groups, _ = dist.new_subgroups(1)
    expected = fastinit.fingerprint(whole, group=groups)
    meshes = [DeviceMesh("cpu", [0, 1]), DeviceMesh("cpu", [2, 3])]
    stage = dist.get_rank() // 2
    model = distributed(whole[stage], lambda tensor: distribute_tensor(tensor, meshes[stage], [Shard(0)]))
    names = [{"weight": "0.weight", "bias": "0.bias"}, {"weight": "0.weight", "bias": "1.bias"}][stage]
    assert fastinit.fingerprint(model, names=names, replicated=False) == expected
    message = _message(lambda: fastinit.fingerprint(model, names=names))
    assert message.startswith("replicated: the ranks of the group hold parameters of different names")

    outside = nn.Linear(5, 3)
    expected = reference(**dict(outside.named_parameters()))
    distributed(outside, lambda tensor: _on(meshes[0], tensor))
    assert fastinit.fingerprint(outside, replicated=False) == expected
    message = _message(lambda: fastinit.fingerprint(outside))
    assert "weight: is distributed over 2 of the 4 ranks" in message or message.startswith("group: another rank")


def _on(mesh: DeviceMesh, tensor: torch.Tensor) -> torch.Tensor:
    """A DTensor that ranks outside of the mesh have, too, without values."""
    if mesh.get_coordinate() is None:
        return DTensor.from_local(torch.empty(0), mesh, [Shard(0)], shape=tensor.shape, stride=tensor.stride())
    return distribute_tensor(tensor, mesh, [Shard(0)])


def test_sharded_pipeline_stages() -> None:
    worlds.run(4, _sharded_stages)


def _groups() -> None:
    mesh = init_device_mesh("cpu", (4,))
    low, high = dist.new_group([0, 1]), dist.new_group([2, 3])
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.fill_(dist.get_rank() // 2)
        model.bias.fill_(0.0)
    mine, other = (low, high) if dist.get_rank() < 2 else (high, low)
    assert fastinit.fingerprint(model, group=mine) == reference(**dict(model.named_parameters()))
    assert _message(lambda: fastinit.fingerprint(model, group=other)) == "group: this process is not a member of it"
    assert "replicas differ" in _message(lambda: fastinit.fingerprint(model))
    sharded = distributed(nn.Linear(3, 8), lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
    message = _message(lambda: fastinit.fingerprint(sharded, group=mine))
    assert message.startswith("weight: is distributed over ranks [0, 1, 2, 3], not all of which are in the group")


def test_groups() -> None:
    worlds.run(4, _groups)


def _terms_of_a_sum() -> None:
    mesh = init_device_mesh("cpu", (2,))
    model = module_of(w=DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False))
    assert _message(lambda: fastinit.fingerprint(model)).startswith("w: its placement P")


def test_partial_placements_are_refused() -> None:
    worlds.run(2, _terms_of_a_sum)


def _many_ranks(size: int, mesh_shape: tuple[int, ...], placements: Sequence[Any]) -> tuple[int, int]:
    total = difference = 0
    torch.manual_seed(0)
    values = torch.rand(1000, 30)
    for rank in range(size):
        with worlds.simulated_rank(rank, size):
            mesh = init_device_mesh("cpu", mesh_shape)
            model = module_of(w=distribute_tensor(values, mesh, placements, src_data_rank=None))
            ranks = _Ranks(None, size, rank, tuple(range(size)))
            for each in _prints(model, str, ranks, True):
                total += each.sum * each.counted
                difference += each.difference()
            if rank == 0:
                assert "its backend is 'fake'" in _message(lambda: fastinit.fingerprint(model))  # noqa: B023
    return total % 2**64, difference % 2**64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mesh", "placements"),
    [(8, (8,), [Shard(0)]), (12, (3, 2, 2), [Replicate(), Shard(1), Shard(0)]), (512, (512,), [Shard(0)])],
    ids=str,
)
def test_many_ranks(size: int, mesh: tuple[int, ...], placements: Sequence[Any]) -> None:
    torch.manual_seed(0)
    expected = reference(w=torch.rand(1000, 30))
    assert worlds.run_simulated(_many_ranks, size, mesh, placements) == (expected, 0)


def _wrapping(numbers: list[int]) -> list[int]:
    return _reduced(numbers, _ranks_of(None))


def test_sums_over_ranks_wrap() -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**70), 12345678901234567890]
    for size in (1, 3):
        assert worlds.run(size, _wrapping, numbers) == [[number * size % 2**64 for number in numbers]] * size
