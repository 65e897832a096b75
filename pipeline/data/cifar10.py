"""CIFAR-10 (Krizhevsky 2009): the training images from its authors' binary archive, downloaded or from a copy."""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.common.download import download
from pipeline.common.errors import StudyError
from pipeline.common.files import CACHE, SHORT_HASH


@dataclass(frozen=True)
class Archive:
    """A published file: its address, and its content's hash and size."""

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
BATCHES = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))  # the training batches, in order
RECORDS = 10_000  # in each batch: one byte of the label, then red, green and blue, each row by row
SHAPE = (3, 32, 32)


def count() -> int:
    """The number of training images."""
    return len(BATCHES) * RECORDS


def read(path: Path | None = None) -> tuple[Tensor, Tensor]:
    """Images, uint8 (50000, 3, 32, 32), and labels, int64 (50000,), from the archive at `path`.

    None: from the archive in FOLDER, which is downloaded if it is missing. Raises StudyError if the download fails, and
    if the archive cannot be read or is not the published one.
    """
    if path is None and not _kept().exists():
        _download()
    check(path)
    batches = _batches(path or _kept())
    records = np.frombuffer(b"".join(batches[name] for name in BATCHES), np.uint8).reshape(count(), -1)
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE)
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


def check(path: Path | None = None) -> None:
    """Raise StudyError if the archive at `path` is not the published one or cannot be read.

    None: check the archive in FOLDER, if there is one.
    """
    cure = f"download it again from {ARCHIVE.url}"
    if path is None:
        path, cure = _kept(), "delete it; the next run downloads it again"
        if not path.exists():
            return
    wanted = "and CIFAR-10's binary archive, the only .tar.gz that is taken,"
    try:
        if (size := path.stat().st_size) != ARCHIVE.size:
            raise StudyError(f"{path}: {size:,} bytes, {wanted} has {ARCHIVE.size:,}; {cure}")
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({type(error).__name__}: {error}); {cure}") from None
    if sha256 != ARCHIVE.sha256:
        raise StudyError(
            f"{path}: its sha256 is {sha256[:SHORT_HASH]}..., {wanted} has {ARCHIVE.sha256[:SHORT_HASH]}...; {cure}"
        )


def _kept() -> Path:
    """The place of the downloaded archive."""
    return FOLDER / ARCHIVE.url.rpartition("/")[2]


def _download() -> None:
    instead = "`data.source` also takes the path of a copy of this archive, or a folder or .zip of images"
    try:
        download(ARCHIVE.url, _kept(), ARCHIVE.sha256)
    except RuntimeError:  # another sha256
        cause = "the download was cut short, or it is another file"
        raise StudyError(f"{ARCHIVE.url}: {cause}; try again; {instead}") from None
    except Exception as error:  # a network, a proxy or a full disk can raise anything
        cause = f"{type(error).__name__}: {error}"
        raise StudyError(f"{ARCHIVE.url}: cannot be downloaded to {_kept()} ({cause}); {instead}") from None


def _batches(path: Path) -> dict[str, bytes]:
    """The content of BATCHES, by name. Reads the compressed archive once, from front to back."""
    with tarfile.open(path, "r|gz") as archive:
        return {
            member.name: file.read()
            for member in archive
            if member.name in BATCHES and (file := archive.extractfile(member))
        }
