"""torchmetrics and torch-fidelity find the same as this study, and a wrong value of either side does not pass."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_json
from pipeline.common.sealed import save_json
from pipeline.common.tensors import save_tensors
from pipeline.metrics import agreement
from pipeline.metrics.agreement import TOLERANCE, compare, compare_curve, ours
from pipeline.metrics.reference import reference_of
from stages import Arguments
from stages import agreement as stage

PAIRS = {("torch-fidelity", m) for m in ("fd", "kd", "precision", "recall")} | {
    ("torchmetrics", m) for m in ("fd", "kd")
}
REAL = 150


def drawn(n: int, seed: int, d: int = 6) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    mix, shift = torch.randn(d, d, generator=source), torch.randn(d, generator=source)
    return torch.randn(n, d, generator=source) @ (torch.eye(d) + 0.3 * mix) + 0.3 * shift


REFERENCE = reference_of(drawn(REAL, 1))


@pytest.mark.parametrize("n", [REAL - 60, REAL, REAL + 70])
def test_the_libraries_agree(n: int) -> None:
    x = drawn(n, 2)
    rows = compare(x, ours(x, REFERENCE), REFERENCE)
    assert {(row["library"], row["metric"]) for row in rows} == PAIRS and len(rows) == len(PAIRS)
    assert all(row["difference"] <= 1e-6 for row in rows)
    assert all(0 < abs(row["theirs"]) < 1 for row in rows if row["metric"] in ("precision", "recall"))


def test_the_same_features_are_compared_alike_to_the_last_digit() -> None:
    x, before = drawn(REAL, 2), torch.random.get_rng_state()
    first, *others = (compare(x, ours(x, REFERENCE), REFERENCE) for _ in range(4))
    assert all(other == first for other in others)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("n", "rank", "d"), [(REAL, 6, 6), (40, 64, 64), (300, 40, 64), (300, 3, 64)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 1e-7])
def test_distances_of_0_agree(n: int, rank: int, d: int, scale: float, shift: float) -> None:
    """Of a set with itself every distance is 0 to rounding, and a relative difference says nothing."""
    x = scale * drawn(n, 2, rank) @ drawn(rank, 3, d)
    reference, y = reference_of(x), x.flip(0) + scale * shift
    rows = compare(y, ours(y, reference), reference)
    assert all(row["difference"] <= TOLERANCE for row in rows)


def test_a_small_distance_above_rounding_is_still_compared() -> None:
    x = REFERENCE.features + 1e-2
    values = ours(x, REFERENCE)
    wrong = values | {"fd": values["fd"] * 1.1}
    worst = {row["metric"]: row["difference"] for row in compare(x, wrong, REFERENCE)}
    assert worst["fd"] > TOLERANCE >= worst["kd"]


def saved(folder: Path, n: int = REAL + 70, samples: int | None = None, **changed: float) -> Path:
    """A curve's folder with two cells, whose second one kept its features and says what it should, but for changes."""
    x = drawn(n, 2)
    values = ours(x, REFERENCE) | changed
    metrics = [{"metric": name, "value": value, "se": 0.1} for name, value in values.items()]
    cells = [
        {"samples": 40, "metrics": [{"metric": "fd", "value": 1e9, "se": 0.0}]},
        {"samples": samples or n, "metrics": metrics},
    ]
    save_tensors(folder / "features.safetensors", {"features": x}, "cell", 1)
    save_json(folder / "results.json", {"provenance": {}, "machine": {}, "cells": cells})
    return folder


@pytest.mark.parametrize("n", [REAL - 60, REAL, REAL + 70])
def test_a_curve_that_says_what_they_find_passes(tmp_path: Path, n: int) -> None:
    rows = compare_curve(saved(tmp_path, n), "sets.pets", REFERENCE)
    said = ours(drawn(n, 2), REFERENCE)
    assert {(row["library"], row["metric"]) for row in rows} == PAIRS
    assert all(row["ours"] == said[row["metric"]] for row in rows if row["metric"] != "kd")


def test_held_out_images_are_compared_as_well(tmp_path: Path) -> None:
    heldout = reference_of(drawn(REAL - 50, 3))
    both = replace(REFERENCE, others={"heldout": heldout, "matched": REFERENCE})
    unseen = {f"heldout_{metric}": value for metric, value in ours(drawn(REAL + 70, 2), heldout).items()}
    rows = compare_curve(saved(tmp_path, **unseen), "sets.pets", both)
    assert {(row["library"], row["metric"]) for row in rows} == PAIRS | {(lib, f"heldout_{m}") for lib, m in PAIRS}
    saved(tmp_path, **unseen | {"heldout_fd": unseen["heldout_fd"] * 1.001})
    with pytest.raises(StudyError, match=r"^sets\.pets: torch-fidelity finds heldout_fd = "):
        compare_curve(tmp_path, "sets.pets", both)


