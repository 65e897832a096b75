"""Train one model row, all its seeds."""

from pipeline.common import processes
from pipeline.common.files import read_json, whole_folder, write_csv, write_json
from pipeline.common.progress import bar
from pipeline.data.dataset import load_prepared, load_summary
from pipeline.training.checks import check_models
from pipeline.training.loop import train_seeds
from pipeline.training.row import Model
from pipeline.training.trained import save_models
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    processes.join()
    paths, name = arguments.paths, arguments.row
    row = Model(**read_json(paths.row("models", name)))
    data, about = load_prepared(paths.data), load_summary(paths.data)
    # All rows are looked at, so that no row is trained before another turns out not to go with the data.
    others = {path.stem: Model(**read_json(path)) for path in sorted(paths.row("models", name).parent.iterdir())}
    check_models({name: row} | others, about, data.images, data.labels)
    with bar(f"train {name}", row.images * len(row.train_seeds), "image") as progress:
        trained = train_seeds(row, about, data.images, progress.update, labels=data.labels)
    if not processes.first():
        return
    with whole_folder(paths.model(name)) as folder:
        summary = save_models(trained, folder)
    write_csv(paths.training_curve(name), ["seed", "images", "loss"], [p for t in trained for p in t.curve])
    write_json(paths.metrics("train", name), summary)
    print(f"{name}: {summary['parameters']:,} parameters, loss {summary['final_loss']:.4f}")


if __name__ == "__main__":
    run_stage(main, __doc__, shared=True)
