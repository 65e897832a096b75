"""Fit grids of noise levels to the models, for the curves whose discretization is optimised."""

from pipeline.common.files import read_json, whole_folder
from pipeline.sampling.fitted_grids import fit_model, save_grids
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    ranges_by_model = read_json(paths.rows / "grids.json")
    with whole_folder(paths.grids("").parent) as folder:
        for model, ranges in ranges_by_model.items():
            save_grids(fit_model(paths.model(model), ranges), folder / f"{model}.json")
    print(f"grids were fitted to {sum(map(bool, ranges_by_model.values()))} of {len(ranges_by_model)} models")


if __name__ == "__main__":
    run_stage(main, __doc__)
