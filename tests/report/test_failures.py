"""Reports of studies with failed cells, or with curves without a result within a budget."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common.files import write_csv, write_json
from pipeline.common.sealed import load_json, save_json
from pipeline.report.build import build
from pipeline.report.results import COLUMNS, TIMING_COLUMNS, at_budget, cells, failed_at
from pipeline.report.sections.samples import samples
from pipeline.report.statistics import summarise
from pipeline.report.study import METRICS, Report
from tests.report.studies import CURVES, REASON, ParsedPage, change, fail, made_up_study, markdown, row

drawn = pytest.mark.usefixtures("rough_figures")  # figures of missing points must not fail


def table_of(lines: list[tuple[int, int, int, str]]) -> pd.DataFrame:
    """A curve's table from (seed, steps, nfe, metric)."""
    rows = [("a", "m", s, s, n, nfe, 64, metric, 1.0 + s, 0.1) for s, n, nfe, metric in lines]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_point_with_a_failed_seed_is_omitted_without_replacement() -> None:
    points = [(s, n, nfe, "fd") for n, nfe in ((2, 3), (4, 7), (6, 11)) for s in (0, 1)]
    points[3] = (1, 4, 7, "failed")
    found = table_of(points)
    assert list(summarise(found, "a", "fd")) == [3, 11]
    assert [at_budget(found, "a", "fd", b).nfe.tolist() for b in (2, 4, 7, 10, 11)] == [[], [3, 3], [], [], [11, 11]]
    assert [failed_at(found, "a", b) for b in (2, 4, 7, 10, 11)] == [False, False, True, True, False]


def test_a_curve_with_only_failures_has_no_cells() -> None:
    found = table_of([(0, 2, 3, "failed"), (0, 4, 7, "failed")])
    assert cells(found, "a", "fd").empty and summarise(found, "a", "fd") == {}
    assert at_budget(found, "a", "fd", 8).empty and failed_at(found, "a", 8)
    assert cells(found, "b", "fd").empty and at_budget(found, "b", "fd", 8).empty and not failed_at(found, "b", 8)


def test_repetitions_of_different_nfe_are_one_point_at_the_largest() -> None:
    found = table_of([(0, 9, 20, "fd"), (1, 9, 26, "fd"), (2, 9, 23, "fd")])
    assert {nfe: point.count for nfe, point in summarise(found, "a", "fd").items()} == {26: 3}
    assert at_budget(found, "a", "fd", 25).empty and len(at_budget(found, "a", "fd", 26)) == 3
    found = table_of([(0, 9, 20, "fd"), (1, 9, 9, "failed")])  # a failed repetition takes the others with it
    assert summarise(found, "a", "fd") == {} and failed_at(found, "a", 20)


@drawn
def test_failed_cells_are_reported_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2])
    fail(paths, "flow", (7,), (1, 2))
    fail(paths, "rho_3", (3,), (0,))
    build(paths)
    text = markdown(paths)
    assert "- 3 sets of samples failed, of flow and rho_3. The" in text
    assert row(text, "`flow`", "## Failed measurements") == ["`flow`", "7", "(1, 1), (2, 2)", REASON]
    assert row(text, "`rho_3`", "## Failed measurements") == ["`rho_3`", "3", "(0, 0)", REASON]
    by_budget = row(text, "`flow`", "## Methods")
    assert by_budget[-1] == "failed" and "±" in by_budget[-2]
    assert row(text, "| flow", "Ratios of")[-1] == "failed"
    assert row(text, "`rho_3`", "### Rho")[3] == "failed" != row(text, "`rho_3`", "### Rho")[4]
    assert row(text, "`flow`", "## Evaluations needed to approach")[2] == "3"
    assert "flow at NFE 7" not in text and "no result at 8." in text

    found = pd.read_csv(paths.reports / "results.csv")
    failed = found[found.metric == "failed"]
    assert len(found) == (len(CURVES) * 2 * 3 - 3) * len(METRICS) + 3
    assert list(zip(failed.curve, failed.nfe, failed.train_seed, strict=True)) == [
        ("flow", 7, 1), ("flow", 7, 2), ("rho_3", 3, 0),
    ]  # fmt: skip
    assert (failed.value == 1).all() and failed.se.isna().all() and set(failed.checkpoint) == {"c" * 12}
    report = Report(paths, tmp_path)
    assert (report.having(["edm", "flow"], 8), report.missing("flow", 8), report.missing("edm", 5)) == (
        ["edm"], "failed", "",
    )  # fmt: skip


