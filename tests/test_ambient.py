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


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.A_log = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
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
