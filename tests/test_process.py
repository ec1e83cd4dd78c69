"""Alongside other code: forks, threads, signals, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import needs_native, needs_peaks
from peaks import PEAKS

import fastinit

pytestmark = needs_native

LARGE = 2**26


def run(code: str, timeout: float = 60.0) -> str:
    """A program of its own, warnings being errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout


@pytest.mark.slow
def test_fork_after_a_parallel_fill_is_safe() -> None:
    code = """
import os, torch, fastinit
torch.set_num_threads(4)
parent = torch.empty(4_000_000); fastinit.init_([parent], "normal", seed=1)
pid = os.fork()
if pid == 0:
    child = torch.empty(4_000_000); fastinit.init_([child], "normal", seed=1)
    os._exit(0 if torch.equal(child, parent) else 1)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""
    run(code, timeout=30.0)


@pytest.mark.slow
def test_interrupt_is_honoured_within_a_second() -> None:
    tensors = [torch.zeros(LARGE) for _ in range(2)]
    plan = fastinit.plan(torch.nn.ParameterList(tensors), "normal", rules=[("*", "normal")], seed=0)
    os.environ["FASTINIT_FORCE_ISA"] = "portable"  # slow enough to be interrupted
    sent = []

    def interrupt() -> None:
        time.sleep(0.1)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A shell's background jobs are started with the signal ignored, and then Python leaves it so.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            plan.run_()
        waited = time.perf_counter() - sent[0]
    finally:
        del os.environ["FASTINIT_FORCE_ISA"]
        thread.join()
        signal.signal(signal.SIGINT, handler)
    assert waited < 1.0
    assert (tensors[1][-1000:] == 0).all(), "the fill was over before it could be interrupted"
    plan.run_()
    expected = torch.empty(1000)
    fastinit.init_([expected], "normal", names=["0"], seed=0)
    assert torch.equal(tensors[0][:1000], expected)


@pytest.mark.slow
def test_fork_after_parallel_products_is_safe() -> None:
    """torch's own threads are not in the child, and are waited for in vain if a product asks for them."""
    code = """
import os, signal, torch, fastinit
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
torch.set_num_threads(4)
model = orthogonal(nn.Linear(300, 300))
wide = nn.ParameterDict({"w": torch.zeros(1100, 1100, dtype=torch.complex128)})  # hashed by torch's operations

def fill_all():
    for dtype in (torch.float32, torch.bfloat16):
        for scheme in ("orthogonal", "svd", "zer_o"):
            fastinit.init_([torch.empty(1100, 1100, dtype=dtype)], scheme, seed=0)
    fastinit.sparse_(torch.empty(1100, 1100), 0.5)
    fastinit.init_([torch.empty(1100, 1100)], "orthogonal", backend="torch", seed=0)
    fastinit.init_model_(model, fastinit.Normal(), seed=0)
    fastinit.fingerprint(wide)

torch.rand(2000, 2000) @ torch.rand(2000, 2000)
pid = os.fork()
if pid == 0:
    signal.alarm(80)
    fill_all()
    assert torch.get_num_threads() == 4
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""
    run(code, timeout=120.0)


# Slow enough to be still at work when the interpreter exits.
DAEMON = """
import atexit, os, threading, time
os.environ["FASTINIT_FORCE_ISA"] = "portable"
import torch, fastinit
torch.set_num_threads(2)
tensors = [torch.zeros(2**26) for _ in range(2)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("waits", [True, False])
def test_the_interpreter_exits_quietly_during_a_fill(waits: bool) -> None:
    """Also where nothing waits for the thread at the exit, which then may not come back to the interpreter."""
    code = f"""{DAEMON}
if not {waits}:
    atexit._clear()
threading.Thread(target=lambda: fastinit.init_(tensors, "normal", seed=1), daemon=True).start()
time.sleep(0.3)
print(int(tensors[0][0] != 0), int(tensors[1][-1] != 0))
"""
    command = [sys.executable, "-W", "error", "-c", code]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (outcome.returncode, outcome.stdout) == (0, "1 0\n"), outcome.stderr
    assert outcome.stderr == "" or not waits  # torch's own functions at the exit are missed there


@pytest.mark.slow
def test_a_daemon_thread_that_fills_again_and_again_ends_quietly() -> None:
    code = f"""{DAEMON}
ended = []
part = tensors[0][:100_000]  # not in the loop: torch's own functions may end the process at the exit
def fill_forever():
    try:
        while True:
            fastinit.init_([part], "normal", seed=1)
    finally:
        ended.append(True)

threading.Thread(target=fill_forever, daemon=True).start()
time.sleep(0.2)

@atexit.register
def fill_at_exit():  # the thread that exits may still fill
    fastinit.init_([tensors[1][:100]], "normal", seed=1)
    print(int(tensors[1][0] != 0))
"""
    command = [sys.executable, "-W", "error", "-c", code]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "1\n", "")


