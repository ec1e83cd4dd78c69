"""The experiments of docs/examples/textbook.py: what docs/SIGNAL.md says of them, and their pictures."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def textbook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("textbook", DOCS / "examples" / "textbook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_products_explode_vanish_and_stay(textbook: ModuleType) -> None:
    last = {name: largest[-1] for name, (_, largest) in textbook.products().items()}
    assert last["N(0, 1)"] > 1e20 and last["N(0, 1/4)"] < 1e-3 and 0.4 < last["orthogonal"] <= 1.0 + 1e-9


def test_the_sigmoid_passes_a_quarter(textbook: ModuleType) -> None:
    _, slopes = textbook.sigmoid()["its derivative"]
    assert max(slopes) == pytest.approx(0.25) and slopes[0] == pytest.approx(3.4e-4, rel=0.02)


def test_equal_units_stay_equal(textbook: ModuleType) -> None:
    curves = textbook.equal_units(steps=20)
    assert max(curves["constant 0.5"][1]) < 1e-6 and min(curves["xavier_uniform"][1]) > 0.1


def test_the_measured_gain_of_tanh_is_below_torchs(textbook: ModuleType) -> None:
    assert textbook.measured_gain(torch.tanh) == pytest.approx(1.5925, abs=0.005)
    assert textbook.settled(0.9, layers=30) < 0.1 < 0.5 < textbook.settled(5.0 / 3.0, layers=30) < 0.8


@pytest.mark.parametrize("name", ["hundred_relu", "hundred_tanh", "products", "sigmoid", "equal_units", "tanh_gain"])
def test_pictures_are_there_and_drawn_for_light_and_dark(name: str) -> None:
    text = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg") and "prefers-color-scheme: dark" in text
    assert f"pictures/{name}.svg" in (DOCS / "SIGNAL.md").read_text(encoding="utf-8")


def test_a_picture_has_a_path_for_each_curve(textbook: ModuleType) -> None:
    curves = {"a": ((0, 1, 2), (1.0, 0.0, 100.0)), "b": ((0, 1, 2), (1.0, 2.0, float("inf")))}
    root = ElementTree.fromstring(textbook.picture("A & B", "x", "y", curves, log=True))
    paths = [each.attrib["d"] for each in root.iter("{http://www.w3.org/2000/svg}path")]
    assert len(paths) == 4  # and a key in the legend for each
    assert paths[0].count("L") == 1  # no logarithm of zero
