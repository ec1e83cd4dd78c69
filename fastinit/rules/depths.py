"""Which layer a parameter lies in, and how many layers there are. Both follow from the numbers in names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class Depths:
    """The stacks of layers among parameters of these canonical names.

    A stack is what the first number of a name counts: "h.0.", "h.1.", ...

    Args:
        names: canonical names that have the numbers of all layers in them. They are read once, if anything asks.
        layers: how long the stacks of the whole model are. An int stands for all of them; a mapping has a length for
            every prefix ("encoder.block."), and then the number after the longest prefix counts the layers.
        of_part: the model is a part of another, whose names do not tell the length. `layers` must.
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
        self._counted: dict[str, int] = {}  # how many layers stacks were found to have

    def _indices(self) -> dict[str, set[int]]:
        """The numbers after every beginning of a name that a number follows."""
        if self._found is None:  # looked at only if something asks
            self._found = {}
            for name in self._names:
                for number in _NUMBER.finditer(name):
                    self._found.setdefault(name[: number.start(1)], set()).add(int(number[1]))
        return self._found

    @property
    def stacks(self) -> dict[str, set[int]]:
        """The numbers of the layers of every stack, by what stands before them in the names ("encoder.block.")."""
        return {prefix: found for prefix, found in self._indices().items() if not _NUMBER.search(prefix)}

    def check_prefixes(self) -> None:
        """Raise ValueError if a prefix of `layers` begins no name. In a part of a model that is no mistake."""
        for prefix in () if self._of_part else self._lengths:
            if prefix not in self._indices():
                raise ValueError(
                    f"layers: expected what stands before a number in parameters' names, got {prefix!r}; found "
                    f"{', '.join(map(repr, self.stacks)) or 'no numbers'}"
                )

    def _place(self, name: str) -> tuple[str, int]:
        """(what stands before the layer's number, the number).

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
            ValueError: the name does not tell.
        """
        return self._place(name)[1]

    def layers(self, name: str) -> int:
        """How many layers the stack of a parameter has.

        Raises:
            ValueError: nobody said so, and the names do not tell: the model is a part of another, or its numbers are
                not 0, 1, 2, ...
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
    """Raise TypeError or ValueError unless `layers` is None, a positive int, or a mapping of prefixes to such."""
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
