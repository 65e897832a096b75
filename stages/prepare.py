"""Prepare the data set of the study: images or points, labels and a summary."""

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.data.dataset import described, load_summary, save, shape_of
from pipeline.data.row import Data
from pipeline.data.sources import load_parts
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    row = Data(**read_json(paths.rows / "data.json"))
    training, heldout = load_parts(row)
    with whole_folder(paths.data) as folder:
        save(training, folder, heldout)
    summary = load_summary(paths.data)
    write_json(paths.metrics("prepare", "data"), summary)
    content = f"{summary['count']} {described(shape_of(summary))}, {len(summary['classes'])} classes"
    lossy = f"; {summary['lossy']}-compressed before" if "lossy" in summary else ""
    held = f"; {summary['heldout']} more held out" if heldout else ""
    print(f"{row.source}: {content}, sigma_data {summary['sigma_data']:.4f}{lossy}{held}")


if __name__ == "__main__":
    run_stage(main, __doc__)
