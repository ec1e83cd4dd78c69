"""Which random numbers belong to a parameter: seed and canonical name to a 128-bit stream (docs/STREAM.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch

from fastinit._native import STREAM_VERSION

_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_UINT32 = 0xFFFFFFFF

_PERSON = b"fastinit" + STREAM_VERSION.to_bytes(8, "little")

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original(\d*)$")


class Stream(NamedTuple):
    """A stream of 32-bit words: Philox4x32-10 under `key`, `counter_high` being the upper half of every counter."""

    key: int
    counter_high: int


def canonical_name(name: str) -> str:
    """The name of a parameter without what wrappers add to it.

    The components `module`, `_orig_mod`, `_fsdp_wrapped_module` and `_checkpoint_wrapped_module` (DDP, torch.compile,
    FSDP1, activation checkpointing) are dropped wherever they stand; `parametrizations.weight.original` becomes
    `weight`, and `parametrizations.weight.original1` becomes `weight.1`.

    >>> canonical_name("module.layers.0._checkpoint_wrapped_module.mlp.weight")
    'layers.0.mlp.weight'
    """
    if "module" in name or "_orig_mod" in name:
        name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    if "parametrizations." in name:
        match = _PARAMETRIZED.search(name)
        if match:
            dot, tensor_name, number = match.groups()
            name = name[: match.start()] + dot + tensor_name + (f".{number}" if number else "")
    return name


Renaming = Mapping[str, str] | Callable[[str], str]


def renaming(names: Renaming | None) -> Callable[[str], str]:
    """From canonical names in a part of a model (a pipeline stage, an expert's rank) to those in the whole.

    `names` is a function, or a mapping of names and their beginnings up to a dot; the longest that fits is replaced.

    Raises:
        TypeError: `names` is neither, or gives something else than a name; there, naming what for.

    >>> renaming({"layers.0": "layers.24"})("layers.0.weight")
    'layers.24.weight'
    """
    if names is None:
        return unchanged
    if isinstance(names, Mapping):
        return lambda name: _replaced(names, name)
    if not callable(names):
        raise TypeError(f"names: expected a mapping of names or a function of one, got {type(names).__name__}")
    function = names

    def renamed(name: str) -> str:
        found = function(name)
        if not isinstance(found, str):
            raise TypeError(f"names: expected a name for {name}, got {found!r}")
        return found

    return renamed


def unchanged(name: str) -> str:
    """The renaming that leaves every name as it is."""
    return name


def _replaced(names: Mapping[str, str], name: str) -> str:
    end = len(name)
    while end >= 0:
        if (found := names.get(name[:end])) is not None:
            return found + name[end:]
        end = name.rfind(".", 0, end)
    return name


@lru_cache(maxsize=16384)
def name_id(name: str) -> bytes:
    """The 128-bit digest of a canonical name: BLAKE2b, personalised by the stream version."""
    return blake2b(name.encode(), digest_size=16, person=_PERSON).digest()


def philox4x32(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10 (Salmon et al., SC'11), for streams only: the samplers' Philox is native."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _UINT32, key >> 32
    for _ in range(_PHILOX_ROUNDS):
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _UINT32, (product0 >> 32) ^ c3 ^ k1, product0 & _UINT32
        k0, k1 = (k0 + _PHILOX_WEYL[0]) & _UINT32, (k1 + _PHILOX_WEYL[1]) & _UINT32
    return c0, c1, c2, c3


def derive_stream(seed: int, name: str) -> Stream:
    """The stream of a canonical name under a seed: the name's digest as Philox counter, the seed as its key.

    A bijection of the digests for every seed: two names share a stream only if BLAKE2b collides on 128 bits.
    """
    digest = name_id(name)
    words = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(4)]
    w0, w1, w2, w3 = philox4x32((words[0], words[1], words[2], words[3]), seed)
    return Stream(w0 | w1 << 32, w2 | w3 << 32)


def check_seed(seed: int | None) -> None:
    """Raise TypeError or ValueError unless `seed` is None or an int in [0, 2**64)."""
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed}")


def draw_seed(generator: torch.Generator | None) -> int:
    """64 bits from `generator`, or from torch's default CPU generator, which `torch.manual_seed` governs."""
    device = "cpu" if generator is None else generator.device
    # random_ over the whole range of int64 needs both ends explicit: without them it draws 63 bits.
    bits = torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return int(bits.item()) & 0xFFFFFFFFFFFFFFFF
