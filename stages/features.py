"""Make the feature extractor of the study."""

import sys

from pipeline.common.files import read_json, whole_folder, write_json
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared, load_summary
from pipeline.data.heldout import matched_part
from pipeline.metrics.extractors.registry import describe, fallback_warning, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    paths = arguments.paths
    row = Features(**read_json(paths.rows / "features.json"))
    dataset = load_prepared(paths.data)
    left_out = matched_part(dataset, load_summary(paths.data).get("heldout", 0))
    [(files, summary)] = side_by_side([lambda: make_extractor(row, dataset, left_out)])
    with whole_folder(paths.features) as folder:
        save_extractor(files, folder)
    write_json(paths.metrics("features", "extractor"), summary)
    if summary["fallback"]:
        print(fallback_warning(summary), file=sys.stderr)
    print(describe(summary))


if __name__ == "__main__":
    run_stage(main, __doc__)
