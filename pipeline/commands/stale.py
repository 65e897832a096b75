"""What `dvc repro` would run, told from dvc.yaml, dvc.lock and resolved rows: DVC itself takes seconds to start."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.common.errors import StudyError
from pipeline.params.places import read_yaml

NEW, CHANGED, AFTER = "new", "changed", "after others"
ITS_ROW, MISSING, ANOTHER = "its row", "an output is missing", "an output is another"  # the same words for all rows
CACHE = Path(".dvc/cache/files/md5")  # where DVC keeps what it can put back


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with its templates filled in. Paths are below the repository's root."""

    name: str
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]


@dataclass(frozen=True)
class Reason:
    """Why a stage would run: how (NEW, CHANGED, AFTER), and what has changed, or which stage runs before it."""

    how: str
    what: str = ""


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """A template as DVC fills it in: `${a.b}`; a mapping becomes options."""

    def value(match: re.Match[str]) -> str:
        found: Any = values
        for key in match[1].split("."):
            found = found[key]
        if isinstance(found, dict):
            return " ".join(f"--{key} {shlex.quote(str(each))}" for key, each in found.items())
        return str(found)

    return re.sub(r"\$\{(.*?)\}", value, text)


def _paths(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        yield next(iter(entry)) if isinstance(entry, dict) else entry


def _stage(name: str, written: dict[str, Any], values: Mapping[str, Any]) -> Stage:
    outs = [path for kind in ("outs", "metrics", "plots") for path in _paths(written.get(kind, []))]
    deps = list(_paths(written.get("deps", [])))
    filled = ([_filled(path, values) for path in paths] for paths in (deps, outs))
    return Stage(name, _filled(written["cmd"], values), *map(tuple, filled))


def written_stages(graph: Path) -> dict[str, Any]:
    """The stages of a dvc.yaml as they are written. Raises StudyError where there are none."""
    try:
        return dict(read_yaml(graph)["stages"])
    except (KeyError, TypeError, ValueError):
        raise StudyError(f"{graph}: has no stages") from None


def stages_of(graph: Path, study: Mapping[str, Any]) -> list[Stage]:
    """All stages of a dvc.yaml for a study file's content. Raises StudyError where that has no key that they name."""
    found = []
    try:
        for name, written in written_stages(graph).items():
            if "foreach" not in written:
                found.append(_stage(name, written, study))
                continue
            for key, item in study[written["foreach"].removeprefix("${").removesuffix("}")].items():
                found.append(_stage(f"{name}@{key}", written["do"], {**study, "key": key, "item": item}))
    except (KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{graph}: its stages do not go with the study file ({error})") from None
    return found


def locked(graph: Path) -> dict[str, Any]:
    """What each stage was last run with, in its order: dvc.lock, beside dvc.yaml."""
    content = read_yaml(graph.with_suffix(".lock"))
    return content.get("stages") or {} if isinstance(content, dict) else {}


def file_text(row: Any) -> bytes:
    """A resolved row as `write_json` writes it."""
    return (json.dumps(row, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _md5_of_file(path: str) -> str | None:
    """The hash of a file's content, None where there is no such file."""
    if not Path(path).is_file():
        return None
    about = Path(path).stat()
    return _md5_as_it_was(path, about.st_mtime_ns, about.st_size)


@cache
def _md5_as_it_was(path: str, changed_ns: int, size: int) -> str:
    return _md5(Path(path).read_bytes())


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


@dataclass
class Stale:
    """Which of the stages would run. rows: what `resolve` writes, by path."""

    stages: list[Stage]
    lock: Mapping[str, Any]
    rows: Mapping[str, bytes]
    _found: dict[str, Reason | None] = field(default_factory=dict)
    _made: dict[str, list[Stage]] = field(default_factory=dict)

    def reasons(self) -> dict[str, Reason]:
        """Why each of the stages that would run does, by name, in the order of dvc.yaml."""
        found = {stage.name: self._reason(stage) for stage in self.stages}
        return {name: reason for name, reason in found.items() if reason}

    def _reason(self, stage: Stage) -> Reason | None:
        if stage.name not in self._found:
            self._found[stage.name] = None
            self._found[stage.name] = self._own(stage) or self._others(stage)
        return self._found[stage.name]

    def _own(self, stage: Stage) -> Reason | None:
        entry = self.lock.get(stage.name)
        if not entry:
            return Reason(NEW)
        if entry.get("cmd") != stage.command:
            return Reason(CHANGED, "its command")
        before = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
        for dep in stage.deps:
            if (now := self._now(stage, dep)) and now != before.get(dep):
                return Reason(CHANGED, ITS_ROW if self._is_of_rows(dep) else dep)
        for out in entry.get("outs", []):
            if out["path"] in stage.outs and not _there(out):
                return Reason(CHANGED, ANOTHER if Path(out["path"]).exists() else MISSING)
        return Reason(CHANGED, MISSING) if set(stage.outs) - {out["path"] for out in entry.get("outs", [])} else None

    def _others(self, stage: Stage) -> Reason | None:
        for dep in stage.deps:
            for other in self._makers(stage, dep):
                if self._reason(other) and not self._is_of_rows(dep) and not self._part_stays(other, dep):
                    return Reason(AFTER, other.name)
        return None

    def _part_stays(self, other: Stage, dep: str) -> bool:
        """Whether a file of a row, in a folder that another stage writes of all rows, will be as it is: nothing has
        changed there but what concerns other rows, such as a model more."""
        key = Path(dep).stem
        if dep in other.outs or self._own(other) not in (None, Reason(CHANGED, ITS_ROW)):
            return False
        if not all(self._says_the_same(other, row, key) for row in other.deps if self._is_of_rows(row)):
            return False
        makers = (maker for each in other.deps if not self._is_of_rows(each) for maker in self._makers(other, each))
        return not any(self._reason(maker) for maker in makers if maker.name.partition("@")[2] in ("", key))

    def _says_the_same(self, stage: Stage, row: str, key: str) -> bool:
        """Whether a row of many has the entry that it had when a stage last ran, as far as that is still there."""
        locked = [dep.get("md5") for dep in self.lock[stage.name].get("deps", []) if dep["path"] == row]
        if row not in self.rows or locked != [_md5_of_file(row)]:
            return False
        old, new = json.loads(Path(row).read_bytes()), json.loads(self.rows[row])
        return isinstance(old, dict) and isinstance(new, dict) and old.get(key) == new.get(key) and key in new

    def _makers(self, stage: Stage, dep: str) -> list[Stage]:
        """The other stages that write a dependency or a part of it, looked up once."""
        if dep not in self._made:
            self._made[dep] = [
                other for other in self.stages if any(_inside(dep, out) or _inside(out, dep) for out in other.outs)
            ]
        return [other for other in self._made[dep] if other is not stage]

    def _is_of_rows(self, dep: str) -> bool:
        return any(_inside(path, dep) for path in self.rows)

    def _now(self, stage: Stage, dep: str) -> str | None:
        """A dependency's hash as it will be; None where that takes a run, or is not known without DVC."""
        if dep in self.rows:
            return _md5(self.rows[dep])
        if self._is_of_rows(dep):
            inside = sorted((path[len(dep) + 1 :], row) for path, row in self.rows.items() if _inside(path, dep))
            listed = [{"md5": _md5(row), "relpath": path} for path, row in inside]
            return _md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"
        makers = self._makers(stage, dep)
        if not makers:
            return _md5_of_file(dep) or ("missing" if not Path(dep).exists() else None)
        made = [out.get("md5") for other in makers for out in self.lock.get(other.name, {}).get("outs", [])
                if out["path"] == dep]  # fmt: skip
        return made[0] if made and not any(map(self._reason, makers)) else None


def _there(out: Mapping[str, Any]) -> bool:
    """Whether an output is as dvc.lock has it, or lies in DVC's cache; of a folder its files are counted, not read."""
    path = Path(out["path"])
    if path.is_file():
        return _md5_of_file(str(path)) == out.get("md5")
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        return (len(files), sum(file.stat().st_size for file in files)) == (out.get("nfiles"), out.get("size"))
    md5 = out.get("md5", "")
    return (CACHE / md5[:2] / md5[2:]).exists()
