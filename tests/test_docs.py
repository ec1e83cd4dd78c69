"""The pages in docs/: their examples run, and SCHEMES.md names every scheme, preset and recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import needs_native
from torch import distributed

import fastinit

PAGE = Path(__file__).parent.parent / "docs" / "SCHEMES.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_examples(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 5
    scope: dict[str, object] = {"__name__": "examples"}
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), scope)


def test_examples_run() -> None:
    run_examples(PAGE)


@needs_native
@pytest.mark.filterwarnings("ignore")  # torch's own, of FSDP1 on a CPU
def test_distributed_examples_run(tmp_path: Path) -> None:
    """In a world of one process; test_distributed.py has larger ones."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        run_examples(PAGE.with_name("DISTRIBUTED.md"))
    finally:
        distributed.destroy_process_group()


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
