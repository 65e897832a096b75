"""Validate the study file with its data, and write every row out in full, with the code of every stage."""

import sys

import torch

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, whole_folder, write_json
from pipeline.common.fingerprint import with_code
from pipeline.common.text import one_line
from pipeline.params.null_axes import notes
from pipeline.params.resolve import resolve_with_data
from pipeline.params.study import read_study, unmet
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)  # all tensors are small, and several threads would take up to ten times as long
    study = read_study(arguments.params)
    if lack := unmet(study):
        raise StudyError(lack)
    rows, _ = resolve_with_data(study)
    for note in notes(rows):
        print(f"warning: {one_line(note)}", file=sys.stderr)
    paths = Paths(study.study.name)
    with whole_folder(paths.rows) as folder:
        for name, content in with_code(rows.files()).items():
            write_json(folder / f"{name}.json", content)
    size = f"{len(study.models)} models, {len(study.curves)} curves"
    print(f"{arguments.params}: {size}; its report: {paths.reports / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, __doc__)
