"""The reference: the same bytes again, a random order of all features, and a floor that halves of the images make."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.special import stdtrit
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.randomness import generator
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.metrics.estimate import BlockMoments, Estimate, jackknife_error, moments
from pipeline.metrics.extractors.coordinates import COORDINATES_HASH
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.neighbours import near_duplicates, nearest_squared
from pipeline.metrics.reference import (
    FLOOR_SPLITS,
    Reference,
    load_reference,
    make_reference,
    reference_of,
    references_of,
    save_reference,
)
from pipeline.metrics.wasserstein import w2

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


def with_heldout(training: Tensor, heldout: Tensor, folder: Path, extractor: str = "e") -> Reference:
    """The reference whose matched part are the first of the training images."""
    matched = torch.arange(len(heldout))
    content, _ = make_reference(Extracted(training, None), extractor, heldout=Extracted(heldout, None), matched=matched)
    save_reference(content, folder)
    return load_reference(folder)


def estimates(reference: Reference, samples: Tensor) -> dict[str, Estimate]:
    blocks = BlockMoments(len(samples), reference.moments.mean)
    blocks.add(samples)
    return reference.estimates(samples, blocks, None)


UNSEEN = ["fd", "fd_corrected", "kd", "precision", "recall", "density", "coverage", "near_duplicates"]


def test_held_out_images_are_a_reference_like_any_other(tmp_path: Path) -> None:
    """The metrics against training images stay; those against others are the metrics against these images alone."""
    real, samples = drawn(650), drawn(900)[650:]
    training, heldout = real[:500], real[500:620]
    reference = with_heldout(training, heldout, tmp_path)
    found = estimates(reference, samples)
    plain = estimates(saved(tmp_path / "plain", Extracted(training, None)), samples)
    assert {name: found[name] for name in METRICS} == plain
    assert [*found] == METRICS + [f"{r}_{m}" for r in ("heldout", "matched") for m in UNSEEN] + [
        "gap_fd_corrected",
        "gap_near_duplicates",
    ]
    threshold = reference.others["heldout"].duplicate_distance
    sets = {"heldout": heldout, "matched": training[:120]}
    near = torch.cat([nearest_squared(part)[:, 0] for part in sets.values()])
    assert 0.03 < float((near <= threshold).double().mean()) <= 0.051
    alone = {n: estimates(replace(reference_of(own), duplicate_distance=threshold), samples) for n, own in sets.items()}
    bias, se = alone["heldout"]["fd"].value - alone["heldout"]["fd_corrected"].value, alone["heldout"]["fd"].se
    own = alone["matched"]  # its jackknife's bias and error are close to those against held-out images, which it gets
    assert abs(own["fd"].value - bias - own["fd_corrected"].value) < 0.1 * se < 0.2 * own["fd"].se
    own |= {"fd": Estimate(own["fd"].value, se), "fd_corrected": Estimate(own["fd"].value - bias, se)}
    for name, metric in product(sets, UNSEEN):
        assert found[f"{name}_{metric}"] == pytest.approx(alone[name][metric], rel=1e-9, abs=1e-12), metric


def test_the_error_of_a_gap_is_the_jackknife_over_both_sets(tmp_path: Path) -> None:
    """The gaps without a block of either set, from sets that are made without it."""
    real, samples = drawn(650), drawn(900)[650:]
    sets = real[500:623], real[:123]
    found = estimates(with_heldout(real[:500], sets[0], tmp_path), samples)
    threshold = load_reference(tmp_path).others["heldout"].duplicate_distance
    values: dict[str, list[float]] = {"fd_corrected": [], "near_duplicates": []}
    for block in range(20):
        kept = torch.arange(123) * 20 // 123 != block
        held, matched = (own[kept] for own in sets)
        values["fd_corrected"].append(frechet_distance(samples, held) - frechet_distance(samples, matched))
        shares = [near_duplicates(samples, own, threshold).value for own in (held, matched)]
        values["near_duplicates"].append(shares[0] - shares[1])
    for metric, own in values.items():
        gap = found[f"heldout_{metric}"].value - found[f"matched_{metric}"].value
        error = math.sqrt(19 * float(torch.tensor(own, dtype=torch.float64).var(correction=0)))
        assert found[f"gap_{metric}"] == pytest.approx((gap, error), rel=1e-6, abs=1e-12), metric
        assert error > 0


@pytest.mark.parametrize(("shift", "most"), [(0.0, 0.99), (0.3, 0.98)])
def test_what_knows_no_image_has_no_gap(shift: float, most: float) -> None:
    """About 95% of intervals of the gap contain 0 if held-out and training images have one distribution.

    About 98% if that of the samples is the same, too. The distance is then quadratic in the errors of the moments, and
    the jackknife overestimates the variance of such terms (Efron and Stein 1981).
    """
    inside, repeats, half = 0, 200, float(stdtrit(19, 0.975))
    for seed in range(repeats):
        source = torch.Generator().manual_seed(seed)
        samples, heldout, matched = torch.randn(3, 300, 16, generator=source)
        others = references_of(heldout, matched, "e")
        whole = moments((1 + shift) * samples + shift)
        held, own = (other._without_blocks(samples, whole)["fd_corrected"] for other in others.values())
        gap = frechet_distance(whole, heldout) - frechet_distance(whole, matched)
        inside += abs(gap) <= half * jackknife_error(held - own)
    assert 0.9 <= inside / repeats <= most


@pytest.mark.parametrize("far", [0.0, 1.0])
def test_the_error_of_a_gap_of_points_is_that_of_drawing_them(far: float) -> None:
    """The first-order error of the exact distance, against the scatter of gaps over draws of the real points."""
    samples, gaps, errors = 0.5 * torch.randn(200, 2, generator=generator("samples")) + far, [], []
    for seed in range(40):
        heldout, matched = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(seed))
        others = references_of(heldout, matched, COORDINATES_HASH)
        gaps.append(w2(samples, heldout).value - w2(samples, matched).value)
        apart = [other._without_blocks(samples, moments(samples))["w2"] for other in others.values()]
        errors.append(jackknife_error(apart[0] - apart[1]))
    ratio = torch.tensor(errors).square().mean().sqrt() / torch.tensor(gaps).square().mean().sqrt()
    assert 0.75 < float(ratio) < 1.35


def test_copies_have_a_gap(tmp_path: Path) -> None:
    """Samples near training images are nearer to these than to held-out ones, in every draw, and significantly."""
    copied = []
    for seed in range(10):
        source = torch.Generator().manual_seed(seed)
        real = torch.randn(1000, 4, generator=source)
        near = real[torch.randperm(800, generator=source)[:400]] + 0.01 * torch.randn(400, 4, generator=source)
        copied.append(estimates(with_heldout(real[:800], real[800:], tmp_path), near))
    assert sum(found["gap_near_duplicates"].value < -3 * found["gap_near_duplicates"].se for found in copied) >= 9
    assert sum(found["matched_near_duplicates"].value for found in copied) / 10 > 0.25 + 0.03
    assert 0.01 < sum(found["heldout_near_duplicates"].value for found in copied) / 10 < 0.1


def test_the_summary_has_the_scores_of_held_out_images() -> None:
    training, heldout = drawn(600)[:480], drawn(600)[480:]
    _, summary = make_reference(
        Extracted(training, None), "e", heldout=Extracted(heldout, None), matched=torch.arange(120)
    )
    _, plain = make_reference(Extracted(training, None), "e")
    found = summary.pop("heldout")
    assert summary | {"reference_hash": ""} == plain | {"reference_hash": ""}
    assert found["images"] == 120
    expected = estimates(reference_of(training), heldout)
    assert found["scores"]["kd"] == pytest.approx(expected["kd"]._asdict(), rel=1e-6)
    assert found["scores"].keys() == expected.keys()
