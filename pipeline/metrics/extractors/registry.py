"""Feature extractors by name: make one for a study, save it and load it again."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import write_bytes
from pipeline.common.sealed import Missing, load_json, sealed_json
from pipeline.data.dataset import Dataset, is_points
from pipeline.metrics.extractors import classifier, coordinates, inception, module
from pipeline.metrics.extractors.extractor import Extractor, Recipe, Unavailable, probe
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.names import COORDINATES, label

EXTRACTORS = {
    "classifier": Recipe(classifier.obtain, classifier.build),
    "inception": Recipe(inception.obtain, inception.build),
    "module": Recipe(module.obtain, module.build),
    COORDINATES: Recipe(coordinates.obtain, coordinates.build),
}


def check_suits(extractor: str, points: bool) -> None:
    """Raise StudyError if an extractor, a key of EXTRACTORS, is for images and the data are points, or vice versa.

    We do not substitute another extractor silently: the report would then contradict its study file.
    """
    if points and extractor != COORDINATES:
        raise StudyError(
            f"features.extractor: {extractor} takes images, and the data are points; write `{COORDINATES}`"
        )
    if not points and extractor == COORDINATES:
        valid = ", ".join(sorted(set(EXTRACTORS) - {COORDINATES}))
        raise StudyError(f"features.extractor: {COORDINATES} takes points, and the data are images; valid: {valid}")


def make_extractor(
    row: Features, dataset: Dataset, left_out: Tensor | None = None
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The extractor of a row, or the classifier if published weights are unavailable: its files and a summary.

    left_out: places (k,) of images that an extractor is not trained on; by default a random fifth, if it is trained.
    The summary's `fallback` is the reason for the classifier, or None. Raises StudyError for every other problem, and
    with both causes if the classifier fails, too.
    """
    check_suits(row.extractor, is_points(dataset.images))
    try:
        fallback, (files, summary) = None, _make(row.extractor, row, dataset, left_out)
    except Unavailable as error:
        fallback = str(error)
        try:
            files, summary = _make("classifier", row, dataset, left_out)
        except StudyError as second:
            unavailable = f"{row.extractor}: weights are unavailable ({fallback})"
            raise StudyError(f"{unavailable}, and the classifier cannot replace it: {second}") from None
    return files, summary | {"wanted": row.extractor, "fallback": fallback}


def _make(
    name: str, row: Features, dataset: Dataset, left_out: Tensor | None
) -> tuple[dict[str, bytes], dict[str, Any]]:
    content, record = EXTRACTORS[name].obtain(row, dataset, left_out)
    try:
        extractor = EXTRACTORS[name].build(content, record)
        dimensions = probe(extractor, tuple(dataset.images.shape[1:]))
    except Unavailable:
        raise
    except StudyError as error:
        raise StudyError(f"{row.weights or name}: {error}") from None
    record = {"extractor": name, "hash": extractor.hash} | record
    files = {"extractor.json": sealed_json(record)}
    if record["file"]:
        files[record["file"]] = content
    summary = {
        "name": extractor.name,
        "dimensions": dimensions,
        "official": extractor.official,
        "hash": extractor.hash,
        "preprocessing": extractor.preprocessing,
        "held_out_images": record.get("held_out_images"),
        "held_out_accuracy": record.get("held_out_accuracy"),
    }
    return files, summary


def describe(summary: dict[str, Any]) -> str:
    """One line about an extractor, from its summary."""
    text = f"{summary['name']}: {summary['dimensions']} features"
    if summary["held_out_images"]:
        text += f", {summary['held_out_accuracy']:.1%} right on {summary['held_out_images']} images it did not train on"
    return text


def fallback_warning(summary: dict[str, Any]) -> str:
    """One line about the classifier that replaces another extractor, from its summary."""
    return (
        f"{summary['wanted']}: weights are unavailable ({summary['fallback']}); the {summary['name']} is used instead, "
        f"and every score is {label('fd', summary['name'], False)}, not FID; "
        "`dvc repro --force --single-item features` tries again"
    )


def save_extractor(files: dict[str, bytes], folder: Path) -> None:
    """Write the files of `make_extractor` into a folder, each whole or not at all."""
    for name, content in files.items():
        write_bytes(folder / name, content)


def load_extractor(folder: Path) -> Extractor:
    """The extractor in a folder, in eval mode. Raises StudyError if it is missing, broken or has another hash."""
    place = folder / "extractor.json"
    record = load_json(place)
    try:
        build, expected = EXTRACTORS[record["extractor"]].build, record["hash"]
        file = record["file"]
        place = folder / (file or "extractor.json")
        extractor = build(place.read_bytes() if file else b"", record)
    except FileNotFoundError:
        raise Missing(f"{place}: missing; `dvc repro` makes it") from None
    except Unavailable as error:
        raise StudyError(f"{place}: weights are unavailable ({error})") from None
    except StudyError as error:
        raise StudyError(f"{place}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{folder / 'extractor.json'}: not the description of an extractor ({error!r})") from None
    if extractor.hash != expected:
        raise StudyError(
            f"{place}: not the extractor of the hash {expected} in extractor.json; delete it and run `dvc repro`"
        )
    return extractor
