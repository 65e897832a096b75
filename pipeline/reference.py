"""The real images that generated ones are measured against, and the floor: how far real images are from each other."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.errors import StudyError
from pipeline.files import content_hash, write_bytes
from pipeline.metrics import Moments, frechet_distance, frechet_with_error, moments
from pipeline.randomness import generator

FLOOR_SPLITS = 10
FLOOR_IMAGES = 1000  # at most so many images on each side of a split


@dataclass(frozen=True)
class Reference:
    """Moments of all real images; of one side of each split; images a side; the splits' real-real distances; a hash."""

    moments: Moments
    splits: list[Moments]
    split_images: int
    floor: list[float]
    hash: str

    def measure(self, features: Tensor) -> list[dict[str, Any]]:
        """Metrics of generated features (n, d) as [{metric, value, se}].

        `fd`: all n against all real images. `fd_equal_counts`: the first `split_images` against as many real ones,
        mean over the splits, to be compared with the floor; left out where n is smaller.
        """
        value, error = frechet_with_error(features, lambda part: frechet_distance(part, self.moments))
        rows = [{"metric": "fd", "value": value, "se": error}]
        if len(features) >= self.split_images:
            value, error = frechet_with_error(features[: self.split_images], self._mean_distance)
            rows.append({"metric": "fd_equal_counts", "value": value, "se": error})
        return rows

    def _mean_distance(self, features: Tensor) -> float:
        own = moments(features)
        return sum(frechet_distance(own, split) for split in self.splits) / len(self.splits)


def make_reference(features: Tensor, seed: int = 0) -> tuple[bytes, dict[str, Any]]:
    """From the features (n, d) of all real images: the reference file's content, and a summary with the floor."""
    count = min(len(features) // 2, FLOOR_IMAGES)
    if count < 2:
        raise StudyError(f"{len(features)} real images are too few to measure against; at least 4")
    tensors = _tensors("all", moments(features))
    floor = []
    for k in range(FLOOR_SPLITS):
        order = torch.randperm(len(features), generator=generator("floor", seed, k))
        one_side = moments(features[order[:count]])
        floor.append(frechet_distance(features[order[count : 2 * count]], one_side))
        tensors |= _tensors(str(k), one_side)
    summary = {
        "images": len(features),
        "floor_images": count,
        "floor": sum(floor) / FLOOR_SPLITS,
        "floor_sd": float(torch.tensor(floor, dtype=torch.float64).std()),
    }
    return save(tensors, {"floor": json.dumps({"distances": floor, "images": count})}), summary


def _tensors(name: str, value: Moments) -> dict[str, Tensor]:
    return {f"{name}.mean": value.mean, f"{name}.covariance": value.covariance.contiguous()}


def save_reference(content: bytes, folder: Path) -> None:
    write_bytes(folder / "reference.safetensors", content)


def load_reference(folder: Path) -> Reference:
    """The reference in a folder. Raises StudyError where it is missing or broken."""
    path = folder / "reference.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            floor = json.loads((file.metadata() or {})["floor"])
        tensors = load_file(path)
        read = lambda name: Moments(tensors[f"{name}.mean"], tensors[f"{name}.covariance"])  # noqa: E731
        splits = [read(str(k)) for k in range(FLOOR_SPLITS)]
        return Reference(read("all"), splits, floor["images"], floor["distances"], content_hash(path))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` makes it") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not a reference of this study ({error})") from None
