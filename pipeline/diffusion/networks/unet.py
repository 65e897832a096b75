"""A small U-Net after DDPM++ (Song et al. 2021, arXiv 2011.13456), with group norm and adaptive scale."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.diffusion.networks.embedding import Common, Conditioned, Told
from pipeline.diffusion.networks.layers import dropout as dropout_layer
from pipeline.diffusion.networks.layers import zero

GROUP_CHANNELS = 8  # channels per group of group norm


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


class Block(nn.Module):
    """Two convolutions with a residual connection; the embedding scales and shifts the input of the second."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = dropout_layer(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        return self.skip(x) + self.conv2(self.dropout(h))


class Level(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, inputs: int, outputs: int, embedding: int, blocks: int, dropout: float) -> None:
        super().__init__()
        widths = [inputs] + blocks * [outputs]
        self.blocks = nn.ModuleList(Block(a, b, embedding, dropout) for a, b in pairwise(widths))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class UNet(Conditioned):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, C, H, W). 2^(levels - 1) must divide H and W."""

    def __init__(
        self, image_channels: int, channels: int, multipliers: tuple[int, ...], blocks: int, common: Common
    ) -> None:
        width = 4 * channels
        super().__init__(common, channels, width)
        widths = [channels * multiplier for multiplier in multipliers]
        self.stem = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down = nn.ModuleList(Level(a, b, width, blocks, common.dropout) for a, b in pairwise([channels, *widths]))
        self.downsample = nn.ModuleList(nn.Conv2d(a, a, 3, stride=2, padding=1) for a in widths[:-1])
        self.upsample = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Level(2 * a, a, width, blocks, common.dropout) for a in widths[:-1])
        self.norm, self.head = norm(widths[0]), zero(nn.Conv2d(widths[0], common.outputs, 3, padding=1))
        self.told = Told(common, channels)

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
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
