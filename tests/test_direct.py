"""The short way of one tensor (run/direct.py): values, errors and versions are those of the long way."""

from __future__ import annotations

import math
import mmap
import random
import sys
import threading
import warnings
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit
from fastinit import _native, functional
from fastinit.rules import lists
from fastinit.run import direct, engine
from fastinit.run.streams import draw_seed
from fastinit.schemes.distributions import Constant, Distribution, Normal, Sparse

pytestmark = needs_native

Tensor = torch.Tensor
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OTHER_DTYPES = [torch.complex64, torch.int32, torch.bool, torch.uint8]
SHAPES = [(), (1,), (0,), (3, 0), (1, 1), (4, 4), (7, 5), (6, 4, 3), (4, 2, 3, 3), (40, 33), (70, 130)]
FILLED = [
    2.0,
    0,
    1,
    -1.5,
    0.0,
    -0.0,
    1e-3,
    math.nan,
    math.inf,
    1e300,
    1e-300,
    True,
    np.float32(0.5),
    "0.5",
    None,
    2**70,
]
GAINS = [1, 1.0, 0.5, 0.0, -0.0, -1.0, math.inf, True, np.float64(2.0), torch.tensor(0.25), "1"]
# Arguments that are good mostly, and every kind of bad ones.
ARGUMENTS: dict[str, Callable[[random.Random], tuple[Any, ...]]] = {
    "uniform_": lambda r: r.choice([(), (-1.0, 1.0), (0, 1), (-0.0, 0.0), (0.0, -0.0), (r.choice(FILLED), 2.0)]),
    "normal_": lambda r: r.choice([(), (0.0, 0.02), (-0.0, 0.0), (1, 2), (0.0, r.choice(FILLED)), (r.choice(FILLED),)]),
    "trunc_normal_": lambda r: r.choice(
        [(), (0.0, 0.02), (0.0, 1.0, -1.0, 2.0), (0.0, 1.0, 7.0, 8.0), (0.0, 1.0, 1, r.choice(FILLED)), (-0.0, 0.0)]
    ),
    "constant_": lambda r: (r.choice(FILLED),),
    "ones_": lambda r: (),
    "zeros_": lambda r: (),
    "xavier_uniform_": lambda r: r.choice([(), (r.choice(GAINS),)]),
    "xavier_normal_": lambda r: r.choice([(), (r.choice(GAINS),)]),
    "kaiming_uniform_": lambda r: r.choice(
        [(), (math.sqrt(5),), (0, "FAN_OUT", "relu"), (r.choice(FILLED), "fan_in", "leaky_relu"), (0, "fan", "relu")]
    ),
    "kaiming_normal_": lambda r: r.choice([(), (0, "fan_out", "tanh"), (0.0, "fan_in", "no"), (0, 3), (None,)]),
    "lecun_uniform_": lambda r: (),
    "lecun_normal_": lambda r: (),
    "eye_": lambda r: (),
    "dirac_": lambda r: r.choice([(), (2,), (1,), (1.0,), (True,), (0,), (3,)]),
    "orthogonal_": lambda r: r.choice([(), (2.0,)]),
    "sparse_": lambda r: r.choice([(0.5,), (0.1, 1.0)]),
    "variance_scaling_": lambda r: r.choice(
        [(), (2.0, "fan_avg", "normal"), (1.0, "fan_in", "uniform", 0, 1), (1, "fan_in", "uniform", [0], [1], 9)]
    ),
}
DIMENSIONS = {"dirac_": (3, 4), "eye_": (2,), "sparse_": (2,)}
DIMENSIONS |= {name: (2, 3, 4) for name in ARGUMENTS if name.startswith(("xavier", "kaiming", "lecun"))}
RANDOM = {name for name in ARGUMENTS if name not in ("constant_", "ones_", "zeros_", "eye_", "dirac_")}


