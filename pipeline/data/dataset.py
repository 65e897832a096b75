"""Images or points with labels and a summary, kept as prepared data; the only code that knows the range [-1, 1]."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from pipeline.common.errors import NotFinite
from pipeline.common.files import content_hash, write_bytes
from pipeline.common.sealed import load_json, reading, save_json

IMAGES, HELDOUT = "images.safetensors", "heldout.safetensors"
DIVERGED = 1e6  # a sampler whose samples lie farther out has diverged; one such sample would dominate every metric


@dataclass(frozen=True)
class Dataset:
    """images: uint8 (N, C, H, W) with C = 1 or 3, or points: float32 (N, 2), about in [-1, 1].

    labels: int64 (N,), indices into classes, or None without labels. lossy: the lossy formats in which images were
    stored, such as JPEG; the content hash does not depend on it. The tensors must not change: their hash is kept.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    classes: tuple[str, ...] = ()
    lossy: str = ""

    @cached_property
    def content_hash(self) -> str:
        """A hash of images, labels and class names, in their order. It is computed once."""
        pixels = _pixels_hash(self.images, self.images._version)
        labels = None if self.labels is None else self.labels.tolist()
        return content_hash(list(self.images.shape), pixels, labels, list(self.classes))

    def summary(self) -> dict[str, Any]:
        """Facts for JSON: sizes, classes, content hash; mean and sigma_data (population) of all values in [-1, 1].

        The key `lossy` is present only if images were stored in a lossy format.
        """
        sizes = ("dimensions",) if is_points(self.images) else ("channels", "height", "width")
        shape = dict(zip(("count", *sizes), self.images.shape, strict=True))
        mean, sigma_data = mean_and_sigma(self.images)
        counts = [] if self.labels is None else torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return shape | {
            "mean": mean,
            "sigma_data": sigma_data,
            "classes": list(self.classes),
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "content_hash": self.content_hash,
            **({"lossy": self.lossy} if self.lossy else {}),
        }


def to_hash(images: torch.Tensor) -> str:
    """A hash of images (N, C, H, W), uint8, or points (N, 2), float32, in their order. Computed once for a tensor."""
    return Dataset(images, None).content_hash


@lru_cache(maxsize=1)  # a training asks for the hash of its images once per seed
def _pixels_hash(images: torch.Tensor, version: int) -> str:
    """The sha256 of a tensor's memory. version: the tensor's count of in-place changes, which end the cache entry."""
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


def is_points(images: torch.Tensor) -> bool:
    """Whether a tensor holds points, (N, 2), and not images."""
    return images.ndim == 2


def to_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape -> float32 in [-1, 1]; points, float32 (N, 2), unchanged.

    Raises TypeError for any other type, because its values may already be scaled.
    """
    if is_points(images) and images.dtype == torch.float32:
        return images
    if images.dtype != torch.uint8:
        raise TypeError(f"to_range takes uint8 images, not {images.dtype}")
    return images.float() / 127.5 - 1


def to_coordinates(images: torch.Tensor) -> torch.Tensor:
    """Images, uint8, in [-1, 1]; float32 of any shape, which is in the coordinates of a model already, unchanged."""
    return images if images.dtype == torch.float32 else to_range(images)


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Floats of any shape -> uint8: clamped to [-1, 1], then rounded half to even. Inverts `to_range` exactly.

    NaN becomes an arbitrary value: callers whose values may be NaN check first.
    """
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_data(x0: torch.Tensor) -> torch.Tensor:
    """Samples in the format of the data: x0 (N, C, H, W) -> uint8, see `to_uint8`; points (N, 2) -> float32, unclamped.

    Raises NotFinite if a point lies so far out that its sampler has diverged.
    """
    if not is_points(x0):
        return to_uint8(x0)
    if len(x0) and not (far := float(x0.abs().max())) < DIVERGED:
        raise NotFinite(f"samples lie as far out as {far:.2g}: their sampler has diverged")
    return x0.float()


def mean_and_sigma(images: torch.Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of all values in [-1, 1], for images uint8 or points float32 of any count.

    Exact up to the final rounding: from the histogram of images in integers, and from exact sums of points.
    """
    if is_points(images):
        values = images.double().flatten().tolist()
        mean = math.fsum(values) / len(values)
        return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    histogram = torch.bincount(images.flatten(), minlength=256).tolist()
    n = sum(histogram)
    total = sum(value * count for value, count in enumerate(histogram))
    squares = sum(value * value * count for value, count in enumerate(histogram))
    return total / n / 127.5 - 1, math.sqrt((n * squares - total * total) / (n * n)) / 127.5


def save(dataset: Dataset, folder: Path, heldout: Dataset | None = None) -> None:
    """Write the images to train on into `folder`, each file whole or not at all: `images.safetensors` (images, labels)
    and `summary.json`; and the held-out ones, if there are any, into `heldout.safetensors`.

    The summary is that of the images to train on. With held-out ones it also has their number, `heldout`, and their
    content hash, `heldout_hash`.
    """
    summary = dataset.summary()
    _write(dataset, folder / IMAGES)
    if heldout is not None:
        _write(heldout, folder / HELDOUT)
        summary |= {"heldout": len(heldout.images), "heldout_hash": heldout.content_hash}
    save_json(folder / "summary.json", summary)


def _write(dataset: Dataset, path: Path) -> None:
    labels = {} if dataset.labels is None else {"labels": dataset.labels}
    write_bytes(path, to_safetensors({"images": dataset.images} | labels))


def load_summary(folder: Path) -> dict[str, Any]:
    """The `Dataset.summary` that `save` wrote into `folder`. Raises StudyError if it is missing or broken."""
    return load_json(folder / "summary.json")


def load_prepared(folder: Path) -> Dataset:
    """The images to train on that `save` wrote into `folder`, without the held-out ones.

    Raises StudyError if a file is missing, broken or changed.
    """
    return _read(folder / IMAGES, load_summary(folder), "content_hash")


def load_heldout(folder: Path) -> Dataset | None:
    """The held-out images that `save` wrote into `folder`; None if there are none. Raises as `load_prepared` does.

    Only the stages that measure with real images, `reference`, `reconstruct`, `likelihood` and `given`, may call this:
    nothing is trained on held-out images or fitted to them.
    """
    summary = load_summary(folder)
    return _read(folder / HELDOUT, summary, "heldout_hash") if "heldout" in summary else None


def _read(path: Path, summary: dict[str, Any], hash_key: str) -> Dataset:
    with reading(path):
        tensors = from_safetensors(path.read_bytes())
        classes, lossy = tuple(summary["classes"]), summary.get("lossy", "")
        dataset = Dataset(tensors["images"], tensors.get("labels"), classes, lossy)
        if dataset.content_hash != summary[hash_key]:
            raise ValueError("it differs from the content hash in summary.json")
    return dataset


def shape_of(summary: dict[str, Any]) -> tuple[int, ...]:
    """(C, H, W) of a data set's images, or (2,) of its points, from its summary."""
    if "dimensions" in summary:
        return (summary["dimensions"],)
    return summary["channels"], summary["height"], summary["width"]


def described(shape: tuple[int, ...]) -> str:
    """A shape in words: "images of 3 x 32 x 32", "points in 2 dimensions"."""
    return f"points in {shape[0]} dimensions" if len(shape) == 1 else f"images of {' x '.join(map(str, shape))}"
