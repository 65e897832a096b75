"""`measure`: images from elsewhere, scored by hand as the study scores its samples."""

from pathlib import Path

from pipeline.common.files import Paths, read_json
from pipeline.evaluation.imageset import ImageSet, measure_by_study
from pipeline.params.study import read_study
from pipeline.report.lines import lines


def measure_images(params: Path, images: str) -> None:
    """Print the scores of a folder or zip of images. Raises StudyError if they cannot be read or the study has not
    run."""
    paths = Paths(read_study(params).study.name)
    cells, extractor, _ = measure_by_study(paths, ImageSet(source=images), "--images")
    print(lines(cells, extractor, read_json(paths.metrics("reference", "floor"))))
