"""Other people's models are what they are without fastinit, under fused, deferred and no_init and under the scheme own.

A model is built twice as its author does, with two seeds. What is equal in both is a constant or a table, and must be
equal under fastinit. The rest is random, and must have the same mean and standard deviation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import library_of_models, needs_native
from torch import nn

import fastinit

SEED = 3
Make = Callable[[], nn.Module]


def quiet(action: Callable[[], Any]) -> Any:
    """What an action returns. The warnings of libraries are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def plain(make: Make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = quiet(make)
    return model


def fused(make: Make) -> nn.Module:
    with fastinit.fused(seed=SEED):
        model: nn.Module = quiet(make)
    return model


def deferred(make: Make) -> nn.Module:
    with fastinit.deferred(seed=SEED):
        model = quiet(make)
    return fastinit.materialize_(model, "own", device="cpu", seed=SEED)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) and one.dtype == other.dtype


def ties(model: nn.Module) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in tensors(model).items():
        found.setdefault(id(tensor), []).append(name)
    return sorted(found.values())


def assert_as_its_author_builds_it(make: Make, model: nn.Module) -> None:
    first, second = plain(make, 0), plain(make, 1)
    one, two, given = tensors(first), tensors(second), tensors(model)
    assert one.keys() == given.keys()
    for name, wanted in one.items():
        found = given[name].detach()
        assert not found.is_meta and found.dtype == wanted.dtype and found.shape == wanted.shape, name
        assert found.requires_grad == wanted.detach().requires_grad, name
        if same(wanted, two[name]):
            assert same(wanted, found), f"{name} is no longer what its author makes of it"
        else:
            assert_as_random(name, wanted.detach().double(), two[name].detach().double(), found.double())
    assert ties(first) == ties(model)


def assert_as_random(name: str, one: torch.Tensor, two: torch.Tensor, found: torch.Tensor) -> None:
    n = one.numel()
    assert bool(torch.isfinite(found).all()), name
    spread = max(one.std(correction=0).item(), abs(one.mean().item()), abs(two.mean().item()))
    off = max(8 * spread / math.sqrt(n), 3 * (one.mean() - two.mean()).abs().item())
    assert (found.mean() - one.mean()).abs().item() <= off, f"{name}: mean"
    if n > 1:  # a standard deviation of few values is hardly one
        ratio, usual = (found.std(correction=0) / one.std(correction=0)).item(), (two.std() / one.std()).item()
        assert ratio > 0 and abs(ratio - 1) <= max(6 / math.sqrt(n), 3 * abs(usual - 1), 0.01), f"{name}: std"


def assert_everything_serves(make: Make, *, own: bool = True) -> None:
    at_once, later = fused(make), deferred(make)
    assert_as_its_author_builds_it(make, at_once)
    for name, tensor in tensors(later).items():
        assert same(tensors(at_once)[name], tensor), f"{name} differs between fused and deferred"
    if own:
        again = plain(make, 2)
        before = {name: each.detach().clone() for name, each in again.named_parameters()}
        init_(again, "own")
        assert_as_its_author_builds_it(make, again)
        other = dict(plain(make, 3).named_parameters())
        for name, each in again.named_parameters():
            # DoRA's magnitudes follow the frozen map beside them.
            drawn = each.requires_grad and "magnitude" not in name and not same(before[name], other[name].detach())
            assert same(each.detach(), before[name]) is not drawn, name
        assert_a_scheme_replaces_draws_alone(make)


def init_(model: nn.Module, scheme: str) -> None:
    with warnings.catch_warnings():  # that frozen parameters are kept, and of fans
        warnings.simplefilter("ignore", fastinit.KeptWarning)
        warnings.simplefilter("ignore", fastinit.FanWarning)
        fastinit.init_model_(model, scheme, seed=SEED)


def assert_a_scheme_replaces_draws_alone(make: Make) -> None:
    """What the author sets, arranges or freezes stays, and what the author draws is drawn (biases become zero)."""
    model, other = plain(make, 0), dict(plain(make, 1).named_parameters())
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    init_(model, "kaiming_normal")
    for name, parameter in model.named_parameters():
        found = parameter.detach()
        if same(before[name], other[name].detach()) or not parameter.requires_grad:
            assert same(before[name], found), f"{name} is no longer what its author makes of it"
        elif found.dim() > 1 and found.numel() > 1:
            assert found.std() > 0, f"{name} is drawn by its author, and constant now"
        if found.dim() == 3 and "experts" in name:
            of_one_map = [math.sqrt(2 / found.shape[axis]) for axis in (-1, -2)]
            assert any(abs(found.std().item() / std - 1) < 0.1 for std in of_one_map), name


