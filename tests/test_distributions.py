"""Distributions: their kinds, what they refuse, and how one more is added. And what schemes may ask a context."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import nn

import fastinit
from fastinit import Context, Rule
from fastinit.errors import ParameterError
from fastinit.rules.depths import Depths
from fastinit.rules.resolve import Resolver
from fastinit.rules.roles import Treatment
from fastinit.run import composed
from fastinit.run.engine import NativeSource, Program
from fastinit.run.index_maps import box_of
from fastinit.run.targets import Target, begin_of
from fastinit.schemes import distributions
from fastinit.schemes.distributions import (
    Blocks,
    Chrono,
    Constant,
    DeltaOrthogonal,
    Diagonal,
    Distribution,
    Hadamard,
    IdentityPlus,
    LogOfUniform,
    LogRange,
    Normal,
    Orthogonal,
    Series,
    Sparse,
    Spectral,
    Stack,
    TimeStep,
    TruncNormal,
    Uniform,
    ZeroRow,
    check_range,
    range_warning,
)

KINDS: dict[Distribution, tuple[int, ...]] = {
    Constant(0.5): (3, 4),
    Uniform(-1.0, 0.5): (3, 4),
    Normal(0.1, 0.5): (3, 4),
    TruncNormal(0.0, 1.0, -2.0, 2.0): (3, 4),
    Diagonal(0.5, 0, 5, 3, 12): (3, 4),
    Orthogonal(0.5, 3, 4): (3, 4),
    DeltaOrthogonal(0.5, 4, 3, 5): (4, 3, 5),
    Spectral((2.0, 1.0), 2, 4): (2, 4),
    IdentityPlus(1.0, 0.1, 4): (4, 4),
    Sparse(0.5, 1, 3): (3, 4),
    Hadamard(0.5, 1): (4, 3),
    LogRange(4): (3, 4),
    Series((0.5, -1.0, 2.0, 0.0)): (3, 4),
    TimeStep(0.001, 0.1, 0.0001): (5,),
    LogOfUniform(1.0, 16.0): (3, 4),
    Chrono(1.0, 99.0, 3, (-1, 1, 0, 0)): (12,),
    Blocks(1, (1, 3), (Normal(0.0, 1.0), Uniform(0.0, 1.0))): (3, 4),
    Stack(2, Orthogonal(0.5, 3, 4)): (2, 3, 4),
    ZeroRow(1, 3, Normal(0.0, 1.0)): (3, 4),
}
every_kind = pytest.mark.parametrize(
    ("distribution", "shape"), KINDS.items(), ids=[type(each).__name__ for each in KINDS]
)


def test_every_kind_is_here() -> None:
    kinds = {
        each
        for each in vars(distributions).values()
        if isinstance(each, type) and issubclass(each, Distribution) and not each.__abstractmethods__
    }
    assert kinds == {type(each) for each in KINDS}


@every_kind
def test_a_distribution_is_frozen_and_equal_to_its_copy_alone(
    distribution: Distribution, shape: tuple[int, ...]
) -> None:
    assert copy.deepcopy(distribution) == distribution == pickle.loads(pickle.dumps(distribution))
    assert [each for each in KINDS if each == distribution] == [distribution]
    with pytest.raises((AttributeError, TypeError)):
        distribution.anything = 1  # type: ignore[attr-defined]
    assert not isinstance(distribution, tuple) and not hasattr(distribution, "__dict__")


def test_equal_numbers_of_two_kinds_are_two_distributions() -> None:
    assert Uniform(0.0, 1.0) != Normal(0.0, 1.0)
    assert len({Uniform(0.0, 1.0), Normal(0.0, 1.0), Uniform(0.0, 1.0)}) == 2
    layer = nn.Linear(500, 40, bias=False)
    fastinit.init_model_(layer, "zeros", [Rule("weight", ("uniform", "normal"), split=2)], seed=0)
    first, second = layer.weight.detach().chunk(2)
    assert first.min() >= 0.0 and first.max() <= 1.0 and second.min() < -2.0


@every_kind
def test_values_lie_within_the_bounds_and_have_the_moments(distribution: Distribution, shape: tuple[int, ...]) -> None:
    distribution.check(shape)
    values = torch.stack([written(distribution, shape, f"w{i}") for i in range(300)])
    low, high = distribution.bounds()
    assert low - 1e-12 <= values.min().item() and values.max().item() <= high + 1e-12
    spread = 5.0 * distribution.std() / math.sqrt(300)
    if not isinstance(distribution, Hadamard):  # whose corner need not be balanced
        assert abs(values.mean().item() - distribution.mean()) <= spread + 1e-12
        assert values.std(correction=0).item() == pytest.approx(distribution.std(), rel=0.2, abs=1e-12)
    assert distribution.is_random() == bool((values[0] != values[1]).any())


def written(distribution: Distribution, shape: tuple[int, ...], name: str = "w") -> torch.Tensor:
    tensor = torch.full(shape, torch.nan, dtype=torch.float64)
    target = Target(name, tensor, tensor.shape, tensor.dtype, tensor.device, distribution)
    Program([target], "auto").run_(5, None)
    return tensor


WRONG: list[tuple[Distribution, tuple[int, ...]]] = [
    (Diagonal(1.0, 0, 5, 4, 12), (3, 4)),
    (Diagonal(1.0, 0, 5, 3, 12), (3, 5)),
    (Orthogonal(1.0, 3, 3), (3, 4)),
    (Orthogonal(1.0, 3, 4, 2), (3, 4)),
    (Orthogonal(1.0, 3, 4), (12,)),
    (DeltaOrthogonal(1.0, 3, 4, 5), (4, 3, 5)),
    (DeltaOrthogonal(1.0, 3, 4, 5), (3, 4, 5)),
    (Spectral((1.0,), 1, 4), (2, 4)),
    (IdentityPlus(1.0, 1.0, 3), (3, 4)),
    (Sparse(1.0, 1, 4), (3, 4)),
    (Hadamard(1.0, 2), (4, 3)),
    (LogRange(3), (3, 4)),
    (Series((1.0, 2.0, 3.0)), (3, 4)),
    (Chrono(1.0, 99.0, 3, (-1, 1, 0, 0)), (11,)),
    (Chrono(1.0, 99.0, 3, (0, 1)), (6, 1)),
    (Blocks(1, (1, 2), (Constant(0.0), Constant(1.0))), (3, 4)),
    (Blocks(2, (1, 2), (Constant(0.0), Constant(1.0))), (3, 4)),
    (Blocks(1, (1, 3), (Constant(0.0), Orthogonal(1.0, 3, 4))), (3, 4)),
    (Stack(2, Orthogonal(1.0, 3, 4)), (3, 3, 4)),
    (Stack(2, Orthogonal(1.0, 3, 4)), (2, 3, 5)),
    (ZeroRow(1, 4, Normal(0.0, 1.0)), (3, 4)),
    (ZeroRow(1, 3, LogRange(3)), (3, 4)),
]


@dataclass(frozen=True)
class Given:
    """A scheme of a user that returns what it is told."""

    made: Any

    def distribution(self, context: Context) -> Any:
        return self.made


@pytest.mark.parametrize(("distribution", "shape"), WRONG, ids=str)
def test_distributions_for_another_shape_are_refused_by_name(
    distribution: Distribution, shape: tuple[int, ...]
) -> None:
    tensor = torch.full(shape, 7.0)
    with pytest.raises(ParameterError, match=r"^w: Given\(.*expected") as caught:
        fastinit.init_([tensor], Given(distribution), names=["w"])
    assert caught.value.name == "w" and (tensor == 7.0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0.0, -1.0), "sigma: expected sigma >= 0, got -1.0"),
        (lambda: Normal(math.nan, 1.0), "center: expected a finite number, got nan"),
        (lambda: Normal("0", 1.0), "center: expected a number, got '0'"),  # type: ignore[arg-type]
        (lambda: Uniform(1.0, 0.0), "low, high: expected low <= high, got 1.0 and 0.0"),
        (lambda: TruncNormal(0.0, 1.0, math.nan, 1.0), "low, high"),
        (lambda: Orthogonal(math.inf, 3, 3), "gain: expected a finite number"),
        (lambda: Spectral((1.0, 2.0), 1, 2), "values: expected 1, the rank of 1 x 2, got 2"),
        (lambda: Sparse(1.0, 4, 3), "zeros: expected at most 3"),
        (lambda: Sparse(1.0, 1.5, 3), "zeros: expected an int, got 1.5"),  # type: ignore[arg-type]
        (lambda: Blocks(0, (1, 2), (Normal(0.0, 1.0),)), "expected a distribution a block, got 1 for 2"),
        (lambda: Blocks(0, (1,), (fastinit.Normal(),)), "expected a distribution"),  # type: ignore[arg-type]
        (lambda: Blocks(0, (-1,), (Normal(0.0, 1.0),)), "expected .* >= 0, got -1"),
        (lambda: ZeroRow(3, 3, Normal(0.0, 1.0)), "row: expected one of 3, got 3"),
        (lambda: TimeStep(0.1, 0.01, 0.1), "expected 0 < low <= high"),
        (lambda: LogOfUniform(0.0, 1.0), "low, high: expected 0 < low <= high, got 0.0 and 1.0"),
        (lambda: Chrono(1.0, 9.0, 3, (2,)), "gates: expected factors of 1, -1 or 0"),
        (lambda: Series((1.0, math.nan)), r"values\[1\]: expected a finite number, got nan"),
    ],
)
def test_numbers_that_are_none_of_a_distribution_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("made", [None, fastinit.Normal(0.0, 0.02), 3.0, (0.0, 1.0), Normal], ids=str)
def test_what_is_no_distribution_is_refused_by_name(made: Any) -> None:
    model = nn.Linear(3, 3)
    kept = model.weight.clone()
    with pytest.raises(ParameterError, match=r"^weight: Given\(.*expected a distribution .*, got"):
        fastinit.init_model_(model, Given(made), seed=0)
    assert torch.equal(model.weight, kept)


def test_errors_of_a_users_scheme_are_named_and_kept_as_the_cause() -> None:
    class Failing:
        def distribution(self, context: Context) -> Distribution:
            raise KeyError("table")

        def __repr__(self) -> str:
            return "Failing()"

    with pytest.raises(ParameterError, match=r"^weight: Failing\(\): KeyError: 'table'") as caught:
        fastinit.plan(nn.Linear(3, 3), Failing())
    assert isinstance(caught.value.__cause__, KeyError)


# ---- One more distribution: a class, and a writer ----


@dataclass(frozen=True, slots=True)
class Stripes(Distribution):
    """`value` and `-value` in turn along the last dimension, of length `length`."""

    value: float
    length: int
    takes_complex: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"stripes of {self.value:g}"

    def mean(self) -> float:
        return self.value * (self.length % 2) / self.length

    def std(self) -> float:
        return math.sqrt(self.value**2 - self.mean() ** 2)

    def bounds(self) -> tuple[float, float]:
        return -self.value, self.value

    def is_random(self) -> bool:
        return False

    def scaled(self, factor: float) -> Stripes:
        return replace(self, value=self.value * factor)

    def check(self, shape: Sequence[int]) -> None:
        if tuple(shape[-1:]) != (self.length,):
            raise ValueError(f"expected stripes of length {self.length}, got shape {tuple(shape)}")


@pytest.fixture
def stripes_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "_WRITERS", dict(composed._WRITERS))

    @composed.writes(Stripes)
    def _stripes(target: Target, distribution: Stripes, source: composed.Source, later: Any) -> None:
        tensor, begin = target.tensor.detach(), begin_of(target)[-1]
        columns = torch.arange(begin, begin + tensor.shape[-1], device=tensor.device)
        tensor.copy_(distribution.value * (1 - 2 * (columns % 2)))


class Striped:
    """The scheme for it."""

    def distribution(self, context: Context) -> Stripes:
        return Stripes(1.0, context.shape[-1])


@pytest.mark.usefixtures("stripes_are_written")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_one_more_distribution_is_a_class_and_a_writer(backend: str) -> None:
    model = nn.ModuleDict(
        {"whole": nn.Linear(5, 3), "split": nn.Linear(6, 4), "table": nn.Embedding(4, 5, padding_idx=1)}
    )
    rules: list[Any] = [
        ("whole.weight", fastinit.Scaled(Striped(), 0.5)),  # type: ignore[arg-type]
        Rule("split.weight", ("normal", Striped()), split=2, split_dim=1),
        ("table.weight", Striped()),
    ]
    plan = fastinit.plan(model, "normal", rules, seed=3, backend=backend)
    assert "stripes of 0.5" in str(plan) and "3: N(0, 1^2) | 3: stripes of 1" in str(plan)
    assert "stripes of 1, row 1 zero" in str(plan)
    plan.run_()
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    assert torch.equal(model["whole"].weight, 0.5 * stripes.expand(3, 5))
    assert torch.equal(model["split"].weight[:, 3:], stripes[:3].expand(4, 3))
    assert torch.equal(model["table"].weight, stripes * torch.tensor([[1.0], [0.0], [1.0], [1.0]]))
    assert fastinit.verify(model, plan) == ()
    with torch.no_grad():
        model["table"].weight[0, 0] = 2.0
    assert fastinit.verify(model, plan) == ("table.weight",)
    # A shard.
    whole = Blocks(1, (3, 4), (Normal(0.0, 1.0), Stripes(1.0, 4)))
    tensors = torch.empty(4, 7), torch.empty(2, 5)
    for tensor, begin in zip(tensors, (None, (1, 2)), strict=True):
        shape = tensors[0].shape
        Program([Target("w", tensor, shape, tensor.dtype, tensor.device, whole, None, begin)], backend).run_(1, None)
    assert torch.equal(tensors[1], box_of(tensors[0], (1, 2), (2, 5)))
    with pytest.raises(ValueError, match=r"w: .*stripes of 1e\+06 lies outside torch.float16"):
        fastinit.init_([torch.empty(2, 2, dtype=torch.float16)], fastinit.Scaled(Striped(), 1e6), names=["w"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"w: .*expected stripes of length 4, got shape \(2, 2\)"):
        fastinit.init_([torch.empty(2, 2)], Given(Stripes(1.0, 4)), names=["w"])


def test_a_distribution_that_nothing_writes_is_named() -> None:
    with pytest.raises(TypeError, match=r"^w: nothing writes Stripes"):
        composed.fill_all(
            [Target("w", torch.empty(2), torch.Size((2,)), torch.float32, torch.device("cpu"), Stripes(1.0, 2))],
            NativeSource(0),
        )


@needs_native
@pytest.mark.parametrize("dim", [0, 1])
def test_an_identity_beside_an_orthogonal_block_is_one(dim: int) -> None:
    tensor = torch.empty((4, 8) if dim else (8, 4))
    rule = Rule("w", ("orthogonal", "eye"), split=2, split_dim=dim)
    fastinit.init_model_(nn.ParameterDict({"w": nn.Parameter(tensor)}), "normal", [rule], seed=0)
    first, second = tensor.chunk(2, dim)
    assert torch.equal(second, torch.eye(4))
    torch.testing.assert_close(first @ first.mT, torch.eye(4), rtol=0, atol=1e-5)


def test_equal_blocks_with_a_row_of_zeros_keep_a_row_each() -> None:
    parameter = nn.Parameter(torch.empty(6, 4))
    rule = Rule("w", Given(ZeroRow(0, 3, Normal(0.0, 1.0))), split=2)
    fastinit.init_model_(nn.ParameterDict({"w": parameter}), "normal", [rule], seed=0)
    assert (parameter == 0.0).all(dim=1).tolist() == [True, False, False] * 2


# ---- Range ----

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
of_one = {
    "constant": lambda x: Constant(x),
    "uniform": lambda x: Uniform(0.0, x),
    "normal": lambda x: Normal(0.0, x / 6.0),
    "mean": lambda x: Normal(x, 0.0),
    "trunc_normal": lambda x: TruncNormal(x, 0.0, -math.inf, math.inf),
    "diagonal": lambda x: Diagonal(x, 0, 5, 4, 16),
    "orthogonal": lambda x: Orthogonal(x, 4, 4),
    "sparse": lambda x: Sparse(x / 6.0, 1, 4),
    "blocks": lambda x: Blocks(0, (2, 2), (Constant(0.0), Constant(x))),
    "stack": lambda x: Stack(4, Constant(x)),
    "zero_row": lambda x: ZeroRow(0, 4, Normal(0.0, x / 6.0)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", of_one.values(), ids=of_one)
def test_values_beyond_the_largest_of_a_dtype_are_refused(make: Any, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    check_range(make(0.99 * largest), dtype)
    if dtype.itemsize >= 8 and dtype != torch.complex64:
        return  # nothing lies beyond the largest of float64
    with pytest.raises(ValueError, match=f"lies outside {dtype} \\(largest"):
        check_range(make(1.01 * largest), dtype)


def test_infinities_are_constants_alone() -> None:
    tensor = torch.empty(2, dtype=torch.float16)
    assert torch.equal(fastinit.constant_(tensor, math.inf), torch.full((2,), math.inf, dtype=torch.float16))
    assert fastinit.constant_(tensor, math.nan).isnan().all()
    for scheme in (fastinit.TruncNormal(0.0, 6e4, (7e4, math.inf)), fastinit.Normal(0.0, 3e4)):
        with pytest.raises(ValueError, match=r"^w: .*lies outside torch.float16 \(largest 65504\)"):
            fastinit.init_([tensor], scheme, names=["w"])
    # Bounds that no value comes near to are no values.
    check_range(TruncNormal(0.0, 1.0, -1e9, 1e9), torch.float16)
    check_range(TruncNormal(0.0, 1.0, -math.inf, math.inf), torch.float16)


@pytest.mark.parametrize(
    ("scheme", "dtype", "message"),
    [
        (fastinit.Constant(1.7), torch.int8, "expected whole numbers from -128 to 127 for torch.int8, got 1.7"),
        (fastinit.Constant(128), torch.int8, "for torch.int8, got 128"),
        (fastinit.Constant(-1), torch.uint16, "for torch.uint16, got -1"),
        (fastinit.Constant(math.nan), torch.int64, "for torch.int64, got nan"),
        (fastinit.Constant(2), torch.bool, "expected whole numbers from 0 to 1 for torch.bool, got 2"),
        (fastinit.ZerO(), torch.int32, "for torch.int32"),
        (fastinit.Constant(0.0), torch.float8_e8m0fnu, "cannot be written to torch.float8_e8m0fnu"),
    ],
    ids=str,
)
def test_constants_that_a_dtype_does_not_hold_are_refused(scheme: Any, dtype: torch.dtype, message: str) -> None:
    other, tensor = torch.full((4, 2), 7.0), torch.ones(4, 2, dtype=dtype)
    with pytest.raises(ValueError, match=f"^second: .*{message}"):
        fastinit.init_([other, tensor], scheme, names=["first", "second"])
    assert (other == 7.0).all()


def test_whole_constants_are_written_to_integers() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool):
        assert torch.equal(fastinit.constant_(torch.empty(3, dtype=dtype), 1.0), torch.ones(3, dtype=dtype))
        assert torch.equal(fastinit.eye_(torch.empty(3, 3, dtype=dtype)), torch.eye(3).to(dtype))
    assert fastinit.constant_(torch.empty(1, dtype=torch.int64), 2**62 + 1).item() == 2**62 + 1


@pytest.mark.parametrize(
    ("distribution", "dtype", "words"),
    [
        (Normal(0.0, 1e-8), torch.float16, "std of 1e-08, less than the spacing of torch.float16"),
        (Normal(0.0, 1e-44), torch.float32, None),
        (Normal(0.0, 1e-46), torch.float32, "less than the spacing"),
        (Normal(1.0, 1e-8), torch.float32, "less than the spacing of torch.float32 at its mean"),
        (Normal(1.0, 1e-8), torch.float64, None),
        (Normal(1.0, 1e-3), torch.bfloat16, "less than the spacing of torch.bfloat16 at its mean"),
        (Normal(1.0, 0.0), torch.bfloat16, None),
        (Uniform(1.0, 1.001), torch.bfloat16, "less than the spacing"),
        (Constant(1e-8), torch.float16, "are zero in torch.float16"),
        (Constant(0.0), torch.float16, None),
        (Constant(6e-8), torch.float16, None),
        (Diagonal(1e-9, 0, 5, 4, 16), torch.float16, "are zero in torch.float16"),
        (ZeroRow(0, 4, Normal(0.0, 1e-8)), torch.float16, "less than the spacing"),
        (Normal(0.0, 0.02), torch.float16, None),
        (Constant(1), torch.int8, None),
    ],
    ids=str,
)
def test_values_that_vanish_or_are_the_same_are_told_of(
    distribution: Distribution, dtype: torch.dtype, words: str | None
) -> None:
    found = range_warning(distribution, dtype)
    assert (found is None) if words is None else (found is not None and words in found)


# ---- Numbers ----


@pytest.mark.parametrize(
    "number",
    [
        np.float32(0.5), np.float16(0.5), np.float64(0.5), np.longdouble(0.5), np.array(0.5), torch.tensor(0.5),
        torch.tensor(0.5, dtype=torch.float16), torch.tensor(0.5, dtype=torch.bfloat16), np.int64(1), torch.tensor(1),
    ],
    ids=repr,
)  # fmt: skip
def test_numbers_of_numpy_and_tensors_are_numbers(number: Any) -> None:
    plain = float(number)
    schemes = [
        (fastinit.Normal(number, number), fastinit.Normal(plain, plain)),
        (fastinit.Uniform(0, number), fastinit.Uniform(0.0, plain)),
        (fastinit.Constant(number), fastinit.Constant(plain)),
        (fastinit.TruncNormal(0.0, number, (-number, number)), fastinit.TruncNormal(0.0, plain, (-plain, plain))),
        (fastinit.VarianceScaling(number), fastinit.VarianceScaling(plain)),
        (fastinit.Scaled("normal", number), fastinit.Scaled("normal", plain)),
        (fastinit.DepthScaled("normal", coefficient=number), fastinit.DepthScaled("normal", coefficient=plain)),
        (fastinit.Sparse(number), fastinit.Sparse(plain)),
        (fastinit.Orthogonal(number), fastinit.Orthogonal(plain)),
        (fastinit.Spectral((number, 2.0)), fastinit.Spectral((plain, 2.0))),
        (fastinit.scheme("xavier_uniform", gain=number), fastinit.scheme("xavier_uniform", gain=plain)),
        (fastinit.scheme("kaiming_normal", a=number), fastinit.scheme("kaiming_normal", a=plain)),
    ]
    for given, wanted in schemes:
        assert given == wanted and hash(given) == hash(wanted)
    assert type(schemes[0][0].std) in (int, float)  # type: ignore[attr-defined]
    assert torch.equal(
        fastinit.normal_(torch.empty(5), 0.0, number, torch.Generator().manual_seed(1)),
        fastinit.normal_(torch.empty(5), 0.0, plain, torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (True, "std: expected a number, got True"),
        (np.True_, "std: expected a number, got"),
        (torch.tensor(True), "std: expected a number"),
        (1j, "std: expected a number, got 1j"),
        (np.complex64(1), "std: expected a number"),
        (torch.tensor([0.5]), "std: expected a number"),
        (Fraction(1, 2), "std: expected a number"),
        (10**400, "std: expected one within float64, got one of 1329 bits"),
        (10**5000, "std: expected one within float64"),
        (torch.tensor(math.nan), "std: expected a finite number, got nan"),
        (np.float32(-1), "std: expected std >= 0, got -1.0"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_is_no_number_is_refused_by_the_arguments_name(number: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        fastinit.normal_(torch.empty(3), 0.0, number)


@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_slopes_that_are_not_finite_are_refused(slope: float) -> None:
    for function in (fastinit.kaiming_uniform_, fastinit.kaiming_normal_):
        with pytest.raises(ValueError, match=r"^a: expected a finite number"):
            function(torch.empty(3, 3), a=slope)


def test_names_of_schemes_are_strings() -> None:
    with pytest.raises(TypeError, match=r"^name: expected a str, got 3"):
        fastinit.register_scheme(3, fastinit.Normal)  # type: ignore[arg-type]


# ---- Contexts ----


def test_a_context_made_by_hand_answers_with_its_arguments() -> None:
    module = nn.Linear(3, 2)
    context = Context(
        (2, 3), torch.float16, fans=fastinit.Fans(7, 8), module=module, own_name="weight", layer=1, layers=4
    )
    assert (context.shape, context.dtype, context.fans) == ((2, 3), torch.float16, (7, 8))
    assert context.module is module and (context.own_name, context.layer, context.layers) == ("weight", 1, 4)
    bare = Context(torch.Size((2, 3)))
    assert bare.fans == (3, 2) and type(bare.shape) is tuple and bare.module is None and bare.own_name == ""
    for name in ("layer", "layers"):
        with pytest.raises(ValueError, match="expected a parameter in a stack of layers"):
            getattr(bare, name)
    with pytest.raises(ValueError, match=r"fans need at least 2 dimensions, got shape \(3,\)"):
        _ = Context((3,)).fans


@dataclass(frozen=True)
class Asking:
    """A scheme that asks for one thing, and counts how often it runs."""

    what: str
    runs: list[object]

    def distribution(self, context: Context) -> Distribution:
        try:
            answer = getattr(context, self.what)
        except ValueError:
            answer = "none"
        self.runs.append(answer)
        return Constant(float(len(self.runs)))


@pytest.mark.parametrize(
    ("what", "answers"),
    [
        ("shape", [(4, 4)]),
        ("dtype", [torch.float32]),
        ("fans", [(4, 4)]),
        ("layer", [0, 1, 2, "none"]),
        ("layers", [3, "none"]),
        ("own_name", ["weight"]),
    ],
)
def test_equal_answers_share_a_distribution_and_others_do_not(what: str, answers: list[object]) -> None:
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3)), "out": nn.Linear(4, 4)})
    scheme = Asking(what, [])
    rows = fastinit.plan(model, scheme, [("*.bias", "zeros")]).rows
    assert scheme.runs == answers
    found = [row.distribution.mean() for row in rows[:4] if row.distribution is not None]
    wanted = {"layer": [1.0, 2.0, 3.0, 4.0], "layers": [1.0, 1.0, 1.0, 2.0]}
    assert found == wanted.get(what, [1.0] * 4)


def test_schemes_that_ask_for_the_module_get_theirs() -> None:
    modules = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    scheme = Asking("module", [])
    fastinit.plan(nn.Sequential(*modules), scheme)
    assert scheme.runs == modules


def test_fans_of_the_module_are_no_ones_elses() -> None:
    """Equal shapes have other fans in a grouped and in a plain convolution."""
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=1, bias=False), nn.ConvTranspose1d(4, 8, 3, groups=2, bias=False))
    assert model[0].weight.shape == model[1].weight.shape
    runs: list[object] = []
    rows = fastinit.plan(model, Asking("fans", runs), fan="module").rows
    assert [row.fans for row in rows] == runs and len(set(runs)) == 2


def test_what_a_scheme_does_not_ask_for_may_be_missing() -> None:
    part = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})
    names = {"layers.0": "layers.7"}
    for scheme in (fastinit.Scaled(fastinit.Normal(), 0.1), fastinit.DepthScaled("normal", layers=12)):
        fastinit.plan(part, scheme, names=names)
    fastinit.plan(part, fastinit.DepthScaled("normal", by="layer"), names=names)
    with pytest.raises(ParameterError, match=r"^layers\.7\.weight: .*layers="):
        fastinit.plan(part, fastinit.DepthScaled("normal"), names=names)


def test_a_resolver_takes_shapes_without_tensors() -> None:
    resolve = Resolver("torch", Depths(()))
    treatment = Treatment(fastinit.scheme("xavier_normal"), "listed")
    first = resolve("a", "", None, (6, 4), torch.float16, treatment)
    assert first.fans == (4, 6) and first.distribution == Normal(0.0, math.sqrt(2.0 / 10)) and first.warning is None
    assert resolve("b", "", None, torch.Size((6, 4)), torch.float16, treatment) is first
    tiny = resolve("c", "", None, (6, 4), torch.float16, Treatment(fastinit.Normal(std=1e-9), "listed"))
    assert tiny.warning is not None and "spacing of torch.float16" in tiny.warning
