"""Images from anywhere else, scored by hand as the study scores its samples."""

from pathlib import Path

from pipeline.common.devices import default_device, exact_device
from pipeline.common.files import Paths, read_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_summary, shape_of
from pipeline.evaluation.imageset import ImageSet, measure_set
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.reference import load_reference
from pipeline.params.study import read_study
from pipeline.report.lines import lines


def measure_images(params: Path, images: str) -> None:
    """Print the scores of a folder or zip of images. Raises StudyError if the images cannot be read or the study has
    not run."""
    paths, device = Paths(read_study(params).study.name), default_device()
    data, extractor = load_summary(paths.data), load_extractor(paths.features).on(device)
    reference = load_reference(paths.reference, extractor.hash).on(exact_device(device))
    row, shape, samples = ImageSet(source=images), shape_of(data), read_json(paths.rows / "samples.json")
    [cells] = side_by_side([lambda: measure_set(row, "--images", shape, samples, extractor, reference)])
    print(lines(cells, extractor, read_json(paths.metrics("reference", "floor"))))
