"""Layers that the networks share, and their initial weights."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common.randomness import generator

Made = TypeVar("Made")
_INITIALIZING = threading.Lock()  # PyTorch's initializers draw from one generator that all threads share


def seeded(make: Callable[[], Made], purpose: str, seed: int) -> Made:
    """What `make` returns; it draws initial weights from PyTorch's global generator, seeded with a purpose and a seed.

    The global generator is afterwards as it was.
    """
    with _INITIALIZING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(purpose, seed).initial_seed())
        return make()


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`: a number of groups or heads for `number` channels."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def zero(layer: nn.Module) -> nn.Module:
    """Set all weights of the layer to 0, so that its residual block starts as the identity. Returns the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def initialize(network: nn.Module, last: Iterable[nn.Module]) -> None:
    """Draw weights as Glorot and Bengio (2010), with biases of 0; the `last` layer of each branch is all 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in last:
        zero(layer)


class Dropout(nn.Module):
    """Dropout whose masks come from `generator`, which the caller sets, because threads share PyTorch's global one.

    skip: the number of samples whose masks the next call draws first and discards, because other processes use them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.skip = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.generator is None:
            raise RuntimeError("dropout in training needs a generator, and this layer has none")
        if self.skip:
            torch.rand(self.skip, *x.shape[1:], generator=self.generator, device=self.generator.device)
            self.skip = 0
        drawn = torch.rand(x.shape, generator=self.generator, device=self.generator.device)
        return x * ((drawn >= self.p) / (1 - self.p)).to(x)


def dropout(p: float) -> nn.Module:
    """Dropout with probability p; the identity if p is 0."""
    return Dropout(p) if p else nn.Identity()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift (Peebles and Xie 2023, arXiv 2212.09748); shift and scale (N, C), x (N, C) or (N, T, C)."""
    if x.ndim == 3:
        shift, scale = shift[:, None], scale[:, None]
    return torch.addcmul(shift, x, scale + 1)


class FeedForward(nn.Module):
    """Two layers on the last axis; the hidden width is four times the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(x), approximate="tanh"))


class Head(nn.Module):
    """The last layer of an adaLN-Zero network, which starts as 0: (N, ..., channels) to (N, ..., outputs)."""

    def __init__(self, channels: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.linear = nn.Linear(channels, outputs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.linear(modulate(self.norm(x), *self.modulation(embedding).chunk(2, dim=1)))