def dense(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def parameter(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=dtype.is_floating_point)


def behind_others(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    numel, begin = math.prod(shape), r.randrange(5)
    return torch.zeros(numel + 9, dtype=dtype)[begin : begin + numel].view(shape)


def transposed(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros(shape[::-1], dtype=dtype).permute(tuple(reversed(range(len(shape)))))


def every_other(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros((*shape, 2), dtype=dtype)[..., 0]


def expanded(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros((), dtype=dtype).expand(shape)


def at_an_odd_address(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    numel = math.prod(shape)
    return torch.frombuffer(bytearray(16 * numel + 16), dtype=dtype, offset=1, count=max(numel, 1))[:numel].view(shape)


def of_numpy(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    kind = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}.get(dtype, np.float32)
    return torch.from_numpy(np.zeros(shape, kind))


def freed(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    tensor = torch.zeros(shape, dtype=dtype)
    tensor.untyped_storage().resize_(r.choice([0, tensor.untyped_storage().nbytes() // 2]))
    return tensor


def negated(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch._neg_view(torch.zeros(shape, dtype=dtype)) if dtype is not torch.bool else torch.zeros(shape)


def inference(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    with torch.inference_mode():
        return torch.zeros(shape, dtype=dtype)


def on_meta(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="meta")


def sparse(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros(shape, dtype=dtype).to_sparse()


class Subclass(Tensor):
    pass


def subclassed(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return torch.zeros(shape, dtype=dtype).as_subclass(Subclass)


def computed(shape: tuple[int, ...], dtype: torch.dtype, r: random.Random) -> Tensor:
    return parameter(shape, dtype, r) * 1


USUAL = [dense, dense, parameter, behind_others]
UNUSUAL = [
    *(transposed, every_other, expanded, at_an_odd_address, of_numpy, freed, negated, inference, on_meta, sparse),
    *(subclassed, computed),
]


def call(name: str, case: int) -> tuple[Any, ...]:
    """All that can be seen of a random call: the same one for every `case`."""
    r = random.Random(f"{name} {case}")
    usual = r.random() < 0.6
    dtype = r.choice(DTYPES if r.random() < 0.9 else OTHER_DTYPES)
    fitting = [shape for shape in SHAPES if len(shape) in DIMENSIONS.get(name, range(5))]
    shape = r.choice(fitting if r.random() < 0.8 else SHAPES)
    make = r.choice(USUAL if usual else UNUSUAL)
    tensor = make(shape, dtype, r)
    arguments = ARGUMENTS[name](r)
    given: dict[str, Any] = {}
    torch.default_generator.manual_seed(case)  # torch.manual_seed formats the stack for devices that are not there
    generator = torch.Generator().manual_seed(case + 1)
    if name in RANDOM and r.random() < 0.4:
        given["generator"] = r.choice([generator, generator, None, 5])
    engine._warn_once.cache_clear()
    version = None if tensor.is_inference() else tensor._version
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            returned = getattr(functional, name)(tensor, *arguments, **given)
            assert returned is tensor
            outcome: Any = "returned"
        except Exception as error:
            outcome = type(error), str(error), getattr(error, "name", None)
    counted = None if version is None else tensor._version - version
    # All bytes of the storage, those of other tensors among them.
    has_bytes = tensor.layout is torch.strided and not tensor.is_meta
    content = None
    if has_bytes:
        content = blake2b(torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()).hexdigest()
    states = [blake2b(state.numpy()).hexdigest() for state in (torch.get_rng_state(), generator.get_state())]
    said = [(str(each.message), each.category, each.filename) for each in warned]
    return outcome, counted, content, states, said, (make.__name__, shape, dtype, arguments, given.keys())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_both_ways_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The long way counts their versions up more than once.
    several = name in ("orthogonal_", "sparse_")
    cases = range(60 if several else 200)
    ways: list[bool] = []
    fill = functional._fill_directly

    def noted(*arguments: Any) -> bool:
        ways.append(fill(*arguments))
        return ways[-1]

    monkeypatch.setattr(functional, "_fill_directly", noted)
    short = [call(name, case) for case in cases]
    monkeypatch.setattr(functional, "_fill_directly", lambda *arguments: False)
    long = [call(name, case) for case in cases]
    for ours, wanted in zip(short, long, strict=True):
        if several:
            assert (ours[1] is None) == (wanted[1] is None) and (not ours[1]) == (not wanted[1])
            ours, wanted = (*ours[:1], *ours[2:]), (*wanted[:1], *wanted[2:])
        assert repr(ours) == repr(wanted)
    assert sum(ways) > len(cases) / 8  # enough of them went the short way


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.called = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called += 1
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called += 1
        return function(*args, **(kwargs or {}))


class OfLastDimension:
    """A user's scheme, which refuses vectors."""

    def distribution(self, context: fastinit.Context) -> Distribution:
        if len(context.shape) < 2:
            raise ValueError("no vectors")
        return Normal(0.0, 1.0 / context.shape[-1])


LIST_SCHEMES: list[Any] = [
    *("normal", "uniform", "trunc_normal", "zeros", "kaiming_uniform", "xavier_normal", "orthogonal", "no such scheme"),
    *(fastinit.TruncNormal(0.1), fastinit.Constant(1e5), fastinit.Uniform(-1.0, 1.0), fastinit.Sparse(0.5), 3),
    *(OfLastDimension(), fastinit.Normal(1000.0, 1e-3), fastinit.Normal(0.0, 1e-30)),  # many values are the same
]


def call_with_list(case: int) -> tuple[Any, ...]:
    """All that can be seen of a random call of init_: the same one for every `case`."""
    r = random.Random(case)
    is_usual = r.random() < 0.8
    tensors: list[Any] = []
    for _ in range(r.choice([0, 1, 2, 3, 30])):
        make = r.choice(USUAL if is_usual or r.random() < 0.8 else UNUSUAL)
        shape = r.choice([(4, 4), (7, 5), (1, 1), (3, 6), (5,), (70, 130)] if is_usual else SHAPES)
        tensors.append(make(shape, r.choice(DTYPES if is_usual else DTYPES + OTHER_DTYPES), r))
    if tensors and r.random() < 0.15:
        tensors.append(r.choice([tensors[0], tensors[0].detach(), torch.zeros(2), 5]))
    given: dict[str, Any] = {}
    if r.random() < 0.5:
        given["seed"] = r.choice([0, 1, 2**64 - 1, None, -1, 2**64, 0.5, np.int64(3)])
    if r.random() < 0.3:
        given["generator"] = r.choice([torch.Generator().manual_seed(case), None, 5])
    if r.random() < 0.3:
        given["names"] = [r.choice(["w", "layers.3.w", "ä"]) + str(i) for i in range(len(tensors) + (r.random() < 0.1))]
    if r.random() < 0.2:
        given["backend"] = r.choice(["native", "torch", "auto", "cuda"])
    if r.random() < 0.2:
        given["fan"] = r.choice(["torch", "module", "jax", "no", 3])
    scheme = r.choice(LIST_SCHEMES)
    torch.default_generator.manual_seed(case)  # torch.manual_seed formats the stack for devices that are not there
    engine._warn_once.cache_clear()
    real = [each for each in tensors if isinstance(each, Tensor)]
    versions = [None if each.is_inference() else each._version for each in real]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            outcome: Any = fastinit.init_(r.choice([list, tuple])(tensors), scheme, **given)
        except Exception as error:
            outcome = type(error), str(error), getattr(error, "name", None)
    counted = [
        None if version is None else each._version - version for each, version in zip(real, versions, strict=True)
    ]
    content = [
        blake2b(torch.tensor([], dtype=torch.uint8).set_(each.untyped_storage()).numpy()).hexdigest()
        for each in real
        if each.layout is torch.strided and not each.is_meta
    ]
    states = blake2b(torch.get_rng_state().numpy()).hexdigest(), repr(given.get("generator"))
    if isinstance(given.get("generator"), torch.Generator):
        states = states[0], blake2b(given["generator"].get_state().numpy()).hexdigest()
    return outcome, counted, content, states, [(str(each.message), each.category, each.filename) for each in warned]


@pytest.mark.slow
def test_both_ways_of_a_list_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[bool] = []
    fill = lists.fill_all

    def noted(*arguments: Any) -> bool:
        ways.append(fill(*arguments))
        return ways[-1]

    cases = range(1500)
    monkeypatch.setattr(lists, "fill_all", noted)
    short = [call_with_list(case) for case in cases]
    monkeypatch.setattr(lists, "fill_all", lambda *arguments: False)
    long = [call_with_list(case) for case in cases]
    for case, ours, wanted in zip(cases, short, long, strict=True):
        # Orthogonal and sparse matrices and values that torch writes count up more than once, on the long way alone.
        counts = [[each is not None and each > 0 for each in one[1]] for one in (ours, wanted)]
        assert counts[0] == counts[1], case
        assert repr((ours[0], *ours[2:])) == repr((wanted[0], *wanted[2:])), case
    assert sum(ways) > len(cases) / 8  # enough of them went the short way


def test_a_list_counts_versions_once_and_draws_one_seed() -> None:
    tensors = [torch.empty(3, 4) for _ in range(4)]
    generator = torch.Generator().manual_seed(5)
    fastinit.init_(tensors, "normal", generator=generator)
    assert [each._version for each in tensors] == [1] * 4
    wanted = torch.Generator().manual_seed(5)
    draw_seed(wanted)
    assert torch.equal(generator.get_state(), wanted.get_state())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_list_does_not_depend_on_threads(threads: int) -> None:
    tensors, others = ([torch.empty(300, 70) for _ in range(9)] for _ in range(2))
    fastinit.init_(tensors, "normal", seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fastinit.init_(others, "normal", seed=3)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, tensors, others))


@pytest.mark.parametrize("make", [Functions, Operations])
def test_lists_go_the_long_way_under_modes(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[bool] = []
    fill = lists.fill_all
    monkeypatch.setattr(lists, "fill_all", lambda *arguments: ways.append(fill(*arguments)) or ways[-1])
    tensors, others = ([torch.empty(3, 4)] for _ in range(2))
    fastinit.init_(tensors, "normal", seed=3)
    with make():
        fastinit.init_(others, "normal", seed=3)
    assert ways == [True, False] and torch.equal(tensors[0], others[0])


def test_a_scheme_that_changes_the_tensors_spoils_nothing() -> None:
    """Lists are looked at again after a user's code ran."""
    tensors = [torch.empty(3, 4), torch.empty(3, 4)]

    class Freeing:
        def distribution(self, context: fastinit.Context) -> Distribution:
            tensors[0].untyped_storage().resize_(0)
            return Normal(0.0, 1.0)

    with pytest.raises(fastinit.ParameterError) as caught:
        fastinit.init_(tensors, Freeing(), seed=3)
    assert caught.value.name == "0"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call went the short way."""
    ways: list[bool] = []
    fill = functional._fill_directly

    def noted(*arguments: Any) -> bool:
        ways.append(fill(*arguments))
        return ways[-1]

    monkeypatch.setattr(functional, "_fill_directly", noted)
    return ways


def normal(seed: int) -> Tensor:
    return functional.normal_(torch.empty(4, 4), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [Functions, Operations])
def test_modes_see_what_they_saw(make: Callable[[], Any], short: list[bool]) -> None:
    wanted = normal(3)
    with make() as mode:
        given = normal(3)
    assert short == [True, False] and mode.called > 0
    assert torch.equal(given, wanted)


def test_inside_of_torch_func(short: list[bool]) -> None:
    wanted, kept = normal(3), torch.empty(4, 4)

    def drawn(x: Tensor) -> Tensor:
        functional.normal_(kept, generator=torch.Generator().manual_seed(3))
        return x.sum()

    torch.func.grad(drawn)(torch.ones(2))
    assert short == [True, False] and torch.equal(kept, wanted)
    escaped: list[Tensor] = []
    torch.func.vmap(lambda x: escaped.append(x) or x)(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"inside torch\.func"):
        functional.normal_(escaped[0])
    assert short[-1] is False


def test_fake_mode(short: list[bool]) -> None:
    tensor = torch.zeros(3)
    with FakeTensorMode(), pytest.raises(ValueError, match="inside FakeTensorMode"):
        functional.ones_(tensor)
    assert short == [False] and not tensor.any()


def test_inference_mode(short: list[bool]) -> None:
    wanted, plain = normal(3), torch.empty(4, 4)
    with torch.inference_mode():
        functional.normal_(plain, generator=torch.Generator().manual_seed(3))
        assert torch.equal(normal(3), wanted)
    assert torch.equal(plain, wanted)
    assert short == [True, True, False]


@pytest.mark.slow
def test_compiled() -> None:
    compiled = torch.compile(lambda x: functional.ones_(x) + 1, backend="eager")
    assert compiled(torch.zeros(3)).tolist() == [2.0, 2.0, 2.0]


def test_memory_that_went_since_the_last_call(short: list[bool]) -> None:
    tensor = functional.normal_(torch.empty(8))
    tensor.untyped_storage().resize_(0)
    with pytest.raises(fastinit.ParameterError, match="was it freed"):
        functional.normal_(tensor)
    tensor.untyped_storage().resize_(16)
    with pytest.raises(fastinit.ParameterError, match="was it freed"):
        functional.normal_(tensor)
    assert short == [True, False, False]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_memory_that_is_mapped_read_only(short: list[bool]) -> None:
    mapped = np.frombuffer(mmap.mmap(-1, 4096, prot=mmap.PROT_READ), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(mapped)
    with pytest.raises(fastinit.ParameterError, match="read-only"):
        functional.normal_(tensor)
    assert short == [False]


def test_equal_arguments_that_differ() -> None:
    zero = functional.constant_(torch.empty(2), 0.0)
    assert not zero.signbit().any() and functional.constant_(torch.empty(2), -0.0).signbit().all()
    assert not functional.constant_(torch.empty(2), 0).signbit().any()
    weight = torch.empty(2, 2, 3)
    functional.dirac_(weight, 1)
    for groups in (1.0, True):
        with pytest.raises(TypeError, match="groups"):
            functional.dirac_(weight, groups)  # type: ignore[arg-type]
    changing = torch.tensor(1.0)
    assert functional.constant_(torch.empty(1), changing).item() == 1.0  # type: ignore[arg-type]
    assert functional.constant_(torch.empty(1), changing.add_(1.0)).item() == 2.0  # type: ignore[arg-type]


def test_every_call_of_a_thread_has_its_own_seed(short: list[bool]) -> None:
    firsts: list[float] = []

    def draw() -> None:
        for _ in range(200):
            firsts.append(functional.uniform_(torch.empty(1, dtype=torch.float64)).item())

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(short) and len(set(firsts)) == len(firsts) == 800


def test_more_calls_than_are_kept(short: list[bool]) -> None:
    for size in range(1, 4200):
        functional.ones_(torch.empty(size, 1))
    assert all(short) and functional.ones_(torch.empty(7, 1)).sum() == 7.0


def test_a_version_is_counted_up_when_the_fill_fails(monkeypatch: pytest.MonkeyPatch, short: list[bool]) -> None:
    tensor = functional.ones_(torch.empty(4))
    version = tensor._version
    monkeypatch.setenv("FASTINIT_FORCE_ISA", "none")
    with pytest.raises(ValueError, match="FASTINIT_FORCE_ISA"):
        functional.ones_(tensor)
    assert short == [True] and tensor._version == version + 1


def test_threads_share_a_larger_tensor(short: list[bool]) -> None:
    wanted = torch.empty(700, 700)
    with Operations():
        functional.normal_(wanted, generator=torch.Generator().manual_seed(1))
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        given = functional.normal_(torch.empty(700, 700), generator=torch.Generator().manual_seed(1))
        torch.set_num_threads(before)
        assert torch.equal(given, wanted)
    assert short == [False, True, True, True]
    functional.ones_(torch.empty(2**20 + 1))
    assert short[-1] is False


@pytest.mark.parametrize("missing", ["MODES", "EXCHANGE_API"])
def test_a_torch_without_the_means(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, missing, None)
    assert direct.short_way(functional._distribution)(torch.empty(3), list, (), "torch", None) is False


def native(row: Any, **changed: Any) -> Any:
    assert direct.MODES is not None
    found = direct._torch_functions(direct.MODES)
    return _native.module.Direct(lambda *arguments: row, found | changed)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "work",
    [
        ("fill", True, b""),
        ("fill", True, bytes(1000)),
        5,
        ("fill",),
        ("fill", 5, ""),
        ("orthogonal", True, b""),
        ("other", True, b""),
        ("sparse", True, b"", b"", 1, 1),
    ],
)
def test_work_that_is_none_is_refused(work: Any) -> None:
    tensor = torch.zeros(3)
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError), match=r"row|cast|expected|index|iterable"):
        native(work).fill(tensor, list, (), "torch", None)
    assert not tensor.any()


def test_a_row_that_was_not_prepared_is_refused() -> None:
    size = _native.module.task_dtype()["itemsize"]  # type: ignore[union-attr]
    assert native(("fill", False, bytes(size))).fill(torch.zeros(3), list, (), "torch", None) is False  # of 0 elements
    work = direct._work(Constant(5.0), torch.empty(3))
    assert work is not None
    tensor = torch.zeros(3)
    spoilt = work[2][:-1] + bytes([work[2][-1] ^ 1])
    with pytest.raises(ValueError, match="was not prepared"):
        native(("fill", False, spoilt)).fill(tensor, list, (), "torch", None)
    assert not tensor.any()
    native(work).fill(tensor, list, (), "torch", None)
    assert tensor.tolist() == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({4: 5}, "no matrix of 5 rows"),
        ({4: 0}, "no matrix of 0 rows"),
        ({5: 4}, "4 zeros in 3 rows"),
        ({5: -1}, "-1 zeros"),
        ({3: "values"}, "one contiguous key in float64"),
        ({3: "spoilt"}, "was not prepared"),
    ],
)
def test_sparse_work_that_contradicts_itself_is_refused(changed: dict[int, Any], message: str) -> None:
    work = direct._work(Sparse(1.0, 1, 3), torch.empty(3, 4))
    assert work is not None and work[0] == "sparse"
    others = {"values": work[2], "spoilt": work[3][:-1] + bytes([work[3][-1] ^ 1])}
    given = [others.get(changed[at], changed[at]) if at in changed else each for at, each in enumerate(work)]
    tensor = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=message):
        native(tuple(given)).fill(tensor, list, (), "torch", None)
    assert not tensor.any()
    native(work).fill(tensor, list, (), "torch", None)
    assert (tensor == 0).sum(0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2), (4, 3, 2), (33, 8), (300, 300), (1024, 1)])
@pytest.mark.parametrize("name", ["orthogonal_", "sparse_"])
def test_whole_matrices_go_the_short_way(name: str, shape: tuple[int, ...], short: list[bool]) -> None:
    if name == "sparse_" and len(shape) > 2:
        return
    arguments = (0.3,) if name == "sparse_" else (2.0,)
    wanted, given = torch.empty(shape), torch.empty(shape)
    with Operations():
        getattr(functional, name)(wanted, *arguments, generator=torch.Generator().manual_seed(1))
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        getattr(functional, name)(given, *arguments, generator=torch.Generator().manual_seed(1))
        torch.set_num_threads(before)
        assert torch.equal(given, wanted)
    assert short == [False, True, True]


def test_what_the_native_call_is_made_with() -> None:
    with pytest.raises(KeyError, match="tensor_types"):
        _native.module.Direct(list, {})  # type: ignore[union-attr]
    with pytest.raises((TypeError, ValueError)):
        native(None, exchange_api=5)
