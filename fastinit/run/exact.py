"""One setting for arithmetic in torch that computes values of parameters. No ambient setting may change these."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch


@contextmanager
def exact_arithmetic(devices: Iterable[torch.device]) -> Iterator[None]:
    """Compute products on `devices` in the dtype of their factors, and put new tensors on the CPU by default.

    It turns off gradients, autocast, TF32 and bfloat16 in products of float32 matrices, and ambient default devices.
    The precision of products is a setting of the process, so other threads see the change while it lasts. A forked
    process computes on one thread (`safe_threads`).
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
    """Compute products of float32 matrices in float32, whatever torch's settings of their precision say."""
    backends: Any = torch.backends
    switches = [backends.mkldnn.matmul]
    if "cuda" in kinds:
        switches.append(backends.cuda.matmul)
    with ExitStack() as stack:
        for switch in switches:
            stack.enter_context(_set_to_ieee(switch))
        yield


class _Changed(NamedTuple):
    users: int
    before: str


_changed: dict[Any, _Changed] = {}
# A handler of signals may initialise, too.
_change = threading.RLock()


@contextmanager
def _set_to_ieee(switch: Any) -> Iterator[None]:
    """The first thread that needs it changes a setting of the process, and the last one changes it back."""
    with _change:
        users, before = _changed.get(switch, (0, switch.fp32_precision))
        if is_changed := before not in ("none", "ieee"):
            _changed[switch] = _Changed(users + 1, before)
            switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _change:
            if is_changed and switch in _changed:
                users, before = _changed.pop(switch)
                if users > 1:
                    _changed[switch] = _Changed(users - 1, before)
                elif switch.fp32_precision == "ieee":  # else somebody has set it meanwhile
                    _restore(switch, before)


def _restore(switch: Any, before: str) -> None:
    """Without a value of its own, a setting has that of all backends, which may change."""
    switch.fp32_precision = "none"
    if switch.fp32_precision != before:
        switch.fp32_precision = before


_forked = False


def _note_fork() -> None:
    """Threads of the parent, which a child has not, may have held the lock, or users of a setting."""
    global _forked, _change
    _forked = True
    _change = threading.RLock()
    for switch, (_, before) in _changed.items():
        _restore(switch, before)
    _changed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def safe_threads() -> Iterator[None]:
    """Run torch's operations on one thread if this process was forked.

    A forked child has none of its parent's threads. If the parent ever used OpenMP's threads, an operation of the child
    that asks for them waits forever: a product, a sort, the sum of a large tensor. With one thread, torch asks for no
    others. The native code is not affected, because every call starts its own threads.
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
