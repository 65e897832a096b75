"""What autoencoders make of real images: the reconstruction distance (rFD), and for linear ones exact losses."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipeline.common.devices import default_device, exact_device, to_device
from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import described, to_range, to_uint8
from pipeline.diffusion.autoencoder import Autoencoder
from pipeline.evaluation.latent_oracle import latent_oracle
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.measurement import CHUNK, measure
from pipeline.metrics.names import HELDOUT, TRAIN, split
from pipeline.metrics.reference import Reference
from pipeline.sampling.row import Sampler

ORACLE = {"heun": Sampler(), "euler": Sampler(solver="euler")}  # samplers of exact latents
MOST_VALUES = 4096  # of an image whose covariance is decomposed
Metrics = list[dict[str, Any]]


def measure_reconstructions(
    autoencoders: Mapping[str, Autoencoder],
    training: Tensor,
    heldout: Tensor | None,
    extractor: Extractor,
    reference: Reference,
    count: int,
) -> dict[str, Any]:
    """By name, for JSON: the metrics of `count` reconstructed images, measured as samples are, their squared error,
    and for principal components the exact losses; see `_metrics` and `_oracle`.

    training, heldout: images (N, C, H, W), uint8. Raises StudyError if an autoencoder is of other images.
    """
    device = default_device()
    extractor, reference = extractor.on(device), reference.on(exact_device(device))

    def measured() -> dict[str, Any]:
        parts = {TRAIN: training, HELDOUT: heldout}
        found = {}
        for name, autoencoder in autoencoders.items():
            if autoencoder.spec.shape != tuple(training.shape[1:]):
                raise StudyError(
                    f"autoencoders.{name}: made for {described(autoencoder.spec.shape)}, but the data are "
                    f"{described(tuple(training.shape[1:]))}; run `dvc repro`"
                )
            own = {
                part: None if images is None else _metrics(part, autoencoder, images, extractor, reference, count)
                for part, images in parts.items()
            }
            error, oracle = _squared_error(autoencoder, training), _oracle(autoencoder, training)
            found[name] = {"count": min(count, len(training)), "mse": error, **own, "oracle": oracle}
        return found

    [found] = side_by_side([measured])
    return found


def reconstructed(autoencoder: Autoencoder, images: Tensor) -> Iterator[Tensor]:
    """Images (N, C, H, W), uint8, encoded and decoded, in [-1, 1] but not limited to it: batches on the device."""
    for part in images.split(CHUNK):
        x = to_device(to_range(part), default_device())
        yield autoencoder.to(x.device).decode(autoencoder.encode(x))


def _metrics(
    part: str, autoencoder: Autoencoder, images: Tensor, extractor: Extractor, reference: Reference, count: int
) -> Metrics:
    """The metrics against images of the same part, without a value if an answer is not finite: those of `count` random
    ones, or of all if there are fewer."""
    chosen = images[torch.randperm(len(images), generator=generator("reconstruction"))[:count]]
    decoded = list(reconstructed(autoencoder, chosen))
    if not all(bool(x.isfinite().all()) for x in decoded):
        return []
    found = measure(map(to_uint8, decoded), len(chosen), extractor, reference).metrics
    return [own | {"metric": split(own["metric"])[1]} for own in found if split(own["metric"])[0] == part]


def _squared_error(autoencoder: Autoencoder, images: Tensor) -> float | None:
    """The mean squared error of a reconstructed value, in units of [-1, 1]; None if an answer is not finite."""
    errors = torch.cat(
        [
            (made - to_device(to_range(part), made.device)).cpu().double().square().flatten(1).mean(1)
            for part, made in zip(images.split(CHUNK), reconstructed(autoencoder, images), strict=True)
        ]
    )
    mean = float(errors.mean())
    return mean if torch.isfinite(errors).all() else None


def _oracle(autoencoder: Autoencoder, images: Tensor) -> dict[str, Any] | None:
    """What principal components and the samplers of ORACLE lose on the Gaussian of the images, per image.

    None for other kinds, and for images so large that their covariance takes too long.
    """
    spec = autoencoder.spec
    if spec.kind != "pca" or math.prod(spec.shape) > MOST_VALUES:
        return None
    points: list[dict[str, Any]] = []
    lost = 0.0
    for name, sampler in ORACLE.items():
        for found in latent_oracle(images, spec.factor, spec.channels, sampler, sampler.step_counts):
            own = asdict(found)
            lost = own["autoencoder"]
            keys = {"steps": own["steps"], "nfe": own["nfe"], "together": own["both"], "pixels": own["pixels"]}
            points.append({"sampler": name} | keys)
    return {"autoencoder": lost, "points": points}
