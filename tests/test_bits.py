"""The contract: a value depends on its seed, name, index and distribution, and on nothing else. To the bit."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from conftest import DTYPES, FLOAT8_DTYPES, INSTRUCTION_SETS, fill_native_row, needs_native
from torch import nn

import fastinit
from fastinit.run.streams import name_id
from fastinit.schemes import distributions
from fastinit.schemes.base import Scheme

pytestmark = needs_native

SCHEMES: dict[str, Scheme] = {
    "constant": fastinit.Constant(0.3),
    "uniform": fastinit.Uniform(-0.7, 1.1),
    "normal": fastinit.Normal(0.1, 0.8),
    "trunc_normal": fastinit.TruncNormal(0.0, 0.02, (-2, 2), unit="sigma"),
    "lopsided trunc_normal": fastinit.TruncNormal(0.5, 1.0, (-0.2, 4.0)),
}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in logical order, as integers: equal means equal to the bit."""
    views = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(views[tensor.element_size()])


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    assert left.dtype == right.dtype and left.shape == right.shape
    assert torch.equal(bits(left), bits(right))


def sample(shape: int | tuple[int, ...], scheme: Scheme, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    fastinit.init_([tensor], scheme, names=["weight"], seed=11)
    return tensor


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
def test_bits_same_for_every_thread_count(scheme: Scheme, dtype: torch.dtype, all_threads: None) -> None:
    outcomes = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        outcomes.append(sample(1_000_003, scheme, dtype))
    for outcome in outcomes[1:]:
        assert_same_bits(outcomes[0], outcome)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
def test_bits_same_for_every_instruction_set(
    scheme: Scheme, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for name in INSTRUCTION_SETS:
        monkeypatch.setenv("FASTINIT_FORCE_ISA", name)
        outcomes.append(sample(700_001, scheme, dtype))
    for outcome in outcomes[1:]:
        assert_same_bits(outcomes[0], outcome)


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_bits_of_a_prefix_do_not_depend_on_the_size(scheme: Scheme, dtype: torch.dtype, isa: str) -> None:
    whole = sample(70_000, scheme, dtype)
    sizes = [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 32767, 32768, 32769, 65537]
    for size in sizes:
        assert_same_bits(sample(size, scheme, dtype), whole[:size])


@functools.cache
def _streamed(scheme: Scheme, dtype: torch.dtype) -> torch.Tensor:
    return sample(40 * 2**20 // dtype.itemsize, scheme, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_bits_same_when_writes_go_past_the_caches(scheme: Scheme, dtype: torch.dtype) -> None:
    """Fills of 32 MiB and more use streaming stores; here of an aligned tensor, of one that is not, and in parts."""
    whole = _streamed(scheme, dtype)
    unaligned = torch.empty(whole.numel() + 1, dtype=dtype)[1:]
    fastinit.init_([unaligned], scheme, names=["weight"], seed=11)
    assert_same_bits(unaligned, whole)
    assert_same_bits(sample(100_000, scheme, dtype), whole[:100_000])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("scheme", [SCHEMES["uniform"], SCHEMES["normal"]], ids=["uniform", "normal"])
def test_writes_past_the_caches_end_where_the_tensor_does(scheme: Scheme, dtype: torch.dtype, isa: str) -> None:
    lengths = range(1, 700)
    names = [f"w{length}" for length in lengths]

    def filled(*more: torch.Tensor) -> torch.Tensor:
        memory = torch.zeros(len(lengths), 1024, dtype=dtype)
        tensors = [row[:length] for row, length in zip(memory, lengths, strict=True)]
        fastinit.init_([*tensors, *more], scheme, names=[*names, *map(str, range(len(more)))], seed=11)
        assert not any(bool(row[length:].float().any()) for row, length in zip(memory, lengths, strict=True))
        return memory

    enough = torch.empty(33 * 2**20 // dtype.itemsize, dtype=dtype)  # for all of them to be written past the caches
    assert_same_bits(filled(enough), filled())


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Empty tensors of one shape that lie differently in memory."""
    empty = functools.partial(torch.empty, dtype=dtype)
    reversed_dims = tuple(range(len(shape)))[::-1]
    padded = empty(tuple(size + 3 for size in shape))
    strided = empty(tuple(2 * size for size in shape))
    found = {
        "transposed": empty(shape[::-1]).permute(reversed_dims),
        "padded": padded[tuple(slice(1, size + 1) for size in shape)],
        "every second": strided[tuple(slice(None, None, 2) for _ in shape)],
        "unaligned": empty(int(torch.Size(shape).numel()) + 1)[1:].view(shape),
    }
    if len(shape) == 4:
        found["channels_last"] = empty(shape).to(memory_format=torch.channels_last)
    if len(shape) == 5:
        found["channels_last_3d"] = empty(shape).to(memory_format=torch.channels_last_3d)
        found["shuffled"] = empty((shape[2], shape[0], shape[4], shape[1], shape[3])).permute(1, 3, 0, 4, 2)
    return found


SHAPES = [(7,), (1000, 37), (300, 512), (3, 5, 7), (16, 8, 3, 3), (5, 1, 4, 6), (3, 4, 2, 5, 6), (1, 1, 1)]


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_bits_follow_the_logical_index_in_every_layout(scheme: Scheme, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        contiguous = sample(shape, scheme, dtype)
        for name, tensor in layouts(shape, dtype).items():
            fastinit.init_([tensor], scheme, names=["weight"], seed=11)
            assert torch.equal(bits(tensor), bits(contiguous)), (shape, name)


def test_layouts_leave_the_memory_around_a_view_alone() -> None:
    base = torch.full((40, 50), 7.0)
    fastinit.init_([base[3:20, 5:41:2]], "normal", seed=0)
    outside = torch.ones(40, 50, dtype=torch.bool)
    outside[3:20, 5:41:2] = False
    assert (base[outside] == 7.0).all()
    assert (base[~outside] != 7.0).all()


@pytest.mark.parametrize("scheme", [SCHEMES["normal"], SCHEMES["uniform"]], ids=["normal", "uniform"])
def test_bits_of_narrow_types_are_the_rounded_float32(scheme: Scheme) -> None:
    exact = sample(1_000_003, scheme)
    for dtype in (torch.float16, torch.bfloat16, *FLOAT8_DTYPES):
        low, high = -float("inf"), float("inf")
        if isinstance(scheme, fastinit.Uniform):
            low, high = inward(scheme.low, scheme.high, dtype)
        assert_same_bits(sample(1_000_003, scheme, dtype), exact.clamp(low, high).to(dtype))


def inward(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The dtype's least number not below low, and its greatest not above high."""
    if dtype.itemsize == 1:
        numbers = torch.arange(256, dtype=torch.uint8).view(dtype).double()
        return numbers[numbers >= low].min().item(), numbers[numbers <= high].max().item()
    infinity = torch.tensor(float("inf"), dtype=dtype)
    lower, upper = torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)
    if lower.double().item() < low:
        lower = torch.nextafter(lower, infinity)
    if upper.double().item() > high:
        upper = torch.nextafter(upper, -infinity)
    return lower.double().item(), upper.double().item()


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.filterwarnings("ignore:.*many values are the same")  # of 8 bits, a few lie within
@pytest.mark.parametrize("bounds", [(-0.06, 0.06), (0.1, 0.3), (-1e-3, 5.0), (-0.1, -0.05)], ids=str)
def test_bounds_are_kept_in_every_dtype(dtype: torch.dtype, bounds: tuple[float, float]) -> None:
    low, high = bounds
    for scheme in (fastinit.Uniform(low, high), fastinit.TruncNormal(0.0, 0.05, (low, high))):
        values = sample(2_000_000, scheme, dtype).double()
        assert low <= values.min().item() and values.max().item() <= high


def model(extra_layer: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(40, 30), nn.LayerNorm(30), nn.Conv2d(3, 8, 3), nn.Embedding(11, 6)]
    built = nn.Sequential(*layers)
    if extra_layer:
        built.add_module("extra", nn.Linear(5, 5))
    return built


def test_bits_of_a_tensor_alone_and_within_a_model_are_the_same() -> None:
    built = fastinit.init_model_(model(), "xavier_uniform", seed=3)
    for name, parameter in built.named_parameters():
        if parameter.dim() >= 2:
            alone = torch.empty_like(parameter)
            fastinit.init_([alone], "xavier_uniform", names=[name], seed=3)
            assert_same_bits(alone, parameter)


def test_adding_a_layer_changes_no_other_parameter() -> None:
    small = fastinit.init_model_(model(), "kaiming_normal", seed=3)
    large = fastinit.init_model_(model(extra_layer=True), "kaiming_normal", seed=3)
    there = dict(large.named_parameters())
    for name, parameter in small.named_parameters():
        assert_same_bits(parameter, there[name])


def test_wrappers_do_not_change_names() -> None:
    plain = fastinit.init_model_(model(), "normal", seed=3)
    wrapped = nn.Sequential()
    wrapped.add_module("_orig_mod", nn.DataParallel(model()))
    fastinit.init_model_(wrapped, "normal", seed=3)
    for parameter, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert_same_bits(parameter, other)


def test_names_and_seeds_give_different_values() -> None:
    tensors = [torch.empty(1000) for _ in range(6)]
    fastinit.init_(tensors[:3], "normal", seed=1)
    fastinit.init_(tensors[3:], "normal", seed=1 + 2**32)
    assert len({tuple(bits(tensor).tolist()) for tensor in tensors}) == 6


def test_bits_do_not_depend_on_denormal_flushing() -> None:
    scheme = fastinit.Uniform(-3e-39, 3e-39)  # subnormal
    expected = sample(300_000, scheme)
    assert (expected != 0).float().mean() > 0.9
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        flushed = sample(300_000, scheme)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(expected, flushed)


SHARDS = {
    "columns": ((50, 1000), (slice(None), slice(100, 400))),
    "few columns": ((3000, 7), (slice(None), slice(2, 5))),
    "rows": ((500, 64), (slice(123, 321),)),
    "a middle dimension": ((20, 30, 40), (slice(None), slice(7, 19))),
    "a channel of a convolution": ((64, 32, 3, 3), (slice(None), slice(5, 6))),
}


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [*DTYPES, *FLOAT8_DTYPES], ids=str)
@pytest.mark.parametrize(("shape", "part"), SHARDS.values(), ids=SHARDS.keys())
def test_shards_equal_the_slice_of_the_whole(
    shape: tuple[int, ...], part: tuple[slice, ...], dtype: torch.dtype, layout: str, isa: str
) -> None:
    """What a rank that holds a slice of one dimension writes, in memory of its own."""
    expected = sample(shape, SCHEMES["normal"], dtype)[part]
    indices = torch.arange(math.prod(shape)).view(shape)[part]
    rows = math.prod(shape[: len(part) - 1])
    length = expected.numel() // rows
    shard = torch.empty(rows, length, dtype=dtype)
    if layout == "transposed":
        shard = torch.empty(length, rows, dtype=dtype).t()
    fill_native_row(
        shard,
        distributions.Normal(0.1, 0.8),
        seed=11,
        name_id=name_id("weight"),
        global_offset=int(indices.flatten()[0]),
        row_length=length,
        rows_per_slab=rows,
        row_index_step=math.prod(shape[len(part) - 1 :]),
        row_memory_step=shard.stride(0),
        element_memory_step=shard.stride(1),
    )
    assert_same_bits(shard.reshape(expected.shape), expected)
