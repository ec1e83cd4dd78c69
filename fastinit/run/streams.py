"""The stream of random numbers of a parameter: 128 bits from seed and canonical name (docs/STREAM.md)."""

from __future__ import annotations

import operator
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


class Stream(NamedTuple):
    """A stream of 32-bit words: Philox4x32-10 under `key`. The upper half of every counter is `counter_high`."""

    key: int
    counter_high: int


@lru_cache(maxsize=16384)
def name_id(name: str) -> bytes:
    """The 128-bit digest of a canonical name: BLAKE2b, personalised by the stream version."""
    return blake2b(name.encode(), digest_size=16, person=_PERSON).digest()


def philox4x32(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """One block of Philox4x32-10 (Salmon et al., SC'11). Only streams use it; the samplers' Philox is native."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _UINT32, key >> 32
    for _ in range(_PHILOX_ROUNDS):
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _UINT32, (product0 >> 32) ^ c3 ^ k1, product0 & _UINT32
        k0, k1 = (k0 + _PHILOX_WEYL[0]) & _UINT32, (k1 + _PHILOX_WEYL[1]) & _UINT32
    return c0, c1, c2, c3


def derive_stream(seed: int, name: str) -> Stream:
    """The stream of a canonical name under a seed: the name's digest as Philox counter, the seed as its key.

    For every seed this is a bijection of the digests, so two names share a stream only if BLAKE2b collides on 128 bits.
    """
    digest = name_id(name)
    words = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(4)]
    w0, w1, w2, w3 = philox4x32((words[0], words[1], words[2], words[3]), seed)
    return Stream(w0 | w1 << 32, w2 | w3 << 32)


def as_seed(given: object) -> int | None:
    """A seed as an int in [0, 2**64), or None. NumPy's integers are accepted.

    Raises:
        TypeError, ValueError: anything else.
    """
    if given is None:
        return None
    if isinstance(given, bool) or not hasattr(given, "__index__") or isinstance(given, torch.Tensor):
        raise TypeError(f"seed: expected an int or None, got {type(given).__name__}")
    seed = operator.index(given)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed}")
    return seed


def as_seed_of_run(given: object) -> int | torch.Tensor | None:
    """A seed as `as_seed` gives it, or a tensor of one element whose 64 bits are a seed.

    Raises:
        TypeError, ValueError: anything else.
    """
    if not isinstance(given, torch.Tensor):
        return as_seed(given)
    if given.dtype not in (torch.int64, torch.uint64) or given.numel() != 1 or given.layout is not torch.strided:
        raise ValueError(
            f"seed: expected a tensor of one int64 or uint64 element, got {given.dtype} of shape {tuple(given.shape)}"
        )
    if given.device.type not in ("cpu", "cuda"):
        raise ValueError(f"seed: expected a tensor on the CPU or on a CUDA device, got one on {given.device}")
    return given.detach()


def derive_seed(seed: int, name: str | int) -> int:
    """A seed for a part of an experiment: of a model, a step, a trial, given by a name or a number.

    The lower 64 bits of the Philox block whose key is the seed and whose counter is a digest of the name
    (docs/STREAM.md, section 1; Salmon et al. 2011). So seeds of different names are as good as independent, and no sum
    of seed and number meets another one: derive_seed(0, 1) is not derive_seed(1, 0), nor derive_seed(0, "1").

    Raises:
        TypeError, ValueError: the seed is not an int in [0, 2**64), the name neither a string nor an int.
    """
    checked = as_seed(seed)
    if checked is None or isinstance(name, bool) or not isinstance(name, (str, int)):
        raise TypeError(f"seed, name: expected an int and a string or an int, got {seed!r} and {name!r}")
    kind = "name" if isinstance(name, str) else "number"
    return derive_stream(checked, f"seed {kind}:{name}").key


def draw_seed(generator: torch.Generator | None) -> int:
    """64 bits from `generator`, or from torch's default CPU generator, which `torch.manual_seed` governs."""
    device = "cpu" if generator is None else generator.device
    # Without explicit ends random_ draws 63 bits. These ends are the whole range of int64.
    bits = torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return int(bits.item()) & 0xFFFFFFFFFFFFFFFF
