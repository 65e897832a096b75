"""Held-out images: which ones they are, and random parts of the others that are equally large."""

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import Dataset
from pipeline.data.row import Data

FEWEST = 100  # images that are trained on, and that are held out
CURE = "add images, or write heldout: 0"
MOST_PARTS = 4  # equally large parts of the training images, over which a metric is averaged


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
    _check_classes(dataset, training, heldout, row.heldout)
    return training, heldout


def _labels(dataset: Dataset) -> Tensor:
    return torch.zeros(len(dataset.images), dtype=torch.int64) if dataset.labels is None else dataset.labels


def _part(dataset: Dataset, which: Tensor) -> Dataset:
    labels = None if dataset.labels is None else dataset.labels[which]
    return Dataset(dataset.images[which], labels, dataset.classes, dataset.lossy)


def _chosen(labels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """The places (count,), in random order, of a random choice among images with labels (N,).

    Each class has its proportional number of places, rounded down, and the classes with the largest remainders have one
    more, so that the total is right (Hamilton's method).
    """
    sizes = torch.bincount(labels)
    quotas, remainders = sizes * count // len(labels), sizes * count % len(labels)
    largest = remainders.argsort(descending=True, stable=True)
    quotas[largest[: count - int(quotas.sum())]] += 1
    order = torch.randperm(len(labels), generator=draws)
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in enumerate(quotas.tolist()):
        taken[order[labels[order] == label][:quota]] = True
    return order[taken[order]]


def _check_classes(dataset: Dataset, training: Dataset, heldout: Dataset, share: float) -> None:
    for label, name in enumerate(dataset.classes):
        whole, own, other = (int((_labels(each) == label).sum()) for each in (dataset, training, heldout))
        if whole and not (own and other):
            lacking = "to train on" if other else "held out"
            raise StudyError(
                f"data.heldout: {share:g} of the {whole} images of class {name!r} leaves none {lacking}; {CURE}"
            )


def equal_sets(training: Dataset, heldout: Dataset | None) -> tuple[Tensor | None, list[Tensor]]:
    """Equally large sets to compare: held-out images in random order, and `equal_parts` of the images to train on.

    All held-out images, unless fewer images are trained on. (None, []) without held-out images.
    """
    if heldout is None:
        return None, []
    size = min(len(heldout.images), len(training.images))
    return heldout.images[equal_parts(heldout, size)[0]], equal_parts(training, size)


def equal_parts(dataset: Dataset, size: int) -> list[Tensor]:
    """Disjoint random parts of a data set's images, as places (size,) in random order.

    As many as fit, at most MOST_PARTS. Each has the classes in proportion, as held-out images have.
    """
    labels, rest, parts = _labels(dataset), torch.arange(len(dataset.images)), list[Tensor]()
    while len(parts) < MOST_PARTS and len(rest) >= size:
        own = _chosen(labels[rest], size, generator("part of the images", len(parts)))
        left = torch.ones(len(rest), dtype=torch.bool)
        left[own] = False
        parts.append(rest[own])
        rest = rest[left]
    return parts
