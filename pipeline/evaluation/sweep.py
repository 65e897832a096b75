"""Measuring a curve: one cell for each pair of seeds and number of steps, kept so that it is never measured twice."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, autocast, default_device, exact_device, fitting_batch
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import CACHE, content_hash, write_bytes, write_json
from pipeline.common.machine import code_hash, machine
from pipeline.common.threads import side_by_side
from pipeline.diffusion.classifier import NoisyClassifier, load_classifier, missing
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.diffusion.weights import Weights, classifier_file, content_key, main_file, weights_for
from pipeline.metrics.extractors.extractor import Extractor, headline, label
from pipeline.metrics.measurement import SHOWN_IMAGES, SHOWN_POINTS, measure
from pipeline.metrics.reference import Reference
from pipeline.sampling.batches import ALL, batches, mean_nfe
from pipeline.sampling.batches import generate_share as generate
from pipeline.sampling.fitted_grids import on_fitted_grid
from pipeline.sampling.guidance import ByClass, BySample, guided
from pipeline.sampling.row import Sampler, sampler_of

CHOSEN = ("samples", "batch", "labels", "precision", "compile")  # of a curve, beside its sampler and its weights
AGREEMENT_SAMPLES = 10_000  # features kept of one cell a curve, at most, for the comparison with the libraries


@dataclass(frozen=True)
class Cell:
    """The metrics of one set of samples, its counted NFE, the hash of the weights that made it, its first images.

    images: (SHOWN_IMAGES, C, H, W), uint8, or (SHOWN_POINTS, 2), float32; features: the first AGREEMENT_SAMPLES, or
    none (0, d), where not asked for.
    failed: why it could not be sampled, in one line; then there are no metrics and no images.
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
        """All but the tensors, for JSON."""
        return {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}

    def said(self, extractor: Extractor) -> str:
        """What there is to tell of it, in a line: its headline score, or why there is none."""
        metric = headline(extractor.name)
        seeds = f"seeds {self.train_seed} and {self.sample_seed}"
        score = self.failed or f"{label(metric, extractor.name, extractor.official)} {value_of(self, metric):.4g}"
        return f"NFE {self.nfe}, {seeds}: {score}"


def save_cell(cell: Cell, path: Path) -> None:
    tensors = {"images": cell.images, "features": cell.features.contiguous()}
    write_bytes(path, save(tensors, {"cell": json.dumps(cell.record())}))


def load_cell(path: Path) -> Cell | None:
    """The cell in a file, or None where there is none that can be read."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["cell"])
        tensors = load_file(path)
        return Cell(**record, images=tensors["images"], features=tensors["features"])
    except (FileNotFoundError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None


def checkpoint(curve: dict[str, Any], model: Path, train_seed: int) -> str:
    """A hash of all weights that a resolved curve row is sampled with. Raises StudyError where some are missing."""
    classifier = _classifier(curve, model, train_seed)
    if classifier and not classifier.exists():
        raise missing(classifier)
    return content_key(model, train_seed, curve, classifier)


@dataclass(frozen=True)
class Source:
    """What a resolved curve row samples from: its network on a device, and the same guided and given classes as it
    says."""

    network: Denoiser
    denoiser: DenoiserFunction | BySample
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    def fitting_batch(self) -> int:
        """How many samples to make at a time, for all processes alike."""
        told = processes.exchange(str(fitting_batch(self._call, self.device)).encode())
        return min(map(int, told))

    @torch.no_grad()
    def _call(self, count: int) -> object:
        x, c_noise = torch.zeros(count, *self.shape, device=self.device), torch.zeros(count, device=self.device)
        with autocast(self.network.precision, self.device):
            return self.network.network(x, c_noise, None)


def source(curve: dict[str, Any], model: Path, train_seed: int, device: torch.device = CPU) -> Source:
    """What a resolved curve row samples from. model: the folder of its weights.

    Raises StudyError where what guides it is missing.
    """
    file = _classifier(curve, model, train_seed)
    classifier = load_classifier(file).to(device) if file else None
    weights = weights_for(model, train_seed, curve)
    for denoiser in filter(None, (weights.denoiser, weights.guide)):
        denoiser.run_on(device, curve["precision"], curve["compile"])
    return Source(weights.denoiser, _bound(curve, weights, classifier), device)


@lru_cache(maxsize=4)
def _kept_source(curve: str, model: Path, train_seed: int, weights: str, device: torch.device) -> Source:
    """The source of a curve's row, as JSON, and weights of this hash: kept, since compiling it takes its time."""
    return source(json.loads(curve), model, train_seed, device)


