"""Measure the likelihood of the data under the models that the study names, and the way to noise and back."""

from dataclasses import asdict

from pipeline.common.files import read_json, write_csv, write_json
from pipeline.data.dataset import load_heldout, load_prepared, load_summary, shape_of
from pipeline.evaluation.likelihoods import COLUMNS, Likelihood, measure_model, parts, prior_of, summary_of
from pipeline.training.row import Model
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, asked = arguments.paths, read_json(arguments.paths.rows / "likelihood.json")
    lines, models, about = [], {}, None
    if asked:
        data = load_summary(paths.data)
        row = Likelihood(**asked).settled(shape_of(data))
        measured = parts(row, load_prepared(paths.data), load_heldout(paths.data))
        for name in row.models:
            model = Model(**read_json(paths.row("models", name)))
            found, models[name] = measure_model(name, row, model, paths.model(name), measured, prior_of(row, data))
            lines += [asdict(line) for line in found]
        about = summary_of(row, measured)
    write_csv(paths.reports / "likelihood.csv", COLUMNS, lines)
    write_json(paths.metrics("likelihood", "models"), {"about": about, "models": models})
    print(f"likelihood of {len(models)} models")


if __name__ == "__main__":
    run_stage(main, __doc__)
