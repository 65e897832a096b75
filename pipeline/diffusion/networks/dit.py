"""DiT, a transformer on patches with adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.diffusion.networks.embedding import Common, Conditioned, Told, embedding_width, positional_embedding
from pipeline.diffusion.networks.layers import FeedForward, Head, divisor, initialize, modulate
from pipeline.diffusion.networks.layers import dropout as dropout_layer

HEAD_CHANNELS = 64


def positions(rows: int, columns: int, channels: int) -> Tensor:
    """Cosines and sines of each patch's row, then of its column: (rows * columns, channels), patches in row order."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([positional_embedding(place.flatten(), channels // 2) for place in (row, column)], dim=1)


class Attention(nn.Module):
    """Self-attention over all tokens: (N, T, channels) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = divisor(channels, max(channels // HEAD_CHANNELS, 1))
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, T, channels)
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Residual attention and feed-forward layers; the embedding shifts, scales and gates them. Starts as identity."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 6 * channels)
        self.attention, self.feed_forward = Attention(channels), FeedForward(channels)
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding).chunk(6, dim=1)
        h = self.attention(modulate(self.norm(x), shift1, scale1))
        x = torch.addcmul(x, gate1[:, None], self.dropout(h))
        h = self.feed_forward(modulate(self.norm(x), shift2, scale2))
        return torch.addcmul(x, gate2[:, None], self.dropout(h))


class DiT(Conditioned):
    """F(x, c_noise): x (N, C, H, W) and c_noise (N,) to (N, C, H, W), on patches of `patch` x `patch` pixels.

    shape: (C, H, W); `patch` must divide H and W. blocks: the depth.
    """

    position: Tensor

    def __init__(self, shape: tuple[int, int, int], channels: int, blocks: int, patch: int, common: Common) -> None:
        image_channels, height, width = shape
        emb = embedding_width(channels)
        super().__init__(common, channels, emb)
        self.stem = nn.Conv2d(image_channels, channels, patch, stride=patch)
        self.register_buffer("position", positions(height // patch, width // patch, channels))
        self.blocks = nn.ModuleList(Block(channels, emb, common.dropout) for _ in range(blocks))
        self.head = Head(channels, common.outputs * patch**2, emb)
        self.fold = nn.PixelShuffle(patch)
        self.told = Told(common, channels)
        modulations = [module.modulation for module in self.modules() if isinstance(module, Block | Head)]
        initialize(self, last=[*modulations, self.head.linear])

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        patches = self.stem(x)
        x = patches.flatten(2).transpose(1, 2) + self.position  # (N, patches, channels)
        for block in self.blocks:
            x = block(x, embedding)
        return self.fold(self.head(x, embedding).transpose(1, 2).unflatten(2, patches.shape[2:]))