@pytest.mark.parametrize(
    ("metric", "wrong"),
    [("fd", lambda v: v * 1.001), ("fd", lambda v: v / 1.001), ("fd", lambda v: 0.0)]
    + [(name, lambda v, by=by: v + by / REAL) for name in ("precision", "recall") for by in (-1, 1)],
)
def test_a_wrong_value_is_told_in_one_line(tmp_path: Path, metric: str, wrong: Callable[[float], float]) -> None:
    right = ours(drawn(REAL + 70, 2), REFERENCE)[metric]
    folder = saved(tmp_path, **{metric: wrong(right)})
    with pytest.raises(StudyError) as caught:
        compare_curve(folder, "sets.pets", REFERENCE)
    told = str(caught.value)
    assert told.startswith(f"sets.pets: torch-fidelity finds {metric} = {right:.5g}"[:-1])
    assert f"this study {wrong(right):.8g}" in told and len(told.splitlines()) == 1


def test_a_value_within_the_tolerance_passes(tmp_path: Path) -> None:
    right = ours(drawn(REAL + 70, 2), REFERENCE)["fd"]
    rows = compare_curve(saved(tmp_path, fd=right * (1 + TOLERANCE / 2)), "sets.pets", REFERENCE)
    assert all(row["difference"] == pytest.approx(TOLERANCE / 2, rel=1e-2) for row in rows if row["metric"] == "fd")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0])
def test_a_library_that_finds_something_else_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setitem(agreement.LIBRARIES, "another", lambda x, y: {"kd": value})
    with pytest.raises(StudyError, match=rf"another finds kd = {value:.8g}, and this study"):
        compare_curve(saved(tmp_path), "sets.pets", REFERENCE)


def test_features_of_a_part_are_compared_among_themselves(tmp_path: Path) -> None:
    """A cell of more samples than were kept says other values than the kept ones have."""
    rows = compare_curve(saved(tmp_path, samples=20_000, fd=7.0, precision=0.1), "sets.pets", REFERENCE)
    assert {row["metric"] for row in rows} == {"fd", "kd", "precision", "recall"}


HARMS: list[Callable[[Path], Any]] = [
    Path.unlink,
    partial(Path.write_bytes, data=b""),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    partial(save_tensors, tensors={"features": drawn(50, 2)}, kind="images"),
    partial(save_tensors, tensors={"features": drawn(50, 2)}, kind="cell", record="x"),
    partial(save_tensors, tensors={"features": drawn(50, 2)}, kind="cell", record=2),
    partial(save_tensors, tensors={"images": drawn(50, 2)}, kind="cell", record=1),
]


@pytest.mark.parametrize("harm", HARMS)
def test_broken_features_are_told_in_one_line(tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    harm(saved(tmp_path) / "features.safetensors")
    with pytest.raises(StudyError, match=r"features\.safetensors: (not as this study wrote it|missing)") as caught:
        compare_curve(tmp_path, "sets.pets", REFERENCE)
    assert len(str(caught.value).splitlines()) == 1


def test_results_that_are_missing_are_told(tmp_path: Path) -> None:
    (saved(tmp_path) / "results.json").unlink()
    with pytest.raises(StudyError, match=r"results\.json: missing"):
        compare_curve(tmp_path, "sets.pets", REFERENCE)


def failed_curve(folder: Path, *reasons: str) -> Path:
    """A curve's folder with cells that failed for these reasons, or for none, and no features."""
    save_tensors(folder / "features.safetensors", {"features": torch.zeros(0, 6)}, "cell", 0)
    cells = [{"samples": 40, "metrics": [], "failed": reason} for reason in reasons]
    save_json(folder / "results.json", {"provenance": {}, "machine": {}, "cells": cells})
    return folder


@pytest.mark.parametrize("reasons", [("not finite",), ("", "not finite")])
def test_a_curve_whose_compared_cell_failed_has_nothing_to_compare(tmp_path: Path, reasons: tuple[str, ...]) -> None:
    assert compare_curve(failed_curve(tmp_path, *reasons), "sets.pets", REFERENCE) == []


def test_features_that_are_missing_without_a_failure_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"features\.safetensors: not as this study wrote it \(no features"):
        compare_curve(failed_curve(tmp_path, ""), "sets.pets", REFERENCE)


def test_the_largest_difference_over_nothing_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Paths("t")
    write_json(paths.rows / "curves.json", ["edm"])
    monkeypatch.setattr(stage, "load_reference", lambda folder: REFERENCE)
    failed_curve(paths.curve("edm"), "not finite")
    stage.main(Arguments("t", ""))
    assert "within 0.0e+00" in capsys.readouterr().out
