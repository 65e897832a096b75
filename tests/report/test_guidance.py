"""The section on guidance: families of curves, numbers and findings."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from pipeline.common.files import Paths, write_json
from pipeline.common.sealed import save_json
from pipeline.report.build import build
from pipeline.report.figures import scores
from pipeline.report.page import unmarked
from pipeline.report.sections import guidance
from pipeline.report.sections.guidance import Family, families, finding
from pipeline.report.statistics import Floor, Interval
from pipeline.report.study import Report
from tests.report.studies import HOSTILE, fail, made_up_study, markdown, row, score

MODELS: dict[str, dict[str, Any]] = {
    "edm": {"classifier_images": 1000},
    "classes": {"labels": "classes", "snapshots": 4, "classifier_images": 1000},
}
BASE: dict[str, Any] = {"base": "classes", "model": "classes"}
SCALES: dict[str, dict[str, Any]] = {
    "classes": {"model": "classes"},
    "cfg_2": BASE | {"guidance": 2},
    "cfg_3": BASE | {"guidance": 3},
}
LOW, HIGH = [5.0, 6.0, 7.0], [9.0, 9.0, 9.0]
ACCURACY = {"0.01": 0.9, "80": 0.1}


def study(folder: Path, curves: dict[str, dict[str, Any]], scores: dict[str, list[float]] | None = None) -> Paths:
    """A made-up study whose curves have these scores, by training seed, at a budget of 8."""
    paths = made_up_study(folder, curves, [0, 1, 2], models=MODELS)
    score(paths, {name: {7: values} for name, values in (scores or {}).items()})
    for model in MODELS:
        file = paths.metrics("train", model)
        write_json(file, json.loads(file.read_text()) | {"classifier_accuracy": ACCURACY})
    return paths


def measure(paths: Paths, curve: str, metric: str, value: float) -> None:
    """Give all cells of a curve another value of a metric."""
    file = paths.curve(curve) / "results.json"
    results = json.loads(file.read_text())
    for own in (m for cell in results["cells"] for m in cell["metrics"] if m["metric"] == metric):
        own["value"] = value
    save_json(file, results)


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The contents of figures instead of drawing them, by file."""
    kept: dict[str, Any] = {}
    for name in ("scale_figure", "frontier_figure"):
        monkeypatch.setattr(guidance, name, lambda path, held, *_, **__: kept.update({path.stem: held}))
    return kept


def test_the_curve_without_guidance_joins_the_family_of_each_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier guides the answer without a label; for an unconditional model this is the plain curve."""
    monkeypatch.chdir(tmp_path)
    snapshot: dict[str, Any] = {"guide": "snapshot"}
    classifier: dict[str, Any] = {"guide": "classifier"}
    limited: dict[str, Any] = {"guidance_min": 0.2, "guidance_max": 2}
    curves = SCALES | {
        "untold": BASE | {"labels": "none"},
        "cfg_0_5": BASE | {"guidance": 0.5},
        **{f"limited_{w}": BASE | limited | {"guidance": w} for w in (2, 3)},
        **{f"open_{w}": BASE | {"guidance_min": 0.2, "guidance": w} for w in (2, 3)},
        **{f"auto_{w}": BASE | snapshot | {"guidance": w} for w in (2, 3)},
        **{f"late_{w}": BASE | snapshot | {"guide_images": 40_000, "guidance": w} for w in (2, 3)},
        **{f"told_{w}": BASE | classifier | {"guidance": w} for w in (1, 2)},
        "edm": {"model": "edm"},
        **{f"edm_{w}": {"base": "edm", "model": "edm", "guidance": w} | classifier for w in (1, 2)},
    }
    found = families(Report(study(tmp_path, curves), tmp_path))
    plain = {1.0: "classes"}
    assert found == [
        Family("classes", "unconditional", {0.5: "cfg_0_5", **plain, 2.0: "cfg_2", 3.0: "cfg_3"}, 1),
        Family("classes", "unconditional from sigma 0.2 to 2", plain | {2.0: "limited_2", 3.0: "limited_3"}, 1),
        Family("classes", "unconditional from sigma 0.2 to infinity", plain | {2.0: "open_2", 3.0: "open_3"}, 1),
        Family("classes", "snapshot after 34944 images", plain | {2.0: "auto_2", 3.0: "auto_3"}, 1),
        Family("classes", "snapshot after 40000 images", plain | {2.0: "late_2", 3.0: "late_3"}, 1),
        Family("classes", "classifier", {0.0: "untold", 1.0: "told_1", 2.0: "told_2"}, 0),
        Family("edm", "classifier", {0.0: "edm", 1.0: "edm_1", 2.0: "edm_2"}, 0),
    ]
    assert all(low < high for family in found for low, high in pairwise(family.curves))


def test_a_guide_that_is_never_called_is_marked_and_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two steps from 80 to 0.002, none begins between 1 and 20; with three, the second does."""
    monkeypatch.chdir(tmp_path)
    limited = {f"limited_{w}": BASE | {"guidance_min": 1, "guidance_max": 20, "guidance": w} for w in (2, 3)}
    report = Report(study(tmp_path, {"classes": {"model": "classes"}} | limited), tmp_path)
    [family] = families(report)
    shown = {budget: list(guidance._shown(report, family, budget)) for budget in (4, 8)}
    assert shown == {4: [1.0], 8: [1.0, 2.0, 3.0]}
    stated = {(name, b): guidance._stated(report, family, name, b) for name in family.curves.values() for b in (4, 8)}
    assert [key for key, text in stated.items() if "guide never called" in text] == [("limited_2", 4), ("limited_3", 4)]


