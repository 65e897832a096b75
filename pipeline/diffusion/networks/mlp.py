"""A residual network for points: the blocks of DiT (Peebles and Xie 2023, arXiv 2212.09748) without attention."""

import torch
from torch import Tensor, nn

from pipeline.diffusion.networks.embedding import Common, Conditioned, Told, embedding_width
from pipeline.diffusion.networks.layers import FeedForward, Head, initialize, modulate
from pipeline.diffusion.networks.layers import dropout as dropout_layer


class Block(nn.Module):
    """A residual feed-forward layer; the embedding shifts, scales and gates it. Starts as the identity."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 3 * channels)
        self.feed_forward = FeedForward(channels)
        self.dropout = dropout_layer(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=1)
        return torch.addcmul(x, gate, self.dropout(self.feed_forward(modulate(self.norm(x), shift, scale))))


class MLP(Conditioned):
    """F(x, c_noise): points x (N, D) and c_noise (N,) to (N, D). dimensions: D. blocks: the depth."""

    def __init__(self, dimensions: int, channels: int, blocks: int, common: Common) -> None:
        width = embedding_width(channels)
        super().__init__(common, channels, width)
        self.stem = nn.Linear(dimensions, channels)
        self.blocks = nn.ModuleList(Block(channels, width, common.dropout) for _ in range(blocks))
        self.head = Head(channels, common.outputs, width)
        self.told = Told(common, channels)
        modulations = [module.modulation for module in self.modules() if isinstance(module, Block | Head)]
        initialize(self, last=[*modulations, self.head.linear])

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, embedding)
        return self.head(x, embedding)
