"""Images of folders and zips: their formats and modes, those that were stored with loss, and one line for bad input."""

import io
import json
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.data.dataset import load_prepared, load_summary, save
from stages import Arguments, prepare
from tests.data.small import FINE, PAIR, encoded, folder_of, listing, loaded, one_line, pixels, png


def test_hidden_and_other_files_are_ignored(pack: Callable) -> None:
    images = {"a/0.png": png(0), "b/0.png": png(1)}
    ignored = {"a/.0.png": b"", ".git/x.png": b"", "__MACOSX/a/._0.png": b"", "notes.txt": b"", "a/Thumbs.db": b""}
    dataset = loaded(pack(images | ignored))
    assert len(dataset.images) == 2 and dataset.classes == ("a", "b")


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(header: bytes, rows: bytes) -> bytes:
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks.items())


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    return png_of(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"")


def see_through() -> Image.Image:
    image = Image.fromarray(pixels(1)).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 254))
    return image


def deep_png(colour: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write. colour: its colour type."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = (b"\0" + bytes(range(2 * channels * 6))) * 4
    return png_of(struct.pack(">IIBBBBB", 6, 4, 16, colour, 0, 0, 0), rows)


def deep_tiff() -> bytes:
    """A TIFF of 16 bits a channel in colour, uncompressed."""
    offset = 8 + 2 + 9 * 12 + 4
    tags = [(256, 3, 1, 6), (257, 3, 1, 4), (258, 3, 3, offset), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, offset + 6), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 144)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + bytes(144)


DEEP = {
    **{f"{colour}.png": deep_png(colour) for colour in (0, 2, 4, 6)},
    "colour.tif": deep_tiff(),
    "float.tif": encoded(Image.new("F", (6, 4)), "TIFF"),
    "integer.tif": encoded(Image.new("I", (6, 4)), "TIFF"),
    "big-endian.tif": encoded(Image.new("I;16B", (6, 4)), "TIFF"),
    "colour.ppm": b"P6 6 4 65535\n" + bytes(144),
    "10 bits.ppm": b"P6 6 4 1000\n" + bytes(144),
    "text.ppm": b"P3 6 4 1000\n" + b"5 " * 72,
    "grey.pgm": b"P5 6 4 65535\n" + bytes(48),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused_and_not_cut(tmp_path: Path, name: str) -> None:
    path = folder_of(tmp_path, {"a.png": png(0), f"b {name}": DEEP[name]})
    assert one_line(lambda: loaded(path)).startswith(f"{path}/b {name}: more than 8 bits a channel; save it with 8")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int, format: str
) -> None:
    stored = pixels(1) if orientation < 5 else pixels(1, 6, 4)
    content = encoded(stored, format, exif=exif(orientation), **({"lossless": True} if format == "WEBP" else {}))
    dataset = loaded(folder_of(tmp_path, {"0.png": png(0), f"1.{format.lower()}": content}))
    with Image.open(io.BytesIO(content)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(dataset.images[1].permute(1, 2, 0).numpy(), upright)
    line = f"note: {tmp_path}: images are turned upright by their EXIF orientation, such as 1.{format.lower()}\n"
    assert capsys.readouterr().err == (line if orientation > 1 else "")


def test_an_orientation_behind_the_pixels_is_applied_or_refused(tmp_path: Path) -> None:
    end = chunk(b"IEND", b"")
    behind = {o: png(1).removesuffix(end) + chunk(b"eXIf", exif(o).tobytes()[6:]) + end for o in (3, 6)}
    dataset = loaded(folder_of(tmp_path, {"0.png": png(0), "1.png": behind[3]}))
    assert np.array_equal(dataset.images[1].permute(1, 2, 0).numpy(), pixels(1)[::-1, ::-1])
    path = folder_of(tmp_path, {"1.png": behind[6]})
    assert "1.png: EXIF turns it from 6 x 4; save it upright" in one_line(lambda: loaded(path))


@pytest.mark.parametrize("broken", [b"Exif\0\0garbage", exif(0), exif(9)])
def test_a_broken_orientation_changes_nothing(tmp_path: Path, broken: bytes | Image.Exif) -> None:
    files = {"0.jpg": encoded(pixels(1), "JPEG"), "1.jpg": encoded(pixels(1), "JPEG", exif=broken)}
    images = loaded(folder_of(tmp_path, files)).images
    assert torch.equal(images[0], images[1])


def test_colours_that_rgb_cannot_keep_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cmyk = Image.fromarray(pixels(1)).convert("CMYK")
    dataset = loaded(folder_of(tmp_path, {"0.png": png(0), "1.tif": encoded(cmyk, "TIFF")}))
    assert np.array_equal(dataset.images[1].permute(1, 2, 0).numpy(), np.asarray(cmyk.convert("RGB")))
    assert (
        capsys.readouterr().err
        == f"note: {tmp_path}: CMYK is converted to RGB without its colour profile, such as 1.tif\n"
    )


OTHERS = {
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n%%EOF\n",
    "avif": encoded(pixels(1), "AVIF"),
    "icon": encoded(pixels(1), "ICO"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_are_not_opened_whatever_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    path = folder_of(tmp_path, {"0.png": png(0), "zz.png": OTHERS[case]})
    message = one_line(lambda: loaded(path))
    assert message == f"{path}/zz.png: {UNREADABLE} (UnidentifiedImageError: cannot identify image file)"


UNREADABLE = "cannot be read as an image; mend or remove it"


@pytest.mark.parametrize("place", [4, 12, 20, 100, -40])
def test_a_damaged_tiff_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], place: int) -> None:
    content = bytearray(encoded(pixels(1), "TIFF", compression="tiff_lzw"))
    content[place] ^= 0xFF
    path = folder_of(tmp_path, {"0.png": png(0), "1.tif": bytes(content)})
    assert f"1.tif: {UNREADABLE}" in one_line(lambda: loaded(path))
    assert capfd.readouterr().err == ""


def test_a_jfif_file_is_a_jpeg(pack: Callable) -> None:
    assert loaded(pack({"0.jfif": jpeg(0), "1.JFIF": jpeg(1)})).lossy == "JPEG"


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


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_where_and_what(pack: Callable, case: str) -> None:
    files, place, cause = BAD[case]
    path = pack(files)
    path.mkdir(exist_ok=True) if path.suffix != ".zip" else None
    message = one_line(lambda: loaded(path))
    assert f"{path}{place}:" in message and cause in message
