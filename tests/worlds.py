"""Worlds of real processes over gloo, each started once and used for many checks; and simulated ranks, without any.

A check is a module-level function with arguments that can be pickled; it runs on every rank of a world, after
`torch.distributed.init_process_group`, and what it returns comes back, rank by rank. Warnings are errors there, too.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import debug
from torch.testing._internal.distributed.fake_pg import FakeStore

# What every rank needs, imported once, by the process from which the ranks of all worlds are forked: importing it takes
# seconds of a processor's time. It runs nothing on several threads before. What it cannot import, it leaves to them.
_PRELOADED = [
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.testing._internal.distributed.fake_pg",
    "fastinit",
]
_START_SECONDS = 300.0  # that importing torch may take, on a busy machine
_GRACE_SECONDS = 5.0  # after a rank has failed, for what the others have to say


class RankError(AssertionError):
    """A check failed on some ranks: their tracebacks, or that they did not answer."""


class World:
    """`size` processes of one thread each; with `group`, one process group of them all. Those that are not `forked`
    share no memory."""

    def __init__(self, size: int, *, group: bool = True, forked: bool = True) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = os.path.join(self._folder.name, "store") if group else None
        context = multiprocessing.get_context("forkserver" if forked else "spawn")
        if forked:
            context.set_forkserver_preload(_PRELOADED)
        self._connections: list[Connection[Any, Any]] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, store), daemon=True)
            process.start()
            theirs.close()  # or the end of the process would not be seen
            self._connections.append(ours)
            self._processes.append(process)
        self.is_open = True
        self._collect(_START_SECONDS)

    def run(self, check: Callable[..., Any], *arguments: Any, seconds: float = 180.0) -> list[Any]:
        """What `check(*arguments)` returns on every rank.

        Raises:
            RankError: it failed on a rank, or took longer than `seconds`. The world is closed then, for its ranks may
                wait for each other.
        """
        for connection in self._connections:
            connection.send((check, arguments))
        return self._collect(seconds)

    def _collect(self, seconds: float) -> list[Any]:
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + seconds
        while len(answers) + len(failures) < self.size:
            waiting = {self._connections[rank]: rank for rank in range(self.size) if rank not in answers | failures}
            ready = wait(list(waiting), max(deadline - time.monotonic(), 0.0))
            if not ready:
                late = "after another rank had failed" if failures else f"within {seconds:g} s"
                failures |= dict.fromkeys(waiting.values(), f"no answer {late}")
            for connection in ready:
                rank = waiting[connection]  # type: ignore[index]
                try:
                    succeeded, answer = connection.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    self._processes[rank].join(_GRACE_SECONDS)
                    succeeded, answer = False, f"its process ended, with {self._processes[rank].exitcode}"
                if succeeded:
                    answers[rank] = answer
                else:
                    if not failures:
                        deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
                    failures[rank] = answer
        if failures:
            self.close()
            report = [f"rank {rank} of {self.size}:\n{failures[rank]}" for rank in sorted(failures)]
            raise RankError("\n".join(report))
        return [answers[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes."""
        if not self.is_open:
            return
        self.is_open = False
        for process in self._processes:
            process.kill()
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            process.close()
            connection.close()
        self._folder.cleanup()


def _serve(connection: Connection[Any, Any], rank: int, size: int, store: str | None) -> None:
    """A rank's life: checks from the connection, one after another, until that is closed."""
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", 'scheme: "(normal|uniform|trunc_normal)" without arguments'
    )  # as in pyproject.toml
    torch.set_num_threads(1)

    def join() -> None:
        if store is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name may have no address
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
            )

    def perform() -> Any:
        check, arguments = pickle.loads(task)
        return check(*arguments)

    connection.send(_attempt(join))
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        connection.send(_attempt(perform))


def _attempt(task: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, task()
    except BaseException:
        return False, traceback.format_exc()


_worlds: dict[int, World] = {}
_NO_GROUP = 0  # the key of a process without a process group


def run(size: int, check: Callable[..., Any], *arguments: Any, seconds: float = 180.0) -> list[Any]:
    """What `check(*arguments)` returns on every rank of the world of this size, which is started if need be."""
    return _world(size).run(check, *arguments, seconds=seconds)


def run_simulated(check: Callable[..., Any], *arguments: Any, seconds: float = 60.0) -> Any:
    """What a check returns in another process, where it is free to be any `simulated_rank`."""
    return _world(_NO_GROUP).run(check, *arguments, seconds=seconds)[0]


def run_fresh(
    size: int, check: Callable[..., Any], *arguments: Any, seconds: float = 180.0, forked: bool = True
) -> list[Any]:
    """As `run`, in a world that nothing else uses. For measuring memory it should not be forked."""
    with contextlib.closing(World(size, forked=forked)) as world:
        return world.run(check, *arguments, seconds=seconds)


def run_simulated_fresh(check: Callable[..., Any], *arguments: Any, seconds: float = 60.0) -> Any:
    """As `run_simulated`, in a process that nothing else uses, for measuring memory."""
    with contextlib.closing(World(1, group=False, forked=False)) as world:
        return world.run(check, *arguments, seconds=seconds)[0]


def _world(key: int) -> World:
    if key not in _worlds or not _worlds[key].is_open:
        _worlds[key] = _started(key)
    return _worlds[key]


def _started(key: int) -> World:
    return World(1, group=False) if key == _NO_GROUP else World(key)


@atexit.register
def close_all() -> None:
    """End all worlds that were started; `run` starts new ones."""
    while _worlds:
        _, world = _worlds.popitem()
        world.close()


@contextlib.contextmanager
def simulated_rank(rank: int, size: int) -> Iterator[None]:
    """This process as a rank of a world whose other ranks are not there: communication does nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # They remember meshes, in which this process is the rank that it was.
        debug._clear_sharding_prop_cache()
