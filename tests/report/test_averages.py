"""The section on weight averages: families, lengths, origins and findings."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.common.files import Paths
from pipeline.diffusion.averages import HalfLife, Power, synthesis_of, width
from pipeline.report.build import build
from pipeline.report.page import unmarked
from pipeline.report.sections import averages
from pipeline.report.sections.averages import families, finding, relative_length
from pipeline.report.study import Report
from pipeline.training.row import Model
from tests.report.studies import HOSTILE, fail, made_up_study, markdown, row, score

TRACKED: dict[str, Any] = {
    "images": 25_600,
    "ema_sigma_rels": [0.05, 0.1],
    "ema_halflives_images": [300],
    "snapshots": 4,
}
MODELS: dict[str, dict[str, Any]] = {"edm": TRACKED, "other": TRACKED | {"P_mean": -1}}
LENGTHS: dict[str, dict[str, Any]] = {
    "edm": {"model": "edm"},
    "wide": {"model": "edm", "ema_sigma_rel": 0.1},
    "made": {"model": "edm", "ema_sigma_rel": 0.03},
    "short": {"model": "edm", "ema_halflife_images": 300},
}
LOW, HIGH = [5.0, 6.0, 7.0], [9.0, 9.0, 9.0]
SCORES = {"edm": LOW, "wide": HIGH, "made": HIGH, "short": HIGH}


def study(folder: Path, curves: dict[str, dict[str, Any]], scores: dict[str, list[float]] | None = None) -> Paths:
    """A made-up study whose curves have these scores, by training seed, at a budget of 8."""
    paths = made_up_study(folder, curves, [0, 1, 2], models=MODELS)
    score(paths, {name: {7: values} for name, values in (scores or {}).items()})
    return paths


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The panels of the figure instead of drawing it: title -> lines."""
    kept: dict[str, Any] = {}
    monkeypatch.setattr(averages, "scale_figure", lambda path, held, *_, **__: kept.update(held))
    return kept


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_the_relative_length_of_a_power_function_is_its_sigma_rel(sigma_rel: float) -> None:
    assert relative_length(Power(sigma_rel), 5000, 64) == pytest.approx(sigma_rel, abs=1 / 5000)


def test_the_relative_length_of_a_half_life_is_that_of_an_exponential() -> None:
    """Its standard deviation is half-life / ln 2; with ramp-up it is a power function with gamma = ln 2 / share - 1."""
    steps, batch = 5000, 100
    expected = 20_000 / math.log(2) / (steps * batch)
    assert relative_length(HalfLife(20_000, None), steps, batch) == pytest.approx(expected, abs=1 / steps)
    ramped = width(math.log(2) / 0.05 - 1)
    assert relative_length(HalfLife(10**9, 0.05), steps, batch) == pytest.approx(ramped, abs=1 / steps)


def test_two_steps_have_the_relative_length_computed_by_hand() -> None:
    """Weights 1/4 and 3/4 of two steps have a standard deviation of sqrt(3) / 4 steps."""
    assert relative_length(HalfLife(50, None), 2, 100) == pytest.approx(math.sqrt(3) / 4 / 2)


def test_curves_of_a_family_differ_only_in_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    others: dict[str, dict[str, Any]] = {
        "euler": {"model": "edm", "solver": "euler", "ema_sigma_rel": 0.05},
        "other": {"model": "other", "ema_sigma_rel": 0.05},
        "other_own": {"model": "other"},
        "again": {"model": "edm"},
        "again_wide": {"model": "edm", "ema_sigma_rel": 0.1},
    }
    [(label, members)] = families(Report(study(tmp_path, LENGTHS | others), tmp_path)).items()
    model = Model(**TRACKED)
    assert label == "edm" and [m.curve for m in members] == ["short", "made", "edm", "wide"]
    assert [m.profile for m in members] == [HalfLife(300, 0.05), Power(0.03), HalfLife(10_000, 0.05), Power(0.1)]
    assert [m.main for m in members] == [False, False, True, False]
    assert [m.length for m in members] == [relative_length(m.profile, model.steps, model.batch) for m in members]
    assert [m.error for m in members] == [None, synthesis_of(model, Power(0.03)).error, None, None]


def test_two_samplers_are_two_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figure = drawn(monkeypatch)
    euler = {f"euler_{name}": own | {"solver": "euler"} for name, own in LENGTHS.items()}
    paths = study(tmp_path, LENGTHS | euler, {"short": LOW, "euler_short": HIGH})
    averages.section(Report(paths, tmp_path))
    again = "edm, sampled like euler_edm"
    assert list(figure["budget 8"]) == [
        f"{label}, {kind}" for label in ("edm", again) for kind in ("half-lives", "power functions")
    ]
    first = [next(iter(figure["budget 8"][f"{label}, half-lives"].values())).mean for label in ("edm", again)]
    assert first == [6, 9]


