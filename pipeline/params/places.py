"""Where study files stand, and that each has a name of its own."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import StudyError
from pipeline.params.study import Study

STUDIES = Path("studies")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, {} where there is none. Raises StudyError where it is not valid."""
    try:
        return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None


def check_place(path: Path, study: Study) -> Path:
    """The dvc.yaml beside a study file, below the repository's root as working folder. Raises StudyError where there is
    none, where the study's section leads elsewhere, and where its name is another study's, be it but for case."""
    graph, about = path.parent / "dvc.yaml", study.study
    if not graph.is_file():
        raise StudyError(f"{graph}: missing; copy the dvc.yaml of the root there")
    if (graph.parent / about.root).resolve() != Path.cwd().resolve():
        way = os.path.relpath(Path.cwd().resolve(), graph.parent.resolve())
        raise StudyError(f"study.root: {about.root!r} does not lead to the repository's root; write {way}")
    if Path(about.params).resolve() != path.resolve():
        raise StudyError(f"study.params: {about.params!r} is not this file; write {os.path.relpath(path)}")
    for other, name in names_taken():
        if name == about.name.lower() and other.resolve() != path.resolve():
            raise StudyError(f"study.name: {about.name!r} is that of {other}, whose results it would replace")
    return graph


def names_taken() -> Iterator[tuple[Path, str]]:
    """Every study file here, and the name in it in small letters, as some file systems take no others."""
    for path in [Path("params.yaml"), *sorted(Path("studies").glob("[!.]*/params.yaml"))]:
        with suppress(StudyError, KeyError, TypeError):  # its own check tells
            yield path, str(read_yaml(path)["study"]["name"]).lower()


def flow(value: Any) -> str:
    """A value on one line of YAML, texts in double quotes where they may hold anything."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w/]*|\.\./\.\.|studies/\w+/params\.yaml", value, re.A)
        if plain and yaml.safe_load(value) == value:  # "no" and "null" are none
            return value
        return _one_line(value, default_style='"', allow_unicode=True)
    return _one_line(value, default_flow_style=True)


def _one_line(value: Any, **style: Any) -> str:
    return yaml.safe_dump(value, width=float("inf"), **style).removesuffix("\n").removesuffix("\n...")
