"""Bad input: a clear error that names the parameter, and nothing written."""

from __future__ import annotations

import functools
import math
import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DTYPES, needs_native
from torch import nn

import fastinit
from fastinit.schemes import distributions
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
    ("given", "nearest"),
    [
        ("xavier_unifrom", "xavier_uniform"),
        ("kaimin_normal", "kaiming_normal"),
        ("Xavier_Uniform", "xavier_uniform"),
        ("glorot_unifrom", "glorot_uniform"),
        ("he_normal_", "he_normal"),
    ],
)
def test_unknown_scheme_names_the_nearest(given: str, nearest: str) -> None:
    tensor = torch.full((4, 4), 7.0)
    with pytest.raises(
        ValueError, match=rf"^scheme: got '{given}', did you mean '{nearest}'\? expected one of uniform, "
    ):
        fastinit.init_([tensor], given)
    with pytest.raises(ValueError, match=r"^scheme: expected one of uniform, .*, got 'qqq'$"):
        fastinit.init_model_(nn.Linear(3, 3), "qqq")
    assert (tensor == 7.0).all()


@dataclass(frozen=True)
class MyScheme:
    std: float

    def distribution(self, context: fastinit.Context) -> distributions.Distribution:
        return distributions.Normal(0.0, self.std)


# What was given in place of a scheme, and the code that an error puts in its place.
NO_SCHEMES: list[tuple[Any, str]] = [
    (fastinit.Normal, "fastinit.Normal(mean=0.0, std=1.0)"),
    (fastinit.Constant, "fastinit.Constant(value=...)"),
    (MyScheme, "MyScheme(std=...)"),
    (nn.init.xavier_uniform_, '"xavier_uniform"'),
    (nn.init.orthogonal_, '"orthogonal"'),
    (nn.init.sparse_, 'fastinit.scheme("sparse", sparsity=...)'),
    (fastinit.kaiming_normal_, '"kaiming_normal"'),
    (torch.Tensor.normal_, '"normal"'),
    (functools.partial(nn.init.normal_, std=0.02), 'fastinit.scheme("normal", std=0.02)'),
    (nn.init.calculate_gain, '"xavier_uniform"'),
    (lambda tensor: tensor, '"xavier_uniform"'),
    (0, '"zeros"'),
    (1.0, '"ones"'),
    (0.5, "fastinit.Constant(0.5)"),
    (None, '"xavier_uniform"'),
    (True, '"xavier_uniform"'),
    (torch.ones(1000), '"xavier_uniform"'),
    (fastinit.KEEP, '"xavier_uniform"'),
    (nn.Linear(3, 3), '"xavier_uniform"'),
]
LINES: dict[str, tuple[Callable[[Any], object], str]] = {
    "init_model_": (lambda given: fastinit.init_model_(nn.Linear(3, 3), given), "fastinit.init_model_(model, {})"),
    "plan": (lambda given: fastinit.plan(nn.Linear(3, 3), given), "fastinit.plan(model, {})"),
    "materialize_": (
        lambda given: fastinit.materialize_(nn.Linear(3, 3, device="meta"), given, device="cpu"),
        "fastinit.materialize_(model, {}, device='cpu')",
    ),
    "init_": (lambda given: fastinit.init_([torch.empty(3)], given), "fastinit.init_(tensors, {})"),
    "rules": (lambda given: fastinit.Rule("*{3}.weight", given), '("*{3}.weight", {})'),
}


@pytest.mark.parametrize("call", LINES)
@pytest.mark.parametrize(("given", "instead"), NO_SCHEMES, ids=[code for _, code in NO_SCHEMES])
def test_what_is_no_scheme_is_answered_with_the_line_to_write(given: Any, instead: str, call: str) -> None:
    if call == "rules" and given is fastinit.KEEP:
        return  # a rule may say so
    make, line = LINES[call]
    if call == "rules" and given is None:
        instead = "fastinit.KEEP"
    with pytest.raises(TypeError) as raised:
        make(given)
    message = str(raised.value)
    assert message.startswith("scheme: expected a name or a scheme object, got ") and len(message) < 300
    before, after = line.rsplit("{}", 1)
    assert f"; write {before}{instead}{after}" in message


