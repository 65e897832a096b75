"""Measure images from anywhere else: a row of `sets`, or by hand --images, a folder or zip."""

from pipeline.data import load_summary
from pipeline.features import label, load_extractor
from pipeline.files import read_json, whole_folder, write_json
from pipeline.imageset import ImageSet, measure_set
from pipeline.measurement import measured_with
from pipeline.parallel import side_by_side
from pipeline.reference import load_reference
from pipeline.sweep import save_curve
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    if arguments.images:
        row = {"source": arguments.images, "samples": read_json(paths.rows / "report.json")["samples"]}
    else:
        row = read_json(paths.row("sets", name))
    data, samples = load_summary(paths.data), row.pop("samples")
    extractor, reference = load_extractor(paths.features), load_reference(paths.reference)
    shape = (data["channels"], data["height"], data["width"])
    [cells] = side_by_side([lambda: measure_set(ImageSet(**row), shape, samples, extractor, reference)])
    for cell in cells:
        for m in cell.metrics:
            print(f"{label(m['metric'], extractor.name, extractor.official)}: {m['value']:.6g} (se {m['se']:.2g})")
    if not arguments.images:
        with whole_folder(paths.set(name)) as folder:
            summary = save_curve(cells, measured_with(extractor, reference, samples), folder)
        write_json(paths.metrics("measure", name), summary)


if __name__ == "__main__":
    run_stage(main, __doc__)
