"""Functions that stand in for torch's while something is recorded, in any thread.

torch.nn.init's functions are among them: some of torch's ask no mode, and those that do ask it in a slow way. Where no
recorder is the innermost mode, each calls the function that was there before.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastinit import _torch
from fastinit.capture import calls
from fastinit.capture.recorder import Recorder


def _recording(own: Any, filling: calls.Filling) -> Callable[..., Any]:
    @functools.wraps(own)
    def recorded(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if _torch.outside_of(
            Recorder, lambda recorder: recorder.is_alone and recorder.fill(filling, (tensor, *args), kwargs)
        ):
            return tensor
        return own(tensor, *args, **kwargs)

    return recorded


def _looking(own: Callable[..., Any]) -> Callable[..., Any]:
    """A function that looks at shapes alone, and need not ask for each of them."""

    @functools.wraps(own)
    def looked(tensor: Tensor) -> Any:
        found = _torch.outside_of(Recorder, lambda recorder: own(tensor))
        return own(tensor) if found is None else found

    return looked


class Patches:
    """The functions, put in their places for as long as anybody needs them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._places: list[tuple[Any, str, Any]] = []
        self._before: list[Any] = []
        function: Any
        for function, filling in calls.FILLS.items():
            name = getattr(function, "__name__", "")
            if calls.ASKING.get(name) is function or calls.HANDED_ON.get(name) is function:
                self.add(nn.init, name, _recording(function, filling))
        for name, filling in calls.CONSTANTS.items():
            self.add(nn.init, name, _recording(getattr(nn.init, name), filling))
        self.add(nn.init, _torch.FANS, _looking(getattr(nn.init, _torch.FANS)))

    def add(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Put a function in the place `name` of a module or class, from the next use on."""
        self._places.append((owner, name, function))

    def enter(self) -> None:
        """Put the functions in their places, unless somebody has done so."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [getattr(owner, name) for owner, name, _ in self._places]
                for owner, name, function in self._places:
                    setattr(owner, name, function)

    def leave(self) -> None:
        """Put back what was there, once nobody needs the functions."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for (owner, name, function), before in zip(self._places, self._before, strict=True):
                    if getattr(owner, name) is function:  # else somebody has put his own there since
                        setattr(owner, name, before)
