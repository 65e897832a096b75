"""Validate the study file and write every row out in full. With --check: validate only."""

import sys

import torch

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, whole_folder, write_json
from pipeline.common.fingerprint import stage_fingerprints
from pipeline.params.null_axes import remarks
from pipeline.params.places import check_place
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study, unmet
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)  # all tensors are small: several threads would take up to ten times as long
    study = read_study(arguments.params)
    resolved = resolve(study)
    if lack := unmet(study):
        raise StudyError(lack)
    for warning in (*resolved.warnings, *remarks(resolved)):
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.check:
        check_place(arguments.params, study)
    else:
        with whole_folder(Paths(study.study.name).rows) as folder:
            for name, row in resolved.files().items():
                write_json(folder / f"{name}.json", row)
            for name, code in stage_fingerprints().items():
                write_json(folder / "code" / f"{name}.json", code)
    size = f"{len(study.models)} models, {len(study.curves)} curves"
    print(f"{arguments.params}: {size}; its report: {Paths(study.study.name).reports / 'report.html'}")


if __name__ == "__main__":
    run_stage(main, __doc__)
