"""One setting for arithmetic in torch whose results are values of the contract: nothing ambient changes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def exact_arithmetic(devices: Iterable[torch.device]) -> Iterator[None]:
    """Within it, products on `devices` are those of their factors' dtype, and new tensors are on the CPU unless told.

    Off: gradients, autocast, TF32 and bfloat16 in products of float32 matrices, ambient default devices.
    The precision of products is a setting of the process: other threads see it change for as long. A forked process
    computes on one thread (`safe_threads`).
    """
    kinds = {device.type for device in devices} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision(kinds))
        stack.enter_context(safe_threads())
        yield


@contextmanager
def _full_precision(kinds: set[str]) -> Iterator[None]:
    """Products of float32 matrices in float32, whatever `set_float32_matmul_precision` and the backends' flags say."""
    backends: Any = torch.backends
    switches = [backends.mkldnn.matmul]
    if "cuda" in kinds:
        switches.append(backends.cuda.matmul)
    changed: list[tuple[Any, str]] = []
    try:
        for switch in switches:
            before = switch.fp32_precision
            if before not in ("none", "ieee"):
                switch.fp32_precision = "ieee"
                changed.append((switch, before))
        yield
    finally:
        for switch, before in changed:
            switch.fp32_precision = before


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def safe_threads() -> Iterator[None]:
    """Run torch's operations on one thread, if this process is a forked one.

    A forked child has none of its parent's threads. If the parent ever used those of OpenMP, an operation of the child
    that asks for them waits forever: a product, a sort, the sum of a large tensor. On one thread torch asks for no
    others. The native code has no such trouble: every call of it starts threads of its own.
    """
    threads = torch.get_num_threads()
    if not _forked or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
