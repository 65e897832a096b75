"""The reference: features of the real images or points, and the floor, which is the score of real ones against real
ones."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.randomness import generator
from pipeline.common.sealed import reading
from pipeline.common.tensors import decode, encode, read_sealed, write_sealed
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments, Estimate, Moments, moments
from pipeline.metrics.extractors.coordinates import COORDINATES_HASH
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance, frechet_estimates
from pipeline.metrics.kernel import KernelSums, kernel_distance, kernel_sums
from pipeline.metrics.neighbours import COVERAGE_NEIGHBOURS, near_duplicates, nearest_squared, neighbour_metrics
from pipeline.metrics.score import inception_score
from pipeline.metrics.wasserstein import sliced_w2, w2

FLOOR_SPLITS = 10
DUPLICATE_QUANTILE = 0.05  # a near-duplicate is closer to a real image than 95% of real images are to one another


@dataclass(frozen=True)
class Reference:
    """Features (N, d) of all real images in random order, with their precomputed moments and kernel sums."""

    features: Tensor
    moments: Moments
    sums: KernelSums
    duplicate_distance: float
    extractor_hash: str = ""
    hash: str = ""
    _nearest: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def on(self, device: torch.device) -> "Reference":
        """A copy on a device; itself if it is already there."""
        if self.features.device == device:
            return self
        moved = Moments(self.moments.mean.to(device), self.moments.covariance.to(device))
        sums = KernelSums(*(each.to(device) for each in (self.sums.rows, self.sums.columns, self.sums.squares)))
        return replace(self, features=self.features.to(device), moments=moved, sums=sums, _nearest={})

    def estimates(self, features: Tensor, blocks: BlockMoments, logits: Tensor | None) -> dict[str, Estimate]:
        """Every metric of generated features (n, d), from them, their block moments and, if available, logits (n, k).

        `fd`, `fd_corrected`, `fd_infinity` and `kd` use all real images; `precision`, `recall`, `density` and
        `coverage` the first min(n, N) on both sides. `near_duplicates` is the share that is closer to a real image than
        95% of real images are to one another; 0.05 is its value by chance. `score` uses only logits. For points also
        `w2` and `sliced_w2`, which are distances in the space of the data.
        """
        count = min(len(features), len(self.features))
        estimates = frechet_estimates(blocks, partial(frechet_distance, b=self.moments))
        estimates["kd"] = kernel_distance(features, self.features, self.sums)
        estimates |= neighbour_metrics(features[:count], self.features[:count], self._nearest_of(count))
        estimates["near_duplicates"] = near_duplicates(features, self.features, self.duplicate_distance)
        if self.extractor_hash == COORDINATES_HASH:
            estimates |= {"w2": w2(features, self.features), "sliced_w2": sliced_w2(features, self.features)}
        return estimates if logits is None else estimates | {"score": inception_score(logits)}

    def _nearest_of(self, count: int) -> Tensor:
        if count not in self._nearest:
            self._nearest[count] = nearest_squared(self.features[:count], neighbours=COVERAGE_NEIGHBOURS)
        return self._nearest[count]


def reference_of(features: Tensor, extractor_hash: str = "") -> Reference:
    """The reference with features (n, d) of an extractor, in this order."""
    duplicate = float(nearest_squared(features)[:, 0].quantile(DUPLICATE_QUANTILE))
    return Reference(features, moments(features), kernel_sums(features), duplicate, extractor_hash)


def make_reference(extracted: Extracted, extractor_hash: str, seed: int = 0) -> tuple[bytes, dict[str, Any]]:
    """From the features (n, d) and logits of all real images: the content of the reference file, and a summary.

    The summary has each metric's floor: the score of one half of the real images against the other half, as mean and
    standard deviation over random splits. Quarters show whether Frechet distances are proportional to 1 / count.
    Raises StudyError for too few images.
    """
    features, logits = extracted.features, extracted.logits
    half, quarter = len(features) // 2, len(features) // 4
    if half < 2 * JACKKNIFE_BLOCKS:
        raise StudyError(f"{len(features)} real images are too few to measure against; at least {4 * JACKKNIFE_BLOCKS}")
    order = torch.randperm(len(features), generator=generator("reference", seed))
    reference = reference_of(features[order], extractor_hash)
    floors: list[dict[str, Estimate]] = []
    quarters: list[float] = []
    for k in range(FLOOR_SPLITS):
        order = torch.randperm(len(features), generator=generator("floor", seed, k))
        one, other = order[:half], order[half : 2 * half]
        side = reference_of(features[other], extractor_hash)
        floors.append(_scores(features[one], side, None if logits is None else logits[one]))
        if quarter >= 2 * JACKKNIFE_BLOCKS:
            few = moments(features[other[:quarter]])
            blocks = _blocks(features[one[:quarter]], few.mean)
            estimates = frechet_estimates(blocks, partial(frechet_distance, b=few))
            quarters.append(estimates["fd_corrected"].value)
    tensors = {
        "features": reference.features,
        "mean": reference.moments.mean,
        "covariance": reference.moments.covariance,
        "kernel_rows": reference.sums.rows,
        "kernel_squares": reference.sums.squares,
    }
    extra = {"duplicate_distance": reference.duplicate_distance, "extractor_hash": extractor_hash}
    content = encode(tensors, "reference", extra)
    summary = {
        "reference_hash": content_hash(content),
        "extractor_hash": extractor_hash,
        "images": len(features),
        "floor_images": half,
        "floor_splits": FLOOR_SPLITS,
        "floor": {metric: _spread([floor[metric].value for floor in floors]) for metric in floors[0]},
        "quarter_images": quarter,
        "quarter_fd_corrected": _spread(quarters) if quarters else None,
    }
    return content, summary


def _blocks(features: Tensor, centre: Tensor) -> BlockMoments:
    blocks = BlockMoments(len(features), centre)
    blocks.add(features)
    return blocks


def _scores(features: Tensor, reference: Reference, logits: Tensor | None) -> dict[str, Estimate]:
    return reference.estimates(features, _blocks(features, reference.moments.mean), logits)


def _spread(values: list[float]) -> dict[str, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(tensor.mean()), "sd": float(tensor.std())}


def save_reference(content: bytes, folder: Path) -> None:
    write_sealed(folder / "reference.safetensors", content)


def load_reference(folder: Path, extractor_hash: str | None = None) -> Reference:
    """The reference in a folder. Raises StudyError if it is missing, broken, or of another extractor."""
    path = folder / "reference.safetensors"
    with reading(path):
        content = read_sealed(path)
        tensors, extra = decode(content, "reference")
        rows = tensors["kernel_rows"]
        reference = Reference(
            tensors["features"],
            Moments(tensors["mean"], tensors["covariance"]),
            KernelSums(rows, rows, tensors["kernel_squares"]),
            extra["duplicate_distance"],
            extra["extractor_hash"],
            content_hash(content),
        )
    if extractor_hash not in (None, reference.extractor_hash):
        raise StudyError(f"{path}: made with another extractor than the present one; run `dvc repro`")
    return reference
