"""The Python side of CUDA, on a device that is emulated: the engine takes tensors in CPU memory for tensors on cuda:0,
and the kernels are those of test_cuda_on_cpu.py. What a real device does is in test_cuda.py."""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import needs_native
from drivers import compile_driver
from torch import nn

import fastinit
from fastinit import _native
from fastinit.plans import planned as plan_module
from fastinit.run import cuda, engine
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import fill_small
from fastinit.run.orthogonal import Matrix

pytestmark = needs_native

CUDA = torch.device("cuda", 0)
TARGETS_OF = plan_module.targets_of


class EmulatedModule:
    """The compiled module, with a CUDA backend that runs on the CPU, and a log of what it was asked."""

    HAS_CUDA = True

    def __init__(self, drivers: Mapping[str, ctypes.CDLL]) -> None:
        self._drivers = drivers  # by kernels, each compiled with its host code
        self.fills: list[dict[str, int]] = []
        self.blends: list[dict[str, float]] = []
        self.masked: list[dict[str, int]] = []
        self._fills_again: list[Callable[[], None]] = []
        self.orthogonals: list[dict[str, int]] = []
        host = drivers["fill"]
        host.table_bytes.restype = host.write_table.restype = ctypes.c_longlong

    def __getattr__(self, name: str) -> Any:
        return getattr(_REAL, name)

    def cuda_table(self, table: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
        num_tasks = ctypes.c_longlong(len(table))
        image = np.zeros(self._drivers["fill"].table_bytes(num_tasks), np.uint8)
        rows, out = ctypes.c_void_p(table.ctypes.data), ctypes.c_void_p(image.ctypes.data)
        return image, int(self._drivers["fill"].write_table(rows, num_tasks, out))

    def fill_cuda(
        self,
        address: int,
        num_tasks: int,
        num_chunks: int,
        seed: int,
        device: int,
        stream: int,
        seed_address: int = 0,
    ) -> None:
        self.fills.append({"address": address, "device": device, "stream": stream, "seed": seed})
        sizes = ctypes.c_longlong(num_tasks), ctypes.c_longlong(num_chunks), ctypes.c_ulonglong(seed)
        self._fills_again.append(lambda: self._fill(address, *sizes, ctypes.c_void_p(seed_address)))
        self._fills_again[-1]()

    def _fill(self, address: int, *arguments: Any) -> None:
        message = ctypes.create_string_buffer(500)
        if self._drivers["fill"].fill(ctypes.c_void_p(address), *arguments, message, 500):
            raise RuntimeError(message.value.decode())

    def blend_cuda(
        self,
        address: int,
        num_tasks: int,
        num_chunks: int,
        keep: float,
        scale: float,
        seed: int,
        device: int,
        stream: int,
    ) -> None:
        self.blends.append({"address": address, "device": device, "stream": stream, "keep": keep, "scale": scale})
        sizes = ctypes.c_longlong(num_tasks), ctypes.c_longlong(num_chunks)
        factors = ctypes.c_double(keep), ctypes.c_double(scale), ctypes.c_ulonglong(seed)
        message = ctypes.create_string_buffer(500)
        if self._drivers["rewrite"].blend(ctypes.c_void_p(address), *sizes, *factors, message, 500):
            raise RuntimeError(message.value.decode())

    def fill_where_cuda(
        self, address: int, num_tasks: int, num_chunks: int, masks: int, seed: int, device: int, stream: int
    ) -> None:
        self.masked.append({"address": address, "device": device, "stream": stream, "masks": masks})
        sizes = ctypes.c_longlong(num_tasks), ctypes.c_longlong(num_chunks)
        message = ctypes.create_string_buffer(500)
        given = ctypes.c_void_p(masks), ctypes.c_ulonglong(seed)
        if self._drivers["rewrite"].fill_where(ctypes.c_void_p(address), *sizes, *given, message, 500):
            raise RuntimeError(message.value.decode())

    def replay(self) -> None:
        """The last launch once more, as a captured graph does it: with the same arguments."""
        self._fills_again[-1]()

    def orthogonal_cuda_fits(self, rows: int, columns: int, dtype: int, device: int) -> bool:
        sizes = ctypes.c_longlong(rows), ctypes.c_longlong(columns)
        return bool(self._drivers["orthogonal"].orthogonal_fits(*sizes, dtype))

    def orthogonal_cuda(
        self, address: int, num_matrices: int, shared_bytes: int, seed: int, device: int, stream: int
    ) -> None:
        self.orthogonals.append({"address": address, "matrices": num_matrices, "device": device, "stream": stream})
        message = ctypes.create_string_buffer(500)
        sizes = ctypes.c_longlong(num_matrices), ctypes.c_longlong(shared_bytes), ctypes.c_ulonglong(seed)
        if self._drivers["orthogonal"].orthogonal(ctypes.c_void_p(address), *sizes, message, 500):
            raise RuntimeError(message.value.decode())

    def fail_next_launch(self, kernel: str) -> None:
        self._drivers[kernel].fail_next_launch()


_REAL = _native.module


class Device:
    """What torch.cuda would say."""

    stream = 0
    capturing = False
    uploads = 0


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ctypes.CDLL]:
    kernels = ("fill", "rewrite", "orthogonal")
    return {kernel: compile_driver(tmp_path_factory.mktemp(kernel), kernel) for kernel in kernels}