def _classifier(curve: dict[str, Any], model: Path, train_seed: int) -> Path | None:
    """The file of the classifier that guides a curve, where one does."""
    guided_by_it = curve["guide"] == "classifier" and not sampler_of(curve).build_guidance().idle
    return classifier_file(model, train_seed) if guided_by_it else None


def _bound(curve: dict[str, Any], weights: Weights, classifier: NoisyClassifier | None) -> DenoiserFunction | BySample:
    guidance = sampler_of(curve).build_guidance()
    of_labels = partial(guided, guidance, weights.denoiser, snapshot=weights.guide, classifier=classifier)
    classes = classifier.classes if classifier else weights.denoiser.classes
    return ByClass(tuple(classes), of_labels) if classes and curve["labels"] == "data" else of_labels(None)


def measure_cell(
    curve: dict[str, Any],
    model: Path,
    grids: list[dict[str, Any]],
    extractor: Extractor,
    reference: Reference,
    seeds: tuple[int, int],
    steps: int,
    keep: int = 0,
) -> Cell:
    """Sample and measure one cell of a resolved curve row, or take it from the cache; `keep` so many features.

    grids: what was fitted to the model. Raises NotFinite where the denoiser's answers are not.
    """
    train_seed, sample_seed = seeds
    sampler = on_fitted_grid(sampler_of(curve), grids, main_file(model, train_seed).name, steps)
    count, device = curve["samples"], default_device()
    row = sampler.model_dump(mode="json", exclude={"nfe"}) | {key: curve[key] for key in CHOSEN}
    weights = checkpoint(curve, model, train_seed)
    key = content_hash(weights, row, steps, sample_seed, extractor.hash, reference.hash, code_hash(), machine(device))
    kept = CACHE / "cells" / f"{key}.safetensors"
    cell = load_cell(kept)
    if cell and len(cell.features) < min(keep, count):
        cell = None
    told = processes.exchange(f"{key} {cell is not None}".encode())
    if len({each.split()[0] for each in told}) > 1:
        raise StudyError("the processes of this job differ in their code, machine or weights")
    if cell and all(each.endswith(b"True") for each in told):
        return replace(cell, features=cell.features[:keep])
    own = _kept_source(json.dumps(curve, sort_keys=True), model, train_seed, weights, device)
    batch = own.fitting_batch() if curve["batch"] == "auto" else curve["batch"]
    costs: list[tuple[int, int]] = []

    def images() -> Iterator[Tensor]:
        for part, nfe in _samples(own, sampler, steps, sample_seed, count, batch):
            costs.append((len(part), nfe))
            yield part

    shown = SHOWN_POINTS if len(own.shape) == 1 else SHOWN_IMAGES
    found = measure(images(), count, extractor, reference, shown)
    cell = Cell(
        train_seed,
        sample_seed,
        steps,
        mean_nfe(costs),
        count,
        weights,
        found.metrics,
        found.images,
        found.features[:keep].cpu(),
    )
    if processes.first():
        save_cell(cell, kept)
    return cell


def _samples(
    own: Source, sampler: Sampler, steps: int, seed: int, count: int, batch: int
) -> Iterator[tuple[Tensor, int]]:
    """What `generate` yields. Several processes deal its batches out among them, and each gets all that was made."""
    ranks = processes.count()
    share = ALL if ranks == 1 else slice(processes.rank(), None, ranks)
    made = generate(own.denoiser, own.shape, sampler, steps, seed, count, batch, own.device, share)
    if ranks == 1:
        yield from made
        return
    parts, costs, failed = list[Tensor](), list[int](), ""
    try:
        for part, nfe in made:
            parts.append(part.cpu().contiguous())
            costs.append(nfe)
    except NotFinite as error:
        failed = str(error)
    mine = save({str(i): part for i, part in enumerate(parts)})
    every_part = map(load, processes.exchange(mine))
    abouts = map(json.loads, processes.exchange(json.dumps({"nfe": costs, "failed": failed}).encode()))
    told = list(zip(every_part, abouts, strict=True))
    for number in range(len(batches(sampler, count, batch))):
        tensors, about = told[number % ranks]
        index = number // ranks
        if index == len(tensors):
            raise NotFinite(about["failed"])
        yield tensors[str(index)].to(own.device), about["nfe"][index]


