"""The reference: features of the real images or points, and the floor, which is the score of real ones against real
ones.

Samples are measured against all images that models are trained on and, if some are held out, also against the held-out
ones and against equally large parts of the training images. A Frechet distance depends on the number of real images, so
only these two compare: their gap is what the models know of their training images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
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
from pipeline.metrics.frechet import frechet_distance, frechet_estimates, jackknifed
from pipeline.metrics.kernel import KernelSums, kernel_distance, kernel_sums
from pipeline.metrics.names import GAP, HELDOUT, MATCHED, against
from pipeline.metrics.neighbours import COVERAGE_NEIGHBOURS, near_duplicates, nearest_squared, neighbour_metrics
from pipeline.metrics.score import inception_score
from pipeline.metrics.wasserstein import sliced_w2, w2

FLOOR_SPLITS = 10
GAPS = ("fd_corrected", "w2", "near_duplicates")  # metrics whose gap is an estimate of its own
DUPLICATE_QUANTILE = 0.05  # a near-duplicate is closer to a real image than 95% of real images are to one another


@dataclass(frozen=True)
class Reference:
    """Features (N, d) of real images in random order, with their precomputed moments and kernel sums.

    others: the references that samples are also measured against: of the held-out images, and of the equally large
    parts of the training images. Their `duplicate_distance` is common to all of them.
    """

    features: Tensor
    moments: Moments
    sums: KernelSums
    duplicate_distance: float
    extractor_hash: str = ""
    hash: str = ""
    others: dict[str, tuple["Reference", ...]] = field(default_factory=dict)
    _nearest: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def on(self, device: torch.device) -> "Reference":
        """A copy on a device; itself if it is already there."""
        if self.features.device == device:
            return self
        moved = Moments(self.moments.mean.to(device), self.moments.covariance.to(device))
        sums = KernelSums(*(each.to(device) for each in (self.sums.rows, self.sums.columns, self.sums.squares)))
        others = {name: tuple(each.on(device) for each in own) for name, own in self.others.items()}
        return replace(self, features=self.features.to(device), moments=moved, sums=sums, others=others, _nearest={})

    def estimates(self, features: Tensor, blocks: BlockMoments, logits: Tensor | None) -> dict[str, Estimate]:
        """Every metric of generated features (n, d), from them, their block moments and, if available, logits (n, k).

        `fd`, `fd_corrected`, `fd_infinity` and `kd` use all training images; `precision`, `recall`, `density` and
        `coverage` the first min(n, N) on both sides. `near_duplicates` is the share that is closer to a real image than
        95% of real images are to one another; 0.05 is its value by chance. `score` uses only logits. For points also
        `w2` and `sliced_w2`, which are distances in the space of the data.

        With others, every metric except `fd_infinity` and `score` also as `heldout_...`, against the held-out images,
        and as `matched_...`, the mean over the equally large parts of the training images; its standard error is the
        mean of theirs, which is at least that of the mean. `gap_...` is held-out minus matched, with the standard error
        of drawing held-out images and parts.
        """
        sums = kernel_sums(features)
        estimates = frechet_estimates(blocks, self.distance) | self._estimates(features, sums)
        if self.others:
            found = self._against_others(features, blocks, sums)
            estimates |= {against(name, m): _mean([e[m] for e in own]) for name, own in found.items() for m in own[0]}
            [held], parts = found[HELDOUT], found[MATCHED]
            estimates |= {against(GAP, m): _gap(held[m], [part[m] for part in parts]) for m in GAPS if m in held}
        return estimates if logits is None else estimates | {"score": inception_score(logits)}

    def _against_others(
        self, features: Tensor, blocks: BlockMoments, sums: KernelSums
    ) -> dict[str, list[dict[str, Estimate]]]:
        """The metrics against each of the others.

        The bias and the standard error of Frechet distances from the parts are taken to be those from the held-out
        images, which are as many: the jackknife takes 21 distances, and each part only one.
        """
        [heldout] = self.others[HELDOUT]
        exact, whole = jackknifed(blocks, heldout.distance), blocks.all()
        bias, se = exact["fd"].value - exact["fd_corrected"].value, exact["fd"].se
        parts = []
        for part in self.others[MATCHED]:
            plain = part.distance(whole)
            frechet = {"fd": Estimate(plain, se), "fd_corrected": Estimate(plain - bias, se)}
            parts.append(frechet | part._estimates(features, sums))
        return {HELDOUT: [exact | heldout._estimates(features, sums)], MATCHED: parts}

    def distance(self, other: Moments) -> float:
        """The Frechet distance of features with these moments."""
        return frechet_distance(other, self.moments)

    def _estimates(self, features: Tensor, sums: KernelSums) -> dict[str, Estimate]:
        """The metrics of features (n, d), whose kernel sums are given, except Frechet distances."""
        count = min(len(features), len(self.features))
        estimates = {"kd": kernel_distance(features, self.features, self.sums, sums)}
        estimates |= neighbour_metrics(features[:count], self.features[:count], self._nearest_of(count))
        estimates["near_duplicates"] = near_duplicates(features, self.features, self.duplicate_distance)
        if self.extractor_hash == COORDINATES_HASH:
            estimates |= {"w2": w2(features, self.features), "sliced_w2": sliced_w2(features, self.features)}
        return estimates

    def _nearest_of(self, count: int) -> Tensor:
        if count not in self._nearest:
            self._nearest[count] = nearest_squared(self.features[:count], neighbours=COVERAGE_NEIGHBOURS)
        return self._nearest[count]


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(fmean(e.value for e in estimates), fmean(e.se for e in estimates))


def _gap(held: Estimate, parts: Sequence[Estimate]) -> Estimate:
    """Held-out minus the mean over parts. For a model that knows no image, held-out images are like one more part, so
    that the standard error follows from the spread of the parts; NaN for a single part."""
    values = [part.value for part in parts]
    error = stdev(values) * math.sqrt(1 + 1 / len(values)) if len(values) > 1 else math.nan
    return Estimate(held.value - fmean(values), error)


def reference_of(features: Tensor, extractor_hash: str = "") -> Reference:
    """The reference with features (n, d) of an extractor, in this order."""
    duplicate = duplicate_distance([features])
    return Reference(features, moments(features), kernel_sums(features), duplicate, extractor_hash)


def duplicate_distance(sets: Sequence[Tensor]) -> float:
    """The squared distance within which 5% of real features (n, d) of each set have another one of that set."""
    return float(torch.cat([nearest_squared(own)[:, 0] for own in sets]).quantile(DUPLICATE_QUANTILE))


def references_of(heldout: Tensor, parts: Sequence[Tensor], extractor_hash: str) -> dict[str, tuple[Reference, ...]]:
    """`Reference.others` from the features (m, d) of the held-out images and of equally large parts of the others."""
    duplicate = duplicate_distance([heldout, *parts])
    return {
        name: tuple(replace(reference_of(own, extractor_hash), duplicate_distance=duplicate) for own in sets)
        for name, sets in ((HELDOUT, [heldout]), (MATCHED, parts))
    }


def make_reference(
    extracted: Extracted,
    extractor_hash: str,
    seed: int = 0,
    heldout: Extracted | None = None,
    parts: Sequence[Tensor] = (),
) -> tuple[bytes, dict[str, Any]]:
    """From the features (n, d) and logits of all training images: the content of the reference file, and a summary.

    heldout: the same of the held-out images, in random order; parts: places (m,) of as many training images each.

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
    if heldout:
        others = references_of(heldout.features, [features[part] for part in parts], extractor_hash)
        for name, own in others.items():
            tensors |= {f"{name}/{i}/{key}": t for i, each in enumerate(own) for key, t in _tensors(each).items()}
        extra |= {
            "others": {name: len(own) for name, own in others.items()},
            "others_duplicate_distance": others[HELDOUT][0].duplicate_distance,
        }
        scores = _scores(heldout.features, reference, heldout.logits)
        held = {"heldout": {"images": len(heldout.features), "parts": len(parts)}}
        held["heldout"]["scores"] = {metric: e._asdict() for metric, e in scores.items()}
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
            name: tuple(
                _from_tensors(tensors, f"{name}/{i}/", extra["others_duplicate_distance"], own_hash)
                for i in range(count)
            )
            for name, count in extra.get("others", {}).items()
        }
        reference = _from_tensors(tensors, "", extra["duplicate_distance"], own_hash)
        reference = replace(reference, hash=content_hash(content), others=others)
    if extractor_hash not in (None, reference.extractor_hash):
        raise StudyError(f"{path}: made with another extractor than the present one; run `dvc repro`")
    return reference
