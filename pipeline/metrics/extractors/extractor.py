"""A feature extractor: a network in eval mode with a name and a hash, applied in batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from textwrap import shorten
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import Dataset
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.names import COORDINATES

BATCH = 256
LARGE_BATCH = 32  # for extractors that enlarge images first
TOLERANCE = 1e-3  # relative; between features of the same image in different batches

Record = dict[str, Any]  # extractor.json: what builds an extractor from its file, with the file's name or None


class Unavailable(StudyError):
    """Weights that others publish are unavailable at present."""


@dataclass(frozen=True)
class Extracted:
    """features (N, d) and, if the extractor is a classifier, logits (N, k), float32, on the network's device."""

    features: Tensor
    logits: Tensor | None

    def on(self, device: torch.device) -> Self:
        """A copy on a device."""
        logits = None if self.logits is None else self.logits.to(device)
        return replace(self, features=self.features.to(device), logits=logits)


@dataclass(frozen=True)
class Extractor:
    """Features of uint8 images or of points. Reports show `name`, as in FD (name); `hash` covers weights and
    preprocessing.

    network: uint8 (N, C, H, W), or float32 points (N, 2), to features (N, d), or to a tuple (features, logits).
    official: whether scores may be called FID, which takes the Inception network with the weights of torch-fidelity.
    """

    name: str
    hash: str
    preprocessing: str
    network: nn.Module
    batch: int = BATCH
    rgb: bool = False  # repeat grey images to three channels
    official: bool = False

    def on(self, device: torch.device) -> Self:
        """The same extractor, after its network has moved to the device."""
        self.network.to(device)
        return self

    @property
    def of_points(self) -> bool:
        """Whether it takes points and not images."""
        return self.name == COORDINATES

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Extracted:
        """images (N, C, H, W), uint8, or points (N, 2), in batches, on the network's device.

        Raises StudyError if the network is in training mode, or if an output has another shape or is not finite.
        """
        if any(getattr(module, "training", False) for module in self.network.modules()):
            raise StudyError(f"{self.name}: the network is in training mode; call .eval() on it")
        outputs = [self._batch(batch) for batch in images.split(self.batch)]
        features, *logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        finite = torch.cat([features, *logits], 1).isfinite().all(1)
        if not finite.all():
            bad = int((~finite).sum())
            raise StudyError(f"{self.name}: features of {bad} of {len(images)} images are not finite")
        return Extracted(features, logits[0] if logits else None)

    def _batch(self, images: Tensor) -> list[Tensor]:
        weight = next(chain(self.network.parameters(), self.network.buffers()), images)
        images = images.to(weight.device)
        if self.rgb and images.shape[1] == 1:
            images = images.repeat(1, 3, 1, 1)
        output = self.network(images)
        parts = list(output) if isinstance(output, tuple | list) else [output]
        tables = [isinstance(part, Tensor) and part.dim() == 2 and len(part) == len(images) for part in parts]
        if len(parts) not in (1, 2) or not all(tables):
            shapes = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
            given = f"{len(images)} images give [{shapes}]"
            raise StudyError(f"{self.name}: {given}; expected (N, d), or (N, d) and (N, k)")
        return [part.float() for part in parts]


class Recipe(NamedTuple):
    """The two steps that make an extractor.

    obtain: from the row, the data set and the places of images that no extractor may be trained on (None: it chooses)
    to the content of the extractor's file and its record. Errors name the place.
    build: from these to an extractor. Errors do not name the place. Both raise Unavailable if published weights are
    unavailable.
    """

    obtain: Callable[[Features, Dataset, Tensor | None], tuple[bytes, Record]]
    build: Callable[[bytes, Record], Extractor]


def probe(extractor: Extractor, shape: tuple[int, ...]) -> int:
    """The number of features, from seeded noise of the shape (C, H, W), or (2,) of points.

    Raises StudyError if an image's features depend on the call or on the other images of the batch, as with dropout or
    batch normalization in training mode, and if the extractor fails for some number of images.
    """
    if len(shape) == 1:
        images = torch.randn(6, *shape, generator=generator("probe"))
    else:
        images = torch.randint(0, 256, (6, *shape), generator=generator("probe"), dtype=torch.uint8)
    try:
        features = extractor(images).features
        others = [extractor(images).features]
        others += [torch.cat([extractor(part).features for part in images.split(size)]) for size in (5, 1)]
    except StudyError:
        raise
    except Exception as error:  # a user's module can raise anything
        cause = shorten(str(error), 300)
        raise StudyError(f"{extractor.name}: fails on 1, 5 or 6 uint8 images of {shape}: {cause}") from None
    change = max(float((features - other).abs().max()) for other in others)
    if change > TOLERANCE * float(features.abs().max()):
        raise StudyError(
            f"{extractor.name}: gives different features for the same image (by {change:.2g}) from call to call or with"
            " other images in the batch; export it in eval mode"
        )
    return features.shape[1]
