"""A study at another of its presets, or on other data: studies/<name>_<preset>/, written from studies/<name>/."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import whole_folder, write_text
from pipeline.common.rows import NAME
from pipeline.data.listing import unknown_source
from pipeline.data.sources import SOURCES
from pipeline.params.places import STUDIES, flow, names_taken
from pipeline.params.resolve import resolve
from pipeline.params.study import Study, parse_study, read_study

WRITTEN = "# Written by `make study NAME={name}{more}`, anew each time it is called: edit studies/{name}/params.yaml."
MARK = WRITTEN.partition("{")[0]  # how that line begins, which no study of somebody's own has


def choose(name: str, preset: str, data: str = "") -> str:
    """The folder in studies/ that holds a study at a preset ("": the one that stands in its file), on `data` ("": its
    own).

    That is the study's own, where its file says just that; else <name>_<preset>, written from it, whole or not at all,
    each time. Its lock and all that is not written stay. Raises StudyError, one line saying where and what.
    """
    folder = STUDIES / name
    if not re.fullmatch(NAME, name) or not (folder / "params.yaml").is_file():
        studies = sorted(path.parent.name for path in STUDIES.glob("[!.]*/params.yaml"))
        raise StudyError(f"NAME: {name!r}: no such study; {nearest(name, studies)}")
    study = read_study(folder / "params.yaml")
    if not study.presets:
        raise StudyError(f"PRESET: {folder / 'params.yaml'} has no presets; leave PRESET and DATA out")
    wanted = preset or study.preset
    if wanted is None:
        raise StudyError(f"PRESET: missing; one of {', '.join(study.presets)}")
    if wanted not in study.presets:
        raise StudyError(f"PRESET: no preset {wanted!r}; {nearest(wanted, study.presets)}")
    if data and data not in SOURCES and not Path(data).expanduser().exists():
        raise StudyError(f"DATA: {unknown_source(data)}")
    if wanted == study.preset and data in ("", study.data.source):
        return name
    _write(name, study, wanted, data)
    return f"{name}_{wanted}"


def _write(name: str, study: Study, preset: str, data: str) -> None:
    """Write the study's folder for a preset. Nothing is written before all of it has been looked at."""
    source, target = STUDIES / name, STUDIES / f"{name}_{preset}"
    file = target / "params.yaml"
    text = preset_text((source / "params.yaml").read_text(), name, preset, data)
    made = parse_study(text, file)
    if (made.preset, made.study.name, made.data.source) != (preset, target.name, data or _source(study, preset)):
        raise StudyError(f"presets.{preset}.data.source: stands in the way of DATA={data}; take it out")
    resolve(made)
    if target.exists() and not _is_ours(file):
        raise StudyError(f"PRESET: {target} is there already, and not written by PRESET; give it another name")
    for other, taken in names_taken():
        if taken == target.name.lower() and other != file:
            raise StudyError(f"PRESET: {other} has the name {target.name} already; take another there")
    graph = (source / "dvc.yaml").read_text()
    if target.exists():
        write_text(target / "dvc.yaml", graph)
        write_text(file, text)
    else:
        with whole_folder(target) as folder:
            write_text(folder / "dvc.yaml", graph)
            write_text(folder / "params.yaml", text)


def _source(study: Study, preset: str) -> str:
    """The data of a study at a preset."""
    return str(study.presets[preset].data.get("source", study.data.source))


def _is_ours(file: Path) -> bool:
    """Whether a study file was written here, and so may be written again."""
    return file.is_file() and any(line.startswith(MARK) for line in file.read_text().splitlines()[:3])


def preset_text(text: str, name: str, preset: str, data: str = "") -> str:
    """A study file's text at another preset, under its own name: what else stands in it, comments too, stays."""
    folder = f"{name}_{preset}"
    values = {
        ("preset",): preset,
        ("study", "name"): folder,
        ("study", "params"): f"studies/{folder}/params.yaml",
    } | ({("data", "source"): data} if data else {})
    text = _replaced(text, values, name)
    more = f" PRESET={preset}" + (" DATA=..." if data else "")
    at = text.index("\n") + 1 if text.startswith("# yaml-language-server:") else 0
    return text[:at] + WRITTEN.format(name=name, more=more) + "\n" + text[at:]


def _replaced(text: str, values: Mapping[tuple[str, ...], str], name: str) -> str:
    """A YAML text with other scalars at these places; a first-level one that is missing is added after `study`."""
    root: Any = yaml.compose(text, yaml.SafeLoader)
    edits: list[tuple[int, int, str]] = []
    for place, value in values.items():
        node = _at(root, place)
        if isinstance(node, yaml.ScalarNode):
            start, end = node.start_mark.index, node.end_mark.index
            edits.append((start, end, flow(value) if start < end else f" {flow(value)}"))
        elif place == ("preset",):
            key = next(key for key, _ in root.value if key.value == "study")
            edits.append((key.start_mark.index, key.start_mark.index, f"preset: {flow(value)}\n"))
        else:
            raise StudyError(f"studies/{name}/params.yaml: {'.'.join(place)}: missing; PRESET and DATA need it")
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _at(node: Any, place: tuple[str, ...]) -> Any:
    """What stands at a place of a YAML mapping, None where nothing does."""
    for key in place:
        found = [value for own, value in getattr(node, "value", []) if own.value == key] if node else []
        node = found[0] if found else None
    return node
