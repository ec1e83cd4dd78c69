"""The records: what has been asked for of each storage and is not written yet, and how it becomes values.

recorder.py decides what is recorded. Whoever holds a recorder asks here what it knows, or has it written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastinit import _torch
from fastinit.capture.graph import (
    Call,
    Draw,
    Fill,
    Geometry,
    Known,
    Memory,
    Node,
    Replay,
    View,
    bytes_of,
    chain_of,
    draws_of,
    memory_of,
)
from fastinit.capture.tensors import TENSORS, is_whole, wraps
from fastinit.errors import ParameterError

_FEW = 4096  # so many records may be of storages that are gone


class Stored:
    """What is recorded of one storage: a reference that does not keep it, and its content."""

    __slots__ = ("content", "has_memory", "meta_on_request", "reference")

    def __init__(self, reference: Any, content: Node, has_memory: bool) -> None:
        self.reference = reference
        self.content = content
        self.has_memory = has_memory  # or it is on meta
        self.meta_on_request = False  # or it is there because we put it there


class Records:
    """What is recorded of each storage.

    Args:
        seed: of numbers that somebody reads before the recording ends.
        on_meta: whether new tensors are put on the meta device.
    """

    def __init__(self, seed: int, *, on_meta: bool) -> None:
        super().__init__()
        self.seed = seed
        self.on_meta = on_meta
        self._stored: dict[int, Stored] = {}
        self._full = _FEW
        self._draws = 0
        self.has_shown = False  # whether somebody has seen random numbers

    # ---- what is known ----

    def stored(self, tensor: Tensor) -> Stored | None:
        """What is recorded of a tensor's storage."""
        if not self._stored or (type(tensor) not in TENSORS and wraps(tensor)) or tensor.layout is not torch.strided:
            return None
        if _torch.in_transform(tensor):
            return None
        return self._stored.get(_torch.storage_key(tensor))

    def alive(self) -> Iterator[Stored]:
        """Everything recorded of storages that still exist."""
        return (each for each in self._stored.values() if not each.reference.expired())

    def view(self, tensor: Tensor) -> View | None:
        """The recorded content of a tensor."""
        stored = self.stored(tensor)
        return None if stored is None else View(stored.content, Geometry.of(tensor))

    def _whole_fill(self, tensor: Any) -> Fill | None:
        """The distribution over all of a tensor's storage, if the tensor is all of it."""
        stored = self.stored(tensor) if isinstance(tensor, Tensor) else None
        if stored is None or not isinstance(stored.content, Fill) or tensor.dtype != stored.content.at.dtype:
            return None
        fill = stored.content
        alike = fill.at.shape == tensor.shape and fill.at.strides == tensor.stride()
        return (
            fill
            if alike or (fill.distribution.same_everywhere and is_whole(tensor) and tensor.is_contiguous())
            else None
        )

    def _rests_on_memory(self, tensor: Tensor) -> bool:
        """Whether a recorded content needs values from before: those that a recording with memory has written there."""
        stored = self.stored(tensor)
        if stored is None or not self.on_meta:
            return stored is not None and bool(memory_of(stored.content))
        base, steps = chain_of(stored.content)
        is_blank = isinstance(base, Memory) and not base.matters
        return bool(steps) and not is_blank and all(draw.name is not None for draw in draws_of(base))

    # ---- what is noted down ----

    def watch(self, tensor: Tensor) -> None:
        """Record what happens to a tensor from now on."""
        if not wraps(tensor) and tensor.layout is torch.strided:
            self._store(tensor, self._memory_of(tensor))

    def forget(self, stored: Stored) -> None:
        key = stored.reference.cdata
        if self._stored.get(key) is stored:
            del self._stored[key]

    def forget_tensor(self, tensor: Tensor) -> None:
        """As if nobody had written to a tensor that is watched."""
        with _torch.modes_off():  # the recording goes on
            if self.stored(tensor) is not None:
                self._store(tensor, self._memory_of(tensor))

    def move_to_meta(self, tensor: Tensor) -> None:
        """Put a recorded tensor with memory on the meta device, as the same object. What it is to hold stays known."""
        stored = self.stored(tensor)
        assert stored is not None
        content = stored.content
        if memory_of(content):
            self.settle([tensor])
            storage = tensor.detach().cpu().untyped_storage()
            content = Known(storage.nbytes(), storage)
        self.forget(stored)
        twin = _torch.typed_like(tensor, torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype,
                                                             device="meta"))  # fmt: skip
        twin.__dict__.update(tensor.__dict__)
        torch.utils.swap_tensors(tensor, twin)  # type: ignore[no-untyped-call]
        self._store(tensor, content)

    def _draw(self) -> Draw:
        self._draws += 1
        return Draw(self._draws)

    def _memory_of(self, tensor: Tensor) -> Memory:
        return Memory(tensor.untyped_storage().nbytes())

    def _store(self, tensor: Tensor, content: Node) -> None:
        stored = self._stored.get(_torch.storage_key(tensor))
        if stored is not None:
            stored.content = content
            return
        reference = _torch.storage_reference(tensor.untyped_storage())
        self._stored[reference.cdata] = Stored(reference, content, not tensor.is_meta)
        if len(self._stored) > self._full:  # what is gone keeps the contents that it was made of
            self._stored = {key: each for key, each in self._stored.items() if not each.reference.expired()}
            self._full = 2 * len(self._stored) + _FEW

    # ---- what is written ----

    def write(self, wanted: Iterable[tuple[Stored, Tensor | None, str]], replay: Replay) -> None:
        """Give storages their contents. Each has a tensor in it, which stands for it if it has as many elements, and
        the tensor's name; neither is known of tensors that no module has.

        Raises:
            ParameterError: a storage was freed or made smaller. Nothing is written then.
        """
        fills: list[tuple[Fill, Tensor]] = []
        later: list[tuple[torch.UntypedStorage, Node, list[Call]]] = []
        done: list[Stored] = []
        for stored, tensor, name in wanted:
            storage = _torch.storage_of(stored.reference)
            if storage.nbytes() < stored.content.nbytes:
                raise ParameterError(name, "its memory was freed or made smaller before it was initialised")
            base, chain = chain_of(stored.content)
            if isinstance(base, Fill):
                alike = base.distribution.same_everywhere and tensor is not None
                if alike and tensor is not None and tensor.numel() == base.at.shape.numel():
                    fills.append((base, tensor.detach()))
                else:
                    fills.append((base, base.at.view(storage)))
                if not chain:
                    done.append(stored)
                    continue
            done.append(stored)
            later.append((storage, base, chain))
        with replay.computing({storage.device for storage, _, _ in later}):
            replay.fill(fills)
            for storage, base, chain in later:
                if not isinstance(base, (Fill, Memory)):
                    bytes_of(storage).copy_(bytes_of(replay.content(base)))
                replay.run(chain, storage)
        for stored in done:
            self.forget(stored)

    def _pin(self, tensors: Iterable[Tensor], *, seen: bool = True) -> None:
        for tensor in tensors:
            stored = self.stored(tensor)
            if stored is not None:
                self.pin(stored, seen=seen)

    def pin(self, stored: Stored, *, seen: bool = True) -> None:
        """Name draws that have no name yet after their order. `seen`: somebody is about to see their numbers, which
        must then stay what they are under any later seed."""
        for draw in draws_of(stored.content):
            self._name(draw, seen=seen)

    def _name(self, draw: Draw, *, seen: bool = True) -> None:
        if draw.name is None:
            draw.name, draw.model = f"call {draw.order}", None
        if seen and draw.model is None:
            draw.seed = self.seed
            self.has_shown = True

    def values(self, tensors: Iterable[Tensor]) -> dict[int, Tensor]:
        """The values of recorded tensors on meta, by their ids, in memory of their own: shared where theirs is."""
        tensors = list(tensors)
        self._pin(tensors)
        found: dict[int, Tensor] = {}
        copies: dict[int, Tensor] = {}  # for each content its bytes
        replay = self.replay(self.seed)
        with replay.computing():
            for tensor in tensors:
                view = self.view(tensor)
                assert view is not None
                if id(view.node) not in copies:
                    copies[id(view.node)] = bytes_of(replay.content(view.node)).clone()
                found[id(tensor)] = view.at.view(copies[id(view.node)].untyped_storage())
        return found

    def settle(self, tensors: Iterable[Tensor]) -> None:
        """Write what is recorded of tensors with memory, since somebody is about to read them."""
        tensors = list(tensors)
        stored = {id(each): each for tensor in tensors if (each := self.stored(tensor)) is not None}
        self._pin(tensors)
        if stored:
            self.write([(each, None, "") for each in stored.values()], self.replay(self.seed))

    def settle_all(self) -> None:
        """Write everything that is recorded."""
        pending = [each for each in self.alive() if each.has_memory]
        for stored in pending:
            self.pin(stored)
        self.write([(stored, None, "") for stored in pending], self.replay(self.seed))

    def replay(self, seed: int) -> Replay:
        return Replay(seed)
