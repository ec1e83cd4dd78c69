"""Presets by their names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.diffusion import controlnet, dit, unet
from fastinit.recipes.presets.language import (
    bert,
    deepseek_v3,
    gpt2,
    llama,
    llama_depth,
    mixtral,
    modded_nanogpt,
    nanochat,
    nanogpt,
    qwen_moe,
    t5,
)
from fastinit.recipes.presets.multimodal import clip, siglip, whisper
from fastinit.recipes.presets.recurrent import mamba, mamba2, rwkv7
from fastinit.recipes.presets.vision import ViTMode, convnext, dcgan, deit, dinov2, resnet, siren, swin, vit
from fastinit.schemes.base import Scheme, as_scheme, check_choice, scheme_names


def _mode(mode: ViTMode) -> Callable[[nn.Module | None], Recipe]:
    return lambda model: vit(model, mode=mode)


def _resnet_plain(model: nn.Module | None) -> Recipe:
    return resnet(model, zero_init_residual=False)


_PRESETS: dict[str, Callable[[nn.Module | None], Recipe]] = {
    "gpt2": gpt2,
    "nanogpt": nanogpt,
    "modded_nanogpt": modded_nanogpt,
    "nanochat": nanochat,
    "llama": llama,
    "llama_depth": llama_depth,
    "mixtral": mixtral,
    "qwen_moe": qwen_moe,
    "deepseek_v3": deepseek_v3,
    "bert": bert,
    "t5": t5,
    "mamba": mamba,
    "mamba2": mamba2,
    "rwkv7": rwkv7,
    "vit": vit,
    "vit_jax": _mode("jax"),
    "vit_jax_nlhb": _mode("jax_nlhb"),
    "vit_moco": _mode("moco"),
    "deit": deit,
    "dinov2": dinov2,
    "swin": swin,
    "convnext": convnext,
    "resnet": resnet,
    "resnet_plain": _resnet_plain,
    "dcgan": dcgan,
    "unet": unet,
    "controlnet": controlnet,
    "dit": dit,
    "siren": siren,
    "clip": clip,
    "siglip": siglip,
    "whisper": whisper,
}


def preset_names() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(_PRESETS)


def preset(name: str, model: nn.Module | None = None) -> Recipe:
    """The preset `name` for a model, to look at, to save or to extend.

    `fastinit.presets` has the presets as functions, with their arguments.

    Raises:
        TypeError: no model.
        ValueError: unknown name, or a model that lacks what the preset must know.

    >>> print(preset("gpt2").to_toml().splitlines()[2])
    scheme = { name = "normal", std = 0.02 }
    """
    check_choice("preset", name, preset_names())
    return _PRESETS[name](model)


def as_recipe(given: str | Scheme | Recipe, model: nn.Module | None) -> Recipe:
    """A recipe as it is; the preset of that name; or a recipe of the scheme, or of the scheme of that name, alone."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str) and given not in scheme_names():
        check_choice("scheme", given, (*scheme_names(), *preset_names()))
        return preset(given, model)
    return Recipe(as_scheme(given))
