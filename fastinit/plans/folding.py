"""Lines that differ in a number of their names alone, as one line: `h.{0..47}.attn.weight`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def folded(lines: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """`fold`, with the cells of each fold.

    >>> folded([("h.0.w", ""), ("h.0.b", ""), ("h.1.w", ""), ("h.1.b", ""), ("h.2.w", "")])
    [('h.{0..2}.w', ''), ('h.{0,1}.b', '')]
    """
    return [(name, lines[members[0]][1]) for name, members in fold(lines)]


def fold(lines: Sequence[tuple[str, Any]]) -> list[tuple[str, list[int]]]:
    """Lines with equal cells, folded into one if their names differ in one number: `h.{0..47}.attn.weight`.

    Each fold comes with the positions of its lines. The last number of a name is folded first. Experts are thus folded
    within their layer, and then layers with equal experts are folded.

    >>> fold([("h.0.w", ""), ("h.0.b", ""), ("h.1.w", "")])
    [('h.{0,1}.w', [0, 2]), ('h.0.b', [1])]
    """
    # An item is a name's text between numbers, its numbers as text, its cells, and the positions of its lines.
    items = [(tuple(_NUMBER.split(name)), _NUMBER.findall(name), cells, [at]) for at, (name, cells) in enumerate(lines)]
    for position in reversed(range(max((len(numbers) for _, numbers, _, _ in items), default=0))):
        groups: dict[Any, tuple[Any, list[str], Any, list[int], list[int]]] = {}
        for text, numbers, cells, members in items:
            if position >= len(numbers):
                groups[len(groups), text] = (text, numbers, cells, [], members)
                continue
            key = (text, *numbers[:position], None, *numbers[position + 1 :], cells)
            group = groups.setdefault(key, (text, numbers, cells, [], []))
            group[3].append(int(numbers[position]))
            group[4].extend(members)
        items = []
        for text, numbers, cells, found, members in groups.values():
            if found:
                numbers = [*numbers[:position], _numbers(found), *numbers[position + 1 :]]
            items.append((text, numbers, cells, members))
    return [
        ("".join(map("".join, zip(text, [*numbers, ""], strict=True))), members) for text, numbers, _, members in items
    ]


def _numbers(found: Sequence[int]) -> str:
    """
    >>> _numbers([0, 1, 2, 5])
    '{0..2,5}'
    """
    if len(found) == 1:
        return str(found[0])
    runs: list[list[int]] = []
    for number in found:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = (f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return "{" + ",".join(shown) + "}"
