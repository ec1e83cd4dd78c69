"""The layer of a parameter, and the number of layers in its stack. Both follow from the numbers in names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class Depths:
    """The stacks of layers among parameters with these canonical names.

    The first number of a name counts the layers of a stack: "h.0.", "h.1.", ...

    Args:
        names: canonical names that contain the numbers of all layers. They are read at the first question, and once.
        layers: the lengths of the stacks in the whole model. An int holds for all stacks. A mapping has a length for
            every prefix ("encoder.block."); the number after the longest prefix then counts the layers.
        of_part: whether the model is a part of a larger one. Its names then do not tell a stack's length, and `layers`
            must.
    """

    def __init__(
        self, names: Iterable[str], layers: int | Mapping[str, int] | None = None, *, of_part: bool = False
    ) -> None:
        self._names = names
        self._length = None if isinstance(layers, Mapping) else layers
        given = layers if isinstance(layers, Mapping) else {}
        self._lengths = {_dotted(prefix): length for prefix, length in given.items()}
        self._of_part = of_part
        self._found: dict[str, set[int]] | None = None
        self._counted: dict[str, int] = {}  # prefix -> number of layers found

    def _indices(self) -> dict[str, set[int]]:
        """prefix -> the numbers that follow it, for every prefix of a name that ends before a number."""
        if self._found is None:  # most plans never ask
            self._found = {}
            for name in self._names:
                for number in _NUMBER.finditer(name):
                    self._found.setdefault(name[: number.start(1)], set()).add(int(number[1]))
        return self._found

    @property
    def stacks(self) -> dict[str, set[int]]:
        """prefix -> the numbers of the stack's layers. The prefix stands before the number: "encoder.block."."""
        return {prefix: found for prefix, found in self._indices().items() if not _NUMBER.search(prefix)}

    def check_prefixes(self) -> None:
        """Raise ValueError if a prefix of `layers` begins no name. A part of a model may lack some prefixes."""
        for prefix in () if self._of_part else self._lengths:
            if prefix not in self._indices():
                raise ValueError(
                    f"layers: expected what stands before a number in parameters' names, got {prefix!r}; found "
                    f"{', '.join(map(repr, self.stacks)) or 'no numbers'}"
                )

    def _place(self, name: str) -> tuple[str, int]:
        """(the prefix before the layer's number, the number).

        Raises:
            ValueError: the name has no number, or two that may count layers.
        """
        numbers = list(_NUMBER.finditer(name))
        for number in reversed(numbers):
            if name[: number.start(1)] in self._lengths:
                return name[: number.start(1)], int(number[1])
        if not numbers:
            raise ValueError("expected a parameter in a stack of layers, whose name has its number; got none")
        first = numbers[0]
        if len(numbers) > 1 and numbers[1].start() == first.end():
            raise ValueError(
                f"expected one number that counts layers, got {first[1]} and {numbers[1][1]}; pass layers= with the "
                f"prefix of the stack, such as layers={{{name[: first.start(1)]!r}: ...}}"
            )
        return name[: first.start(1)], int(first[1])

    def layer(self, name: str) -> int:
        """The layer of a parameter, counted from zero.

        Raises:
            ValueError: the name does not tell the layer.
        """
        return self._place(name)[1]

    def layers(self, name: str) -> int:
        """The number of layers in the stack of a parameter.

        Raises:
            ValueError: `layers` does not give the number, and the names do not tell it: the model is a part of a
                larger one, or its numbers are not 0, 1, 2, ...
        """
        if self._length is not None and _NUMBER.search(name):
            return self._length
        prefix, _ = self._place(name)
        if prefix in self._lengths:
            return self._lengths[prefix]
        if prefix in self._counted:
            return self._counted[prefix]
        if self._of_part:
            raise ValueError(
                f"with names=, the model is a part of another; pass layers=, how many layers {prefix}0, {prefix}1, ... "
                "the whole has"
            )
        found = self._indices().get(prefix, set())
        if found != set(range(len(found))):
            shown = ", ".join(map(str, sorted(found)[:4])) + (", ..." if len(found) > 4 else "")
            raise ValueError(
                f"expected layers {prefix}0, {prefix}1, ..., found the numbers {shown}; pass layers=, how many layers "
                "the whole has"
            )
        self._counted[prefix] = len(found)
        return len(found)


def _dotted(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def check_layers(layers: object) -> None:
    """Raise TypeError or ValueError unless `layers` is None, a positive int, or a mapping of prefixes to such ints."""
    if isinstance(layers, Mapping):
        if not all(isinstance(prefix, str) for prefix in layers):
            raise TypeError(f"layers: expected a mapping of prefixes to ints, got {layers!r}")
        if len(set(map(_dotted, layers))) < len(layers):
            raise ValueError(f"layers: expected every prefix once, with a dot at its end or without, got {layers!r}")
    for each in layers.values() if isinstance(layers, Mapping) else () if layers is None else (layers,):
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"layers: expected an int, a mapping of prefixes to ints, or None, got {layers!r}")
        if each < 1:
            raise ValueError(f"layers: expected layers >= 1, got {layers!r}")
