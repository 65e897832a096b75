"""Download published files: whole and with the right checksum, or not at all."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TIMEOUT_SECONDS = 30


@contextmanager
def timeout() -> Iterator[None]:
    """Within this context, a connection without an answer for TIMEOUT_SECONDS fails."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file. It gets its name only when it is complete and its sha256 begins with `sha256`.

    Raises RuntimeError for another sha256, and any error of a network, a proxy or a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with timeout():
        torch.hub.download_url_to_file(url, str(path), sha256, sys.stderr.isatty())
