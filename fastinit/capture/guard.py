"""While other people's code is read: it takes none of their random numbers, warns nobody, and cannot call fastinit."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_of_thread = threading.local()


def check_not_read() -> None:
    """Raise RuntimeError if the caller is a model's own code, which is being read on a copy."""
    if getattr(_of_thread, "is_reading", False):
        raise RuntimeError("it calls fastinit itself, which decides without it")


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Keep the states of the random number generators of Python and NumPy. torch's draws are recorded, not made.

    It takes as long as planning several parameters does: only code that is run is worth it.
    """
    python, numpy = random.getstate(), np.random.get_state()
    _of_thread.is_reading = True
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _of_thread.is_reading = False
        random.setstate(python)
        np.random.set_state(numpy)