def failed_cell(
    curve: dict[str, Any], model: Path, reference: Reference, seeds: tuple[int, int], steps: int, why: str
) -> Cell:
    """A cell that could not be sampled, with what it would have cost."""
    nfe = sampler_of(curve).evaluations(steps)
    images, features = torch.empty(0, dtype=torch.uint8), torch.empty(0, reference.features.shape[1])
    return Cell(*seeds, steps, nfe, curve["samples"], checkpoint(curve, model, seeds[0]), [], images, features, why)


def cells_of(curve: dict[str, Any]) -> list[tuple[int, tuple[int, int]]]:
    """The number of steps and the seeds of all cells of a resolved curve row: budgets of equal steps are one cell."""
    sampler = sampler_of(curve)
    steps = sorted({sampler.steps(budget) for budget in sampler.nfe})
    return [(count, tuple(seeds)) for count in steps for seeds in curve["seeds"]]


def measure_curve(
    curve: dict[str, Any],
    model: Path,
    grids: list[dict[str, Any]],
    extractor: Extractor,
    reference: Reference,
    finished: Callable[[Cell], object] = lambda cell: None,
    workers: int | None = None,
) -> list[Cell]:
    """All cells of a resolved curve row: by number of steps, then by seeds (`cells_of`).

    The one of the most steps and the first seeds keeps its features, for the comparison with the libraries.
    """
    own, device = cells_of(curve), default_device()
    extractor, reference = extractor.on(device), reference.on(exact_device(device))
    compared = own[-1][0], tuple(curve["seeds"][0])

    def task(count: int, seeds: tuple[int, int]) -> Cell:
        keep = AGREEMENT_SAMPLES if (count, seeds) == compared else 0
        try:
            cell = measure_cell(curve, model, grids, extractor, reference, seeds, count, keep)
        except NotFinite as error:
            cell = failed_cell(curve, model, reference, seeds, count, str(error))
        except StudyError as error:
            raise StudyError(f"{count} steps, seeds {seeds[0]} and {seeds[1]}: {error}") from None
        finished(cell)
        return cell

    longest_first = sorted(own, key=lambda cell: -cell[0])
    workers = processes.workers_on(device) if workers is None else workers
    done = side_by_side([partial(task, *cell) for cell in longest_first], workers)
    found = dict(zip(longest_first, done, strict=True))
    return [found[cell] for cell in own]


def save_curve(cells: list[Cell], provenance: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write measured cells: results.json, the images shown, and the features kept. Returns a small summary.

    provenance: `measured_with(...)`.
    """
    done = [cell for cell in cells if not cell.failed]
    images = {f"{cell.steps}/{cell.train_seed}/{cell.sample_seed}": cell.images for cell in done}
    write_bytes(folder / "images.safetensors", save(images))
    compared = next((index for index, cell in enumerate(cells) if len(cell.features)), 0)
    features = cells[compared].features.contiguous()
    write_bytes(folder / "features.safetensors", save({"features": features}, {"cell": str(compared)}))
    records = [cell.record() for cell in cells]
    about = {"provenance": provenance, "machine": machine(default_device())}
    write_json(folder / "results.json", about | {"cells": records})
    score, by_nfe = headline(provenance["extractor"]), dict[int, list[float]]()
    for cell in done:
        by_nfe.setdefault(cell.nfe, []).append(value_of(cell, score))
    return {f"{score}_at_nfe": {str(nfe): sum(values) / len(values) for nfe, values in by_nfe.items()}}


def value_of(cell: Cell, metric: str) -> float:
    return next(m["value"] for m in cell.metrics if m["metric"] == metric)