@drawn
def test_failed_trainings_are_listed_and_no_comparison_uses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"edm": {}, "edm_snr": {"weighting": "snr"}, "lost": {"P_mean": 0}}
    paths = made_up_study(tmp_path, CURVES | {"lost": {"model": "lost"}}, [0, 1, 2], models=models)
    for name, curve, seeds in (("edm_snr", "weighted", (1,)), ("lost", "lost", (0, 1, 2))):
        fail(paths, curve, seeds=seeds)
        results = load_json(paths.curve(curve) / "results.json")
        for cell in results["cells"]:
            cell["checkpoint"] = "" if cell["failed"] else cell["checkpoint"]
        save_json(paths.curve(curve) / "results.json", results)
        reasons = {str(seed): f"seed {seed}: the loss is not finite at step {seed + 5}" for seed in seeds}
        write_json(
            paths.metrics("train", name), json.loads(paths.metrics("train", name).read_text()) | {"failed": reasons}
        )
        points = pd.read_csv(paths.training_curve(name))
        points[~(points.seed.isin(seeds) & (points.images > 64))].to_csv(paths.training_curve(name), index=False)
        losses = pd.read_csv(paths.losses)
        losses[~((losses.model == name) & losses.train_seed.isin(seeds))].to_csv(paths.losses, index=False)
    learning = json.loads(paths.metrics("losses", "models").read_text())
    learning["models"]["lost"]["straightness"] |= {"mean": None, "sd": None}
    write_json(paths.metrics("losses", "models"), learning)
    write_json(paths.metrics("agreement", "libraries"), {name: [] for name in [*CURVES, "lost"]})
    build(paths)
    text = markdown(paths)
    assert (
        '- Trainings failed, of edm_snr (2 of 3 trainings left) and lost (0 of 3 trainings left) (see "Failed' in text
    )
    for name, seed, left in (("edm_snr", 1, 2), ("lost", 0, 0)):
        reason = f"seed {seed}: the loss is not finite at step {seed + 5}"
        assert row(text, f"`{name}`", "## Failed trainings") == [
            f"`{name}`", str(seed), f"{left} of 3 trainings", reason,
        ]  # fmt: skip
    assert len(re.findall(r"not finite at step \d \|", text)) == 4
    assert row(text, "`weighted`", "## Design choices")[-3:-1] == ["4: failed", "8: failed"]
    assert row(text, "`edm_snr` (2 of 3 trainings)", "\n## Training\n")[1].count("±") == 1
    assert row(text, "`lost` (0 of 3 trainings)", "\n## Training\n")[1:] == ["failed"] * 7
    assert "nan" not in text

    report = Report(paths, tmp_path)
    assert report.having(["edm", "weighted", "lost"], 8) == ["edm"]
    assert [report.trainings(name) for name in models] == [3, 2, 0]
    curve = pd.read_csv(paths.reports / "training.csv")
    assert {name: len(own) for name, own in curve.groupby("model")} == {"edm": 2, "edm_snr": 1, "lost": 1}
    origins = json.loads((paths.reports / "provenance.json").read_text())
    assert origins["weighted"]["checkpoints"] == {"0": "c" * 12, "1": "", "2": "c" * 12}


def test_timings_are_those_of_the_first_training_that_did_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    fail(paths, "edm", seeds=(0,))
    results = load_json(paths.curve("edm") / "results.json")
    for cell in results["cells"]:
        cell["checkpoint"] = "" if cell["failed"] else "d" * 64
    save_json(paths.curve("edm") / "results.json", results)
    timing = {"curve": "edm", "nfe": 3, "seconds_per_image": 1, "images": 1, "device": "CPU", "checkpoint": "d" * 12}
    write_csv(paths.timings, TIMING_COLUMNS, [timing | {"sampler": Report(paths, tmp_path).sampler("edm")}])
    assert list(Report(paths, tmp_path).timings.curve) == ["edm"]


