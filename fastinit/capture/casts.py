"""Casts: what a call of `Tensor.to` and its kin asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastinit.capture import calls
from fastinit.capture.tensors import tensors_in


def device_of(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor) -> torch.device:
    """Where a cast puts its result."""
    if function is Tensor.cpu:
        return torch.device("cpu")
    given = [*args[1:2], kwargs.get("device")] if function in (Tensor.to, Tensor.cuda) else []
    found = next((each for each in given if isinstance(each, (torch.device, str, int))), None)
    if found is None and function is not Tensor.cuda:
        return tensor.device
    where = torch.device("cuda" if found is None else found)
    if where.type == tensor.device.type and (
        where.index is None or where.index == tensor.device.index or where.type == "cpu"
    ):
        return tensor.device
    return where


def leaves_its_device(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call makes a copy where it would make a view on one device, because its result is on another device."""
    return function in calls.CASTS and (
        device_of(function, args, kwargs, args[0]) != args[0].device
        or any(each.device != args[0].device for each in tensors_in(args[1:], kwargs))
    )


def is_rounded_once(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether a distribution's values, rounded to one dtype, are those that are sampled in the other."""
    return given is torch.float32 and wanted in (torch.bfloat16, torch.float16)


def options_of_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of `Tensor.to` asks for besides a device, by name. Its forms begin with a device, or a dtype."""
    given = list(args[1:])
    if given and not isinstance(given[0], torch.dtype):
        given.pop(0)  # the device
    names = ("dtype", "non_blocking", "copy")
    options = {**dict(zip(names, given, strict=False)), **kwargs}
    unused = ("device", "non_blocking")
    return {name: each for name, each in options.items() if each not in (None, False) and name not in unused}
