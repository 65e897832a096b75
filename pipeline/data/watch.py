"""Notices changed images and weights: a digest of the files that a study names, without reading unchanged ones again.

DVC does not track these files, because they lie outside the repository. `resolve` puts their digest into the rows, and
the stages that read the files depend on these rows.
"""

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.common.errors import StudyError
from pipeline.common.files import CACHE, content_hash
from pipeline.common.sealed import kept, load_json, save_json
from pipeline.data.listing import BUILT_IN, expanded, is_read, walk

FOLDER = CACHE / "watched"
RACY_NS = 2_000_000_000  # times of a file have a resolution of up to 2 s: within it, a second change leaves no trace

Listing = dict[str, list[Any]]  # name: [bytes, time of change in ns, time of status change in ns, sha256]


def watched(source: str) -> str:
    """The digest of a data source or of a weights file: a file's sha256, or a hash of a folder's names and sha256s.

    source: as the study file names it; a built-in data set gives "". In a folder only the images and the lists of
    labels count. The digest depends on neither the place of the source nor the times of its files. A listing below
    FOLDER keeps each file's size, times and sha256; a file is read again only if its size or a time differs.
    Raises StudyError if the source does not exist or cannot be read.
    """
    if source in BUILT_IN:
        return ""
    path = expanded(source).absolute()
    try:
        if path.is_dir():
            listing = _listing(path, path, [name for name in walk(path) if is_read(name)])
            return content_hash([[name, entry[-1]] for name, entry in listing.items()])
        if not path.exists():
            raise StudyError(f"{source!r}: no such file or folder")
        return str(_listing(path, path.parent, [path.name])[path.name][-1])
    except OSError as error:
        raise StudyError(f"{error.filename or source}: {error.strerror}") from None


def _listing(source: Path, root: Path, names: list[str]) -> Listing:
    """The listing of the files `names` below `root`, in this order. Updates the kept listing of `source`."""
    place = FOLDER / f"{hashlib.sha256(os.fsencode(source)).hexdigest()}.json"
    known = _read(place, source)
    now, entries = time.time_ns(), {}
    for name in tqdm(names, desc="hash", unit=" files", disable=None, delay=1):
        file = os.stat(path := f"{root}/{name}")
        stamp = [file.st_size, file.st_mtime_ns, file.st_ctime_ns]
        entry = known.get(name)
        if not entry or entry[:-1] != stamp:
            if not stat.S_ISREG(file.st_mode):
                raise StudyError(f"{path}: neither a file nor a folder")
            with open(path, "rb") as opened:
                entry = [*stamp, hashlib.file_digest(opened, "sha256").hexdigest()]
        entries[name] = entry
    trusted = {name: entry for name, entry in entries.items() if max(entry[1:3]) < now - RACY_NS}
    if trusted != known:
        save_json(place, {"source": str(source), "files": trusted})
    return entries


def _read(place: Path, source: Path) -> Listing:
    """The kept listing of a source; an empty one if the file is missing, broken or of another source."""
    found = kept(load_json, place) or {}
    return found["files"] if found.get("source") == str(source) else {}
