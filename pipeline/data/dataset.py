"""Data sets -> uint8 images or points, labels and a summary; sole owner of the [-1, 1] range."""

import hashlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from tqdm import tqdm

from pipeline.common.errors import NotFinite, StudyError, nearest
from pipeline.common.files import content_hash, read_json, write_bytes, write_json
from pipeline.data import cifar10, points

ARCHIVE_SUFFIX = ".tar.gz"
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
GREY_MODES = frozenset({"1", "L", "LA", "La"})
DIVERGED = 1e6  # a sample that far out is none: its metrics would be of nothing but it

Read = Callable[[str], bytes]  # a file's content, by its path below the folder or in the zip
Labels = tuple[list[int] | None, tuple[str, ...]]  # a class index per image, or None; the classes' names


class Data(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """The `data` section: the data set. All its images have one size."""

    source: str = Field(default="digits", min_length=1)  # "./digits" is a folder of that name
    """digits, cifar10, two_moons, spiral, checkerboard, mixture, or a path: folder, .zip, CIFAR-10's .tar.gz."""
    limit: int | None = Field(default=None, ge=2)
    """Use only the first so many images; null: all."""
    labels: bool = True
    """Whether to read classes, from class folders or dataset.json."""


@dataclass(frozen=True)
class Dataset:
    """images: uint8 (N, C, H, W), C = 1 or 3, or points: float32 (N, 2), about in [-1, 1].

    labels: int64 (N,), indices into classes, or None where unlabelled. lossy: in which format images were stored that
    had changed their pixels, such as JPEG; empty for none. The content hash does not tell it.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    classes: tuple[str, ...] = ()
    lossy: str = ""

    def summary(self) -> dict[str, Any]:
        """Facts for JSON: sizes, classes, content hash; mean and sigma_data (population) of all values in [-1, 1].

        `lossy` is among them where it is so.
        """
        sizes = ("dimensions",) if is_points(self.images) else ("channels", "height", "width")
        shape = dict(zip(("count", *sizes), self.images.shape, strict=True))
        mean, sigma_data = _moments(self.images)
        counts = [] if self.labels is None else torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return shape | {
            "mean": mean,
            "sigma_data": sigma_data,
            "classes": list(self.classes),
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "content_hash": _hash(self),
            **({"lossy": self.lossy} if self.lossy else {}),
        }


def is_points(images: torch.Tensor) -> bool:
    """Whether these are points, (N, 2), and no images."""
    return images.ndim == 2


def to_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape -> float32 in [-1, 1]; points, float32 (N, 2), as they are.

    Raises TypeError on another type, which may be scaled already.
    """
    if is_points(images) and images.dtype == torch.float32:
        return images
    if images.dtype != torch.uint8:
        raise TypeError(f"to_range takes uint8 images, not {images.dtype}")
    return images.float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Floats of any shape -> uint8: clamped to [-1, 1], then rounded half to even. Inverts `to_range` exactly.

    NaN becomes an arbitrary value: whoever may have NaN checks for it first.
    """
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_data(x0: torch.Tensor) -> torch.Tensor:
    """Samples as data are: x0 (N, C, H, W) -> uint8, see `to_uint8`; points (N, 2) -> float32, wherever they lie.

    Raises NotFinite for a point so far out that its sampler has diverged.
    """
    if not is_points(x0):
        return to_uint8(x0)
    if len(x0) and not (far := float(x0.abs().max())) < DIVERGED:
        raise NotFinite(f"samples lie as far out as {far:.2g}: their sampler has diverged")
    return x0.float()


def load(row: Data, place: str = "data.source") -> Dataset:
    """The data set that `row` describes, in an order that depends on its content alone.

    A folder is read sorted by relative path, a zip in its stored order; a .tar.gz is CIFAR-10's or refused, and
    `cifar10` is downloaded once. Labels come from a top-level `dataset.json` ({"labels": [[name, class], ...] or null,
    "classes": [name, ...]}, "classes" being optional), else from top-level folders, one a class. A set with any colour
    image is RGB throughout. Raises StudyError on anything unusable, saying that it was named in `place`.
    """
    with _blame(place, f"{row.source!r} names no home folder"):
        path = Path(row.source).expanduser()
    if row.source in SOURCES:
        dataset = _part(SOURCES[row.source](), row)
    elif path.is_dir():
        dataset = _collect(path, _walk(path), lambda name: (path / name).read_bytes(), row)
    elif path.is_file() and path.suffix.lower() == ".zip":
        with _blame(path, "not a readable zip archive; make it again"):
            archive = zipfile.ZipFile(path)
        with archive:
            dataset = _collect(path, list(dict.fromkeys(archive.namelist())), archive.read, row)
    elif path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIX):
        dataset = _part(_cifar10(path), row)
    else:
        raise StudyError(f"{place}: {unknown_source(row.source)}")
    if _moments(dataset.images)[1] == 0:
        raise StudyError(f"{place}: {row.source}: all pixels are equal, so sigma_data = 0; use images that vary")
    return dataset


def unknown_source(source: str) -> str:
    """What is wrong with a source that is none, and which there are."""
    kinds = "no folder, no .zip file, no .tar.gz of CIFAR-10 and no built-in data set"
    return f"{source!r} is {kinds}; {nearest(source, SOURCES)}"


def _part(dataset: Dataset, row: Data) -> Dataset:
    """What `row` asks for of a data set that is there as a whole."""
    labels = dataset.labels[: row.limit] if row.labels and dataset.labels is not None else None
    return Dataset(dataset.images[: row.limit], labels, () if labels is None else dataset.classes)


def save(dataset: Dataset, folder: Path) -> None:
    """Write `images.safetensors` (images, labels) and `summary.json` into `folder`, each whole or not at all."""
    tensors = {"images": dataset.images}
    if dataset.labels is not None:
        tensors["labels"] = dataset.labels
    write_bytes(folder / "images.safetensors", to_safetensors(tensors))
    write_json(folder / "summary.json", dataset.summary())


def load_summary(folder: Path) -> dict[str, Any]:
    """What `Dataset.summary` said when `save` wrote `folder`. Raises StudyError where that is missing or broken."""
    summary = read_json(folder / "summary.json")
    if not isinstance(summary, dict) or not {"classes", "content_hash", "sigma_data"} <= summary.keys():
        raise StudyError(f"{folder / 'summary.json'}: not a data summary; delete it and run `dvc repro`")
    return summary


def shape_of(summary: dict[str, Any]) -> tuple[int, ...]:
    """(C, H, W) of a data set's images, or (2,) of its points, from its summary."""
    if "dimensions" in summary:
        return (summary["dimensions"],)
    return summary["channels"], summary["height"], summary["width"]


def described(shape: tuple[int, ...]) -> str:
    """What a data set of a shape holds: "images of 3 x 32 x 32", "points in 2 dimensions"."""
    return f"points in {shape[0]} dimensions" if len(shape) == 1 else f"images of {' x '.join(map(str, shape))}"


def load_prepared(folder: Path) -> Dataset:
    """What `save` wrote into `folder`. Raises StudyError where a file is missing, broken or not the one saved."""
    path = folder / "images.safetensors"
    summary = load_summary(folder)
    try:
        tensors = load_file(path)
        classes, lossy = tuple(summary["classes"]), summary.get("lossy", "")
        dataset = Dataset(tensors["images"], tensors.get("labels"), classes, lossy)
    except FileNotFoundError:
        raise StudyError(f"{path}: missing; `dvc repro` makes it") from None
    except (SafetensorError, KeyError, TypeError) as error:
        raise StudyError(f"{path}: broken ({error}); delete it and run `dvc repro`") from None
    if _hash(dataset) != summary["content_hash"]:
        raise StudyError(f"{path}: differs from the content hash in summary.json; delete it and run `dvc repro`")
    return dataset


def _moments(images: torch.Tensor) -> tuple[float, float]:
    """Mean and population standard deviation in [-1, 1], of images from the histogram in whole numbers: exact until
    the end, as the sum of points is."""
    if is_points(images):
        values = images.double().flatten().tolist()
        mean = math.fsum(values) / len(values)
        return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    histogram = torch.bincount(images.flatten(), minlength=256).tolist()
    n = sum(histogram)
    total = sum(value * count for value, count in enumerate(histogram))
    squares = sum(value * value * count for value, count in enumerate(histogram))
    return total / n / 127.5 - 1, math.sqrt((n * squares - total * total) / (n * n)) / 127.5


def _hash(dataset: Dataset) -> str:
    pixels = hashlib.sha256(dataset.images.numpy().data).hexdigest()  # reads the tensor's own memory
    labels = None if dataset.labels is None else dataset.labels.tolist()
    return content_hash(list(dataset.images.shape), pixels, labels, list(dataset.classes))


def to_hash(images: torch.Tensor) -> str:
    """A hash over images (N, C, H, W), uint8, in their order."""
    return _hash(Dataset(images.contiguous(), None))


@contextmanager
def _blame(place: object, cause: str) -> Iterator[None]:
    """One line for whatever a decoder raises on a bad file: PIL, zipfile and zlib share no base class."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(" ".join(f"{place}: {cause} ({type(error).__name__}: {error})".split())) from error


def _walk(root: Path) -> list[str]:
    """Every file below `root`, as sorted relative posix paths. Linked folders are followed."""

    def unreadable(error: OSError) -> None:
        raise StudyError(f"{error.filename}: cannot be listed ({error.strerror})")

    found = os.walk(root, followlinks=True, onerror=unreadable)
    return sorted((Path(folder) / file).relative_to(root).as_posix() for folder, _, files in found for file in files)


def _is_visible(name: str) -> bool:
    """Whether a file, by its path below the folder or in the zip, is neither hidden nor one that macOS adds."""
    return not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    """Whether `load` takes a file for an image, by its path below the folder or in the zip."""
    return name.lower().endswith(EXTENSIONS) and _is_visible(name)


def _collect(root: Path, files: list[str], read: Read, row: Data) -> Dataset:
    """The images among `files`, in that order."""
    visible, names = list(filter(_is_visible, files)), list(filter(is_image, files))
    if len(names) < 2:
        raise StudyError(f"{root}: {len(names) or 'no'} images in it; at least 2 are needed ({' '.join(EXTENSIONS)})")
    labels, classes = _find_labels(root, visible, names, read) if row.labels else (None, ())
    pixels, lossy = _decode(root, names[: row.limit], read)
    return Dataset(
        torch.from_numpy(pixels), None if labels is None else torch.tensor(labels[: row.limit]), classes, lossy
    )


def _find_labels(root: Path, visible: list[str], names: list[str], read: Read) -> Labels:
    if "dataset.json" in visible:
        with _blame(f"{root}/dataset.json", "not valid JSON"):
            listed = json.loads(read("dataset.json"))
        return _listed_labels(f"{root}/dataset.json", listed, names)
    if astray := [f for f in visible if f.endswith("/dataset.json")]:
        raise StudyError(f"{root}/{astray[0]}: not at the top level; pack or name the folder that holds it")
    tops = [PurePosixPath(name).parts[0] if len(PurePosixPath(name).parts) > 1 else "" for name in names]
    classes = tuple(sorted(set(tops) - {""}))
    if not classes:
        return None, ()
    if "" in tops:
        beside = f"{names[tops.index('')]} lies beside class folders such as {classes[0]}"
        raise StudyError(f"{root}: {beside}; put all images into class folders, or none, or set labels: false")
    index = {name: i for i, name in enumerate(classes)}
    return [index[top] for top in tops], classes


def _listed_labels(place: str, listed: Any, names: list[str]) -> Labels:
    if not isinstance(listed, dict) or "labels" not in listed:
        raise StudyError(f'{place}: needs {{"labels": [[name, class], ...]}} or {{"labels": null}}')
    pairs, classes = listed["labels"], listed.get("classes")
    if pairs is None:
        return None, ()
    is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if classes is not None and not (is_names and len(set(classes)) == len(classes)):
        raise StudyError(f'{place}: "classes" must be a list of different names')
    bound = len(names) if classes is None else len(classes)
    labels: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise StudyError(f'{place}: {str(pair)[:80]!r} in "labels" is not a pair [name, class]')
        name, label = pair
        if name in labels:
            raise StudyError(f"{place}: {name} is labelled twice")
        if type(label) is not int or not 0 <= label < bound:
            per = 'images, and no "classes"' if classes is None else 'names in "classes"'
            raise StudyError(
                f"{place}: label out of range: {name} has {label!r}; valid: 0 to {bound - 1} ({bound} {per})"
            )
        labels[name] = label
    if missing := [name for name in names if name not in labels]:
        raise StudyError(f"{place}: {missing[0]} has no label ({len(missing)} such images); label every image, or none")
    if absent := labels.keys() - set(names):
        raise StudyError(f"{place}: labels {min(absent)}, which is not among the images ({len(absent)} such names)")
    if classes is None:
        classes = [str(label) for label in range(max(labels.values()) + 1)]
    return [labels[name] for name in names], tuple(classes)


@contextmanager
def _opened(root: Path, name: str, read: Read) -> Iterator[Image.Image]:
    blame = _blame(f"{root}/{name}", "cannot be read as an image; mend or remove it")
    with blame, Image.open(io.BytesIO(read(name))) as image:
        yield image


def _decode(root: Path, names: list[str], read: Read) -> tuple[np.ndarray, str]:
    """uint8 (N, C, H, W), and the lossy formats. The headers are read first: so there is one array, allocated once."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        (width, height), mode, lossy = _survey(root, names, read)
        channels = len(mode)
        with _blame(root, f"{len(names)} images of {width} x {height} do not fit into memory; set a smaller limit"):
            pixels = np.empty((len(names), channels, height, width), np.uint8)
        for i, name in enumerate(tqdm(names, desc="decode", unit=" images", disable=None)):
            with _opened(root, name, read) as image:
                flat = _pixels(f"{root}/{name}", image, mode)
                pixels[i] = flat.reshape(height, width, channels).transpose(2, 0, 1)
    return pixels, lossy


def _survey(root: Path, names: list[str], read: Read) -> tuple[tuple[int, int], str, str]:
    """The one size (width, height) of all images, the mode to hold them in (L where all are grey, else RGB), and the
    lossy formats among them."""
    sizes: dict[tuple[int, int], str] = {}
    modes, lossy = set(), set()
    for name in names:
        with _opened(root, name, read) as image:
            sizes.setdefault(image.size, name)
            modes.add(image.mode)
            lossy.add(_lossy(image, name, read))
        if len(sizes) > 1:
            (a, first), (b, other) = sizes.items()
            differ = f"{first} is {a[0]} x {a[1]}, but {other} is {b[0]} x {b[1]}"
            raise StudyError(f"{root}: {differ}; resize all images to one size")
        if image.mode.startswith(("I", "F")):
            raise StudyError(f"{root}/{name}: pixels of mode {image.mode}; save it with 8 bits a channel")
    return next(iter(sizes)), "L" if modes <= GREY_MODES else "RGB", "/".join(sorted(lossy - {""}))


def _lossy(image: Image.Image, name: str, read: Read) -> str:
    """The format, whatever the file is called, where it changes pixels; else nothing."""
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg"):  # in a TIFF
        return "JPEG"
    return "WebP" if image.format == "WEBP" and _is_lossy_webp(read(name)) else ""


def _is_lossy_webp(content: bytes) -> bool:
    """Whether a WebP has a chunk "VP8 ": pixels without loss are in "VP8L" (RFC 9649, section 2)."""
    place = len("RIFF....WEBP")
    while place < len(content) and content[place : place + 4] != b"VP8 ":
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
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


def _digits() -> Dataset:
    """1797 grey 8 x 8 scans of handwritten digits (UCI, 1998), as scikit-learn ships them: values 0..16."""
    from sklearn.datasets import load_digits  # slow to import, and needed by one stage only

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return Dataset(torch.from_numpy(images), labels, tuple(str(name) for name in digits.target_names))


def _points(name: str) -> Dataset:
    drawn = points.draw(name)
    return Dataset(drawn.x.float(), drawn.labels, drawn.classes)


def _cifar10(path: Path | None = None) -> Dataset:
    return Dataset(*cifar10.read(path), cifar10.CLASSES)


SOURCES: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    **{name: partial(_points, name) for name in points.POINTS},
}
