"""Held-out images: a random share of each class, in a file of their own, which nothing that is trained reads."""

import ast
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.dataset import Dataset, load_heldout, load_prepared, load_summary, save
from pipeline.data.heldout import FEWEST, _chosen, equal_sets, equal_size, matched_part, split
from pipeline.data.points import COUNT
from pipeline.data.row import Data
from pipeline.data.sources import glance, load
from tests.data.small import images, one_line
from tests.imports import ROOT


def numbered(count: int, sizes: tuple[int, ...] = ()) -> Dataset:
    """Images that hold their own number in two pixels, in classes of these sizes, in no order."""
    place = torch.arange(count)
    pixels = torch.stack([place // 256, place % 256], 1).to(torch.uint8)[:, None, None]
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)) if sizes else None
    shuffled = labels[torch.randperm(count, generator=generator("test", count))] if labels is not None else None
    return Dataset(pixels, shuffled, tuple(f"class {k}" for k in range(len(sizes))), "JPEG")


def places(dataset: Dataset) -> list[int]:
    first, second = dataset.images[:, 0, 0].int().T
    return (256 * first + second).tolist()


def parts_of(dataset: Dataset, row: Data) -> tuple[Dataset, Dataset]:
    training, heldout = split(dataset, row)
    assert heldout is not None
    return training, heldout


