"""The contexts under which other people's code is recorded: `fused`, `deferred` and `no_init`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from fastinit.capture.graph import Geometry, View, draws_of
from fastinit.capture.owners import Owned, Owners
from fastinit.capture.patches import Patches
from fastinit.capture.recorder import Recorder
from fastinit.capture.records import Stored
from fastinit.capture.tapes import Tape, keep_tape
from fastinit.capture.tensors import is_plain
from fastinit.run.streams import as_seed, draw_seed

_patches = Patches()
_of_thread = threading.local()
_own_start = threading.Thread.start


def _start_thread(thread: threading.Thread) -> None:
    """Start a thread, which a recording does not reach: it must find written memory."""
    for context in getattr(_of_thread, "active", ()):
        context.before_thread()
    _own_start(thread)


_patches.add(threading.Thread, "start", _start_thread)


def deferring() -> list[Recorder]:
    """The recorders of the `deferred()` contexts around the caller, the innermost first."""
    active = reversed(getattr(_of_thread, "active", ()))
    return [each.recorder for each in active if each.recorder is not None and each.recorder.on_meta]


class _Recording:
    """What the contexts have in common. Each object can be entered once."""

    name = ""
    _on_meta = False

    def __init__(self, seed: int | None = None) -> None:
        self._given = as_seed(seed)
        self.recorder: Recorder | None = None
        self._thread: int | None = None
        self._left = False

    def __enter__(self) -> None:
        if self.recorder is not None:
            raise RuntimeError(f"{self.name}: entered before; make a new one for every with statement")
        self._thread = threading.get_ident()
        seed = draw_seed(None) if self._given is None else self._given
        active = _of_thread.__dict__.setdefault("active", [])
        self.recorder = Recorder(seed, on_meta=self._on_meta, around=[each.recorder for each in active])
        self._owners = Owners(lambda: active[-1] is self)
        _patches.enter()
        self._owners.watch()
        active.append(self)
        if not self.recorder.is_idle:
            self.recorder.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        recorder = self.recorder
        if recorder is None or self._left:
            raise RuntimeError(f"{self.name}: left without having been entered, or twice")
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"{self.name}: left in another thread than the one that entered it")
        active = _of_thread.active
        if active[-1] is not self:
            raise RuntimeError(f"{self.name}: left before {active[-1].name}, which was entered after it")
        self._left = True
        active.pop()
        if not recorder.is_idle:
            recorder.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._owners.unwatch()
        _patches.leave()
        self._finish(recorder, error)

    def _finish(self, recorder: Recorder, error: BaseException | None) -> None:
        raise NotImplementedError

    def before_thread(self) -> None:
        """Write what is pending, before the program starts another thread."""
        assert self.recorder is not None
        self.recorder.settle_all()

    def _owned(self, recorder: Recorder) -> list[tuple[Owned, Stored]]:
        """The recorded tensors of modules. Their draws have got their names."""
        found = []
        for owned in self._owners.owned():
            stored = recorder.stored(owned.tensor)
            if stored is not None:
                name_draws(stored, owned.model, owned.name)
                found.append((owned, stored))
        return found


def name_draws(stored: Stored, model: int, name: str) -> None:
    """Name the draws of a content after the tensor that owns it: the first has its name, the others a number more.

    Draws that have a name do not count: a recording that has written them does not know of them any more.
    """
    unnamed = (draw for draw in draws_of(stored.content) if draw.name is None)
    for position, draw in enumerate(unnamed):
        draw.name, draw.model = name if position == 0 else f"{name}#{position}", model


class fused(_Recording):
    """Build a model as usual, and write its initial values in one pass at the end.

    `with fastinit.fused(): model = AnyModel(config)`. The code inside runs unchanged, but its initialisers are noted
    down instead of run: torch.nn.init's functions, `Tensor.normal_` and its kin, and the arithmetic on their results.
    What a later call overwrites is never written. The rest is written when the context is left, by the native code: the
    same distributions, and values that follow from the seed and the parameter's name, as those of `init_model_` do.

    - Whoever reads a tensor inside gets its values: they are written first. Numbers that were read before their
      parameter had a name follow from the order of the calls, and so do tensors that are no parameters.
    - If several models are built, every one but the first gets a seed of its own. Otherwise parameters of one name
      would be equal.
    - An exception inside goes on after everything pending was written.
    - Only the thread that entered the context is recorded. Before it starts another thread, what is pending is written.
      A thread that runs already sees memory as it is; read a tensor (`.data_ptr()`) before you hand it over.
    - Contexts may be nested. What an outer one has recorded stays its own, and inside `deferred` nothing else records.
    - Calls with a generator are run as they are, with torch's numbers. So are calls on the meta device, on DTensors and
      other wrappers.

    Args:
        seed: an int in [0, 2**64). None: it is drawn from torch's default CPU generator, which
            `torch.manual_seed` seeds.

    Raises:
        RuntimeError: the context is entered twice, left twice, out of order or in another thread.
        ParameterError: a tensor has lost its memory since it was initialised.

    >>> with fused(seed=0):
    ...     model = torch.nn.Linear(3, 2)
    """

    name = "fused"

    def _finish(self, recorder: Recorder, error: BaseException | None) -> None:
        wanted: dict[int, tuple[Stored, torch.Tensor | None, str]] = {}
        for owned, stored in self._owned(recorder):
            wanted.setdefault(id(stored), (stored, owned.tensor, owned.name))
        for stored in recorder.alive():
            if id(stored) not in wanted:  # no module has it: the order of the calls tells
                recorder.pin(stored)
                wanted[id(stored)] = stored, None, ""
        recorder.write(wanted.values(), recorder.replay(recorder.seed))


class deferred(_Recording):
    """Build a model on the meta device, and remember how its values are made.

    `with fastinit.deferred(): model = AnyModel(config)`. Parameters and buffers have no memory, so a model of any size
    is built in no time. Shard it, then write each rank's part: `fastinit.materialize_(model, "own", device=...)`. The
    values are those of `fused` with the same seed. Code that looks at values inside, such as `.tolist()`, gets them.

    `copy.deepcopy` of a module keeps what is remembered; pickling does not.

    Args:
        seed: of numbers that are read inside the context; others get the seed of `materialize_`.

    Raises:
        TypeError, ValueError: the seed is not an int in [0, 2**64).
        RuntimeError: as in `fused`.

    >>> import fastinit
    >>> with deferred():
    ...     model = torch.nn.Linear(3, 2)
    >>> fastinit.materialize_(model, "own", device="cpu", seed=0).weight.shape
    torch.Size([2, 3])
    """

    name = "deferred"
    _on_meta = True

    def _finish(self, recorder: Recorder, error: BaseException | None) -> None:
        for owned in self._owners.owned():  # `torch.Tensor(3, 4)` asks no mode. What was loaded keeps its memory.
            tensor = owned.tensor
            if owned.kind == "parameter" and not tensor.is_meta and is_plain(tensor) and recorder.stored(tensor):
                recorder.move_to_meta(tensor)
        for owned, stored in self._owned(recorder):
            view = View(stored.content, Geometry.of(owned.tensor))
            keep_tape(owned.module, owned.own_name, Tape(view, owned.name, owned.model))
        recorder.settle_all()  # tensors that got memory all the same


class no_init(_Recording):
    """Build a model without drawing its initial values, since its weights are loaded next.

    `with fastinit.no_init(): model = AnyModel(config)`. Random values are left out: their memory stays as it came.
    Constants and computed tables (rotary frequencies, the ones of a normalisation) are written as usual. Values that
    somebody reads inside the context are written. So are the weights that `from_pretrained` of transformers does not
    find in its files.

    Args:
        check: whether to name parameters that were neither written nor loaded when the context is left. The weights
            must then be loaded inside it.

    Raises:
        ValueError: `check` is true, and parameters were never written; the message names them.
    """

    name = "no_init"

    def __init__(self, *, check: bool = False) -> None:
        super().__init__()
        if not isinstance(check, bool):
            raise TypeError(f"check: expected True or False, got {check!r}")
        self._check = check

    def _finish(self, recorder: Recorder, error: BaseException | None) -> None:
        left = []
        needed: dict[int, tuple[Stored, torch.Tensor | None, str]] = {}
        missing = _missing_weights(self._owners)
        for owned, stored in self._owned(recorder):
            if not draws_of(stored.content) or id(owned.tensor) in missing:
                needed.setdefault(id(stored), (stored, owned.tensor, owned.name))
            elif owned.kind == "parameter":
                left.append(owned.name)
        recorder.write(needed.values(), recorder.replay(recorder.seed))
        if self._check and error is None and left:
            raise ValueError("no_init: never written: " + ", ".join(dict.fromkeys(left)))


def _missing_weights(owners: Owners) -> set[int]:
    """The ids of the parameters that transformers had to initialise in a model whose other weights it has loaded.

    It marks loaded parameters, and every module that it has been through.
    """
    found: set[int] = set()
    seen: set[int] = set()
    for model in owners.models():
        for module in model.modules():  # the outer ones first
            if id(module) in seen or _HF_MARK not in module.__dict__:
                continue
            seen.update(map(id, module.modules()))
            marks = {id(each): getattr(each, _HF_MARK, False) for each in module.parameters()}
            if any(marks.values()):
                found.update(each for each, is_loaded in marks.items() if not is_loaded)
    return found


_HF_MARK = "_is_hf_initialized"


def recorded(action: Callable[[], Any], recorder: Recorder) -> Any:
    """Run code under a recorder, with torch.nn.init's composed functions recorded, too."""
    _patches.enter()
    try:
        with recorder:
            return action()
    finally:
        _patches.leave()
