"""The stages that `dvc repro` would run and why, by DVC's own status, before `resolve` has written the rows.

The rows are written to a temporary folder, and DVC looks for them there: `check` changes nothing in build/, where a
study may be running. This module loads neither DVC nor PyTorch by itself.
"""

import hashlib
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import StudyError
from pipeline.common.files import read_json, write_json
from pipeline.common.fingerprint import stage_fingerprints, with_code

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

NEW, CHANGED, AFTER = "new", "changed", "after others"
ROW, CODE, COMMAND = "its row", "its code", "its command"
MISSING, ANOTHER, INPUT = "an output is missing", "an output was changed", "an input was changed"


@dataclass(frozen=True)
class Reason:
    """Why a stage would run."""

    how: str
    """NEW, CHANGED or AFTER."""
    what: str = ""
    """The thing that changed, or the stage that runs before this one."""

    def __str__(self) -> str:
        return f"{self.how} ({self.what})" if self.how == CHANGED else self.how


def load() -> None:
    """Load DVC and hash the code, so that `reasons` is quick later in this process, which leaves interrupts to its
    parent."""
    import dvc.repo  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stage_fingerprints()


def reasons_of_rows(graph: Path, folder: Path, rows: Mapping[str, Any]) -> dict[str, Reason | None]:
    """`reasons`, with the rows of `Resolved.files()` and the present code."""
    return reasons(graph, folder, with_code(rows))


def reasons(graph: Path, folder: Path, files: Mapping[str, Any]) -> dict[str, Reason | None]:
    """Why each stage of a dvc.yaml would run, in its order; None for a stage that would not, and for `resolve`.

    folder: the study's rows; files: their content once `resolve` has run, as in `with_code`. Raises StudyError if DVC
    cannot read the graph or its lock.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    with TemporaryDirectory() as scratch:
        for name, content in files.items():
            write_json(Path(scratch) / f"{name}.json", content)
        try:
            with Repo(_wait_for_lock=True) as repo:
                return _Stale(repo, graph, folder.resolve(), Path(scratch).resolve()).reasons()
        except DvcException as error:
            raise StudyError(f"{graph}: {error}") from None


class _Stale:
    """The stages of a graph. rows: the folder of the rows; scratch: the folder with the rows as they will be."""

    def __init__(self, repo: "Repo", graph: Path, rows: Path, scratch: Path) -> None:
        self.stages = [stage for stage in repo.stage.collect(str(graph)) if stage.name != "resolve"]
        self.rows, self.scratch = rows, scratch
        self.found: dict[str, Reason | None] = {}
        for stage in self.stages:
            for dep in stage.deps:
                if (path := Path(dep.fs_path)).is_relative_to(rows):
                    dep.fs_path = str(scratch / path.relative_to(rows))

    def reasons(self) -> dict[str, Reason | None]:
        return {stage.name: self.reason(stage) for stage in self.stages}

    def reason(self, stage: "PipelineStage") -> Reason | None:
        if stage.name not in self.found:
            self.found[stage.name] = self.own(stage) or self.of_others(stage)
        return self.found[stage.name]

    def own(self, stage: "PipelineStage") -> Reason | None:
        """What changed in the stage's rows, code, command or outputs since it ran."""
        from pipeline.commands.restore import restorable

        if not any(entry.hash_info for entry in (*stage.deps, *stage.outs)):
            return Reason(NEW)
        if stage.cmd_changed:
            return Reason(CHANGED, COMMAND)
        for dep in (dep for dep in stage.deps if not self.outs[dep.fs_path] and dep.status()):
            code = Path(dep.fs_path).is_relative_to(self.scratch / "code")
            return Reason(CHANGED, CODE if code else ROW)
        for out in stage.outs:
            if out.status() and not restorable(out):  # `repro` brings back what DVC's cache has
                return Reason(CHANGED, ANOTHER if out.exists else MISSING)
        return None

    def of_others(self, stage: "PipelineStage") -> Reason | None:
        """Which stage runs before this one and changes an input."""
        for dep in stage.deps:
            outs = self.outs[dep.fs_path]
            for out in outs:
                if self.reason(out.stage) and not self.part_stays(out.stage, dep.fs_path):
                    return Reason(AFTER, out.stage.name)
            same = [out.hash_info == dep.hash_info for out in outs if out.fs_path == dep.fs_path]
            lost = any(out.status() for out in outs)  # `repro` brings it back, as it was
            if outs and not any(self.reason(out.stage) for out in outs) and (not all(same) if lost else dep.status()):
                return Reason(CHANGED, INPUT)
        return None

    @cached_property
    def outs(self) -> dict[str, list["Output"]]:
        """The outputs of stages that are a dependency or a part of it or hold it, by the dependency's path."""
        outs = [(Path(out.fs_path), out) for stage in self.stages for out in stage.outs]
        paths = {dep.fs_path: Path(dep.fs_path) for stage in self.stages for dep in stage.deps}
        return {
            key: [out for place, out in outs if path.is_relative_to(place) or place.is_relative_to(path)]
            for key, path in paths.items()
        }

    def part_stays(self, maker: "PipelineStage", dep: str) -> bool:
        """Whether a row's file in a folder that holds a file for each row stays as it is, because the stage that writes
        the folder runs for other rows only."""
        key = Path(dep).stem
        if any(out.fs_path == dep for out in maker.outs) or self.own(maker) not in (None, Reason(CHANGED, ROW)):
            return False
        for each in maker.deps:
            path = Path(each.fs_path)
            if path.is_relative_to(self.scratch) and not self._says_the_same(each, path, key):
                return False
            makers = {out.stage.name: out.stage for out in self.outs[each.fs_path]}
            if any(self.reason(makers[name]) for name in makers if name.partition("@")[2] in ("", key)):
                return False
        return True

    def _says_the_same(self, dep: Any, new: Path, key: str) -> bool:
        """Whether a row has the entry `key` that it had when the stage of this dependency last ran."""
        old = self.rows / new.relative_to(self.scratch)
        if not dep.status():
            return True
        if not old.is_file() or hashlib.md5(old.read_bytes(), usedforsecurity=False).hexdigest() != dep.hash_info.value:
            return False
        before, now = (_entry(file, key) for file in (old, new))
        return now is not None and before == now


def _entry(file: Path, key: str) -> Any:
    """What a file of rows has for a model; of autoencoders, the row of the one that the model's space names."""
    content = read_json(file)
    if file.stem == "autoencoders":
        space, _ = read_json(file.with_name("spaces.json")).get(key, (None, None))
        return content.get(space, {})
    return content.get(key) if isinstance(content, dict) else None
