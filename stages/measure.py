"""Measure images from elsewhere: a row of `sets`."""

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.evaluation.imageset import ImageSet, measure_by_study
from pipeline.evaluation.sweep import save_curve
from pipeline.metrics.agreement import compare_curve
from pipeline.metrics.measurement import measured_with
from pipeline.report.lines import lines
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    row = ImageSet(**read_json(paths.row("sets", name)))
    cells, extractor, reference = measure_by_study(paths, row, f"sets.{name}.source")
    print(lines(cells, extractor, read_json(paths.metrics("reference", "floor"))))
    with whole_folder(paths.set(name)) as folder:
        summary = save_curve(cells, measured_with(extractor, reference, cells[0].samples), folder)
        agreement = compare_curve(folder, f"sets.{name}", reference)
    write_json(paths.metrics("measure", name), summary | {"agreement": agreement})


if __name__ == "__main__":
    run_stage(main, __doc__)
