"""The summary files that DVC compares."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.common.files import Paths
from pipeline.common.sealed import save_json
from pipeline.report.results import FAILED
from pipeline.report.study import Report
from pipeline.report.summary import CURVE_COLUMNS, summary
from tests.report.studies import CURVES, MODELS, made_up_study


def flat(value: object) -> list[object]:
    return [leaf for each in value.values() for leaf in flat(each)] if isinstance(value, dict) else [value]


def test_a_summary_is_small_and_agrees_with_the_report(plain: Paths, tmp_path: Path) -> None:
    report = Report(plain, tmp_path)
    found = json.loads((plain.reports / "summary.json").read_text())
    assert found["score"] == report.score and found["budget"] == 8 and found["failed"] == 0
    assert list(found["methods"]) == report.methods
    for name, value in found["methods"].items():
        assert value == pytest.approx(report.estimate(name, 8).mean, rel=1e-5)
    means = {(name, nfe): point.mean for name in CURVES for nfe, point in report.points(name).items()}
    best = found["best"]
    assert best["score"] == pytest.approx(min(means.values()), rel=1e-5)
    assert means[best["curve"], best["nfe"]] == min(means.values())
    assert all(isinstance(leaf, int | float | str) for leaf in flat(found)) and len(flat(found)) <= 7 + len(CURVES)


def test_the_curves_are_listed_by_figure_with_their_bases(plain: Paths, tmp_path: Path) -> None:
    report, found = Report(plain, tmp_path), pd.read_csv(plain.reports / "curves.csv")
    assert list(found.columns) == CURVE_COLUMNS
    assert set(found.figure) == {"methods", *report.ablations} and set(found.curve) == set(CURVES)
    for title, names in report.ablations.items():
        assert set(found[found.figure == title].curve) == {*names, *(report.curves[n].base for n in names)}
    assert (found.low < found.score).all() and (found.score < found.high).all()
    losses = pd.read_csv(plain.reports / "training.csv")
    assert list(dict.fromkeys(losses.model)) == list(MODELS)
    assert losses.loss.tolist() == pytest.approx([1 / 64 + 1, 1 / 128 + 1] * len(MODELS), rel=1e-5)


def test_a_failed_method_is_omitted_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0])
    name = Report(paths, tmp_path).methods[-1]
    file = paths.curve(name) / "results.json"
    content = json.loads(file.read_text())
    content["cells"][-1] |= {FAILED: "not finite at step 1", "metrics": []}
    save_json(file, content)
    found = summary(Report(paths, tmp_path))
    assert found["failed"] == 1 and name not in found["methods"]
