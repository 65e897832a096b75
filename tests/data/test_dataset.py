"""A data set: its moments, its hash, the [-1, 1] range, and its prepared files, which are refused where harmed."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.data.dataset import Dataset, load_prepared, load_summary, save, to_hash, to_range, to_uint8
from pipeline.data.row import Data
from pipeline.data.sources import load
from tests.data.small import encoded, folder_of, loaded, pixels, png


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
        hashed.extend(part for part in content if isinstance(part, memoryview))
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
        ("images.safetensors", truncate, "not as this study wrote it"),
        ("images.safetensors", lambda path: path.write_bytes(b""), "not as this study wrote it"),
        ("images.safetensors", flip_last_byte, "differs from the content hash"),
        ("summary.json", Path.unlink, "missing"),
        ("summary.json", truncate, "not as this study wrote it"),
        ("summary.json", lambda path: path.write_text("[]"), "not as this study wrote it"),
    ],
)
def test_harmed_preparations_are_refused(tmp_path: Path, file: str, harm: Callable, cause: str) -> None:
    save(load(Data(limit=30)), tmp_path)
    harm(tmp_path / file)
    with pytest.raises(StudyError) as caught:
        load_prepared(tmp_path)
    assert str(tmp_path / file) in str(caught.value) and cause in str(caught.value)
