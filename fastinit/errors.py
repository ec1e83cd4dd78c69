"""Errors and warnings of the package. The error about a parameter carries the parameter's name."""

from __future__ import annotations

import inspect
import os
import warnings

# Errors call a tensor by this word if it was given alone. Its name is empty.
NAMELESS = "tensor"


class ParameterError(ValueError, TypeError):
    """A parameter (or tensor of a list) that cannot be planned or written.

    `name` is its canonical name, empty for a tensor that was given alone. `problem` says what was expected and what
    came. The error is a ValueError and a TypeError, because torch raises the one or the other in such cases.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)  # pickle passes these arguments again
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name or NAMELESS}: {self.problem}"


class UncoveredWarning(UserWarning):
    """Some parameters keep their values, because neither a rule nor a role covers them."""


class KeptWarning(UserWarning):
    """Some parameters keep their values, because they are frozen or loaded: a rule reaches them."""


class ZerosWarning(UserWarning):
    """Some linear maps were all zero, and are drawn now. Values cannot tell whether their author meant it."""


class ConstantWarning(UserWarning):
    """Some biases and scales held one value, and hold another now; or maps held one value or a pattern, and are drawn
    now. Values cannot tell whether their author meant it."""


class FanWarning(UserWarning):
    """Nobody chose a convention for fans, and by what the modules compute some parameters would have another std."""


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the line of the user's call to fastinit, from any depth within the package."""
    here = inspect.currentframe()
    frame, level = None if here is None else here.f_back, 2  # the caller of this function
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
