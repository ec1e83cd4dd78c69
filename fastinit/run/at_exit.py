"""Calls on daemon threads while the interpreter exits.

A thread that asks for the interpreter's lock after the exit is ended inside of torch's C++ code, which ends the
process with an error. So the exit waits for calls of this package, five seconds at the most, and none begins any more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fastinit import _native

_P = ParamSpec("_P")
_R = TypeVar("_R")


def waited_for_at_exit(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that uses torch's, for whose calls the exit waits. On other threads, later ones raise SystemExit."""

    @functools.wraps(function)
    def waited_for(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        native = _native.module
        if native is None:
            return function(*args, **kwargs)
        native.begin_into_torch()
        try:
            return function(*args, **kwargs)
        except SystemExit as error:
            # Its frames hold tensors. To free one, torch lets go of the lock, too.
            error.__traceback__ = error.__context__ = None
            raise
        finally:
            native.end_into_torch()

    return waited_for


def check_exit() -> None:
    """Raise SystemExit on a thread if another one exits the interpreter."""
    if _native.module is not None:
        _native.module.check_exit()
