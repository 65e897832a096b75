"""The embedding of the noise level, a label and an augmentation, which conditions a network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOURIER_SCALE = 16.0  # the standard deviation of random frequencies (Song et al. 2021, arXiv 2011.13456)
VECTOR = 32  # numbers that PyTorch's CPU kernels compute at once


def embedding_width(channels: int) -> int:
    """The width of an embedding for `channels` channels, at least as many.

    PyTorch rounds the last numbers of a tensor, fewer than VECTOR, differently from the others. The width is a multiple
    of VECTOR, so that this affects no image, whatever the size of its batch.
    """
    return -(-channels // VECTOR) * VECTOR


def positional_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Cosines and sines of c_noise (N,) at width / 2 geometric frequencies from 1 to 1e-4, both included: (N, width).

    So do DDPM's code and EDM's DDPM++. Vaswani et al. and DiT have 1e-4^(2 i / width), which stops before 1e-4.
    """
    last = max(width // 2 - 1, 1)
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=c_noise.device) / last)
    angles = c_noise[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Positional(nn.Module):
    """Cosines and sines of c_noise at geometric frequencies from 1 to 1e-4, both included.

    c_noise (N,) to (N, width).

    Source: Ho et al. 2020, arXiv 2006.11239, the authors' code; after Vaswani et al. 2017, arXiv 1706.03762
    """

    widest = math.inf  # the widest range of c_noise that it suits

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, c_noise: Tensor) -> Tensor:
        return positional_embedding(c_noise, self.width)


class Fourier(nn.Module):
    """Cosines and sines of 2 pi f c_noise at random frequencies f of standard deviation 16.

    c_noise (N,) to (N, width). The frequencies are drawn with the initial weights and are not trained. Values of
    c_noise that differ by more than about 0.02 have unrelated embeddings. So it suits logarithms of sigma and times up
    to 1, not numbers of steps: over 1000 of them, a network learns nothing at one noise level from another.

    Source: Tancik et al. 2020, arXiv 2006.10739; Song et al. 2021, arXiv 2011.13456
    """

    widest = 100.0  # the widest range of c_noise that it suits
    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", FOURIER_SCALE * torch.randn(width // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = 2 * math.pi * c_noise[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


EMBEDDINGS: dict[str, type[Positional] | type[Fourier]] = {"positional": Positional, "fourier": Fourier}


@dataclass(frozen=True)
class Common:
    """The settings that all networks share.

    embedding: that of the noise level, a key of EMBEDDINGS; dropout: its probability; classes: the number of labels, 0
    for a network without labels; augmentation: the numbers that describe an augmentation, 0 for none; outputs: the
    channels of its output, or the dimensions if it is for points; strength: whether it is told the strength with which
    a low-resolution image is augmented.
    """

    embedding: str
    dropout: float
    classes: int
    augmentation: int
    outputs: int
    strength: bool = False


class Conditioning(nn.Module):
    """The embedding (N, width) of c_noise (N,) and of the output of `Told`, (N, inputs) or None."""

    def __init__(self, embedding: str, inputs: int, width: int) -> None:
        super().__init__()
        self.noise = EMBEDDINGS[embedding](inputs)
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c_noise: Tensor, told: Tensor | None) -> Tensor:
        embedding = self.noise(c_noise)
        return self.layers(embedding if told is None else embedding + told)


class Told(nn.Module):
    """The embedding of labels, augmentations and strengths, (N, width), or None if the network is told none of them.

    Networks make this layer last, because the order in which layers are made determines their initial weights.
    """

    def __init__(self, common: Common, width: int) -> None:
        super().__init__()
        self.label = nn.Linear(common.classes, width, bias=False) if common.classes else None
        self.augmentation = nn.Linear(common.augmentation, width, bias=False) if common.augmentation else None
        self.strength = nn.Linear(1, width, bias=False) if common.strength else None

    def forward(
        self, labels: Tensor | None, augmentation: Tensor | None, strength: Tensor | None = None
    ) -> Tensor | None:
        """labels (N,), int64, -1 for none; augmentation (N, A); strength (N, 1). Inputs without a layer are ignored."""
        told = None
        if self.label is not None and labels is not None:
            classes = self.label.in_features
            chosen = F.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]
            # unit mean square over the classes, so that the scale does not depend on their number
            told = self.label(math.sqrt(classes) * chosen.to(self.label.weight.dtype))
        if self.augmentation is not None and augmentation is not None:
            how = self.augmentation(augmentation)
            told = how if told is None else told + how
        if self.strength is not None and strength is not None:
            how = self.strength(strength)
            told = how if told is None else told + how
        return told


class Conditioned(nn.Module):
    """A network whose `body` computes its output from x and one embedding of all other inputs.

    A subclass makes its other layers, then `told`.
    """

    told: Told

    def __init__(self, common: Common, channels: int, width: int) -> None:
        """channels: the width of the inputs' embeddings before they are joined; width: that of the result."""
        super().__init__()
        self.embed = Conditioning(common.embedding, channels, width)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augmentation: Tensor | None = None,
        low: Tensor | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """The output (N, outputs, ...) for x (N, C, ...) and c_noise (N,).

        low (N, C, ...): further channels of the input of an upsampler. For labels, augmentation and strength, see
        `Told`.
        """
        x = x if low is None else torch.cat([x, low], dim=1)
        return self.body(x, self.embed(c_noise, self.told(labels, augmentation, strength)))

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The output (N, outputs, ...) for x (N, C, ...) and the embedding (N, width)."""
        raise NotImplementedError
