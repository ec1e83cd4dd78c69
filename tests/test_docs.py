"""The pages in docs/: their examples run, and every scheme, preset and recipe has its place. What help() says."""

from __future__ import annotations

import doctest
import inspect
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import needs_native
from torch import distributed, nn

import fastinit
from fastinit import functional
from fastinit.cli.architectures import ARCHITECTURES
from fastinit.schemes import base

PAGE = Path(__file__).parent.parent / "docs" / "SCHEMES.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_examples(page: Path, at_least: int = 6) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") >= at_least
    scope: dict[str, object] = {"__name__": "builtins"}  # dataclasses look for a module of this name
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), scope)


def test_examples_run() -> None:
    run_examples(PAGE)


def test_examples_of_migrating_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in dir(nn.init):  # which the examples exchange: everything comes back afterwards
        if not name.startswith("__"):
            monkeypatch.setattr(nn.init, name, getattr(nn.init, name))
    run_examples(PAGE.with_name("MIGRATING.md"), at_least=1)
    assert nn.init.normal_ is functional.normal_


@needs_native
@pytest.mark.filterwarnings("ignore::fastinit.FanWarning", "ignore::fastinit.ZerosWarning")
@pytest.mark.parametrize("page", ["index.md", "CHOOSING.md", "EXTENDING.md"])
def test_examples_of_the_first_pages_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_MAKERS", dict(base._MAKERS))  # one of the pages registers a scheme
    run_examples(PAGE.with_name(page), at_least=2)


def test_the_tables_of_performance_are_those_of_the_committed_results() -> None:
    page = runpy.run_path(str(PAGE.parents[1] / "benchmarks" / "page.py"))["page"]
    assert PAGE.with_name("PERFORMANCE.md").read_text(encoding="utf-8") == page()


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGE.parent.glob("reference/*.md"))
    described = set(re.findall(r"^::: fastinit\.(?:functional\.)?(\w+)$", text, re.MULTILINE))
    without = {"STREAM_VERSION", "__version__", "functional", "presets"}
    assert set(fastinit.__all__) - described == without


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (PAGE.parents[1] / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(PAGE.parent)) for path in PAGE.parent.rglob("*.md")}
    assert {page for page in pages if not re.search(rf": {re.escape(page)}$", menu, re.MULTILINE)} == set()


@pytest.mark.parametrize("page", ["FUSED.md", "NO_INIT.md"])
def test_examples_of_contexts_run(page: str) -> None:
    run_examples(PAGE.with_name(page), at_least=3)


@pytest.mark.parametrize("page", ["REPORT.md", "SIGNAL.md"])
def test_examples_of_looking_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the text plot
    run_examples(PAGE.with_name(page), at_least=3)


