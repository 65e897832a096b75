"""The space in which a model's data live: pixels, images averaged down, or the latents of an autoencoder."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.sealed import load_json, reading, save_json
from pipeline.common.tensors import read_sealed
from pipeline.diffusion.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from pipeline.diffusion.upsampling import averaged, enlarged

AUTOENCODER = "autoencoder.safetensors"


@dataclass(frozen=True)
class Space:
    """Where a model's data live. shape: of the data set's images (C, H, W), or (2,) of its points.

    resolution: the height to which images are averaged down; None: not. sigma_data: the standard deviation of the
    training data in this space. content: a hash of the autoencoder's file, "" without one.
    """

    shape: tuple[int, ...]
    sigma_data: float
    resolution: int | None = None
    autoencoder: Autoencoder | None = None
    content: str = ""

    @property
    def is_data(self) -> bool:
        """Whether it is that of the data set itself."""
        return self.resolution is None and self.autoencoder is None

    def encode(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) in [-1, 1] in this space, float32."""
        if self.autoencoder:
            return self.autoencoder.encode(x)
        return averaged(x, self.resolution) if self.resolution else x

    def decode(self, x0: Tensor) -> Tensor:
        """Samples in this space as images (N, C, H, W), not limited to [-1, 1]; averaged ones are enlarged."""
        if self.autoencoder:
            return self.autoencoder.decode(x0.float())
        return enlarged(x0, self.shape[1:]) if self.resolution else x0

    def on(self, device: torch.device) -> "Space":
        """This space with its autoencoder on a device. A model has one space, so nothing else uses the autoencoder."""
        return replace(self, autoencoder=self.autoencoder.to(device)) if self.autoencoder else self


def save_space(space: Space, folder: Path) -> None:
    """Write a space into `folder`: space.json and, of latents, their autoencoder."""
    record = {"shape": list(space.shape), "sigma_data": space.sigma_data, "resolution": space.resolution}
    if space.autoencoder:
        save_autoencoder(space.autoencoder, folder / AUTOENCODER)
    save_json(folder / "space.json", record | {"latents": space.autoencoder is not None})


def load_space(folder: Path) -> Space:
    """Read what `save_space` wrote. Raises StudyError if a file is missing or broken."""
    path = folder / "space.json"
    with reading(path):
        record = load_json(path)
        shape, sigma_data, resolution = tuple(record["shape"]), record["sigma_data"], record["resolution"]
        if not record["latents"]:
            return Space(shape, sigma_data, resolution)
    content = hashlib.sha256(read_sealed(folder / AUTOENCODER)).hexdigest()
    return Space(shape, sigma_data, resolution, load_autoencoder(folder / AUTOENCODER), content)
