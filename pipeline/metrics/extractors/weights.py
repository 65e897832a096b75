"""Files of weights: read with a check of their hash, and hashed tensor by tensor."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.data.listing import expanded


def path_of(weights: str) -> Path:
    """The path in `features.weights`, with `~` expanded. Raises StudyError if there is no such home folder."""
    try:
        return expanded(weights)
    except StudyError as error:
        raise StudyError(f"features.weights: {error}") from None


def read(path: Path, prefix: str) -> tuple[bytes, str]:
    """A file's content and sha256. Raises StudyError if it is unreadable or if its sha256 has another prefix."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from None
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(prefix):
        raise StudyError(
            f"{path}: its sha256 is {sha256}; expected {prefix}...; set features.hash if it is the right file"
        )
    return content, sha256


def digests(state: dict[str, Tensor]) -> list[list[Any]]:
    """Name, type, shape and sha256 of each tensor, sorted by name."""
    rows = []
    for name, tensor in sorted(state.items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        rows.append([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw.data).hexdigest()])
    return rows
