"""What rows that are no longer in a study file have left behind: outputs, and entries in dvc.lock."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from pipeline.commands.repro import locked_stages
from pipeline.commands.restore import dvc_errors
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths
from pipeline.common.rows import NAME
from pipeline.params.places import check_place, read_yaml
from pipeline.params.resolve import resolve
from pipeline.params.study import Study, read_study

ROWS = {"train": "models", "sweep": "curves", "measure": "sets"}  # stage -> the section for whose rows it runs


@dataclass(frozen=True)
class Leftovers:
    """Files and folders of a study that belong to no row, and entries of its dvc.lock that belong to no stage."""

    outputs: list[Path]
    stages: list[str]


def prune_study(params: Path, dry: bool) -> None:
    """Delete what `leftovers` finds and print each item; with `dry` print only."""
    found, lock = leftovers(params), params.with_name("dvc.lock")
    if not dry:
        delete(found, lock)
    for each in (*found.outputs, *(f"{stage} in {lock}" for stage in found.stages)):
        print(f"{'would delete' if dry else 'deleted'} {each}")
    if not found.outputs and not found.stages:
        print(f"{params}: nothing is left of deleted rows")


def leftovers(params: Path) -> Leftovers:
    """What can be deleted of the study of a params file, whose dvc.yaml and dvc.lock are beside it; deletes nothing.

    Raises StudyError if a row of the study is invalid, `check_place` refuses the study, or its outputs are behind a
    symbolic link.
    """
    study = read_study(params)
    resolve(study)
    graph = check_place(params, study)
    stages, rows = _stages(graph), _rows(study)

    def gone(stage: str) -> bool:
        kind, _, row = stage.partition("@")
        return kind not in stages or (kind in ROWS and row not in rows[kind])

    return Leftovers(_outputs(study), [stage for stage in locked_stages(graph) if gone(stage)])


def _stages(graph: Path) -> set[str]:
    """The names of the stages in a dvc.yaml, without rows."""
    try:
        return set(read_yaml(graph)["stages"])
    except (KeyError, TypeError, ValueError):
        raise StudyError(f"{graph}: it has no stages; take the file from git") from None


def _rows(study: Study) -> dict[str, set[str]]:
    return {stage: set(getattr(study, section)) for stage, section in ROWS.items()}


def _outputs(study: Study) -> list[Path]:
    """Outputs of rows that the study does not have.

    A file whose name cannot be a row's name is somebody else's. A name that differs from a row's only in case is that
    row's on some file systems. Both are kept.
    """
    paths, found = Paths(study.study.name), []
    of_stage = {
        "train": [paths.model("*"), paths.training_curve("*")],
        "sweep": [paths.curve("*")],
        "measure": [paths.set("*")],
    }
    for stage, rows in _rows(study).items():
        kept = {row.lower() for row in rows}
        for pattern in (*of_stage[stage], paths.metrics(stage, "*"), paths.timing(f"{stage}_*")):
            if link := next((folder for folder in pattern.parents if folder.is_symlink()), None):
                raise StudyError(f"{link}: a symbolic link; prune deletes nothing behind it, delete it by hand")
            before, after = pattern.name.split("*")
            for path in sorted(pattern.parent.glob(pattern.name)):
                row = path.name[len(before) : len(path.name) - len(after)]
                if re.fullmatch(NAME, row) and row.lower() not in kept:
                    found.append(path)
    return found


def delete(found: Leftovers, lock: Path) -> None:
    """Delete what `leftovers` found. A symbolic link is deleted, its target is not."""
    with dvc_errors(), Repo() as repo, repo.lock:
        if found.stages:
            with modify_yaml(lock, fs=repo.fs) as content:
                for stage in found.stages:
                    content["stages"].pop(stage, None)
        for path in found.outputs:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                os.unlink(path)
