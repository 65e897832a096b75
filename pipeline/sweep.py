"""Measuring a curve: one cell for each pair of seeds and number of steps, kept so that it is never measured twice."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.denoiser import load_denoiser
from pipeline.errors import StudyError
from pipeline.features import Extractor
from pipeline.files import CACHE, content_hash, write_bytes, write_json
from pipeline.parallel import side_by_side
from pipeline.provenance import code_hash, machine
from pipeline.reference import Reference
from pipeline.sampler import Sampler
from pipeline.sampling import generate

SHOWN_IMAGES = 16  # images kept of each cell, for the report


@dataclass(frozen=True)
class Cell:
    """The metrics of one set of samples, its counted NFE, and its first images (SHOWN_IMAGES, C, H, W), uint8."""

    train_seed: int
    sample_seed: int
    steps: int
    nfe: int
    samples: int
    metrics: list[dict[str, Any]]
    images: Tensor


def save_cell(cell: Cell, path: Path) -> None:
    record = {k: v for k, v in vars(cell).items() if k != "images"}
    write_bytes(path, save({"images": cell.images}, {"cell": json.dumps(record)}))


def load_cell(path: Path) -> Cell | None:
    """The cell in a file, or None where there is none that can be read."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["cell"])
        return Cell(**record, images=load_file(path)["images"])
    except (FileNotFoundError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def measure_cell(
    curve: dict[str, Any], model: Path, extractor: Extractor, reference: Reference, seeds: tuple[int, int], steps: int
) -> Cell:
    """Sample and measure one cell of a resolved curve row, or take it from the cache."""
    train_seed, sample_seed = seeds
    sampler = Sampler(**{k: curve[k] for k in Sampler.model_fields})
    weights = model / f"seed_{train_seed}.safetensors"
    row = sampler.model_dump(mode="json", exclude={"nfe"}) | {"samples": curve["samples"], "batch": curve["batch"]}
    key = content_hash(weights, row, steps, sample_seed, extractor.hash, reference.hash, code_hash(), machine())
    kept = CACHE / "cells" / f"{key}.safetensors"
    if cell := load_cell(kept):
        return cell
    denoiser = load_denoiser(weights)
    images, nfe = generate(denoiser, denoiser.shape, sampler, steps, sample_seed, curve["samples"], curve["batch"])
    metrics = reference.measure(extractor(images))
    cell = Cell(train_seed, sample_seed, steps, nfe, len(images), metrics, images[:SHOWN_IMAGES])
    save_cell(cell, kept)
    return cell


def measure_curve(
    curve: dict[str, Any],
    model: Path,
    extractor: Extractor,
    reference: Reference,
    finished: Callable[[Cell], object] = lambda cell: None,
    workers: int | None = None,
) -> list[Cell]:
    """All cells of a resolved curve row: by number of steps, then by seeds. Budgets of equal steps are one cell."""
    sampler = Sampler(**{k: curve[k] for k in Sampler.model_fields})
    steps = sorted({sampler.steps(budget) for budget in sampler.nfe})

    def task(count: int, seeds: tuple[int, int]) -> Cell:
        try:
            cell = measure_cell(curve, model, extractor, reference, seeds, count)
        except StudyError as error:
            raise StudyError(f"{count} steps, seeds {seeds[0]} and {seeds[1]}: {error}") from None
        finished(cell)
        return cell

    cells = {(n, tuple(seeds)): partial(task, n, tuple(seeds)) for n in steps for seeds in curve["seeds"]}
    longest_first = sorted(cells, key=lambda cell: -cell[0])
    done = dict(zip(longest_first, side_by_side([cells[c] for c in longest_first], workers), strict=True))
    return [done[c] for c in cells]


def save_curve(cells: list[Cell], folder: Path) -> dict[str, Any]:
    """Write a curve's cells: results.json, and the images shown in images.safetensors. Returns a small summary."""
    records = [{k: v for k, v in vars(cell).items() if k != "images"} for cell in cells]
    names = {f"{cell.steps}/{cell.train_seed}/{cell.sample_seed}": cell.images for cell in cells}
    write_bytes(folder / "images.safetensors", save(names))
    write_json(folder / "results.json", {"cells": records, "machine": machine()})
    by_nfe: dict[int, list[float]] = {}
    for cell in cells:
        by_nfe.setdefault(cell.nfe, []).append(next(m["value"] for m in cell.metrics if m["metric"] == "fd"))
    return {"fd_at_nfe": {str(nfe): sum(values) / len(values) for nfe, values in by_nfe.items()}}
