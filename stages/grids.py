"""Fit grids of noise levels to the models, for the curves whose discretization is optimised.

The file of a model also names the weights of the stages before it in cascades: its sweeps depend on this file.
"""

from pipeline.common.files import folder_hash, read_json, whole_folder
from pipeline.sampling.fitted_grids import fit_model, save_grids
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    models, fitted = read_json(paths.rows / "grids.json"), 0
    with whole_folder(paths.grids("").parent) as folder:
        for model, asked in models.items():
            earlier = {name: folder_hash(paths.model(name)) for name in asked["earlier"]}
            save_grids(fit_model(paths.model(model), asked["ranges"]), folder / f"{model}.json", earlier)
            fitted += bool(asked["ranges"])
    print(f"grids were fitted to {fitted} of {len(models)} models")


if __name__ == "__main__":
    run_stage(main, __doc__)