@pytest.fixture
def native(drivers: Mapping[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> EmulatedModule:
    module = EmulatedModule(drivers)
    monkeypatch.setattr(_native, "module", module)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return module


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, native: EmulatedModule) -> Device:
    state = Device()
    targets = plan_module.targets_of
    on_cuda = lambda *planned: [target._replace(device=CUDA) for target in targets(*planned)]  # noqa: E731
    monkeypatch.setattr(plan_module, "targets_of", on_cuda)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: types.SimpleNamespace(cuda_stream=state.stream))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)

    def upload(pinned: torch.Tensor, to: torch.device, non_blocking: bool) -> torch.Tensor:
        assert to == CUDA
        assert non_blocking
        state.uploads += 1
        return pinned.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "to", upload)
    monkeypatch.setattr(cuda, "_kept_for_graphs", [])
    return state


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 20), nn.Conv2d(4, 6, 3), nn.Embedding(12, 8, padding_idx=3))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def wanted() -> nn.Module:
    return fastinit.init_model_(model(), "kaiming_normal", seed=4)


def test_a_plan_is_one_launch_and_its_table_is_uploaded_once(
    wanted: nn.Module, device: Device, native: EmulatedModule
) -> None:
    given = model()
    plan = fastinit.plan(given, "kaiming_normal", seed=4, backend="native")
    assert device.uploads == 0
    for _ in range(3):
        plan.run_()
        assert same(given, wanted)
    assert len(native.fills) == 3
    assert device.uploads == 1
    assert len({fill["address"] for fill in native.fills}) == 1


def test_a_blend_is_one_launch_on_the_table_of_a_fill(device: Device, native: EmulatedModule) -> None:
    for make in (model, lambda: model().bfloat16()):
        given, wanted = make(), make()
        with torch.no_grad():
            for one, other in zip(given.parameters(), wanted.parameters(), strict=True):
                other.copy_(one)
        with pytest.MonkeyPatch.context() as on_cpu:
            on_cpu.setattr(_native, "module", _REAL)
            on_cpu.setattr(plan_module, "targets_of", TARGETS_OF)
            fastinit.plan(wanted, "kaiming_normal", seed=4).blend_(0.9, 0.25)
        plan = fastinit.plan(given, "kaiming_normal", seed=4)
        versions = [parameter._version for parameter in given.parameters()]
        plan.blend_(0.9, 0.25)
        assert same(given, wanted)
        assert all(p._version > before for p, before in zip(given.parameters(), versions, strict=True))
        plan.run_()
        assert native.fills[-1]["address"] == native.blends[-1]["address"]
    assert [(each["keep"], each["scale"]) for each in native.blends] == [(0.9, 0.25)] * 2
    assert device.uploads == 2


