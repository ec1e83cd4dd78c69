"""Bars and functions that tell of long work: what they are told, when, and that they change no bit."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastinit
from fastinit import _native
from fastinit.cli import models, writing
from fastinit.run import progress as progress_module
from fastinit.run.progress import Meter, metered

native = pytest.mark.skipif(_native.module is None, reason="without the native code, nothing is cut")


class Clock:
    """Stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "Meter", lambda *given, **named: Meter(*given, **named, clock=made))
    return made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=made))  # pytest sets sys.stderr again and again
    return made


@pytest.fixture
def no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut as if memory were small: pieces stay as small as a first one."""
    monkeypatch.setattr(progress_module, "_FIRST_PIECE", 2**12)
    monkeypatch.setattr(progress_module, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(progress_module, "_INTERVAL", 0.0)
    monkeypatch.setattr(progress_module, "_LEAST_BYTES", 0)
    monkeypatch.setattr("fastinit.run.table._CLAIM", 16)


def network() -> nn.Module:
    """Rows of many sizes, small ones beside ones that are cut, and a matrix that is computed as a whole."""
    return nn.Sequential(
        nn.Linear(64, 300),
        *(nn.Linear(5, 5) for _ in range(40)),
        nn.Embedding(1000, 16, padding_idx=3),
        nn.Linear(300, 7),
    )


RULES = [("41.weight", fastinit.TruncNormal(std=0.02)), ("42.weight", "orthogonal")]


# ---- what a function is told ----


@pytest.mark.usefixtures("small_pieces")
def test_a_function_hears_of_all_bytes_and_the_bits_stay() -> None:
    told: list[tuple[int, int]] = []
    quiet = fastinit.init_model_(network(), "xavier_uniform", RULES, seed=0)
    loud = fastinit.init_model_(
        network(), "xavier_uniform", RULES, seed=0, progress=lambda done, total: told.append((done, total))
    )
    for one, other in zip(quiet.parameters(), loud.parameters(), strict=True):
        assert torch.equal(one, other)
    total = sum(parameter.nbytes for parameter in loud.parameters())
    assert told[-1] == (total, total)
    assert {of for _, of in told} == {total}
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert done.count(total) == 1
    if _native.module is not None:
        assert len(done) > total / 2**13  # a piece is 4 KiB, or a little less


@native
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["whole", "transposed", "rows apart"])
@pytest.mark.parametrize("scheme", ["xavier_uniform", "xavier_normal", fastinit.TruncNormal(std=0.02), "eye"])
def test_a_row_that_is_cut_has_the_bits_of_the_whole(dtype: torch.dtype, layout: str, scheme: Any) -> None:
    def made(progress: Any) -> torch.Tensor:
        memory = torch.zeros(301, 211, dtype=dtype)
        tensor = {"whole": memory, "transposed": memory.T, "rows apart": memory[:, :97]}[layout]
        module = nn.Module()
        module.weight = nn.Parameter(tensor)
        fastinit.plan(module, "zeros", [("*", scheme)], seed=3).run_(progress=progress)
        return memory

    calls: list[int] = []
    assert torch.equal(made(False), made(lambda done, total: calls.append(done)))
    assert len(calls) > 1 or layout != "whole"


@pytest.mark.usefixtures("small_pieces")
def test_verify_finds_in_pieces_what_it_finds_at_once() -> None:
    model = fastinit.init_model_(network(), "xavier_uniform", RULES, seed=0)
    plan = fastinit.plan(network(), "xavier_uniform", RULES, seed=0)
    told: list[tuple[int, int]] = []
    assert fastinit.verify(model, plan, progress=lambda *given: told.append(given)) == ()
    assert told[-1] == (plan.nbytes, plan.nbytes)
    with torch.no_grad():
        model[0].weight[299, 63] += 1.0  # in the last piece of a row
        model[17].bias[0] = 1.0
        model[42].weight[0, 0] += 1.0
    assert fastinit.verify(model, plan, progress=lambda *given: None) == ("0.weight", "17.bias", "42.weight")


@pytest.mark.usefixtures("small_pieces")
def test_report_and_materialize_tell_of_all_bytes() -> None:
    told: list[tuple[int, int]] = []
    with torch.device("meta"):
        model = network()
    fastinit.materialize_(
        model, "xavier_uniform", RULES, device="cpu", seed=0, progress=lambda *given: told.append(given)
    )
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert told[-1] == (total, total)
    told.clear()
    fastinit.report(model, progress=lambda *given: told.append(given))
    assert told[-1] == (total, total) and len(told) > 40


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.filterwarnings("ignore::fastinit.FallbackWarning")
def test_parametrized_weights_and_torch_count_too(backend: str) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    told: list[tuple[int, int]] = []
    plan = fastinit.plan(model, "xavier_uniform", seed=0, backend=backend)
    plan.run_(progress=lambda *given: told.append(given))
    assert told[-1] == (plan.nbytes, plan.nbytes)


def test_a_function_is_called_ten_times_a_second_at_the_most() -> None:
    clock, told = Clock(), []
    meter = Meter("reading", 1000, lambda done, total: told.append(done), patience=0.0, clock=clock)
    for _ in range(1000):
        clock.seconds += 0.01
        meter.advance(1)
    meter.finish()
    assert 95 <= len(told) <= 102
    assert told[-1] == 1000


def test_pieces_grow_until_they_take_a_tenth_of_a_second() -> None:
    clock = Clock()
    meter = Meter("reading", 2**40, lambda done, total: None, patience=0.0, clock=clock)
    speed = 16e9  # bytes a second
    for _ in range(20):
        clock.seconds += meter.piece_bytes / speed
        meter.advance(meter.piece_bytes)
    assert 0.1 <= meter.piece_bytes / speed <= 0.4
    for _ in range(20):  # another distribution, a tenth as fast
        clock.seconds += meter.piece_bytes / speed * 10
        meter.advance(meter.piece_bytes)
    assert 0.1 <= meter.piece_bytes / speed * 10 <= 0.4


# ---- errors ----


@pytest.mark.usefixtures("small_pieces")
def test_an_error_of_the_function_names_itself_and_how_far_the_work_is() -> None:
    model = network()

    def fails(done: int, total: int) -> None:
        raise KeyError("no such window")

    before = model[0].weight._version
    with pytest.raises(
        RuntimeError, match=r"progress: the function raised KeyError: 'no such window'; initialising"
    ) as at:
        fastinit.init_model_(model, "xavier_uniform", seed=0, progress=fails)
    assert isinstance(at.value.__cause__, KeyError)
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert f"of {total:,} bytes, so call again" in str(at.value)
    assert model[0].weight._version > before  # a part was written
    fastinit.init_model_(model, "xavier_uniform", seed=0)
    assert fastinit.verify(model, fastinit.plan(network(), "xavier_uniform", seed=0)) == ()


@pytest.mark.parametrize("given", [1, "yes", 0.5])
def test_what_is_no_progress_is_refused_before_anything_is_written(given: Any) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    calls: list[Callable[[], object]] = [
        lambda: fastinit.init_model_(model, "ones", progress=given),
        lambda: fastinit.plan(model, "ones").run_(progress=given),
        lambda: fastinit.materialize_(nn.Linear(3, 2, device="meta"), "ones", device="cpu", progress=given),
        lambda: fastinit.verify(model, fastinit.plan(model, "ones", seed=0), progress=given),
        lambda: fastinit.report(model, progress=given),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"progress: expected True, False, None or a function, got {given!r}"):
            call()
    assert torch.equal(model.weight, before)


# ---- what is seen ----


def work(clock: Clock, seconds: float, progress: Any = None, total: int = 4 * 10**9) -> None:
    with metered(progress, "initialising", total) as meter:
        for _ in range(40):
            clock.seconds += seconds / 40
            if meter is not None:
                meter.advance(total // 40)


@pytest.mark.usefixtures("no_tqdm")
def test_a_line_appears_after_two_seconds(clock: Clock, terminal: Terminal) -> None:
    work(clock, 1.9)
    assert terminal.getvalue() == ""
    work(clock, 8.0)
    first, *_, last = terminal.getvalue().strip("\r\n").split("\r")
    assert first == "initialising: 25 % of 4.00 GB, 0.50 GB/s, 6 s left"
    assert last.rstrip() == "initialising: 100 % of 4.00 GB, 0.50 GB/s, in 8.0 s"
    assert terminal.getvalue().endswith("\n")


def test_a_bar_of_tqdm_where_it_is_installed(clock: Clock, terminal: Terminal) -> None:
    pytest.importorskip("tqdm")
    work(clock, 1.9)
    assert terminal.getvalue() == ""
    work(clock, 8.0)
    assert "initialising: 100%" in terminal.getvalue() and "4.00G/4.00G" in terminal.getvalue()


@pytest.mark.usefixtures("no_tqdm")
def test_true_shows_at_once_and_false_never(clock: Clock, terminal: Terminal) -> None:
    work(clock, 1.0, True)
    assert "52 % of 4.00 GB" in terminal.getvalue()
    terminal.truncate(0)
    work(clock, 8.0, False)
    assert terminal.getvalue() == ""


def test_where_stderr_is_no_terminal_only_true_shows_a_line_now_and_then(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    work(clock, 60.0)
    assert sys.stderr.getvalue() == ""
    work(clock, 60.0, True)
    lines = sys.stderr.getvalue().splitlines()
    assert 5 <= len(lines) <= 8
    assert lines[-1] == "initialising: 100 % of 4.00 GB, 0.07 GB/s, in 60.0 s"
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    work(clock, 60.0)


def test_of_several_ranks_the_first_shows(clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    work(clock, 8.0)
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("no_tqdm")
def test_an_error_leaves_the_line_as_it_is(clock: Clock, terminal: Terminal) -> None:
    def fails() -> None:
        with metered(True, "reading", 100) as meter:
            assert meter is not None
            meter.advance(50)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert "50 %" in terminal.getvalue() and "100 %" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


@pytest.mark.slow
def test_small_work_starts_and_imports_nothing() -> None:
    code = (
        "import io, sys, threading, torch, fastinit\n"
        "class Terminal(io.StringIO):\n"
        "    def isatty(self): return True\n"
        "sys.stderr = Terminal()\n"
        "before = set(sys.modules), threading.active_count()\n"
        "model = fastinit.init_model_(torch.nn.Linear(300, 300), 'xavier_uniform', seed=0)\n"
        "fastinit.report(model)\n"
        "new = {each for each in set(sys.modules) - before[0] if each.startswith('tqdm')}\n"
        "print(new, threading.active_count() - before[1], repr(sys.stderr.getvalue()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set() 0 ''\n"


# ---- the command line ----


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_init_tells_of_all_bytes_of_the_file(out: Path) -> None:
    told: list[tuple[int, int]] = []
    named = models.named(f"{__file__}:network", scheme="xavier_uniform", seed=0)
    written = writing.run(named, out, 2**30, progress=lambda *each: told.append(each))
    assert told[-1] == (written.nbytes, written.nbytes)


def test_an_error_of_the_function_leaves_no_file(out: Path) -> None:
    def fails(done: int, total: int) -> None:
        raise OSError("no such window")

    named = models.named(f"{__file__}:network", scheme="xavier_uniform", seed=0)
    with pytest.raises(RuntimeError, match="progress: the function raised OSError"):
        writing.run(named, out, 2**30, progress=fails)
    assert list(out.parent.iterdir()) == []
