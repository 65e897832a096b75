"""A small U-Net in the manner of DDPM++ (Song et al. 2021, arXiv 2011.13456): group norm and adaptive scale."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_CHANNELS = 8  # channels per group of a group norm


def positional_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Cosines and sines of c_noise (N,) at geometric frequencies from 1 to 1e-4: (N, width) (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=c_noise.device) / (width // 2))
    angles = c_noise[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all its weights set to 0, so that what follows it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """Two convolutions around a residual; the embedding scales and shifts the second one's normalised input."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), scale + 1)))
        return self.skip(x) + h


class Level(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, inputs: int, outputs: int, embedding: int, blocks: int) -> None:
        super().__init__()
        widths = [inputs] + blocks * [outputs]
        self.blocks = nn.ModuleList(Block(a, b, embedding) for a, b in pairwise(widths))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, C, H, W). H and W must be divisible by 2^(levels - 1).

    Where `labels` > 0, it may be told so many numbers more about each image, (N, labels); not told is all 0.
    """

    def __init__(
        self, image_channels: int, channels: int, multipliers: tuple[int, ...], blocks: int, labels: int = 0
    ) -> None:
        super().__init__()
        self.channels = channels
        widths = [channels * multiplier for multiplier in multipliers]
        width = 4 * channels
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.stem = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down = nn.ModuleList(Level(a, b, width, blocks) for a, b in pairwise([channels, *widths]))
        self.downsample = nn.ModuleList(nn.Conv2d(a, a, 3, stride=2, padding=1) for a in widths[:-1])
        self.upsample = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Level(2 * a, a, width, blocks) for a in widths[:-1])
        self.norm, self.head = norm(widths[0]), zero(nn.Conv2d(widths[0], image_channels, 3, padding=1))
        self.label = nn.Linear(labels, channels, bias=False) if labels else None

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = positional_embedding(c_noise, self.channels)
        if self.label is not None and labels is not None:
            embedding = embedding + self.label(labels)
        embedding = self.embed(embedding)
        x = self.stem(x)
        skips = []
        for level, downsample in zip(self.down, self.downsample, strict=False):
            x = level(x, embedding)
            skips.append(x)
            x = downsample(x)
        x = self.down[-1](x, embedding)
        for level, upsample, skip in reversed(list(zip(self.up, self.upsample, skips, strict=True))):
            x = upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = level(torch.cat([x, skip], dim=1), embedding)
        return self.head(F.silu(self.norm(x)))
