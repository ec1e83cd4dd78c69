"""Every function of torch.nn.init beside torch's own: signatures, warnings, exceptions, values."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DTYPES, needs_native
from torch import nn

import fastinit
from fastinit import functional
from fastinit.errors import ParameterError
from fastinit.run import engine

IN_PLACE = [name for name in nn.init.__all__ if name.endswith("_")]
DEPRECATED = [name for name in nn.init.__all__ if name != "calculate_gain" and not name.endswith("_")]
OURS = [*IN_PLACE, "lecun_uniform_", "lecun_normal_", "delta_orthogonal_", "variance_scaling_"]
NEEDED: dict[str, dict[str, Any]] = {"constant_": {"val": 0.5}, "sparse_": {"sparsity": 0.3}}
through_torch = pytest.mark.filterwarnings("ignore::fastinit.FallbackWarning")


def call(module: Any, name: str, tensor: Any, **arguments: Any) -> Any:
    """A function with arguments where it needs some."""
    return getattr(module, name)(tensor, **{**NEEDED.get(name, {}), **arguments})


def kind_of(error: BaseException) -> type[BaseException]:
    """Its type; of an error that carries a parameter's name, and is a ValueError and a TypeError, that of its cause."""
    return type(error.__cause__ if isinstance(error, ParameterError) and error.__cause__ is not None else error)


def shape_for(name: str) -> tuple[int, ...]:
    return (6, 4, 3) if "dirac" in name or "delta" in name else (6, 4)


