"""Small images, folders and zips of them, and what the tests of data sets share."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import StudyError
from pipeline.data.dataset import Dataset
from pipeline.data.row import Data
from pipeline.data.sources import load


def pixels(seed: int, height: int = 4, width: int = 6, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def png(seed: int, height: int = 4, width: int = 6, channels: int = 3) -> bytes:
    return encoded(pixels(seed, height, width, channels))


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def listing(labels: object, **more: object) -> bytes:
    return json.dumps({"labels": labels, **more}).encode()


def loaded(path: Path, limit: int | None = None, labels: bool = True) -> Dataset:
    return load(Data(source=str(path), limit=limit, labels=labels))


COUNT, SIDE = 90, 8


def images(folder: Path, count: int = COUNT, side: int = SIDE, classes: tuple[str, ...] = ("a", "b")) -> None:
    """PNGs of noise, in class folders where there are classes."""
    draw = np.random.default_rng(0)
    for i in range(count):
        place = folder / classes[i % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8)).save(place / f"{i}.png")


FINE = {"0.png": png(0)}
PAIR = {"0.png": png(0), "1.png": png(1)}


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message
