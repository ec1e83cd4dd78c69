"""docs/SCHEMES.md: its examples run, and it names every scheme, preset and recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastinit

PAGE = Path(__file__).parent.parent / "docs" / "SCHEMES.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 5
    scope: dict[str, object] = {}
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(PAGE), "exec"), scope)


@pytest.mark.parametrize("name", [*fastinit.scheme_names(), *fastinit.preset_names()])
def test_every_scheme_and_preset_is_in_a_table(name: str) -> None:
    if not name.startswith("test_"):  # registered by another test
        assert re.search(rf"^\|[^|]*`{name}`", PAGE.read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("name", ["deepnorm", "t_fixup", "fixup", "zer_o", "residual_zeros", "mup"])
def test_every_recipe_is_described(name: str) -> None:
    assert f"`{name}(model" in PAGE.read_text(encoding="utf-8")


def test_links_lead_to_headings() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings
