"""Measuring a curve: one cell for each number of steps and pair of seeds, each sampled once and then cached."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import default_device, exact_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import content_hash
from pipeline.common.machine import machine
from pipeline.common.sealed import save_json
from pipeline.common.tensors import save_tensors
from pipeline.common.threads import side_by_side
from pipeline.diffusion.space import Space
from pipeline.diffusion.weights import content_key, failure, student_of
from pipeline.evaluation.cell import AGREEMENT_SAMPLES, Cell, cache_file, failed_cell, load_cell, save_cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits
from pipeline.evaluation.loading import LoadedModel, load_model
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.measurement import SHOWN_IMAGES, SHOWN_POINTS, measure
from pipeline.metrics.names import headline
from pipeline.metrics.reference import Reference
from pipeline.sampling.batches import generate, mean_nfe


def measure_curve(
    curve: Curve,
    model: Path,
    fits: Fits,
    extractor: Extractor,
    reference: Reference,
    finished: Callable[[Cell], object] = lambda cell: None,
    workers: int | None = None,
    space: Space | None = None,
) -> list[Cell]:
    """Measure all cells of a curve, in the order of `Curve.cells`; `finished` is called with each.

    model: the folder of its weights. fits: to the model. space: of its samples; None: that of the data. A cell
    whose training failed, or whose denoiser or decoder gives values that are not finite, fails alone. The cell of the
    most steps and the first seeds whose training did not fail keeps its features, for the comparison with other
    libraries. Raises StudyError if weights, grids or guides are missing.
    """
    cells, device = curve.cells(), default_device()
    extractor, reference = extractor.on(device), reference.on(exact_device(device))
    folders = [model, *(model.parent / name for name in curve.stages[:-1])]
    trained = (seeds for seeds in curve.seeds if not any(failure(folder, seeds[0]) for folder in folders))
    compared = cells[-1][0], next(trained, curve.seeds[0])

    def task(steps: int, seeds: tuple[int, int]) -> Cell:
        keep = AGREEMENT_SAMPLES if (steps, seeds) == compared else 0
        try:
            cell = measure_cell(curve, model, fits, extractor, reference, seeds, steps, keep, space)
        except StudyError as error:
            raise StudyError(f"{steps} steps, seeds {seeds[0]} and {seeds[1]}: {error}") from None
        finished(cell)
        return cell

    longest_first = sorted(cells, key=lambda cell: -cell[0])
    workers = processes.workers_on(device) if workers is None else workers
    measured = side_by_side([partial(task, *cell) for cell in longest_first], workers)
    by_cell = dict(zip(longest_first, measured, strict=True))
    return [by_cell[cell] for cell in cells]


def measure_cell(
    curve: Curve,
    model: Path,
    fits: Fits,
    extractor: Extractor,
    reference: Reference,
    seeds: tuple[int, int],
    steps: int,
    keep: int = 0,
    space: Space | None = None,
) -> Cell:
    """Sample and measure one cell, or take it from the cache. It keeps the first `keep` features.

    If the training failed or an answer of the denoiser is not finite, the cell fails and holds the reason. Raises as
    `measure_curve` does.
    """
    (train_seed, sample_seed), device, weights = seeds, default_device(), ""
    student = student_of(model, train_seed, steps)
    costs: list[tuple[int, int]] = []
    try:
        weights = _weights_key(curve, model, train_seed, steps, space)
        sampler = fits.applied(curve, train_seed, steps)
        file = cache_file(sampler, weights, steps, sample_seed, extractor, reference, device)
        if cached := _cached(file, min(keep, curve.samples)):
            return replace(cached, features=cached.features[:keep])
        loaded = _loaded(curve, model, train_seed, student, weights, device)
        batch = loaded.fitting_batch() if curve.batch == "auto" else curve.batch
        denoiser, decode = loaded.at(steps), space.on(device).decode if space and not space.is_data else None
        batches = generate(denoiser, loaded.shape, sampler, steps, sample_seed, curve.samples, batch, device, decode)
        shown = SHOWN_POINTS if len(loaded.shape) == 1 else SHOWN_IMAGES
        found = measure(_noting(costs, batches), curve.samples, extractor, reference, shown)
    except NotFinite as error:
        return failed_cell(curve, seeds, steps, weights, reference, str(error))
    features = found.features[:keep].cpu()
    cell = Cell(*seeds, steps, mean_nfe(costs), curve.samples, weights, found.metrics, found.images, features)
    if processes.first():
        save_cell(cell, file)
    return cell


def _weights_key(curve: Curve, model: Path, train_seed: int, steps: int, space: Space | None, end: float = 0.0) -> str:
    """A hash of all weights that make a curve's samples: of its model, its decoder, and the stages before it.

    Raises as `content_key` does.
    """
    own = content_key(model, train_seed, curve.weights(student_of(model, train_seed, steps)))
    others = [space.content] if space and space.content else []
    if curve.earlier:
        before = curve.earlier_steps(steps, end)
        folder = model.parent / curve.earlier.model
        others.append(_weights_key(curve.earlier, folder, train_seed, before, None, curve.earlier_end))
    return content_hash(own, *others) if others else own


def _noting(costs: list[tuple[int, int]], batches: Iterable[tuple[Tensor, int]]) -> Iterator[Tensor]:
    """The samples of each batch; (samples, NFE) of each is appended to `costs`."""
    for samples, nfe in batches:
        costs.append((len(samples), nfe))
        yield samples


def _cached(file: Path, features: int) -> Cell | None:
    """The cell in the cache, if every process of the job has it with at least so many features."""
    cell = load_cell(file)
    if cell and len(cell.features) < features:
        cell = None
    answers = [answer.split() for answer in processes.exchange(f"{file.stem} {cell is not None}".encode())]
    if len({key for key, _ in answers}) > 1:
        raise StudyError("the processes of this job differ in their code, machine or weights; use the same in all")
    return cell if all(present == b"True" for _, present in answers) else None


@lru_cache(maxsize=4)
def _loaded(
    curve: Curve, model: Path, train_seed: int, student: int | None, weights: str, device: torch.device
) -> LoadedModel:
    """The model of a curve, kept because compiling it takes time. weights: their hash, so that new ones are loaded."""
    return load_model(curve, model, train_seed, student, device)


def save_curve(cells: Sequence[Cell], provenance: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write results.json, the first images and the kept features. Returns the mean headline score by NFE.

    provenance: `measured_with(...)`.
    """
    done = [cell for cell in cells if not cell.failed]
    images = {f"{cell.steps}/{cell.train_seed}/{cell.sample_seed}": cell.images for cell in done}
    save_tensors(folder / "images.safetensors", images, "images")
    compared = next((index for index, cell in enumerate(cells) if len(cell.features)), 0)
    save_tensors(folder / "features.safetensors", {"features": cells[compared].features}, "cell", compared)
    records = [cell.record() for cell in cells]
    about = {"provenance": provenance, "machine": machine(default_device())}
    save_json(folder / "results.json", about | {"cells": records})
    score, by_nfe = headline(provenance["extractor"]), dict[int, list[float]]()
    for cell in done:
        by_nfe.setdefault(cell.nfe, []).append(cell.value(score))
    return {f"{score}_at_nfe": {str(nfe): sum(values) / len(values) for nfe, values in by_nfe.items()}}
