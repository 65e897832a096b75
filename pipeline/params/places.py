"""The places of study files and of their graphs, and their names."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import StudyError
from pipeline.common.scalars import in_a_line, is_text
from pipeline.params.reading import parse, text_of
from pipeline.params.study import Study

STUDIES = Path("studies")
GRAPH = Path("dvc.yaml")  # the root's graph


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, {} if there is no file. Raises StudyError if it is not valid."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None


def copy_graph(folder: Path) -> None:
    """Copy the graph of the root, which all studies share, into a folder of studies/.

    A link would not do: DVC does not follow links when it reads a Git revision (`dvc exp show`, `dvc metrics diff`).
    """
    copy = folder / GRAPH.name
    copy.unlink(missing_ok=True)  # a link would lead to the root's
    shutil.copyfile(GRAPH, copy)


def check_place(path: Path, study: Study) -> Path:
    """The dvc.yaml beside a study file. The working folder is the root of the repository.

    Raises StudyError if it is missing, if the `study` section does not lead to the root and back, or if another study
    has the same name, whatever its case.
    """
    graph, info = path.parent / GRAPH.name, study.study
    if not graph.is_file():
        raise StudyError(f"{graph}: missing; copy the root's {GRAPH}, which all studies share")
    if GRAPH.is_file() and graph.read_bytes() != GRAPH.read_bytes():
        raise StudyError(f"{graph}: not the root's {GRAPH}, which all studies share; `make docs` copies it")
    root = os.path.relpath(Path.cwd().resolve(), graph.parent.resolve())
    if missing := [key for key in ("root", "params") if key not in info.model_fields_set]:
        written = f"{{name: {info.name}, root: {root}, params: {os.path.relpath(path)}}}"
        raise StudyError(f"study.{missing[0]}: missing, but dvc.yaml reads it; write study: {written}")
    if (graph.parent / info.root).resolve() != Path.cwd().resolve():
        raise StudyError(f"study.root: {info.root!r} does not lead to the root of the repository; write {root}")
    if Path(info.params).resolve() != path.resolve():
        raise StudyError(f"study.params: {info.params!r} is not this file; write {os.path.relpath(path)}")
    for other, name in names_taken():
        if name == info.name.lower() and other.resolve() != path.resolve():
            raise StudyError(f"study.name: {other} already has the name {info.name!r}; choose another one")
    return graph


def names_taken() -> Iterator[tuple[Path, str]]:
    """Every study file here, with its name in lower case, because some file systems ignore case."""
    for path in [Path("params.yaml"), *sorted(Path("studies").glob("[!.]*/params.yaml"))]:
        with suppress(StudyError, KeyError, TypeError):  # each study's own check reports these
            yield path, str(parse(text_of(path), path)["study"]["name"]).lower()


def flow(value: Any) -> str:
    """A value on one line of YAML, with text in double quotes unless it is a plain name."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/]*|\.\./\.\.|studies/\w+/params\.yaml", value, re.A)
        if plain and is_text(value):  # not so for "no" and "null"
            return value
        return in_a_line(value, default_style='"', allow_unicode=True)
    return in_a_line(value)
