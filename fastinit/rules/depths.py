"""Which layer a parameter lies in, and of how many: what a number in its name counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class Depths:
    """The stacks of layers among parameters of these canonical names.

    A stack is what the first number of a name counts: "h.0.", "h.1.", ... `layers` says how long the stacks of the
    whole model are: all of them, or those of the prefixes given ("encoder.block."); a prefix also says which number of
    a name counts the layers. It must be given for parts of a model (`of_part`), whose names do not tell.
    """

    def __init__(
        self, names: Iterable[str], layers: int | Mapping[str, int] | None = None, *, of_part: bool = False
    ) -> None:
        self._names = names
        self._length = None if isinstance(layers, Mapping) else layers
        given = layers if isinstance(layers, Mapping) else {}
        self._lengths = {
            prefix if not prefix or prefix.endswith(".") else f"{prefix}.": given[prefix] for prefix in given
        }
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
        """Raise ValueError if a prefix of `layers` begins no name: it is misspelt, or the stack is elsewhere."""
        for prefix in self._lengths:
            if not self._of_part and prefix not in self._indices():
                raise ValueError(f"layers: expected a beginning of parameters' names before a number, got {prefix!r}")

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
                f"prefix of the stack, such as layers={{{name[: numbers[1].start(1)]!r}: ...}}"
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


def check_layers(layers: object) -> None:
    """Raise TypeError or ValueError unless `layers` is None, a positive int, or a mapping of prefixes to such."""
    for each in layers.values() if isinstance(layers, Mapping) else () if layers is None else (layers,):
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"layers: expected an int, a mapping of prefixes to ints, or None, got {layers!r}")
        if each < 1:
            raise ValueError(f"layers: expected layers >= 1, got {layers!r}")
