"""Data sources by name and path: which of their files `load` reads, and one-line errors for the unreadable ones."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.common.errors import StudyError, nearest

# The keys of SOURCES.
BUILT_IN = ("digits", "photo_patches", "cifar10", "two_moons", "spiral", "checkerboard", "mixture")
ARCHIVE_SUFFIX = ".tar.gz"
LABELS_FILE = "dataset.json"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
NAMED = 4  # kinds of files passed over that are named if there are more


def unknown_source(source: str) -> str:
    """The error for a source that is neither built in nor a readable kind of file."""
    kinds = "no folder, no .zip file, no .tar.gz of CIFAR-10 and no built-in data set"
    return f"{source!r} is {kinds}; {nearest(source, BUILT_IN)}"


def expanded(source: str) -> Path:
    """The path that a study file names, with `~` expanded. Raises StudyError if there is no such home folder."""
    try:
        return Path(source).expanduser()
    except (RuntimeError, ValueError) as error:
        raise StudyError(f"{source!r} names no home folder ({error})") from None


def is_visible(name: str) -> bool:
    """Whether a file is neither hidden nor added by macOS. name: its path below the folder or in the zip."""
    return not any(map(_is_hidden, name.split("/")))


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX"))


def is_image(name: str) -> bool:
    """Whether `load` takes a visible file for an image."""
    return name.lower().endswith(EXTENSIONS)


def is_read(name: str) -> bool:
    """Whether `load` depends on a visible file: an image, or a list of labels."""
    return is_image(name) or name.rpartition("/")[2] == LABELS_FILE


def passed_over(names: Iterable[str]) -> str:
    """How many visible files are neither images nor lists of labels, by extension; "" if there are none."""
    kinds = Counter(
        PurePosixPath(name).suffix.lower()[:12] or "without extension" for name in names if not is_read(name)
    )
    listed = [f"{count} {kind}" for kind, count in kinds.most_common(NAMED)]
    if more := kinds.total() - sum(count for _, count in kinds.most_common(NAMED)):
        listed.append(f"{more} others")
    return f"not read as images: {', '.join(listed)}" if kinds else ""


def walk(root: Path) -> list[str]:
    """All visible files below `root`, as sorted relative posix paths. Follows links.

    Raises StudyError if a folder cannot be listed, or if links lead to one folder twice, as a link to a folder around
    it does.
    """
    return sorted(_names(root))


def _names(root: Path) -> Iterator[str]:
    top = os.path.realpath(root)
    seen = {str(path): str(path) for path in Path(top).parents} | {top: str(root)}  # and how it was reached
    queue = [("", top)]  # of folders: the path below root, and the place on the disk
    while queue:
        prefix, place = queue.pop()
        try:
            entries = sorted(os.scandir(f"{root}/{prefix}"), key=lambda entry: entry.name)
        except OSError as error:
            raise StudyError(f"{error.filename}: cannot be listed ({error.strerror})") from None
        for entry in entries:
            name = prefix + entry.name
            if _is_hidden(entry.name):
                continue
            if not _is_folder(entry):
                yield name
                continue
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(place, entry.name)
            if real in seen:
                raise StudyError(f"{root}/{name}: a link makes this the folder {seen[real]} again; remove the link")
            seen[real] = f"{root}/{name}"
            queue.append((f"{name}/", real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@contextmanager
def blame(place: object, cause: str) -> Iterator[None]:
    """Turn any error of a decoder into one line: PIL, zipfile and zlib share no base class. Raises StudyError."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{place}: {cause} ({type(error).__name__}: {error})") from error
