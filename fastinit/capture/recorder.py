"""The recorder: a mode under which torch's functions are noted down instead of run.

On the meta device every call is recorded. On tensors with memory, only random writes and what depends on them are
recorded. Everything else runs as usual. What is recorded lies in records.py. Names, modules and seeds are the business
of those who use the recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastinit import _torch
from fastinit._torch import tree_leaves, tree_map
from fastinit.capture import calls, casts
from fastinit.capture.calls import Filling
from fastinit.capture.graph import (
    Call,
    Changed,
    Draw,
    Fill,
    Geometry,
    Known,
    Memory,
    Node,
    Output,
    View,
    numbers_of,
)
from fastinit.capture.records import Records
from fastinit.capture.tensors import is_packed, is_plain, is_whole, overlaps, tensors_in, versions_of, wraps
from fastinit.schemes.distributions import Distribution

_MOST_COPIED = 2**26  # bytes of a tensor that a call reads later: until then, a copy of it is kept


class Recorder(Records, TorchFunctionMode):
    """Records what is asked for while it is active, in the thread that entered it.

    Args:
        seed: of numbers that somebody reads before the recording ends.
        on_meta: whether new tensors are put on the meta device. Every call is then recorded.
        around: the recorders inside of which this one works. What they have recorded stays theirs, and inside one that
            works on meta, this one leaves everything to it.
    """

    def __init__(self, seed: int, *, on_meta: bool, around: Iterable[Recorder] = ()) -> None:
        super().__init__(seed, on_meta=on_meta)
        self._around = tuple(around)
        self.is_alone = not self._around
        self.is_idle = any(each.on_meta for each in self._around)
        default = torch.get_default_device()
        self._device = torch.device("cpu") if default.type == "meta" else default
        self._plain = calls.PLAIN if on_meta else calls.PLAIN | calls.QUIET_FACTORIES

    # ---- the mode ----

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_meta and function in calls.PLACES:
            # Code that finds itself on meta leaves its initialisation out. It is to run as it does without us.
            stored = self.stored(args[0])
            if stored is not None and not stored.meta_on_request:
                place = function.__self__.__name__
                return self._device if place == "device" else place == f"is_{self._device.type}"
        if function in self._plain and "out" not in kwargs:
            return function(*args, **kwargs)
        if not args and "tensor" in kwargs:  # as torch.nn.init hands its calls on
            kwargs = dict(kwargs)
            args = (kwargs.pop("tensor"),)
            # It looks its own function up by name, where somebody may have put another.
            function = calls.HANDED_ON.get(getattr(function, "__name__", ""), function)
        if self._around and function not in calls.VIEWS and self._is_theirs(function, args, kwargs):
            leaves = tensors_in(args, kwargs)
            return self._read(function, args, kwargs, [each for each in leaves if self.stored(each) is not None])
        filling = calls.FILLS.get(function)
        if filling is not None and self.fill(filling, args, kwargs):
            return args[0]
        if function in calls.FACTORIES or function in calls.LIKE:
            made = self._made(function, args, kwargs)
            if self.on_meta and _is_meta(kwargs.get("device")) and (stored := self.stored(made)) is not None:
                stored.meta_on_request = True
            return made
        if function in calls.RANDOM_IN_PLACE and kwargs.get("generator") is None and self._can_wait(args[0]):
            return self._recorded(function, args, kwargs, [args[0]])
        if function in calls.RANDOM and kwargs.get("generator") is None:
            return self._drawing(function, args, kwargs)
        if not self._stored or function in calls.VIEWS:
            return function(*args, **kwargs)
        return self._called(function, args, kwargs)

    def _is_theirs(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is about what a recorder around this one has recorded."""
        if self.on_meta:  # it copies what it reads
            target = _target(function, args, kwargs)
            concerned = [target] if isinstance(target, Tensor) else []
        else:
            concerned = tensors_in(args, kwargs)
        return any(each.stored(tensor) is not None for each in self._around for tensor in concerned)

    def _drawing(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that draws random numbers in a way of its own."""
        leaves = tensors_in(args, kwargs)
        concerned = [each for each in leaves if self.stored(each) is not None]
        if any(map(wraps, leaves)) or any(each.layout is not torch.strided for each in leaves):
            return self._read(function, args, kwargs, concerned) if concerned else function(*args, **kwargs)
        if torch.is_grad_enabled() and any(each.requires_grad for each in leaves):
            if not self.on_meta:
                return self._read(function, args, kwargs, concerned)
            self._pin(concerned, seen=False)
        return self._recorded(function, args, kwargs, concerned)

    def fill(self, filling: Filling, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Record that all of a tensor is written with one distribution. False: this must be done in another way."""
        tensor = args[0]
        if (
            kwargs.get("generator") is not None
            or not is_plain(tensor)
            or tensor.dtype not in calls.SAMPLED_DTYPES
            or (tensor.is_meta and not self.on_meta)
            or (filling.under_grad and tensor.requires_grad and torch.is_grad_enabled())
            or tensor.numel() == 0
            or overlaps(tensor)
            or (self._around and any(each.stored(tensor) is not None for each in self._around))
        ):
            return False
        if "generator" in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
        try:
            distribution = filling.distribution(tensor, *args[1:], **kwargs)
            if tensor.is_complex() and distribution.of_parts() is None:
                return False
            if not distribution.same_everywhere:
                distribution.check(tensor.shape)
        except Exception:
            return False
        if not tensor.is_meta and not distribution.is_random() and (self.stored(tensor) is None or is_whole(tensor)):
            return False  # written as usual: nothing is saved by waiting
        self.put(tensor, distribution)
        return True

    def _can_wait(self, tensor: Tensor) -> bool:
        """Whether random numbers of another kind can be written to a tensor later."""
        is_ours = is_plain(tensor) and (self.on_meta or not tensor.is_meta)
        return is_ours and not (tensor.requires_grad and torch.is_grad_enabled())

    def put(self, tensor: Tensor, distribution: Distribution, stream: tuple[int, str] | None = None) -> None:
        """Record that all of a tensor is written with a distribution, with the numbers of a stream (seed, name)."""
        at = Geometry.of(tensor)
        draw = self._draw() if distribution.is_random() else Draw(-1)
        if stream is not None:
            draw.seed, draw.name = stream
        nbytes = tensor.untyped_storage().nbytes()
        is_contiguous = tensor.is_contiguous()
        if (is_contiguous and tensor.nbytes == nbytes) or (distribution.same_everywhere and is_whole(tensor)):
            self._store(tensor, Fill(nbytes, at, distribution, draw))
            return
        stored = self.stored(tensor)
        shape = tensor.shape
        packed = Geometry(at.dtype, shape, torch.empty(shape, device="meta").stride(), 0)
        fill = Fill(shape.numel() * at.dtype.itemsize, packed, distribution, draw)
        before = self._memory_of(tensor) if stored is None else stored.content
        target = View(before, at)
        call = Call(Tensor.copy_, (target, View(fill, packed)), {}, target, None)
        self._store(tensor, Changed(before.nbytes, before, call))

    # ---- new tensors ----

    def _made(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        drawn = calls.DRAWING.get(function)
        if not self.on_meta:
            if function in calls.RANDOM and kwargs.get("generator") is None:
                return self._drawn(drawn, function, args, kwargs)
            if kwargs.get("out") is not None:
                return self._called(function, args, kwargs)
            return function(*args, **kwargs)
        if kwargs.get("out") is not None or kwargs.get("generator") is not None:
            return self._called(function, args, {**kwargs, "device": "meta"})
        if function in calls.COPIES_OF_DATA:
            concerned = [each for each in tensors_in(args, kwargs) if self.stored(each) is not None]
            if concerned:
                return self._read(function, args, kwargs, concerned)
            return self._copy_of_data(function, args, kwargs)
        kwargs = {**kwargs, "device": "meta"}
        constant = calls.CONSTANT.get(function)
        if function in (torch.empty, torch.empty_like, Tensor.new_empty, torch.empty_strided, torch.empty_permuted):
            made = function(*args, **kwargs)
            self._store(made, Memory(made.untyped_storage().nbytes()))
            return made
        if drawn is not None or constant is not None:
            made = calls.LIKE.get(function, torch.empty)(*args, **kwargs)
            if made.numel() == 0:
                self._store(made, self._memory_of(made))
                return made
            if made.dtype in calls.SAMPLED_DTYPES:
                self.put(made.detach(), drawn or constant)  # type: ignore[arg-type]
                return made
        return self._recorded(function, args, kwargs)

    def _drawn(
        self, distribution: Distribution | None, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A new tensor of random numbers, with memory."""
        if distribution is not None and kwargs.get("out") is None:
            made: Tensor = calls.LIKE.get(function, torch.empty)(*args, **kwargs)
            if made.is_meta or made.numel() == 0:
                return made
            if made.dtype in calls.SAMPLED_DTYPES and made.layout is torch.strided and not wraps(made):
                self.put(made.detach(), distribution)
                return made
        return self._drawing(function, args, kwargs)

    def _copy_of_data(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = function(*args, **{**kwargs, "device": "cpu", "requires_grad": False} if function is torch.tensor
            else {**kwargs, "device": "cpu"})  # fmt: skip
        if known.is_meta:
            return known
        return self._known(known).requires_grad_(bool(kwargs.get("requires_grad", False)))

    def _known(self, tensor: Tensor) -> Tensor:
        """A tensor on meta that has the values of one with memory."""
        copy = tensor.detach().cpu().clone()
        twin = torch.empty_strided(copy.shape, copy.stride(), dtype=copy.dtype, device="meta")
        self._store(twin, Known(copy.untyped_storage().nbytes(), copy.untyped_storage()))
        return twin

    # ---- calls ----

    def _called(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that may concern recorded tensors."""
        step = calls.STEPS.get(function)
        if step is not None and self._is_free(args):  # first, since truncated draws take four of them
            stepped = self._step(step, function, args, kwargs)
            if stepped is not None:
                return stepped
        leaves = tensors_in(args, kwargs)
        concerned = [each for each in leaves if self.stored(each) is not None]
        if not concerned:
            return function(*args, **kwargs)
        if function is Tensor.__getitem__ and calls.is_basic(args[1]):
            return function(*args, **kwargs)
        if function is Tensor.__deepcopy__ and not wraps(args[0]):
            return self._deep_copy(args[0], args[1])
        if function in calls.LIKE:  # it asks for the shape alone
            return function(*args, **kwargs)
        if function in calls.READS or any(map(wraps, leaves)):
            return self._read(function, args, kwargs, concerned)
        if torch.is_grad_enabled() and any(each.requires_grad for each in leaves):
            if not self.on_meta:
                return self._read(function, args, kwargs, concerned)
            self._pin(concerned, seen=False)  # `fused` has to write them here; the numbers shall be the same
        if kwargs.get("generator") is not None:
            return self._read(function, args, kwargs, concerned)
        if function in calls.CASTS:
            found = self._cast(function, args, kwargs)
            if found is not None:
                return found
        if function is Tensor.contiguous and is_packed(args[0], *args[1:], **kwargs):
            return args[0]
        if function in calls.CLONES and (copied := self._clone(args[0])) is not None:
            return copied
        if step is not None and (stepped := self._step(step, function, args, kwargs)) is not None:
            return stepped
        if function in calls.OVERWRITES and function not in calls.RANDOM and self._is_plain_write(args, kwargs):
            stored = self.stored(args[0])
            copied = function(*args, **kwargs)  # or it raises, and what was there stays
            if stored is not None:
                self.forget(stored)
            return copied
        if self.on_meta and function is Tensor.zero_ and self._is_whole_write(args[0]):
            zeroed = function(*args)  # the counters of normalisations: to find out what a call does takes long
            self._write_recorded(function, args, kwargs, zeroed, self.view, None)
            return zeroed
        return self._recorded(function, args, kwargs, concerned)

    def _is_free(self, args: tuple[Any, ...]) -> bool:
        """Whether the first argument is a tensor of which no gradients are asked."""
        target = args[0] if args else None
        return isinstance(target, Tensor) and not (target.requires_grad and torch.is_grad_enabled())

    def _is_whole_write(self, tensor: Tensor) -> bool:
        """Whether a constant that is written to a tensor is all that its memory holds then, and nothing refuses it."""
        return is_plain(tensor) and is_whole(tensor) and not tensor.requires_grad

    def _is_plain_write(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether all of a tensor with memory is overwritten with what is there: nothing is saved by waiting."""
        others = tensors_in(args[1:], kwargs)
        return not self.on_meta and is_whole(args[0]) and all(self.stored(each) is None for each in others)

    def _step(
        self, step: Callable[..., Distribution | None], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        fill = self._whole_fill(args[0])
        others = (*args[1:], *kwargs.values())
        if fill is None or not all(isinstance(each, (int, float)) or each is None for each in others):
            return None
        if (
            not fill.distribution.is_random() or fill.at.dtype.is_complex
        ):  # a number may be added to the real part alone
            return None
        try:
            distribution = step(fill.distribution, *args[1:], **kwargs)
        except (ValueError, TypeError, ArithmeticError):
            return None
        if distribution is None:
            return None
        changed = Fill(fill.nbytes, fill.at, distribution, fill.draw)
        if calls.writes_in_place(function):
            self._store(args[0], changed)
            tensor: Tensor = args[0]
            return tensor
        return self._new(Geometry.of(args[0]), changed, args[0])

    def _new(self, at: Geometry, content: Node, like: Tensor) -> Tensor:
        made = torch.empty_strided(at.shape, at.strides, dtype=at.dtype, device=like.device)
        self._store(made, content)
        return made

    def _clone(self, tensor: Tensor) -> Tensor | None:
        fill = self._whole_fill(tensor)
        if fill is None or tensor.requires_grad:
            return None
        return self._new(fill.at if fill.at.shape == tensor.shape else Geometry.of(tensor), fill, tensor)

    def _cast(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`to` and its kin: a distribution in another dtype stays one, since values are rounded once."""
        tensor = args[0]
        if not isinstance(tensor, Tensor) or any(isinstance(each, Tensor) for each in (*args[1:], *kwargs.values())):
            return None
        where = casts.device_of(function, args, kwargs, tensor)
        if function in (Tensor.cpu, Tensor.cuda):
            if self.on_meta:
                return tensor  # nothing leaves the meta device before it is materialised
            return self._moved(tensor, where, {}) if where != tensor.device else None
        if function is Tensor.to:
            given = casts.options_of_to(args, kwargs)
            if self.on_meta and not given:
                return tensor
            twin = Geometry.of(tensor).meta().to(**given)
            if self.on_meta:
                args, kwargs = (tensor,), given
            elif where != tensor.device:
                return self._moved(tensor, where, given)
        else:
            twin = function(Geometry.of(tensor).meta(), *args[1:], **kwargs)
            if not isinstance(twin, Tensor):  # the name of its type
                return twin
        fill = self._whole_fill(tensor)
        if (
            fill is None
            or tensor.requires_grad
            or twin.untyped_storage().nbytes() == 0
            or not casts.is_rounded_once(fill.at.dtype, twin.dtype)
            or fill.at.shape != tensor.shape
        ):
            if self.on_meta:
                return self._recorded(function, args, kwargs, [tensor])
            return None
        at = Geometry.of(twin)
        made = torch.empty_strided(at.shape, at.strides, dtype=at.dtype, device=where)
        self._store(made, Fill(made.untyped_storage().nbytes(), at, fill.distribution, fill.draw))
        return made

    def _moved(self, tensor: Tensor, where: torch.device, options: dict[str, Any]) -> Tensor | None:
        """A tensor on another device, to which its values are written there: what is not written is not copied."""
        if where.type == "meta" or self.stored(tensor) is None or self._rests_on_memory(tensor):
            return None
        options = {**options, "copy": True}
        at = Geometry.of(Geometry.of(tensor).meta().to(**options))
        made = torch.empty_strided(at.shape, at.strides, dtype=at.dtype, device=where)
        nbytes = made.untyped_storage().nbytes()
        fill = self._whole_fill(tensor)
        if fill is not None and (at.dtype == fill.at.dtype or casts.is_rounded_once(fill.at.dtype, at.dtype)):
            self._store(made, Fill(nbytes, at, fill.distribution, fill.draw))
        elif (source := self.view(tensor)) is not None:
            self._store(made, Output(nbytes, at, Call(Tensor.to, (source,), options, None, None), 0))
        return made

    def _deep_copy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        if id(tensor) in memo:
            found: Tensor = memo[id(tensor)]
            return found
        with torch.no_grad(), self:
            made = tensor.detach().clone(memory_format=torch.preserve_format)
        made = _torch.typed_like(tensor, made)
        made.__dict__.update(tensor.__dict__)
        memo[id(tensor)] = made
        return made

    def _recorded(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], concerned: list[Tensor] | None = None
    ) -> Any:
        """Note a call down. Its results are told from a call on tensors without memory."""
        twins: dict[int, Tensor] = {}  # id of an argument -> its twin on meta
        views: dict[int, View] = {}

        def twin(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each if self.on_meta or not isinstance(each, torch.device) else torch.device("meta")
            if id(each) not in twins:
                twins[id(each)] = each if each.is_meta else Geometry.of(each).meta()
            return twins[id(each)]

        def view(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            if id(each) not in views:
                found = self.view(each)
                if found is None:
                    copy = each.detach().clone()
                    found = View(
                        Known(copy.untyped_storage().nbytes(), copy.cpu().untyped_storage()), Geometry.of(copy)
                    )
                views[id(each)] = found
            return views[id(each)]

        leaves = tensors_in(args, kwargs)
        target = _target(function, args, kwargs)
        if any(each.is_meta and self.stored(each) is None for each in leaves if each is not target):
            return function(*args, **kwargs)  # a tensor without memory or history: nothing can be known
        if any(self.stored(each) is None and each is not target and each.nbytes > _MOST_COPIED for each in leaves):
            return self._read(function, args, kwargs, concerned or [])
        try:
            meta_args, meta_kwargs = tree_map(twin, (args, kwargs))
            versions = versions_of(twins.values())
            if "device" in meta_kwargs or (not leaves and function in calls.RANDOM):
                meta_kwargs["device"] = "meta"
            results = function(*meta_args, **meta_kwargs)
        except Exception:
            return self._read(function, args, kwargs, concerned or [])
        outputs = tree_leaves(results)
        if target is not None and (not isinstance(target, Tensor) or overlaps(target)):
            return self._read(function, args, kwargs, concerned or [])
        written = None if target is None else _torch.storage_key(twins[id(target)])
        aside = [each for each in twins.values() if _torch.storage_key(each) != written]
        if any(
            times != versions[key] for key, times in versions_of(aside).items()
        ):  # it writes to more than its target
            return self._read(function, args, kwargs, concerned or [])
        shared = {_torch.storage_key(each) for each in twins.values()}
        fresh = [isinstance(each, Tensor) and _torch.storage_key(each) not in shared for each in outputs]
        if target is None and not all(fresh):
            if not any(fresh) and all(each.is_meta for each in leaves):
                return results  # views
            if not any(isinstance(each, Tensor) for each in outputs) and not self.on_meta:
                return self._read(function, args, kwargs, concerned or [])
            if not any(fresh) and not casts.leaves_its_device(function, args, kwargs):
                return function(*args, **kwargs)  # views
            return self._read(function, args, kwargs, concerned or [])
        # Earlier values are in memory now and may soon be overwritten, so they are written and the call is run again.
        # Meta has no memory; draws are named here all the same, so that both ways name them alike.
        before = [each for each in leaves if each is not target and self._rests_on_memory(each)]
        if before and not self.on_meta:
            self.settle(before)
            return self.__torch_function__(function, (), args, kwargs)
        self._pin(before, seen=False)
        draw = self._draw() if function in calls.RANDOM else None
        if target is not None:
            self._write_recorded(function, args, kwargs, target, view, draw)
            return target
        noted_args, noted_kwargs = tree_map(view, (args, self._for_replay(kwargs)))
        call = Call(function, noted_args, noted_kwargs, None, draw)
        if self.on_meta:
            for which, each in enumerate(outputs):
                self._store(each, Output(each.untyped_storage().nbytes(), Geometry.of(each), call, which))
            return results
        device = concerned[0].device if concerned else torch.empty(0, device=kwargs.get("device")).device
        if device.type == "meta":
            return function(*args, **kwargs)
        which = -1

        def real(each: Any) -> Any:
            nonlocal which
            which += 1
            made = torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=device)
            self._store(made, Output(made.untyped_storage().nbytes(), Geometry.of(made), call, which))
            return made.requires_grad_(each.requires_grad)

        return tree_map(real, results)

    def _for_replay(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs

    def _write_recorded(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Tensor,
        view: Callable[[Any], Any],
        draw: Draw | None,
    ) -> None:
        stored = self.stored(target)
        overwritten = function in calls.OVERWRITES and is_whole(target) and not any(each is target for each in args[1:])
        if overwritten:
            before: Node = Memory(target.untyped_storage().nbytes(), matters=False)
        else:
            before = self._memory_of(target) if stored is None else stored.content
        written = View(before, Geometry.of(target))

        def place(each: Any) -> Any:
            return written if each is target else view(each)

        if stored is not None and overwritten and len(args) > 1 and isinstance(args[1], Tensor):
            source = self.view(args[1])
            alike = source is not None and Geometry.of(args[1])[:3] == Geometry.of(target)[:3]
            if source is not None and alike and isinstance(source.node, Fill) and is_whole(args[1]):
                self._store(target, source.node)
                return
        noted_args, noted_kwargs = tree_map(place, (args, self._for_replay(kwargs)))
        self._store(target, Changed(before.nbytes, before, Call(function, noted_args, noted_kwargs, written, draw)))

    # ---- readers ----

    def _read(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], concerned: list[Tensor]) -> Any:
        """Run a call that looks at values: on written memory, or on values that are computed for it."""
        self.settle(each for each in concerned if not each.is_meta)
        concerned = [each for each in concerned if each.is_meta]
        values = self.values(concerned) if concerned else {}
        if function in calls.RANDOM and kwargs.get("generator") is None:
            draw = self._draw()
            self._name(draw)
            function = partial(numbers_of, self.replay(self.seed).stream(draw), function)
        if not concerned:
            return function(*args, **kwargs)

        def real(each: Any) -> Any:
            return values.get(id(each), each) if isinstance(each, Tensor) else each

        real_args, real_kwargs = tree_map(real, (args, self._for_replay(kwargs)))
        versions = versions_of(values.values())
        results = function(*real_args, **real_kwargs)
        for tensor in concerned:
            copy = values[id(tensor)]
            if versions_of([copy])[id(copy)] != versions[id(copy)]:
                self._store(tensor, Known(copy.untyped_storage().nbytes(), copy.untyped_storage()))
        originals = {id(values[id(tensor)]): tensor for tensor in concerned}

        def given(each: Any) -> Any:
            if not isinstance(each, Tensor) or each.is_meta:
                return each
            return originals[id(each)] if id(each) in originals else self._known(each)

        return tree_map(given, results)


def _target(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor that a call writes to; None if it gives a new one."""
    target = kwargs.get("out")
    return args[0] if target is None and args and calls.writes_in_place(function) else target


def _is_meta(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "meta"
