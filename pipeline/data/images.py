"""Image files of one size, from a folder or a zip, decoded to one uint8 array."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.common.errors import StudyError
from pipeline.data.dataset import Dataset
from pipeline.data.labels import Read, find_labels
from pipeline.data.listing import EXTENSIONS, blame, is_image, is_visible
from pipeline.data.row import Data

GREY_MODES = frozenset({"1", "L", "LA", "La"})
FRAME_HEADER = 16  # bytes of an ANMF chunk of WebP before the chunks of its frame


def collect(root: Path, files: list[str], read: Read, row: Data) -> Dataset:
    """The images among `files`, in this order. root: their folder or zip, for errors.

    Decodes no more images than `row.limit`. Raises StudyError if there are fewer than two images, if an image cannot
    be decoded to 8 bits a channel, if sizes differ, or if labels are invalid.
    """
    visible, names = list(filter(is_visible, files)), list(filter(is_image, files))
    if len(names) < 2:
        raise StudyError(f"{root}: {len(names) or 'no'} images in it; at least 2 are needed ({' '.join(EXTENSIONS)})")
    labels, classes = find_labels(root, visible, names, read) if row.labels else (None, ())
    pixels, lossy = _decode(root, names[: row.limit], read)
    indices = None if labels is None else torch.tensor(labels[: row.limit])
    return Dataset(torch.from_numpy(pixels), indices, classes, lossy)


@contextmanager
def _opened(root: Path, name: str, read: Read) -> Iterator[Image.Image]:
    blamed = blame(f"{root}/{name}", "cannot be read as an image; mend or remove it")
    with blamed, Image.open(io.BytesIO(read(name))) as image:
        yield image


def _decode(root: Path, names: list[str], read: Read) -> tuple[np.ndarray, str]:
    """uint8 (N, C, H, W), and the lossy formats. Reads all headers first, so that the array is allocated once."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        (width, height), mode, lossy = _survey(root, names, read)
        channels = len(mode)
        with blame(root, f"{len(names)} images of {width} x {height} do not fit into memory; set a smaller limit"):
            pixels = np.empty((len(names), channels, height, width), np.uint8)
        for i, name in enumerate(tqdm(names, desc="decode", unit=" images", disable=None)):
            with _opened(root, name, read) as image:
                flat = _pixels(f"{root}/{name}", image, mode)
                pixels[i] = flat.reshape(height, width, channels).transpose(2, 0, 1)
    return pixels, lossy


def _survey(root: Path, names: list[str], read: Read) -> tuple[tuple[int, int], str, str]:
    """The size (width, height) of all images, the mode of the array (L if all are grey, else RGB), and the lossy
    formats, such as "JPEG/WebP"."""
    sizes: dict[tuple[int, int], str] = {}
    modes, lossy = set(), set()
    for name in names:
        with _opened(root, name, read) as image:
            sizes.setdefault(image.size, name)
            modes.add(image.mode)
            lossy.add(_lossy_format(image, name, read))
        if len(sizes) > 1:
            (a, first), (b, other) = sizes.items()
            differ = f"{first} is {a[0]} x {a[1]}, but {other} is {b[0]} x {b[1]}"
            raise StudyError(f"{root}: {differ}; resize all images to one size")
        if image.mode.startswith(("I", "F")):
            raise StudyError(f"{root}/{name}: pixels of mode {image.mode}; save it with 8 bits a channel")
    return next(iter(sizes)), "L" if modes <= GREY_MODES else "RGB", "/".join(sorted(lossy - {""}))


def _lossy_format(image: Image.Image, name: str, read: Read) -> str:
    """The format of a file, whatever its extension, if it changes pixels; else ""."""
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg"):  # in a TIFF
        return "JPEG"
    return "WebP" if image.format == "WEBP" and _is_lossy_webp(read(name)) else ""


def _is_lossy_webp(content: bytes) -> bool:
    """Whether a WebP has a chunk "VP8 ", also within a frame of an animation; lossless pixels are in "VP8L".

    RFC 9649, section 2.
    """
    place = len("RIFF....WEBP")
    while place < len(content) and (kind := content[place : place + 4]) != b"VP8 ":
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + (FRAME_HEADER if kind == b"ANMF" else size + size % 2)
    return place < len(content)


def _pixels(place: str, image: Image.Image, mode: str) -> np.ndarray:
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # cameras put a preview behind a JPEG
        raise StudyError(f"{place}: several frames in one file; save each as an image")
    converted: Image.Image = image
    if image.has_transparency_data:
        converted = image.convert("RGBA")
        if converted.getchannel("A").getextrema()[0] != 255:
            raise StudyError(f"{place}: not fully opaque; flatten it onto a background")
    return np.asarray(converted.convert(mode))
