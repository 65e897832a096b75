"""Held-out images: which ones they are, and an equally large part of the others to compare them with."""

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import Dataset
from pipeline.data.row import Data

FEWEST = 100  # images that are trained on, and that are held out
CURE = "add images, or write heldout: 0"


def heldout_count(count: int, row: Data) -> int:
    """How many of `count` images a row holds out: its share, rounded; 0 if it holds none out.

    Raises StudyError for fewer than FEWEST images on either side.
    """
    if not row.heldout:
        return 0
    held = round(count * row.heldout)
    if min(held, count - held) < FEWEST:
        raise StudyError(
            f"data.heldout: {row.heldout:g} of {count} images is {held} and leaves {count - held} to train on, but "
            f"both need at least {FEWEST}; {CURE}"
        )
    return held


def split(dataset: Dataset, row: Data) -> tuple[Dataset, Dataset | None]:
    """The images of a row's data set that models are trained on, and the held-out ones; None if it holds none out.

    Both keep the order of the data set, and have each class in proportion. The choice depends on `heldout_seed`, the
    share and the labels alone. Raises StudyError if a side has fewer than FEWEST images, or none of a class.
    """
    count = len(dataset.images)
    held = heldout_count(count, row)
    if not held:
        return dataset, None
    out = torch.zeros(count, dtype=torch.bool)
    out[_chosen(_labels(dataset), held, generator("held-out images", row.heldout_seed))] = True
    training, heldout = _part(dataset, ~out), _part(dataset, out)
    check_classes(training, heldout, row.heldout)
    return training, heldout


def _labels(dataset: Dataset) -> Tensor:
    return torch.zeros(len(dataset.images), dtype=torch.int64) if dataset.labels is None else dataset.labels


def _part(dataset: Dataset, which: Tensor) -> Dataset:
    labels = None if dataset.labels is None else dataset.labels[which]
    return Dataset(dataset.images[which], labels, dataset.classes, dataset.lossy)


def _chosen(labels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """The places (count,) of a random choice among images with labels (N,).

    Each class has its proportional number of places, rounded down, and the classes with the largest remainders have one
    more, so that the total is right (Hamilton's method). The order is random within a class, and every stretch of it
    has the classes in proportion, so that blocks of a jackknife differ no more than such choices do.
    """
    sizes = torch.bincount(labels)
    quotas, remainders = sizes * count // len(labels), sizes * count % len(labels)
    largest = remainders.argsort(descending=True, stable=True)
    quotas[largest[: count - int(quotas.sum())]] += 1
    order = torch.randperm(len(labels), generator=draws)
    own = [order[labels[order] == label][:quota] for label, quota in enumerate(quotas.tolist())]
    levels = [(torch.arange(len(each)) + 0.5) / max(len(each), 1) for each in own]
    return torch.cat(own)[torch.cat(levels).argsort(stable=True)]


def check_classes(training: Dataset, heldout: Dataset, share: float) -> None:
    """Refuse a split that has all images of a class on one side. share: what it holds out. Raises StudyError."""
    for label, name in enumerate(training.classes):
        own, other = (int((_labels(part) == label).sum()) for part in (training, heldout))
        if (own or other) and not (own and other):
            lacking = "to train on" if other else "held out"
            raise StudyError(
                f"data.heldout: {share:g} of the {own + other} images of class {name!r} leaves none {lacking}; {CURE}"
            )


def equal_size(training: int, held: int) -> int:
    """How many held-out and as many training images are compared: all held-out ones, or half of those to train on.

    The other half is left to train an extractor.
    """
    return min(held, training // 2)


def matched_part(training: Dataset, held: int) -> Tensor | None:
    """The places (size,) of the training images that are compared with `held` held-out ones; None if none is held out.

    A random part with the classes in proportion, in an order of which every stretch has them, too. The study's own
    extractor is trained without them, so that neither these nor the held-out images are known to it.
    """
    return _part_of(training, equal_size(len(training.images), held)) if held else None


def equal_sets(training: Dataset, heldout: Dataset | None) -> tuple[Tensor | None, Tensor | None]:
    """Equally large sets to compare: held-out images, and the places of the training images in `matched_part`.

    Both are in an order of which every stretch has the classes in proportion. (None, None) without held-out images.
    """
    if heldout is None:
        return None, None
    matched = matched_part(training, len(heldout.images))
    assert matched is not None
    return heldout.images[_part_of(heldout, len(matched))], matched


def _part_of(dataset: Dataset, size: int) -> Tensor:
    return _chosen(_labels(dataset), size, generator("part of the images"))
