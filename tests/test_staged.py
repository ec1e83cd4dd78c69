"""Devices without a kernel: the CPU makes the values, and they are copied.

The device is emulated: the engine takes tensors in the memory of the CPU for tensors of an "xpu", and copies to them
are plain ones.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import FLOAT8_DTYPES, needs_native
from torch import nn

import fastinit
from fastinit.plans import planned as plan_module
from fastinit.run import engine, staged

pytestmark = needs_native

XPU = torch.device("xpu", 0)


@pytest.fixture
def xpu(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = plan_module.targets_of
    on_xpu = lambda *planned: [target._replace(device=XPU) for target in targets(*planned)]  # noqa: E731
    monkeypatch.setattr(plan_module, "targets_of", on_xpu)
    engine._warn_once.cache_clear()


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "STAGING_BYTES", 2048)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every copy."""
    seen: list[int] = []
    copy = staged._Buffer.copy

    def counted(self: staged._Buffer, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        seen.append(sum(values.nbytes for _, values in pairs))
        copy(self, pairs)

    monkeypatch.setattr(staged._Buffer, "copy", counted)
    return seen


def model() -> nn.Module:
    last = nn.Conv2d(5, 7, 3)
    last.weight.data = last.weight.data.contiguous(memory_format=torch.channels_last)
    lstm = nn.LSTM(6, 9)
    narrow = nn.Linear(33, 21, bias=False)
    narrow.weight = nn.Parameter(torch.empty(21, 33, dtype=torch.float8_e4m3fn), requires_grad=False)
    halves = nn.Linear(30, 20, dtype=torch.bfloat16)
    return nn.ModuleList([nn.Linear(300, 7), last, lstm, narrow, halves, nn.Embedding(12, 8, padding_idx=3)])


RULES = [("3.weight", fastinit.Uniform(-1.0, 1.0))]


def same(one: nn.Module, other: nn.Module) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().contiguous().view(torch.uint8)

    return all(torch.equal(bits(a), bits(b)) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["kaiming_uniform", "trunc_normal", "orthogonal"])
def test_a_staged_model_has_the_bits_of_the_cpu(
    scheme: str, xpu: None, small_buffers: None, copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fastinit.init_model_(model(), scheme, RULES, seed=4, fan="torch", backend="staged")
    monkeypatch.undo()
    assert same(given, fastinit.init_model_(model(), scheme, RULES, seed=4, fan="torch", backend="native"))
    assert copies
    assert max(copies) <= 1024


def test_a_large_tensor_goes_in_pieces_and_small_ones_together(
    xpu: None, small_buffers: None, copies: list[int]
) -> None:
    tensors = [torch.empty(3, 1000), *(torch.empty(4) for _ in range(10)), torch.empty(50, 37).t()]
    wanted = [torch.empty(tensor.shape) for tensor in tensors]
    fastinit.init_(tensors, "normal", seed=2, backend="staged")
    parts = list(copies)
    for number, each in enumerate(wanted):
        fastinit.init_([each], "normal", names=[str(number)], seed=2, backend="staged")
        assert torch.equal(each, tensors[number])
    assert sum(parts) == sum(tensor.nbytes for tensor in tensors)
    assert max(parts) <= 1024
    assert len(parts) < len(tensors) + sum(tensor.nbytes for tensor in tensors) // 512


def test_the_staging_memory_is_bounded(xpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = staged._Buffer.__init__

    def counted(self: staged._Buffer, nbytes: int, device: torch.device) -> None:
        made.append((nbytes, device))
        init(self, nbytes, device)

    monkeypatch.setattr(staged._Buffer, "__init__", counted)
    fastinit.init_([torch.empty(2**25), torch.empty(10)], "uniform", seed=0, backend="staged")
    assert len(made) == 2
    assert sum(nbytes for nbytes, _ in made) <= 2**26
    assert {device for _, device in made} == {XPU}


def test_pinned_buffers_are_written_again_only_when_the_device_has_read_them(
    xpu: None, small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device reads a buffer as late as it may: when somebody waits for its event."""
    pending: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    queue: list[tuple[torch.Tensor, torch.Tensor]] = []
    most = 0

    class Event:
        def __init__(self, device: torch.device) -> None:
            assert device == XPU

        def record(self) -> None:
            nonlocal most
            pending[id(self)] = list(queue)
            queue.clear()
            most = max(most, sum(map(bool, pending.values())))

        def synchronize(self) -> None:
            for there, values in pending.pop(id(self), []):
                copy(there, values)

    copy: Any = torch.Tensor.copy_
    empty: Any = torch.empty

    def late(there: torch.Tensor, values: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return copy(there, values)  # type: ignore[no-any-return]
        queue.append((there, values))
        return there

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **given: empty(*shape, **given))
    monkeypatch.setattr(torch.Tensor, "copy_", late)
    given = [empty(7000), empty(90, 11)]
    fastinit.init_(given, "normal", seed=1, backend="staged")
    monkeypatch.undo()
    wanted = [torch.empty(7000), torch.empty(90, 11)]
    fastinit.init_(wanted, "normal", seed=1)
    assert all(map(torch.equal, given, wanted))
    assert most == 2


def test_one_notice_says_so_and_a_given_backend_none(xpu: None) -> None:
    with pytest.warns(fastinit.StagedWarning, match="without a backend for xpu; filling such tensors") as all_:
        fastinit.init_model_(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), "xavier_normal", seed=0)
    assert len(all_) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.init_model_(nn.Linear(3, 2), "xavier_normal", seed=0)
        engine._warn_once.cache_clear()
        fastinit.init_model_(nn.Linear(3, 2), "xavier_normal", seed=0, backend="staged")
        fastinit.init_model_(nn.Linear(3, 2), "zeros")  # which torch writes there, as anybody would


def test_native_refuses_staging_and_staged_refuses_torch(xpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = nn.Linear(3, 2)
    before = given.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weight: backend='native' cannot fill it: .* without a backend for xpu"):
        fastinit.init_model_(given, "xavier_normal", backend="native")
    monkeypatch.setattr(fastinit._native, "module", None)
    with pytest.raises(ValueError, match=r"weight: backend='staged' cannot fill it: .* not available"):
        fastinit.init_model_(given, "xavier_normal", backend="staged")
    assert torch.equal(given.weight, before)


@pytest.mark.filterwarnings("ignore:.*many values are the same")
def test_a_distribution_without_values_is_refused_before_anything_is_written(xpu: None) -> None:
    tensors = [torch.zeros(5), torch.zeros(5, dtype=torch.float16)]
    with pytest.raises(ValueError, match=r"1: no value of torch.float16 lies within"):
        fastinit.init_(tensors, fastinit.Uniform(1.0001, 1.0002), seed=0, backend="staged")
    assert not any(tensor.any() for tensor in tensors)


def test_versions_count_up(xpu: None) -> None:
    tensor = torch.empty(3)
    fastinit.init_([tensor], "normal", seed=0, backend="staged")
    assert tensor._version >= 1


@pytest.mark.parametrize("dtype", FLOAT8_DTYPES, ids=str)
def test_8_bit_floats_are_staged_too(dtype: torch.dtype, xpu: None, small_buffers: None) -> None:
    given, wanted = torch.empty(5000, dtype=dtype), torch.empty(5000)
    fastinit.init_([given], fastinit.Normal(0.0, 0.5), names=["w"], seed=3, backend="staged")
    fastinit.init_([wanted], fastinit.Normal(0.0, 0.5), names=["w"], seed=3, backend="staged")
    assert torch.equal(given.float(), wanted.to(dtype).float())


def test_copying_goes_on_while_the_next_piece_is_made(
    xpu: None, small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece is made while the other buffer is copied, and only when its own no longer is."""

    class Event:
        def __init__(self, device: torch.device) -> None:
            self.copying = False
            events.append(self)

        def record(self) -> None:
            self.copying = True

        def synchronize(self) -> None:
            self.copying = False

    events: list[Event] = []
    copying: list[list[bool]] = []  # by either buffer, at the time when a piece is made
    empty, fill = torch.empty, staged.Table.fill_cpu

    def noted(self: staged.Table, seed: int, threads: int) -> None:
        copying.append([each.copying for each in events])
        fill(self, seed, threads)

    without_pinning: Any = lambda *shape, pin_memory=False, **given: empty(*shape, **given)  # noqa: E731
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "empty", without_pinning)
    monkeypatch.setattr(staged.Table, "fill_cpu", noted)
    fastinit.init_([torch.empty(5 * 256)], "normal", seed=1, backend="staged")
    assert copying == [[False, False], [True, False], [False, True], [True, False], [False, True]]
    assert not any(each.copying for each in events)
