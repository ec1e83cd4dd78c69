"""Presets against the code that libraries publish: the kind and the moments of every parameter of small models.

The library's code runs under `fastinit.deferred`, which records it. The plan of "own" then tells what it gives each
parameter. tests/test_presets.py has the formulas.
"""

from __future__ import annotations

import math
import re
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

TOKENS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
TOWERS = {
    "text_config": {**TRANSFORMER, **TOKENS, "initializer_factor": 0.5},
    "vision_config": {**TRANSFORMER, **PATCHES, "hidden_size": 32, "num_hidden_layers": 3, "initializer_range": 0.03},
}
DECODER = {**TRANSFORMER, **TOKENS, "num_key_value_heads": 2, "pad_token_id": 0}
T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 3,
    "vocab_size": 100,
    "decoder_start_token_id": 0,
}
SPEECH = {
    **TOKENS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 3,
    "decoder_start_token_id": 4, "max_source_positions": 50, "max_target_positions": 20,
}  # fmt: skip

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
    "CLIP": ("clip", of_transformers("CLIPModel", "CLIPConfig", **TOWERS, projection_dim=24)),
    "CLIP, another factor": (
        "clip", of_transformers("CLIPModel", "CLIPConfig", **TOWERS, initializer_factor=0.7, logit_scale_init_value=1.0)
    ),
    "CLIP, classes": ("clip", of_transformers("CLIPForImageClassification", "CLIPConfig", **TOWERS)),
    "CLIP, images": (
        "clip", of_transformers("CLIPVisionModelWithProjection", "CLIPVisionConfig", **TRANSFORMER, **PATCHES)
    ),
    "CLIP, text": (
        "clip", of_transformers("CLIPTextModelWithProjection", "CLIPTextConfig", **TRANSFORMER, **TOKENS)
    ),
    "Whisper": ("whisper", of_transformers("WhisperForConditionalGeneration", "WhisperConfig", **SPEECH)),
    "Whisper, classes": (
        "whisper",
        of_transformers("WhisperForAudioClassification", "WhisperConfig", **SPEECH, use_weighted_layer_sum=True),
    ),
    "Mixtral": (
        "mixtral",
        of_transformers("MixtralForCausalLM", "MixtralConfig", **DECODER, num_local_experts=4, initializer_range=0.03),
    ),
    "Qwen2-MoE": (
        "qwen_moe",
        of_transformers(
            "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **DECODER, num_experts=4, moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
        ),
    ),
    "Qwen3-MoE": (
        "qwen_moe",
        of_transformers(
            "Qwen3MoeForCausalLM", "Qwen3MoeConfig", **DECODER, num_experts=4, moe_intermediate_size=32, head_dim=16
        ),
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        of_transformers(
            "DeepseekV3ForCausalLM", "DeepseekV3Config", **{**DECODER, "num_key_value_heads": 4}, n_routed_experts=4,
            moe_intermediate_size=32, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1,
            q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        ),
    ),
    "T5, classes of tokens": ("t5", of_transformers("T5ForTokenClassification", "T5Config", **T5, num_labels=5)),
    "T5, classes": ("t5", of_transformers("T5ForSequenceClassification", "T5Config", **T5, num_labels=5)),
    "T5, answers": ("t5", of_transformers("T5ForQuestionAnswering", "T5Config", **T5)),
    "BERT, classes of tokens": (
        "bert", of_transformers("BertForTokenClassification", "BertConfig", **TRANSFORMER, vocab_size=100)
    ),
    "GPT-2, classes": (
        "gpt2", of_transformers("GPT2ForSequenceClassification", "GPT2Config", n_embd=64, n_layer=2, n_head=4, **TOKENS)
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "make"), OF_TRANSFORMERS.values(), ids=OF_TRANSFORMERS.keys())
def test_presets_are_what_transformers_does(preset: str, make: Callable[[], nn.Module]) -> None:
    assert differing(make, preset) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "config"), [("SiglipModel", "SiglipConfig"), ("Siglip2Model", "Siglip2Config")])
