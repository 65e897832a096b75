"""Data sets: built-in ones, folders and zips, their labels, the [-1, 1] range, and one clear line for bad input."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_json
from pipeline.common.fingerprint import fingerprint
from pipeline.data.dataset import Dataset, load_prepared, load_summary, save, to_hash, to_range, to_uint8
from pipeline.data.listing import BUILT_IN
from pipeline.data.row import Data
from pipeline.data.sources import SOURCES, load
from stages import Arguments, prepare

REPOSITORY = Path(__file__).resolve().parents[2]


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


PACKERS = {
    "folder": lambda tmp_path, files: folder_of(tmp_path / "set", files),
    "zip": lambda tmp_path, files: zip_of(tmp_path / "set.zip", files),
}


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Packs files by name into a folder or into a zip: what holds for one holds for the other."""
    return lambda files: PACKERS[request.param](tmp_path, files)


def test_digits_are_what_scikit_learn_ships() -> None:
    from sklearn.datasets import load_digits

    digits = load(Data())
    summary = digits.summary()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert digits.labels is not None and digits.labels.dtype == torch.int64
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.classes == tuple("0123456789")
    assert summary["class_counts"]["0"] == 178 and sum(summary["class_counts"].values()) == 1797
    source = load_digits()
    assert digits.labels.tolist() == source.target.tolist()
    assert np.array_equal(np.rint(digits.images[:, 0].numpy() * (16 / 255)), source.images)


def test_names_of_built_in_sources_are_known_without_loading_them() -> None:
    assert set(BUILT_IN) == set(SOURCES)


@pytest.mark.parametrize("limit", [None, 2, 100])
def test_moments_equal_those_of_the_scaled_pixels(limit: int | None) -> None:
    dataset = load(Data(limit=limit))
    scaled = dataset.images.numpy().astype(np.float64) / 127.5 - 1
    assert dataset.summary()["sigma_data"] == pytest.approx(scaled.std(), rel=1e-12)
    assert dataset.summary()["mean"] == pytest.approx(scaled.mean(), rel=1e-12)
    assert to_range(dataset.images).double().std(correction=0).item() == pytest.approx(scaled.std(), rel=1e-6)


def test_sigma_data_of_two_values_is_half_their_distance() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 4, 5)
    assert Dataset(images, None).summary()["sigma_data"] == 1
    assert Dataset(images, None).summary()["mean"] == 0


def test_limit_takes_a_prefix_and_labels_false_drops_the_classes() -> None:
    whole, part, bare = load(Data()), load(Data(limit=20)), load(Data(limit=20, labels=False))
    assert whole.labels is not None and part.labels is not None
    assert torch.equal(part.images, whole.images[:20]) and torch.equal(part.labels, whole.labels[:20])
    assert torch.equal(bare.images, part.images) and bare.labels is None and bare.classes == ()
    assert bare.summary()["class_counts"] == {}
    assert len(load(Data(limit=10**6)).images) == 1797


def test_class_folders_give_sorted_labels(pack: Callable) -> None:
    names = ["ant/1.png", "ant/deep/er/2.PNG", "bee/0.png", "cat/9.png"]
    dataset = loaded(pack({name: png(seed) for seed, name in enumerate(names)}))
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.images.shape == (4, 3, 4, 6) and dataset.images.is_contiguous()
    for i in range(4):
        assert np.array_equal(dataset.images[i].numpy(), pixels(i).transpose(2, 0, 1))


def test_flat_images_are_unlabelled(pack: Callable) -> None:
    dataset = loaded(pack({"b.png": png(0), "a.png": png(1)}))
    assert dataset.labels is None and dataset.classes == ()
    assert dataset.summary()["classes"] == []


def test_a_folder_is_read_sorted_and_a_zip_in_its_own_order(tmp_path: Path) -> None:
    files = {name: png(seed) for seed, name in enumerate(["b/1.png", "a/1.png", "b/0.png"])}
    folder, archive = loaded(folder_of(tmp_path / "set", files)), loaded(zip_of(tmp_path / "set.zip", files))
    assert folder.labels is not None and folder.labels.tolist() == [0, 1, 1]
    assert archive.labels is not None and archive.labels.tolist() == [1, 0, 1]
    assert torch.equal(folder.images, archive.images[[1, 2, 0]])


