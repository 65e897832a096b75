"""Images from elsewhere, such as another project's samples, measured like those of this study."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pipeline.common.devices import default_device, exact_device
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json
from pipeline.common.randomness import generator
from pipeline.common.rows import Label, PositiveInt, Row
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import described, load_summary, shape_of, to_hash
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.evaluation.cell import AGREEMENT_SAMPLES, Cell
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.measurement import SHOWN_IMAGES, measure
from pipeline.metrics.reference import Reference, load_reference

MOST_REPETITIONS = 3


class ImageSet(Row):
    """A row of `sets`: generated images from elsewhere."""

    source: Annotated[str, Field(min_length=1)]
    """A folder or .zip of generated images."""
    nfe: PositiveInt | None = None
    """Network evaluations per image; null: unknown."""
    method: Label | None = None
    """Name of the method in the headline figure; null: not shown there."""
    content: str = ""
    """Digest of the images' files; `resolve` fills it in."""


def measure_by_study(paths: Paths, row: ImageSet, place: str) -> tuple[list[Cell], Extractor, Reference]:
    """`measure_set` with a study's extractor, reference and number of samples, which it returns as well.

    Raises StudyError also if the study has not run.
    """
    device = default_device()
    data, extractor = load_summary(paths.data), load_extractor(paths.features).on(device)
    reference = load_reference(paths.reference, extractor.hash).on(exact_device(device))
    shape, samples = shape_of(data), read_json(paths.rows / "samples.json")
    [cells] = side_by_side([lambda: measure_set(row, place, shape, samples, extractor, reference)])
    return cells, extractor, reference


def measure_set(
    row: ImageSet,
    place: str,
    shape: tuple[int, ...],
    samples: int,
    extractor: Extractor,
    reference: Reference,
) -> list[Cell]:
    """Measure a set: one cell for every `samples` images, at most three, each of different images in random order.

    place: where the study names the set, for errors; shape (C, H, W): of the study's images. Raises StudyError if the
    images have another shape or are too few, and if the study's data are points.
    """
    if len(shape) == 1:
        raise StudyError(f"{place}: a set holds images, and the study's data are {described(shape)}; leave it out")
    images = load(Data(source=row.source, labels=False), place).images
    if tuple(images.shape[1:]) != shape:
        ours, theirs = (_described(s) for s in (shape, tuple(images.shape[1:])))
        raise StudyError(f"{row.source}: images are {theirs}, and the study's are {ours}; convert them")
    if len(images) < samples:
        raise StudyError(
            f"{row.source}: {len(images)} images, and the study measures {samples} at a time; add images, "
            "or lower `samples` of the curves"
        )
    order = torch.randperm(len(images), generator=generator("image set", 0))
    cells = []
    for index, part in enumerate(order.split(samples)[:MOST_REPETITIONS]):
        if len(part) == samples:
            cells.append(_cell(row, images[part], index, extractor, reference))
    return cells


def _cell(row: ImageSet, images: Tensor, index: int, extractor: Extractor, reference: Reference) -> Cell:
    found = measure([images], len(images), extractor, reference, SHOWN_IMAGES)
    features = found.features[: 0 if index else AGREEMENT_SAMPLES].cpu()
    return Cell(0, index, 0, row.nfe or 0, len(images), to_hash(images), found.metrics, found.images, features)


def _described(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return described(shape)
    return f"{'grey' if shape[0] == 1 else 'in colour'}, {shape[2]} x {shape[1]}"
