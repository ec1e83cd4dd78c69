"""What recorded calls put into memory, as a graph; and its replay.

A node tells the content of one storage at one time. Calls read views of nodes, and give new nodes. Nothing here knows a
module: a draw of random numbers gets its name from whoever owns the memory in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fastinit._torch import modes_off, new_storage, tree_leaves, tree_map
from fastinit.run.engine import Program
from fastinit.run.exact import exact_arithmetic
from fastinit.run.streams import derive_stream
from fastinit.run.targets import Target
from fastinit.schemes.distributions import Distribution


class Geometry(NamedTuple):
    """How a tensor lies in its storage."""

    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: torch.Tensor) -> Geometry:
        return Geometry(tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def view(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor that lies so in a storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.shape, self.strides)

    def meta(self) -> torch.Tensor:
        """A tensor without memory that lies so."""
        end = self.offset + 1 + sum((n - 1) * by for n, by in zip(self.shape, self.strides, strict=True))
        whole = torch.empty(max(end, 0), dtype=self.dtype, device="meta")
        return whole.as_strided(self.shape, self.strides, self.offset)


class Draw:
    """One draw of random numbers: `order` counts the draws of a recording. Its stream is known once it has a name.

    `seed` is set if the numbers were read before the recording ended: the draw must then give these numbers for ever.
    """

    __slots__ = ("model", "name", "order", "seed")

    def __init__(self, order: int) -> None:
        self.order = order
        self.name: str | None = None
        self.model: int | None = 0  # which of the models of a recording has the name; None: it is no model's
        self.seed: int | None = None


class Node:
    """The content of one storage at one time."""

    __slots__ = ("nbytes",)
    nbytes: int


@dataclass(eq=False, slots=True)
class Memory(Node):
    """What the storage held when the recording first met it. `matters` is false if all of it was overwritten."""

    nbytes: int
    matters: bool = True


@dataclass(eq=False, slots=True)
class Known(Node):
    """A copy of values that were there already."""

    nbytes: int
    storage: torch.UntypedStorage


@dataclass(eq=False, slots=True)
class Fill(Node):
    """A tensor over the whole storage, all of it written with one distribution."""

    nbytes: int
    at: Geometry
    distribution: Distribution
    draw: Draw


@dataclass(eq=False, slots=True)
class Output(Node):
    """The result number `which` of a call."""

    nbytes: int
    at: Geometry
    call: Call
    which: int


@dataclass(eq=False, slots=True)
class Changed(Node):
    """The content `before`, after a call has written to part or all of it."""

    nbytes: int
    before: Node
    call: Call


@dataclass(eq=False, slots=True)
class View:
    """A tensor that a call reads or writes: where it lies in a content."""

    node: Node
    at: Geometry


@dataclass(eq=False, slots=True)
class Call:
    """A recorded call. Its tensors are views. `target` is the one that it writes to, if any."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: View | None
    draw: Draw | None  # of a call that takes random numbers itself


def views_of(call: Call) -> list[View]:
    """All views among the arguments of a call."""
    return [each for each in tree_leaves((call.args, call.kwargs)) if isinstance(each, View)]


def chain_of(node: Node) -> tuple[Node, list[Call]]:
    """The content that a storage began with, and the calls that have written to it since, the first one first."""
    calls = []
    while isinstance(node, Changed):
        calls.append(node.call)
        node = node.before
    return node, calls[::-1]


def _calls_and_fills(node: Node) -> Iterator[Node | Call]:
    """Everything that a content depends on, each once."""
    seen: set[int] = set()
    left: list[Node | Call] = [node]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, Changed):
            left += [each.before, each.call]
        elif isinstance(each, Output):
            left.append(each.call)
        elif isinstance(each, Call):
            left += [view.node for view in views_of(each)]


def draws_of(node: Node) -> list[Draw]:
    """The draws that a content depends on, in the order in which they were made."""
    if isinstance(node, Fill):
        return [node.draw] if node.distribution.is_random() else []
    found: dict[int, Draw] = {}
    for each in _calls_and_fills(node):
        draw = None
        if isinstance(each, Call) or (isinstance(each, Fill) and each.distribution.is_random()):
            draw = each.draw
        if draw is not None:
            found[draw.order] = draw
    return [found[order] for order in sorted(found)]


def memory_of(node: Node) -> list[Memory]:
    """The contents from before the recording that a content depends on."""
    return [each for each in _calls_and_fills(node) if isinstance(each, Memory) and each.matters]


