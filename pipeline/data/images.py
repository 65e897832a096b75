"""Image files of one size, from a folder or a zip, decoded to one uint8 array."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from pipeline.common.errors import StudyError, note
from pipeline.data.dataset import Dataset
from pipeline.data.files import Files, Read
from pipeline.data.labels import find_labels
from pipeline.data.listing import EXTENSIONS, blame, is_image, passed_over
from pipeline.data.row import Data

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # Pillow opens others with outside programs
GREY_MODES = frozenset({"1", "L", "LA", "La"})
CONVERTED = frozenset({"CMYK", "LAB"})  # modes whose colours RGB cannot keep
UPRIGHT, FIRST_SWAPPED = 1, 5  # EXIF orientations: from 5 on, width and height are swapped
BITS_PER_SAMPLE = 258  # a TIFF's tag
FRAME_HEADER = 16  # bytes of an ANMF chunk of WebP before the chunks of its frame


def collect(files: Files, row: Data) -> Dataset:
    """The images among `files`, in this order. Notes on stderr what else is among them.

    Decodes no more images than `row.limit`. Raises StudyError if there are fewer than two images, if an image cannot
    be decoded or has more than 8 bits a channel, if sizes differ, or if labels are invalid.
    """
    names, others = list(filter(is_image, files.names)), passed_over(files.names)
    if len(names) < 2:
        needed = f"at least 2 are needed ({' '.join(EXTENSIONS)})" + (f"; {others}" if others else "")
        raise StudyError(f"{files.root}: {len(names) or 'no'} images in it; {needed}")
    if others:
        note(f"{files.root}: {others}")
    labels, classes = find_labels(files, names) if row.labels else (None, ())
    pixels, lossy = _decode(files, names[: row.limit])
    indices = None if labels is None else torch.tensor(labels[: row.limit])
    return Dataset(torch.from_numpy(pixels), indices, classes, lossy)


@contextmanager
def _opened(files: Files, name: str) -> Iterator[Image.Image]:
    blamed = blame(f"{files.root}/{name}", "cannot be read as an image; mend or remove it")
    with blamed, _silence(), Image.open(io.BytesIO(files.read(name)), formats=FORMATS) as image:
        yield image


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what libtiff writes to the process's stderr before Pillow raises an error."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _decode(files: Files, names: list[str]) -> tuple[np.ndarray, str]:
    """uint8 (N, C, H, W), and the lossy formats. Reads all headers first, so that the array is allocated once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        (width, height), mode, lossy = _survey(files, names)
        channels = len(mode)
        too_many = f"{len(names)} images of {width} x {height} do not fit into memory; set a smaller limit"
        with blame(files.root, too_many):
            pixels = np.empty((len(names), channels, height, width), np.uint8)
        for i, name in enumerate(tqdm(names, desc="decode", unit=" images", disable=None)):
            with _opened(files, name) as image:
                flat = _pixels(f"{files.root}/{name}", image, mode, (width, height))
                pixels[i] = flat.reshape(height, width, channels).transpose(2, 0, 1)
    return pixels, lossy


def _survey(files: Files, names: list[str]) -> tuple[tuple[int, int], str, str]:
    """The size (width, height) of all images, the mode of the array (L if all are grey, else RGB), and the lossy
    formats, such as "JPEG/WebP". Notes on stderr which pixels are changed."""
    sizes: dict[tuple[int, int], str] = {}
    modes: dict[str, str] = {}
    turned: dict[bool, str] = {}
    lossy = set()
    for name in names:
        with _opened(files, name) as image:
            orientation = _orientation(image)
            is_swapped = orientation >= FIRST_SWAPPED and image.format != "TIFF"  # Pillow swaps a TIFF's itself
            size = image.size[::-1] if is_swapped else image.size
            sizes.setdefault(size, name)
            modes.setdefault(image.mode, name)
            turned.setdefault(orientation != UPRIGHT, name)
            lossy.add(_lossy_format(image, name, files.read))
            is_deep = _is_deep(image)
        if len(sizes) > 1:
            (a, first), (b, other) = sizes.items()
            differ = f"{first} is {a[0]} x {a[1]}, but {other} is {b[0]} x {b[1]}"
            raise StudyError(f"{files.root}: {differ}; resize all images to one size")
        if is_deep:
            raise StudyError(f"{files.root}/{name}: more than 8 bits a channel; save it with 8 bits a channel")
    if True in turned:
        note(f"{files.root}: images are turned upright by their EXIF orientation, such as {turned[True]}")
    for mode in CONVERTED & modes.keys():
        note(f"{files.root}: {mode} is converted to RGB without its colour profile, such as {modes[mode]}")
    return next(iter(sizes)), "L" if modes.keys() <= GREY_MODES else "RGB", "/".join(sorted(lossy - {""}))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as far as it has been read; UPRIGHT if there is none or if EXIF is broken."""
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # a PNG's own method decodes pixels
    except Exception:
        return UPRIGHT
    return orientation if isinstance(orientation, int) and UPRIGHT <= orientation <= 8 else UPRIGHT


def _is_deep(image: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel, which Pillow cuts to 8 in colour images."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    arguments = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    if image.format == "PPM" and isinstance(arguments, tuple):  # mode, maximum
        return int(arguments[-1]) > 255
    return image.format == "PNG" and str(arguments).endswith("16B")


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


def _pixels(place: str, image: Image.Image, mode: str, size: tuple[int, int]) -> np.ndarray:
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # cameras put a preview behind a JPEG
        raise StudyError(f"{place}: several frames in one file; save each as an image")
    image.load()
    converted = image if _orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)
    if converted.size != size:  # the orientation is behind the pixels, where a PNG may have it
        raise StudyError(f"{place}: EXIF turns it from {image.width} x {image.height}; save it upright")
    if converted.has_transparency_data:
        converted = converted.convert("RGBA")
        if converted.getchannel("A").getextrema()[0] != 255:
            raise StudyError(f"{place}: not fully opaque; flatten it onto a background")
    return np.asarray(converted.convert(mode))
