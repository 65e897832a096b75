"""What rows that were deleted from a study file have left behind: outputs, and entries in dvc.lock."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from pipeline.errors import StudyError
from pipeline.files import Paths
from pipeline.params import Study, read_study

ROWS = {"train": "models", "sweep": "curves", "measure": "sets"}  # which section's rows a stage has one run of each


@dataclass(frozen=True)
class Leftovers:
    """Files and folders of a study that no row declares, and stages in its dvc.lock that dvc.yaml does not have."""

    outputs: list[Path]
    stages: list[str]


def leftovers(params: Path) -> Leftovers:
    """What may go, of the study of a params file with its dvc.yaml and dvc.lock beside it; deletes nothing.

    Raises StudyError where the study is not valid, has another one's name, or keeps its outputs behind a link.
    """
    study = read_study(params)
    for other in [Path("params.yaml"), *sorted(Path("studies").glob("*/params.yaml"))]:
        if other.exists() and not other.samefile(params) and _name(other) == study.study.name:
            raise StudyError(f"{params}: {other} has the same study.name, {study.study.name!r}, and the same outputs")
    stages = yaml.safe_load(params.with_name("dvc.yaml").read_text())["stages"]
    lock = params.with_name("dvc.lock")
    locked = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    rows = {stage: getattr(study, section).keys() for stage, section in ROWS.items()}
    declared = {stage for stage in stages if stage not in ROWS} | {f"{s}@{row}" for s in ROWS for row in rows[s]}
    return Leftovers(_outputs(study), [stage for stage in locked if stage not in declared])


def _name(params: Path) -> object:
    content = yaml.safe_load(params.read_text())
    section = content.get("study") if isinstance(content, dict) else None
    return section.get("name") if isinstance(section, dict) else None


def _outputs(study: Study) -> list[Path]:
    """What stands where a row's outputs stand, and is no row's. Hidden files are of stages that run."""
    paths, found = Paths(study.study.name), []
    of_stage = {
        "train": [paths.model("*"), paths.training_curve("*")],
        "sweep": [paths.curve("*")],
        "measure": [paths.set("*")],
    }
    for stage, section in ROWS.items():
        for place in (*of_stage[stage], paths.metrics(stage, "*"), paths.timing(f"{stage}_*")):
            if link := next((folder for folder in place.parents if folder.is_symlink()), None):
                raise StudyError(f"{link}: a link; nothing is deleted behind it")
            before, after = place.name.split("*")
            for path in sorted(place.parent.glob(place.name)):
                row = path.name[len(before) : len(path.name) - len(after)]
                if row not in getattr(study, section) and not path.name.startswith("."):
                    found.append(path)
    return found


def delete(found: Leftovers, lock: Path) -> None:
    """Delete what leftovers() found. Of a link the link goes, never what it leads to."""
    try:
        with Repo() as repo, repo.lock:
            if found.stages:
                with modify_yaml(lock, fs=repo.fs) as content:
                    for stage in found.stages:
                        del content["stages"][stage]
            for path in found.outputs:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
    except DvcException as error:
        raise StudyError(str(error)) from None
