"""The error for a parameter that cannot be planned or written. It carries the parameter's name."""

from __future__ import annotations

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