# ---- transformers ----


def hf() -> Any:
    return quiet(lambda: pytest.importorskip("transformers"))


SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tied": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "scaled by depth": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4}),
    "padding": ("BertForMaskedLM", "BertConfig", SIZES),
    "sinusoids": ("WhisperModel", "WhisperConfig", {
        "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 30,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4}),
    "state space": ("MambaModel", "MambaConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}),
    "experts": ("MixtralModel", "MixtralConfig", {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}),
    "vision": ("ViTForImageClassification", "ViTConfig", {**IMAGES, "num_attention_heads": 4}),
    "coordinates": ("Swinv2Model", "Swinv2Config", {
        "image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
}  # fmt: skip


def transformers_model(kind: str, config: str, sizes: dict[str, Any]) -> Make:
    library = hf()
    return lambda: getattr(library, kind)(getattr(library, config)(**sizes))


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("which", TRANSFORMERS)
def test_models_of_transformers(which: str) -> None:
    assert_everything_serves(transformers_model(*TRANSFORMERS[which]))


LOADED = {
    "tied": ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"],
    "scaled by depth": ["transformer.h.0.attn.c_proj.weight", "transformer.h.1.mlp.c_fc.bias"],
    "padding": ["bert.encoder.layer.0.output.dense.weight", "bert.embeddings.LayerNorm.weight"],
    "vision": ["classifier.weight", "vit.embeddings.position_embeddings"],
}


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("context", ["fused", "no_init", "no_init(check)", "deferred"])
@pytest.mark.parametrize("which", LOADED)
@pytest.mark.filterwarnings("ignore::fastinit.KeptWarning")
def test_from_pretrained_keeps_what_it_loads_and_initialises_the_rest(which: str, context: str, tmp_path: Path) -> None:
    make = transformers_model(*TRANSFORMERS[which])
    files = pytest.importorskip("safetensors.torch")
    source: Any = quiet(make)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(1.0, 0.5)
    quiet(lambda: source.save_pretrained(tmp_path))
    weights = files.load_file(tmp_path / "model.safetensors")
    for name in LOADED[which]:
        del weights[name]
    files.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    def load() -> nn.Module:
        model: nn.Module = type(source).from_pretrained(tmp_path)
        return model

    contexts: dict[str, Callable[[], Any]] = {
        "fused": lambda: fastinit.fused(seed=SEED),
        "no_init": fastinit.no_init,
        "no_init(check)": lambda: fastinit.no_init(check=True),
        "deferred": fastinit.deferred,
    }
    torch.manual_seed(SEED)
    with contexts[context]():
        model = quiet(load)
    if context == "deferred":
        missing = {name for name, each in model.named_parameters() if each.is_meta}
        assert missing == set(LOADED[which])
        fastinit.materialize_(model, "own", device="cpu", seed=SEED)
    assert_as_its_author_builds_it(load, model)
    for name, parameter in model.named_parameters():
        if name in weights:  # a few have other names in files
            assert torch.equal(parameter, weights[name]), name


# ---- timm and torchvision ----

TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_efficientnet": {},
    "swinv2_tiny_window8_256": {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1), "img_size": 64},
    "efficientformer_l1": {},
    "maxvit_rmlp_pico_rw_256": {
        "img_size": 64,
        "embed_dim": (32, 32, 32, 32),
        "depths": (1, 1, 1, 1),
        "stem_width": 16,
    },
}


@pytest.mark.zoo
@needs_native
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm(name: str) -> None:
    timm = quiet(lambda: library_of_models("timm"))
    # The scheme own asks timm for the architecture under its name, and these sizes are not those.
    assert_everything_serves(lambda: timm.create_model(name, **TIMM[name]), own=not TIMM[name])


@pytest.mark.zoo
@needs_native
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "vit", "swin_v2"])
def test_models_of_torchvision(name: str) -> None:
    models = quiet(lambda: library_of_models("torchvision.models"))
    vision: dict[str, Make] = {
        "shufflenet_v2_x0_5": models.shufflenet_v2_x0_5,
        "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64),
        "swin_v2": lambda: models.SwinTransformer(
            [4, 4], 16, [1, 1], [2, 2], [4, 4], block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2),
    }  # fmt: skip
    assert_everything_serves(vision[name], own=False)  # much of it is set in constructors alone


