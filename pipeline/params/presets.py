"""A study at another of its presets, or on other data: studies/<name>_<preset>/, written from studies/<name>/."""

import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import StudyError, nearest
from pipeline.common.files import whole_folder, write_text
from pipeline.common.rows import NAME
from pipeline.data.listing import BUILT_IN, expanded, unknown_source
from pipeline.params.editing import edited
from pipeline.params.places import STUDIES, copy_graph, names_taken
from pipeline.params.reading import parse, text_of
from pipeline.params.resolve import resolve
from pipeline.params.study import Study, parse_study, read_study

WRITTEN = "# Written by `make study NAME={name}{more}`, which overwrites this file: edit studies/{name}/params.yaml."
MARK = WRITTEN.partition("{")[0]  # the beginning of that line, which no study file of a user has


def choose(name: str, preset: str, data: str = "") -> str:
    """The folder in studies/ with a study at a preset and on a data set.

    preset: "" for the active preset of the study file; data: "" for its own data. If the study file has just these, it
    is the study's own folder. Otherwise it is <name>_<preset>, whose params.yaml and dvc.yaml are written each time,
    both or neither; other files in it, such as dvc.lock, stay. Raises StudyError, one line that says where and what.
    """
    folder = STUDIES / name
    if not re.fullmatch(NAME, name) or not (folder / "params.yaml").is_file():
        studies = sorted(path.parent.name for path in STUDIES.glob("[!.]*/params.yaml"))
        raise StudyError(f"NAME: {name!r}: no such study; {nearest(name, studies)}")
    study = read_study(folder / "params.yaml")
    if not study.presets:
        raise StudyError(f"PRESET: {folder / 'params.yaml'} has no presets; leave PRESET and DATA out")
    chosen = preset or study.preset
    if chosen is None:
        raise StudyError(f"PRESET: missing; write one of {', '.join(study.presets)}")
    if chosen not in study.presets:
        raise StudyError(f"PRESET: no preset {chosen!r}; {nearest(chosen, study.presets)}")
    if data and data not in BUILT_IN and not expanded(data).exists():
        raise StudyError(f"DATA: {unknown_source(data)}")
    if chosen == study.preset and data in ("", study.data.source):
        return name
    _write(name, study, chosen, data)
    return f"{name}_{chosen}"


def _write(name: str, study: Study, preset: str, data: str) -> None:
    """Write the folder of a study at a preset. Checks everything before it writes anything."""
    target = STUDIES / f"{name}_{preset}"
    file = target / "params.yaml"
    text = preset_text(text_of(STUDIES / name / "params.yaml"), name, preset, data)
    written = parse_study(text, file)
    if written.data.source != (data or study.presets[preset].data.get("source", study.data.source)):
        raise StudyError(f"presets.{preset}.data.source: overrides DATA={data}; remove it from the preset")
    resolve(written)
    if target.exists() and not _is_ours(file):
        raise StudyError(f"PRESET: {target} exists and was not written by PRESET; rename that folder")
    for other, taken in names_taken():
        if taken == target.name.lower() and other != file:
            raise StudyError(f"PRESET: {other} already has the name {target.name}; rename that study")
    if target.exists():
        write_text(file, text)
        copy_graph(target)
    else:
        with whole_folder(target) as folder:
            write_text(folder / "params.yaml", text)
            copy_graph(folder)


def _is_ours(file: Path) -> bool:
    """Whether this module wrote a study file, and so may overwrite it."""
    return file.is_file() and any(line.startswith(MARK) for line in text_of(file).splitlines()[:3])


def _instead(text: str, name: str, preset: str) -> dict[tuple[str, ...], Any]:
    """The sections that a preset has instead of the study's, and itself as the only preset; {} for other presets."""
    own = dict(parse(text, STUDIES / name / "params.yaml")["presets"][preset] or {})
    instead = own.pop("instead", None) or {}
    sections: dict[tuple[str, ...], Any] = {(section,): rows for section, rows in instead.items()}
    return sections | {("presets",): {preset: own}} if instead else {}


def preset_text(text: str, name: str, preset: str, data: str = "") -> str:
    """The text of a study file at another preset, and on other data if `data` is given; comments stay."""
    folder = f"{name}_{preset}"
    values = {
        ("preset",): preset,
        ("study", "name"): folder,
        ("study", "params"): f"studies/{folder}/params.yaml",
    } | ({("data", "source"): data} if data else {})
    values |= _instead(text, name, preset)
    try:
        text = edited(text, values)
    except StudyError as error:
        raise StudyError(f"studies/{name}/params.yaml: {error}, because PRESET and DATA need it") from None
    more = f" PRESET={preset}" + (" DATA=..." if data else "")
    first = text.index("\n") + 1 if text.startswith("# yaml-language-server:") else 0
    return text[:first] + WRITTEN.format(name=name, more=more) + "\n" + text[first:]
