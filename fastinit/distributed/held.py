"""What this rank holds of a tensor, whatever kind of shard it is: a DTensor, Megatron-LM's, ZeRO-3's, a registered one.

Everybody asks here. A tensor of no kind is a plain one, and this rank has all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from fastinit import _torch
from fastinit.distributed import flat, megatron, shards, spmd, wrapped, zero3
from fastinit.distributed.pieces import Held
from fastinit.errors import ParameterError


class _Kind(NamedTuple):
    """A kind of shards: whether a tensor is one, what this rank holds of it, and the local tensors with its memory."""

    is_one: Callable[[Any], bool]
    held: Callable[[Any, str], Held]
    local: Callable[[Any], list[torch.Tensor]]


_KINDS = [
    _Kind(shards.is_dtensor, shards.held_of_dtensor, lambda tensor: [_torch.local_part(tensor)]),
    _Kind(flat.is_flat, flat.held_of_flat, flat.local_tensors),
    _Kind(zero3.is_zero3, zero3.held_of_zero3, zero3.local_tensors),
    _Kind(megatron.is_megatron, megatron.held_of_megatron, lambda tensor: [tensor]),
    _Kind(spmd.is_spmd, spmd.held_of_spmd, lambda tensor: [tensor]),
    _Kind(wrapped.is_wrapped, wrapped.held_of_wrapped, wrapped.local_tensors),
]
registered: list[_Kind] = []  # by register_shards; whoever asks for every small tensor looks here
_PLAIN_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


def register_shards(
    is_one: type | Callable[[torch.Tensor], bool], held: Callable[[torch.Tensor], Held]
) -> Callable[[], None]:
    """Tell fastinit of another kind of distributed tensors.

    `init_model_`, `plan`, `materialize_`, `init_`, `fingerprint` and `verify` then treat tensors of this kind by their
    global shape, and write or read this rank's pieces. The kind that was registered last is asked first, and those
    that fastinit knows itself come last.

    Args:
        is_one: a class of tensors, or a function that tells whether a tensor is of this kind. It is called often.
        held: gives what this rank holds of a tensor of this kind, as a `Held`. It asks no other rank. It may raise a
            ValueError where this is not known; the error that the user sees names the parameter.

    Returns:
        A function that forgets this kind again.

    Raises:
        TypeError: an argument is neither.

    >>> from fastinit import Held, Piece
    >>> class Half(torch.nn.Parameter):
    ...     "The second half of the rows of a matrix."
    >>> def held(tensor):
    ...     rows, columns = tensor.shape
    ...     return Held(torch.Size((2 * rows, columns)), [Piece((rows, 0), tensor)])
    >>> forget = register_shards(Half, held)
    >>> global_shape(Half(torch.empty(2, 3)))
    torch.Size([4, 3])
    >>> forget()
    """
    if not callable(is_one):
        raise TypeError(f"is_one: expected a class or a function of a tensor, got {is_one!r}")
    if not callable(held):
        raise TypeError(f"held: expected a function of a tensor, got {held!r}")
    test = (lambda tensor: isinstance(tensor, is_one)) if isinstance(is_one, type) else is_one

    def found(tensor: torch.Tensor, name: str) -> Held:
        try:
            given = held(tensor)
        except ParameterError:
            raise
        except (TypeError, ValueError) as error:
            raise ParameterError(name, str(error)) from error
        if not isinstance(given, Held):
            raise ParameterError(name, f"its registered kind of shards gives {type(given).__name__}, not a Held")
        return given

    def local(tensor: torch.Tensor) -> list[torch.Tensor]:
        given = found(tensor, "")
        return [*(piece.tensor for piece in (*given.pieces, *given.mirrors)), *given.padding]

    kind = _Kind(test, found, local)
    registered.insert(0, kind)

    def forget() -> None:
        if kind in registered:
            registered.remove(kind)

    return forget


def _kind_of(tensor: Any) -> _Kind | None:
    # First the common case: marks of the kinds known here are attributes or a type.
    if not registered and type(tensor) in _PLAIN_TYPES and not tensor.__dict__:
        return None
    return next((kind for kind in (*registered, *_KINDS) if kind.is_one(tensor)), None)


def is_whole(tensor: Any) -> bool:
    """Whether a tensor is of torch's own types, and this rank has all of it."""
    if type(tensor) not in _PLAIN_TYPES:
        return False
    return (not tensor.__dict__ and not registered) or _kind_of(tensor) is None


def are_plain(tensors: Sequence[Any]) -> bool:
    """Whether no tensor is sharded, nor has an attribute by which another kind is known: a quick answer for many."""
    return not registered and _PLAIN_TYPES.issuperset(map(type, tensors)) and not any(map(_attributes, tensors))


_attributes = attrgetter("__dict__")


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is distributed over ranks, in whatever way, or a wrapper (distributed/wrapped.py).

    Plain tensors, such as replicas, are not.
    """
    return _kind_of(tensor) is not None


def held_of(tensor: torch.Tensor, name: str) -> Held | None:
    """What this rank holds of a tensor; None: it is a plain one, and all of it is here.

    Raises:
        ParameterError: it is unknown what this rank holds, it holds something other than values, or the tensor's
            attributes contradict each other. The message says which.
    """
    kind = _kind_of(tensor)
    if kind is None:
        return None
    found = kind.held(tensor, name)
    if kind is not _KINDS[0]:
        _check(found, tensor, name)
    return found


def _check(held: Held, tensor: torch.Tensor, name: str) -> None:
    """Raise ParameterError unless all pieces lie within the global tensor, and are of its dtype."""
    for piece in (*held.pieces, *held.mirrors):
        given = tuple(piece.tensor.shape)
        fits = len(piece.begin) == len(given) == len(held.shape) and all(
            begin >= 0 and begin + size <= whole
            for begin, size, whole in zip(piece.begin, given, held.shape, strict=True)
        )
        if not fits:
            raise ParameterError(
                name, f"expected pieces of a tensor of shape {tuple(held.shape)}, got {given} at {tuple(piece.begin)}"
            )
    for each in (*(piece.tensor for piece in (*held.pieces, *held.mirrors)), *held.padding):
        if each.dtype != tensor.dtype:
            raise ParameterError(name, f"expected its local memory in {tensor.dtype}, got {each.dtype}")


def global_shape(tensor: torch.Tensor, name: str = "") -> torch.Size:
    """The global shape of a tensor.

    Raises:
        ParameterError: as `held_of`.
    """
    kind = _kind_of(tensor)
    return tensor.shape if kind is None or kind is _KINDS[0] else kind.held(tensor, name).shape


def local_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The local tensors in whose memory the pieces lie; a plain tensor as it is."""
    kind = _kind_of(tensor)
    return [tensor] if kind is None else kind.local(tensor)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The first local tensor of a distributed tensor; any other tensor, and one of which nothing is here, as it is."""
    kind = _kind_of(tensor)
    return tensor if kind is None else next(iter(kind.local(tensor)), tensor)
