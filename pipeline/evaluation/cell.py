"""A cell: the measurement of one set of samples, its file and its key in the cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.sealed import kept, reading
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.evaluation.curve import Curve
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.names import headline, label
from pipeline.metrics.reference import Reference

AGREEMENT_SAMPLES = 10_000  # the most features kept of one cell per curve, for the comparison with other libraries


@dataclass(frozen=True)
class Cell:
    """The metrics of one set of samples, their counted NFE, the hash of the weights, and the first images.

    images: (SHOWN_IMAGES, C, H, W), uint8, or (SHOWN_POINTS, 2), float32. features: the first AGREEMENT_SAMPLES, or
    (0, d) if they were not asked for. failed: why training or sampling failed, in one line; then metrics and images are
    empty, and without weights their hash is, too.
    """

    train_seed: int
    sample_seed: int
    steps: int
    nfe: int
    samples: int
    checkpoint: str
    metrics: list[dict[str, Any]]
    images: Tensor
    features: Tensor
    failed: str = ""

    def record(self) -> dict[str, Any]:
        """All fields except the tensors, for JSON."""
        return {key: value for key, value in vars(self).items() if not isinstance(value, Tensor)}

    def value(self, metric: str) -> float:
        return next(m["value"] for m in self.metrics if m["metric"] == metric)

    def describe(self, extractor: Extractor) -> str:
        """One line: NFE, seeds, and the headline score or the reason of the failure."""
        metric = headline(extractor.name)
        score = self.failed or f"{label(metric, extractor.name, extractor.official)} {self.value(metric):.4g}"
        return f"NFE {self.nfe}, seeds {self.train_seed} and {self.sample_seed}: {score}"


def failed_cell(
    curve: Curve, seeds: tuple[int, int], steps: int, weights: str, reference: Reference, reason: str
) -> Cell:
    """A cell whose training or sampling failed, with the NFE that it would have cost. weights: their hash, or ""."""
    images, features = torch.empty(0, dtype=torch.uint8), torch.empty(0, reference.features.shape[1])
    return Cell(*seeds, steps, curve.evaluations(steps), curve.samples, weights, [], images, features, reason)


def cache_file(
    curve: Curve,
    weights: str,
    steps: int,
    sample_seed: int,
    extractor: Extractor,
    reference: Reference,
    device: torch.device,
) -> Path:
    """The file of a cell in the cache, named by a hash of everything that the cell depends on."""
    choices = curve.sampling | curve.model_dump(mode="json", include={"samples", "batch"})
    origin = (extractor.hash, reference.hash, code_hash("pipeline.evaluation.sweep"), machine(device))
    return CACHE / "cells" / f"{content_hash(weights, choices, steps, sample_seed, *origin)}.safetensors"


def save_cell(cell: Cell, path: Path) -> None:
    save_tensors(path, {"images": cell.images, "features": cell.features}, "cell", cell.record())


def load_cell(path: Path) -> Cell | None:
    """The cell in a file; None if the file is missing or broken."""
    return kept(_read_cell, path)


def _read_cell(path: Path) -> Cell:
    with reading(path):
        tensors, record = load_tensors(path, "cell")
        return Cell(**record, images=tensors["images"], features=tensors["features"])