@pytest.mark.slow
def test_a_child_that_exits_does_not_wait_for_threads_of_its_parent() -> None:
    code = f"""{DAEMON}
thread = threading.Thread(target=lambda: fastinit.init_(tensors, "normal", seed=1), daemon=True)
thread.start()
time.sleep(0.3)
pid = os.fork()
if pid == 0:
    raise SystemExit(0)
for _ in range(100):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(pid, 9)
print(done == pid and os.waitstatus_to_exitcode(status))
"""
    assert run(code) == "0\n"


@pytest.mark.slow
def test_nor_for_one_that_is_in_a_scheme() -> None:
    """Its parent does wait, but not for ever."""
    code = """
import os, threading, time
import torch, fastinit
entered = threading.Event()
class Waiting(fastinit.Scheme):
    def distribution(self, context):
        entered.set()
        time.sleep(1000)
threading.Thread(target=lambda: fastinit.init_([torch.zeros(9)], Waiting()), daemon=True).start()
entered.wait()
pid = os.fork()
if pid == 0:
    raise SystemExit(0)
started = time.monotonic()
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), time.monotonic() - started < 4)  # the parent takes 5 s
"""
    assert run(code) == "0 True\n"


@pytest.mark.slow
@pytest.mark.parametrize("work", ["orthogonal", "large orthogonal", "fingerprint"])
def test_other_native_work_is_interrupted_within_a_second(work: str) -> None:
    code = f"""
import os, signal, threading, time, torch, fastinit
from fastinit import _native
from fastinit.audit import hashing
from fastinit.run.index_maps import BoxIndices
from fastinit.run.matrix_table import orthogonal_table
from fastinit.run.orthogonal import Matrix
signal.signal(signal.SIGINT, signal.default_int_handler)
native, work = _native.module, {work!r}
if work == "fingerprint":
    tensor = torch.zeros(2**20).expand(2**13, 2**20)  # 2^33 elements
    table = hashing._table([hashing.Hashed(1, tensor, BoxIndices(0, (2**20, 1)))])
    os.environ["FASTINIT_FORCE_ISA"] = "portable"
    start = lambda: native.fingerprint_cpu(table, 2)
else:
    size, count = (1024, 20) if work == "large orthogonal" else (128, 4000)
    tensors = [torch.zeros(size, size, dtype=torch.float64) for _ in range(count)]
    table = orthogonal_table([Matrix("w", t, (size, size), BoxIndices(0, (size, 1)), 1.0) for t in tensors], tensors)
    start = lambda: native.orthogonal_cpu(table, 1, 2)

def interrupt():
    global sent
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(0.3, interrupt).start()
try:
    start()
    print("was over before it could be interrupted")
except KeyboardInterrupt:
    print(time.perf_counter() - sent)
"""
    assert float(run(code)) < 1.0


@pytest.mark.slow
def test_other_python_threads_run_meanwhile() -> None:
    """The interpreter's lock is released: another thread sees the beginning filled while the end is not."""
    tensor = torch.zeros(LARGE)
    beginning, end = tensor.numpy()[:1], tensor.numpy()[-1:]
    seen = threading.Event()
    done = threading.Event()

    def look() -> None:
        while not (done.is_set() or seen.is_set()):
            if beginning[0] != 0.0 and end[0] == 0.0:  # read in this order
                seen.set()
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    os.environ["FASTINIT_FORCE_ISA"] = "portable"  # slow enough to be looked at
    try:
        fastinit.normal_(tensor)
    finally:
        del os.environ["FASTINIT_FORCE_ISA"]
        done.set()
        thread.join()
    assert (tensor[-1000:] != 0).all() and seen.is_set()


def test_concurrent_calls_give_the_right_bits() -> None:
    expected = torch.empty(1_000_000)
    fastinit.init_([expected], "normal", seed=1)
    outcomes = [torch.empty(1_000_000) for _ in range(6)]
    threads = [threading.Thread(target=lambda t=t: fastinit.init_([t], "normal", seed=1)) for t in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(outcome, expected) for outcome in outcomes)


@pytest.mark.slow
@needs_peaks
def test_memory_beyond_the_parameters_stays_under_16_mib() -> None:
    code = """
import torch, fastinit
from torch import nn
model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(100)], nn.Embedding(50_000, 1024, padding_idx=0))
fastinit.init_model_(nn.Linear(3, 3), "xavier_uniform")  # what is loaded once
before = forget_peak()
fastinit.init_model_(model, "xavier_uniform")
fastinit.init_model_(model.to(memory_format=torch.preserve_format), fastinit.TruncNormal())
print(peak_memory() - before)
"""
    assert int(run(PEAKS + code)) < 16 * 2**20


@pytest.mark.slow
@needs_peaks
def test_memory_of_fresh_tensors_stays_under_16_mib_beyond_them() -> None:
    code = """
import torch, fastinit
fastinit.normal_(torch.empty(10))
before = forget_peak()
tensors = [torch.empty(7_654_321) for _ in range(10)]
fastinit.init_(tensors, "normal")
print(peak_memory() - before - sum(each.nbytes for each in tensors))
"""
    assert int(run(PEAKS + code)) < 16 * 2**20
