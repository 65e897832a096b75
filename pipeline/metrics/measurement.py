"""One pass over generated images or points: features, moments by block, and every metric, without writing images."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count as numbers
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.common import processes
from pipeline.common.errors import StudyError
from pipeline.common.machine import libraries
from pipeline.metrics.estimate import BlockMoments
from pipeline.metrics.extractors.extractor import Extracted, Extractor
from pipeline.metrics.names import HELDOUT
from pipeline.metrics.reference import Reference

SHOWN_IMAGES, SHOWN_POINTS = 16, 1024  # from each set of samples, for the report
CHUNK = 1024  # images at a time: a fixed number, so that sums round alike for every batch size


@dataclass(frozen=True)
class Measured:
    """The metrics [{metric, value, se}], first images (uint8) or points (float32) and features (n, d) of one set."""

    metrics: list[dict[str, Any]]
    images: Tensor
    features: Tensor


def measured_with(extractor: Extractor, reference: Reference, count: int) -> dict[str, Any]:
    """The facts that comparable results share: extractor, reference and split, counts, rounding, versions, device."""
    points = extractor.of_points
    real = f"{len(reference.features)} {'points' if points else 'images'}"
    held = len(reference.others[HELDOUT].features) if HELDOUT in reference.others else 0
    split = f"the {real} that the models were trained on, without {held} held-out ones"
    return {
        "extractor": extractor.name,
        "extractor_hash": extractor.hash,
        "preprocessing": extractor.preprocessing,
        "reference_hash": reference.hash,
        "reference_split": split if held else f"all {real} of the data set, which the models were trained on",
        "samples": count,
        "rounding": "32-bit floats" if points else "8 bits",
        "libraries": libraries() | ({"pot": version("pot")} if points else {}),
        "device": reference.features.device.type,
    }


def _chunks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    held: list[Tensor] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= CHUNK:
            joined = torch.cat(held)
            yield joined[:CHUNK]
            held = [joined[CHUNK:]]
    if any(map(len, held)):
        yield torch.cat(held)


def measure(
    batches: Iterable[Tensor], count: int, extractor: Extractor, reference: Reference, shown: int = 0
) -> Measured:
    """Measure `count` images in batches (n, C, H, W), uint8, or points (n, 2), float32, of any batch size.

    Keeps the first `shown` of them. Features and sums stay on the reference's device. Raises StudyError if all images
    are equal (a collapsed generator), if there are too few, or if features are not finite.
    """
    blocks = BlockMoments(count, reference.moments.mean)
    extracted: list[Extracted] = []
    kept: list[Tensor] = []
    first, varied, seen = None, False, 0
    for number, images in enumerate(_chunks(batches)):
        first = images[:1] if first is None else first
        varied = varied or bool((images != first).any())
        seen += len(images)
        kept.append(images[: max(shown - sum(map(len, kept)), 0)])
        if number % processes.count() == processes.rank():
            extracted.append(extractor(images))
    if seen != count:
        raise StudyError(f"{seen} images arrived, but {count} were expected")
    if not varied:
        raise StudyError(f"all {count} images are equal: the generator has collapsed, so there is nothing to measure")
    parts = _all_of(extracted, reference.features.device)
    for part in parts:
        blocks.add(part.features)
    features = torch.cat([part.features for part in parts])
    logits = [part.logits for part in parts if part.logits is not None]
    estimates = reference.estimates(features, blocks, torch.cat(logits) if logits else None)
    metrics = [
        {"metric": name, "value": e.value, "se": e.se if math.isfinite(e.se) else None} for name, e in estimates.items()
    ]
    return Measured(metrics, torch.cat(kept).cpu(), features)


def _all_of(own: list[Extracted], device: torch.device) -> list[Extracted]:
    """The features that all processes of a job have extracted, in the order of the chunks, on the device.

    The processes took the chunks in turn. Sums then have the same order, and the same rounding, for any number of
    processes.
    """
    if processes.count() == 1:
        return [part.on(device) for part in own]
    features = {f"features/{i}": part.features for i, part in enumerate(own)}
    logits = {f"logits/{i}": part.logits for i, part in enumerate(own) if part.logits is not None}
    told = [load(each) for each in processes.exchange(save({k: v.cpu() for k, v in (features | logits).items()}))]
    chunks: list[Extracted] = []
    for number in numbers():
        tensors, index = told[number % len(told)], number // len(told)
        if f"features/{index}" not in tensors:
            return chunks
        chunks.append(Extracted(tensors[f"features/{index}"], tensors.get(f"logits/{index}")).on(device))
    return chunks
