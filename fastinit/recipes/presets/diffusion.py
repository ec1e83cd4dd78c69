"""Presets of diffusion models: U-nets, ControlNet, diffusion transformers."""

from __future__ import annotations

import re

from torch import nn

from fastinit.recipes.files import Recipe
from fastinit.recipes.presets.parts import TORCH_BIAS, TORCH_WEIGHT, ZEROS, check_given
from fastinit.rules.select import KEEP, Rule
from fastinit.rules.where import Where
from fastinit.schemes.fans import FanAxes
from fastinit.schemes.named import Normal, xavier_uniform

# What torch gives layers by itself, as rules behind those of a preset.
_TORCH = (
    Rule(Where(type=("Linear", "_ConvNd"), dims=1), TORCH_BIAS, fan="weight"),
    Rule(Where(type="Embedding"), Normal()),
)


def unet(model: nn.Module | None = None) -> Recipe:
    """Zero, with their biases, for the last convolution of every residual block, the output of every attention block
    and the output of the net; all else as torch has it.

    Dhariwal, Nichol 2021 (openai/guided-diffusion, unet.py: zero_module); Rombach et al. 2022
    (CompVis/latent-diffusion, ldm/modules/diffusionmodules/openaimodel.py and ldm/modules/attention.py). By the names
    of these and of diffusers, whose own code sets nothing to zero.

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    last = (
        r"(^|\.)out\.2\.|\.out_layers\.3\.|\.proj_out\."  # guided-diffusion and latent-diffusion
        r"|(^|\.)conv_out\.|\.resnets\.\d+\.conv2\.|\.attentions\.\d+\.to_out\.0\."  # diffusers
    )
    return Recipe(
        TORCH_WEIGHT,
        [Rule(re.compile(last), ZEROS), *_TORCH],
        name="unet",
        source="openai/guided-diffusion, unet.py; CompVis/latent-diffusion, openaimodel.py, attention.py",
    )


def controlnet(model: nn.Module | None = None) -> Recipe:
    """Zero convolutions: zero, with their biases, for every connection to the locked model and for the last convolution
    of the hint; all else as torch has it.

    Zhang, Rao, Agrawala 2023, section 3.1; lllyasviel/ControlNet, cldm/cldm.py (zero_convs, middle_block_out,
    input_hint_block); diffusers 0.42, models/controlnets (controlnet_*, controlnet_cond_embedding.conv_out). The
    weights that ControlNet shares with the locked model are copied from it after that; `names=` of `init_model_` may
    leave them out.

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    hint = r"(^|\.)input_hint_block\.14\.|(^|\.)controlnet_cond_embedding\.conv_out\."
    zero = r"(^|\.)(zero_convs|middle_block_out|controlnet_(down_blocks|mid_block|blocks|single_blocks|x_embedder))\."
    return Recipe(
        TORCH_WEIGHT,
        [Rule(re.compile(f"{zero}|{hint}"), ZEROS), *_TORCH],
        name="controlnet",
        source="Zhang, Rao, Agrawala 2023, section 3.1; lllyasviel/ControlNet, cldm/cldm.py; diffusers, controlnets",
    )


def dit(model: nn.Module | None = None) -> Recipe:
    """adaLN-Zero: zero, with their biases, for the modulation of every block and of the final layer, and for the final
    layer; xavier_uniform for all other linear maps and for the patch embedding, taken as a linear map; embeddings of
    classes and of time steps N(0, 0.02^2). Frozen tables of positions are kept.

    Peebles, Xie 2023, section 3.2; facebookresearch/DiT, models.py: DiT.initialize_weights. By its names and those of
    diffusers, whose own code leaves all as torch has it.

    Raises:
        TypeError: the model is no module.
    """
    check_given(model)
    zero = (
        r"\.adaLN_modulation\.\d+\.|(^|\.)final_layer\.linear\."  # DiT
        r"|(^|\.)transformer_blocks\.\d+\.norm1\.linear\.|(^|\.)proj_out_[12]\."  # diffusers
    )
    steps = r"(^|\.)t_embedder\.mlp\.\d+\.weight$|\.timestep_embedder\.linear_[12]\.weight$|\.embedding_table\.weight$"
    rules = [
        Rule(Where(regex=r"(^|\.)pos_embed$", requires_grad=False), KEEP),
        Rule(re.compile(zero), ZEROS),
        Rule(re.compile(steps), Normal(std=0.02)),
        # A convolution is a linear map of its patches: n_in is a patch, and n_out the channels alone.
        Rule(Where(regex=r"\.proj\.weight$", dims=4), xavier_uniform(), fan=FanAxes((1, 2, 3), 0)),
    ]
    return Recipe(
        xavier_uniform(),
        rules,
        name="dit",
        source="Peebles, Xie 2023, section 3.2; facebookresearch/DiT, models.py: DiT.initialize_weights",
    )