def test_a_classifier_at_scale_0_is_no_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier does not guide the labelled curve of a conditional model."""
    monkeypatch.chdir(tmp_path)
    told = {f"told_{w}": BASE | {"guide": "classifier", "guidance": w} for w in (1, 2)}
    curves = {"classes": {"model": "classes"}, **told}
    assert families(Report(study(tmp_path, curves), tmp_path)) == []
    at_0 = curves | {"told_0": BASE | {"guide": "classifier", "guidance": 0}}
    [family] = families(Report(study(tmp_path, at_0), tmp_path))
    assert (family.curves, family.unguided) == ({0.0: "told_0", 1.0: "told_1", 2.0: "told_2"}, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"solver": "euler"},
        {"rho": 3},
        {"S_churn": 4},
        {"sample_seeds": [3, 4, 5]},
        {"ema_halflife_images": 1000},
        {"model": "others"},
        {"guide": "snapshot"},
        {"guidance_max": 2},
        {"guidance": 2},
    ],
)
def test_curves_with_other_differences_are_no_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {name: MODELS["classes"] | {"ema_halflives_images": [1000]} for name in ("classes", "others")}
    curves = SCALES | {"cfg_3": SCALES["cfg_3"] | other}
    report = Report(made_up_study(tmp_path, curves, [0, 1, 2], models=models), tmp_path)
    assert families(report) == [] and guidance.section(report) is None
    alike = Report(made_up_study(tmp_path, SCALES, [0, 1, 2], models=models), tmp_path)
    assert [family.curves for family in families(alike)] == [{1.0: "classes", 2.0: "cfg_2", 3.0: "cfg_3"}]


def test_points_are_not_called_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    late = {f"late_{w}": BASE | {"guide": "snapshot", "guide_images": 40_000, "guidance": w} for w in (2, 3)}
    report = Report(study(tmp_path, SCALES | late), tmp_path)
    report.things = "points"
    assert [family.label for family in families(report)][1:] == ["classes, snapshot after 40000 points"]


def test_without_a_common_budget_there_is_no_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    curves = SCALES | {"cfg_3": SCALES["cfg_3"] | {"nfe": [16]}}
    report = Report(study(tmp_path, curves), tmp_path)
    [family] = families(report)
    assert guidance.section(report) is None and finding(report, family) == "" and figures == {}


def test_of_equal_curves_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    again = {"again": BASE, "again_2": BASE | {"guidance": 2}, "idle": BASE | {"guide": "snapshot"}}
    [family] = families(Report(study(tmp_path, SCALES | again), tmp_path))
    assert family.curves == {1.0: "classes", 2.0: "cfg_2", 3.0: "cfg_3"}


def test_one_guide_with_two_samplers_has_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    euler = {f"euler_{w}": BASE | {"solver": "euler", "guidance": w} for w in (1, 2, 3)}
    paths = study(tmp_path, SCALES | euler, {"euler_3": [1.0, 1.0, 1.0], "cfg_3": HIGH})
    guidance.section(Report(paths, tmp_path))
    lines = figures["guidance_scale"]["budget 8"]
    assert list(lines) == ["classes, unconditional", "classes, unconditional, sampled like euler_2"]
    assert [own[3.0].mean for own in lines.values()] == [9, 1]


def test_numbers_are_those_of_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    curves = {name: own | {"nfe": [4, 8, 16]} for name, own in SCALES.items()}
    paths = study(tmp_path, curves, {"classes": LOW, "cfg_2": [4.0, 4.9, 6.1], "cfg_3": HIGH})
    for name, precision, recall in (("classes", 0.5, 0.75), ("cfg_2", 0.625, 0.5), ("cfg_3", 0.75, 0.25)):
        measure(paths, name, "precision", precision)
        measure(paths, name, "recall", recall)
    found = guidance.section(Report(paths, tmp_path))
    assert found is not None and found["budget"] == 16
    logs = np.log([4.0, 4.9, 6.1]) - np.log(LOW)
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / 3**0.5
    ratio, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    change = f"×{ratio:#.3g} ({low:#.3g} to {high:#.3g}), undecided"
    score_half = stats.t.ppf(0.975, 2) / 3**0.5
    table = unmarked(found["table"]).replace("\\", "")
    heading = table.splitlines()[0]
    own = row(table, "classes` |", "---")
    assert own[:6] == ["classes", "unconditional", "**1**", "`classes`", *[f"6.00 ± {score_half:.3g}"] * 2]
    assert own[6:] == ["", "0.500 ± 0", "0.750 ± 0"]
    assert row(table, "cfg_2", "---")[2:4] == ["2", "`cfg_2`"]
    assert row(table, "cfg_2", "---")[-3:] == [change, "0.625 ± 0", "0.500 ± 0"]
    assert "budget 8 | budget 16 | ratio to no guidance, budget 16 | precision (classifier), budget 16 |" in heading
    assert found["findings"] == [
        "Guidance of classes (unconditional) at a budget of 16: scale 2 has the lowest mean bias-corrected FD "
        "(classifier); relative to no guidance, it is equal at 4, undecided at 8 and 16; from scale 1 to scale 3, "
        "precision changes from 0.500 to 0.750 and recall changes from 0.750 to 0.250."
    ]
    panels = figures["guidance_scale"]
    assert list(panels) == ["budget 8", "budget 16"]
    assert {w: p.mean for w, p in panels["budget 8"]["classes, unconditional"].items()} == {1: 6, 2: 5, 3: 9}
    line = figures["precision_recall"]["classes, unconditional"]
    assert {w: (x.mean, y.mean) for w, (x, y) in line.items()} == {1: (0.75, 0.5), 2: (0.5, 0.625), 3: (0.25, 0.75)}


def test_the_finding_says_that_no_scale_scores_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path, SCALES, {"classes": LOW, "cfg_2": HIGH, "cfg_3": HIGH}), tmp_path)
    [family] = families(report)
    assert finding(report, family).startswith(
        "Guidance of classes (unconditional) at a budget of 8: no scale scores lower than classes without "
        "guidance; from scale 1 to scale 3, precision changes from "
    )


def test_failed_scales_are_omitted_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    paths = study(tmp_path, SCALES, {"classes": LOW, "cfg_2": HIGH})
    fail(paths, "cfg_3", seeds=(1,))
    found = guidance.section(Report(paths, tmp_path))
    assert found is not None
    assert row(found["table"], "cfg_3", "---")[4:] == ["failed", "", "failed", "failed"]
    [said] = found["findings"]
    assert "; from scale 1 to scale 2, " in said and said.endswith("; no result at scale 3.")
    assert list(figures["guidance_scale"]["budget 8"]["classes, unconditional"]) == [1, 2]
    assert list(figures["precision_recall"]["classes, unconditional"]) == [1, 2]


def test_without_an_unguided_result_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(monkeypatch)
    paths = study(tmp_path, SCALES)
    fail(paths, "classes", seeds=(1,))
    found = guidance.section(Report(paths, tmp_path))
    assert found is not None and found["findings"] == []
    assert row(found["table"], "cfg_2", "---")[5] == ""


def test_a_family_that_failed_completely_has_no_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path, SCALES | {"edm": {"model": "edm"}})
    for name in SCALES:
        fail(paths, name)
    assert guidance.section(Report(paths, tmp_path)) is None


def test_names_in_the_table_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path, SCALES), tmp_path)
    [family] = families(report)
    table = guidance._table(report, [family._replace(model=HOSTILE, guide=HOSTILE)], [8])
    assert HOSTILE not in table and table.count(r"\<script\>") == 6
    assert {line.replace(r"\|", "").count("|") for line in table.splitlines()} == {9}


def test_the_report_has_the_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = {f"told_{w}": BASE | {"guide": "classifier", "guidance": w} for w in (0, 1, 2)}
    paths = study(tmp_path, SCALES | told, {"classes": LOW, "cfg_2": HIGH, "cfg_3": HIGH})
    build(paths)
    text = markdown(paths)
    section = text.split("\n## Guidance\n")[1].split("\n## ")[0]
    assert "no scale scores lower than classes without guidance" in text
    assert "(figures/guidance_scale.png)" in section and "(figures/precision_recall.png)" in section
    assert (
        "Accuracy of the classifier of model classes on its training images with new noise: 90.0% at sigma 0.01 and "
        "10.0% at sigma 80." in section
    )
    for file in ("guidance_scale", "precision_recall"):
        assert (paths.reports / f"figures/{file}.png").exists()


def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures instead of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(scores, "save", lambda own, *_, **__: kept.append(own))
    return kept


def test_each_panel_has_one_line_per_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label has one colour in all panels; bars with ends below 0 stay on the logarithmic axis."""
    kept = figure(monkeypatch)
    points = {1.0: Interval(2.0, -1.0, 5.0, 3), 2.0: Interval(1.0, 0.5, 1.5, 3)}
    panels = {"one": {"$a$": points, "b": points}, "two": {"b": points}}
    scores.scale_figure(Path("x.png"), panels, "scale", "distance", Floor(0.5, 0.1), log=True)
    one, two = kept[0].axes
    assert (one.get_xscale(), one.get_yscale(), one.get_ylabel(), two.get_xlabel()) == (
        "log",
        "log",
        "distance",
        "scale",
    )
    containers = [*one.containers, *two.containers]
    assert [c.get_label() for c in containers] == [r"\$a\$", "b", "b"]
    lines = [c.lines[0] for c in containers]  # type: ignore[attr-defined]
    assert lines[1].get_color() == lines[2].get_color() != lines[0].get_color()
    assert list(lines[0].get_xdata()) == [1, 2] and list(lines[0].get_ydata()) == [2, 1]
    [bars] = containers[0].lines[2]  # type: ignore[attr-defined]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [pytest.approx([0.1, 5.0]), [0.5, 1.5]]


def test_a_frontier_labels_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = figure(monkeypatch)
    x, y = Interval(0.8, 0.7, 0.9, 3), Interval(0.5, 0.4, 0.6, 3)
    scores.frontier_figure(Path("x.png"), {"a": {1.0: (x, y), 2.5: (y, x)}}, ("recall", "precision"))
    [axes] = kept[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    assert {t.get_text(): t.xy for t in axes.texts} == {"1": (0.8, 0.5), "2.5": (0.5, 0.8)}  # type: ignore[attr-defined]
