"""Presets against the code that libraries publish: the kind and the moments of every parameter of small models.

The library's code runs under `fastinit.deferred`, which records it. The plan of "own" then tells what it gives each
parameter. tests/test_presets.py has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conftest import library_of_models
from torch import nn

import fastinit
from fastinit.capture.tapes import Taped
from fastinit.schemes.distributions import Distribution, Normal, TruncNormal, ZeroRow

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:no rule covers:fastinit.UncoveredWarning"),  # by the plan of "own"
]


def plain(distribution: Distribution) -> Distribution:
    """A truncation many sigmas out, which some libraries write, is as good as none."""
    if isinstance(distribution, TruncNormal) and min(-distribution.low, distribution.high) > 10.0 * distribution.sigma:
        return Normal(distribution.center, distribution.sigma)
    return distribution


def equal(ours: Distribution, theirs: Distribution) -> bool:
    ours, theirs = plain(ours), plain(theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, ZeroRow) and isinstance(theirs, ZeroRow):
        return ours.row == theirs.row and equal(ours.rest, theirs.rest)
    numbers = [(each.mean(), each.std(), *each.bounds()) for each in (ours, theirs)]
    return numbers[0] == pytest.approx(numbers[1], rel=1e-6, abs=1e-300)


def differing(make: Callable[[], nn.Module], preset: str | fastinit.Recipe) -> dict[str, tuple[str, str]]:
    """The parameters to which a preset gives something else than the model's own code, and what both give."""
    with fastinit.deferred():
        authored = make()
    own = {row.name: row for row in fastinit.plan(authored, "own", seed=1).rows}
    model = make()
    plan = fastinit.plan(model, preset, seed=2, strict=True)
    found, tables = {}, []
    for row in plan.rows:
        ours, theirs = row.distribution, own[row.name].distribution
        if isinstance(theirs, Taped):
            tables.append(row.name)
        elif row.action == own[row.name].action and (ours is theirs or (ours and theirs and equal(ours, theirs))):
            continue
        else:
            found[row.name] = (str(ours), str(theirs))
    if tables:  # what is told by its values alone
        fastinit.materialize_(authored, "own", device="cpu", seed=1)
        plan.run_()
        for name in tables:
            one, other = model.get_parameter(name), authored.get_parameter(name)
            if not torch.allclose(one, other, rtol=1e-6, atol=0.0):
                found[name] = (f"{one.flatten()[:4]}", f"{other.flatten()[:4]}")
    return found


def of_transformers(kind: str, config: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        model: nn.Module = getattr(transformers, kind)._from_config(getattr(transformers, config)(**arguments))
        return model

    return make


def of_timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: library_of_models("timm").create_model(name, **arguments)  # type: ignore[no-any-return]


TRANSFORMER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "num_labels": 10}
WINDOWS = {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 2], "image_size": 64, "num_labels": 10}
PATCHES = {"image_size": 32, "patch_size": 8}
DINO = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **PATCHES}

Case = tuple[str, Callable[[], nn.Module]]