def test_examples_of_regenerating_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    run_examples(PAGE.with_name("REGENERATE.md"), at_least=9)
    assert "0.weight: |w|" in capsys.readouterr().out


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    """test_distributed.py has larger ones."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@needs_native
@pytest.mark.usefixtures("world_of_one")
@pytest.mark.filterwarnings("ignore")  # torch's own, of FSDP1 on a CPU
def test_distributed_examples_run() -> None:
    run_examples(PAGE.with_name("DISTRIBUTED.md"))


@needs_native
@pytest.mark.usefixtures("world_of_one")
def test_examples_of_deferred_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.with_name("DEFERRED.md")
    run_examples(page, at_least=4)
    table, _ = capsys.readouterr().out.rstrip().split("\n13 tensors")
    assert "\n".join("    " + line.rstrip() for line in table.split("\n")) in page.read_text(encoding="utf-8")


def test_the_line_of_the_readme_runs() -> None:
    text = PAGE.parent.with_name("README.md").read_text(encoding="utf-8")
    (block,) = BLOCK.findall(text)
    model = nn.Linear(3, 2)
    exec(block, {"model": model})
    assert not model.bias.any() and model.weight.any()


def test_the_example_of_the_command_line_runs() -> None:
    run_examples(PAGE.with_name("COMMAND_LINE.md"), at_least=1)


def test_every_command_is_in_the_table() -> None:
    page = PAGE.with_name("COMMAND_LINE.md")
    for command in ("info", "demo", "plan", "init", "verify", "report", "bench"):
        assert re.search(rf"^\| `fastinit {command}\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    for name in ARCHITECTURES:
        assert f"`{name}`" in page.read_text(encoding="utf-8")


def test_the_table_against_peers_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (?!---)(.+) \|$", PAGE.with_name("PEERS.md").read_text(encoding="utf-8"), re.MULTILINE)
    cells = [row.split(" | ") for row in rows if not row.startswith("|")]
    assert len(cells) > 15 and {len(each) for each in cells} == {10}
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for each in cells:
        assert each[1] == "+" and f"def {each[-1].strip('`')}(" in tests, each


def test_the_picture_of_the_readme_is_drawn_from_the_results() -> None:
    root = PAGE.parent.parent
    chart = runpy.run_path(str(root / "benchmarks" / "chart.py"))
    for name, colours in chart["COLOURS"].items():
        drawn = chart["draw"](chart["RESULTS"], colours)
        assert drawn == (root / "docs" / f"speed-{name}.svg").read_text(encoding="utf-8")


def in_a_table(name: str, page: Path) -> bool:
    return re.search(rf"^\|[^|]*`{name}`", page.read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("name", fastinit.scheme_names())
def test_every_scheme_is_in_a_table(name: str) -> None:
    if not name.startswith("test_"):  # registered by another test
        assert in_a_table(name, PAGE)


@pytest.mark.parametrize("name", fastinit.preset_names())
def test_every_preset_is_in_a_table(name: str) -> None:
    assert in_a_table(name, PAGE.with_name("PRESETS.md"))


def test_examples_of_presets_run() -> None:
    run_examples(PAGE.with_name("PRESETS.md"), at_least=1)


@pytest.mark.parametrize("name", ["deepnorm", "t_fixup", "fixup", "zer_o", "residual_zeros", "mup"])
def test_every_recipe_is_described(name: str) -> None:
    assert f"`{name}(model" in PAGE.read_text(encoding="utf-8")


def headings(page: Path) -> set[str]:
    """What links call the headings of a page."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


PAGES = [PAGE.parent.with_name("README.md"), *sorted(PAGE.parent.glob("*.md"))]


def links(page: Path) -> list[tuple[Path, str]]:
    """The files that a page leads to, each with a heading or none."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", prose)
    return [((page.parent / path).resolve() if path else page, heading) for path, heading in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), target
        assert not heading or heading in headings(target), heading


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = set(), PAGES[:1]
    while left:
        reached.add(page := left.pop())
        left += [target for target, _ in links(page) if target.suffix == ".md" and target not in reached]
    assert set(PAGES) <= reached


FUNCTIONS = [
    name for name in vars(functional) if not name.startswith("_") and (name.endswith("_") or name == "calculate_gain")
]
WITHOUT_PAPER = {"uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_"}


def test_the_functions_that_are_looked_at_are_all() -> None:
    assert {*(name for name in nn.init.__all__ if name.endswith("_")), "calculate_gain"} < set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_gives_arguments_errors_an_example_and_the_paper(name: str) -> None:
    function = getattr(functional, name)
    text = inspect.getdoc(function) or ""
    arguments, errors = text.split("Args:")[1].split("Raises:")
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*{parameter}(, \w+)*: ", arguments, re.MULTILINE), parameter
    assert re.search(r"^ +(TypeError|ValueError): ", errors, re.MULTILINE)
    assert name in WITHOUT_PAPER or re.search(r"\b(19|20)\d\d\b", errors)
    assert f"{name}(" in errors[errors.index(">>>") :]
    assert text.split("\n")[0].endswith(".") and text.split("\n")[1] == ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_functions_run(name: str) -> None:
    function = getattr(functional, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={"torch": torch, name: function})
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize(
    "name", [name for name in nn.init.__all__ if not name.endswith("_") and name != "calculate_gain"]
)
def test_deprecated_aliases_say_what_they_are(name: str) -> None:
    assert inspect.getdoc(getattr(functional, name)) == f"Deprecated alias of `{name}_`, as in torch.nn.init."
