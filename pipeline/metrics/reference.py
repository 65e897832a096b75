"""The reference: features of the real images or points, and the floor, which is the score of real ones against real
ones.

Samples are measured against all images that models are trained on and, if some are held out, also against the held-out
ones and against an equally large part of the training images. A Frechet distance depends on the number of real images,
so only these two compare: their gap is what the models know of their training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.randomness import generator
from pipeline.common.sealed import reading
from pipeline.common.tensors import decode, encode, read_sealed, write_sealed
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, BlockMoments, Estimate, Moments, jackknife_error, moments
from pipeline.metrics.extractors.coordinates import COORDINATES_HASH
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance, frechet_estimates, jackknifed
from pipeline.metrics.kernel import KernelSums, kernel_distance, kernel_sums
from pipeline.metrics.names import GAP, HELDOUT, MATCHED, against
from pipeline.metrics.neighbours import (
    COVERAGE_NEIGHBOURS,
    near_duplicates,
    near_duplicates_without,
    nearest_squared,
    neighbour_metrics,
)
from pipeline.metrics.score import inception_score
from pipeline.metrics.wasserstein import sliced_w2, w2, w2_without

FLOOR_SPLITS = 10
DUPLICATE_QUANTILE = 0.05  # a near-duplicate is closer to a real image than 95% of real images are to one another


@dataclass(frozen=True)
class Reference:
    """Features (N, d) of real images in random order, with their precomputed moments and kernel sums.

    others: the references that samples are also measured against: HELDOUT, of the held-out images, and MATCHED, of an
    equally large part of the training images. Their `duplicate_distance` is the same.
    """

    features: Tensor
    moments: Moments
    sums: KernelSums
    duplicate_distance: float
    extractor_hash: str = ""
    hash: str = ""
    others: dict[str, "Reference"] = field(default_factory=dict)
    _nearest: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def on(self, device: torch.device) -> "Reference":
        """A copy on a device; itself if it is already there."""
        if self.features.device == device:
            return self
        moved = Moments(self.moments.mean.to(device), self.moments.covariance.to(device))
        sums = KernelSums(*(each.to(device) for each in (self.sums.rows, self.sums.columns, self.sums.squares)))
        others = {name: other.on(device) for name, other in self.others.items()}
        return replace(self, features=self.features.to(device), moments=moved, sums=sums, others=others, _nearest={})

    def estimates(self, features: Tensor, blocks: BlockMoments, logits: Tensor | None) -> dict[str, Estimate]:
        """Every metric of generated features (n, d), from them, their block moments and, if available, logits (n, k).

        `fd`, `fd_corrected`, `fd_infinity` and `kd` use all training images; `precision`, `recall`, `density` and
        `coverage` the first min(n, N) on both sides. `near_duplicates` is the share that is closer to a real image than
        95% of real images are to one another; 0.05 is its value by chance. `score` uses only logits. For points also
        `w2` and `sliced_w2`, which are distances in the space of the data.

        With others, every metric except `fd_infinity` and `score` also as `heldout_...`, against the held-out images,
        and as `matched_...`, against as many training images. `gap_...` is held-out minus matched, of `fd_corrected`,
        `near_duplicates` and `w2`. Its standard error is that of drawing the real images, for these samples: the
        jackknife's over them, which leaves out a block of the held-out images and one of the others at once. All sets
        of samples are measured against the same real images, so that this error is common to them, and a mean over
        repetitions has it in full.
        """
        sums = kernel_sums(features)
        estimates = frechet_estimates(blocks, self.distance) | self._estimates(features, sums)
        if self.others:
            whole, heldout, matched = blocks.all(), self.others[HELDOUT], self.others[MATCHED]
            frechet = jackknifed(blocks, heldout.distance)
            unseen = frechet | heldout._estimates(features, sums)
            seen = matched._like(frechet, whole) | matched._estimates(features, sums)
            apart = [other._without_blocks(features, whole) for other in (heldout, matched)]
            estimates |= {against(HELDOUT, metric): e for metric, e in unseen.items()}
            estimates |= {against(MATCHED, metric): e for metric, e in seen.items()}
            for metric, without in apart[0].items():
                value, error = unseen[metric].value - seen[metric].value, jackknife_error(without - apart[1][metric])
                estimates[against(GAP, metric)] = Estimate(value, error)
        return estimates if logits is None else estimates | {"score": inception_score(logits)}

    def _like(self, other: dict[str, Estimate], whole: Moments) -> dict[str, Estimate]:
        """Frechet distances of features with the moments `whole`, from those against another reference of this size.

        The bias and the standard error of drawing these features are taken to be the same, and so their gap has none
        of either: the jackknife takes 21 distances, and this one.
        """
        plain, bias = self.distance(whole), other["fd"].value - other["fd_corrected"].value
        return {"fd": Estimate(plain, other["fd"].se), "fd_corrected": Estimate(plain - bias, other["fd"].se)}

    def _without_blocks(self, features: Tensor, whole: Moments) -> dict[str, Tensor]:
        """The metrics of features (n, d), with the moments `whole`, without each of 20 blocks of the real images.

        Each is (20,), up to a constant that is the same for every reference of this size.
        """
        distances = [frechet_distance(self._block_moments.without(b), whole) for b in range(self._block_moments.blocks)]
        found = {
            "fd_corrected": torch.tensor(distances, dtype=torch.float64),
            "near_duplicates": near_duplicates_without(features, self.features, self.duplicate_distance).cpu(),
        }
        if self._of_points:
            found["w2"] = w2_without(features, self.features)
        return found

    @cached_property
    def _block_moments(self) -> BlockMoments:
        return _blocks(self.features, self.moments.mean)

    def distance(self, other: Moments) -> float:
        """The Frechet distance of features with these moments."""
        return frechet_distance(other, self.moments)

    def _estimates(self, features: Tensor, sums: KernelSums) -> dict[str, Estimate]:
        """The metrics of features (n, d), whose kernel sums are given, except Frechet distances."""
        count = min(len(features), len(self.features))
        estimates = {"kd": kernel_distance(features, self.features, self.sums, sums)}
        estimates |= neighbour_metrics(features[:count], self.features[:count], self._nearest_of(count))
        estimates["near_duplicates"] = near_duplicates(features, self.features, self.duplicate_distance)
        if self._of_points:
            estimates |= {"w2": w2(features, self.features), "sliced_w2": sliced_w2(features, self.features)}
        return estimates

    @property
    def _of_points(self) -> bool:
        return self.extractor_hash == COORDINATES_HASH

    def _nearest_of(self, count: int) -> Tensor:
        if count not in self._nearest:
            self._nearest[count] = nearest_squared(self.features[:count], neighbours=COVERAGE_NEIGHBOURS)
        return self._nearest[count]


def reference_of(features: Tensor, extractor_hash: str = "") -> Reference:
    """The reference with features (n, d) of an extractor, in this order."""
    duplicate = duplicate_distance([features])
    return Reference(features, moments(features), kernel_sums(features), duplicate, extractor_hash)


def duplicate_distance(sets: Sequence[Tensor]) -> float:
    """The squared distance within which 5% of real features (n, d) of each set have another one of that set."""
    return float(torch.cat([nearest_squared(own)[:, 0] for own in sets]).quantile(DUPLICATE_QUANTILE))


def references_of(heldout: Tensor, matched: Tensor, extractor_hash: str) -> dict[str, Reference]:
    """`Reference.others` from the features (m, d) of the held-out images and of as many training images."""
    duplicate = duplicate_distance([heldout, matched])
    return {
        name: replace(reference_of(features, extractor_hash), duplicate_distance=duplicate)
        for name, features in ((HELDOUT, heldout), (MATCHED, matched))
    }


def make_reference(
    extracted: Extracted,
    extractor_hash: str,
    seed: int = 0,
    heldout: Extracted | None = None,
    matched: Tensor | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """From the features (n, d) and logits of all training images: the content of the reference file, and a summary.

    heldout: the same of the held-out images; matched: the places (m,) of as many training images. Both are in an order
    of which every stretch is alike, from `equal_sets`.

    The summary has each metric's floor: the score of one half of the real images against the other half, as mean and
    standard deviation over random splits. Quarters show whether Frechet distances are proportional to 1 / count. The
    scores of the held-out images against the training images are another floor. Raises StudyError for too few images.
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
    tensors = _tensors(reference)
    extra: dict[str, Any] = {"duplicate_distance": reference.duplicate_distance, "extractor_hash": extractor_hash}
    held: dict[str, Any] = {}
    if heldout is not None and matched is not None:
        others = references_of(heldout.features, features[matched], extractor_hash)
        for name, each in others.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in _tensors(each).items()}
        extra |= {"others": [*others], "others_duplicate_distance": others[HELDOUT].duplicate_distance}
        scores = _scores(heldout.features, reference, heldout.logits)
        held["heldout"] = {
            "images": len(heldout.features),
            "scores": {metric: e._asdict() for metric, e in scores.items()},
        }
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
    return content, summary | held