def test_a_write_where_masks_are_true_is_one_launch(device: Device, native: EmulatedModule) -> None:
    given, wanted = model(), model()
    with torch.no_grad():
        for one, other in zip(given.parameters(), wanted.parameters(), strict=True):
            other.copy_(one)
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(each.shape, generator=generator) < 0.5 for name, each in given.named_parameters()}
    with pytest.MonkeyPatch.context() as on_cpu:
        on_cpu.setattr(_native, "module", _REAL)
        on_cpu.setattr(plan_module, "targets_of", TARGETS_OF)
        fastinit.plan(wanted, "kaiming_normal", seed=4).run_(where=masks)
    versions = [parameter._version for parameter in given.parameters()]
    fastinit.plan(given, "kaiming_normal", seed=4).run_(where=masks)
    assert same(given, wanted)
    assert all(p._version > before for p, before in zip(given.parameters(), versions, strict=True))
    assert len(native.masked) == 1 and native.fills == []


def test_every_stream_has_a_table_of_its_own(device: Device, native: EmulatedModule) -> None:
    plan = fastinit.plan(model(), "normal", seed=4)
    for stream in (5, 6, 5):
        device.stream = stream
        plan.run_()
    assert [fill["stream"] for fill in native.fills] == [5, 6, 5]
    assert native.fills[0]["address"] == native.fills[2]["address"] != native.fills[1]["address"]
    assert device.uploads == 2


def test_a_capture_after_a_run_holds_the_kernel_alone(device: Device, native: EmulatedModule) -> None:
    plan = fastinit.plan(model(), "normal", seed=4)
    plan.run_()
    device.stream, device.capturing = 9, True
    plan.run_()
    assert device.uploads == 1
    assert native.fills[1]["address"] == native.fills[0]["address"]
    assert [kept.data_ptr() for kept in cuda._kept_for_graphs] == [native.fills[0]["address"]]


def test_a_capture_of_a_new_plan_keeps_what_its_replays_read(device: Device, native: EmulatedModule) -> None:
    device.capturing = True
    given = model()
    plan = fastinit.plan(given, "normal", seed=4)
    plan.run_()
    assert len(cuda._kept_for_graphs) == 1
    device.capturing = False
    plan.run_()  # what was uploaded within the capture was never there for others
    assert device.uploads == 2


def test_a_captured_plan_replays_with_the_seed_that_is_on_the_device(
    device: Device, native: EmulatedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything lies on the CPU, whatever targets say.
    monkeypatch.setattr(engine.Program, "_reads_on_device", lambda self, seed: True)
    expected = [fastinit.init_model_(model(), "kaiming_normal", seed=seed) for seed in (5, 2**64 - 2)]
    native.fills.clear()
    given, seed = model(), torch.tensor(1)
    plan = fastinit.plan(given, "kaiming_normal", backend="native")
    plan.run_(seed=1)
    device.capturing = True
    plan.run_(seed=seed)
    for value, wanted in zip((5, -2), expected, strict=True):
        seed.fill_(value)
        native.replay()
        assert same(given, wanted)
    assert len(native.fills) == 2


def test_a_capture_needs_a_seed(device: Device) -> None:
    device.capturing = True
    given = model()
    before = [parameter.clone() for parameter in given.parameters()]
    with pytest.raises(ValueError, match="seed: expected an int while a CUDA graph is captured"):
        fastinit.init_model_(given, "normal")
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        (fastinit.Sparse(0.1), "zero in a column"),
        ("orthogonal", "orthogonal"),
    ],
)
def test_what_takes_more_than_kernels_is_not_captured(
    scheme: Any, named: str, device: Device, native: EmulatedModule
) -> None:
    given = {"small": torch.zeros(8, 8), "large": torch.zeros(1100, 1030)}
    device.capturing = True
    run = lambda tensors: fastinit.init_(tensors.values(), scheme, names=list(tensors), seed=1)  # noqa: E731
    with pytest.raises(fastinit.ParameterError, match=rf"large: .*{named}.* cannot be captured into a CUDA graph"):
        run({"large": given["large"]})
    if scheme != "orthogonal":
        with pytest.raises(fastinit.ParameterError, match=r"small: .* cannot be captured into a CUDA graph"):
            run({"small": given["small"]})
    assert not any(tensor.any() for tensor in given.values()) and native.fills == []


