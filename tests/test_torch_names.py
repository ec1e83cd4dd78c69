"""Torch's private names: used in fastinit/_torch.py alone, and the package works where torch lacks them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fastinit
from fastinit import _torch

PACKAGE = Path(fastinit.__file__).parent
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "_torch.py"]

# No private names of torch: NamedTuple's methods; the dictionaries of nn.Module, which every subclass inherits, and the
# version counter, both the same in every release; methods and marks of other people's modules.
NAMED_TUPLE = {"_replace", "_asdict", "_fields"}
MODULE = {"_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_non_persistent_buffers_set"}
ALLOWED = NAMED_TUPLE | MODULE | {"_version", "_init_weights", "_is_hf_initialized"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of what may be private to torch: in imports, as attributes of others, in getattr and hasattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            yield from ((node.lineno, each) for each in modules if any(map(is_private, each.split("."))))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, each) for each in names if is_private(each))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield node.lineno, str(name.value)


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch.utils._python_dispatch import is_traceable_wrapper_subclass",
        "from torch.nn.utils.parametrizations import _Orthogonal",
        "nn.modules.conv._ConvNd",
        "tensor.untyped_storage()._cdata",
        "self.module._get_fsdp_state()",
        "getattr(tensor, '_local_tensor')",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert list(private_names(ast.parse(source)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_uses_torchs_private_names(path: Path) -> None:
    found = private_names(ast.parse(path.read_text(encoding="utf-8")))
    assert [(line, name) for line, name in found if name not in ALLOWED] == []


def test_the_file_of_private_names_imports_nothing_of_the_package() -> None:
    tree = ast.parse((PACKAGE / "_torch.py").read_text(encoding="utf-8"))
    imported = [each.module or "" for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]
    imported += [alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names]
    assert not any(name.startswith("fastinit") for name in imported)


def test_torch_has_the_classes_that_are_asked_for() -> None:
    asked = [_torch.CONVOLUTIONS, _torch.BATCH_NORMS, _torch.SPECTRAL_NORMS, _torch.ORTHOGONALS]
    assert [len(each) for each in asked] == [1, 1, 1, 1]
    assert issubclass(nn.ConvTranspose3d, _torch.CONVOLUTIONS) and issubclass(nn.SyncBatchNorm, _torch.BATCH_NORMS)
    assert issubclass(nn.InstanceNorm1d, _torch.BATCH_NORMS)
    assert issubclass(
        type(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)).parametrizations.weight[0]),  # type: ignore[union-attr,index,operator]
        _torch.SPECTRAL_NORMS,
    )
    assert issubclass(
        type(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)).parametrizations.weight[0]),  # type: ignore[union-attr,index,operator]
        _torch.ORTHOGONALS,
    )


def test_classes_that_torch_lacks_are_replaced_by_the_public_ones() -> None:
    assert _torch.classes("torch.nn.modules.conv", "_NoSuchClass", (nn.Conv1d,)) == (nn.Conv1d,)
    assert _torch.classes("torch.nn.modules.conv", "_NoSuchClass") == ()


def test_types_of_tensors_survive_without_torchs_private_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.zeros(2), requires_grad=False)
    for lacking in (False, True):
        if lacking:
            monkeypatch.setattr(torch.Tensor, "_make_subclass", None)
        made = _torch.typed_like(parameter, torch.ones(2))
        assert type(made) is nn.Parameter and not made.requires_grad and made.is_leaf
        monkeypatch.undo()


def test_storages_that_are_shared_have_one_key() -> None:
    tensor = torch.empty(4, device="meta")
    assert _torch.storage_key(tensor) == _torch.storage_key(tensor[1:])
    assert _torch.storage_key(tensor) != _torch.storage_key(torch.empty(4, device="meta"))


# Deleted before fastinit is imported. torch.nn.init itself cannot do without its own, which come back afterwards.
LACKING = """
import importlib, torch
import torch.distributed.fsdp, torch.nn.utils.parametrizations
own = dict(vars(torch.nn.init))
for module, name in (
    ("torch._C", "_functorch"),
    ("torch._C", "_get_dispatch_mode"),
    ("torch._subclasses.fake_tensor", "FakeTensor"),
    ("torch.nn.init", "_no_grad_fill_"),
    ("torch.nn.init", "_no_grad_uniform_"),
    ("torch.nn.init", "_no_grad_zero_"),
    ("torch.nn.modules.batchnorm", "_NormBase"),
    ("torch.nn.modules.conv", "_ConvNd"),
    ("torch.nn.utils.parametrizations", "_Orthogonal"),
    ("torch.nn.utils.parametrizations", "_SpectralNorm"),
    ("torch.nn.utils.parametrize", "_cache"),
    ("torch.utils._python_dispatch", "is_traceable_wrapper_subclass"),
):
    delattr(importlib.import_module(module), name)
"""
SMOKE = """
from torch import nn
import fastinit
vars(torch.nn.init).update(own)
with torch.device("meta"):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True), nn.Linear(8, 2))
fastinit.materialize_(model, "kaiming_uniform", device="cpu", fan="module", seed=0)
assert model[1].weight.eq(1).all() and model[1].running_var.eq(1).all() and model[3].bias.eq(0).all()
other = nn.Linear(8, 2)
fastinit.init_([other.weight], "kaiming_uniform", names=["3.weight"], seed=0)
assert torch.equal(other.weight, model[3].weight)
fastinit.init_model_(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "normal", seed=0)
fastinit.init_([torch.empty(3, 3)], "normal", seed=0, backend="torch")
fastinit.xavier_uniform_(torch.empty(3, 3, device="meta"))
print(fastinit.normal_(torch.empty(3)).isfinite().all().item())
"""


@pytest.mark.slow
def test_the_package_works_without_torchs_private_names() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LACKING + SMOKE], capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "True\n", run.stderr


def test_functions_are_left_out_of_compiled_ones_without_the_private_form(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()  # imports the compiler, which needs the private form itself
    monkeypatch.delattr(torch, "_disable_dynamo")
    function = _torch.uncompiled(lambda tensor: tensor.data_ptr())  # which cannot be traced
    monkeypatch.undo()
    tensor = torch.ones(3)
    compiled = torch.compile(lambda tensor: function(tensor), backend="eager")
    assert compiled(tensor) == function(tensor) == tensor.data_ptr()
