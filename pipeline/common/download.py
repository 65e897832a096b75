"""Files that others publish: had whole and with the right checksum, or not at all."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TIMEOUT_SECONDS = 30


@contextmanager
def timeout() -> Iterator[None]:
    """A network that says nothing for TIMEOUT_SECONDS is down."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, path: Path, sha256: str) -> None:
    """A file from the network, under another name until all of it is there and its sha256 begins with `sha256`.

    Raises whatever a network, a proxy or a full disk brings forth, and RuntimeError for another content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with timeout():
        torch.hub.download_url_to_file(url, str(path), sha256, sys.stderr.isatty())