def test_a_failed_launch_is_an_exception_and_writes_nothing(
    wanted: nn.Module, device: Device, native: EmulatedModule
) -> None:
    given = model()
    before = [parameter.clone() for parameter in given.parameters()]
    plan = fastinit.plan(given, "kaiming_normal", seed=4)
    native.fail_next_launch("fill")
    with pytest.raises(RuntimeError, match="CUDA error while launching a kernel: cudaErrorLaunchOutOfResources"):
        plan.run_()
    assert all(torch.equal(a, b) for a, b in zip(before, given.parameters(), strict=True))
    plan.run_()
    assert same(given, wanted)


def test_a_tensor_elsewhere_than_planned_is_refused(device: Device, native: EmulatedModule) -> None:
    given = model()
    plan = fastinit.plan(given, "normal", seed=4)
    plan._written = [row._replace(device=CUDA) for row in plan._written]  # while the tensors are on the CPU
    with pytest.raises(ValueError, match=r"0.weight: planned as \(20, 30\) torch.float32 on cuda:0, is now .* on cpu"):
        plan.run_()
    assert native.fills == []


def test_a_tensor_without_memory_is_refused(device: Device, native: EmulatedModule) -> None:
    given = model()
    plan = fastinit.plan(given, "normal", seed=4)
    given[0].weight.data.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"0.weight: "):
        plan.run_()
    assert native.fills == []


