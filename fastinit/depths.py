"""Which layer a parameter lies in, and of how many: what the first number in its name counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class Depths:
    """The stacks of layers among parameters of these canonical names.

    `layers` says how many layers the stacks have: all of them, or those of the prefixes given ("layers."). It must be
    given for parts of a model (`of_part`), whose names do not tell.
    """

    def __init__(
        self, names: Iterable[str], layers: int | Mapping[str, int] | None = None, *, of_part: bool = False
    ) -> None:
        self._names = names
        self._layers = layers
        self._of_part = of_part
        self._stacks: dict[str, set[int]] | None = None

    @property
    def stacks(self) -> dict[str, set[int]]:
        """The numbers of the layers of every stack, by what stands before them in the names ("encoder.block.")."""
        if self._stacks is None:  # looked at only if something asks
            self._stacks = {}
            for name in self._names:
                found = _LAYER.search(name)
                if found is not None:
                    self._stacks.setdefault(name[: found.start(1)], set()).add(int(found[1]))
        return self._stacks

    def of(self, name: str) -> tuple[int | None, int | None]:
        """(layer counted from zero, layers in its stack) of a parameter, or None twice.

        Raises:
            ValueError: nobody said how many layers a stack has of which the model may hold a part.
        """
        found = _LAYER.search(name)
        if found is None:
            return None, None
        prefix, layer = name[: found.start(1)], int(found[1])
        given = self._layers.get(prefix) if isinstance(self._layers, Mapping) else self._layers
        if given is not None:
            return layer, given
        if self._of_part:
            raise ValueError(
                f"{name}: with names=, the model is a part of another; pass layers=, how many layers {prefix}0, "
                f"{prefix}1, ... the whole has"
            )
        return layer, len(self.stacks.get(prefix, ())) or None


def check_layers(layers: object) -> None:
    """Raise TypeError or ValueError unless `layers` is None, a positive int, or a mapping of prefixes to such."""
    for each in layers.values() if isinstance(layers, Mapping) else () if layers is None else (layers,):
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"layers: expected an int, a mapping of prefixes to ints, or None, got {layers!r}")
        if each < 1:
            raise ValueError(f"layers: expected layers >= 1, got {layers!r}")
