"""At home in torch: version counters, leaves that require grad, inference tensors, the doctests of the package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fastinit


def test_leaves_that_require_grad_are_accepted_and_stay_leaves() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    fastinit.xavier_uniform_(parameter)
    assert parameter.requires_grad and parameter.is_leaf and parameter.grad_fn is None
    assert (parameter != 0).any()


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_version_counters_are_bumped(backend: str) -> None:
    module = nn.Linear(3, 2)
    before = [parameter._version for parameter in module.parameters()]
    fastinit.init_model_(module, "xavier_uniform", backend=backend)
    assert all(parameter._version > old for parameter, old in zip(module.parameters(), before, strict=True))


def test_writing_between_forward_and_backward_is_caught() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    loss = module(torch.ones(2, 3)).square().sum()
    fastinit.init_model_(module, "normal")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_are_written_in_inference_mode_only() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(5)
        fastinit.normal_(tensor)
        assert (tensor != 0).all()
    with pytest.raises(ValueError, match="inference tensor"):
        fastinit.normal_(tensor)


def test_frozen_parameters_are_initialised_by_a_rule_and_stay_frozen() -> None:
    module = nn.Linear(3, 3).requires_grad_(False)
    fastinit.init_model_(module, "zeros", [("*", "ones")])
    assert not module.weight.requires_grad and (module.weight == 1).all()


# A process ends with __main__, and _C is native.
NO_DOCTESTS = ("fastinit.__main__", "fastinit._C")
MODULES = [each.name for each in pkgutil.walk_packages(fastinit.__path__, "fastinit.") if each.name not in NO_DOCTESTS]


def test_doctests_are_looked_for_in_every_module() -> None:
    root = Path(fastinit.__file__).parent
    files = {path for path in root.rglob("*.py") if path.stem not in ("__init__", "__main__")}
    names = {".".join(("fastinit", *path.relative_to(root).with_suffix("").parts)) for path in files}
    assert names < set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0