OF_TRANSFORMERS: dict[str, Case] = {
    "ConvNeXt": ("convnext", of_transformers("ConvNextForImageClassification", "ConvNextConfig", **STAGES)),
    "ConvNeXt without LayerScale": (
        "convnext", of_transformers("ConvNextModel", "ConvNextConfig", **STAGES, layer_scale_init_value=0.0)
    ),
    "ConvNeXt of another scale": (
        "convnext",
        of_transformers("ConvNextModel", "ConvNextConfig", **STAGES, layer_scale_init_value=0.1, initializer_range=0.1),
    ),
    "ConvNeXt V2": ("convnext", of_transformers("ConvNextV2ForImageClassification", "ConvNextV2Config", **STAGES)),
    "Swin": (
        "swin", of_transformers("SwinForImageClassification", "SwinConfig", **WINDOWS, use_absolute_embeddings=True)
    ),
    "Swin, masked": ("swin", of_transformers("SwinForMaskedImageModeling", "SwinConfig", **WINDOWS)),
    "Swin V2": ("swin", of_transformers("Swinv2ForImageClassification", "Swinv2Config", **WINDOWS)),
    "DeiT": ("deit", of_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig", **TRANSFORMER, **PATCHES)),
    "DeiT, masked": ("deit", of_transformers("DeiTForMaskedImageModeling", "DeiTConfig", **TRANSFORMER, **PATCHES)),
    "DINOv2": ("dinov2", of_transformers("Dinov2ForImageClassification", "Dinov2Config", **DINO, num_labels=10)),
    "DINOv2, SwiGLU": (
        "dinov2", of_transformers("Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True, layerscale_value=0.5)
    ),
    "DINOv2 with registers": (
        "dinov2", of_transformers("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **DINO)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("preset", "make"), OF_TRANSFORMERS.values(), ids=OF_TRANSFORMERS.keys())
def test_presets_are_what_transformers_does(preset: str, make: Callable[[], nn.Module]) -> None:
    assert differing(make, preset) == {}


SMALL_STAGES: Mapping[str, Any] = {"num_classes": 10, "depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}
SMALL_WINDOWS: Mapping[str, Any] = {"num_classes": 10, "depths": (1, 1), "num_heads": (2, 2), "embed_dim": 32}
SMALL_VIT: Mapping[str, Any] = {"num_classes": 10, "depth": 2, "embed_dim": 64, "num_heads": 2}

OF_TIMM: dict[str, Case] = {
    "ConvNeXt": ("convnext", of_timm("convnext_atto", **SMALL_STAGES)),
    "ConvNeXt V2": ("convnext", of_timm("convnextv2_atto", **SMALL_STAGES)),
    "Swin": ("swin", of_timm("swin_tiny_patch4_window7_224", **SMALL_WINDOWS)),
    "Swin V2": ("swin", of_timm("swinv2_tiny_window8_256", **SMALL_WINDOWS)),
    "DeiT": ("deit", of_timm("deit_tiny_distilled_patch16_224", **SMALL_VIT)),
    "DeiT by vit": ("vit", of_timm("deit_tiny_distilled_patch16_224", **SMALL_VIT)),
    "DeiT by vit_jax": ("vit_jax", of_timm("deit_tiny_distilled_patch16_224", **SMALL_VIT, weight_init="jax")),
    "DeiT by vit_jax_nlhb": (
        "vit_jax_nlhb", of_timm("deit_tiny_distilled_patch16_224", **SMALL_VIT, weight_init="jax_nlhb")
    ),
    "DeiT III": ("deit", of_timm("deit3_small_patch16_224", **SMALL_VIT)),
    "DINOv2": ("dinov2", of_timm("vit_small_patch14_reg4_dinov2", **{**SMALL_VIT, "img_size": 28})),
}  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize(("preset", "make"), OF_TIMM.values(), ids=OF_TIMM.keys())
def test_presets_are_what_timm_does(preset: str, make: Callable[[], nn.Module]) -> None:
    assert differing(make, preset) == {}


@pytest.mark.zoo
def test_swin_is_what_torchvision_does() -> None:
    models = library_of_models("torchvision.models.swin_transformer")
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}
    assert differing(lambda: models.SwinTransformer(**sizes, num_classes=10), "swin") == {}


@pytest.mark.zoo
def test_swin_v2_is_what_torchvision_does() -> None:
    models = library_of_models("torchvision.models.swin_transformer")
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": [4, 4]}
    blocks = {"block": models.SwinTransformerBlockV2, "downsample_layer": models.PatchMergingV2}
    assert differing(lambda: models.SwinTransformer(**sizes, **blocks, num_classes=10), "swin") == {}


def test_the_comparison_notices_another_std_kind_value_and_row() -> None:
    make = OF_TRANSFORMERS["ConvNeXt"][1]
    wider = differing(make, fastinit.presets.convnext(std=0.021))
    assert len(wider) > 5 and all(name.endswith("weight") for name in wider)
    assert set(differing(make, fastinit.presets.convnext(layer_scale=1.0))) == {
        name for name, _ in make().named_parameters() if name.endswith("layer_scale_parameter")
    }
    assert equal(Normal(0.0, 1.0), TruncNormal(0.0, 1.0, -50.0, 50.0))
    assert not equal(Normal(0.0, 1.0), TruncNormal(0.0, 1.0, -2.0, 2.0))
    assert not equal(Normal(0.0, 1.0), ZeroRow(0, 3, Normal(0.0, 1.0)))
    assert not equal(ZeroRow(1, 3, Normal(0.0, 1.0)), ZeroRow(0, 3, Normal(0.0, 1.0)))
    assert not equal(Normal(0.0, 1.0), Normal(0.0, 1.0 + math.ulp(1e10)))