def test_hidden_and_other_files_are_ignored(pack: Callable) -> None:
    images = {"a/0.png": png(0), "b/0.png": png(1)}
    ignored = {"a/.0.png": b"", ".git/x.png": b"", "__MACOSX/a/._0.png": b"", "notes.txt": b"", "a/Thumbs.db": b""}
    dataset = loaded(pack(images | ignored))
    assert len(dataset.images) == 2 and dataset.classes == ("a", "b")


@pytest.mark.parametrize("classes", [None, ["x", "y", "z"]])
def test_dataset_json_overrules_folders_in_any_order(pack: Callable, classes: list[str] | None) -> None:
    files = {f"00000/{i}.png": png(i) for i in range(3)}
    labels = [["00000/2.png", 0], ["00000/0.png", 2], ["00000/1.png", 0]]
    dataset = loaded(pack({"dataset.json": listing(labels, **({"classes": classes} if classes else {}))} | files))
    assert dataset.labels is not None and dataset.labels.tolist() == [2, 0, 0]
    assert dataset.classes == (tuple(classes) if classes else ("0", "1", "2"))
    assert list(dataset.summary()["class_counts"].values()) == [2, 0, 1]


def test_dataset_json_may_say_that_there_are_no_labels(pack: Callable) -> None:
    dataset = loaded(pack({"00000/0.png": png(0), "00001/1.png": png(1), "dataset.json": listing(None)}))
    assert dataset.labels is None


def test_labels_false_reads_no_labels_at_all(pack: Callable) -> None:
    path = pack({"a/0.png": png(0), "1.png": png(1), "dataset.json": b"{broken"})
    assert loaded(path, labels=False).labels is None


def webp(seed: int, **options: object) -> bytes:
    return encoded(pixels(seed), "WEBP", **options)


def jpeg(seed: int) -> bytes:
    return encoded(pixels(seed), "JPEG")


