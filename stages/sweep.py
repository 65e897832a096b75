"""Sample and measure one curve row, all its budgets and seeds."""

import sys

from pipeline.common import processes
from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.common.progress import bar, tell
from pipeline.diffusion.space import load_space
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import load_fits
from pipeline.evaluation.sweep import measure_curve, save_curve
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.measurement import measured_with
from pipeline.metrics.names import headline
from pipeline.metrics.reference import load_reference
from stages import Arguments, run_stage


@processes.job()
def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    curve = Curve(**read_json(paths.row("curves", name)))
    model, extractor = paths.model(curve.model), load_extractor(paths.features)
    fits, space = load_fits(paths.grids(curve.model)), load_space(paths.space(curve.model))
    reference = load_reference(paths.reference, extractor.hash)
    with bar(f"sweep {name}", len(curve.cells()) * curve.samples, "image") as progress:

        def finished(cell: Cell) -> None:
            progress.update(cell.samples)
            tell(progress, f"{name}, {cell.describe(extractor)}")

        cells = measure_curve(curve, model, fits, extractor, reference, finished, space=space)
    if not processes.first():
        return
    with whole_folder(paths.curve(name)) as folder:
        summary = save_curve(cells, measured_with(extractor, reference, curve.samples), folder)
    write_json(paths.metrics("sweep", name), summary)
    for cell in (cell for cell in cells if cell.failed):
        print(f"failed: {name}, {cell.describe(extractor)}", file=sys.stderr)
    scores = summary[f"{headline(extractor.name)}_at_nfe"]
    print(f"{name}: " + ", ".join(f"{score:.3g} at {nfe}" for nfe, score in scores.items()))


if __name__ == "__main__":
    run_stage(main, __doc__, shared=True)