def test_fewer_than_three_lengths_or_no_common_budget_make_no_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figure = drawn(monkeypatch)
    two = {name: LENGTHS[name] for name in ("edm", "wide")} | {"again": {"model": "edm"}}
    assert averages.section(Report(study(tmp_path, two), tmp_path)) is None
    apart = LENGTHS | {"made": LENGTHS["made"] | {"nfe": [16]}}
    report = Report(study(tmp_path, apart), tmp_path)
    [(label, members)] = families(report).items()
    assert averages.section(report) is None and finding(report, label, members) == "" and figure == {}


def test_numbers_are_those_of_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figure = drawn(monkeypatch)
    curves = {name: own | {"nfe": [4, 8, 16]} for name, own in LENGTHS.items()}
    paths = study(tmp_path, curves, SCORES | {"made": [4.0, 4.9, 6.1]})
    report = Report(paths, tmp_path)
    found = averages.section(report)
    assert found is not None
    score_half = stats.t.ppf(0.975, 2) / 3**0.5
    found["table"] = unmarked(found["table"])
    own = row(found["table"], "`edm` |", "---")
    assert own[:3] == ["edm", "`edm`", "**half-life of 10000 images**"]
    assert own[4:] == ["tracked", *[f"6.00 ± {score_half:.3g}"] * 2, ""]
    made = row(found["table"], "`made`", "---")
    length = relative_length(Power(0.03), Model(**TRACKED).steps, 128)
    error = synthesis_of(Model(**TRACKED), Power(0.03)).error
    assert 0.001 < error < 0.1
    assert made[2:5] == ["power function of sigma_rel 0.03", f"{length:#.3g}", f"synthesised, error {100 * error:.1f}%"]
    ratio = np.exp(np.mean(np.log([4.0, 4.9, 6.1]) - np.log(SCORES["edm"])))
    assert made[-1].startswith(f"×{ratio:#.3g} (") and made[-1].endswith("), undecided")
    assert found["table"].count("**") == 2
    assert found["findings"] == [
        "Weight averages of edm at a budget of 16: the power function of sigma_rel 0.03, with relative length "
        f"{length:#.3g}, has the lowest mean bias-corrected FD (classifier); relative to the model's own, it is "
        "equal at 4, undecided at 8 and 16."
    ]
    assert list(figure) == ["budget 8", "budget 16"]
    means = {label: [p.mean for p in points.values()] for label, points in figure["budget 16"].items()}
    assert means == {"edm, half-lives": [9, 6], "edm, power functions": [5, 9]}


def test_the_finding_names_the_verdicts_or_the_models_own_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(scores: dict[str, list[float]]) -> str:
        report = Report(study(tmp_path, LENGTHS, scores), tmp_path)
        [(label, members)] = families(report).items()
        return finding(report, label, members)

    lower = said(SCORES | {"short": [4.0, 7.0, 6.7]})
    assert ": the half-life of 300 images, with relative length " in lower
    assert lower.endswith("; relative to the model's own, it is equal at 4, undecided at 8.")
    assert said(SCORES) == (
        "Weight averages of edm at a budget of 8: no average scores lower than the model's own (half-life of "
        "10000 images)."
    )


def test_points_are_not_called_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path, LENGTHS, SCORES), tmp_path)
    report.things = "points"
    [(label, members)] = families(report).items()
    assert "(half-life of 10000 points)" in finding(report, label, members)
    assert "| half-life of 300 points |" in averages._table(report, {label: members}, [8])


def test_failed_averages_are_omitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figure = drawn(monkeypatch)
    paths = study(tmp_path, LENGTHS, SCORES)
    fail(paths, "made", seeds=(1,))
    found = averages.section(Report(paths, tmp_path))
    assert found is not None and len(found["findings"]) == 1
    assert row(found["table"], "`made`", "---")[-2:] == ["failed", ""]
    assert len(figure["budget 8"]["edm, power functions"]) == 1
    fail(paths, "edm")
    found = averages.section(Report(paths, tmp_path))
    assert found is not None and found["findings"] == []
    assert row(found["table"], "`wide`", "---")[-1] == ""


def test_a_tiny_error_is_not_rounded_to_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path, LENGTHS), tmp_path)
    [(label, members)] = families(report).items()
    members = [m._replace(error=None if m.error is None else 2e-6) for m in members]
    table = averages._table(report, {label: members}, [8])
    assert row(table, "`made`", "---")[4] == "synthesised, error below 0.1%"


def test_names_in_the_table_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path, LENGTHS), tmp_path)
    table = averages._table(report, {HOSTILE: families(report)["edm"]}, [8])
    assert HOSTILE not in table and table.count(r"\<script\>") == 4
    assert {line.replace(r"\|", "").count("|") for line in table.splitlines()} == {8}


def test_the_report_has_the_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path, LENGTHS, SCORES)
    build(paths)
    text = markdown(paths)
    section = text.split("\n## Weight averages\n")[1].split("\n## ")[0]
    assert "no average scores lower than the model's own" in text
    assert "(figures/ema_length.png)" in section and "| edm | `made` | power function" in section
    assert (paths.reports / "figures/ema_length.png").exists()
    assert "\n## Guidance\n" not in text
