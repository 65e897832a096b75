"""The files of a folder or a zip: their names, and their content within a limit. Nothing is unpacked to the disk."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import StudyError
from pipeline.data.listing import blame, is_visible, walk

MOST_BYTES = 2**28  # in a file: as many as uncompressed pixels of the largest image that Pillow opens
PIECE = 2**16  # bytes that are unpacked at once, so that a header that names too few costs no memory
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks other methods' files without a limit
ENCRYPTED = 1  # a zip's flag

Read = Callable[[str], bytes]  # the content of a file, from its name


@dataclass(frozen=True)
class Files:
    """The visible files of a folder, sorted, or of a zip, in its order."""

    root: Path
    """The folder or zip."""
    names: list[str]
    """Paths below the folder or in the zip, with "/" between their parts."""
    read: Read
    """Raises StudyError for what is not a regular file, is encrypted or has more than MOST_BYTES bytes."""


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The files of a folder or zip. Raises StudyError if it cannot be listed."""
    if path.is_dir():
        yield Files(path, walk(path), lambda name: _content(path / name))
        return
    with blame(path, "not a readable zip archive; make it again"):
        archive = zipfile.ZipFile(path)
    with archive:
        members = _members(path, archive)
        yield Files(path, list(members), lambda name: _unpacked(f"{path}/{name}", archive, members[name]))


def _content(path: Path) -> bytes:
    found = os.stat(path)
    _refuse(str(path), found.st_mode, found.st_size)
    with open(path, "rb") as file:
        return file.read(found.st_size)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The visible files of a zip by name. Tools on Windows write "\\" for "/", others "./" or "/" before a name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        *folders, last = member.filename.replace("\\", "/").split("/")
        parts = [part for part in (*folders, last) if part not in ("", ".")]
        name = "/".join(parts)
        if ".." in parts:
            raise StudyError(f"{path}/{name}: leads out of the zip; pack it again, from within the images' folder")
        if last and is_visible(name):
            if name in members:
                raise StudyError(f"{path}/{name}: two files have this name; pack the zip again")
            members[name] = member
    return members


def _unpacked(place: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & ENCRYPTED:
        raise StudyError(f"{place}: encrypted; pack the zip without a password")
    if member.compress_type not in BOUNDED:
        raise StudyError(f"{place}: neither stored nor deflated; pack the zip again without options")
    _refuse(place, member.external_attr >> 16, member.file_size)
    with archive.open(member) as file:  # ends after `file_size` bytes
        return b"".join(iter(lambda: file.read(PIECE), b""))


def _refuse(place: str, mode: int, size: int) -> None:
    """Raise StudyError for a file that must not be read. mode: 0 if it is unknown."""
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise StudyError(f"{place}: neither a file nor a folder; remove it")
    if size > MOST_BYTES:
        raise StudyError(f"{place}: {size:,} bytes; a file may have {MOST_BYTES:,}; remove it or make it smaller")