def sevens(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Nothing but sevens (ones, if bool): what is not written shows."""
    return torch.full(shape, 7, dtype=dtype)


@pytest.fixture
def warned_anew() -> Iterator[None]:
    """FallbackWarnings come once a process; here they come again."""
    engine._warn_once.cache_clear()
    yield
    engine._warn_once.cache_clear()


# Names and signatures


def test_nothing_of_torch_is_missing() -> None:
    assert [name for name in nn.init.__all__ if not callable(getattr(functional, name, None))] == []
    assert [name for name in ["calculate_gain", *IN_PLACE] if name not in fastinit.__all__] == []
    assert all(getattr(fastinit, name) is getattr(functional, name) for name in ["calculate_gain", *IN_PLACE])


@pytest.mark.parametrize("name", ["calculate_gain", *IN_PLACE])
def test_arguments_have_torchs_names_order_kinds_and_defaults(name: str) -> None:
    ours = inspect.signature(getattr(functional, name)).parameters.values()
    theirs = inspect.signature(getattr(nn.init, name)).parameters.values()
    assert [(each.name, each.kind, each.default) for each in ours] == [
        (each.name, each.kind, each.default) for each in theirs
    ]


@pytest.mark.parametrize("name", DEPRECATED)
def test_deprecated_aliases_warn_as_torch_and_do_as_the_new_ones(name: str) -> None:
    given, expected = sevens(shape_for(name)), sevens(shape_for(name))
    torch.manual_seed(1)
    with pytest.warns(FutureWarning) as ours:
        assert call(functional, name, given, **NEEDED.get(f"{name}_", {})) is given
    with pytest.warns(FutureWarning) as theirs:
        call(nn.init, name, sevens(shape_for(name)), **NEEDED.get(f"{name}_", {}))
    future = [each for each in ours if each.category is FutureWarning]  # without native code, a FallbackWarning, too
    assert [str(each.message) for each in future] == [str(each.message) for each in theirs]
    assert [each.filename for each in future] == [__file__]
    torch.manual_seed(1)
    call(functional, f"{name}_", expected)
    assert torch.equal(given, expected)
    assert getattr(functional, name).__name__ == name


# Values that are not random

VALUES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "constant": ("constant_", (5, 3), {"val": 1}),
    "constant 0.1": ("constant_", (40,), {"val": 0.1}),
    "constant scalar": ("constant_", (), {"val": -2.75}),
    "constant inf": ("constant_", (3,), {"val": math.inf}),
    "ones": ("ones_", (2, 3, 4), {}),
    "zeros": ("zeros_", (17,), {}),
    "eye": ("eye_", (4, 4), {}),
    "eye tall": ("eye_", (7, 3), {}),
    "eye wide": ("eye_", (2, 9), {}),
    "dirac 1d": ("dirac_", (4, 4, 3), {}),
    "dirac 2d": ("dirac_", (6, 3, 5, 3), {}),
    "dirac 3d": ("dirac_", (3, 5, 3, 1, 3), {}),
    "dirac even": ("dirac_", (4, 3, 4, 2), {}),
    "dirac even 3d": ("dirac_", (2, 2, 2, 4, 6), {}),
    "dirac groups": ("dirac_", (6, 2, 3), {"groups": 3}),
    "dirac groups wide": ("dirac_", (6, 5, 2, 2), {"groups": 2}),
    "dirac groups tall": ("dirac_", (8, 2, 3, 3), {"groups": 2}),
    "dirac depthwise": ("dirac_", (5, 1, 3, 3), {"groups": 5}),
}
EVERY_DTYPE = [
    *DTYPES,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.usefixtures("warned_anew")
@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
@pytest.mark.parametrize(("name", "shape", "arguments"), VALUES.values(), ids=VALUES)
def test_what_is_not_random_is_torchs_exactly(
    name: str, shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    if not dtype.is_floating_point and not dtype.is_complex and isinstance(arguments.get("val"), float):
        arguments = {"val": -3 if dtype in (torch.int8, torch.int32, torch.int64) else 1}
    given, expected = sevens(shape, dtype), sevens(shape, dtype)
    call(functional, name, given, **arguments)  # a FallbackWarning would be an error
    call(nn.init, name, expected, **arguments)
    assert torch.equal(given, expected)


@pytest.mark.parametrize(("name", "shape", "arguments"), VALUES.values(), ids=VALUES)
def test_leaves_that_require_grad_get_the_same_values_and_no_history(
    name: str, shape: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    given, expected = nn.Parameter(sevens(shape)), nn.Parameter(sevens(shape))
    call(functional, name, given, **arguments)
    call(nn.init, name, expected, **arguments)
    assert torch.equal(given, expected)
    assert given.requires_grad and given.is_leaf and given.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_constants_that_overflow_are_refused(dtype: torch.dtype) -> None:
    tensor = sevens((20,), dtype)
    with pytest.raises(RuntimeError, match="overflow"):
        nn.init.constant_(tensor, 1e40)
    with pytest.raises((RuntimeError, ValueError)):
        functional.constant_(tensor, 1e40)
    assert (tensor == 7).all()


def test_constants_that_integers_cannot_hold_are_refused_before_anything_is_written() -> None:
    first, second = sevens((3,)), sevens((3,), torch.uint8)
    with pytest.raises((RuntimeError, ValueError)):
        functional.constant_([first, second], 300)
    assert (first == 7).all() and (second == 7).all()


def test_whole_numbers_keep_all_digits() -> None:
    large = 2**53 + 1
    assert functional.constant_(torch.zeros(2, dtype=torch.int64), large).tolist() == [large, large]


# Exceptions

FAN_FUNCTIONS = ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"]
SAME_EXCEPTION: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    *((name, shape, {}) for name in FAN_FUNCTIONS for shape in [(), (3,)]),
    ("eye_", (), {}),
    ("eye_", (3,), {}),
    ("eye_", (3, 3, 3), {}),
    ("dirac_", (), {}),
    ("dirac_", (3,), {}),
    ("dirac_", (3, 3), {}),
    ("dirac_", (2, 2, 2, 2, 2, 2), {}),
    ("dirac_", (4, 2, 3), {"groups": 3}),
    ("orthogonal_", (), {}),
    ("orthogonal_", (3,), {}),
    ("orthogonal_", (3, 3), {"gain": "1"}),
    ("sparse_", (), {}),
    ("sparse_", (3,), {}),
    ("sparse_", (3, 3, 3), {}),
    ("sparse_", (3, 3), {"sparsity": math.nan}),
    ("sparse_", (3, 3), {"sparsity": "1"}),
    *((name, (4, 3), {"mode": "fan_avg"}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"mode": ""}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"nonlinearity": "nope"}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"nonlinearity": None}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"nonlinearity": ["relu"]}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"a": True}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"a": "0"}) for name in FAN_FUNCTIONS[2:]),
    *((name, (4, 3), {"a": 1e200}) for name in FAN_FUNCTIONS[2:]),
    ("xavier_uniform_", (4, 3), {"gain": "1"}),
    ("xavier_normal_", (4, 3), {"gain": None}),
    ("uniform_", (3,), {"a": "0"}),
    ("normal_", (3,), {"std": "1"}),
    ("normal_", (3,), {"mean": None}),
    ("trunc_normal_", (3,), {"std": "1"}),
    ("constant_", (3,), {"val": "1"}),
    ("constant_", (3,), {"val": None}),
    *((name, (4, 3, 3), {"unknown": 1}) for name in IN_PLACE),
]


@pytest.mark.parametrize(("name", "shape", "arguments"), SAME_EXCEPTION, ids=str)
def test_wrong_input_raises_what_torch_raises(name: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (whatever it is)
        call(nn.init, name, sevens(shape), **arguments)
    tensor = sevens(shape)
    with pytest.raises(theirs.type) as ours:
        call(functional, name, tensor, **arguments)
    assert kind_of(ours.value) is theirs.type
    assert (tensor == 7).all()


# Where the exceptions differ, and why. None: no exception.
#   Numbers that no distribution has: always ValueError. torch: RuntimeError from deep inside, or nothing.
#   Integers: TypeError. torch: NotImplementedError.
#   Nothing to write: no exception for the shape. torch divides by zero, or complains of the dimensions.
#   Booleans as numbers: TypeError, but for values and the slope (ValueError, torch's own).
#   Complex numbers: where they have a meaning, they are sampled; a constant is real.
Raised = type[Exception] | None
DIFFERENT: list[tuple[str, tuple[int, ...], dict[str, Any], torch.dtype, Raised, Raised]] = [
    ("uniform_", (3,), {"a": 1.0, "b": 0.0}, torch.float32, RuntimeError, ValueError),
    ("uniform_", (3,), {"b": math.inf}, torch.float32, RuntimeError, ValueError),
    ("uniform_", (3,), {"a": math.nan}, torch.float32, RuntimeError, ValueError),
    ("normal_", (3,), {"std": -1.0}, torch.float32, RuntimeError, ValueError),
    ("normal_", (3,), {"std": math.nan}, torch.float32, RuntimeError, ValueError),
    ("normal_", (3,), {"mean": math.nan}, torch.float32, None, ValueError),
    ("normal_", (3,), {"mean": math.inf}, torch.float32, None, ValueError),
    ("normal_", (3,), {"std": True}, torch.float32, None, TypeError),
    ("trunc_normal_", (3,), {"std": -1.0}, torch.float32, None, ValueError),
    ("trunc_normal_", (3,), {"mean": math.nan}, torch.float32, None, ValueError),
    ("trunc_normal_", (3,), {"a": 2.0, "b": -2.0}, torch.float32, RuntimeError, ValueError),
    ("trunc_normal_", (3,), {"std": 0.0}, torch.float32, ZeroDivisionError, None),
    ("trunc_normal_", (3,), {}, torch.complex64, NotImplementedError, TypeError),
    ("sparse_", (3, 3), {"sparsity": 1.5}, torch.float32, None, ValueError),
    ("sparse_", (3, 3), {"sparsity": -0.5}, torch.float32, None, ValueError),
    ("sparse_", (3, 3), {"sparsity": math.inf}, torch.float32, OverflowError, ValueError),
    ("sparse_", (3, 3), {"sparsity": True}, torch.float32, None, TypeError),
    ("sparse_", (3, 3), {"std": -1.0}, torch.float32, RuntimeError, ValueError),
    ("orthogonal_", (3, 3), {"gain": math.nan}, torch.float32, None, ValueError),
    ("orthogonal_", (3, 3), {"gain": True}, torch.float32, None, TypeError),
    ("xavier_uniform_", (3, 3), {"gain": -1.0}, torch.float32, RuntimeError, ValueError),
    ("xavier_normal_", (3, 3), {"gain": -1.0}, torch.float32, RuntimeError, ValueError),
    ("xavier_normal_", (3, 3), {"gain": math.nan}, torch.float32, RuntimeError, ValueError),
    ("xavier_normal_", (3, 3), {"gain": True}, torch.float32, None, TypeError),
    ("kaiming_normal_", (3, 3), {"a": math.nan}, torch.float32, RuntimeError, ValueError),
    ("kaiming_normal_", (3, 3), {"mode": None}, torch.float32, AttributeError, ValueError),
    ("kaiming_normal_", (3, 3), {"nonlinearity": "gelu"}, torch.float32, ValueError, None),
    ("dirac_", (4, 2, 3), {"groups": 0}, torch.float32, ZeroDivisionError, ValueError),
    ("dirac_", (4, 2, 3), {"groups": -2}, torch.float32, None, ValueError),
    ("dirac_", (4, 2, 3), {"groups": True}, torch.float32, None, TypeError),
    *((name, (4, 3), {}, torch.int64, NotImplementedError, TypeError) for name in [*FAN_FUNCTIONS, "normal_"]),
    *((name, (4, 3), {}, torch.bool, NotImplementedError, TypeError) for name in ["uniform_", "sparse_"]),
    *((name, (0, 0), {}, torch.float32, ZeroDivisionError, None) for name in FAN_FUNCTIONS[:2]),
    ("xavier_uniform_", (2, 3, 0), {}, torch.float32, ZeroDivisionError, None),
    ("xavier_uniform_", (0,), {}, torch.float32, ValueError, None),
    ("orthogonal_", (0,), {}, torch.float32, ValueError, None),
    ("eye_", (0,), {}, torch.float32, ValueError, None),
    ("dirac_", (0, 3), {}, torch.float32, ValueError, None),
    ("dirac_", (2, 3, 0), {}, torch.float32, IndexError, None),
    ("sparse_", (0,), {}, torch.float32, ValueError, None),
    ("constant_", (3,), {"val": 1 + 2j}, torch.float32, RuntimeError, TypeError),
    ("constant_", (3,), {"val": 1 + 2j}, torch.complex64, None, TypeError),
    ("uniform_", (3,), {}, torch.complex32, None, TypeError),
    ("orthogonal_", (4, 3), {}, torch.complex64, NotImplementedError, None),
    ("orthogonal_", (4, 3), {}, torch.bfloat16, NotImplementedError, None),
]


def raised_by(function: Callable[[], object]) -> Raised:
    try:
        function()
    except Exception as error:
        return kind_of(error)
    return None


@through_torch
@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize(("name", "shape", "arguments", "dtype", "theirs", "ours"), DIFFERENT, ids=str)
def test_exceptions_that_differ_on_purpose(
    name: str, shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype, theirs: Raised, ours: Raised
) -> None:
    assert raised_by(lambda: call(nn.init, name, torch.ones(shape, dtype=dtype), **arguments)) is theirs
    tensor = torch.ones(shape, dtype=dtype)
    assert raised_by(lambda: call(functional, name, tensor, **arguments)) is ours
    assert ours is None or (tensor == 1).all()


def test_groups_that_are_no_whole_number_are_refused() -> None:
    with pytest.raises(TypeError):
        nn.init.dirac_(torch.empty(4, 2, 3), groups=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        functional.dirac_(torch.empty(4, 2, 3), groups=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["FAN_OUT", "Fan_Out"])
@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_mode_is_read_in_either_case_as_torch_does(name: str, mode: Any) -> None:
    outcomes = []
    for each in (mode, "fan_out", "fan_in"):
        torch.manual_seed(0)
        outcomes.append(call(functional, name, torch.empty(6, 40), mode=each))
    assert torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[0], outcomes[2])
    call(nn.init, name, torch.empty(6, 40), mode=mode)


# Warnings


def warnings_of(function: Callable[[], object]) -> list[tuple[type[Warning], str, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", fastinit.FallbackWarning)
        function()
    return [(each.category, str(each.message), each.filename) for each in caught]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_kaiming_of_nothing_warns_as_torch(name: str, shape: tuple[int, ...]) -> None:
    theirs = warnings_of(lambda: call(nn.init, name, torch.empty(shape)))
    ours = warnings_of(lambda: call(functional, name, torch.empty(shape)))
    assert ours == theirs and [each[2] for each in ours] == [__file__]
    assert warnings_of(lambda: call(functional, name, [torch.empty(3, 3), torch.empty(shape)])) == theirs


@pytest.mark.parametrize("name", OURS)
def test_nothing_else_warns(name: str) -> None:
    assert warnings_of(lambda: call(functional, name, torch.empty(shape_for(name)))) == []
    if not name.startswith("kaiming"):
        assert warnings_of(lambda: call(functional, name, torch.empty(0, 3))) == []


@needs_native  # torch's trunc_normal_ warns
def test_truncation_far_from_the_mean_is_right_and_does_not_warn() -> None:
    values = torch.empty(200_000, dtype=torch.float64)
    assert warnings_of(lambda: functional.trunc_normal_(values, mean=0.0, std=1.0, a=4.0, b=9.0)) == []
    theirs = warnings_of(lambda: nn.init.trunc_normal_(torch.empty(9), mean=0.0, std=1.0, a=4.0, b=9.0))
    assert [each[0] for each in theirs] == [UserWarning]
    assert values.min() >= 4.0 and values.max() <= 9.0
    from scipy.stats import truncnorm

    error = float(truncnorm.std(4.0, 9.0)) / math.sqrt(values.numel())
    assert abs(values.mean().item() - float(truncnorm.mean(4.0, 9.0))) < 4.0 * error


# Complex tensors

COMPLEX: dict[str, tuple[str, dict[str, Any], float]] = {  # the variance of (200, 300)
    "uniform": ("uniform_", {"a": -3.0, "b": 3.0}, 2 * 36.0 / 12.0),  # real and imaginary part by themselves
    "normal": ("normal_", {"std": 2.0}, 4.0),  # half of it each
    "xavier_uniform": ("xavier_uniform_", {"gain": 2.0}, 2 * 4.0 * 2.0 / 500.0),
    "xavier_normal": ("xavier_normal_", {"gain": 2.0}, 4.0 * 2.0 / 500.0),
    "kaiming_uniform": ("kaiming_uniform_", {}, 2 * 2.0 / 300.0),
    "kaiming_normal": ("kaiming_normal_", {"mode": "fan_out"}, 2.0 / 200.0),
}


@through_torch
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("name", "arguments", "variance"), COMPLEX.values(), ids=COMPLEX)
def test_complex_values_have_torchs_variance(
    name: str, arguments: dict[str, Any], variance: float, dtype: torch.dtype
) -> None:
    for module in (functional, nn.init):
        torch.manual_seed(0)
        values = call(module, name, torch.empty(200, 300, dtype=dtype), **arguments)
        for part in (values.real, values.imag):
            # A sample variance has the variance 2 variance^2 / n, of a uniform less.
            bound = 4.0 * math.sqrt(2.0 / part.numel())
            assert (part**2).mean().item() == pytest.approx(0.5 * variance, rel=bound)


@pytest.mark.usefixtures("warned_anew")
def test_complex_matrices_come_from_torch_and_say_so() -> None:
    with pytest.warns(fastinit.FallbackWarning, match=r"does not make Orthogonal in torch\.complex64"):
        functional.orthogonal_(torch.empty(4, 4, dtype=torch.complex64))


@through_torch
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7), (4, 3, 2)], ids=str)
def test_complex_orthogonal_is_unitary(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = functional.orthogonal_(torch.empty(shape, dtype=dtype), gain=1.5).reshape(shape[0], -1) / 1.5
    gram = matrix @ matrix.mH if matrix.shape[0] < matrix.shape[1] else matrix.mH @ matrix
    eps = 1e-6 if dtype == torch.complex64 else 1e-14
    assert (gram - torch.eye(len(gram))).abs().max() < 10 * eps
    assert matrix.imag.abs().max() > 0.05


@through_torch
def test_complex_orthogonal_has_phases_all_around() -> None:
    # Haar: the determinant's phase is uniform. A Q whose R has no positive diagonal has it not.
    torch.manual_seed(1)
    matrices = [functional.orthogonal_(torch.empty(2, 2, dtype=torch.complex128)) for _ in range(400)]
    phases = torch.stack([torch.linalg.det(each) for each in matrices])
    assert phases.mean().abs() < 4.0 / math.sqrt(400)
    first = torch.stack([each[0, 0] / each[0, 0].abs() for each in matrices])
    assert first.mean().abs() < 4.0 / math.sqrt(400)


@through_torch
def test_complex_sparse_has_its_zeros() -> None:
    values = functional.sparse_(torch.empty(10, 300, dtype=torch.complex64), 0.25, std=2.0)
    assert ((values == 0).sum(0) == 3).all()
    nonzero = values[values != 0]
    assert (nonzero.abs() ** 2).mean().item() == pytest.approx(4.0, rel=4.0 / math.sqrt(nonzero.numel()))


# sparse_


@pytest.mark.parametrize("rows", [1, 7, 10])
@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.1, 0.25, 0.5, 0.99, 1.0, 0, 1])
def test_sparse_has_exactly_its_zeros_in_every_column(sparsity: float, rows: int) -> None:
    values = functional.sparse_(sevens((rows, 40)), sparsity)
    assert ((values == 0).sum(0) == math.ceil(sparsity * rows)).all()


def test_sparse_zeros_are_different_in_every_column_and_nowhere_preferred() -> None:
    torch.manual_seed(0)
    zero = functional.sparse_(torch.empty(20, 2000), 0.5) == 0
    assert len({tuple(column.tolist()) for column in zero.t()}) > 1900  # of 184756 sets
    # A row's zeros: binomial with n = 2000, p = 1/2.
    assert (zero.sum(1).double() - 1000).abs().max() < 4.5 * math.sqrt(500)


def test_sparse_values_have_their_std_and_no_more_zeros_at_the_edge() -> None:
    torch.manual_seed(0)
    values = functional.sparse_(torch.empty(100, 1000), 0.3, std=0.5)
    nonzero = values[values != 0].double()
    assert nonzero.numel() == 70_000
    assert nonzero.std().item() == pytest.approx(0.5, rel=4.0 / math.sqrt(2 * nonzero.numel()))
    assert abs(nonzero.mean().item()) < 4.0 * 0.5 / math.sqrt(nonzero.numel())


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_sparse_obeys_its_generator_for_values_and_zeros(backend: str) -> None:
    def sample(seed: int) -> torch.Tensor:
        tensor = torch.empty(12, 9)
        generator = torch.Generator().manual_seed(seed)
        fastinit.init_([tensor], fastinit.Sparse(0.4), generator=generator, backend=backend)
        return tensor

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sample(3)
    torch.manual_seed(6)  # what torch takes the zeros from
    assert torch.equal(sample(3), first)
    assert not torch.equal(sample(4) == 0, first == 0)
    torch.manual_seed(5)
    sample(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_sparse_function_leaves_the_global_generator_alone_if_given_another() -> None:
    state = torch.get_rng_state()
    first = functional.sparse_(torch.empty(8, 8), 0.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(functional.sparse_(torch.empty(8, 8), 0.5, generator=torch.Generator().manual_seed(1)), first)
    assert not torch.equal(functional.sparse_(torch.empty(8, 8), 0.5), first)


# orthogonal_

ORTHOGONAL_SHAPES = [(30, 12), (12, 30), (16, 16), (8, 3, 3, 3), (4, 5, 3), (2, 2, 2, 2, 2), (1, 7), (7, 1), (1, 1)]


def gram_of(tensor: torch.Tensor) -> torch.Tensor:
    matrix = tensor.reshape(tensor.shape[0], -1).double()
    return matrix @ matrix.t() if matrix.shape[0] < matrix.shape[1] else matrix.t() @ matrix


@pytest.mark.parametrize("gain", [1.0, 0.5, -2.0, 0.0, 3])
@pytest.mark.parametrize("shape", ORTHOGONAL_SHAPES, ids=str)
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, ...], gain: float) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        gram = gram_of(functional.orthogonal_(torch.empty(shape, dtype=dtype), gain))
        assert (gram - gain**2 * torch.eye(len(gram))).abs().max() <= gain**2 * tolerance


def seeded(scheme: str, tensor: torch.Tensor, name: str = "w", seed: int = 4) -> torch.Tensor:
    fastinit.init_([tensor], scheme, names=[name], seed=seed)
    return tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (8, 3, 3, 3)], ids=str)
def test_orthogonal_in_half_is_float32s_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = torch.empty(shape)
    half = torch.empty(shape, dtype=dtype)
    for tensor in (whole, half):
        fastinit.init_([tensor], fastinit.Orthogonal(1.7), names=["w"], seed=4)
    assert torch.equal(half, whole.to(dtype))


@pytest.mark.parametrize("scheme", ["orthogonal", "delta_orthogonal"])
def test_orthogonal_does_not_look_at_the_memory_format(scheme: str) -> None:
    shape = (12, 5, 3, 3)
    expected = seeded(scheme, torch.empty(shape))
    strided = torch.empty(*shape, 2)[..., 0]
    transposed = torch.empty(shape[::-1]).permute(3, 2, 1, 0)
    channels_last = torch.empty(shape).to(memory_format=torch.channels_last)
    for tensor in (strided, transposed, channels_last):
        assert not tensor.is_contiguous()
        assert torch.equal(seeded(scheme, tensor), expected)


def test_orthogonal_determinants_are_as_often_negative() -> None:
    torch.manual_seed(0)
    for size in (2, 3):
        matrices = torch.stack([functional.orthogonal_(torch.empty(size, size)) for _ in range(200)])
        negative = int((torch.linalg.det(matrices) < 0).sum())
        assert abs(negative - 100) < 4.0 * math.sqrt(50)
        # LAPACK's own Q has a first element of one sign: Haar's has both.
        assert abs(int((matrices[:, 0, 0] < 0).sum()) - 100) < 4.0 * math.sqrt(50)


@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30), (8, 3, 3)], ids=str)
@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_torch_backend_gives_the_numbers_of_torchs_orthogonal(shape: tuple[int, ...], gain: float) -> None:
    given = torch.empty(shape)
    torch.manual_seed(7)
    expected = nn.init.orthogonal_(torch.empty(shape), gain)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    fastinit.init_([given], fastinit.Orthogonal(gain), backend="torch")
    assert torch.equal(given, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
def test_torch_backend_gives_the_numbers_of_torchs_sparse(sparsity: float) -> None:
    given = torch.empty(15, 11)
    torch.manual_seed(7)
    expected = nn.init.sparse_(torch.empty(15, 11), sparsity, std=0.3)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    fastinit.init_([given], fastinit.Sparse(sparsity, 0.3), backend="torch")
    assert torch.equal(given, expected)
    assert torch.equal(torch.get_rng_state(), after)


# delta_orthogonal_


@pytest.mark.parametrize(
    ("shape", "middle"),
    [((6, 4, 3), (1,)), ((6, 4, 4), (1,)), ((5, 5, 2, 5), (0, 2)), ((4, 2, 3, 1, 6), (1, 0, 2))],
    ids=str,
)
def test_delta_orthogonal_is_orthogonal_at_the_middle_and_zero_elsewhere(
    shape: tuple[int, ...], middle: tuple[int, ...]
) -> None:
    weight = functional.delta_orthogonal_(sevens(shape, torch.float64), gain=3.0)
    matrix = weight[(..., *middle)].clone()
    assert (matrix.t() @ matrix - 9.0 * torch.eye(shape[1])).abs().max() < 1e-12
    weight[(..., *middle)] = 0.0
    assert (weight == 0.0).all()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_delta_orthogonal_keeps_norms(dimensions: int) -> None:
    weight = functional.delta_orthogonal_(torch.empty(8, 5, *(3,) * dimensions, dtype=torch.float64))
    convolution = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[dimensions]
    inputs = torch.randn(2, 5, *(6,) * dimensions, dtype=torch.float64)
    assert convolution(inputs, weight, padding=1).norm().item() == pytest.approx(inputs.norm().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 3), (3,), (2, 2, 2, 2, 2, 2)], ids=str)
def test_delta_orthogonal_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        functional.delta_orthogonal_(torch.empty(shape))


# variance_scaling_

WITHIN_TWO_SIGMA = 0.8796256610342398  # std of a standard normal on [-2, 2]


def variance_of(**arguments: Any) -> float:
    shape = arguments.pop("shape")
    values = functional.variance_scaling_(torch.empty(shape), **arguments)
    return float((values.double() ** 2).mean())


FANS_OF_AXES: list[tuple[tuple[int, ...], dict[str, Any], tuple[float, float]]] = [
    ((200, 150), {}, (150, 200)),  # torch's
    ((100, 20, 5), {}, (100, 500)),
    ((200, 150), {"in_axis": -2}, (200, 150)),  # JAX's
    ((200, 150), {"out_axis": -1}, (200, 150)),
    ((200, 150), {"in_axis": 1, "out_axis": 0}, (150, 200)),
    ((3, 5, 40, 50), {"in_axis": -2, "out_axis": -1}, (600, 750)),  # field 15
    ((8, 60, 70), {"batch_axis": 0}, (60, 70)),  # experts
    ((4, 6, 50, 30), {"in_axis": -2, "out_axis": -1, "batch_axis": (0, 1)}, (50, 30)),
    ((40, 3, 6, 30), {"in_axis": 0, "out_axis": -1, "batch_axis": 1}, (240, 180)),  # field 6
    ((50, 8, 12), {"in_axis": 0, "out_axis": (1, 2)}, (50, 96)),  # heads
    ((8, 12, 50), {"in_axis": (0, 1), "out_axis": 2}, (96, 50)),
    ((8, 12, 50), {"in_axis": [0, 1], "out_axis": [2]}, (96, 50)),
    ((8, 60, 70), {"batch_axis": [0]}, (60, 70)),
    ((200, 150), {"batch_axis": []}, (150, 200)),  # none: torch's
    ((30_000,), {"in_axis": (0,), "out_axis": ()}, (30_000, 1)),  # a vector
    ((30_000,), {"in_axis": [], "out_axis": [0]}, (1, 30_000)),
]
FAN_OF_MODE: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
@pytest.mark.parametrize("mode", FAN_OF_MODE)
@pytest.mark.parametrize(("shape", "axes", "fans"), FANS_OF_AXES, ids=str)
def test_variance_is_scale_over_the_fan(
    shape: tuple[int, ...], axes: dict[str, Any], fans: tuple[float, float], mode: str, distribution: str
) -> None:
    torch.manual_seed(1)
    expected = 1.7 / FAN_OF_MODE[mode](*fans)
    given = variance_of(shape=shape, scale=1.7, mode=mode, distribution=distribution, **axes)
    # A normal's sample variance has the largest error of the three.
    assert given == pytest.approx(expected, rel=4.5 * math.sqrt(2.0 / math.prod(shape)))


def test_variance_scaling_defaults_are_keras() -> None:
    # tf.keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="truncated_normal")
    torch.manual_seed(0)
    values = functional.variance_scaling_(torch.empty(400, 100)).double()
    assert values.std().item() == pytest.approx(0.1, rel=4.5 * math.sqrt(0.5 / values.numel()))
    bound = 2.0 * 0.1 / WITHIN_TWO_SIGMA
    assert 0.99 * bound < values.abs().max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fan_inn"}, "did you mean 'fan_in'"),
        ({"distribution": "gaussian"}, "expected one of uniform, normal, truncated_normal"),
        ({"scale": -1.0}, "scale >= 0"),
        ({"in_axis": 2}, "in_axis: expected an axis"),
        ({"in_axis": 0, "out_axis": -2}, "stands for another"),
        ({"batch_axis": 0}, "batch_axis: axis 0"),
        ({"in_axis": [1, 1]}, "in_axis: axis 1"),
    ],
)
def test_variance_scaling_refuses(arguments: dict[str, Any], message: str) -> None:
    tensor = sevens((3, 4))
    with pytest.raises(ValueError, match=message):
        functional.variance_scaling_(tensor, **arguments)
    assert (tensor == 7).all()


def test_variance_scaling_refuses_vectors_for_single_axes() -> None:
    with pytest.raises(ValueError, match="fans need at least 2 dimensions"):
        functional.variance_scaling_(torch.empty(5))
    for axes in ({"in_axis": 0}, {"in_axis": 0, "out_axis": -1}):
        with pytest.raises(ValueError, match=r"out_axis: axis -1 of shape .* stands for another"):
            functional.variance_scaling_(torch.empty(5), **axes)
    with pytest.raises(ValueError, match="out_axis: expected an axis"):
        functional.variance_scaling_(torch.empty(5), in_axis=(0,), out_axis=(1,))


@pytest.mark.parametrize("axes", [{"in_axis": [0.0]}, {"out_axis": "1"}, {"batch_axis": None}, {"in_axis": [[0]]}])
def test_variance_scaling_refuses_axes_that_are_no_ints(axes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(axes))}: expected an axis or several"):
        functional.variance_scaling_(torch.empty(3, 4), **axes)


# Lists, generators, manual_seed

RANDOM = [name for name in OURS if name not in ("constant_", "ones_", "zeros_", "eye_", "dirac_")]


@pytest.mark.parametrize("name", OURS)
def test_functions_take_a_tensor_a_list_or_a_tuple_and_return_it(name: str) -> None:
    tensor = sevens(shape_for(name))
    for given in (tensor, [tensor, sevens(shape_for(name))], (sevens(shape_for(name)),), []):
        assert call(functional, name, given) is given
        assert all((each != 7).any() for each in ([given] if isinstance(given, torch.Tensor) else given))


@pytest.mark.parametrize("name", OURS)
def test_functions_take_the_parameters_of_a_module(name: str) -> None:
    tensors = [nn.Parameter(sevens(shape_for(name))) for _ in range(2)]
    call(functional, name, nn.ParameterList(tensors).parameters())
    assert all((each != 7).any() for each in tensors)


@pytest.mark.parametrize("name", OURS)
def test_functions_refuse_what_is_no_tensor(name: str) -> None:
    for wrong, message in (
        (None, "tensor: expected a torch.Tensor or a list of them, got NoneType"),
        (3, "tensor: expected a torch.Tensor or a list of them, got int"),
        (np.zeros((3, 3)), "tensor: expected a torch.Tensor or a list of them, got ndarray"),
        (np.zeros(0), "tensor: expected a torch.Tensor or a list of them, got ndarray"),
        ("weight", r"tensor\[0\]: expected a torch.Tensor, got str"),
        ([torch.ones(3, 3), np.zeros((3, 3))], r"tensor\[1\]: expected a torch.Tensor, got ndarray"),
        (
            nn.Linear(2, 2),
            r"tensor: expected a tensor or a list of them, got a Linear; write fastinit\.init_model_\(model, ",
        ),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            call(functional, name, wrong)
    with pytest.raises(ValueError, match="not initialised yet"):
        call(functional, name, nn.UninitializedParameter())


@pytest.mark.parametrize("name", RANDOM)
def test_functions_refuse_what_is_no_generator(name: str) -> None:
    tensor = sevens(shape_for(name))
    with pytest.raises(TypeError, match=r"^generator: expected a torch.Generator or None, got int"):
        call(functional, name, tensor, generator=3)
    assert (tensor == 7).all()


@pytest.mark.parametrize("name", RANDOM)
def test_tensors_of_a_list_differ_and_do_not_depend_on_the_others(name: str) -> None:
    torch.manual_seed(0)
    first, second = call(functional, name, [sevens(shape_for(name)) for _ in range(2)])
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    (alone,) = call(functional, name, [sevens(shape_for(name))])
    assert torch.equal(alone, first)


@pytest.mark.parametrize("name", RANDOM)
def test_manual_seed_and_generators_govern(name: str) -> None:
    def sample(**arguments: Any) -> torch.Tensor:
        result: torch.Tensor = call(functional, name, torch.empty(shape_for(name)), **arguments)
        return result

    torch.manual_seed(0)
    first, second = sample(), sample()
    torch.manual_seed(0)
    assert torch.equal(sample(), first) and torch.equal(sample(), second) and not torch.equal(first, second)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(9)
    third, fourth = sample(generator=generator), sample(generator=generator)
    assert torch.equal(sample(generator=torch.Generator().manual_seed(9)), third) and not torch.equal(third, fourth)
    assert not torch.equal(sample(generator=torch.Generator().manual_seed(10)), third)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["constant_", "ones_", "zeros_", "eye_", "dirac_"])
def test_what_is_not_random_leaves_the_generator_alone_as_torch_does(name: str) -> None:
    state = torch.get_rng_state()
    call(functional, name, torch.empty(shape_for(name)))
    assert torch.equal(torch.get_rng_state(), state)