def is_written(node: Node, overwritten: Callable[[Call], Geometry | None]) -> bool:
    """Whether all of a content has been written to. `overwritten` tells which part of it a call writes anew."""
    base, calls = chain_of(node)
    if not isinstance(base, Memory):
        return True
    targets = [at for call in calls if (at := overwritten(call)) is not None]
    unit = min((at.dtype.itemsize for at in targets), default=1)
    left = torch.ones(node.nbytes // unit, dtype=torch.bool)
    for at in targets:
        times = at.dtype.itemsize // unit
        strides = (*(each * times for each in at.strides), 1)
        left.as_strided((*at.shape, times), strides, at.offset * times).zero_()
    return not bool(left.any())


class Replay:
    """Computes contents, on the CPU. `seed` is that of the model with the number `model`."""

    def __init__(self, seed: int, model: int = 0) -> None:
        self._seed = seed
        self._model = model
        self._contents: dict[Node, torch.UntypedStorage] = {}
        self._results: dict[int, tuple[Call, list[Any]]] = {}
        self._is_computing = False

    def stream(self, draw: Draw) -> tuple[int, str]:
        """(seed, name) of a draw."""
        assert draw.name is not None
        if draw.seed is not None:
            return draw.seed, draw.name
        if draw.model is None:
            return self._seed, draw.name
        return seed_of_model(self._seed, draw.model - self._model), draw.name

    def tensor(self, view: View) -> torch.Tensor:
        """The values of a view, in memory that must not be written to."""
        return view.at.view(self.content(view.node))

    def content(self, node: Node) -> torch.UntypedStorage:
        """A storage with a content. It must not be written to."""
        found = self._contents.get(node)
        if found is None:
            with self.computing():
                found = self._contents[node] = self._computed(node)
        return found

    @contextmanager
    def computing(self, devices: Iterable[torch.device] = ()) -> Iterator[None]:
        """Nobody records or moves what is computed inside, and no ambient mode changes it on the CPU and `devices`."""
        if self._is_computing:
            yield
            return
        self._is_computing = True
        try:
            with modes_off(), exact_arithmetic(devices):
                yield
        finally:
            self._is_computing = False

    def _computed(self, node: Node) -> torch.UntypedStorage:
        if isinstance(node, Known):
            return node.storage
        if isinstance(node, Memory):
            return _zeros(node.nbytes)  # nobody has said what it holds
        if isinstance(node, Output):
            result: torch.Tensor = self._results_of(node.call)[node.which]
            if Geometry.of(result) == node.at and result.untyped_storage().nbytes() == node.nbytes:
                return result.detach().cpu().untyped_storage()
            storage = new_storage(node.nbytes)
            node.at.view(storage).copy_(result)
            return storage
        # The base and all calls since, in one piece of memory.
        base, calls = chain_of(node)
        storage = new_storage(node.nbytes)
        if isinstance(base, Fill):
            self.fill([(base, base.at.view(storage))])
        else:
            bytes_of(storage).copy_(bytes_of(self.content(base)))
        self.run(calls, storage)
        return storage

    def fill(self, fills: list[tuple[Fill, torch.Tensor]]) -> None:
        """Write distributions to tensors, in one pass for each seed."""
        of_seed: dict[int, list[Target]] = {}
        for fill, tensor in fills:
            seed, name = self.stream(fill.draw) if fill.distribution.is_random() else (0, "")
            target = Target(name, tensor, tensor.shape, tensor.dtype, tensor.device, fill.distribution)
            of_seed.setdefault(seed, []).append(target)
        for seed, targets in of_seed.items():
            Program(targets, "auto").run_(seed, None)

    def run(self, calls: list[Call], storage: torch.UntypedStorage) -> None:
        """Run calls that write to a storage, in it."""
        for call in calls:
            self._run(call, storage)

    def _results_of(self, call: Call) -> list[Any]:
        if id(call) not in self._results:
            self._results[id(call)] = call, tree_leaves(self._run(call, None))
        return self._results[id(call)][1]

    def _run(self, call: Call, storage: torch.UntypedStorage | None) -> Any:
        def argument(each: Any) -> Any:
            if not isinstance(each, View):
                return each
            if each is call.target and storage is not None:
                return each.at.view(storage)
            values = self.tensor(each)
            return values if storage is None else values.to(storage.device)

        args, kwargs = tree_map(argument, (call.args, call.kwargs))
        if call.draw is None:
            return call.function(*args, **kwargs)
        return numbers_of(self.stream(call.draw), call.function, *args, **kwargs)


def numbers_of(stream: tuple[int, str], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that draws from torch's generator, with the numbers of a stream (seed, name)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_stream(*stream).key)
        return function(*args, **kwargs)


def seed_of_model(seed: int, model: int) -> int:
    """The seed of the models that one recording makes: the first has the given one, every other one its own."""
    return seed if model == 0 else derive_stream(seed, f"model {model}").key


def _zeros(nbytes: int) -> torch.UntypedStorage:
    storage = new_storage(nbytes)
    bytes_of(storage).zero_()
    return storage


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """A tensor of all bytes of a storage."""
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, 0, (storage.nbytes(),), (1,))
