"""Patches of scikit-learn's photographs: places, classes, and held-out patches that share no pixel with the others."""

import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.files import Paths, write_json
from pipeline.data import patches
from pipeline.data.dataset import Dataset, load_heldout, load_prepared, load_summary, save
from pipeline.data.row import Data
from pipeline.data.sources import glance, load, load_parts
from stages import Arguments, prepare
from tests.data.small import one_line

HEIGHT, WIDTH = 427, 640


def row_of(**keys: object) -> Data:
    return Data(source="photo_patches", **keys)


def parts_of(row: Data) -> tuple[Dataset, Dataset]:
    training, heldout = load_parts(row)
    assert heldout is not None
    return training, heldout


@cache
def photographs() -> Tensor:
    from sklearn.datasets import load_sample_images

    return torch.stack([torch.tensor(image) for image in load_sample_images().images])


def numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs whose pixels hold their number and place, so that a patch tells where it is from."""
    number, top, left = torch.meshgrid(torch.arange(2), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([number * 128 + top // 256 * 64 + left // 256, top % 256, left % 256], 1).to(torch.uint8)
    monkeypatch.setattr(patches, "_photographs", lambda: image)


def pixels(images: Tensor) -> Tensor:
    """The photograph, row and column of each pixel of numbered patches (N, 3, size, size): 3 times (N, size, size)."""
    coarse, top, left = images.int().unbind(1)
    return torch.stack([coarse // 128, coarse // 64 % 2 * 256 + top, coarse % 64 * 256 + left])


def corners(images: Tensor) -> list[tuple[int, ...]]:
    return [tuple(corner) for corner in pixels(images)[:, :, 0, 0].T.tolist()]


def covered(images: Tensor) -> Tensor:
    """Which pixels of the photographs any patch has: (2, 427, 640)."""
    found = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    found[tuple(pixels(images))] = True
    return found


def grid(size: int, stride: int) -> set[tuple[int, int, int]]:
    tops, lefts = (range(0, side - size + 1, stride) for side in (HEIGHT, WIDTH))
    return {(number, top, left) for number in range(2) for top in tops for left in lefts}


SIZES = [(16, 4), (32, 16), (17, 5), (1, 7), (64, 61), (427, 100)]


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_every_place_of_the_stride_gives_one_patch(monkeypatch: pytest.MonkeyPatch, size: int, stride: int) -> None:
    numbered(monkeypatch)
    images = load(row_of(size=size, stride=stride)).images
    found = corners(images)
    assert images.is_contiguous()
    assert len(found) == len(set(found)) and set(found) == grid(size, stride)
    inner = torch.arange(size, dtype=torch.int32)
    some = pixels(images[:500])
    _, down, across = some - some[:, :, :1, :1]
    assert down.equal(inner[:, None].expand_as(down)) and across.equal(inner.expand_as(across))
    assert found != sorted(found)


def test_patches_are_those_of_the_photographs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(row_of())
    places = patches._places(patches._photographs(), row_of())
    assert dataset.images.shape == (len(places), 3, 16, 16) == (32342, 3, 16, 16) and dataset.lossy == "JPEG"
    assert dataset.images.dtype == torch.uint8 and dataset.images.is_contiguous()
    assert photographs().shape == (2, HEIGHT, WIDTH, 3)
    for image, (number, top, left) in zip(dataset.images[:2000], places[:2000].tolist(), strict=True):
        assert image.permute(1, 2, 0).equal(photographs()[number, top : top + 16, left : left + 16])


@pytest.mark.parametrize(("size", "stride"), [(16, 8), (32, 7), (17, 5), (150, 16)])
def test_classes_are_the_photograph_and_the_third_of_the_centre(
    monkeypatch: pytest.MonkeyPatch, size: int, stride: int
) -> None:
    numbered(monkeypatch)
    row = row_of(size=size, stride=stride, heldout=0.4)
    for dataset in (load(row), *parts_of(row)):
        assert dataset.labels is not None and dataset.labels.dtype == torch.int64 and len(dataset.classes) == 6
        for (number, top, _), label in zip(corners(dataset.images), dataset.labels.tolist(), strict=True):
            centre = (top + size / 2) / HEIGHT
            third = "top" if centre < 1 / 3 else "middle" if centre < 2 / 3 else "bottom"
            assert dataset.classes[label] == f"{('china', 'flower')[number]}, {third}"


@pytest.mark.parametrize(("size", "stride"), [(16, 8), (32, 16), (17, 11), (1, 19)])
@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_patches_lie_in_bands_and_share_no_pixel(
    monkeypatch: pytest.MonkeyPatch, size: int, stride: int, share: float, seed: int
) -> None:
    numbered(monkeypatch)
    row = row_of(size=size, stride=stride, heldout=share, heldout_seed=seed)
    training, heldout = parts_of(row)
    assert not (covered(training.images) & covered(heldout.images)).any()
    total = round(WIDTH * share)
    out = patches._bands(WIDTH, total, total // (2 * size), seed).tolist()
    expected: tuple[list[tuple[int, ...]], ...] = ([], [])
    for number, top, left in corners(load(row).images):
        columns = out[number][left : left + size]
        if all(columns) or not any(columns):
            expected[all(columns)].append((number, top, left))
    assert (corners(training.images), corners(heldout.images)) == expected


BANDS = [(128, 4), (128, 3), (384, 12), (627, 19), (639, 19), (640, 20), (13, 1), (0, 1)]


@pytest.mark.parametrize(("total", "count"), BANDS)
def test_each_section_has_one_band(total: int, count: int) -> None:
    for seed in range(5):
        out = patches._bands(WIDTH, total, count, seed)
        assert out.shape == (2, WIDTH) and out.dtype == torch.bool
        for photograph in out:
            columns = photograph.nonzero().flatten().tolist()
            assert len(columns) == total
            for i in range(count if total else 0):
                band = columns[total * i // count : total * (i + 1) // count]
                assert band == list(range(band[0], band[-1] + 1)) and len(band) in (total // count, total // count + 1)
                assert WIDTH * i / count - 2 < band[0] and band[-1] < WIDTH * (i + 1) / count


def test_the_seed_moves_each_band_uniformly() -> None:
    masks = torch.stack([patches._bands(WIDTH, 128, 4, seed) for seed in range(400)])
    starts = masks.nonzero()[::32, 2].reshape(400, 8) - 160 * torch.arange(4).repeat(2)
    assert starts.min() == 0 and starts.max() == 128  # uniform on 0 to 128, and independent
    assert starts.double().mean(0) == pytest.approx([64] * 8, abs=4 * 37.2 / 20)
    assert starts.double().std(0) == pytest.approx([37.2] * 8, rel=0.1)
    assert (starts.double().T.corrcoef() - torch.eye(8)).abs().max() < 4 / 20


def test_the_defaults_hold_out_four_bands_of_32_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(monkeypatch)
    training, heldout = parts_of(row_of(heldout=0.2, stride=1))
    assert len(heldout.images) == 2 * (HEIGHT - 15) * 4 * (32 - 15)
    for columns in covered(heldout.images).any(1):
        assert columns.reshape(4, 160).sum(1).tolist() == [32] * 4
    assert (covered(training.images) | covered(heldout.images)).double().mean() > 0.95


def test_the_same_row_gives_the_same_patches() -> None:
    row = row_of(heldout=0.2, limit=1000)
    first, again = load_parts(row), load_parts(row)
    other = load_parts(row_of(heldout=0.2, limit=1000, heldout_seed=3))
    assert [part.content_hash for part in first if part] == [part.content_hash for part in again if part]
    assert not {part.content_hash for part in first if part} & {part.content_hash for part in other if part}
    assert load(row_of()).content_hash == load(row_of(heldout=0.2, heldout_seed=1)).content_hash


@pytest.mark.parametrize("limit", [500, 1001, 25000])
def test_a_limit_takes_the_first_of_each_part(limit: int) -> None:
    training, heldout = parts_of(row_of(heldout=0.2))
    few, held = parts_of(row_of(heldout=0.2, limit=limit))
    assert len(held.images) == min(round(limit / 5), len(heldout.images))
    assert len(few.images) == limit - round(limit / 5)
    assert few.images.equal(training.images[: len(few.images)])
    assert held.images.equal(heldout.images[: len(held.images)])
    assert load(row_of(limit=limit)).images.equal(load(row_of()).images[:limit])
    counts = torch.bincount(few.labels, minlength=6) / len(few.images)  # a random sample, not the top rows
    assert (counts - 1 / 6).abs().max() < 4 * (5 / 36 / len(few.images)) ** 0.5 + 0.01


def test_a_large_limit_is_no_limit() -> None:
    for limited, part in zip(parts_of(row_of(heldout=0.2, limit=10**6)), parts_of(row_of(heldout=0.2)), strict=True):
        assert limited.content_hash == part.content_hash


def test_labels_false_drops_the_classes() -> None:
    for keys in ({}, {"heldout": 0.2}):
        for dataset, named in zip(load_parts(row_of(labels=False, **keys)), load_parts(row_of(**keys)), strict=True):
            if dataset is not None and named is not None:
                assert dataset.labels is None and dataset.classes == () and dataset.lossy == "JPEG"
                assert dataset.images.equal(named.images)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"heldout": 0.2},
        {"heldout": 0.3, "limit": 700, "size": 32, "stride": 9},
        {"limit": 50, "labels": False},
    ],
    ids=str,
)
def test_a_glance_tells_what_is_prepared(tmp_path: Path, keys: dict[str, object]) -> None:
    training, heldout = load_parts(row_of(**keys))
    save(training, tmp_path, heldout)
    summary = load_summary(tmp_path)
    assert glance(row_of(**keys)).items() <= summary.items() and summary["lossy"] == "JPEG"
    assert load_prepared(tmp_path).content_hash == training.content_hash
    assert (load_heldout(tmp_path) is None) == ("heldout" not in keys)


def test_the_stage_prepares_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = row_of(heldout=0.2, limit=1000)
    write_json(Paths("t").rows / "data.json", row.model_dump())
    prepare.main(Arguments("t"))
    assert "800 images of 3 x 16 x 16, 6 classes" in (said := capsys.readouterr().out)
    assert "; JPEG-compressed before; 200 more held out" in said
    found, parts = (load_prepared(Paths("t").data), load_heldout(Paths("t").data)), parts_of(row)
    assert [part and part.content_hash for part in found] == [part.content_hash for part in parts]


def test_a_loaded_data_set_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, row = load(Data(limit=300)), Data(limit=300, heldout=0.4)
    monkeypatch.setattr("pipeline.data.sources.load", lambda *_: pytest.fail("loaded again"))
    training, heldout = load_parts(row, loaded=dataset)
    assert heldout is not None and (len(training.images), len(heldout.images)) == (180, 120)
    held = load_parts(row_of(heldout=0.2), loaded=Dataset(torch.zeros(500, 3, 16, 16, dtype=torch.uint8), None))[1]
    assert held is not None and len(held.images) == 3605


BAD = {
    "a patch larger than the photographs": ({"size": 428}, "data.size: 428 pixels, .* 427 x 640; use at most 427"),
    "the same, with patches held out": ({"size": 500, "heldout": 0.2}, "data.size: 500 pixels"),
    "a band too narrow": (
        {"heldout": 0.02},
        "bands of 13 of 640 pixels hold 0 patches of 16 x 16 out and leave [0-9]+",
    ),
    "no band": ({"heldout": 1e-5}, "bands of 0 of 640 pixels hold 0 patches"),
    "the whole photograph": ({"heldout": 0.9999}, "bands of 32 of 640 pixels hold .* and leave 0 to train on"),
    "little room between bands": ({"heldout": 0.98}, "leave 0 to train on, but both need at least 100"),
    "few held out": ({"heldout": 0.2, "stride": 40}, "hold [0-9]+ patches .* out and leave [0-9]+ to train on"),
    "a limit that holds few out": (
        {"heldout": 0.2, "limit": 300},
        "bands of 32 of 640 pixels and limit 300 hold 60 patches .* leave 240 to",
    ),
    "a class of one side": (
        {"heldout": 0.5, "heldout_seed": 2, "size": 250, "stride": 1, "limit": 200},
        r"0.5 of the \d+ images of class .* leaves none",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_one_line(case: str) -> None:
    keys, cause = BAD[case]
    for call in (load_parts, glance):
        message = one_line(lambda call=call: call(row_of(**keys)))
        assert message.startswith(("data.heldout: ", "data.size: ")) and re.search(cause, message), message


@pytest.mark.parametrize("keys", [{"size": 32}, {"stride": 16}, {"size": 8, "stride": 8}])
@pytest.mark.parametrize("source", ["digits", "cifar10", "two_moons", "some/folder"])
def test_other_sources_are_not_cut_into_patches(source: str, keys: dict[str, int]) -> None:
    key = next(iter(keys))
    with pytest.raises(ValidationError, match=f"{key}: only photo_patches is cut into patches, not {source}; leave"):
        Data(source=source, **keys)
    assert Data(source=source, size=16, stride=4).size == 16


@pytest.mark.parametrize("keys", [{"size": 0}, {"stride": 0}, {"size": 1.5}, {"stride": True}])
def test_sizes_and_strides_are_whole_and_positive(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        row_of(**keys)
