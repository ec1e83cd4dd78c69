"""One setting for arithmetic in torch whose results are values of the contract: nothing ambient changes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def exact_arithmetic(devices: Iterable[torch.device]) -> Iterator[None]:
    """Within it, products on `devices` are those of their factors' dtype, and new tensors are on the CPU unless told.

    Off: gradients, autocast, TF32 and bfloat16 in products of float32 matrices, ambient default devices.
    The precision of products is a setting of the process: other threads see it change for as long.
    """
    kinds = {device.type for device in devices} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision(kinds))
        yield


@contextmanager
def _full_precision(kinds: set[str]) -> Iterator[None]:
    """Products of float32 matrices in float32, whatever `set_float32_matmul_precision` and the backends' flags say."""
    backends: Any = torch.backends
    switches = [backends.mkldnn.matmul]
    if "cuda" in kinds:
        switches.append(backends.cuda.matmul)
    changed: list[tuple[Any, str]] = []
    try:
        for switch in switches:
            before = switch.fp32_precision
            if before not in ("none", "ieee"):
                switch.fp32_precision = "ieee"
                changed.append((switch, before))
        yield
    finally:
        for switch, before in changed:
            switch.fp32_precision = before
