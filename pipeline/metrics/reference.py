"""The real images or points that generated ones are measured against, and the floor: what real ones score among each
other."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash, write_bytes
from pipeline.common.randomness import generator
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments, Estimate, Moments, moments
from pipeline.metrics.extractors.coordinates import COORDINATES_HASH
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance, frechet_estimates
from pipeline.metrics.kernel import KernelSums, kernel_distance, kernel_sums
from pipeline.metrics.neighbours import COVERAGE_NEIGHBOURS, near_duplicates, nearest_squared, neighbour_metrics
from pipeline.metrics.score import inception_score
from pipeline.metrics.wasserstein import sliced_w2, w2

FLOOR_SPLITS = 10
DUPLICATE_QUANTILE = 0.05  # a near-duplicate is nearer to a real image than 95% of these are to each other


@dataclass(frozen=True)
class Reference:
    """Features (N, d) of all real images in random order, and what every measurement against them needs."""

    features: Tensor
    moments: Moments
    sums: KernelSums
    duplicate_distance: float
    extractor_hash: str = ""
    hash: str = ""
    _nearest: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def on(self, device: torch.device) -> "Reference":
        """The same on a device."""
        if self.features.device == device:
            return self
        moved = Moments(self.moments.mean.to(device), self.moments.covariance.to(device))
        sums = KernelSums(*(each.to(device) for each in (self.sums.rows, self.sums.columns, self.sums.squares)))
        return replace(self, features=self.features.to(device), moments=moved, sums=sums, _nearest={})

    def estimates(self, features: Tensor, blocks: BlockMoments, logits: Tensor | None) -> dict[str, Estimate]:
        """Every metric of generated features (n, d), their block moments and, where there are any, logits (n, k).

        `fd`, `fd_corrected`, `fd_infinity` and `kd` against all real images; `precision`, `recall`, `density` and
        `coverage` of the first min(n, N) on either side; `near_duplicates`, the share that is nearer to a real image
        than 95% of these are to each other, so that 0.05 is what chance would give; `score`, from logits alone. Of
        points also `w2` and `sliced_w2`, which are distances in the space of the data themselves.
        """
        count = min(len(features), len(self.features))
        found = frechet_estimates(blocks, partial(frechet_distance, b=self.moments))
        found["kd"] = kernel_distance(features, self.features, self.sums)
        found |= neighbour_metrics(features[:count], self.features[:count], self._nearest_of(count))
        found["near_duplicates"] = near_duplicates(features, self.features, self.duplicate_distance)
        if self.extractor_hash == COORDINATES_HASH:
            found |= {"w2": w2(features, self.features), "sliced_w2": sliced_w2(features, self.features)}
        return found if logits is None else found | {"score": inception_score(logits)}

    def _nearest_of(self, count: int) -> Tensor:
        if count not in self._nearest:
            self._nearest[count] = nearest_squared(self.features[:count], neighbours=COVERAGE_NEIGHBOURS)
        return self._nearest[count]


def reference_of(features: Tensor, extractor_hash: str = "") -> Reference:
    """What measurements against features (n, d) of an extractor need."""
    duplicate = float(nearest_squared(features)[:, 0].quantile(DUPLICATE_QUANTILE))
    return Reference(features, moments(features), kernel_sums(features), duplicate, extractor_hash)


def make_reference(found: Extracted, extractor_hash: str, seed: int = 0) -> tuple[bytes, dict[str, Any]]:
    """From the features (n, d) and logits of all real images: the reference file's content, and a summary.

    It holds each metric's floor: what one half of the real images scores against the other half, mean and standard
    deviation over random splits. Halves of halves tell whether Frechet distances fall in proportion to the count.
    """
    features, logits = found.features, found.logits
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
    content = save({name: t.cpu().contiguous() for name, t in tensors.items()}, {"reference": json.dumps(extra)})
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
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(found.mean()), "sd": float(found.std())}


def save_reference(content: bytes, folder: Path) -> None:
    write_bytes(folder / "reference.safetensors", content)


def load_reference(folder: Path, extractor_hash: str | None = None) -> Reference:
    """The reference in a folder. Raises StudyError where it is missing, broken, or made by another extractor."""
    path = folder / "reference.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            extra = json.loads((file.metadata() or {})["reference"])
        tensors = load_file(path)
        rows = tensors["kernel_rows"]
        found = Reference(
            tensors["features"],
            Moments(tensors["mean"], tensors["covariance"]),
            KernelSums(rows, rows, tensors["kernel_squares"]),
            extra["duplicate_distance"],
            extra["extractor_hash"],
            content_hash(path),
        )
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` makes it") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not a reference of this study ({error})") from None
    if extractor_hash not in (None, found.extractor_hash):
        raise StudyError(f"{path}: made by another extractor than the present one; run `dvc repro`")
    return found
