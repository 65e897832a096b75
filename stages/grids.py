"""Fit grids and solvers to the models, for the curves whose discretization is optimised or whose solver is fitted.

The file of a model also names the weights of the stages before it in cascades: its sweeps depend on this file.
"""

from pipeline.common.files import folder_hash, read_json, whole_folder, write_json
from pipeline.common.progress import bar
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import fit_count, fit_model, save_fits, summary
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, records, fitted = arguments.paths, [], 0
    models = read_json(paths.rows / "grids.json")
    curves = {model: {name: Curve(**row) for name, row in asked["solvers"].items()} for model, asked in models.items()}
    with whole_folder(paths.grids("").parent) as folder, bar("grids", fit_count(curves), "fit") as progress:
        for model, asked in models.items():
            earlier = {name: folder_hash(paths.model(name)) for name in asked["earlier"]}
            own = curves[model]
            fits = fit_model(paths.model(model), asked["ranges"], list(own.values()), lambda: progress.update(1))
            save_fits(fits, folder / f"{model}.json", earlier)
            records += summary(own, fits)
            fitted += bool(asked["ranges"])
    write_json(paths.metrics("grids", "solvers"), {"solvers": records})
    print(f"grids were fitted to {fitted} of {len(models)} models; {len(records)} solvers were fitted")


if __name__ == "__main__":
    run_stage(main, __doc__)