def one_frame(still: bytes) -> bytes:
    """An animated WebP of one frame, the pixels of a still one. Pillow itself would save it as a still image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return kind + len(data).to_bytes(4, "little") + data

    width, height = ((side - 1).to_bytes(3, "little") for side in (6, 4))
    header = chunk(b"VP8X", b"\x02\0\0\0" + width + height) + chunk(b"ANIM", bytes(6))
    frame = chunk(b"ANMF", bytes(6) + width + height + bytes(3) + b"\0" + still[12:])
    return chunk(b"RIFF", b"WEBP" + header + frame)


def animated(**options: object) -> bytes:
    more = [Image.fromarray(pixels(seed)) for seed in (2, 3)]
    return encoded(pixels(1), "WEBP", save_all=True, append_images=more, **options)


TWO = {"save_all": True, "append_images": [Image.new("RGB", (3, 2))]}
STORED: dict[str, tuple[dict[str, bytes], str]] = {  # files, what the summary says of them
    "png": ({"0.png": png(0), "1.png": png(1)}, ""),
    "all jpeg": ({"0.jpg": jpeg(0), "1.jpg": jpeg(1)}, "JPEG"),
    "one jpeg": ({"0.png": png(0), "1.jpeg": jpeg(1)}, "JPEG"),
    "a jpeg that is called png": ({"0.png": png(0), "1.png": jpeg(1)}, "JPEG"),
    "a png that is called jpg": ({"0.jpg": png(0), "1.jpg": png(1)}, ""),
    "a jpeg with a preview": ({"0.png": png(0), "1.jpg": encoded(pixels(1), "MPO", **TWO)}, "JPEG"),
    "jpeg in a tiff": ({"0.png": png(0), "1.tif": encoded(pixels(1), "TIFF", compression="jpeg")}, "JPEG"),
    "a plain tiff": ({"0.png": png(0), "1.tif": encoded(pixels(1), "TIFF", compression="tiff_lzw")}, ""),
    "webp": ({"0.png": png(0), "1.webp": webp(1)}, "WebP"),
    "webp with a profile": ({"0.png": png(0), "1.webp": webp(1, icc_profile=b"odd")}, "WebP"),
    "lossless webp": ({"0.png": png(0), "1.webp": webp(1, lossless=True)}, ""),
    "lossless webp with a profile": ({"0.png": png(0), "1.webp": webp(1, lossless=True, icc_profile=b"VP8 ")}, ""),
    "webp of one frame": ({"0.png": png(0), "1.webp": one_frame(webp(1))}, "WebP"),
    "lossless webp of one frame": ({"0.png": png(0), "1.webp": one_frame(webp(1, lossless=True))}, ""),
    "both": ({"0.jpg": jpeg(0), "1.webp": webp(1)}, "JPEG/WebP"),
}


@pytest.mark.parametrize("case", STORED)
def test_images_that_were_stored_with_loss_are_told_by_their_format(pack: Callable, tmp_path: Path, case: str) -> None:
    files, lossy = STORED[case]
    summary = (dataset := loaded(pack(files))).summary()
    assert summary.get("lossy", "") == lossy and ("lossy" in summary) == bool(lossy)
    save(dataset, tmp_path / "prepared")
    assert load_prepared(tmp_path / "prepared").summary() == load_summary(tmp_path / "prepared") == summary


def test_an_animated_webp_of_one_frame_has_the_pixels_of_that_frame(pack: Callable) -> None:
    still, moving = (loaded(pack({"0.png": png(0), "1.webp": made})) for made in (webp(1), one_frame(webp(1))))
    assert torch.equal(still.images, moving.images)


def test_only_images_that_are_read_are_told_of(pack: Callable) -> None:
    assert "lossy" not in loaded(pack({"0.png": png(0), "1.png": png(1), "2.jpg": jpeg(2)}), limit=2).summary()


def test_the_hash_does_not_follow_how_pixels_were_stored(tmp_path: Path) -> None:
    lossy = loaded(folder_of(tmp_path / "jpeg", {"0.jpg": jpeg(0), "1.jpg": jpeg(1)}))
    again = {f"{i}.png": encoded(image.permute(1, 2, 0).numpy()) for i, image in enumerate(lossy.images)}
    summary = loaded(folder_of(tmp_path / "png", again)).summary()
    assert lossy.summary() == summary | {"lossy": "JPEG"} and "lossy" not in summary


def test_the_stage_says_that_images_had_been_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder_of(tmp_path, {"set/0.jpg": jpeg(0), "set/1.jpg": jpeg(1)}))
    row = {"build/small/rows/data.json": json.dumps({"source": "set", "limit": None, "labels": True}).encode()}
    folder_of(tmp_path, row)
    prepare.main(Arguments("small", ""))
    assert capsys.readouterr().out.endswith("; JPEG-compressed before\n")
    assert json.loads((tmp_path / "reports/small/metrics/prepare/data.json").read_text())["lossy"] == "JPEG"


def test_limit_leaves_the_rest_undecoded(pack: Callable) -> None:
    dataset = loaded(pack({"0.png": png(0), "1.png": png(1), "2.png": b"not an image"}), limit=2)
    assert len(dataset.images) == 2


def test_grey_images_stay_grey_until_one_is_coloured(tmp_path: Path) -> None:
    grey = {f"{i}.png": png(i, channels=1) for i in range(2)}
    alone = loaded(folder_of(tmp_path / "grey", grey))
    mixed = loaded(folder_of(tmp_path / "mixed", grey | {"2.png": png(2)}))
    assert alone.images.shape == (2, 1, 4, 6) and mixed.images.shape == (3, 3, 4, 6)
    assert np.array_equal(alone.images[0, 0].numpy(), pixels(0, channels=1))
    assert torch.equal(mixed.images[:2], alone.images.expand(2, 3, 4, 6))
    assert np.array_equal(mixed.images[2].numpy(), pixels(2).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "channels", "extension", "format"),
    [
        ("1", 1, "png", "PNG"),
        ("LA", 1, "png", "PNG"),
        ("L", 1, "pgm", "PPM"),
        ("RGB", 3, "ppm", "PPM"),
        ("RGB", 3, "bmp", "BMP"),
        ("RGB", 3, "tiff", "TIFF"),
        ("RGBA", 3, "png", "PNG"),
        ("P", 3, "png", "PNG"),
        ("P", 3, "gif", "GIF"),
    ],
)
def test_lossless_images_of_every_mode_keep_their_pixels(
    tmp_path: Path, mode: str, channels: int, extension: str, format: str
) -> None:
    images = [Image.fromarray(pixels(seed)).convert(mode) for seed in range(2)]
    dataset = loaded(folder_of(tmp_path, {f"{i}.{extension}": encoded(im, format) for i, im in enumerate(images)}))
    for image, tensor in zip(images, dataset.images, strict=True):
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(4, 6, channels)
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), expected)


def test_range_round_trip_is_exact_for_every_value() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    scaled = to_range(values)
    assert scaled.dtype == torch.float32 and (scaled[0], scaled[255]) == (-1, 1)
    assert torch.equal(to_uint8(scaled), values)
    assert torch.equal(to_uint8(scaled.double()), values)


def test_to_uint8_clamps_and_rounds() -> None:
    x = torch.tensor([-torch.inf, -1.5, -1, 0, 0.003, 1, 7, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


def test_to_range_refuses_what_may_be_scaled_already() -> None:
    with pytest.raises(TypeError, match="uint8"):
        to_range(torch.zeros(2))


def test_hash_follows_pixels_labels_names_and_nothing_else(tmp_path: Path) -> None:
    base = {"a/0.png": png(0), "b/1.png": png(1)}
    variants = {
        "base": base,
        "pixel": base | {"b/1.png": png(2)},
        "label": {"a/0.png": png(0), "a/1.png": png(1), "b/2.png": png(1)},
        "class name": {"a/0.png": png(0), "c/1.png": png(1)},
        "unlabelled": {"0.png": png(0), "1.png": png(1)},
    }
    hashes = {k: loaded(folder_of(tmp_path / k, v)).summary()["content_hash"] for k, v in variants.items()}
    assert len(set(hashes.values())) == len(variants)
    other_files = folder_of(tmp_path / "again", {"a/x.bmp": encoded(pixels(0), "BMP"), "b/y.png": png(1)})
    assert loaded(other_files).summary()["content_hash"] == hashes["base"]
    relabelled = Dataset(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    swapped = Dataset(relabelled.images, torch.tensor([1, 0]), ("a", "b"))
    assert relabelled.summary()["content_hash"] != swapped.summary()["content_hash"]


@pytest.mark.parametrize("labels", [True, False])
def test_save_and_load_round_trip(tmp_path: Path, labels: bool) -> None:
    dataset = load(Data(limit=30, labels=labels))
    save(dataset, tmp_path)
    again = load_prepared(tmp_path)
    assert torch.equal(again.images, dataset.images) and again.images.dtype == torch.uint8
    assert again.classes == dataset.classes
    assert labels == (again.labels is not None)
    if dataset.labels is not None and again.labels is not None:
        assert torch.equal(again.labels, dataset.labels) and again.labels.dtype == torch.int64
    assert load_summary(tmp_path) == dataset.summary() == again.summary()
    assert sorted(os.listdir(tmp_path)) == ["images.safetensors", "summary.json"]


def test_images_are_hashed_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(load(Data(limit=30)), tmp_path)
    hashed: list[object] = []
    sha256 = hashlib.sha256

    def spy(*content: object) -> object:
        hashed.extend(content)
        return sha256(*content)

    monkeypatch.setattr(hashlib, "sha256", spy)
    again = load_prepared(tmp_path)
    assert again.summary()["content_hash"] == again.content_hash != to_hash(again.images) and len(hashed) == 1
    before = to_hash(again.images)
    again.images[0] += 1
    assert to_hash(again.images) != before == to_hash(load_prepared(tmp_path).images)


def test_the_hash_of_images_does_not_depend_on_their_strides() -> None:
    images = load(Data(limit=30)).images
    assert to_hash(images.transpose(2, 3)) == to_hash(images.transpose(2, 3).contiguous()) != to_hash(images)
    assert to_hash(images) == Dataset(images, None).content_hash == load(Data(limit=30, labels=False)).content_hash


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(load(Data(limit=30)), tmp_path / name)
    for file in ("images.safetensors", "summary.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("file", "harm", "cause"),
    [
        ("images.safetensors", Path.unlink, "missing"),
        ("images.safetensors", truncate, "broken"),
        ("images.safetensors", lambda path: path.write_bytes(b""), "broken"),
        ("images.safetensors", flip_last_byte, "differs from the content hash"),
        ("summary.json", Path.unlink, "missing"),
        ("summary.json", truncate, "not valid JSON"),
        ("summary.json", lambda path: path.write_text("[]"), "not a data summary"),
    ],
)
def test_harmed_preparations_are_refused(tmp_path: Path, file: str, harm: Callable, cause: str) -> None:
    save(load(Data(limit=30)), tmp_path)
    harm(tmp_path / file)
    with pytest.raises(StudyError) as caught:
        load_prepared(tmp_path)
    assert str(tmp_path / file) in str(caught.value) and cause in str(caught.value)


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def see_through() -> Image.Image:
    image = Image.fromarray(pixels(1)).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 254))
    return image


FINE = {"0.png": png(0)}
PAIR = {"0.png": png(0), "1.png": png(1)}
NESTED = {"a/0.png": png(0), "b/1.png": png(1)}
DAMAGED = encoded(pixels(1, 40, 60), "JPEG")
FRAMES = encoded(Image.fromarray(pixels(1)), "GIF", save_all=True, append_images=[Image.fromarray(pixels(2))])

BAD: dict[str, tuple[dict[str, bytes], str, str]] = (
    {  # files, the place below the source, the cause
        "empty": ({}, "", "no images"),
        "no images": ({"a.txt": b"x", ".b.png": png(0)}, "", "no images"),
        "one image": (FINE, "", "1 images in it; at least 2"),
        "not an image": (FINE | {"1.png": b"hello"}, "/1.png", "cannot be read as an image"),
        "no bytes": (FINE | {"1.png": b""}, "/1.png", "cannot be read as an image"),
        "truncated png": (FINE | {"1.png": png(1)[:-30]}, "/1.png", "cannot be read as an image"),
        "truncated jpeg": (
            {"0.jpg": DAMAGED, "1.jpg": DAMAGED[: len(DAMAGED) // 2]},
            "/1.jpg",
            "cannot be read as an image; mend or remove it (OSError: image file is truncated",
        ),
        "bomb": (FINE | {"1.png": bomb()}, "/1.png", "DecompressionBombError"),
        "sizes": (FINE | {"1.png": png(1, 6, 4)}, "", "0.png is 6 x 4, but 1.png is 4 x 6"),
        "16 bits": (
            FINE | {"1.png": encoded(pixels(1, channels=1).astype(np.uint16) * 257)},
            "/1.png",
            "8 bits a channel",
        ),
        "alpha": (FINE | {"1.png": encoded(see_through())}, "/1.png", "not fully opaque"),
        "transparent colour": (
            FINE | {"1.png": encoded(np.zeros((4, 6, 3), np.uint8), transparency=(0, 0, 0))},
            "/1.png",
            "not fully opaque",
        ),
        "frames": (FINE | {"1.gif": FRAMES}, "/1.gif", "several frames"),
        "animated webp": (FINE | {"1.webp": animated()}, "/1.webp", "several frames"),
        "lossless animated webp": (FINE | {"1.webp": animated(lossless=True)}, "/1.webp", "several frames"),
        "mixture": (FINE | NESTED, "", "0.png lies beside class folders such as a"),
        "constant": ({f"{i}.png": encoded(np.full((4, 6), 7, np.uint8)) for i in range(2)}, "", "sigma_data = 0"),
        "broken json": (PAIR | {"dataset.json": b'{"labels": ['}, "/dataset.json", "not valid JSON"),
        "not utf-8": (PAIR | {"dataset.json": b"\xff\xfe\xff"}, "/dataset.json", "not valid JSON"),
        "json list": (PAIR | {"dataset.json": b"[]"}, "/dataset.json", 'needs {"labels"'),
        "no labels key": (PAIR | {"dataset.json": b"{}"}, "/dataset.json", 'needs {"labels"'),
        "labels no list": (PAIR | {"dataset.json": listing(3)}, "/dataset.json", "not a pair"),
        "no pair": (PAIR | {"dataset.json": listing(["0.png", "1.png"])}, "/dataset.json", "not a pair"),
        "missing image": (
            PAIR | {"dataset.json": listing([["0.png", 0], ["1.png", 0], ["2.png", 0]])},
            "/dataset.json",
            "labels 2.png, which is not among the images",
        ),
        "missing label": (PAIR | {"dataset.json": listing([["0.png", 0]])}, "/dataset.json", "1.png has no label"),
        "labelled twice": (
            PAIR | {"dataset.json": listing([["0.png", 0], ["0.png", 1]])},
            "/dataset.json",
            "0.png is labelled twice",
        ),
        "class list": (PAIR | {"dataset.json": listing([], classes=["a", "a"])}, "/dataset.json", "different names"),
        "class names": (PAIR | {"dataset.json": listing([], classes={"a": 0})}, "/dataset.json", "different names"),
        "nested json": (NESTED | {"a/dataset.json": listing(None)}, "/a/dataset.json", "not at the top level"),
    }
    | {
        f"label {label!r}": (
            PAIR | {"dataset.json": listing([["0.png", 0], ["1.png", label]], classes=["a", "b"])},
            "/dataset.json",
            f"label out of range: 1.png has {label!r}; valid: 0 to 1",
        )
        for label in (2, -1, 1.0, True, None, "a", [0, 1])
    }
)


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_where_and_what(pack: Callable, case: str) -> None:
    files, place, cause = BAD[case]
    path = pack(files)
    path.mkdir(exist_ok=True) if path.suffix != ".zip" else None
    message = one_line(lambda: loaded(path))
    assert f"{path}{place}:" in message and cause in message


def test_labels_without_class_names_stay_below_the_number_of_images(pack: Callable) -> None:
    path = pack(PAIR | {"dataset.json": listing([["0.png", 0], ["1.png", 10**12]])})
    assert "label out of range: 1.png has 1000000000000" in one_line(lambda: loaded(path))


def test_a_limit_below_two_and_unknown_keys_are_refused() -> None:
    for wrong in ({"limit": 1}, {"limit": 0}, {"source": ""}, {"sauce": "digits"}, {"labels": "perhaps"}):
        with pytest.raises(ValidationError):
            Data(**wrong)


@pytest.mark.parametrize("source", ["digts", "no/such/folder", "no/such.zip"])
def test_a_source_that_does_not_exist_names_the_choices(source: str) -> None:
    message = one_line(lambda: load(Data(source=source)))
    assert (
        repr(source) in message and "no folder, no .zip file" in message and "valid: checkerboard, cifar10, " in message
    )
    assert ("did you mean 'digits'?" in message) == (source == "digts")


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"x")
    assert "set.tar' is no folder, no .zip file" in one_line(lambda: loaded(tmp_path / "set.tar"))


def test_a_zip_that_is_broken_is_refused(tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "set.zip", PAIR).read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        (tmp_path / "set.zip").write_bytes(content)
        message = one_line(lambda: loaded(tmp_path / "set.zip"))
        assert message.startswith(f"{tmp_path / 'set.zip'}: not a readable zip archive")


def test_a_zip_member_whose_checksum_fails_is_refused(tmp_path: Path) -> None:
    raw = encoded(pixels(1), "BMP")  # has no checksum of its own
    path = zip_of(tmp_path / "set.zip", FINE | {"1.bmp": raw})
    path.write_bytes(path.read_bytes().replace(raw, raw[:-1] + bytes([raw[-1] ^ 1])))
    message = one_line(lambda: loaded(path))
    assert f"{path}/1.bmp: cannot be read" in message and "CRC" in message


def test_nothing_is_extracted_from_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    zip_of(Path("set.zip"), {"a/0.png": png(0), "a/1.png": png(1), "../out.png": png(2)})
    assert len(loaded(Path("set.zip")).images) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "set.zip"]


def test_the_stage_prepares_and_a_bad_source_leaves_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tmp_path / "build/small/rows/data.json"
    row.parent.mkdir(parents=True)
    row.write_text(json.dumps({"source": "digits", "limit": 50, "labels": True}))
    monkeypatch.chdir(tmp_path)
    prepare.main(Arguments("small", ""))
    assert capsys.readouterr().out.startswith("digits: 50 images of 1 x 8 x 8, 10 classes, sigma_data 0.")
    summary = load_summary(tmp_path / "build/small/data")
    assert json.loads((tmp_path / "reports/small/metrics/prepare/data.json").read_text()) == summary
    assert summary == load(Data(limit=50)).summary()

    row.write_text(json.dumps({"source": "nowhere", "limit": None, "labels": True}))
    write_json(Paths("small").code("prepare"), fingerprint("stages.prepare"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "stages.prepare", "--name", "small"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    failed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: data.source: 'nowhere'") and len(failed.stderr.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_importing_the_module_is_light() -> None:
    code = "import sys, pipeline.data; print([m for m in ('sklearn', 'pandas', 'matplotlib') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "[]"
