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
from conftest import needs_native

import fastinit

pytestmark = needs_native

LARGE = 2**26


def run(code: str, timeout: float = 60.0) -> str:
    """A program of its own, warnings being errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout


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


def test_interrupt_is_honoured_within_a_second() -> None:
    tensors = [torch.zeros(LARGE) for _ in range(2)] * 1
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


def test_other_python_threads_run_meanwhile() -> None:
    """The interpreter's lock is released: a counter in another thread advances during a fill."""
    tensor = torch.empty(LARGE)
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    os.environ["FASTINIT_FORCE_ISA"] = "portable"
    try:
        start = time.perf_counter()
        before = counted
        fastinit.normal_(tensor)
        during, seconds = counted - before, time.perf_counter() - start
    finally:
        del os.environ["FASTINIT_FORCE_ISA"]
        done.set()
        thread.join()
    assert seconds > 0.1
    assert during > 0.1 * seconds / 0.001


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


def test_memory_beyond_the_parameters_stays_under_16_mib() -> None:
    code = """
import resource, torch, fastinit
from torch import nn
model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(100)], nn.Embedding(50_000, 1024, padding_idx=0))
fastinit.init_model_(nn.Linear(3, 3), "xavier_uniform")  # what is loaded once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fastinit.init_model_(model, "xavier_uniform")
fastinit.init_model_(model.to(memory_format=torch.preserve_format), "trunc_normal")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(run(code)) < 16 * 1024  # KiB


def test_memory_of_fresh_tensors_stays_under_16_mib_beyond_them() -> None:
    code = """
import resource, torch, fastinit
fastinit.normal_(torch.empty(10))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = [torch.empty(7_654_321) for _ in range(10)]
fastinit.init_(tensors, "normal")
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used - 10 * 7_654_321 * 4 // 1024)
"""
    assert int(run(code)) < 16 * 1024


def test_many_threads_for_little_work_are_not_started(all_threads: None) -> None:
    torch.set_num_threads(64)
    tensor = torch.empty(100)
    start = time.perf_counter()
    for _ in range(200):
        fastinit.normal_(tensor)
    assert (time.perf_counter() - start) / 200 < 1e-3
