"""The findings: leaders, costs and choices."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.common.files import Paths, read_json, write_json
from pipeline.report.findings import FIRST, findings
from pipeline.report.page import unmarked
from pipeline.report.sections import cost, design
from pipeline.report.study import Report
from tests.report.studies import change, fail, made_up_study, write_cells

METHODS: dict[str, dict] = {
    "edm": {"model": "edm", "method": "EDM"},
    "flow": {"model": "edm", "method": "flow", "discretization": "flow", "solver": "euler"},
    "ddim": {"model": "edm", "method": "DDIM", "solver": "ddim"},
}
RHOS: dict[str, dict] = {f"rho_{n}": {"model": "edm", "rho": n} for n in (2, 3, 4, 5, 6)}


def study(folder: Path, scores: dict[str, dict[int, list[float]]], rows: dict[str, dict]) -> tuple[Paths, Report]:
    """A made-up study of three seeds with these scores by curve, NFE and seed."""
    paths = made_up_study(folder, rows, [0, 1, 2])
    for name, own in scores.items():
        change(paths, name, own)
    return paths, Report(paths, folder)


NOISE = np.exp(np.random.default_rng(0).normal(0, 0.01, (9, 2, 3)))


def scaled(low: float, high: float, place: int) -> dict[int, list[float]]:
    """Scores at NFE 3 and 7 with a little noise, a different one for each place."""
    return {nfe: (score * NOISE[place, i]).tolist() for i, (nfe, score) in enumerate(((3, low), (7, high)))}


SCORES = {"edm": scaled(9, 1, 0), "flow": scaled(3, 1, 1), "ddim": scaled(3, 2, 2)}


def test_findings_name_the_methods_that_may_be_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = study(tmp_path, SCORES, METHODS)
    first, more = findings(report)
    [text] = [text for text in first if text.startswith("Methods that may have the lowest")]
    named = [part.split(" at ") for part in text.rstrip(".").split(": ")[1].split("; ")]
    assert {budget: set(names.split(" or ")) for names, budget in named} == {
        "4": {"flow", "DDIM"},
        "8": {"EDM", "flow"},
    }
    assert "DDIM, relative to EDM: better at 4, worse at 8." in more
    [text] = [text for text in more if text.startswith("flow, relative to EDM: better at 4, ")]


def test_a_leader_far_ahead_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {"edm": scaled(1, 1, 0), "flow": scaled(2, 2, 1), "ddim": scaled(3, 3, 2)}
    _, report = study(tmp_path, scores, METHODS)
    assert f"Methods that may have the lowest {report.score}, by budget (NFE): EDM alone at 4 and 8." in (
        findings(report).first
    )


def test_how_many_evaluations_a_method_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {
        "edm": {3: [1.01] * 3, 7: [1.0] * 3},
        "flow": {3: [2.0] * 3, 7: [1.0] * 3},
        "ddim": {3: [1.0] * 3, 7: [4.0] * 3},
    }
    _, report = study(tmp_path, scores, METHODS)
    [text] = [text for text in findings(report).first if text.startswith("Fewest evaluations")]
    assert text.endswith("within 5% of its lowest excess: EDM and DDIM with 3; flow with 7.")


def test_findings_count_choices_and_name_the_extremes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = METHODS | RHOS
    scores = {
        "edm": scaled(1, 1, 0),
        "rho_2": scaled(4, 9, 1),
        "rho_3": scaled(2, 2, 2),
        "rho_4": scaled(0.5, 0.2, 3),
        "rho_5": scaled(0.5, 2, 4),
        "rho_6": scaled(1, 1, 0),
    }
    scores |= {"flow": scaled(2, 2, 5), "ddim": scaled(2, 2, 6)}
    _, report = study(tmp_path, scores, rows)
    first, more = findings(report)
    [text] = [text for text in first if text.startswith("Of 5 choices, each compared with its base at all budgets, ")]
    for part in (
        "2 are worse at one budget or more and better at none",
        "1 is better at one budget or more and worse at none",
        "1 is better at some budgets and worse at others",
        "1 is equivalent at all budgets",
        "the largest improvement is rho 4 at 8, ×0.2",
        "the largest worsening is rho 2 at 8, ×8.9",
    ):
        assert part in text, part
    [text] = [text for text in more if text.startswith("Rho, relative to edm: ")]
    assert "rho 2 and rho 3 are worse at one budget or more and better at none" in text
    assert "rho 5 is better at some budgets and worse at others" in text and len(first) <= FIRST


def test_findings_tell_the_course_of_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"edm": METHODS["edm"]} | {name: RHOS[name] for name in ("rho_2", "rho_3", "rho_4")}
    scores = {"edm": scaled(1, 1, 0), "rho_2": scaled(4, 0.2, 1), "rho_3": scaled(1, 2, 0), "rho_4": scaled(2, 2, 2)}
    _, report = study(tmp_path, scores, rows)
    [text] = [text for text in findings(report).more if text.startswith("Rho, relative to edm: ")]
    assert "rho 2: worse at 4, better at 8; rho 3: equal at 4, worse at 8; rho 4: worse at 4 and 8." in text


def test_findings_of_other_sections_fill_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = study(tmp_path, SCORES, METHODS)
    others = [[f"section {k} first", f"section {k} second"] for k in range(9)]
    first, more = findings(report, others)
    assert len(first) == FIRST and first[-1].endswith("first") and "section 0 first" in first
    assert {text for own in others for text in own} == {t for t in (*first, *more) if t.startswith("section")}


def test_differences_between_single_trainings_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two samplings of one network each, differences between models are marked, those between samplers are not."""
    monkeypatch.chdir(tmp_path)
    curves = {"edm": METHODS["edm"], "weighted": {"model": "edm_snr"}, "rho_3": {"model": "edm", "rho": 3}}
    paths = made_up_study(tmp_path, curves, [0])
    for name in curves:
        write_cells(paths.curve(name), [[0, 0], [0, 1]], [(2, 3), (4, 7)], {})
    rows = read_json(paths.row("", "report"))
    for entry in rows["curves"].values():
        entry["row"]["seeds"] = [[0, 0], [0, 1]]
    write_json(paths.row("", "report"), rows)
    for name, score in (("edm", 2.0), ("weighted", 1.0), ("rho_3", 1.0)):
        change(paths, name, {3: [score], 7: [score]})
    report = Report(paths, tmp_path)
    lines = {line.split("`")[1]: line for line in unmarked(design.effects(report)).splitlines()[2:]}
    assert lines["weighted"].count(" (one training each)") == 2 and "one training" not in lines["rho_3"]
    told = " ".join(findings(report).more)
    assert "(one training each) at 4 and 8" in told


