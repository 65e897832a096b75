"""Images from elsewhere: measured like the study's, in repetitions of different images, or refused in one line."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.imageset import ImageSet, measure_set
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.measurement import SHOWN_IMAGES, measure
from pipeline.metrics.reference import Reference, reference_of

SAMPLES = 40
SHAPE = (1, 5, 4)


class Fake:
    name, hash, preprocessing = "fake", "0", "none"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Extracted:
        self.seen.append(images)
        mix = torch.randn(images[0].numel(), 5, generator=torch.Generator().manual_seed(0)) / 64
        return Extracted(images.flatten(1).float() @ mix, None)


def drawn(count: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of(Fake()(drawn(100, 1)).features)


def in_folder(path: Path, images: Tensor) -> Path:
    path.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if len(image) == 1 else pixels)).save(
            path / f"{i:04}.png"
        )
    return path


def in_zip(path: Path, images: Tensor) -> Path:
    folder = in_folder(path, images)
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path.with_suffix(".zip")


def measured(source: Path | str, reference: Reference, shape: tuple[int, ...] = SHAPE, **keys: object) -> list[Cell]:
    return measure_set(ImageSet(source=str(source), **keys), "sets.x.source", shape, SAMPLES, Fake(), reference)


def record(cells: list[Cell]) -> str:
    return json.dumps([cell.record() | {"images": cell.images.tolist()} for cell in cells])


@pytest.mark.parametrize("pack", [in_folder, in_zip])
def test_a_set_is_measured_as_its_images_are(
    tmp_path: Path, reference: Reference, pack: Callable[[Path, Tensor], Path]
) -> None:
    images = drawn(SAMPLES, 2)
    [cell] = measured(pack(tmp_path / "set", images), reference, nfe=7)
    assert (cell.nfe, cell.samples, cell.images.shape) == (7, SAMPLES, (SHOWN_IMAGES, *SHAPE))
    values = {m["metric"]: m["value"] for m in cell.metrics}
    for m in measure([images], SAMPLES, Fake(), reference).metrics:  # in another order, which is in the blocks alone
        if m["metric"] not in ("fd_corrected", "fd_infinity"):
            assert values[m["metric"]] == pytest.approx(m["value"], rel=1e-6), m
    found, expected = (torch.tensor(sorted(f.tolist())) for f in (cell.features, Fake()(images).features))
    assert found.allclose(expected, atol=1e-5)


def test_a_folder_and_a_zip_are_one_set_and_the_result_is_the_same_again(tmp_path: Path, reference: Reference) -> None:
    images = drawn(100, 2)
    found = [record(measured(pack(tmp_path / "set", images), reference)) for pack in (in_folder, in_folder, in_zip)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("count", "repetitions"), [(40, 1), (79, 1), (80, 2), (125, 3), (250, 3)])
def test_repetitions_are_of_other_images(tmp_path: Path, reference: Reference, count: int, repetitions: int) -> None:
    images, extractor = drawn(count, 3), Fake()
    row = ImageSet(source=str(in_folder(tmp_path / "set", images)))
    cells = measure_set(row, "sets.x.source", SHAPE, SAMPLES, extractor, reference)
    assert [(c.sample_seed, c.samples) for c in cells] == [(i, SAMPLES) for i in range(repetitions)]
    seen = [image.tobytes() for batch in extractor.seen for image in batch.numpy()]
    assert len(set(seen)) == len(seen) == repetitions * SAMPLES
    assert set(seen) <= {image.tobytes() for image in images.numpy()}
    assert len({c.checkpoint for c in cells}) == repetitions
    assert [len(c.features) for c in cells] == [SAMPLES] + [0] * (repetitions - 1)
    assert seen[:SAMPLES] != [image.tobytes() for image in images[:SAMPLES].numpy()], "in a random order"


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 6, 4), r"images are grey, 4 x 6, and the study's are grey, 4 x 5; convert them$"),
        ((1, 4, 5), r"images are grey, 5 x 4, and the study's are grey, 4 x 5; convert them$"),
        ((3, 5, 4), r"images are in colour, 4 x 5, and the study's are grey, 4 x 5; convert them$"),
    ],
)
def test_images_of_another_shape_are_refused(
    tmp_path: Path, reference: Reference, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(StudyError, match=told) as caught:
        measured(in_folder(tmp_path / "set", drawn(SAMPLES, 2, shape)), reference)
    assert len(str(caught.value).splitlines()) == 1


def test_grey_images_are_not_those_of_a_study_in_colour(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(StudyError, match=r"images are grey, 4 x 5, and the study's are in colour, 4 x 5"):
        measured(in_folder(tmp_path / "set", drawn(SAMPLES, 2)), reference, (3, 5, 4))


def test_images_of_several_sizes_are_refused(tmp_path: Path, reference: Reference) -> None:
    folder = in_folder(tmp_path / "set", drawn(SAMPLES, 2))
    Image.new("L", (9, 9)).save(folder / "odd.png")
    with pytest.raises(StudyError, match=r"but odd\.png is 9 x 9; resize all images to one size"):
        measured(folder, reference)


def test_too_few_images_are_refused(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(StudyError, match=r"set: 39 images, and the study measures 40 at a time; add images, or lower"):
        measured(in_folder(tmp_path / "set", drawn(39, 2)), reference)


def test_a_source_that_is_nothing_is_refused(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(StudyError, match=r"nowhere.*no folder, no \.zip file, .* and no built-in data set") as caught:
        measured(tmp_path / "nowhere", reference)
    assert len(str(caught.value).splitlines()) == 1


def test_a_built_in_set_can_be_measured() -> None:
    reference = reference_of(Fake()(drawn(100, 1, (1, 8, 8))).features)
    row = ImageSet(source="digits", method="real digits")
    cells = measure_set(row, "sets.x.source", (1, 8, 8), 600, Fake(), reference)
    assert [(c.samples, c.nfe, len(c.features)) for c in cells] == [(600, 0, 600), (600, 0, 0)]
