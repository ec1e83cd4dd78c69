"""torch's parallel operations in a forked process.

A forked child has none of its parent's threads. If the parent ever used those of OpenMP (libgomp), an operation of the
child that asks for them waits forever: `torch.mm`, `sort`, `add_` of a large tensor. On one thread, torch asks for no
others, and everything works; torch's DataLoader relies on that in its workers. The native code has no such trouble:
every call of it starts threads of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def safe_threads() -> Iterator[None]:
    """Run torch's operations on one thread, if this process is a forked one."""
    threads = torch.get_num_threads()
    if not _forked or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
