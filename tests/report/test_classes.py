"""The section on results by class: known frequencies and distances, and missing features."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_json
from pipeline.common.sealed import save_json
from pipeline.common.tensors import save_tensors
from pipeline.data.dataset import Dataset, save
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.reference import make_reference, save_reference
from pipeline.report.build import build
from pipeline.report.sections import classes
from pipeline.report.study import Report
from pipeline.sampling.guidance import sample_labels
from tests.report.studies import HOSTILE, PROVENANCE, made_up_study

COUNTS = {HOSTILE: 120, "two": 90, "three": 90}
CENTRES = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])
MODELS = {"edm": {}, "told": {"labels": "classes"}}
CURVES = {"edm": {"model": "edm", "method": "untold"}, "told": {"model": "told", "method": "told"}}


def drawn(labels: torch.Tensor, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Features (n, 3) around the centres of classes (n,), those of the last class off by `shift`."""
    noise = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return (CENTRES[labels] + 0.3 * noise + shift * (labels == 2)[:, None]).float()


def study(folder: Path, curves: dict[str, dict] | None = None) -> Paths:
    """A made-up study with features by class: an untold curve with few of the last class, those of the first one's
    number instead, which are far off; and one that makes what it is told."""
    paths = made_up_study(folder, curves or CURVES, [0, 1], models=MODELS)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(list(COUNTS.values())))
    content, summary = make_reference(Extracted(drawn(labels, 0), None), "e" * 64)
    save_reference(content, paths.reference)
    own = {"reference_hash": summary["reference_hash"]}
    floor = paths.metrics("reference", "floor")
    write_json(floor, json.loads(floor.read_text()) | own)
    data = paths.metrics("prepare", "data")
    known = {"classes": list(COUNTS), "class_counts": COUNTS, "count": 300}
    write_json(data, json.loads(data.read_text()) | known)
    save(Dataset(torch.zeros(300, 1, 2, 2).byte(), labels, tuple(COUNTS)), paths.data)
    untold = torch.tensor([0] * 150 + [1] * 100 + [2] * 50)
    told = sample_labels(0, range(300), list(COUNTS.values()))
    for name in curves or CURVES:
        features = drawn(told, 1) if name == "told" else drawn(untold, 2, shift=1.0)
        keep(paths, name, features, own)
    return paths


def keep(paths: Paths, name: str, features: torch.Tensor, own: dict[str, str]) -> None:
    """The features of a curve's last step and first seeds, and the reference that it was measured against."""
    file = paths.curve(name) / "results.json"
    results = json.loads(file.read_text()) | {"provenance": PROVENANCE | own}
    save_json(file, results)
    place = next(i for i, cell in enumerate(results["cells"]) if cell["nfe"] == 7)
    save_tensors(paths.curve(name) / "features.safetensors", {"features": features}, "cell", place)


def test_real_features_are_in_their_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels must follow the random order of the reference."""
    monkeypatch.chdir(tmp_path)
    real = classes.read_real(Report(study(tmp_path), tmp_path))
    assert real.agreement == 1 and real.counts.tolist() == list(COUNTS.values())
    torch.testing.assert_close(real.centroids, CENTRES.double(), atol=0.15, rtol=0)


def test_a_view_has_counts_and_distances_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(study(tmp_path), tmp_path)
    real = classes.read_real(report)
    untold, told = (classes.view(report, real, name) for name in CURVES)
    assert untold and told and untold.nfe == 7
    assert untold.counts.tolist() == [150, 100, 50] and untold.agreement is None
    assert told.agreement == 1
    near, _, far = untold.distances
    assert near and far and far.value > 10 * abs(near.value) and far.value > 5 * far.se
    assert all(own and abs(own.value) < 4 * own.se for own in told.distances)


def test_agreement_uses_the_requested_class_of_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of the right classes in another order do not agree with the requested classes."""
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    report = Report(paths, tmp_path)
    own = {"reference_hash": report.measured["reference_hash"]}
    keep(paths, "told", drawn(sample_labels(0, range(300), list(COUNTS.values())).flip(0), 1), own)
    found = classes.view(report, classes.read_real(report), "told")
    assert found and found.agreement is not None and 0.2 < found.agreement < 0.6