def test_the_design_table_links_each_row_to_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {"edm": scaled(1, 1, 0), "rho_2": scaled(4, 4, 1), "rho_3": scaled(0.5, 0.5, 2), "rho_4": scaled(2, 1, 0)}
    paths, _ = study(tmp_path, scores, {"edm": METHODS["edm"]} | RHOS)
    fail(paths, "rho_5", (7,), (1,))
    report = Report(paths, tmp_path)
    lines = {
        line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")
        for line in unmarked(design.effects(report)).splitlines()[2:]
    }
    assert lines["`rho_2`"][:3] == ["`rho_2`", "rho 2", "`edm`"]
    assert lines["`rho_2`"][3].startswith("4: ×4.") and lines["`rho_2`"][4].startswith("8: ×")
    assert all(text.endswith(", worse") for text in lines["`rho_2`"][3:5])
    assert lines["`rho_3`"][4].endswith(", better") and lines["`rho_4`"][4] == "8: equal"
    assert lines["`rho_5`"][4] == "8: failed"
    assert all(line[5] == "[rho](figures/ablation_rho.png)" for line in lines.values())


def test_costs_are_those_of_the_best_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = study(tmp_path, {"edm": {3: [9.0] * 3, 7: [1.0] * 3}}, {"edm": METHODS["edm"]})
    [line] = [line for line in cost.costs(report).splitlines() if "`edm`" in line]
    assert line == "| `edm` | 1.00 | 7 | `edm` | 12,345 | 6.70 | 46.9 |"
