"""On what is measured: the device, how much memory, which dtypes and distributions."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import fastinit
from fastinit import _native
from fastinit.schemes.base import Scheme

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
STD = 0.02
SCHEMES: dict[str, Scheme] = {
    "uniform": fastinit.Uniform(-STD, STD),
    "normal": fastinit.Normal(0.0, STD),
    "trunc_normal": fastinit.TruncNormal(0.0, STD, (-2.0, 2.0), unit="sigma"),
    "constant": fastinit.Constant(0.5),
}
TORCH: dict[str, Callable[[torch.Tensor], object]] = {
    "uniform": lambda tensor: torch.nn.init.uniform_(tensor, -STD, STD),
    "normal": lambda tensor: torch.nn.init.normal_(tensor, 0.0, STD),
    "trunc_normal": lambda tensor: torch.nn.init.trunc_normal_(tensor, 0.0, STD, -2.0 * STD, 2.0 * STD),
    "constant": lambda tensor: torch.nn.init.constant_(tensor, 0.5),
}


@dataclass(frozen=True)
class Settings:
    device: torch.device
    divisor: int  # of the number of bytes of large tensors
    model_divisor: int  # of the dimensions of models
    repetitions: int
    sample_seconds: float  # a sample repeats its work until it takes so long

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Settings:
        if arguments.dry_run:
            return cls(torch.device("cpu"), 1 << 13, 64, 3, 0.0)
        if not torch.cuda.is_available():
            raise SystemExit("there is no GPU; --dry-run shows on the CPU that the script works")
        device = torch.device("cuda", torch.cuda.current_device())
        if arguments.quick:
            return cls(device, 16, 4, 7, 0.003)
        return cls(device, 1, 1, 25, 0.01)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def native() -> Any:
    if _native.module is None:
        raise SystemExit(f"the native code is not there: {_native.reason}")
    return _native.module
