"""What rows that were deleted from a study file have left behind: outputs, and entries in dvc.lock."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from pipeline.commands.stale import locked, written_stages
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths
from pipeline.common.rows import NAME
from pipeline.params.places import check_place
from pipeline.params.study import Study, read_study, resolve

ROWS = {"train": "models", "sweep": "curves", "measure": "sets"}  # which section's rows a stage has one run of each


@dataclass(frozen=True)
class Leftovers:
    """Files and folders of a study that no row declares, and stages in its dvc.lock that dvc.yaml does not have."""

    outputs: list[Path]
    stages: list[str]


def leftovers(params: Path) -> Leftovers:
    """What may go, of the study of a params file with its dvc.yaml and dvc.lock beside it; deletes nothing.

    Raises StudyError where any row of the study is not valid, where `check_place` refuses it, or where it keeps its
    outputs behind a link.
    """
    study = read_study(params)
    resolve(study)
    graph = check_place(params, study)
    stages, rows = written_stages(graph), _rows(study)

    def gone(stage: str) -> bool:
        kind, _, row = stage.partition("@")
        return kind not in stages or (kind in ROWS and row not in rows[kind])

    return Leftovers(_outputs(study), [stage for stage in locked(graph) if gone(stage)])


def _rows(study: Study) -> dict[str, set[str]]:
    return {stage: set(getattr(study, section)) for stage, section in ROWS.items()}


def _outputs(study: Study) -> list[Path]:
    """What stands where a row's outputs stand, and is no row's: other names than a row may have are somebody's own, or
    of stages that run, and one that a row has but for case is that row's own on some file systems."""
    paths, found = Paths(study.study.name), []
    of_stage = {
        "train": [paths.model("*"), paths.training_curve("*")],
        "sweep": [paths.curve("*")],
        "measure": [paths.set("*")],
    }
    for stage, rows in _rows(study).items():
        kept = {row.lower() for row in rows}
        for place in (*of_stage[stage], paths.metrics(stage, "*"), paths.timing(f"{stage}_*")):
            if link := next((folder for folder in place.parents if folder.is_symlink()), None):
                raise StudyError(f"{link}: a link; nothing is deleted behind it")
            before, after = place.name.split("*")
            for path in sorted(place.parent.glob(place.name)):
                row = path.name[len(before) : len(path.name) - len(after)]
                if re.fullmatch(NAME, row) and row.lower() not in kept:
                    found.append(path)
    return found


def delete(found: Leftovers, lock: Path) -> None:
    """Delete what leftovers() found. Of a link the link goes, never what it leads to."""
    try:
        with Repo() as repo, repo.lock:
            if found.stages:
                with modify_yaml(lock, fs=repo.fs) as content:
                    for stage in found.stages:
                        content["stages"].pop(stage, None)
            for path in found.outputs:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
    except DvcException as error:
        raise StudyError(str(error)) from None
