"""Fit grids of noise levels to the models, for the curves whose discretization is optimised."""

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.sampling.fitted_grids import fit_model
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    wanted = read_json(paths.rows / "grids.json")
    with whole_folder(paths.grids("").parent) as folder:
        for model, ranges in wanted.items():
            write_json(folder / f"{model}.json", fit_model(paths.model(model), ranges))
    print(f"grids were fitted to {sum(map(bool, wanted.values()))} of {len(wanted)} models")


if __name__ == "__main__":
    run_stage(main, __doc__)