def test_a_number_may_be_meant_as_a_std() -> None:
    with pytest.raises(TypeError, match=r"or fastinit\.plan\(model, fastinit\.Normal\(std=0\.02\)\) for that std$"):
        fastinit.plan(nn.Linear(3, 3), 0.02)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (fastinit.presets.gpt2, "fastinit.init_model_(model, fastinit.presets.gpt2(model))"),
        (fastinit.deepnorm, "fastinit.init_model_(model, fastinit.deepnorm(model))"),
    ],
)
def test_what_makes_a_recipe_is_answered_with_the_call(given: Any, line: str) -> None:
    with pytest.raises(TypeError, match=f"^scheme: .* got the function .*; write {re.escape(line)}$"):
        fastinit.init_model_(nn.Linear(3, 3), given)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda model: model.weight, 'fastinit.init_([tensor], "kaiming_normal")'),
        (lambda model: [model.weight], 'fastinit.init_(tensors, "kaiming_normal"), or fastinit.init_model_(model, '),
        (
            lambda model: model.parameters(),
            'fastinit.init_(tensors, "kaiming_normal"), or fastinit.init_model_(model, ',
        ),
        (
            lambda model: model.state_dict(),
            'fastinit.init_(tensors.values(), "kaiming_normal", names=list(tensors))',
        ),
        (type, 'fastinit.init_model_(Linear(...), "kaiming_normal")'),
    ],
)
@pytest.mark.parametrize("call", [fastinit.init_model_, fastinit.plan, fastinit.materialize_])
def test_tensors_in_place_of_a_model_are_answered_with_the_line(
    make: Callable[[nn.Module], Any], line: str, call: Callable[..., Any]
) -> None:
    options = {"device": "cpu"} if call is fastinit.materialize_ else {}
    with pytest.raises(TypeError, match=f"^model: expected a torch.nn.Module, got .*; write {re.escape(line)}"):
        call(make(nn.Linear(3, 3)), "kaiming_normal", **options)


def test_a_model_in_place_of_tensors_is_answered_with_the_line() -> None:
    model: Any = nn.Linear(3, 3)
    for call in (fastinit.init_, lambda given, scheme: fastinit.init_([given], scheme)):
        with pytest.raises(TypeError, match=r'^tensors: .* got Linear; write fastinit\.init_model_\(model, "ones"\)$'):
            call(model, "ones")
        with pytest.raises(
            TypeError, match=r"write fastinit\.init_model_\(model, fastinit\.Normal\(mean=0\.0, std=0\.02\)\)$"
        ):
            call(model, fastinit.Normal(std=0.02))
    with pytest.raises(TypeError, match=r'^tensor: .* write fastinit\.init_model_\(model, "xavier_uniform"\)$'):
        fastinit.xavier_uniform_(model)
    with pytest.raises(TypeError, match=r'^model: .* write fastinit\.init_model_\(model, "ones"\)$'):
        fastinit.init_model_("ones", model)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r'^tensors: .* one tensor; .*: fastinit\.init_\(\[tensor\], "ones"\)$'):
        fastinit.init_(model.weight, "ones")


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
            r"unit: got 'sigmas', did you mean 'sigma'\? expected one of absolute, sigma",
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


@pytest.mark.filterwarnings("ignore::fastinit.ZerosWarning")
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
    with pytest.raises(ValueError, match="backend: expected one of auto, native, staged, torch, got 'cuda'"):
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
def test_empty_tensors_are_accepted(scheme: str | Scheme, dtype: torch.dtype) -> None:
    for shape in ((0,), (0, 5), (5, 0), (0, 0), (3, 0, 2)):
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


def test_fake_tensors_are_refused_by_whatever_looks_at_values() -> None:
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    plan = fastinit.plan(model, "xavier_uniform", seed=0)
    with torch.device("meta"):
        on_meta = nn.Linear(3, 3)
    calls: list[Any] = [
        lambda: fastinit.init_model_(model, "own", seed=0),
        lambda: fastinit.init_model_(model, "xavier_uniform", seed=0),
        lambda: fastinit.verify(model, plan),
        lambda: fastinit.distance(model, plan),
        lambda: fastinit.fingerprint(model),
        lambda: fastinit.report(model),
        lambda: fastinit.materialize_(on_meta, "xavier_uniform", device="cpu", seed=0),
    ]
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        for call in calls:
            with pytest.raises(RuntimeError, match=r"^FakeTensorMode is on"):
                call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float16", 3])
def test_a_model_is_materialised_in_a_floating_point_dtype(dtype: Any) -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with pytest.raises(
        TypeError, match=rf"^dtype: expected a floating-point torch\.dtype, got {re.escape(repr(dtype))}$"
    ):
        fastinit.materialize_(model, "xavier_uniform", device="cpu", dtype=dtype, seed=0)
    assert model.weight.is_meta
