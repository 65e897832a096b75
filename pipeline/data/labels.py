"""Labels of images from a list in `dataset.json` or from class folders."""

import json
import posixpath
from typing import Any

from pipeline.common.errors import StudyError, note
from pipeline.common.text import code_point, hidden, is_utf8
from pipeline.data.files import Files
from pipeline.data.listing import LABELS_FILE, blame, is_read

Labels = tuple[list[int] | None, tuple[str, ...]]  # a class index for each image, or None; the names of the classes


def find_labels(files: Files, images: list[str]) -> Labels:
    """The labels of `images`, from a top-level `dataset.json` among the files, else from top-level folders.

    If one folder holds all images, and in it are class folders or a `dataset.json`, it counts as the top level.
    Raises StudyError if the list is invalid, if images lie beside class folders, or if the name of a class is no text
    or hides characters.
    """
    names = list(filter(is_read, files.names))
    top = _top(names)
    labels, classes = _found_labels(files, top, [name.removeprefix(top) for name in names], images)
    for name in classes:
        if character := hidden(name):
            fault = f"the invisible character {code_point(character)}" if is_utf8(name) else "letters outside UTF-8"
            raise StudyError(f"{files.root}: class {name!r} has {fault}; rename it, or set labels: false")
    return labels, classes


def _top(names: list[str]) -> str:
    """The folder, such as "pets/", of all files, if it holds class folders or a list of labels; else ""."""
    folder = posixpath.commonpath([name.rpartition("/")[0] for name in names])
    top = folder and f"{folder}/"
    below = [name.removeprefix(top) for name in names]
    return top if LABELS_FILE in below or all("/" in name for name in below) else ""


def _found_labels(files: Files, top: str, names: list[str], images: list[str]) -> Labels:
    """The labels of `images`. names: of all files that are read, below the folder `top`."""
    root = f"{files.root}/{top}".removesuffix("/")
    images = [name.removeprefix(top) for name in images]
    if top:
        note(f"{files.root}: labels are those of its only folder, {top}")
    if LABELS_FILE in names:
        place = f"{root}/{LABELS_FILE}"
        with blame(place, "not valid JSON"):
            listed = json.loads(files.read(top + LABELS_FILE))
        return _listed_labels(place, listed, images)
    if astray := [name for name in names if name.endswith(f"/{LABELS_FILE}")]:
        raise StudyError(f"{root}/{astray[0]}: not at the top level; pack or name the folder that holds it")
    tops = [name.partition("/")[0] if "/" in name else "" for name in images]
    classes = tuple(sorted(set(tops) - {""}))
    if not classes:
        return None, ()
    if "" in tops:
        beside = f"{images[tops.index('')]} lies beside class folders such as {classes[0]}"
        raise StudyError(f"{root}: {beside}; put all images into class folders, or none, or set labels: false")
    index = {name: i for i, name in enumerate(classes)}
    return [index[top] for top in tops], classes


def _listed_labels(place: str, listed: Any, images: list[str]) -> Labels:
    if not isinstance(listed, dict) or "labels" not in listed:
        raise StudyError(f'{place}: needs {{"labels": [[name, class], ...]}} or {{"labels": null}}')
    pairs, classes = listed["labels"], listed.get("classes")
    if pairs is None:
        return None, ()
    is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if classes is not None and not (is_names and len(set(classes)) == len(classes)):
        raise StudyError(f'{place}: "classes" must be a list of different names')
    bound = len(images) if classes is None else len(classes)
    labels: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise StudyError(f'{place}: {str(pair)[:80]!r} in "labels" is not a pair [name, class]')
        name, label = pair
        if name in labels:
            raise StudyError(f"{place}: {name} is labelled twice; label each image once")
        if type(label) is not int or not 0 <= label < bound:
            of = 'images, and no "classes"' if classes is None else 'names in "classes"'
            valid = f"0 to {bound - 1} ({bound} {of})"
            raise StudyError(f"{place}: label out of range: {name} has {label!r}; valid: {valid}")
        labels[name] = label
    if missing := [name for name in images if name not in labels]:
        raise StudyError(f"{place}: {missing[0]} has no label ({len(missing)} such images); label every image, or none")
    if absent := labels.keys() - set(images):
        raise StudyError(f"{place}: labels {min(absent)}, which is not among the images ({len(absent)} such names)")
    if classes is None:
        classes = [str(label) for label in range(max(labels.values()) + 1)]
    return [labels[name] for name in images], tuple(classes)