SIZES = [(), (1000,), (334, 333, 333), (900, 97, 3), (0, 990, 10), (7,) * 140 + (20,)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("share", [0.11, 0.2, 0.5, 0.75])
def test_a_split_is_of_all_images_and_in_proportion(sizes: tuple[int, ...], share: float) -> None:
    dataset = numbered(1000, sizes)
    row = Data(heldout=share)
    try:
        training, heldout = parts_of(dataset, row)
    except StudyError as error:
        assert min(size for size in sizes if size) * share < 1.5, error
        return
    assert len(heldout.images) == round(1000 * share)
    assert sorted(places(training) + places(heldout)) == list(range(1000))
    assert all(places(part) == sorted(places(part)) for part in (training, heldout))
    for part in (training, heldout):
        assert (part.classes, part.lossy, part.labels is None) == (dataset.classes, "JPEG", not sizes)
        if dataset.labels is not None and part.labels is not None:
            assert part.labels.equal(dataset.labels[places(part)])
    if heldout.labels is not None:
        counts = torch.bincount(heldout.labels, minlength=len(sizes)).tolist()
        assert all(abs(count - share * size) < 1 for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("count", [1, 37, 500, 999])
def test_quotas_are_whole_and_the_largest_remainders_are_rounded_up(sizes: tuple[int, ...], count: int) -> None:
    labels = numbered(1000, sizes or (1000,)).labels
    assert labels is not None
    chosen = _chosen(labels, count, generator("test"))
    assert len(set(chosen.tolist())) == len(chosen) == count
    own, sizes_found = torch.bincount(labels[chosen], minlength=len(sizes)), torch.bincount(labels)
    quotas = sizes_found.double() * count / 1000
    assert ((own - quotas).abs() < 1).all()
    more = own > quotas.floor() + 1e-9
    remainders = quotas - quotas.floor()
    if more.any() and (~more).any():
        assert remainders[more].min() >= remainders[~more & (own < sizes_found)].max() - 1e-9


def test_the_choice_depends_on_the_seed_alone() -> None:
    dataset = numbered(1000, (600, 400))
    first, again, other = (places(parts_of(dataset, Data(heldout=0.2, heldout_seed=s))[1]) for s in (0, 0, 1))
    assert first == again and 20 < len(set(first) & set(other)) < 70  # 40 on average
    assert set(first) != set(range(200))


def test_every_image_is_held_out_equally_often() -> None:
    dataset, counts = numbered(500, (300, 200)), torch.zeros(500)
    for seed in range(200):
        counts[places(parts_of(dataset, Data(heldout=0.25, heldout_seed=seed))[1])] += 1
    assert counts.sum() == 200 * 125
    assert float(counts.std()) == pytest.approx((200 * 0.25 * 0.75) ** 0.5, rel=0.15)


def test_without_a_share_the_prepared_data_are_as_they_were(tmp_path: Path) -> None:
    dataset = load(Data(limit=300))
    training, heldout = split(dataset, Data(limit=300))
    assert training is dataset and heldout is None
    save(training, tmp_path, heldout)
    assert {path.name for path in tmp_path.iterdir()} == {"images.safetensors", "summary.json"}
    assert load_summary(tmp_path) == dataset.summary() and load_heldout(tmp_path) is None


@pytest.mark.parametrize("labels", [True, False])
def test_prepared_data_are_the_training_images(tmp_path: Path, labels: bool) -> None:
    row = Data(limit=700, labels=labels, heldout=0.3)
    training, heldout = parts_of(load(row), row)
    save(training, tmp_path, heldout)
    again, unseen = load_prepared(tmp_path), load_heldout(tmp_path)
    assert unseen is not None and unseen.images.equal(heldout.images) and again.images.equal(training.images)
    assert unseen.content_hash == heldout.content_hash != again.content_hash == training.content_hash
    summary = load_summary(tmp_path)
    own = {"heldout": 210, "heldout_hash": heldout.content_hash}
    assert summary == training.summary() | own and summary["count"] == 490
    assert glance(row).items() <= summary.items()


@pytest.mark.parametrize("name", ["images.safetensors", "heldout.safetensors"])
def test_a_changed_file_is_one_line(tmp_path: Path, name: str) -> None:
    training, heldout = parts_of(numbered(500), Data(heldout=0.4))
    save(training, tmp_path, heldout)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    read = load_prepared if name.startswith("images") else load_heldout
    assert "differs from the content hash in summary.json" in one_line(lambda: read(tmp_path))


def test_points_are_held_out_alike() -> None:
    row = Data(source="spiral", heldout=0.2)
    training, heldout = parts_of(load(row), row)
    assert (len(training.images), len(heldout.images)) == (COUNT - round(COUNT / 5), round(COUNT / 5))


def test_a_limit_comes_before_the_split() -> None:
    row = Data(limit=600, heldout=0.25)
    whole, (training, heldout) = load(row), parts_of(load(row), row)
    assert (len(whole.images), len(training.images), len(heldout.images)) == (600, 450, 150)


def test_a_folder_is_counted_without_its_held_out_images(tmp_path: Path) -> None:
    images(tmp_path / "set", count=500)
    row = Data(source=str(tmp_path / "set"), heldout=0.2)
    assert (glance(row)["count"], glance(row)["heldout"]) == (400, 100)
    assert "data.heldout: 0.1 of 500 images" in one_line(lambda: glance(row.model_copy(update={"heldout": 0.1})))


BAD = {
    "few held out": (numbered(1000), 0.05, "0.05 of 1000 images is 50 and leaves 950 to train on, but both need at"),
    "few to train on": (numbered(1000), 0.95, "0.95 of 1000 images is 950 and leaves 50 to train on"),
    "few in all": (numbered(2 * FEWEST - 1), 0.5, f"both need at least {FEWEST}; add images, or write heldout: 0"),
    "a class all in training": (
        numbered(1000, (998, 2)),
        0.2,
        "of the 2 images of class 'class 1' leaves none held",
    ),
    "a class all held out": (
        numbered(1000, (998, 2)),
        0.8,
        "of the 2 images of class 'class 1' leaves none to train",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_too_few_images_are_one_line(case: str) -> None:
    dataset, share, cause = BAD[case]
    message = one_line(lambda: split(dataset, Data(heldout=share)))
    assert message.startswith("data.heldout: ") and cause in message and "write heldout: 0" in message


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("size", [100, 240, 500])
def test_every_stretch_of_a_part_is_in_proportion(sizes: tuple[int, ...], size: int) -> None:
    dataset = numbered(1000, sizes)
    part = matched_part(dataset, size)
    assert part is not None and len(set(part.tolist())) == len(part) == size and part.tolist() != sorted(part.tolist())
    if dataset.labels is not None:
        quotas = torch.bincount(dataset.labels[part], minlength=len(sizes))
        assert all(abs(n - whole * size / 1000) < 1 for n, whole in zip(quotas.tolist(), sizes, strict=True))
        for stretch in dataset.labels[part].split(size // 20):
            counts = torch.bincount(stretch, minlength=len(sizes))
            assert ((counts - quotas * len(stretch) / size).abs() < 2).all()


@pytest.mark.parametrize(("share", "size"), [(0.2, 200), (1 / 3, 333), (0.4, 300), (0.8, 100)])
def test_sets_to_compare_are_equally_large_and_leave_images_to_an_extractor(share: float, size: int) -> None:
    training, heldout = parts_of(numbered(1000, (500, 500)), Data(heldout=share))
    found, matched = equal_sets(training, heldout)
    assert found is not None and matched is not None and len(found) == len(matched) == size
    assert equal_size(len(training.images), len(heldout.images)) == size <= len(training.images) / 2
    assert set(places(Dataset(found, None))) <= set(places(heldout))
    assert equal_sets(training, None) == (None, None) and matched_part(training, 0) is None


def test_only_what_measures_reads_held_out_images() -> None:
    """No other code names the function or the file, so that nothing that is trained or fitted can see them."""
    readers = set()
    for file in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [getattr(node, key, None) for key in ("id", "attr", "name", "value")]
            if {"load_heldout", "heldout.safetensors"} & {name for name in names if isinstance(name, str)}:
                readers.add(str(file.relative_to(ROOT)))
    assert readers == {
        "pipeline/data/dataset.py",
        "stages/reconstruct.py",
        "stages/reference.py",
        "stages/likelihood.py",
        "stages/given.py",
    }
