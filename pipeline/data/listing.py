"""Data sources by name and path: which of their files `load` reads, and one-line errors for the unreadable ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.common.errors import StudyError, nearest

BUILT_IN = ("digits", "cifar10", "two_moons", "spiral", "checkerboard", "mixture")  # the keys of SOURCES
ARCHIVE_SUFFIX = ".tar.gz"
LABELS_FILE = "dataset.json"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def unknown_source(source: str) -> str:
    """The error for a source that is neither built in nor a readable kind of file."""
    kinds = "no folder, no .zip file, no .tar.gz of CIFAR-10 and no built-in data set"
    return f"{source!r} is {kinds}; {nearest(source, BUILT_IN)}"


def expanded(source: str) -> Path:
    """The path that a study file names, with `~` expanded. Raises StudyError if there is no such home folder."""
    try:
        return Path(source).expanduser()
    except RuntimeError as error:
        raise StudyError(f"{source!r} names no home folder ({error})") from None


def is_visible(name: str) -> bool:
    """Whether a file is neither hidden nor added by macOS. name: its path below the folder or in the zip."""
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/") if part != ".")


def is_image(name: str) -> bool:
    """Whether `load` takes a file for an image. name: its path below the folder or in the zip."""
    return name.lower().endswith(EXTENSIONS) and is_visible(name)


def is_read(name: str) -> bool:
    """Whether `load` depends on a file: an image, or a list of labels. name: its path below the folder."""
    return is_image(name) or (name.rpartition("/")[2] == LABELS_FILE and is_visible(name))


def walk(root: Path) -> list[str]:
    """All files below `root`, as sorted relative posix paths. Follows linked folders.

    Raises StudyError if a folder cannot be listed.
    """
    return sorted(_names(root))


def _names(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise StudyError(f"{error.filename}: cannot be listed ({error.strerror})")

    for folder, _, files in os.walk(root, followlinks=True, onerror=refuse):
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for file in files:
            yield prefix + file


@contextmanager
def blame(place: object, cause: str) -> Iterator[None]:
    """Turn any error of a decoder into one line: PIL, zipfile and zlib share no base class. Raises StudyError."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{place}: {cause} ({type(error).__name__}: {error})") from error
