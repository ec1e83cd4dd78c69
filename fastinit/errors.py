"""How the package says what is wrong: the error for one parameter, which carries its name, and warnings."""

from __future__ import annotations

import inspect
import os
import warnings

# What errors call a tensor that was given alone, whose name is empty.
NAMELESS = "tensor"


class ParameterError(ValueError, TypeError):
    """A parameter (or tensor of a list) that cannot be planned or written.

    `name` is its canonical name, empty for a tensor that was given alone; `problem` says what was expected and what
    came. It is a ValueError and a TypeError, since torch raises either where we refuse.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)  # the arguments that pickle hands back
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name or NAMELESS}: {self.problem}"


class UncoveredWarning(UserWarning):
    """Parameters keep the values that they have, for no rule and no role says what they should be."""


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called fastinit, however deep in the package this is called."""
    here = inspect.currentframe()
    frame, level = None if here is None else here.f_back, 2  # the caller of this function
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
