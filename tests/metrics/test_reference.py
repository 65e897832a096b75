"""The reference: the same bytes again, a random order of all features, and a floor that halves of the images make."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.randomness import generator
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.metrics.estimate import BlockMoments
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.neighbours import nearest_squared
from pipeline.metrics.reference import (
    FLOOR_SPLITS,
    Reference,
    load_reference,
    make_reference,
    reference_of,
    save_reference,
)

METRICS = ["fd", "fd_corrected", "fd_infinity", "kd", "precision", "recall", "density", "coverage", "near_duplicates"]


def drawn(count: int, d: int = 6) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randn(count, d, generator=source) @ torch.randn(d, d, generator=source) + 1


def made(count: int = 200, logits: bool = True) -> Extracted:
    return Extracted(drawn(count), drawn(count, 4) if logits else None)


@cache
def content() -> bytes:
    return make_reference(made(), "e")[0]


def saved(folder: Path, found: Extracted) -> Reference:
    save_reference(make_reference(found, "e")[0], folder)
    return load_reference(folder)


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    features = drawn(201)
    again = saved(tmp_path, Extracted(features, None))
    fresh = reference_of(again.features)
    assert again.duplicate_distance == fresh.duplicate_distance
    assert again.moments.mean.equal(fresh.moments.mean) and again.moments.covariance.equal(fresh.moments.covariance)
    assert again.sums.rows.equal(fresh.sums.rows) and again.sums.squares.equal(fresh.sums.squares)
    assert again.sums.columns.allclose(fresh.sums.columns, rtol=1e-12)
    assert sorted(again.features.tolist()) == sorted(features.tolist()) and not again.features.equal(features)


def test_the_same_features_give_the_same_bytes(tmp_path: Path) -> None:
    (first, summary), (second, other) = make_reference(made(), "e"), make_reference(made(), "e")
    assert first == second and summary == other
    changed, _ = make_reference(made(), "e", seed=1)
    assert changed != first
    folders = [tmp_path / name for name in "abc"]
    for folder, content in zip(folders, (first, second, changed), strict=True):
        save_reference(content, folder)
    hashes = [load_reference(folder).hash for folder in folders]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("logits", [True, False])
def test_the_floor_is_what_halves_score_against_each_other(logits: bool) -> None:
    found = made(201, logits)
    _, summary = make_reference(found, "e")
    assert (summary["images"], summary["floor_images"], summary["floor_splits"]) == (201, 100, FLOOR_SPLITS)
    assert list(summary["floor"]) == METRICS + ["score"] * logits
    values: dict[str, list[float]] = {name: [] for name in summary["floor"]}
    for k in range(FLOOR_SPLITS):
        order = torch.randperm(201, generator=generator("floor", 0, k))
        one, other = found.features[order[:100]], reference_of(found.features[order[100:200]])
        blocks = BlockMoments(100, other.moments.mean)
        blocks.add(one)
        for name, e in other.estimates(one, blocks, found.logits[order[:100]] if logits else None).items():
            values[name].append(e.value)
        assert values["fd"][k] == pytest.approx(frechet_distance(one, other.features), rel=1e-8)
    for name, floor in summary["floor"].items():
        expected = torch.tensor(values[name], dtype=torch.float64)
        assert floor == pytest.approx({"mean": float(expected.mean()), "sd": float(expected.std())}, rel=1e-9), name


def test_the_floor_falls_in_proportion_to_the_count() -> None:
    """`fd` of m against m falls like 1 / m; `fd_corrected` keeps the half that the other side's draw makes."""
    small, large = (make_reference(Extracted(drawn(n), None), "e")[1] for n in (500, 2000))
    for name in ("fd", "fd_corrected"):
        means = [summary["floor"][name]["mean"] for summary in (small, large)]
        assert means[0] / means[1] == pytest.approx(4, rel=0.35), name
    halves, quarters = large["floor"]["fd_corrected"], large["quarter_fd_corrected"]
    assert large["quarter_images"] == 500
    assert quarters["mean"] / halves["mean"] == pytest.approx(2, rel=0.35)
    assert halves["mean"] / large["floor"]["fd"]["mean"] == pytest.approx(0.5, abs=0.15)


def test_real_images_are_not_far_from_real_images() -> None:
    floor = make_reference(Extracted(drawn(1000), None), "e")[1]["floor"]
    assert abs(floor["kd"]["mean"]) < 3 * floor["kd"]["sd"]
    assert floor["near_duplicates"]["mean"] == pytest.approx(0.05, abs=0.02)
    assert floor["density"]["mean"] == pytest.approx(1, abs=0.1)
    assert all(floor[name]["mean"] > 0.7 for name in ("precision", "recall", "coverage"))


def test_near_duplicates_are_nearer_than_95_in_100_real_images() -> None:
    reference = reference_of(drawn(400))
    own = nearest_squared(reference.features)[:, 0]
    assert int((own < reference.duplicate_distance).sum()) == 20


def test_too_few_images_are_refused() -> None:
    _, summary = make_reference(made(80), "e")
    assert summary["quarter_fd_corrected"] is None and make_reference(made(160), "e")[1]["quarter_fd_corrected"]
    with pytest.raises(StudyError, match=r"^79 real images are too few to measure against; at least 80$"):
        make_reference(made(79), "e")


def without(name: str) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        tensors, record = load_tensors(path, "reference")
        del tensors[name]
        save_tensors(path, tensors, "reference", record)

    return harm


HARMS: list[Any] = [
    partial(Path.write_bytes, data=b""),
    partial(Path.write_bytes, data=b"not a reference at all"),
    lambda path: path.write_bytes(path.read_bytes()[:-10]),
    lambda path: save_tensors(path, load_file(path), "features", {}),
    lambda path: save_tensors(path, load_file(path), "reference", {}),
    lambda path: save_tensors(path, load_file(path), "reference", []),
    *map(without, ["features", "mean", "covariance", "kernel_rows", "kernel_squares"]),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    save_reference(content(), tmp_path)
    harm(tmp_path / "reference.safetensors")
    with pytest.raises(StudyError, match=r"reference\.safetensors: not as this study wrote it") as caught:
        load_reference(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"reference\.safetensors: missing; `dvc repro` makes it"):
        load_reference(tmp_path)


def test_a_reference_of_another_extractor_is_refused(tmp_path: Path) -> None:
    content, summary = make_reference(made(), "e")
    save_reference(content, tmp_path)
    assert load_reference(tmp_path, "e").hash == summary["reference_hash"] == content_hash(content)
    assert summary["extractor_hash"] == "e"
    with pytest.raises(StudyError, match="made with another extractor than the present one"):
        load_reference(tmp_path, "other")


def test_a_reference_goes_to_a_device_as_a_whole() -> None:
    own, there = reference_of(drawn(60)), torch.device("meta")
    assert own.on(torch.device("cpu")) is own
    moved = own.on(there)
    tensors = [moved.features, moved.moments.mean, moved.moments.covariance, *vars(moved.sums).values()]
    assert {tensor.device for tensor in tensors} == {there}
    assert (moved.hash, moved.duplicate_distance) == (own.hash, own.duplicate_distance)