def test_tensors_on_several_devices(
    wanted: nn.Module, device: Device, native: EmulatedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch a CUDA device, and the rest on the CPU."""
    places = {"0.weight": CUDA, "0.bias": torch.device("cpu")}
    targets = plan_module.targets_of
    elsewhere = torch.device("cuda", 1)
    monkeypatch.setattr(
        plan_module,
        "targets_of",
        lambda *planned: [target._replace(device=places.get(target.name, elsewhere)) for target in targets(*planned)],
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda self, to, non_blocking: self.clone())
    given = model()
    fastinit.init_model_(given, "kaiming_normal", seed=4)
    assert sorted(fill["device"] for fill in native.fills) == [0, 1]
    assert same(given, wanted)


def test_without_a_backend_for_cuda_the_cpu_makes_the_values_and_says_so(
    wanted: nn.Module, device: Device, native: EmulatedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "HAS_CUDA", False, raising=False)
    fastinit.run.engine._warn_once.cache_clear()
    given = model()
    with pytest.warns(fastinit.StagedWarning, match=r"built without a backend for cuda.*; filling such tensors on the"):
        fastinit.init_model_(given, "kaiming_normal", seed=4)
    assert same(given, wanted) and native.fills == []
    fastinit.init_model_(model(), "kaiming_normal")  # once is enough
    device.capturing = True
    with pytest.raises(ValueError, match=r"0.weight: is filled by the CPU and copied, which cannot be captured"):
        fastinit.init_model_(model(), "kaiming_normal", seed=4)
    device.capturing = False
    with pytest.raises(ValueError, match=r"0.weight: backend='native' cannot fill it: .* without a backend for cuda"):
        fastinit.init_model_(model(), "normal", backend="native")
    fastinit.run.engine._warn_once.cache_clear()


# ---- Orthogonal matrices ----


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, device: Device) -> dict[int, torch.device]:
    """Of tensors that shall say that they are on a device: their addresses, and the device."""
    places: dict[int, torch.device] = {}
    real: Any = torch._C.TensorBase.device
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: places.get(self.data_ptr(), real.__get__(self))))
    return places


def orthogonal_model() -> nn.Module:
    last = nn.Conv2d(4, 6, 3)
    last.weight.data = last.weight.data.contiguous(memory_format=torch.channels_last)
    return nn.Sequential(nn.Linear(30, 20), nn.Conv2d(4, 6, 3), last, nn.Linear(20, 30, dtype=torch.float64))


@pytest.fixture
def wanted_orthogonal() -> nn.Module:
    return fastinit.init_model_(orthogonal_model(), "orthogonal", seed=4)


def test_orthogonal_matrices_of_a_model_are_one_launch(
    wanted_orthogonal: nn.Module, device: Device, native: EmulatedModule, on_cuda: dict[int, torch.device]
) -> None:
    given = orthogonal_model()
    on_cuda.update({parameter.data_ptr(): CUDA for parameter in given.parameters()})
    device.stream = 7
    versions = [parameter._version for parameter in given.parameters()]
    fastinit.init_model_(given, "orthogonal", seed=4, backend="native")
    assert [(each["matrices"], each["stream"], each["device"]) for each in native.orthogonals] == [(4, 7, 0)]
    for one, other, version in zip(given.parameters(), wanted_orthogonal.parameters(), versions, strict=True):
        assert (one - other).abs().max() < 1e-6
        assert one._version > version


def matrices_of(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[Matrix]:
    return [
        Matrix(f"{number}", torch.zeros(shape, dtype=dtype), shape, BoxIndices(0, (shape[1], 1)), 1.0)
        for number, shape in enumerate(shapes)
    ]


def test_what_no_block_holds_goes_the_other_way(native: EmulatedModule, on_cuda: dict[int, torch.device]) -> None:
    matrices = matrices_of([(8, 8), (300, 300), (0, 4), (2000, 2), (128, 128), (8, 4)])
    on_cuda.update({matrix.tensor.data_ptr(): CUDA for matrix in matrices[:-1]})
    on_cuda[matrices[2].tensor.data_ptr()] = CUDA
    assert [matrix.name for matrix in fill_small(matrices, 3)] == ["1", "3"]
    assert [each["matrices"] for each in native.orthogonals] == [2]
    for number, matrix in enumerate(matrices):
        assert bool((matrix.tensor == 0.0).all()) is (number not in (0, 4, 5))


def test_matrices_on_several_devices_are_a_launch_each(
    native: EmulatedModule, on_cuda: dict[int, torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "to", lambda self, to, non_blocking: self.clone())
    matrices = matrices_of([(8, 8)] * 5)
    for number, matrix in enumerate(matrices):
        on_cuda[matrix.tensor.data_ptr()] = torch.device("cuda", number % 2)
    assert fill_small(matrices, 3) == []
    assert [(each["device"], each["matrices"]) for each in native.orthogonals] == [(0, 3), (1, 2)]


def test_a_matrix_whose_strides_are_none_has_the_same_bits(
    native: EmulatedModule, on_cuda: dict[int, torch.device]
) -> None:
    plain = torch.zeros(6, 4, 3, 3)
    tensors = [plain, plain.contiguous(memory_format=torch.channels_last), plain.permute(3, 2, 1, 0).clone()]
    tensors[2] = tensors[2].contiguous().permute(3, 2, 1, 0)
    for tensor in tensors:
        on_cuda[tensor.data_ptr()] = CUDA
        before = tensor._version
        assert fill_small([Matrix("w", tensor, (6, 36), BoxIndices(0, (36, 1)), 1.0)], 3) == []
        assert torch.equal(tensor, plain) and (tensor != 0.0).any()
        assert tensor._version > before


def test_a_captured_launch_keeps_its_table(
    device: Device, native: EmulatedModule, on_cuda: dict[int, torch.device]
) -> None:
    matrices = matrices_of([(8, 8)])
    on_cuda[matrices[0].tensor.data_ptr()] = CUDA
    fill_small(matrices, 3)
    assert cuda._kept_for_graphs == []
    device.capturing = True
    fill_small(matrices, 3)
    assert len(cuda._kept_for_graphs) == 1


def test_a_failed_launch_of_orthogonal_matrices_writes_nothing(
    native: EmulatedModule, on_cuda: dict[int, torch.device]
) -> None:
    matrices = matrices_of([(8, 8)])
    on_cuda[matrices[0].tensor.data_ptr()] = CUDA
    native.fail_next_launch("orthogonal")
    with pytest.raises(RuntimeError, match="CUDA error while launching a kernel: cudaErrorLaunchOutOfResources"):
        fill_small(matrices, 3)
    assert (matrices[0].tensor == 0.0).all()
