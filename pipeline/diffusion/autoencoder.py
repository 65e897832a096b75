"""Autoencoders, in whose latents a model can be trained (Rombach et al. 2022, arXiv 2112.10752), and their files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.common.sealed import reading
from pipeline.common.size import Size, size_of
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.diffusion.networks.coders import Decoder, Encoder, FromComponents, QuantizingDecoder, ToComponents
from pipeline.diffusion.networks.layers import seeded
from pipeline.diffusion.released import build_released

# Images are coded in chunks of fixed sizes: the results do not depend on how many come together, and memory is limited.
# Like MIN_BATCH and BATCH_STEP of samplers: the last chunk is padded to a size at which results round alike.
CHUNK_VALUES = 2**20
LEAST, MOST, STEP = 16, 512, 4  # images in a chunk


@dataclass(frozen=True)
class AutoencoderSpec:
    """Everything that rebuilds an autoencoder, except its weights. It is the metadata of a file of weights.

    shape is (C, H, W) of the images. Most other fields are keys of a row of `autoencoders`; a field is 0 if its kind
    has no use for it. config is the JSON of a released autoencoder's configuration, "" for other kinds.
    """

    kind: str
    shape: tuple[int, ...]
    factor: int
    channels: int
    width: int = 0
    blocks: int = 0
    codebook: int = 0
    config: str = ""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of an image's latents, (c, h, w)."""
        _, height, width = self.shape
        return self.channels, height // self.factor, width // self.factor

    def record(self) -> dict[str, Any]:
        """The fields in alphabetical order, for JSON."""
        return dict(sorted(asdict(self).items()))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `record`. Raises TypeError, KeyError or ValueError if it is not that of a spec."""
        return cls(**{**record, "shape": tuple(record["shape"])})


Coders = tuple[nn.Module, nn.Module]  # an encoder, whose first channels are the latents, and a decoder


def _kl(spec: AutoencoderSpec) -> Coders:
    """Convolutions, trained on the squared error and the KL divergence of a Gaussian posterior; its mean is the latent.

    Source: Kingma and Welling 2014, arXiv 1312.6114; Rombach et al. 2022, arXiv 2112.10752, app. G
    """
    sizes = spec.factor, spec.width, spec.blocks
    return Encoder(spec.shape[0], 2 * spec.channels, *sizes), Decoder(spec.channels, spec.shape[0], *sizes)


def _vq(spec: AutoencoderSpec) -> Coders:
    """Convolutions, trained on the squared error; the decoder replaces latents by the nearest vectors of a codebook.

    Source: van den Oord et al. 2017, arXiv 1711.00937
    """
    sizes = spec.factor, spec.width, spec.blocks
    decoder = Decoder(spec.channels, spec.shape[0], *sizes)
    quantizing = QuantizingDecoder(spec.codebook, spec.channels, decoder)
    return Encoder(spec.shape[0], spec.channels, *sizes), quantizing


def _pca(spec: AutoencoderSpec) -> Coders:
    """Principal components of patches of the training images, without training.

    Source: Pearson 1901, doi 10.1080/14786440109462720
    """
    sizes = spec.channels, spec.shape[0], spec.factor
    return ToComponents(*sizes), FromComponents(*sizes)


def _released(spec: AutoencoderSpec) -> Coders:
    """An AutoencoderKL in a folder that diffusers wrote; its factor and channels are those of the folder.

    Source: Rombach et al. 2022, arXiv 2112.10752
    """
    return build_released(json.loads(spec.config))


KINDS: dict[str, Callable[[AutoencoderSpec], Coders]] = {"kl": _kl, "vq": _vq, "pca": _pca, "released": _released}


class Autoencoder(nn.Module):
    """An encoder and a decoder, and the shift (c,) and scale () that give latents mean 0 and unit standard deviation.

    Both networks get their weights from PyTorch's global generator; `new_autoencoder` seeds it.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, spec: AutoencoderSpec, coders: Coders | None = None) -> None:
        """coders: networks of the spec; None: new ones."""
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = coders or KINDS[spec.kind](spec)
        self.register_buffer("shift", torch.zeros(spec.channels))
        self.register_buffer("scale", torch.ones(()))
        self.to(memory_format=torch.channels_last)  # a fifth faster than contiguous weights

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of an image's latents, (c, h, w)."""
        return self.spec.latent_shape

    def encode(self, x: Tensor) -> Tensor:
        """The latents (N, c, h, w) of images (N, C, H, W) in [-1, 1], float32.

        They are the posterior's mean for kinds kl and released, which draw nothing; the latents before quantisation for
        vq (as VQ-regularised ones of arXiv 2112.10752, sec. 3.1); and projections for pca. All are shifted and scaled.
        """
        z = self._in_chunks(lambda part: self.encoder(part)[:, : self.spec.channels], x.float())
        return (z - self._shift) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """The images (N, C, H, W) of latents (N, c, h, w), float32, about in [-1, 1]: they are not clamped."""
        return self._in_chunks(self.decoder, z.float() * self.scale + self._shift)

    @property
    def _shift(self) -> Tensor:
        return self.shift[:, None, None]

    def _in_chunks(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        return torch.cat([_padded(function, part) for part in batch.split(chunk_of(self.spec.shape))])


def chunk_of(shape: Sequence[int]) -> int:
    """The number of images of `shape`, (C, H, W), that are coded at a time."""
    return min(max(CHUNK_VALUES // math.prod(shape) // STEP * STEP, LEAST), MOST)


def _padded(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A function of a batch (n, ...), which it gets with repetitions up to a size at which results round alike."""
    count = len(batch)
    size = max(LEAST, -(-count // STEP) * STEP)
    return function(batch if size == count else batch[torch.arange(size, device=batch.device) % count])[:count]


def new_autoencoder(spec: AutoencoderSpec, seed: int) -> Autoencoder:
    """An autoencoder with the initial weights of a seed."""
    return seeded(lambda: Autoencoder(spec), "autoencoder weights", seed)


def save_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """Write weights and spec as one safetensors file."""
    save_tensors(path, autoencoder.state_dict(), "autoencoder", autoencoder.spec.record())


def load_autoencoder(path: Path) -> Autoencoder:
    """Read a file by `save_autoencoder`, in eval mode and without gradients.

    Raises StudyError if it is missing, broken or not an autoencoder's.
    """
    with reading(path):
        tensors, record = load_tensors(path, "autoencoder")
        with torch.device("meta"):  # draws no initial weights from the generator that all threads share
            autoencoder = Autoencoder(AutoencoderSpec.of(record))
        autoencoder.to_empty(device="cpu").load_state_dict(tensors)
    return autoencoder.eval().requires_grad_(False)


@lru_cache(maxsize=256)
def encoder_size(spec: AutoencoderSpec) -> Size:
    """The size of the encoder, for one image; nothing is computed."""
    return size_of(lambda: Autoencoder(spec).encoder, torch.empty(1, *spec.shape))


@lru_cache(maxsize=256)
def decoder_size(spec: AutoencoderSpec) -> Size:
    """The size of the decoder, for one image; nothing is computed."""
    return size_of(lambda: Autoencoder(spec).decoder, torch.empty(1, *spec.latent_shape))
