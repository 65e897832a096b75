"""Data sets by name or path: load one, or take a glance at it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.common.errors import StudyError
from pipeline.data import cifar10, patches, points
from pipeline.data.dataset import Dataset, mean_and_sigma
from pipeline.data.files import opened
from pipeline.data.heldout import heldout_count, split
from pipeline.data.images import collect
from pipeline.data.listing import ARCHIVE_SUFFIX, expanded, is_image, unknown_source
from pipeline.data.row import Data

GLANCED = 32  # images of a folder or zip that a glance decodes


def load(row: Data, place: str = "data.source") -> Dataset:
    """The data set of a row, in an order that depends on its content alone.

    A folder is read sorted by relative path, a zip in its stored order. A .tar.gz must be CIFAR-10's archive;
    `cifar10` is downloaded once. Labels come from a top-level `dataset.json` ({"labels": [[name, class], ...] or null,
    "classes": [name, ...]}, "classes" being optional), else from top-level folders, one for each class. If any image
    has colour, all become RGB. Raises StudyError for unusable data; `place` says where the study names the source.
    """
    path = _path(row, place)
    if row.source in SOURCES:
        dataset = SOURCES[row.source](row)
    elif path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
        with opened(path) as files:
            dataset = collect(files, row)
    elif _is_archive(path):
        dataset = _cifar10(row, path)
    else:
        raise StudyError(f"{place}: {unknown_source(row.source)}")
    if mean_and_sigma(dataset.images)[1] == 0:
        raise StudyError(f"{place}: {row.source}: all pixels are equal, so sigma_data = 0; use images that vary")
    return dataset


def load_parts(row: Data, place: str = "data.source", loaded: Dataset | None = None) -> tuple[Dataset, Dataset | None]:
    """The images of a row's data set that models are trained on, and the held-out ones; None if it holds none out.

    loaded: the data set, if the caller has it already. A source in SPLITS has a split of its own. Raises StudyError as
    `load` and `split` do.
    """
    if row.heldout and row.source in SPLITS:
        return SPLITS[row.source](row)
    return split(load(row, place) if loaded is None else loaded, row)


def glance(row: Data, place: str = "data.source") -> dict[str, Any]:
    """The summary of a data set's images to train on, without loading all of it: shape, count, classes and the number
    held out are right, the rest is approximate.

    Decodes only the first images of a folder or zip and counts the others by name. CIFAR-10 is known: a copy of its
    archive is checked, and `cifar10` is not downloaded. Raises StudyError as `load` does; `place` is the same.
    """
    path = _path(row, place)
    if row.source == "cifar10" or _is_archive(path):
        cifar10.check(None if row.source == "cifar10" else path)
        return _cifar10_summary(row)
    if row.source in SOURCES:
        training, heldout = load_parts(row, place)
        return training.summary() | ({"heldout": len(heldout.images)} if heldout else {})
    summary = load(row.model_copy(update={"limit": min(GLANCED, row.limit or GLANCED)}), place).summary()
    with opened(path) as files:
        count = sum(map(is_image, files.names))
    return summary | _counts(count, row)


def _counts(count: int, row: Data) -> dict[str, int]:
    """The numbers of images to train on and, if there are any, held out, of `count` in the source."""
    count = min(count, row.limit or count)
    held = heldout_count(count, row)
    return {"count": count - held} | ({"heldout": held} if held else {})


def _path(row: Data, place: str) -> Path:
    try:
        return expanded(row.source)
    except StudyError as error:
        raise StudyError(f"{place}: {error}") from None


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIX)


def _selected(dataset: Dataset, row: Data) -> Dataset:
    """The first `row.limit` images of a data set, without labels if the row asks for none."""
    labels = dataset.labels[: row.limit] if row.labels and dataset.labels is not None else None
    return Dataset(dataset.images[: row.limit], labels, () if labels is None else dataset.classes)


def _digits(row: Data) -> Dataset:
    """1797 grey 8 x 8 scans of handwritten digits (UCI, 1998), from scikit-learn: values 0..16."""
    from sklearn.datasets import load_digits  # slow to import, and only one stage needs it

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    classes = tuple(str(name) for name in digits.target_names)
    return _selected(Dataset(torch.from_numpy(images), labels, classes), row)


def _points(name: str, row: Data) -> Dataset:
    drawn = points.draw(name)
    return _selected(Dataset(drawn.x.float(), drawn.labels, drawn.classes), row)


def _cifar10_summary(row: Data) -> dict[str, Any]:
    """CIFAR-10's `Dataset.summary` as far as it is known without the images; sigma_data is EDM's setting."""
    channels, height, width = cifar10.SHAPE
    counts = _counts(cifar10.count(), row)
    classes = list(cifar10.CLASSES) if row.labels else []
    return counts | {
        "channels": channels,
        "height": height,
        "width": width,
        "sigma_data": 0.5,
        "classes": classes,
        "class_counts": {name: counts["count"] // len(classes) for name in classes},
    }


def _cifar10(row: Data, path: Path | None = None) -> Dataset:
    return _selected(Dataset(*cifar10.read(path), cifar10.CLASSES), row)


SOURCES: dict[str, Callable[[Data], Dataset]] = {
    "digits": _digits,
    "photo_patches": patches.whole,
    "cifar10": _cifar10,
    **{name: partial(_points, name) for name in points.POINTS},
}

SPLITS: dict[str, Callable[[Data], tuple[Dataset, Dataset]]] = {"photo_patches": patches.parts}
