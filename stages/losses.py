"""Measure loss, gradient and distance from the truth by noise level, and straightness, of all models, before and after
training."""

from dataclasses import asdict

from pipeline.common.files import read_json, write_csv, write_json
from pipeline.data.dataset import load_prepared
from pipeline.data.row import Data
from pipeline.evaluation.losses import COLUMNS, IMAGES, measure_model, noise_levels
from pipeline.evaluation.truth import known_truth
from pipeline.training.row import Model
from pipeline.training.spaces import in_space
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    data = load_prepared(paths.data)
    rows = {name: Model(**read_json(paths.row("models", name))) for name in read_json(paths.rows / "models.json")}
    truth = known_truth(Data(**read_json(paths.rows / "data.json")).source, noise_levels())
    models = {
        name: measure_model(
            name, row, paths.model(name), in_space(paths.space(name), data, {})[0], labels=data.labels, truth=truth
        )
        for name, row in rows.items()
    }
    lines = [asdict(line) for model in models.values() for line in model.lines]
    write_csv(paths.losses, COLUMNS, lines)
    summaries = {name: model.summary() for name, model in models.items()}
    about = {"images": min(IMAGES, len(data.images)), "models": summaries, "truth": truth and truth.summary()}
    write_json(paths.metrics("losses", "models"), about)
    print(f"{len(models)} models at {len(lines)} noise levels and states")


if __name__ == "__main__":
    run_stage(main, __doc__)
