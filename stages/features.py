"""Make the feature extractor that the study asks for."""

import sys

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared
from pipeline.metrics.extractors.registry import make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.names import label
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    row = Features(**read_json(paths.rows / "features.json"))
    dataset = load_prepared(paths.data)
    [(files, summary)] = side_by_side([lambda: make_extractor(row, dataset)])
    with whole_folder(paths.features) as folder:
        save_extractor(files, folder)
    write_json(paths.metrics("features", "extractor"), summary)
    if summary["fallback"]:
        used = (
            f"the {summary['name']} is used instead, and every score is {label('fd', summary['name'], False)}, not FID"
        )
        again = "`dvc repro --force --single-item features` tries again"
        print(f"{row.extractor}: weights are unavailable ({summary['fallback']}); {used}; {again}", file=sys.stderr)
    found = f"{summary['name']}: {summary['dimensions']} features"
    if summary["held_out_images"]:
        found += f", {summary['held_out_accuracy']:.1%} right on {summary['held_out_images']} held-out images"
    print(found)


if __name__ == "__main__":
    run_stage(main, __doc__)
