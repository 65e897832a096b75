"""Train one model row, all its seeds."""

import sys

from pipeline.common import processes
from pipeline.common.files import read_json, whole_folder, write_csv, write_json
from pipeline.common.progress import bar
from pipeline.data.dataset import load_prepared, load_summary
from pipeline.training.checks import check_models
from pipeline.training.loop import train_seeds
from pipeline.training.row import Model
from pipeline.training.spaces import in_space
from pipeline.training.trained import save_models
from stages import Arguments, run_stage


@processes.job()
def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    row = Model(**read_json(paths.row("models", name)))
    data, summary = load_prepared(paths.data), load_summary(paths.data)
    check_models({name: row}, summary, data.images, data.labels)
    images, summary = in_space(paths.space(name), data, summary)
    with bar(f"train {name}", row.seen_images * len(row.train_seeds), "image") as progress:
        trained = train_seeds(row, summary, images, progress.update, labels=data.labels)
    if not processes.first():
        return
    with whole_folder(paths.model(name)) as folder:
        metrics = save_models(trained, folder)
    write_csv(paths.training_curve(name), ["seed", "images", "loss"], [p for t in trained for p in t.curve])
    write_json(paths.metrics("train", name), metrics)
    for reason in metrics.get("failed", {}).values():
        print(f"failed: {name}, {reason}", file=sys.stderr)
    nothing = "all trainings failed" if row.import_ is None else "imported"
    loss = nothing if metrics["final_loss"] is None else f"loss {metrics['final_loss']:.4f}"
    print(f"{name}: {metrics['parameters']:,} parameters, {loss}")


if __name__ == "__main__":
    run_stage(main, __doc__, shared=True)
