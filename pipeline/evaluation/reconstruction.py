"""What an autoencoder loses: the study's metrics of images that were encoded and decoded, as samples are measured.

The headline score among them is the reconstruction distance, rFD (rFID with the official network). No model in the
autoencoder's latents is expected to have a lower one.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.common.devices import CPU, to_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import described, to_range, to_uint8
from pipeline.diffusion.autoencoder import Autoencoder, chunk_of
from pipeline.metrics.estimate import mean_estimate
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.measurement import measure
from pipeline.metrics.names import HELDOUT, TRAIN
from pipeline.metrics.reference import Reference


def measure_reconstruction(
    autoencoder: Autoencoder,
    images: Tensor,
    heldout: Tensor | None,
    count: int,
    extractor: Extractor,
    reference: Reference,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """The metrics of training and of held-out images (N, C, H, W), uint8, after encoding, decoding and rounding.

    count: the number of samples of the study's curves, because distances are comparable at equal counts only. A random
    part of so many images is measured against the reference, or all of them if they are fewer.

    Returns for JSON, under `train` and, with held-out images, `heldout`: `images`, their number; `mse`, the mean
    squared error of a rounded value in [-1, 1], as {value, se}; and `metrics`, [{metric, value, se}]. Raises StudyError
    if the autoencoder is of other data, and NotFinite if the decoder's images are not finite.
    """
    if tuple(images.shape[1:]) != autoencoder.spec.shape:
        its, ours = described(autoencoder.spec.shape), described(tuple(images.shape[1:]))
        raise StudyError(f"an autoencoder of other data: it is for {its}, and the data are {ours}; train another one")
    on_device = copy.deepcopy(autoencoder).to(device)
    sets = {TRAIN: images} | ({} if heldout is None else {HELDOUT: heldout})
    return {name: _measured(on_device, each, count, extractor, reference, device) for name, each in sets.items()}


def _measured(
    autoencoder: Autoencoder,
    images: Tensor,
    count: int,
    extractor: Extractor,
    reference: Reference,
    device: torch.device,
) -> dict[str, Any]:
    chosen = images[torch.randperm(len(images), generator=generator("reconstruction", 0))[:count]]
    errors: list[Tensor] = []
    decoded = _decoded(autoencoder, chosen, device, errors.append)
    metrics = measure(decoded, len(chosen), extractor, reference).metrics
    return {"images": len(chosen), "mse": mean_estimate(torch.cat(errors))._asdict(), "metrics": metrics}


@torch.no_grad()
def _decoded(
    autoencoder: Autoencoder, images: Tensor, device: torch.device, note: Callable[[Tensor], object]
) -> Iterator[Tensor]:
    """The images after encoding, decoding and rounding, on the device, in batches. `note` gets the errors, (n,)."""
    for batch in images.split(chunk_of(autoencoder.spec.shape)):
        x = to_range(to_device(batch, device))
        y = autoencoder.decode(autoencoder.encode(x))
        if not y.isfinite().all():
            raise NotFinite("the autoencoder's decoder returned images that are not finite; train it again")
        rounded = to_uint8(y)
        note((to_range(rounded) - x).square().flatten(1).mean(1).to(CPU))
        yield rounded
