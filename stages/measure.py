"""Measure images from anywhere else: a row of `sets`, or by hand --images, a folder or zip."""

from pipeline.common.devices import default_device, exact_device
from pipeline.common.errors import StudyError
from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_summary, shape_of
from pipeline.evaluation.imageset import ImageSet, measure_set
from pipeline.evaluation.sweep import save_curve
from pipeline.metrics.agreement import compare_curve
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.measurement import measured_with
from pipeline.metrics.reference import load_reference
from pipeline.report.lines import lines
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    if bool(arguments.images) == bool(name):
        raise StudyError("give --images, a folder or zip of images, or --row, a row of `sets`")
    samples = read_json(paths.rows / "samples.json")
    row = ImageSet(source=arguments.images) if arguments.images else ImageSet(**read_json(paths.row("sets", name)))
    place = "--images" if arguments.images else f"sets.{name}.source"
    device = default_device()
    data, extractor = load_summary(paths.data), load_extractor(paths.features).on(device)
    reference = load_reference(paths.reference, extractor.hash).on(exact_device(device))
    shape = shape_of(data)
    [cells] = side_by_side([lambda: measure_set(row, place, shape, samples, extractor, reference)])
    print(lines(cells, extractor, read_json(paths.metrics("reference", "floor"))))
    if name:
        with whole_folder(paths.set(name)) as folder:
            summary = save_curve(cells, measured_with(extractor, reference, samples), folder)
            agreement = compare_curve(folder, reference)
        write_json(paths.metrics("measure", name), summary | {"agreement": agreement})


if __name__ == "__main__":
    run_stage(main, __doc__)