def _tensors(reference: Reference) -> dict[str, Tensor]:
    return {
        "features": reference.features,
        "mean": reference.moments.mean,
        "covariance": reference.moments.covariance,
        "kernel_rows": reference.sums.rows,
        "kernel_squares": reference.sums.squares,
    }


def _from_tensors(tensors: dict[str, Tensor], place: str, duplicate: float, extractor_hash: str) -> Reference:
    """Inverse of `_tensors`, for the names that begin with `place`."""
    features, mean, covariance, rows, squares = (
        tensors[f"{place}{key}"] for key in ("features", "mean", "covariance", "kernel_rows", "kernel_squares")
    )
    return Reference(features, Moments(mean, covariance), KernelSums(rows, rows, squares), duplicate, extractor_hash)


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
        own_hash = extra["extractor_hash"]
        others = {
            name: _from_tensors(tensors, f"{name}/", extra["others_duplicate_distance"], own_hash)
            for name in extra.get("others", [])
        }
        reference = _from_tensors(tensors, "", extra["duplicate_distance"], own_hash)
        reference = replace(reference, hash=content_hash(content), others=others)
    if extractor_hash not in (None, reference.extractor_hash):
        raise StudyError(f"{path}: made with another extractor than the present one; run `dvc repro`")
    return reference
