"""Bad input: a clear error that names the parameter, and nothing written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DTYPES, needs_native
from torch import nn

import fastinit
from fastinit.schemes.base import Scheme

FAN_SCHEMES = ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "lecun_uniform", "lecun_normal"]
PLAIN_SCHEMES: list[str | Scheme] = ["uniform", "normal", "trunc_normal", "zeros", "ones", fastinit.Constant(2.0)]


def assert_refused(bad: torch.Tensor, scheme: str | Scheme, error: type[Exception], message: str) -> None:
    """`bad`, second of a list, is refused by its name; the first tensor keeps its values."""
    good = torch.full((4, 4), 7.0, dtype=torch.float64)
    with pytest.raises(error, match=message) as raised:
        fastinit.init_([good, bad], scheme, names=["good", "layer.bad"], seed=0)
    assert "layer.bad" in str(raised.value)
    assert (good == 7.0).all()


@pytest.mark.parametrize(
    ("given", "nearest"), [("xavier_unifrom", "xavier_uniform"), ("kaimin_normal", "kaiming_normal")]
)
def test_unknown_scheme_names_the_nearest(given: str, nearest: str) -> None:
    tensor = torch.full((4, 4), 7.0)
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        fastinit.init_([tensor], given)
    with pytest.raises(ValueError, match="scheme: expected one of"):
        fastinit.init_model_(nn.Linear(3, 3), "nonsense")
    assert (tensor == 7.0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastinit.Normal(0.0, -1.0), "std: expected std >= 0, got -1.0"),
        (lambda: fastinit.Normal(0.0, math.nan), "std: expected a finite number, got nan"),
        (lambda: fastinit.Normal(math.nan, 1.0), "mean: expected a finite number"),
        (lambda: fastinit.Normal(0.0, math.inf), "std: expected a finite number"),
        (lambda: fastinit.TruncNormal(0.0, -0.5), "std: expected std >= 0"),
        (lambda: fastinit.TruncNormal(0.0, 1.0, (2.0, -2.0)), r"expected bounds\[0\] <= bounds\[1\], got 2.0 and -2.0"),
        (lambda: fastinit.TruncNormal(0.0, 1.0, (math.nan, 2.0)), "bounds"),
        (
            lambda: fastinit.TruncNormal(unit="sigmas"),
            "unit: expected one of absolute, sigma, got 'sigmas'; did you mean 'sigma'",
        ),  # type: ignore[arg-type]
        (lambda: fastinit.Uniform(1.0, 0.0), "expected low <= high, got 1.0 and 0.0"),
        (lambda: fastinit.Uniform(0.0, math.inf), "high: expected a finite number"),
        (lambda: fastinit.VarianceScaling(-1.0), "scale: expected scale >= 0"),
        (lambda: fastinit.VarianceScaling(1.0, "fan_inn"), "did you mean 'fan_in'"),  # type: ignore[arg-type]
        (lambda: fastinit.scheme("xavier_normal", gain=math.nan), "gain: expected a finite number, got nan"),
        (lambda: fastinit.scheme("xavier_normal", gain=-1.0), "gain: expected gain >= 0"),
        (lambda: fastinit.scheme("xavier_normal", gian=1.0), "xavier_normal.*gian"),
        (lambda: fastinit.scheme("constant"), "constant.*value"),
    ],
)
def test_arguments_of_schemes_are_checked(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
@pytest.mark.parametrize("scheme", FAN_SCHEMES)
def test_fan_schemes_refuse_scalars_and_vectors(scheme: str, shape: tuple[int, ...]) -> None:
    assert_refused(torch.empty(shape), scheme, ValueError, "at least 2 dimensions.*give it a rule")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_and_booleans_are_refused(dtype: torch.dtype) -> None:
    assert_refused(torch.zeros(3, 3, dtype=dtype), "normal", TypeError, f"floating-point dtype, got {dtype}")


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz.*", "ignore:Sparse CSR.*", "ignore:.*prototype.*")
def test_quantised_sparse_and_nested_tensors_are_refused() -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8)
    assert_refused(quantised, "normal", TypeError, "quantized")
    assert_refused(torch.eye(3).to_sparse(), "normal", TypeError, "layout torch.sparse_coo")
    assert_refused(torch.eye(3).to_sparse_csr(), "normal", TypeError, "layout torch.sparse_csr")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert_refused(nested, "normal", TypeError, "nested")


def test_tensors_that_share_memory_with_themselves_are_refused() -> None:
    assert_refused(torch.zeros(3, 1).expand(3, 4), "normal", ValueError, "share memory.*expand")
    assert_refused(torch.zeros(10).as_strided((3, 3), (2, 1)), "normal", ValueError, "share memory")


def test_tensors_that_share_memory_with_each_other_are_refused() -> None:
    base = torch.full((20,), 7.0)
    with pytest.raises(ValueError, match=r"second: shares memory with first"):
        fastinit.init_([base[:12], base[8:]], "normal", names=["first", "second"])
    assert (base == 7.0).all()
    fastinit.init_([base[:10], base[10:]], "normal")
    with pytest.raises(ValueError, match=r"every: shares memory with all"):
        fastinit.init_([base, base[2:10:2], base[15:]], "normal", names=["all", "every", "last"])
    with pytest.raises(ValueError, match=r"last: shares memory with all"):
        fastinit.init_([base, torch.empty(3), base[15:]], "normal", names=["all", "other", "last"])
    columns = torch.empty(6, 8)
    fastinit.init_([columns[:, :4], columns[:, 4:]], "normal")


def test_meta_tensors_are_refused() -> None:
    assert_refused(torch.empty(3, 3, device="meta"), "normal", ValueError, "meta device.*to_empty")
    with pytest.raises(ValueError, match=r"weight: is on the meta device"):
        fastinit.init_model_(nn.Linear(3, 3, device="meta"), "xavier_uniform")


@pytest.mark.filterwarnings("ignore:Lazy modules.*")
def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.weight: .*run a forward pass first"):
        fastinit.init_model_(nn.Sequential(nn.LazyLinear(4)), "xavier_uniform")


def test_fake_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3, 3)
    assert_refused(fake, "normal", TypeError, "FakeTensor")


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_read_only_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * 4096))
    mapped = np.memmap(path, dtype=np.float32, mode="r")
    assert_refused(torch.from_numpy(mapped), "normal", ValueError, "read-only")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as writable:
        tensor = torch.frombuffer(writable, dtype=torch.float32)
        fastinit.init_([tensor], "normal", seed=0)
        assert tensor.std() > 0.9
        del tensor


def test_freed_storage_is_refused() -> None:
    freed = torch.zeros(8, 8)
    freed.untyped_storage().resize_(0)
    assert_refused(freed, "normal", ValueError, "storage of 0 bytes")


def test_storage_freed_after_planning_is_refused() -> None:
    weight = nn.Parameter(torch.full((8, 8), 7.0))
    model = nn.ParameterDict({"first": nn.Parameter(torch.full((4, 4), 7.0)), "weight": weight})
    plan = fastinit.plan(model, "normal", seed=0)
    weight.data.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="weight: its storage of 0 bytes"):
        plan.run_()
    assert (model["first"] == 7.0).all()


@pytest.mark.parametrize("change", [lambda t: t[:4], lambda t: t.double(), lambda t: t.t().contiguous()])
def test_tensors_changed_after_planning_are_refused(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weight = nn.Parameter(torch.full((8, 6), 7.0))
    plan = fastinit.plan(nn.ParameterDict({"weight": weight}), "normal", seed=0)
    weight.data = change(weight.data)
    with pytest.raises(
        ValueError, match=r"weight: planned as \(8, 6\) torch.float32 on cpu, is now .*; make a new plan"
    ):
        plan.run_()
    assert (weight == 7.0).all()


def test_tensors_moved_after_planning_are_followed() -> None:
    module = nn.Linear(6, 5)
    plan = fastinit.plan(module, "normal", seed=0)
    module.weight.data = torch.zeros(5, 6)
    plan.run_()
    expected = fastinit.init_model_(nn.Linear(6, 5), "normal", seed=0)
    assert torch.equal(module.weight, expected.weight)


@pytest.mark.parametrize("given", [None, [1.0], np.ones(3)], ids=["None", "list", "ndarray"])
def test_other_objects_are_refused(given: object) -> None:
    with pytest.raises(TypeError, match=r"layer: expected a torch\.Tensor"):
        fastinit.init_([given], "normal", names=["layer"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.5, TypeError), (True, TypeError), ("7", TypeError)]
)
def test_seeds_are_checked(seed: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed: expected"):
        fastinit.init_([torch.empty(3)], "normal", seed=seed)  # type: ignore[arg-type]
    fastinit.init_([torch.empty(3)], "normal", seed=2**64 - 1)


def test_seed_and_generator_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="seed, generator"):
        fastinit.init_([torch.empty(3)], "normal", seed=1, generator=torch.Generator())


def test_names_are_checked() -> None:
    tensors = [torch.empty(3), torch.empty(3)]
    with pytest.raises(ValueError, match="names: expected 2"):
        fastinit.init_(tensors, "normal", names=["a"])
    with pytest.raises(ValueError, match=r"'a' stands twice"):
        fastinit.init_(tensors, "normal", names=["a", "_orig_mod.a"])


def test_backend_is_checked() -> None:
    with pytest.raises(ValueError, match="backend: expected one of auto, native, torch, got 'cuda'"):
        fastinit.init_([torch.empty(3)], "normal", backend="cuda")


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [
        (torch.float16, fastinit.Uniform(-1e5, 1e5)),
        (torch.float16, fastinit.Uniform(-4e4, 4e4)),
        (torch.float32, fastinit.Uniform(-3e38, 3e38)),
        (torch.float16, fastinit.Normal(0.0, 1e5)),
    ],
    ids=str,
)
def test_numbers_outside_the_dtype_are_refused(dtype: torch.dtype, scheme: Scheme) -> None:
    assert_refused(torch.empty(3, 3, dtype=dtype), scheme, ValueError, f"{dtype}")


@needs_native
@pytest.mark.filterwarnings("ignore:.* many values are the same")
def test_bounds_without_a_number_between_them_are_refused() -> None:
    between = fastinit.Uniform(1.001, 1.002)
    assert_refused(torch.empty(3, 3, dtype=torch.bfloat16), between, ValueError, "no value of torch.bfloat16")
    tensor = torch.full((3, 3), 7.0)
    with pytest.raises(ValueError, match=r"far: .* more than 6 sigma"):
        fastinit.init_([tensor], fastinit.TruncNormal(0.0, 1.0, (7.0, 8.0)), names=["far"])
    assert (tensor == 7.0).all()


@pytest.mark.parametrize("scheme", [*FAN_SCHEMES, *PLAIN_SCHEMES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 0), (3, 0, 2)], ids=str)
def test_empty_tensors_are_accepted(scheme: str | Scheme, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    empty = torch.empty(shape, dtype=dtype)
    full = torch.zeros(40, 40, dtype=dtype)
    fastinit.init_([empty, full], scheme, seed=0)
    assert empty.shape == shape
    assert scheme == "zeros" or (full != 0).any()


@needs_native
def test_forced_instruction_set_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINIT_FORCE_ISA", "mmx")
    with pytest.raises(ValueError, match=r"FASTINIT_FORCE_ISA: expected one .*portable.* got 'mmx'"):
        fastinit.init_([torch.empty(3)], "normal")


@needs_native
def test_native_tables_are_checked() -> None:
    from fastinit import _native

    native = _native.module
    assert native is not None
    with pytest.raises(ValueError, match="byte rows"):
        native.prepare(np.zeros(10))
    for field, value, message in [
        ("dtype", 9, "unknown dtype 9"),
        ("numel", -1, "negative"),
        ("row_length", 0, "empty rows"),
    ]:
        table = np.zeros(1, dtype=np.dtype(native.task_dtype()))
        table["row_length"] = table["rows_per_slab"] = 1
        table[field] = value
        with pytest.raises(ValueError, match=message):
            native.prepare(table)
