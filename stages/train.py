"""Train one model row, all its seeds."""

from pipeline.data import load_prepared, load_summary
from pipeline.files import read_json, whole_folder, write_csv, write_json
from pipeline.model import Model
from pipeline.progress import bar
from pipeline.training import save_models, train_seeds
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths, name = arguments.paths, arguments.row
    row = Model(**read_json(paths.row("models", name)))
    data = load_prepared(paths.data)
    with bar(f"train {name}", row.images * len(row.train_seeds), "image") as progress:
        trained = train_seeds(row, load_summary(paths.data), data.images, progress.update, labels=data.labels)
    with whole_folder(paths.model(name)) as folder:
        summary = save_models(trained, folder)
    write_csv(paths.training_curve(name), ["seed", "images", "loss"], [p for t in trained for p in t.curve])
    write_json(paths.metrics("train", name), summary)
    print(f"{name}: {summary['parameters']:,} parameters, loss {summary['final_loss']:.4f}")


if __name__ == "__main__":
    run_stage(main, __doc__)
