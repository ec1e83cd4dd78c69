"""Plain numbers from what users hand in: Python's numbers, NumPy's, and tensors without dimensions."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch


def as_number(name: str, given: Any) -> int | float:
    """The argument `name` as a plain int or float that float64 can hold. It may be infinite or NaN.

    Raises:
        TypeError: the argument is not a real number, but a bool, a complex number or a vector, for instance.
        ValueError: the argument is an integer beyond the largest float64.
    """
    if type(given) is float:  # as most are
        return given
    value = given
    if isinstance(given, torch.Tensor) and given.is_meta:
        raise TypeError(f"{name}: expected a number, got a tensor without memory")
    if isinstance(given, (np.generic, np.ndarray, torch.Tensor)) and given.ndim == 0:
        value = given.item()
    if isinstance(value, np.longdouble):  # wider than float64; its `item` returns a longdouble again
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {given!r}")
    if isinstance(value, float):
        return float(value)
    try:
        float(value)
    except OverflowError as error:
        raise ValueError(f"{name}: expected one within float64, got one of {value.bit_length()} bits") from error
    return int(value)


def as_finite(name: str, given: Any) -> int | float:
    """The argument `name` as a plain, finite int or float.

    Raises:
        TypeError, ValueError: as in `as_number`, or the number is infinite or NaN.
    """
    value = as_number(name, given)
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return value


def as_size(name: str, given: Any) -> int:
    """The argument `name` as a plain int >= 0.

    Raises:
        TypeError: the argument is no integer, or a bool.
        ValueError: the argument is negative.
    """
    try:
        if isinstance(given, (bool, np.bool_)):
            raise TypeError
        value = operator.index(given)
    except TypeError as error:
        raise TypeError(f"{name}: expected an int, got {given!r}") from error
    if value < 0:
        raise ValueError(f"{name}: expected {name} >= 0, got {value}")
    return value