def test_siglip_is_what_transformers_does_but_for_logits_and_truncation(kind: str, config: str) -> None:
    images = {**TRANSFORMER, "patch_size": 8, **({"image_size": 32} if kind == "SiglipModel" else {"num_patches": 16})}
    text = {**TRANSFORMER, "vocab_size": 100}
    make = of_transformers(kind, config, text_config=text, vision_config=images)
    found = differing(make, "siglip")
    assert (found.pop("logit_scale"), found.pop("logit_bias")) == (("2.30259", "0"), ("-10", "0"))
    assert sorted(found) == [
        "text_model.head.weight",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.head.attention.out_proj.weight",
    ]
    for ours, theirs in found.values():
        assert ours.split(" in ")[0] == theirs.split(" in ")[0] and theirs.endswith("in [-2, 2]")
    assert set(differing(make, fastinit.presets.siglip(logit_scale=0.0, logit_bias=0.0))) == set(found)


def test_mamba2_of_transformers_is_mamba() -> None:
    make = of_transformers(
        "Mamba2ForCausalLM", "Mamba2Config", **TOKENS, hidden_size=64, num_hidden_layers=2, state_size=16, num_heads=8,
        head_dim=16, n_groups=2,
    )  # fmt: skip
    found = differing(make, "mamba")
    assert all(name.endswith("dt_bias") for name in found)  # random steps, which tests/test_presets.py looks at
    assert {name.rpartition(".")[2] for name in differing(make, "mamba2")} > {"A_log"}


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


NET: Mapping[str, Any] = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
ATTENTION: Mapping[str, Any] = {
    **NET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 24,
    "attention_head_dim": 8,
}  # fmt: skip


def of_diffusers(kind: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(library_of_models("diffusers"), kind)(**arguments)  # type: ignore[no-any-return]


@pytest.mark.zoo
def test_controlnet_is_what_diffusers_does() -> None:
    make = of_diffusers("ControlNetModel", **ATTENTION)
    assert differing(make, "controlnet") == {}
    model = fastinit.init_model_(make(), "controlnet", seed=0)
    zero = [name for name, weight in model.named_parameters() if name.endswith(".weight") and not weight.any()]
    assert len(zero) == len(model.controlnet_down_blocks) + 2  # type: ignore[arg-type]


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (
            of_diffusers(
                "UNet2DModel", **NET, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            ),
            r"resnets\.\d+\.conv2|attentions\.\d+\.to_out\.0|^conv_out",
        ),
        (
            of_diffusers("UNet2DConditionModel", **ATTENTION, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")),
            r"resnets\.\d+\.conv2|attentions\.\d+\.proj_out|^conv_out",
        ),
    ],
    ids=["without text", "with text"],
)  # fmt: skip
def test_the_unet_of_diffusers_differs_in_its_zeros(make: Callable[[], nn.Module], ends: str) -> None:
    found = differing(make, "unet")
    wanted = {name for name, _ in make().named_parameters() if re.search(rf"({ends})\.(weight|bias)$", name)}
    assert set(found) == wanted and len(wanted) > 10
    assert {ours for ours, _ in found.values()} == {"0"} and all(theirs[:2] == "U[" for _, theirs in found.values())


@pytest.mark.zoo
def test_dit_by_the_names_of_diffusers() -> None:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2, "sample_size": 8}
    model = of_diffusers("DiTTransformer2DModel", **sizes, patch_size=2, num_embeds_ada_norm=10)()
    rows = {row.name: row for row in fastinit.plan(model, "dit", strict=True).rows if row.action == "init"}
    zero = {name for name, row in rows.items() if str(row.distribution) == "0" and name.endswith("weight")}
    assert zero == {
        "transformer_blocks.0.norm1.linear.weight", "transformer_blocks.1.norm1.linear.weight", "proj_out_1.weight",
        "proj_out_2.weight",
    }  # fmt: skip
    assert all(str(row.distribution) == "0" for name, row in rows.items() if name.endswith("bias"))
    embedded = [name for name, row in rows.items() if row.distribution == Normal(0.0, 0.02)]
    assert len(embedded) == 6 and all("_embedder." in name for name in embedded)
    patch = rows["pos_embed.proj.weight"].distribution
    assert patch is not None and patch.bounds()[1] == pytest.approx(math.sqrt(6.0 / (4 * 2 * 2 + 32)))
    others = {name for name in rows if name.endswith("weight")} - zero - {*embedded, "pos_embed.proj.weight"}
    for name in others:
        outputs, inputs = rows[name].shape
        distribution = rows[name].distribution
        assert distribution is not None
        assert distribution.bounds()[1] == pytest.approx(math.sqrt(6.0 / (inputs + outputs))), name


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
