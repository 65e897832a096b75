"""The section on few steps by training: its ways, numbers and findings, in made-up studies."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.files import Paths
from pipeline.report.build import build
from pipeline.report.page import unmarked
from pipeline.report.sections import few_steps
from pipeline.report.study import Report
from tests.report.studies import fail, made_up_study, markdown, row, score, write_cells

STUDENT: dict[str, Any] = {"base": "edm", "budget": "total", "images": 280_000}
MODELS: dict[str, dict[str, Any]] = {
    "edm": {"images": 140_000},
    "long": {"images": 280_000},
    "pd": STUDENT | {"objective": "progressive"},
    "cd": STUDENT | {"objective": "consistency_distillation"},
    "ct": {"base": "edm", "objective": "consistency_training", "images": 280_000},
    "flow": {"parametrization": "flow", "noise": "flow_uniform", "images": 140_000},
    "reflow": {"base": "flow", "pairs": "reflow", "budget": "total", "images": 280_000},
    "other": {"images": 50_000},
}
CURVES: dict[str, dict[str, Any]] = {
    "edm": {"model": "edm", "solver": "ddim", "nfe": [1, 2, 3, 4, 8, 35]},
    "ipndm": {"model": "edm", "solver": "ipndm", "nfe": [1, 2, 3, 4, 8]},
    "fitted": {"model": "edm", "solver": "ddim", "discretization": "optimised", "nfe": [1, 2, 3, 4, 8]},
    "long": {"model": "long", "solver": "ddim", "nfe": [1, 2, 4, 8]},
    "pd": {"model": "pd", "solver": "ddim", "finest_steps": 16, "nfe": [1, 2, 4, 8]},
    "cd": {"model": "cd", "solver": "consistency", "nfe": [1, 2, 4, 8]},
    "ct": {"base": "cd", "model": "ct"},
    "flow": {"model": "flow", "solver": "euler", "nfe": [1, 2, 4, 8]},
    "reflow": {"base": "flow", "model": "reflow"},
    "other": {"model": "other", "solver": "ddim", "nfe": [1, 2, 4, 8]},
}
MEANS: dict[str, dict[int, float]] = {
    "edm": {1: 90, 2: 9, 3: 5, 4: 4, 8: 2, 35: 1},
    "ipndm": {1: 90, 2: 8, 3: 4, 4: 3.5, 8: 2},
    "fitted": {1: 90, 2: 7, 3: 3, 4: 2, 8: 1.1},
    "long": {1: 80, 2: 8, 4: 3, 8: 1.5},
    "pd": {1: 6, 2: 5, 4: 4, 8: 3},
    "cd": {1: 2, 2: 1.8, 4: 1.6, 8: 1.4},
    "ct": {1: 9, 2: 8, 4: 7, 8: 6},
    "flow": {1: 70, 2: 30, 4: 10, 8: 3},
    "reflow": {1: 20, 2: 10, 4: 5, 8: 3},
    "other": {1: 90, 2: 8, 4: 8, 8: 8},
}
HEADING = "## Few steps by training"


def study(
    folder: Path,
    changed: dict[str, dict[int, float]] | None = None,
    spread: float = 0.02,
    without: tuple[str, ...] = (),
) -> Paths:
    """A study whose curves have these means over three trainings, spread by a share of them."""
    curves = {name: keys for name, keys in CURVES.items() if name not in without}
    used = {curves[name]["model"] for name in curves} | {"edm", "flow"}
    models = {name: keys for name, keys in MODELS.items() if name in used}
    paths = made_up_study(folder, curves, [0, 1, 2], models=models)
    for place, name in enumerate(curves):
        means = MEANS[name] | (changed or {}).get(name, {})
        write_cells(paths.curve(name), [[0, 0], [1, 1], [2, 2]], [(nfe, nfe) for nfe in means], {})
        signs = [(1, -1, 0), (0, 1, -1), (-1, 0, 1)][place % 3]
        score(paths, {name: {n: [mean * (1 + spread * sign) for sign in signs] for n, mean in means.items()}})
    return paths


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The lines of the figure instead of a file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    kept: dict[str, Any] = {}
    monkeypatch.setattr(few_steps, "curves_figure", lambda path, lines, *_: kept.update(lines))
    return kept


def part(paths: Paths, folder: Path) -> dict[str, Any]:
    found = few_steps.section(Report(paths, folder))
    assert found is not None
    return {key: unmarked(text) if isinstance(text, str) else text for key, text in found.items()}


def test_ways_have_their_teachers_kinds_and_costs(tmp_path: Path, drawn: dict[str, Any]) -> None:
    found = {way.label: way for way in few_steps.ways(Report(study(tmp_path), tmp_path))}
    assert {label: (way.kind, way.teacher, way.curves) for label, way in found.items()} == {
        "edm (training-free)": ("training-free", "edm", ["edm", "ipndm"]),
        "edm (fitted grid)": ("fitted", "edm", ["fitted"]),
        "flow (training-free)": ("training-free", "flow", ["flow"]),
        "long (denoising, equal images)": ("denoising", "long", ["long"]),
        "pd": ("student", "edm", ["pd"]),
        "cd": ("student", "edm", ["cd"]),
        "ct": ("student", "edm", ["ct"]),
        "reflow": ("student", "flow", ["reflow"]),
    }
    once = found["edm (training-free)"].passes
    assert found["long (denoising, equal images)"].passes == pytest.approx(2 * once, rel=0.01)
    assert found["pd"].passes == pytest.approx(once * (1 + 5 / 3), rel=0.01)  # two evaluations of its teacher
    assert found["cd"].passes == pytest.approx(once * (1 + 6 / 3), rel=0.01)  # Heun's step and its own answer
    assert found["ct"].passes == pytest.approx(once * 2 * 4 / 3, rel=0.01)


def test_without_a_student_there_is_no_section(tmp_path: Path, drawn: dict[str, Any]) -> None:
    """Reflow alone is a choice of pairs; only beside another objective does it belong here."""
    paths = study(tmp_path, without=("pd", "cd", "ct"))
    assert few_steps.section(Report(paths, tmp_path)) is None and not drawn


def test_the_table_names_the_best_sampler_of_several(tmp_path: Path, drawn: dict[str, Any]) -> None:
    found = part(study(tmp_path), tmp_path)
    free = row("---" + found["table"], "training-free", "---")
    assert free[1] == "1.00" and free[3].startswith("8.00") and "`ipndm`" in free[3]
    assert row(found["table"], "| cd", "way")[2].startswith("**2.00")
    assert [label for label in drawn] == [way.label for way in few_steps.ways(Report(Paths("made_up"), tmp_path))]
    assert {nfe: point.mean for nfe, point in drawn["edm (training-free)"].items()} == pytest.approx(
        {1: 90, 2: 8, 3: 4, 4: 3.5, 8: 2, 35: 1}
    )


def test_fitted_solvers_are_a_way_apart_from_fitted_grids(
    tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part(study(tmp_path), tmp_path)["solvers"] is False
    monkeypatch.setitem(CURVES, "gs", {"model": "edm", "solver": "fitted", "nfe": [2, 3, 4, 8]})
    monkeypatch.setitem(MEANS, "gs", {2: 6, 3: 2, 4: 1.5, 8: 1})
    paths = study(tmp_path)
    found = [way for way in few_steps.ways(Report(paths, tmp_path)) if way.teacher == "edm" and way.kind != "student"]
    assert [(way.label, way.kind, way.curves) for way in found] == [
        ("edm (training-free)", "training-free", ["edm", "ipndm"]),
        ("edm (fitted grid)", "fitted", ["fitted"]),
        ("edm (fitted solver)", "fitted", ["gs"]),
    ]
    assert part(paths, tmp_path)["solvers"] is True


def test_pairs_of_noise_and_data_are_not_plain_denoising(
    tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"base": "flow", "pairs": "optimal_transport", "images": 280_000}
    for table, added in ((MODELS, own), (CURVES, CURVES["long"] | {"model": "ot"}), (MEANS, MEANS["long"])):
        monkeypatch.setitem(table, "ot", added)
    found = part(study(tmp_path), tmp_path)
    assert "ot (pairs optimal_transport, equal images)" in drawn
    assert found["of_pairs"] and any("optimal-transport pairs on as many images" in text for text in found["findings"])
    assert [*few_steps.ways(Report(study(tmp_path), tmp_path))][-1].kind == "pairs"


def test_the_question_is_answered_for_every_teacher(tmp_path: Path, drawn: dict[str, Any]) -> None:
    findings = part(study(tmp_path), tmp_path)["findings"]
    assert findings[0].startswith(
        "The best student of edm at 1 evaluation, relative to the best sampler of edm, which took 140,000 images where "
        "its students took 280,000 in total, by budget: better at 1, 2 and 3, "
    )
    assert "The same, relative to plain denoising on as many in total: " in findings[0]
    ratio = re.search(r"At 3 it is ×0\.667 \((.*?) to (.*?)\), better, corrected (.*?) to (.*?);", findings[0])
    assert ratio
    low, high, lowest, highest = map(float, ratio.groups())
    assert lowest < low < 2 / 3 < high < highest < 1
    assert "the lowest means are cd (2.00) and fitted (3.00), for these two alone ×0.667 (" in findings[0]
    assert findings[1].startswith("The best student of flow at 1 evaluation") and "At 3" not in findings[1]


@pytest.mark.parametrize(("mean", "word"), [(3.0, "equivalent"), (4.5, "worse")])
def test_the_answer_may_be_another_one(tmp_path: Path, drawn: dict[str, Any], mean: float, word: str) -> None:
    found = part(study(tmp_path, {"cd": {1: mean}}, spread=0.005), tmp_path)
    assert f"), {word}, corrected" in found["findings"][0]


def test_noise_leaves_the_question_open(tmp_path: Path, drawn: dict[str, Any]) -> None:
    found = part(study(tmp_path, {"cd": {1: 2.6}}, spread=0.4), tmp_path)
    assert "), undecided, corrected" in found["findings"][0]


def test_the_findings_say_what_may_be_best_and_how_students_compare(tmp_path: Path, drawn: dict[str, Any]) -> None:
    found = part(study(tmp_path), tmp_path)["findings"]
    assert "in few steps, by budget (NFE): cd alone at 1, 2 and 4; edm (fitted grid) alone at 8." in found[2]
    said = "the best sampler of their teacher or base at the same budget: pd better at 1 and 2, worse at 4 and 8"
    assert f"relative to {said}" in found[3]
    assert "relative to plain denoising on as many images in total at the same budget" in found[4]
    assert "reflow better at 1, " in found[4]


def test_the_cheapest_way_to_each_score(tmp_path: Path, drawn: dict[str, Any]) -> None:
    """The floor is 0.25, and the reference, the teacher at 35, has 1. Ways of equal cost are listed together."""
    found = part(study(tmp_path, spread=0.001), tmp_path)
    assert found["reference"] == "1.00 (edm at NFE 35)"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found["goals"].splitlines()[2:]]
    both = "edm (training-free), edm (fitted grid)"
    assert lines == [
        ["7.75", "pd", "edm (fitted grid)", both, f"{both}, flow (training-free)"],
        ["4.00", "cd", "cd", both, f"{both}, flow (training-free)"],
        ["1.75", "none", "none", "cd", "edm (fitted grid)"],
        ["1.15", "none", "none", "none", "edm (fitted grid)"],
    ]
    found = part(study(tmp_path, spread=0.2), tmp_path)
    assert "perhaps" in found["goals"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_student_that_failed_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    fail(paths, "cd", nfes=(1, 2), seeds=seeds)
    fail(paths, "ct", nfes=(1, 2, 4, 8), seeds=seeds)
    build(paths)
    text = markdown(paths)
    assert row(text, "| cd ", HEADING)[2:4] == ["failed", "failed"]
    assert "the lowest means are pd (6.00) and fitted (3.00)" in text
    assert "(figures/few_steps.png)" in text and (paths.reports / "figures" / "few_steps.png").exists()


def test_all_students_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path)
    for name in ("pd", "cd", "ct", "reflow"):
        fail(paths, name, nfes=(1, 2, 4, 8))
    build(paths)
    assert HEADING not in markdown(paths)


def test_students_without_a_teacher_in_the_study(tmp_path: Path, drawn: dict[str, Any]) -> None:
    """A study of consistency training alone has nothing to compare it with."""
    models = {"ct": {"objective": "consistency_training"}}
    curves = {"ct": {"model": "ct", "solver": "consistency", "nfe": [1, 2]}}
    paths = made_up_study(tmp_path, curves, [0, 1, 2], models=models)
    write_cells(paths.curve("ct"), [[0, 0], [1, 1], [2, 2]], [(1, 1), (2, 2)], {})
    found = part(paths, tmp_path)
    assert found["goals"] == found["of_teacher"] == found["of_denoising"] == ""
    assert len(found["findings"]) == 1 and "ct alone" in found["findings"][0]
