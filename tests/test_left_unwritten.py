"""A parameter that nobody has written to when its model was built has no values that materialize_ could give it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastinit


class HalfWritten(nn.Module):
    """One parameter is left as it came, one is written in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.parts = nn.Parameter(torch.empty(3, 3)), nn.Parameter(torch.empty(4, 2))
        with torch.no_grad():
            self.parts[:2].fill_(1.0)
            self.parts[2:].zero_()


def built() -> HalfWritten:
    with fastinit.deferred():
        return HalfWritten()


@pytest.mark.filterwarnings("ignore::fastinit.UncoveredWarning")
def test_it_is_refused_by_name() -> None:
    model = built()
    assert fastinit.plan(model, "own").uncovered == ("left",)
    with pytest.raises(ValueError, match=r"left \(nothing was written to it when it was built"):
        fastinit.materialize_(model, "own", device="cpu")
    assert model.left.is_meta and model.parts.is_meta


def test_a_rule_gives_it_values_and_parts_make_a_whole() -> None:
    model = fastinit.materialize_(built(), "own", [("left", "ones")], device="cpu")
    assert (model.left == 1.0).all()
    assert model.parts.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
