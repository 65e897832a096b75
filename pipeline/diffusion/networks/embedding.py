"""How a network is told the noise level, a label, and how an image was augmented: as one embedding."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOURIER_SCALE = 16.0  # the standard deviation of random frequencies (Song et al. 2021, arXiv 2011.13456)
VECTOR = 32  # numbers that PyTorch's CPU kernels compute at once


def embedding_width(channels: int) -> int:
    """The width of an embedding for so many channels, at least as many.

    A tensor's last numbers, fewer than VECTOR, are rounded otherwise than the rest: so that no image's are among them,
    whatever the size of its batch, the width is a multiple of VECTOR.
    """
    return -(-channels // VECTOR) * VECTOR


def positional_embedding(c_noise: Tensor, width: int) -> Tensor:
    """Cosines and sines of c_noise (N,) at geometric frequencies from 1 to 1e-4: (N, width) (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=c_noise.device) / (width // 2))
    angles = c_noise[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Positional(nn.Module):
    """Cosines and sines of c_noise at geometric frequencies from 1 to 1e-4.

    c_noise (N,) to (N, width).

    Source: Vaswani et al. 2017, arXiv 1706.03762
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, c_noise: Tensor) -> Tensor:
        return positional_embedding(c_noise, self.width)


class Fourier(nn.Module):
    """Cosines and sines of 2 pi f c_noise at random frequencies f of standard deviation 16.

    c_noise (N,) to (N, width). The frequencies are drawn with the initial weights and are not trained.

    Source: Tancik et al. 2020, arXiv 2006.10739; Song et al. 2021, arXiv 2011.13456
    """

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
    """What every network is made with.

    embedding: of the noise level, a key of EMBEDDINGS; dropout: its probability; classes: how many labels there are, 0
    for a network that knows none; augmentation: how many numbers say how an image was augmented, 0 for none.
    """

    embedding: str
    dropout: float
    classes: int
    augmentation: int


class Conditioning(nn.Module):
    """The embedding (N, width) of c_noise (N,) and of what `Told` made of the rest, (N, inputs) or None."""

    def __init__(self, embedding: str, inputs: int, width: int) -> None:
        super().__init__()
        self.noise = EMBEDDINGS[embedding](inputs)
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c_noise: Tensor, told: Tensor | None) -> Tensor:
        embedding = self.noise(c_noise)
        return self.layers(embedding if told is None else embedding + told)


class Told(nn.Module):
    """What a network is told of an image beside its noise level, (N, width); None and 0 mean: nothing.

    Networks make this layer last: the order in which layers are made decides how they start.
    """

    def __init__(self, common: Common, width: int) -> None:
        super().__init__()
        self.label = nn.Linear(common.classes, width, bias=False) if common.classes else None
        self.augmentation = nn.Linear(common.augmentation, width, bias=False) if common.augmentation else None

    def forward(self, labels: Tensor | None, augmentation: Tensor | None) -> Tensor | None:
        """labels (N,), int64, -1 for none; augmentation (N, A). What the network has no layer for is not looked at."""
        told = None
        if self.label is not None and labels is not None:
            classes = self.label.in_features
            chosen = F.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]
            # of unit mean square over the classes, so that a label weighs as much among many as among few
            told = self.label(math.sqrt(classes) * chosen.to(self.label.weight.dtype))
        if self.augmentation is not None and augmentation is not None:
            how = self.augmentation(augmentation)
            told = how if told is None else told + how
        return told


class Conditioned(nn.Module):
    """A network: what it is told beside x becomes one embedding, by which `body` makes F of x.

    A subclass makes its other layers, then `told`.
    """

    told: Told

    def __init__(self, common: Common, channels: int, width: int) -> None:
        """channels: what the noise level, a label and an augmentation are each written as; width: the embedding's."""
        super().__init__()
        self.embed = Conditioning(common.embedding, channels, width)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """F (N, ...) of x (N, ...) and c_noise (N,); labels and augmentation: see `Told`."""
        return self.body(x, self.embed(c_noise, self.told(labels, augmentation)))

    def body(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, ...) and the embedding (N, width) to F (N, ...)."""
        raise NotImplementedError
