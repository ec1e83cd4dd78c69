"""Small stand-ins for well-known models, with the names and the structure of their usual implementations."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class BasicBlock(nn.Module):
    """torchvision's names."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(inputs, width, stride)


class Bottleneck(nn.Module):
    """torchvision's names."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _downsample(inputs, 4 * width, stride)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """torchvision's names; RESNET18 and RESNET50 are blocks and depths of the full models."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], width: int = 64, classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, depth in enumerate(depths):
            outputs = width * 2**stage
            blocks = []
            for position in range(depth):
                blocks.append(block(inputs, outputs, 2 if stage > 0 and position == 0 else 1))
                inputs = outputs * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)


RESNET18 = (BasicBlock, (2, 2, 2, 2))
RESNET50 = (Bottleneck, (3, 4, 6, 3))


def dcgan_generator(latent: int = 100, width: int = 32) -> nn.Module:
    """pytorch/examples: `main` of its Generator."""
    layers: list[nn.Module] = []
    sizes = [latent, 8 * width, 4 * width, 2 * width, width]
    for position, (inputs, outputs) in enumerate(pairwise(sizes)):
        stride, padding = (1, 0) if position == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False), nn.BatchNorm2d(outputs)]
        layers.append(nn.ReLU(True))
    layers += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.ModuleDict({"main": nn.Sequential(*layers)})


def dcgan_discriminator(width: int = 32) -> nn.Module:
    """pytorch/examples: `main` of its Discriminator."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for position in range(3):
        inputs, outputs = width * 2**position, width * 2 ** (position + 1)
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False), nn.Sigmoid()]
    return nn.ModuleDict({"main": nn.Sequential(*layers)})


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)


class _LayerScale(nn.Module):
    def __init__(self, width: int, init_values: float = 1e-5) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.full((width,), 7.0))


class _ViTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)


class VisionTransformer(nn.Module):
    """timm's names."""

    def __init__(self, width: int = 192, depth: int = 2, patch: int = 8, classes: int = 100) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.full((1, 1, width), 7.0))
        self.reg_token = nn.Parameter(torch.full((1, 4, width), 7.0))
        self.pos_embed = nn.Parameter(torch.full((1, 65, width), 7.0))
        self.patch_embed = _PatchEmbed(width, patch)
        self.blocks = nn.Sequential(*(_ViTBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)


class _LlamaAttention(nn.Module):
    def __init__(self, width: int, key_width: int) -> None:
        super().__init__()
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, key_width, bias=False)
        self.wv = nn.Linear(width, key_width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)


class _LlamaFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)


class _LlamaBlock(nn.Module):
    def __init__(self, width: int, key_width: int, hidden: int) -> None:
        super().__init__()
        self.attention = _LlamaAttention(width, key_width)
        self.feed_forward = _LlamaFeedForward(width, hidden)
        self.attention_norm = nn.RMSNorm(width)
        self.ffn_norm = nn.RMSNorm(width)


class Llama(nn.Module):
    """torchtitan's names: its layers are a dictionary. The keys' width is half of the queries' if not given."""

    def __init__(
        self,
        width: int = 128,
        depth: int = 3,
        vocabulary: int = 500,
        *,
        key_width: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (width, key_width or width // 2, hidden or 3 * width)
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleDict({str(layer): _LlamaBlock(*sizes) for layer in range(depth)})
        self.norm = nn.RMSNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
