"""A study's cells from nothing: its data, extractor, reference, weights and samples made again without a cache."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pipeline.common.devices import default_device
from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.progress import bar
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, load_prepared, save, shape_of
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.imageset import ImageSet, measure_set
from pipeline.evaluation.sweep import measure_cell
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.reference import Reference, load_reference, make_reference, save_reference
from pipeline.sampling.fitted_grids import FittedGrids, fit_model
from pipeline.training.checkpoint import setting
from pipeline.training.checks import check_models, spec_of
from pipeline.training.loop import train_seeds
from pipeline.training.row import Model
from pipeline.training.trained import Trained, save_models

OTHER_SEEDS = 2  # of the extractor, where it does not come back


class Place(NamedTuple):
    """Where a cell stands in a study. Of an image set `steps` and `train_seed` are 0, and `sample_seed` counts."""

    curve: str
    steps: int
    train_seed: int
    sample_seed: int


def places_of(rows: dict[str, Any], name: str) -> list[Place]:
    """All cells of a curve of a resolved study."""
    return [Place(name, steps, *seeds) for steps, seeds in Curve(**rows[f"curves/{name}"]).cells()]


@dataclass(frozen=True)
class Instrument:
    """What a study measures with, and the data that it was made of."""

    dataset: Dataset
    summary: dict[str, Any]
    extractor: Extractor
    reference: Reference


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder. Everything cached lies below the working directory, so who works in it finds nothing."""
    with TemporaryDirectory(prefix="nfe-bench-verify-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def make_instrument(rows: dict[str, Any], folder: Path, **changed: Any) -> Instrument:
    """Data, extractor and reference of a resolved study, made again below `folder`. `changed`: of its features row.

    Paths in the study are read from the working directory. Raises StudyError as the stages do.
    """
    save(load(Data(**rows["data"])), folder / "data")
    dataset = load_prepared(folder / "data")
    row = Features(**rows["features"] | changed)
    [(files, _)] = side_by_side([lambda: make_extractor(row, dataset)])
    save_extractor(files, folder / "features")
    extractor = load_extractor(folder / "features").on(default_device())
    [(content, _)] = side_by_side([lambda: make_reference(extractor(dataset.images), extractor.hash)])
    save_reference(content, folder / "reference")
    reference = load_reference(folder / "reference", extractor.hash).on(default_device())
    return Instrument(dataset, dataset.summary(), extractor, reference)


def make_models(rows: dict[str, Any], wanted: dict[str, set[int]], data: Instrument, folder: Path) -> None:
    """Train the models `wanted` (name -> seeds) and what their grids are fitted to, below `folder`."""
    dataset, summary = data.dataset, data.summary
    models = {name: Model(**rows[f"models/{name}"]) for name in wanted}
    check_models(models, summary, dataset.images, dataset.labels)
    levels: list[dict[str, Model]] = []  # a teacher is trained a level before who learns from it, and but once
    last: dict[tuple[str, int], str] = {}
    for name, seed in ((name, seed) for name, seeds in wanted.items() for seed in sorted(seeds)):
        for level, row in enumerate(_teachers(models[name].model_copy(update={"train_seeds": (seed,)}))):
            spec, device = spec_of(row, summary), default_device()
            key = content_hash(setting(row, spec, dataset.images, dataset.labels, seed, device))
            levels += [{}] if level == len(levels) else []
            levels[level][key], last[name, seed] = row, key
    with chdir(folder), bar("train", sum(row.images for rows in levels for row in rows.values()), "image") as progress:

        def train(row: Model) -> Trained:
            return train_seeds(row, summary, dataset.images, progress.update, 1, dataset.labels)[0]

        trained: dict[str, Trained] = {}
        for rows_of_level in levels:
            done = side_by_side([partial(train, row) for row in rows_of_level.values()])
            trained.update(zip(rows_of_level, done, strict=True))
        for (name, _), key in last.items():
            save_models([trained[key]], folder / "models" / name)


def _teachers(row: Model) -> list[Model]:
    """A row of one seed behind its teacher, behind that one's."""
    if row.teacher is None:
        return [row]
    return [*_teachers(row.teacher.model_copy(update={"train_seeds": row.train_seeds})), row]


def measure(rows: dict[str, Any], places: Sequence[Place], instrument: Instrument, folder: Path) -> dict[Place, Cell]:
    """Sample and measure cells of curves, from the models below `folder`. A cell that fails is one with its reason."""
    extractor, reference, grids = instrument.extractor, instrument.reference, dict[str, list[FittedGrids]]()
    curves = {place.curve: Curve(**rows[f"curves/{place.curve}"]) for place in places}
    with chdir(folder):
        for curve in (row for row in curves.values() if row.discretization == "optimised"):
            if curve.model not in grids:
                grids[curve.model] = fit_model(folder / "models" / curve.model, rows["grids"][curve.model])
        with bar("measure", sum(curves[place.curve].samples for place in places), "image") as progress:

            def task(place: Place) -> Cell:
                curve, seeds = curves[place.curve], (place.train_seed, place.sample_seed)
                model, fitted = folder / "models" / curve.model, grids.get(curve.model, [])
                try:
                    cell = measure_cell(curve, model, fitted, extractor, reference, seeds, place.steps)
                except StudyError as error:
                    where = f"{place.curve}, {place.steps} steps, seeds {seeds[0]} and {seeds[1]}"
                    raise StudyError(f"{where}: {error}") from None
                progress.update(cell.samples)
                return cell

            longest_first = sorted(places, key=lambda place: -place.steps)
            done = side_by_side([partial(task, place) for place in longest_first])
    return dict(zip(longest_first, done, strict=True))


def measure_sets(rows: dict[str, Any], names: Iterable[str], instrument: Instrument) -> dict[Place, Cell]:
    """Measure image sets, all their cells."""
    found: dict[Place, Cell] = {}
    shape, samples = shape_of(instrument.summary), rows["samples"]
    for name in names:
        row, place = ImageSet(**rows[f"sets/{name}"]), f"sets.{name}.source"
        with_all = (row, place, shape, samples, instrument.extractor, instrument.reference)
        [cells] = side_by_side([partial(measure_set, *with_all)])
        found |= {Place(name, 0, 0, cell.sample_seed): cell for cell in cells}
    return found


def recompute(
    rows: dict[str, Any], places: Sequence[Place], extractor_hashes: set[str]
) -> tuple[Instrument, dict[Place, Cell], list[dict[Place, Cell]]]:
    """Cells of a resolved study, made again from nothing, and what they were measured with.

    extractor_hashes: how the hashes of those that the committed cells were measured with begin. Where the study trains
    its extractor and another one comes out, the same cells as OTHER_SEEDS extractors of other seeds see them are
    returned last. Raises StudyError as the stages do.
    """
    sets = [place.curve for place in places if place.curve in rows["report"]["sets"]]
    curves = [place for place in places if place.curve not in sets]
    wanted: dict[str, set[int]] = {}
    for place in curves:
        wanted.setdefault(rows[f"curves/{place.curve}"]["model"], set()).add(place.train_seed)
    with workplace() as folder:
        own = make_instrument(rows, folder)
        make_models(rows, wanted, own, folder)

        def cells(instrument: Instrument) -> dict[Place, Cell]:
            measured = measure(rows, curves, instrument, folder) | measure_sets(rows, sorted(set(sets)), instrument)
            return {place: measured[place] for place in places if place in measured}

        another = not own.extractor.hash.startswith(tuple(extractor_hashes)) and own.extractor.name.endswith(
            "classifier"
        )
        seeds = [rows["features"]["seed"] + 1 + k for k in range(OTHER_SEEDS if another else 0)]
        others = [make_instrument(rows, folder / f"extractor_{seed}", seed=seed) for seed in seeds]
        return own, cells(own), [cells(other) for other in others]
