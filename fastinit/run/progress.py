"""Tells how far a long piece of work has come: a bar on a terminal, or calls of a user's function.

Work that is large is cut into pieces that take some tenths of a second each, and the meter is advanced between them. So
small work pays nothing, nothing is watched by a thread, and no native call needs to know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch.distributed as dist

Progress = bool | None | Callable[[int, int], object]

# Work of fewer bytes takes less than two seconds, orthogonal matrices too.
_LEAST_BYTES = 2**26
# A bar appears after so long: what takes less needs none.
_PATIENCE = 2.0  # seconds
_INTERVAL = 0.1  # seconds between two looks at a terminal, or two calls of a function
_INTERVAL_OF_LINES = 10.0  # where lines cannot be overwritten
# The bytes of the first piece. They double until a piece takes long enough for its start not to count.
_FIRST_PIECE = 2**26
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 0.4


class _Shows(Protocol):
    def show(self, done: int, seconds: float) -> None: ...
    def close(self) -> None: ...


class Meter:
    """Counts the bytes that are done, out of a total. `piece_bytes`: how many to do before the next `advance`."""

    def __init__(
        self,
        what: str,
        total: int,
        told: Callable[[int, int], object] | None,
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.piece_bytes = _FIRST_PIECE
        self.done = 0
        self._what, self._total, self._told, self._clock = what, total, told, clock
        self._start = self._last = clock()
        self._next = self._start + patience
        self._shown: _Shows | None = None

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done."""
        now = self._clock()
        took, self._last = now - self._last, now
        if took < _LEAST_SECONDS and nbytes >= self.piece_bytes // 2:
            self.piece_bytes *= 2
        elif took > _MOST_SECONDS and self.piece_bytes > _FIRST_PIECE:
            self.piece_bytes //= 2
        self.reach(self.done + nbytes)

    def reach(self, done: int) -> None:
        """So many bytes are done, if they were not before."""
        self.done = max(self.done, min(done, self._total))
        now = self._clock()
        if now < self._next or self.done == self._total:  # the end is told once, by `finish`
            return
        self._tell(now)

    def finish(self) -> None:
        """All is done."""
        self.done = self._total
        if self._told is not None or self._shown is not None:
            self._tell(self._clock())

    def close(self) -> None:
        """Leave what is shown as it is."""
        if self._shown is not None:
            self._shown.close()

    def _tell(self, now: float) -> None:
        self._next = now + _INTERVAL
        if self._told is None:
            if self._shown is None:
                self._shown = _shown(self._what, self._total, now - self._start)
            self._shown.show(self.done, now - self._start)
            return
        try:
            self._told(self.done, self._total)
        except Exception as error:
            raise RuntimeError(
                f"progress: the function raised {type(error).__name__}: {error}; {self._what} stopped after "
                f"{self.done:,} of {self._total:,} bytes, so call again"
            ) from error


@contextmanager
def metered(progress: Progress, what: str, total: int | Callable[[], int]) -> Iterator[Meter | None]:
    """A meter for work of `total` bytes, or None where nothing is told of it.

    Args:
        progress: True: shown from the beginning. False: never. None: on a terminal, after two seconds, by the first
            rank. A function of the bytes that are done and of all bytes: called between pieces of work, at most ten
            times a second, and once at the end.
        what: what is done, as "initialising".

    Raises:
        RuntimeError: the function raised an exception, which is the cause.
    """
    meter = _meter(progress, what, total)
    if meter is None:
        yield None
        return
    try:
        yield meter
        meter.finish()
    finally:
        meter.close()


def check_progress(progress: object) -> None:
    """Raise TypeError unless the argument is a `Progress`."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise TypeError(f"progress: expected True, False, None or a function, got {progress!r}")


def _meter(progress: Progress, what: str, total: int | Callable[[], int]) -> Meter | None:
    if progress is False or (progress is None and not _is_watched()):
        return None
    total = total if isinstance(total, int) else total()
    if progress is None:
        return Meter(what, total, None, patience=_PATIENCE) if total >= _LEAST_BYTES else None
    return Meter(what, total, None if progress is True else progress, patience=0.0)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_watched() -> bool:
    """Whether somebody may look at a bar of this process. Of several ranks, one shows it."""
    return _is_terminal() and not (dist.is_available() and dist.is_initialized() and dist.get_rank() != 0)


def _shown(what: str, total: int, seconds: float) -> _Shows:
    if not _is_terminal():
        return _Lines(what, total, "\n", _INTERVAL_OF_LINES)
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return _Lines(what, total, "\r", 0.0)
    return _Tqdm(tqdm, what, total, seconds)


class _Tqdm:
    def __init__(self, make: Any, what: str, total: int, seconds: float) -> None:
        # The mean speed since the beginning: pieces of one run differ in what they cost.
        self._bar = make(total=total, desc=what, unit="B", unit_scale=True, smoothing=0.0, file=sys.stderr)
        self._bar.start_t -= seconds

    def show(self, done: int, seconds: float) -> None:
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """One line that is overwritten, or a new one now and then."""

    def __init__(self, what: str, total: int, end: str, interval: float) -> None:
        self._what, self._total, self._end, self._interval = what, total, end, interval
        self._next, self._width = 0.0, 0

    def show(self, done: int, seconds: float) -> None:
        if seconds < self._next and done < self._total:
            return
        self._next = seconds + self._interval
        line = line_of(self._what, done, self._total, seconds)
        if self._end == "\r":
            line, self._width = line.ljust(self._width), len(line)
        print(line, end=self._end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._end == "\r":
            print(file=sys.stderr, flush=True)


def line_of(what: str, done: int, total: int, seconds: float) -> str:
    """
    >>> line_of("initialising", 3 * 10**9, 6 * 10**9, 1.5)
    'initialising: 50 % of 6.00 GB, 2.00 GB/s, 2 s left'
    >>> line_of("initialising", 6 * 10**9, 6 * 10**9, 3.0)
    'initialising: 100 % of 6.00 GB, 2.00 GB/s, in 3.0 s'
    """
    speed = done / seconds if seconds > 0.0 else 0.0
    rest = f"in {seconds:.1f} s" if done == total else f"{(total - done) / speed:.0f} s left" if speed > 0.0 else ""
    parts = [f"{100 * done // max(1, total)} % of {total / 1e9:.2f} GB", f"{speed / 1e9:.2f} GB/s", rest]
    return f"{what}: {', '.join(part for part in parts if part)}"
