"""The layout of the package: rooms know only the rooms below them, and what is public is a list."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastinit

ROOT = Path(fastinit.__file__).parent
# From the top to the bottom. Files and folders on one line do not know each other.
LEVELS = (
    ("__init__", "__main__"),
    ("cli",),
    ("adapters",),
    ("model", "functional"),
    ("audit", "meta"),
    ("recipes",),
    ("rules",),
    ("capture",),
    ("plans",),
    ("run",),
    ("schemes",),
    ("distributed",),
    ("errors", "_native", "_torch", "_version"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

PUBLIC = [
    "KEEP", "STREAM_VERSION", "Chrono", "Constant", "ConstantWarning", "Context", "DeltaOrthogonal", "DepthScaled",
    "Dirac", "Eye", "FallbackWarning", "FanAxes", "FanWarning", "Fans", "ForgetBias", "Held",
    "IdentityPlusOrthogonal", "KeptWarning",
    "LogOfUniform", "LogRange", "MuP", "Normal", "Orthogonal", "Own", "ParameterError", "Piece", "Plan", "Ramp",
    "Recipe", "Row", "Rule", "Scaled", "Scheme", "Sparse", "Spectral", "StagedWarning", "TimeStep", "TruncNormal",
    "UncoveredWarning", "Uniform", "VarianceScaling", "Where", "ZerO", "ZerosWarning", "__version__", "adapters",
    "calculate_gain", "compare", "constant_", "deepnorm", "deferred", "delta_orthogonal_", "derive_seed", "dirac_",
    "distance", "dummy_", "eye_", "fingerprint", "fixup", "functional", "fused", "init_", "init_model_",
    "kaiming_normal_", "kaiming_uniform_", "lecun_normal_", "lecun_uniform_", "load_recipe", "lora_rules",
    "materialize_", "mup", "no_init", "normal_", "ones_", "orthogonal_", "plan", "preset", "preset_names", "presets",
    "register_scheme", "register_shards", "report", "residual_zeros", "scheme", "scheme_names", "sparse_", "spectral_",
    "t_fixup", "tensor_parallel", "trace_signal", "trunc_normal_", "uniform_", "variance_scaling_", "verify",
    "xavier_normal_", "xavier_uniform_", "zer_o", "zeros_",
]  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """What a file imports of the package, as dotted names after `fastinit.`, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name.removeprefix("fastinit.") for each in node.names if each.name.startswith("fastinit."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "fastinit":
                yield from (each.name for each in node.names)
            elif node.module is not None and node.module.startswith("fastinit."):
                yield node.module.removeprefix("fastinit.")


FILES = sorted(ROOT.rglob("*.py"))


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_know_only_the_rooms_below_them(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        of = name.split(".")[0]
        if of == "_C":
            assert room == "_native"
        elif of != room:
            assert LEVEL[of] > LEVEL[room], f"{room} imports {name}"


def test_the_public_names() -> None:
    assert sorted(fastinit.__all__) == sorted(PUBLIC)
    assert len(set(PUBLIC)) == len(PUBLIC)
    for name in PUBLIC:
        getattr(fastinit, name)


def test_no_function_has_the_name_of_a_module_beside_it() -> None:
    for path in FILES:
        if path.name != "__init__.py" or path.parent == ROOT / "cli":
            continue
        package = importlib.import_module(".".join(("fastinit", *path.parent.relative_to(ROOT).parts)))
        for found in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            assert isinstance(module, types.ModuleType)
            assert getattr(package, found.name) is module


def test_no_public_function_has_the_name_of_a_module_anywhere() -> None:
    modules = {path.stem if path.stem != "__init__" else path.parent.name for path in ROOT.rglob("*.py")}
    functions = {name for name in fastinit.__all__ if not isinstance(getattr(fastinit, name), types.ModuleType)}
    assert not modules & functions
