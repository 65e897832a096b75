"""Train the feature extractor on the data set."""

from pipeline.data import load_prepared
from pipeline.features import Classifier, save_extractor, train_extractor
from pipeline.files import read_json, whole_folder, write_json
from pipeline.parallel import side_by_side
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    row = Classifier(**read_json(paths.rows / "features.json"))
    dataset = load_prepared(paths.data)
    [(content, summary)] = side_by_side([lambda: train_extractor(row, dataset)])
    with whole_folder(paths.features) as folder:
        save_extractor(content, folder)
    write_json(paths.metrics("features", "extractor"), summary)
    print(
        f"{summary['name']}: {summary['held_out_accuracy']:.1%} right on {summary['held_out_images']} held-out images"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
