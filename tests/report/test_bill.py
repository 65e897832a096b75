"""What trainings cost, in the report and in its summary: only in studies with a model that learns from a teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.files import Paths
from pipeline.report.build import build
from pipeline.report.sections import cost
from pipeline.report.study import Report
from pipeline.report.summary import summary
from tests.report.studies import made_up_study, markdown, row

HEADING = "### What a training costs"
TOTAL = {"budget": "total", "images": 256_000}
MODELS: dict[str, dict[str, Any]] = {
    "edm": {"images": 128_000},
    "snr": {"weighting": "snr", "images": 64_000},
    "pd": {"base": "edm", "objective": "progressive", "first_steps": 1, **TOTAL},
    "cd": {"base": "edm", "objective": "consistency_distillation", **TOTAL},
    "ect": {"base": "edm", "objective": "easy_consistency", **TOTAL},
    "heir": {"base": "cd", "distance": "squared"},
    "long": {"images": 256_000},
    "flow": {"parametrization": "flow", "noise": "flow_uniform", "images": 128_000},
    "again": {"base": "flow", "pairs": "reflow", "reflow_pairs": 1_000},
    "third": {"base": "again", "pairs": "reflow"},
}
THOUSANDS = {  # images, then evaluations: own, of the teacher, and both; passes relative to the teacher's or the base's
    "edm": (128, 0, 128, 128, 0, 128, 1.0),
    "pd": (128, 128, 256, 384, 128, 512, 1 + 5 / 3),
    "cd": (128, 128, 256, 512, 128, 640, 1 + 6 / 3),
    "ect": (128, 128, 256, 256, 128, 384, 1 + 4 / 3),
    "heir": (128, 128, 256, 512, 128, 640, 1 + 6 / 3),
    "long": (256, 0, 256, 256, 0, 256, 2.0),
    "flow": (128, 0, 128, 128, 0, 128, 1.0),
    "again": (128, 128, 256, 192, 128, 320, 1 + (3 * 128 + 64) / (3 * 128)),
    "third": (128, 256, 384, 192, 320, 512, 1 + (3 * 128 + 64) / (6 * 128 + 64)),
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.chdir(tmp_path)
    curves = {name: {"model": name} for name in ("edm", "ect", "third")}
    return made_up_study(tmp_path, curves, [0, 1], models=MODELS)


def test_the_report_lists_what_students_their_bases_and_as_long_trainings_cost(study: Paths) -> None:
    build(study)
    text = markdown(study)
    for name, (*counts, passes) in THOUSANDS.items():
        stated = [f"{1000 * count:,}" if count else "" for count in counts]
        assert row(text, f"`{name}`", HEADING)[2:] == [*stated, f"{passes:.2f}"]
    part = text.split(HEADING)[1].split("\n## ")[0]
    assert "`snr`" not in part and len([line for line in part.splitlines() if line.startswith("| `")]) == len(THOUSANDS)
    ways = {name: row(text, f"`{name}`", HEADING)[1] for name in ("edm", "ect", "again")}
    assert ways == {"edm": "denoising", "ect": "easy_consistency", "again": "pairs reflow"}
    found = json.loads((study.reports / "summary.json").read_text())["trainings"]
    assert list(found) == list(THOUSANDS)
    for name, (*counts, _) in THOUSANDS.items():
        assert [n for key in ("images", "evaluations") for n in found[name][key].values()] == [1000 * n for n in counts]
        assert list(found[name]["images"]) == ["own", "teacher", "both"]


def test_a_study_without_a_teacher_says_nothing_of_it(plain: Paths, tmp_path: Path) -> None:
    report = Report(plain, tmp_path)
    assert HEADING not in markdown(plain) and cost.trainings(report) == ""
    assert "trainings" not in summary(report)
