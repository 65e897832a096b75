"""DDPM++, the U-Net of Song et al. (2021, arXiv 2011.13456), in the setting of EDM (arXiv 2206.00364, app. F.2)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.diffusion.networks.embedding import Common, Conditioned, Told
from pipeline.diffusion.networks.layers import divisor, initialize
from pipeline.diffusion.networks.layers import dropout as dropout_layer

RESCALE = 0.5**0.5  # keeps the variance of a sum of two branches
MOST_GROUPS, LEAST_GROUP_CHANNELS = 32, 4
QKV_GAIN = 0.2**0.5  # gives the weights of q, k and v a variance of 0.1 / channels, as in Song et al.'s code


def norm(channels: int) -> nn.GroupNorm:
    """Group norm as published: 32 groups, or fewer, so that each has at least 4 channels."""
    return nn.GroupNorm(divisor(channels, min(MOST_GROUPS, channels // LEAST_GROUP_CHANNELS)), channels, eps=1e-6)


def resampling(direction: Literal["up", "down"] | None) -> nn.Module:
    """Resampling by a factor of 2 with a box filter."""
    if direction == "up":
        return nn.Upsample(scale_factor=2, mode="nearest")
    return nn.AvgPool2d(2) if direction == "down" else nn.Identity()


class Attention(nn.Module):
    """Self-attention over all pixels, with one head, as a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.project = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # each (N, 1, H W, C)
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.project(attended)) * RESCALE


class Block(nn.Module):
    """BigGAN's residual block: both branches are resampled, and the embedding is added between the convolutions."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        direction: Literal["up", "down"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resampling(direction)
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = dropout_layer(dropout)
        self.skip = nn.Identity() if inputs == outputs and direction is None else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = F.silu(self.norm2(h + self.shift(embedding)[:, :, None, None]))
        h = self.conv2(self.dropout(h))
        return self.attention((self.skip(self.resample(x)) + h) * RESCALE)


class DDPMpp(Conditioned):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, C, H, W). 2^(levels - 1) must divide H and W.

    height: H. attention: the heights, in pixels, of the levels with attention. EDM's network for CIFAR-10 has 128
    channels, multipliers (2, 2, 2), 4 blocks, attention at 16, and 9 numbers of augmentation as input.
    """

    def __init__(
        self,
        image_channels: int,
        height: int,
        channels: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        common: Common,
    ) -> None:
        emb, dropout = 4 * channels, common.dropout
        super().__init__(common, channels, emb)
        self.stem = nn.Conv2d(image_channels, channels, 3, padding=1)
        width, skips = channels, [channels]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        levels = [(channels * multiplier, (height >> i) in attention) for i, multiplier in enumerate(multipliers)]
        for i, (outputs, attends) in enumerate(levels):
            if i > 0:
                self.encoder.append(Block(width, width, emb, dropout, "down"))
                skips.append(width)
            for _ in range(blocks):
                self.encoder.append(Block(width, outputs, emb, dropout, attention=attends))
                width = outputs
                skips.append(width)
        self.middle = nn.ModuleList(Block(width, width, emb, dropout, attention=attends) for attends in (True, False))
        for i, (outputs, attends) in reversed(list(enumerate(levels))):
            for j in range(blocks + 1):  # one attention per level, after its last block
                attention_here = attends and j == blocks
                self.decoder.append(Block(width + skips.pop(), outputs, emb, dropout, attention=attention_here))
                width = outputs
            if i > 0:
                self.decoder.append(Block(width, width, emb, dropout, "up"))
        self.norm, self.head = norm(width), nn.Conv2d(width, common.outputs, 3, padding=1)
        self.told = Told(common, channels)
        residual = [module.conv2 for module in self.modules() if isinstance(module, Block)]
        attending = [module for module in self.modules() if isinstance(module, Attention)]
        initialize(self, last=[*residual, *(module.project for module in attending), self.head])
        for module in attending:
            module.qkv.weight.data *= QKV_GAIN

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        skips = [self.stem(x)]
        for block in self.encoder:
            skips.append(block(skips[-1], embedding))
        x = skips[-1]
        for block in self.middle:
            x = block(x, embedding)
        for block in self.decoder:
            if not isinstance(block.resample, nn.Upsample):
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, embedding)
        return self.head(F.silu(self.norm(x)))
