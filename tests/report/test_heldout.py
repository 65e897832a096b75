"""The section on held-out images: gaps with intervals that cover, the order of methods, and memorisation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.common.files import Paths, read_json, write_json
from pipeline.common.sealed import save_json
from pipeline.report.build import build
from pipeline.report.sections.heldout import combined, share
from pipeline.report.statistics import Interval
from tests.report.studies import CURVES, made_up_study, markdown, row

METHODS = {name: CURVES[name] for name in ("edm", "flow")}
HEADING = "## Held-out images"


def held_out(paths: Paths, values: dict[str, Any], se: float = 0.001) -> None:
    """Give curves scores and near-duplicates by reference: name -> {(reference, metric): values by training seed}."""
    file = paths.metrics("reference", "floor")
    scores = {"fd_corrected": {"value": 0.4321, "se": 0.02}}
    write_json(file, read_json(file) | {"heldout": {"images": 123, "scores": scores}})
    data = paths.metrics("prepare", "data")
    write_json(data, read_json(data) | {"heldout": 123})
    for name, own in values.items():
        results = json.loads((paths.curve(name) / "results.json").read_text())
        for cell in results["cells"]:
            seed = cell["train_seed"]
            for metric in ("fd_corrected", "near_duplicates"):
                found = {reference: own[reference, metric][seed] for reference in ("train", "heldout", "matched")}
                found["gap"] = found["heldout"] - found["matched"]
                cell["metrics"] = [m for m in cell["metrics"] if m["metric"] != metric] + [
                    {"metric": metric if reference == "train" else f"{reference}_{metric}", "value": value}
                    | {"se": se if reference == "gap" else 0.1}
                    for reference, value in found.items()
                ]
        save_json(paths.curve(name) / "results.json", results)


def scores(train: list[float], heldout: list[float], copies: float = 0.0) -> dict[tuple[str, str], list[float]]:
    """Scores of a curve by training seed; those against parts are 0.1 above the others. copies: memorised samples."""
    near = {"train": 0.05 + copies, "heldout": 0.05, "matched": 0.05 + copies}
    return {
        ("train", "fd_corrected"): train,
        ("matched", "fd_corrected"): [value + 0.1 for value in train],
        ("heldout", "fd_corrected"): heldout,
    } | {(reference, "near_duplicates"): [value] * 3 for reference, value in near.items()}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.chdir(tmp_path)
    return made_up_study(tmp_path, METHODS, [0, 1, 2])


FIRST = scores([1.0, 1.01, 0.99], [2.1, 2.11, 2.09])  # ahead against training images
SECOND = scores([1.5, 1.51, 1.49], [1.6, 1.61, 1.59])


def test_a_method_has_its_gap_and_its_share(paths: Paths) -> None:
    held_out(paths, {"flow": FIRST, "edm": scores([1.5, 1.6, 1.4], [1.8, 1.9, 1.7])})
    build(paths)
    text = markdown(paths)
    _, _, budget, train, matched, heldout, gap, part, *_ = row(text, "`flow`", HEADING)
    assert (budget, train[:4], matched[:4], heldout[:4]) == ("4", "1.00", "1.10", "2.10")
    assert gap.startswith("+1.00 (+0.99") and part == "50%"
    assert "themselves have bias-corrected FD (classifier) of 0.432 (standard error 0.0200)" in text
    assert "| 123 held-out images |" in text
    assert "100 images that the models were trained on, as usual in publications" in text
    summary = json.loads((paths.reports / "summary.json").read_text())
    assert summary["heldout"] == {"edm": 1.8, "flow": 2.1} and summary["gap"] == {"edm": 0.2, "flow": 1.0}


def test_without_held_out_images_there_is_no_section(paths: Paths) -> None:
    build(paths)
    assert HEADING not in markdown(paths) and "held-out data" not in (paths.reports / "report.html").read_text()
    assert set(pd.read_csv(paths.reports / "results.csv").reference) == {"train"}
    assert "heldout" not in json.loads((paths.reports / "summary.json").read_text())


def test_methods_that_change_places_are_named(paths: Paths) -> None:
    held_out(paths, {"edm": FIRST, "flow": SECOND})
    build(paths)
    text = markdown(paths)
    assert "order the methods differently from training images at 4 and 8 evaluations: 2 pairs change places" in text
    assert "2 of them told apart in both orders; at 4, flow leads instead of" in text
    assert row(text, "| 4 |", "told apart if")[-1].endswith("and flow (told apart)")


def test_a_change_of_places_by_chance_is_not_told_apart(paths: Paths) -> None:
    held_out(paths, {"edm": FIRST, "flow": scores([1.02, 0.99, 1.05], [1.6, 1.61, 1.59])})
    build(paths)
    text = markdown(paths)
    assert "2 pairs change places, none of them told apart in both orders" in text


def test_methods_that_keep_their_places_are_said_to(paths: Paths) -> None:
    held_out(paths, {"edm": FIRST, "flow": scores([1.5, 1.6, 1.4], [2.5, 2.6, 2.4])})
    build(paths)
    assert "Held-out and training images order the methods alike, at 4 and 8 evaluations." in markdown(paths)


@pytest.mark.parametrize("copies", [0.0, 0.2])
def test_memorised_samples_are_found(paths: Paths, copies: float) -> None:
    held_out(paths, {"edm": FIRST | scores([1.0] * 3, [2.0] * 3, copies), "flow": SECOND})
    build(paths)
    text = markdown(paths)
    said = f"at 2 of 4 points of the methods, most of all {CURVES['edm']['method'].replace('|', '')[:8]}"
    assert (said in text.replace("|", "")) == bool(copies)
    assert ("at no budget has a method significantly more near-duplicates" in text) == (not copies)


def test_results_csv_has_the_reference_of_every_value(paths: Paths) -> None:
    held_out(paths, {"edm": FIRST, "flow": SECOND})
    build(paths)
    table = pd.read_csv(paths.reports / "results.csv")
    own = table[(table.curve == "edm") & (table.metric == "fd_corrected") & (table.nfe == 3)]
    means = own.groupby("reference").value.mean()
    assert means.to_dict() == pytest.approx({"train": 1.0, "matched": 1.1, "heldout": 2.1, "gap": 1.0})
    assert not table.metric.str.contains("heldout|matched|gap").any() and set(table.reference_hash) == {"f" * 12}


@pytest.mark.parametrize("trainings", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1.0, 0.1), (0.1, 1.0)], ids=str)
def test_the_interval_covers(trainings: int, sizes: tuple[float, float]) -> None:
    """Trainings that scatter around a gap that the drawing of the images has moved: 95% of intervals contain the gap.

    The drawing moves all trainings at once, so that more trainings do not make it smaller.
    """
    draw, inside, repeats = np.random.default_rng(0), 0, 4000
    retraining, drawing = (0.0 if trainings == 1 else sizes[0]), sizes[1]
    for _ in range(repeats):
        moved = drawing * draw.standard_normal()
        values = 0.7 + moved + retraining * draw.standard_normal(trainings)
        found = combined(pd.Series(values), drawing**2 * draw.chisquare(19) / 19)
        inside += found.low <= 0.7 <= found.high
    assert 0.94 < inside / repeats < 0.995


def test_an_interval_without_errors_is_a_point() -> None:
    found = combined(pd.Series([1.0, 1.0]), 0.0)
    assert (found.low, found.mean, found.high) == (1, 1, 1)


def test_a_share_is_of_the_score_against_unseen_images() -> None:
    assert share(0.375, Interval(0.125, 0.1, 0.15, 3)) == "25%"
    assert share(0.375, Interval(0.125, 0.0, 0.25, 3)) == share(0.375, Interval(-0.1, -0.2, -0.05, 3)) == ""
    assert share(-0.2, Interval(0.1, 0.05, 0.15, 3)) == share(0.2, Interval(0.1, math.nan, math.nan, 3)) == ""
