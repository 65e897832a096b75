"""The training data in the space of a model, and that space's standard deviation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, default_device, to_device
from pipeline.common.errors import StudyError
from pipeline.common.files import CACHE, content_hash
from pipeline.common.machine import machine
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, described, to_range
from pipeline.diffusion.autoencoder import Autoencoder, decoder_size, encoder_size
from pipeline.diffusion.space import Space, load_space
from pipeline.training.autoencoder import TrainedAutoencoder, autoencoder_setting, train_autoencoder
from pipeline.training.autoencoder_row import AutoencoderRow

CHUNK = 256  # images at a time: a fixed number, so that every caller gets the same bytes
LATENT_SIGMA = 1.0  # by the scale of an autoencoder


@torch.no_grad()
def encoded(space: Space, images: Tensor, device: torch.device = CPU) -> Tensor:
    """Images, uint8 (N, C, H, W), in a model's space, float32 on the CPU; points, and images in pixels, unchanged."""
    if space.is_data:
        return images
    if tuple(images.shape[1:]) != space.shape:
        raise ValueError(f"images of {tuple(images.shape[1:])}, but the space is of {space.shape}")
    space = space.on(device)
    places = torch.arange(-(-len(images) // CHUNK) * CHUNK) % len(images)  # the last chunk is as large as the others
    parts = [space.encode(to_device(to_range(images[part]), device)).cpu() for part in places.split(CHUNK)]
    return torch.cat(parts)[: len(images)].contiguous()


def in_space(folder: Path, data: Dataset, summary: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The training images in the space that `save_space` wrote into `folder`, and the data set's summary with the
    standard deviation of this space."""
    space = load_space(folder)
    [images] = side_by_side([partial(encoded, space, data.images, default_device())])
    return images, summary | {"sigma_data": space.sigma_data}


def train_autoencoders(
    rows: Mapping[str, AutoencoderRow], images: Tensor, progress: Callable[[int], object]
) -> dict[str, TrainedAutoencoder]:
    """The autoencoders of rows by name, trained side by side, each from its checkpoint in .cache if there is one.

    images (N, C, H, W), uint8. Raises StudyError, naming the row, if one does not fit the images or diverges.
    """
    device = default_device()

    def task(name: str, row: AutoencoderRow) -> TrainedAutoencoder:
        checkpoint = CACHE / "training" / f"{content_hash(autoencoder_setting(row, images, device))}.safetensors"
        try:
            return train_autoencoder(row, images, checkpoint, progress, device)
        except StudyError as error:
            raise StudyError(f"autoencoders.{name}: {error}") from None

    tasks = [partial(task, name, row) for name, row in rows.items()]
    return dict(zip(rows, side_by_side(tasks, processes.workers_on(device)), strict=True))


def summary(trained: TrainedAutoencoder) -> dict[str, Any]:
    """Facts on an autoencoder for metrics/autoencode: its sizes, and its training curve."""
    spec = trained.autoencoder.spec
    encoder, decoder = encoder_size(spec), decoder_size(spec)
    return {
        "kind": spec.kind,
        "factor": spec.factor,
        "channels": spec.channels,
        "values": math.prod(spec.latent_shape) / math.prod(spec.shape),
        "parameters": encoder.parameters + decoder.parameters,
        "encoder_flops": encoder.flops,
        "decoder_flops": decoder.flops,
        "facts": trained.facts,
        "curve": trained.curve,
        "machine": machine(default_device()),
    }


def space_of(
    images: Tensor, sigma_data: float, resolution: int | None = None, autoencoder: Autoencoder | None = None
) -> Space:
    """A space for training images (N, C, H, W), uint8, or points (N, 2), whose standard deviation is sigma_data.

    Raises StudyError if the autoencoder is of other data.
    """
    shape = tuple(images.shape[1:])
    if autoencoder:
        if autoencoder.spec.shape != shape:
            raise StudyError(f"the autoencoder is for {described(autoencoder.spec.shape)}, not {described(shape)}")
        return Space(shape, LATENT_SIGMA, autoencoder=autoencoder)
    space = Space(shape, sigma_data, resolution)
    return space if space.is_data else replace(space, sigma_data=_std(encoded(space, images)))


def _std(values: Tensor) -> float:
    return float(np.std(values.numpy(), dtype=np.float64))
