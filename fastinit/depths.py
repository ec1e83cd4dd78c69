"""Which layer a parameter lies in, and of how many: what the first number in its name counts."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class Depths:
    """The stacks of layers among parameters of these canonical names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names
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
        """(layer counted from zero, layers in its stack) of a parameter, or None twice."""
        found = _LAYER.search(name)
        if found is None:
            return None, None
        return int(found[1]), len(self.stacks.get(name[: found.start(1)], ())) or None
