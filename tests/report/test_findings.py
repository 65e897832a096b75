"""The findings: leaders, ties, costs and choices."""

from pathlib import Path

import pytest

from pipeline.common.files import Paths, read_json, write_json
from pipeline.report.findings import FIRST, findings, tied_from
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


BASE = [1.0, 1.2, 1.4]
SCORES = {
    "edm": {3: [9.0, 9.2, 9.4], 7: BASE},
    "flow": {3: [3.0, 3.2, 3.4], 7: [1.1, 1.1, 1.4]},  # a tie with edm at 8
    "ddim": {3: [3.1, 3.1, 3.5], 7: [2.0, 2.2, 2.4]},  # a tie with flow at 4 alone
}


def test_findings_name_methods_that_tie_from_a_budget_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = study(tmp_path, SCORES, METHODS)
    assert tied_from(report, [4]) == ("flow", "ddim") and tied_from(report, [8]) == ("edm", "flow")
    assert tied_from(report, [4, 8]) == ()
    first = findings(report).first
    assert "Methods that tie: EDM and flow at 8." in first
    assert f"Lowest {report.score} among the methods, by budget (NFE): flow tied at 4; EDM tied at 8." in (first)


def test_a_growing_tie_names_the_new_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = SCORES | {"flow": {3: [9.1, 9.1, 9.4], 7: [1.1, 1.1, 1.4]}, "ddim": {3: [1.0] * 3, 7: [1.1, 1.3, 1.2]}}
    _, report = study(tmp_path, scores, METHODS)
    [text] = [text for text in findings(report).first if text.startswith("Methods that tie")]
    assert text.endswith(": EDM and flow from 4 evaluations on; also DDIM at 8.")


def test_findings_say_that_no_methods_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {name: {nfe: [k + v for v in BASE] for nfe in (3, 7)} for k, name in enumerate(METHODS)}
    _, report = study(tmp_path, scores, METHODS)
    assert "No two methods tie at 8 evaluations, their largest common budget." in findings(report).first


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


def shifted(by: float) -> dict[int, list[float]]:
    return {nfe: [by + value for value in BASE] for nfe in (3, 7)}


def test_findings_count_choices_and_name_the_extremes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = METHODS | RHOS
    scores = {
        "edm": shifted(0),
        "rho_2": shifted(3),
        "rho_3": shifted(1),
        "rho_4": shifted(-0.5),
        "rho_5": shifted(-0.2),
    }
    scores |= {"rho_6": {3: BASE, 7: [1.1, 1.1, 1.4]}} | {name: shifted(0.1) for name in ("flow", "ddim")}
    _, report = study(tmp_path, scores, rows)
    first, more = findings(report)
    [text] = [text for text in first if text.startswith("Of 5 choices")]
    assert "2 are better, most of all rho 4: −0.500 (−0.500 to −0.500) relative to edm at budget 8; " in text
    assert "; 2 are worse, most of all rho 2: +3.00 " in text
    assert text.endswith("; 1 ties. By chance alone, about one in twenty would not tie.")
    [text] = [text for text in more if text.startswith("Rho, relative to edm")]
    assert "1 of 5 rows ties; 2 are better, the best is rho 4: −0.500 " in text
    assert "2 are worse, the worst is rho 2: +3.00 " in text
    assert "rho 3" not in text and len(first) <= FIRST


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
    assert lines["weighted"].count(", better (one training each)") == 2
    assert lines["rho_3"].count(", better") == 2 and "one training" not in lines["rho_3"]
    told = " ".join(findings(report).more)
    assert "weighting snr (one training each) " in told and "rho 3 (one" not in told


def test_the_design_table_links_each_row_to_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scores = {"edm": shifted(0), "rho_2": shifted(3), "rho_3": shifted(-0.5), "rho_4": {3: [1.1, 1.1, 1.4], 7: BASE}}
    paths, _ = study(tmp_path, scores, {"edm": METHODS["edm"]} | RHOS)
    fail(paths, "rho_5", (7,), (1,))
    report = Report(paths, tmp_path)
    lines = {
        line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")
        for line in unmarked(design.effects(report)).splitlines()[2:]
    }
    assert lines["`rho_2`"][:3] == ["`rho_2`", "rho 2", "`edm`"]
    assert lines["`rho_2`"][3].startswith("4: +3.00 (") and lines["`rho_2`"][4].startswith("8: +3.00 (")
    assert all(text.endswith(", worse") for text in lines["`rho_2`"][3:5])
    assert lines["`rho_3`"][4].endswith(", better") and lines["`rho_4`"][3].endswith(", tie")
    assert "equal" in lines["`rho_4`"][4] and lines["`rho_5`"][4] == "8: failed"
    assert all(line[5] == "[rho](figures/ablation_rho.png)" for line in lines.values())


def test_costs_are_those_of_the_best_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = study(tmp_path, {"edm": {3: [9.0] * 3, 7: [1.0] * 3}}, {"edm": METHODS["edm"]})
    [line] = [line for line in cost.costs(report).splitlines() if "`edm`" in line]
    assert line == "| `edm` | 1.00 | 7 | `edm` | 12,345 | 6.70 | 46.9 |"
