"""The short way of one tensor (run/direct.py): values, errors and versions are those of the long way."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from torch import nn

from fastinit import functional
from fastinit.run import direct, engine

pytestmark = needs_native

Tensor = torch.Tensor
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OTHER_DTYPES = [torch.complex64, torch.int32, torch.bool, torch.uint8]
SHAPES = [(), (1,), (0,), (3, 0), (1, 1), (4, 4), (7, 5), (6, 4, 3), (4, 2, 3, 3), (40, 33), (210, 330)]
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
    torch.manual_seed(case)
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
    cases = range(60 if name in ("orthogonal_", "sparse_") else 300)
    ways: list[bool] = []
    fill = direct.fill

    def noted(*arguments: Any) -> bool:
        ways.append(fill(*arguments))
        return ways[-1]

    monkeypatch.setattr(direct, "fill", noted)
    short = [call(name, case) for case in cases]
    monkeypatch.setattr(direct, "takes", lambda tensor: False)
    went = len(ways)
    long = [call(name, case) for case in cases]
    assert len(ways) == went
    for ours, wanted in zip(short, long, strict=True):
        assert repr(ours) == repr(wanted)
    if name not in ("orthogonal_", "sparse_"):
        assert sum(ways) > len(cases) / 8  # enough of them went the short way
