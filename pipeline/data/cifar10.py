"""CIFAR-10 (Krizhevsky 2009): the training images from its authors' binary archive, downloaded or from a copy."""

import hashlib
import math
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.common.download import download
from pipeline.common.errors import StudyError
from pipeline.common.files import CACHE


@dataclass(frozen=True)
class Archive:
    """A published file: where it is had, and what tells it from all others."""

    url: str
    sha256: str
    size: int  # bytes


ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
)
FOLDER = CACHE / "downloads"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))  # those for training, in order
RECORDS = 10_000  # of each batch: a byte of the label, then red, green and blue, each row by row
SHAPE = (3, 32, 32)


def read(path: Path | None = None) -> tuple[Tensor, Tensor]:
    """Images, uint8 (50000, 3, 32, 32), and labels, int64 (50000,), from the archive at `path`.

    None: from the one in FOLDER, which is downloaded where it is not there. Raises StudyError where it cannot be had,
    and where it is not the published one.
    """
    cure = f"download it again from {ARCHIVE.url}"
    if path is None:
        path, cure = _downloaded(), "delete it, so that it is downloaded again"
    try:
        _check(path, cure)
        batches = _batches(path)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise StudyError(f"{path}: cannot be read ({type(error).__name__}: {error}); {cure}") from None
    if missing := [name for name in BATCHES if name not in batches]:
        raise StudyError(f"{path}: no {missing[0]} of {RECORDS:,} images in it; {cure}")
    records = np.frombuffer(b"".join(batches[name] for name in BATCHES), np.uint8).reshape(len(BATCHES) * RECORDS, -1)
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE)
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


def _downloaded() -> Path:
    """Where the archive lies below FOLDER, whether it has been there or came now."""
    path = FOLDER / ARCHIVE.url.rpartition("/")[2]
    if path.exists():
        return path
    instead = "`data.source` also takes the path of a copy of this archive, or a folder or .zip of images"
    try:
        download(ARCHIVE.url, path, ARCHIVE.sha256)
    except RuntimeError as error:  # which tells both checksums
        cause = f"cut short on the way, or another file ({error})"
        raise StudyError(f"{ARCHIVE.url}: {cause}; try again; {instead}") from None
    except Exception as error:  # whatever a network, a proxy or a full disk brings forth
        cause = f"{type(error).__name__}: {error}"
        raise StudyError(f"{ARCHIVE.url}: cannot be downloaded to {path} ({cause}); {instead}") from None
    return path


def _check(path: Path, cure: str) -> None:
    """Raise StudyError for another file than the published one: of the many .tar.gz this one alone is understood."""
    wanted = "and CIFAR-10's binary archive, the only .tar.gz that is taken,"
    if (size := path.stat().st_size) != ARCHIVE.size:
        raise StudyError(f"{path}: {size:,} bytes, {wanted} has {ARCHIVE.size:,}; {cure}")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE.sha256:
        raise StudyError(f"{path}: its sha256 is {found}, {wanted} has {ARCHIVE.sha256}; {cure}")


def _batches(path: Path) -> dict[str, bytes]:
    """The content of those of BATCHES that are in an archive in the right size, read once from front to back."""
    size, found = RECORDS * (1 + math.prod(SHAPE)), {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            if member.name in BATCHES and member.size == size and (file := archive.extractfile(member)):
                found[member.name] = file.read()
            if len(found) == len(BATCHES):
                break
    return found
