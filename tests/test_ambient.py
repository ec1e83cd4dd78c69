"""Nothing ambient changes a bit: autocast, precisions, default devices and dtypes, modes of gradients and inference."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from conftest import needs_native
from torch import nn
from torch.nn.utils import parametrizations

import fastinit
from fastinit.run.exact import exact_arithmetic


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.A_log = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.zeros(4, 4))
        self.dt_bias = nn.Parameter(torch.zeros(4))


def sampled() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 20), nn.Embedding(9, 4, padding_idx=2), nn.Conv2d(3, 4, 3))


def products() -> nn.Module:
    return nn.Linear(1100, 1060, bias=False)


def parametrised() -> nn.Module:
    return nn.Sequential(
        parametrizations.orthogonal(nn.Linear(12, 8)),
        parametrizations.weight_norm(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "sampled": (sampled, "kaiming_normal"),
    "state space": (StateSpace, "xavier_uniform"),
    "orthogonal, by products": (products, "orthogonal"),
    "singular values": (lambda: nn.Linear(150, 130), "svd"),
    "zer_o": (lambda: nn.Linear(40, 60), "zer_o"),
    "sparse": (lambda: nn.Linear(40, 60), fastinit.Sparse(0.5)),
    "identity plus orthogonal": (lambda: nn.Linear(50, 50), "identity_plus_orthogonal"),
    "parametrised": (parametrised, "xavier_normal"),
}


@contextlib.contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def matmul(precision: str) -> AbstractContextManager[None]:
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "products in medium precision": lambda: matmul("medium"),
    "default dtype float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default dtype bfloat16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "deterministic algorithms, which fill empty memory": deterministic,
    "denormals flushed": denormals_flushed,
    "one thread": lambda: setting(torch.get_num_threads, torch.set_num_threads, 1),
    "three threads": lambda: setting(torch.get_num_threads, torch.set_num_threads, 3),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@needs_native
@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_the_same_bits(model: str, ambient: str) -> None:
    make, scheme = MODELS[model]
    torch.manual_seed(1)
    wanted = state(fastinit.init_model_(make(), scheme, seed=2))
    torch.manual_seed(1)
    given = make()
    with AMBIENT[ambient]():
        fastinit.init_model_(given, scheme, seed=2)
    for name, value in state(given).items():
        if name.endswith(("_u", "_v")):  # estimates of spectral_norm, which torch starts at random
            continue
        assert torch.equal(value, wanted[name]), name


@needs_native
@pytest.mark.parametrize("model", [each for each in MODELS if each != "parametrised"])
def test_inside_inference_mode(model: str) -> None:
    make, scheme = MODELS[model]
    wanted = state(fastinit.init_model_(make(), scheme, seed=2))
    with torch.inference_mode():
        given = make()
        fastinit.init_model_(given, scheme, seed=2)
    for name, value in state(given).items():
        assert torch.equal(value, wanted[name]), name


def test_settings_are_as_before() -> None:
    with matmul("medium"):
        fastinit.init_model_(products(), "orthogonal", seed=0)
        assert torch.get_float32_matmul_precision() == "medium"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fastinit.init_model_(products(), "orthogonal", seed=0)
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


class Product(nn.Module):
    """Its author computes a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(40, 50) @ torch.randn(50, 60))


def fused() -> nn.Module:
    with fastinit.fused(seed=2):
        return Product()


def materialized() -> nn.Module:
    with fastinit.deferred():
        model = Product()
    return fastinit.materialize_(model, "own", device="cpu", seed=2)


@needs_native
@pytest.mark.parametrize("ambient", [each for each in AMBIENT if not each.startswith("default")])
@pytest.mark.parametrize("make", [fused, materialized])
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_the_same_bits_where_the_author_computes(make: Callable[[], nn.Module], ambient: str) -> None:
    wanted = state(make())
    with AMBIENT[ambient]():
        given = state(make())
    assert torch.equal(given["weight"], wanted["weight"])


class Precision:
    """A setting of torch, as mkldnn.matmul is: without a value of its own it has that of all backends."""

    def __init__(self, own: str, of_all: str = "none") -> None:
        self.own, self.of_all = own, of_all

    @property
    def fp32_precision(self) -> str:
        return self.of_all if self.own == "none" else self.own

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        self.own = value


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch) -> Precision:
    found = Precision("none")
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", found)
    return found


def test_threads_share_the_precision_of_products(precision: Precision) -> None:
    precision.own = "bf16"
    inside, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with exact_arithmetic(()):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=compute)
    with exact_arithmetic(()):
        thread.start()
        assert inside.wait(60)
    assert precision.own == "ieee"
    leave.set()
    thread.join()
    assert precision.own == "bf16"


@pytest.mark.parametrize(("own", "of_all", "left"), [("none", "bf16", "none"), ("bf16", "tf32", "bf16"), ("none",) * 3])
def test_a_precision_that_is_that_of_all_backends_stays_so(
    own: str, of_all: str, left: str, precision: Precision
) -> None:
    precision.own, precision.of_all = own, of_all
    with exact_arithmetic(()):
        assert precision.fp32_precision in ("ieee", "none")
    assert precision.own == left


def test_a_precision_that_is_set_meanwhile_stays(precision: Precision) -> None:
    precision.own = "bf16"
    with exact_arithmetic(()):
        precision.own = "tf32"
    assert precision.own == "tf32"


def test_fake_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = sampled()
    before = state(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(RuntimeError, match="initialise outside of it"):
            fastinit.init_model_(model, "normal", seed=0)
        with pytest.raises((RuntimeError, fastinit.ParameterError)):
            fastinit.init_model_(sampled(), "normal", seed=0)
    for name, value in state(model).items():
        assert torch.equal(value, before[name])


def test_other_threads_keep_their_random_numbers() -> None:
    drawn: list[float] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            drawn.append(torch.rand(1).item())

    model = parametrizations.orthogonal(nn.Linear(30, 20))
    thread = threading.Thread(target=draw)
    thread.start()
    for seed in range(50):
        fastinit.init_model_(model, "normal", seed=seed)
    stop.set()
    thread.join()
    assert drawn.count(torch.rand(1, generator=torch.Generator().manual_seed(0)).item()) == 0


def test_the_generator_is_left_alone_under_a_seed() -> None:
    model = parametrised()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fastinit.init_model_(model, "xavier_normal", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
