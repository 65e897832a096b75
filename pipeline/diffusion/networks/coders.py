"""Encoders and decoders of images: convolutional ones, with or without a codebook, and linear ones on patches."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.diffusion.networks.layers import zero
from pipeline.diffusion.networks.unet import GROUP_CHANNELS, norm


class Block(nn.Module):
    """Two convolutions with a residual connection; it starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = norm(channels), zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def widths(width: int, factor: int) -> list[int]:
    """The channels of each level from the latents' resolution up to the images': halved at each, multiples of 8."""
    levels = factor.bit_length()
    return [max(width >> level, GROUP_CHANNELS) // GROUP_CHANNELS * GROUP_CHANNELS for level in range(levels)]


def _head(channels: int, outputs: int) -> list[nn.Module]:
    return [norm(channels), nn.SiLU(), zero(nn.Conv2d(channels, outputs, 3, padding=1))]


class Encoder(nn.Module):
    """Images (N, C, H, W) to (N, outputs, H / factor, W / factor); strided convolutions halve the resolution.

    A linear map of patches runs beside them, so that even a short training is about as good as principal components.
    """

    def __init__(self, image_channels: int, outputs: int, factor: int, width: int, blocks: int) -> None:
        def layers() -> Iterator[nn.Module]:
            finest, *coarser = reversed(widths(width, factor))
            yield nn.Conv2d(image_channels, finest, 3, padding=1)
            yield from (Block(finest) for _ in range(blocks))
            for a, b in pairwise([finest, *coarser]):
                yield nn.Conv2d(a, b, 3, stride=2, padding=1)
                yield from (Block(b) for _ in range(blocks))
            yield from _head(width, outputs)

        super().__init__()
        self.convolutions = nn.Sequential(*layers())
        self.linear = nn.Conv2d(image_channels, outputs, factor, stride=factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.convolutions(x)


class Decoder(nn.Module):
    """Latents (N, c, h, w) to images (N, C, factor h, factor w), unclamped; the reverse of `Encoder`.

    It is cheap because each level has half the channels of the coarser one before it.
    """

    def __init__(self, latent_channels: int, image_channels: int, factor: int, width: int, blocks: int) -> None:
        def layers() -> Iterator[nn.Module]:
            levels = widths(width, factor)
            yield nn.Conv2d(latent_channels, width, 3, padding=1)
            yield from (Block(width) for _ in range(blocks))
            for a, b in pairwise(levels):
                yield nn.Upsample(scale_factor=2.0, mode="nearest")
                yield nn.Conv2d(a, b, 3, padding=1)
                yield from (Block(b) for _ in range(blocks))
            yield from _head(levels[-1], image_channels)

        super().__init__()
        self.convolutions = nn.Sequential(*layers())
        self.linear = nn.ConvTranspose2d(latent_channels, image_channels, factor, stride=factor)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.convolutions(z)


class QuantizingDecoder(nn.Module):
    """A decoder that first replaces each latent vector by the nearest one of a codebook."""

    def __init__(self, codebook: int, latent_channels: int, decoder: nn.Module) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook, latent_channels)
        self.decoder = decoder

    def codes(self, z: Tensor) -> Tensor:
        """The index of the vector of the codebook nearest to each one of z: (N, c, h, w) to (N, h, w), int64."""
        vectors = self.codebook.weight
        return (vectors.square().sum(1) - 2 * (z.movedim(1, -1) @ vectors.T)).argmin(-1)

    def quantized(self, z: Tensor) -> Tensor:
        """The vectors of the codebook nearest to those of z, in its shape, (N, c, h, w)."""
        return self.codebook(self.codes(z)).movedim(-1, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.quantized(z))


class Patches(nn.Module):
    """A linear map on patches: their mean (C, f, f), and orthonormal components (c, C, f, f); neither has gradients."""

    def __init__(self, channels: int, image_channels: int, factor: int) -> None:
        super().__init__()
        patch = (image_channels, factor, factor)
        self.factor = factor
        self.components = nn.Parameter(torch.zeros(channels, *patch), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(patch), requires_grad=False)

    def tiled(self, height: int, width: int) -> Tensor:
        """The mean patch, repeated (height, width) times."""
        return self.mean.repeat(1, height, width)


class ToComponents(Patches):
    """The encoder: the projections of each patch on the components."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.tiled(x.shape[2] // self.factor, x.shape[3] // self.factor)
        return F.conv2d(x - mean, self.components, stride=self.factor)


class FromComponents(Patches):
    """The decoder, the transpose of the encoder: the mean patch and the sum of the components, weighted by latents."""

    def forward(self, z: Tensor) -> Tensor:
        return F.conv_transpose2d(z, self.components, stride=self.factor) + self.tiled(z.shape[2], z.shape[3])
