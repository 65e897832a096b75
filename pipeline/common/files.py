"""The places of a study's files, and functions that write files whole or not at all."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import StudyError

SHORT_HASH = 12  # characters of a hash in tables and results
CACHE = Path(".cache")  # finished cells, fitted grids and training checkpoints, keyed by a hash of their inputs


@dataclass(frozen=True)
class Paths:
    """The files of one study, relative to the repository root. dvc.yaml names the same paths."""

    study: str

    @property
    def build(self) -> Path:
        return Path("build") / self.study

    @property
    def rows(self) -> Path:
        return self.build / "rows"

    def code(self, stage: str) -> Path:
        return self.rows / "code" / f"{stage}.json"

    def row(self, section: str, name: str) -> Path:
        return self.rows / section / f"{name}.json"

    @property
    def data(self) -> Path:
        return self.build / "data"

    @property
    def features(self) -> Path:
        return self.build / "features"

    @property
    def reference(self) -> Path:
        return self.build / "reference"

    def model(self, name: str) -> Path:
        return self.build / "models" / name

    def space(self, model: str) -> Path:
        return self.build / "spaces" / model

    def grids(self, model: str) -> Path:
        return self.build / "grids" / f"{model}.json"

    def curve(self, name: str) -> Path:
        return self.build / "curves" / name

    def set(self, name: str) -> Path:
        return self.build / "sets" / name

    def timing(self, stage: str) -> Path:
        return self.build / "timings" / f"{stage}.json"

    @property
    def reports(self) -> Path:
        return Path("reports") / self.study

    @property
    def timings(self) -> Path:
        return self.reports / "timings.csv"

    @property
    def losses(self) -> Path:
        return self.reports / "losses.csv"

    @property
    def proposed(self) -> Path:
        return self.reports / "proposed.yaml"

    def metrics(self, stage: str, name: str) -> Path:
        return self.reports / "metrics" / stage / f"{name}.json"

    def training_curve(self, name: str) -> Path:
        return self.reports / "training" / f"{name}.csv"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a run after a crash, sees the old content or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # such as a full disk, whose error names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises StudyError if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` makes it") from None
    except ValueError as error:
        raise StudyError(f"{path}: not valid JSON ({error})") from None


def content_hash(*parts: object) -> str:
    """sha256 over parts: bytes unchanged, a function as what it returns, everything else as canonical JSON."""
    digest = hashlib.sha256()
    for part in parts:
        if callable(part):
            part = part()
        if not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True, allow_nan=False).encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """A hash of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return content_hash(*(part for path in files for part in (path.name, path.read_bytes)))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into. It replaces `path` on success; after an error `path` stays as it was."""
    partial, old = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