# ---- PEFT ----

TARGETS = ["q_proj", "v_proj"]
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4, "target_modules": TARGETS}),
    "dora": ("LoraConfig", {"r": 4, "target_modules": TARGETS, "use_dora": True}),
    "embedding": ("LoraConfig", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "adalora": ("AdaLoraConfig", {"target_r": 2, "init_r": 4, "target_modules": TARGETS, "total_step": 10}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LoHaConfig", {"r": 4, "target_modules": TARGETS}),
    "lokr": ("LoKrConfig", {"r": 4, "target_modules": TARGETS}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "target_modules": TARGETS}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "target_modules": TARGETS}),
    "vera": ("VeraConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "randlora": ("RandLoraConfig", {"r": 4, "target_modules": ["q_proj"]}),
    "miss": ("MissConfig", {"r": 8, "target_modules": TARGETS}),
}


@pytest.mark.zoo
@needs_native
@pytest.mark.parametrize("which", PEFT)
def test_models_with_adapters_of_peft(which: str) -> None:
    peft = quiet(lambda: library_of_models("peft"))
    kind, options = PEFT[which]
    base = transformers_model("LlamaForCausalLM", "LlamaConfig", {**SIZES, "num_key_value_heads": 2})
    assert_everything_serves(lambda: peft.get_peft_model(base(), getattr(peft, kind)(**options)))


@pytest.mark.zoo
def test_adapters_on_a_model_that_nobody_can_build_again() -> None:
    peft = quiet(lambda: library_of_models("peft"))

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.map = nn.Embedding(10, 8), nn.Linear(8, 8)

    model = peft.get_peft_model(Small(), peft.LoraConfig(r=4, target_modules=["embed", "map"]))
    init_(model, "own")
    for name, parameter in model.named_parameters():
        is_zero = "lora_B.default" in name or "lora_embedding_A" in name
        assert bool((parameter == 0).all()) is is_zero, name


# ---- diffusers and Lightning ----


def diffusers_models() -> dict[str, Make]:
    library = quiet(lambda: library_of_models("diffusers"))
    attention: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
    return {
        "DiT": lambda: library.DiTTransformer2DModel(**attention, sample_size=8, norm_num_groups=8),
        "PixArt": lambda: library.PixArtTransformer2DModel(
            **attention, sample_size=8, caption_channels=16, cross_attention_dim=32, norm_num_groups=8),
        "CogVideoX": lambda: library.CogVideoXTransformer3DModel(
            **attention, sample_width=16, sample_height=16, sample_frames=5, text_embed_dim=32),
        "VAE": lambda: library.AutoencoderKL(
            block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8),
    }  # fmt: skip


@pytest.mark.zoo
@needs_native
@pytest.mark.parametrize("which", ["DiT", "PixArt", "CogVideoX", "VAE"])
def test_models_of_diffusers(which: str) -> None:
    make = diffusers_models()[which]
    assert_everything_serves(make)
    with torch.device("meta"):
        model = quiet(make)
    twin = fastinit.materialize_(model, "own", device="cpu", seed=SEED, build=make)
    for name, tensor in tensors(twin).items():
        assert same(tensors(fused(make))[name], tensor), name


@pytest.mark.zoo
@needs_native
def test_a_module_of_lightning() -> None:
    lightning = quiet(lambda: library_of_models("lightning"))

    class Lit(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 4))
            self.register_buffer("schedule", torch.linspace(0, 1, width) * 2)
            nn.init.xavier_normal_(self.net[0].weight)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().sum()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    assert_everything_serves(Lit, own=False)
    with fastinit.no_init():
        empty = Lit()
    assert empty.schedule[-1] == 2 and (empty.net[1].weight == 1).all()

    def train(model: nn.Module) -> None:
        trainer = lightning.Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)

    # A whole training inside the context is a training, with the same results.
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.eye(16)[:8]), batch_size=4)
    inside, outside = fused(Lit), fused(Lit)
    with fastinit.fused(seed=SEED):
        quiet(lambda: train(inside))
    quiet(lambda: train(outside))
    assert not same(tensors(inside)["net.0.weight"], tensors(fused(Lit))["net.0.weight"])
    for name, tensor in tensors(inside).items():
        assert same(tensor, tensors(outside)[name]), name