def test_too_few_of_a_class_have_no_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    report = Report(paths, tmp_path)
    labels = torch.tensor([0] * 100 + [1] * (classes.LEAST - 1))
    keep(paths, "edm", drawn(labels, 3), {"reference_hash": report.measured["reference_hash"]})
    found = classes.view(report, classes.read_real(report), "edm")
    assert found and [own is None for own in found.distances] == [False, True, True]
    shown = classes.section(Report(paths, tmp_path))
    assert shown and "too few" in shown["by_class"] + shown["by_curve"] and "nan" not in str(shown)


def test_the_report_has_escaped_results_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    build(paths)
    text = (paths.reports / "report.md").read_text()
    section = text.split("## Results by class")[1].split("\n## ")[0]
    assert "assigns 100.0% of the real images" in section and "<script" not in section.replace("\\<", "")
    assert "Classes of untold at NFE 7: the class shares of this network's samples differ from those of the" in section
    assert "three 0.56 times its share of the data" in section and "three has the largest distance" in section
    assert "100.0% of its samples are in their requested class" in section
    assert (paths.reports / "figures/classes.png").exists()


def test_results_by_class_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_figures: None) -> None:
    monkeypatch.chdir(tmp_path)
    classes.section(Report(study(tmp_path), tmp_path))
    assert (tmp_path / "classes.png").stat().st_size > 5_000


def test_a_failed_cell_is_reported_without_results_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    save_tensors(paths.curve("told") / "features.safetensors", {"features": torch.empty(0, 3)}, "cell", 0)
    build(paths)
    section = (paths.reports / "report.md").read_text().split("## Results by class")[1]
    assert "told has no results by class" in section
    save_tensors(paths.curve("edm") / "features.safetensors", {"features": torch.empty(0, 3)}, "cell", 0)
    assert classes.section(Report(paths, tmp_path)) is None


def test_another_reference_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(list(COUNTS.values())))
    save_reference(make_reference(Extracted(drawn(labels, 9), None), "e" * 64)[0], paths.reference)
    with pytest.raises(StudyError, match="the curves were measured against another one"):
        build(paths)


def test_tables_show_the_classes_with_the_largest_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classes, "SHOWN", 1)
    paths = study(tmp_path, {"edm": CURVES["edm"]})
    shown = classes.section(Report(paths, tmp_path))
    assert shown and shown["left_out"] == 2
    assert "\n| three |" in shown["by_class"] and "\n| two |" not in shown["by_class"]


def test_shares_have_the_exact_interval_given_those_of_the_data() -> None:
    ratio, low, high = classes.share(30, 300, 0.2)
    assert ratio == pytest.approx(0.5)
    exact = stats.binomtest(30, 300).proportion_ci(0.95)
    assert (low, high) == pytest.approx((exact.low / 0.2, exact.high / 0.2))
    none, every = (stats.binomtest(count, 300).proportion_ci(0.99) for count in (0, 300))
    assert classes.share(0, 300, 0.2, 0.01) == pytest.approx((0, 0, none.high / 0.2))
    assert classes.share(300, 300, 0.2, 0.01) == pytest.approx((5, every.low / 0.2, 5))
    assert all(map(math.isnan, classes.share(3, 300, 0.0)))


def test_shares_are_tested_by_their_fit_to_the_data() -> None:
    own, expected = np.array([30, 50, 20, 0]), np.array([0.3, 0.3, 0.4, 0])
    apart, p = classes.fit(own, expected)
    assert apart == pytest.approx((0 + 0.2 + 0.2) / 2)
    assert p == pytest.approx(stats.chisquare([30, 50, 20], [30, 30, 40]).pvalue)
    assert classes.fit(np.array([30, 50, 19, 1]), expected)[1] == 0  # a class that the data do not have
    assert classes.fit(np.array([5, 0]), np.array([1.0, 0.0]))[1] == 1


def test_the_fit_of_rare_classes_holds_its_level() -> None:
    """Classes with few expected samples are pooled, so that samples of the data's shares pass 95% of the time."""
    expected = np.array([0.5, 0.3, 0.17, *[0.003] * 10])
    random = np.random.default_rng(0)
    p = np.array([classes.fit(random.multinomial(200, expected), expected)[1] for _ in range(2000)])
    assert 0.03 < (p < 0.05).mean() < 0.07


def test_data_without_classes_have_no_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert classes.section(Report(made_up_study(tmp_path, CURVES, [0], models=MODELS), tmp_path)) is None