METHODS = ("edm", "flow")


@drawn
@pytest.mark.parametrize(
    ("lost", "seeds"),
    [
        (("edm",), [0, 1]),
        (METHODS, [0]),
        (("flow", "rho_3", "rho_5"), [0, 1]),
        (tuple(name for name in CURVES if name != "euler"), [0]),
    ],
)
def test_the_report_handles_curves_that_failed_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...], seeds: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, seeds)
    for name in lost:
        fail(paths, name)
    write_json(paths.metrics("agreement", "libraries"), {name: [] for name in CURVES})
    build(paths)
    text = markdown(paths)
    assert "nan" not in text
    for name in lost:
        if name in METHODS:
            assert row(text, f"`{name}`", "## Methods")[-2:] == ["failed", "failed"]
        assert row(text, f"`{name}`", "## Evaluations needed to approach")[1:3] == ["failed", ""]
    figures = {figure.stem for figure in (paths.reports / "figures").iterdir()}
    assert ("samples" in figures) is ("methods" in figures) is (not set(METHODS) <= set(lost))
    assert ("## Samples" in text) is ("samples" in figures)
    assert len([line for line in text.splitlines() if REASON in line]) == 2 * len(lost)


@drawn
@pytest.mark.parametrize(("seeds", "sets"), [((0, 1), {"theirs": {"source": "x.zip", "nfe": 35}}), ((1,), {})])
def test_the_report_of_a_study_without_points_explains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...], sets: dict[str, dict]
) -> None:
    """All sets of samples failed, or one of each point; sections without samples remain."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1], sets)
    for name in CURVES:
        fail(paths, name, seeds=seeds)
    build(paths)
    text = markdown(paths)
    first = text.split("## Findings")[1].split("\n## ")[0]
    assert "No curve has a result" in first and "Failed measurements" in first
    assert f"- {2 * len(seeds) * len(CURVES)} sets of samples failed, of edm, flow, " in first
    assert len([line for line in text.splitlines() if REASON in line]) == 2 * len(CURVES)
    assert (
        "nan" not in text and "the lowest mean score of the study" not in text and "## Evaluations needed" not in text
    )
    assert row(text, "`rho_3`", "## Design choices")[-3:] == ["4: failed", "8: failed", "rho"]
    for heading in ("Solvers on exact denoisers", "Trajectories", "Training", "All settings", "Measurement setup"):
        assert f"\n## {heading}\n" in text
    found = pd.read_csv(paths.reports / "results.csv")
    assert (found.metric == "failed").sum() == 2 * len(seeds) * len(CURVES)


@drawn
def test_a_curve_above_its_budgets_has_points_and_no_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like that of an adaptive solver, whose cost is known only afterwards."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    change(paths, "flow", costs={3: [5, 6], 7: 30})
    change(paths, "rho_3", costs={3: 20, 7: 30})
    build(paths)
    text = markdown(paths)
    assert "failed" not in text.replace("Failed", "") and "nan" not in text
    first, second = row(text, "`flow`", "## Methods")[2:]
    assert first == "" and "±" in second  # NFE 6 within 8, nothing within 4
    assert row(text, "`rho_3`", "### Rho")[3:] == ["", ""]
    assert row(text, "`rho_3`", "## Evaluations needed to approach")[2] in ("20", "30")
    assert "rho 3 has no result" in text


@drawn
@pytest.mark.parametrize("names", [("edm",), ("flow", "rho_3", "weighted")])
def test_any_curve_may_be_above_all_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    for name in names:
        change(paths, name, costs={3: 20, 7: 30})
    build(paths)
    assert "nan" not in markdown(paths) and "base failed" not in markdown(paths)


def test_choices_are_compared_at_a_budget_with_a_result_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed row is reported as failed and not as undecided."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    fail(paths, "edm", (7,), (0,))
    fail(paths, "rho_5", (3,), (1,))
    build(paths)
    text = markdown(paths)
    [sentence] = [line for line in text.splitlines() if line.startswith("- Rho, relative to")]
    assert "rho 3: equal at 4; " in sentence and sentence.endswith("; rho 5 failed.")
    assert row(text, "`rho_5`", "### Rho")[3:] == ["failed", "base failed"]


def test_a_failed_curve_does_not_hide_its_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES | {"again": {"model": "edm", "sample_seeds": [0, 1]}}, [0, 1])
    assert "again" not in Report(paths, tmp_path).distinct
    fail(paths, "edm", (7,))
    assert "again" in Report(paths, tmp_path).distinct


def test_the_best_sampler_of_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest mean and the others that may be best; a model with one sampler has no line."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES | {"again": {"model": "edm", "nfe": [4], "sample_seeds": [0, 1]}}, [0, 1, 2])
    for place, name in enumerate(CURVES):
        noise = np.exp(0.01 * np.random.default_rng(place).normal(size=3))
        change(paths, name, {3: (7 * noise).tolist(), 7: (8 * noise).tolist()})
    change(paths, "rho_3", {3: [1.0, 1.02, 1.04], 7: [4.0, 4.1, 4.2]})
    change(paths, "rho_5", {3: [1.01, 1.01, 1.05], 7: [3.0, 3.1, 3.2]})  # as good at 4, ahead at 8
    build(paths)
    text = markdown(paths)
    header, _, *lines = text.split("## Samplers of each model that may be best")[1].split("\n\n")[2].splitlines()
    assert header == "| model | budget 4 | budget 8 |"
    [[model, low, high]] = [line.strip("| ").split(" | ") for line in lines]
    assert model == "`edm`" and high.startswith("`rho_5` 3.10 ± 0.248") and high.endswith(", alone")
    assert low.startswith("`rho_3` 1.02 ± 0.0497") and low.endswith("; or `rho_5`") and "(too low by about " in low
    assert (
        "Of the 6 samplers of edm, these may have the lowest score, by budget (NFE): rho_3 or rho_5 at 4; rho_5 alone "
        "at 8." in text
    )


def test_the_best_sampler_if_others_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curves = {name: CURVES[name] for name in ("edm", "rho_3", "rho_5")}
    paths = made_up_study(tmp_path, curves, [0, 1])
    fail(paths, "edm", (3, 7), (0,))
    fail(paths, "rho_3", (3, 7), (1,))
    fail(paths, "rho_5", (3,), (1,))
    build(paths)
    _, first, second = row(markdown(paths), "`edm`", "## Samplers of each model")
    assert first == "failed" and second.startswith("`rho_5` ") and second.endswith(", no other result")


def test_samples_of_failed_points_are_omitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another seed of the point failed, the stored images of the first seeds are omitted too."""
    monkeypatch.chdir(tmp_path)
    shown: list[dict[str, dict[int, np.ndarray]]] = []
    monkeypatch.setattr("pipeline.report.sections.samples.samples_figure", lambda path, grid: shown.append(grid))
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    fail(paths, "flow", (7,), (1,))
    samples(Report(paths, tmp_path))
    assert [list(cells) for cells in shown[0].values()] == [[3, 7], [3]]


STRANGE = "模型 <script>alert(1)</script> '\"&"


@drawn
def test_names_in_any_script_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A title of 200 characters, methods and classes in other alphabets, with quotes and tags."""
    monkeypatch.chdir(tmp_path)
    curves = {
        "edm": {"model": "edm", "method": STRANGE},
        "flow": {"model": "edm", "method": "$\\frac{1}{0}$ _x_ **y**"},
    }
    paths = made_up_study(tmp_path, curves | {"rho_3": {"model": "edm", "rho": 3}}, [0])
    rows = json.loads((paths.rows / "report.json").read_text())
    write_json(paths.rows / "report.json", rows | {"title": (STRANGE * 9)[:200]})
    fail(paths, "flow", (7,), (0,))
    build(paths)
    content = (paths.reports / "report.html").read_text()
    page = ParsedPage(content)
    assert "b" not in page.tags and "<script>alert" not in content
    assert page.text.count(STRANGE) > 3 and (STRANGE * 9)[:200] in page.text and "\\frac{1}{0}" in page.text
    first = markdown(paths).split("\n## How to read")[0]
    assert STRANGE in first and "1 set of samples failed, of flow." in first
