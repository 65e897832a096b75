"""Committed results and the same cells made again: numbers come back, and differences are named and judged."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import pipeline.commands.verify
import stages.autoencode
import stages.features
import stages.grids
import stages.measure
import stages.prepare
import stages.reference
import stages.resolve
import stages.sweep
import stages.train
from pipeline.commands.cli import main
from pipeline.commands.committed import Committed, Record, choose, read_committed
from pipeline.commands.comparison import SAME_WEIGHTS
from pipeline.commands.remake import Place, Remade, remake
from pipeline.commands.verify import other_machine, other_rows, verify
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json, write_json, write_text
from pipeline.common.machine import machine
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import read_study
from pipeline.report.build import csv_text, provenance
from pipeline.report.results import FAILED, read_results
from stages import Arguments
from tests.commands.test_comparison import HERE

STUDY = """
study: {name: tiny}
data: {source: images}
features: {epochs: 1, width: 16}
defaults:
  models: {images: 256, batch: 64, train_seeds: [0, 1], channels: 8, blocks: 1, multipliers: [1]}
  curves: {samples: 40, sample_seeds: [0, 1], nfe: [4, 7]}
models:
  edm: {}
  flow: {parametrization: flow, noise: flow_uniform}
  again: {base: flow, pairs: reflow, reflow_pairs: 64}
  wild: {learning_rate: 1.0e+12}
curves:
  edm: {model: edm, method: EDM}
  again: {model: again}
  fitted: {model: flow, discretization: optimised, nfe: [4]}
  adaptive: {model: edm, solver: rk45, rtol: 0.1, atol: 0.1, nfe: [35]}
  diverging: {model: edm, solver: euler_maruyama, corrector_steps: 1, corrector_snr: 1.0e+12, nfe: [8]}
  wild: {model: wild, nfe: [4]}
sets:
  other: {source: images, nfe: 9}
"""
PATHS = Paths("tiny")
RESULTS = PATHS.reports / "results.csv"


def rows_of() -> Resolved:
    return resolve(read_study(Path("params.yaml")))


def run_study() -> None:
    """Run the stages that results come from, and commit what the report would."""
    rows = rows_of()

    def run(stage: Any, row: str = "") -> None:
        stage.main(Arguments("tiny", row))

    for stage in (stages.resolve, stages.prepare, stages.features, stages.reference, stages.autoencode):
        run(stage)
    for stage, names in ((stages.train, rows.models), (stages.grids, [""]), (stages.sweep, rows.curves)):
        for name in names:
            run(stage, name)
    run(stages.measure, "other")
    found = read_results(PATHS, rows)
    report: Any = SimpleNamespace(results=found.table, provenance=found.provenance, machines=found.machines)
    report.rows, report.curves, report.sets, report.flat = rows, rows.curves, rows.sets, rows.flat
    report.depth = lambda *place: None
    write_text(RESULTS, csv_text(report))
    write_json(PATHS.reports / "provenance.json", provenance(report))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study on a folder of images, as a stranger has it: no build/, and a cache of no use."""
    root, digits = tmp_path_factory.mktemp("study"), load_digits()
    for index, (image, label) in enumerate(zip(digits.images[:160], digits.target, strict=False)):
        (root / f"images/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(root / f"images/{label}/{index}.png")
    (root / "params.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_study()
    shutil.rmtree(root / "build")
    for file in (root / ".cache").rglob("*.*"):
        file.write_text("broken")
    return root


@pytest.fixture
def study(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished study to change, as the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def change(curve: str, metric: str, column: str, to: Any) -> None:
    """Write something else into a committed table. `to`: a value, or what to add to the number that is there."""
    table = pd.read_csv(RESULTS, dtype=str, keep_default_na=False)
    own = (table.curve == curve) & (table.metric == metric if metric else True)
    assert own.any()
    table.loc[own, column] = to if isinstance(to, str) else [repr(float(v) + to) for v in table[own][column]]
    write_text(RESULTS, table.to_csv(index=False, lineterminator="\n"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(finished: Path) -> Remade:
    """All cells of the finished study made again, which leaves the study as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        before, committed = contents(finished), read_committed(PATHS)
        [found] = remake(rows_of(), list(committed.cells), {committed.cells[HERE].hashes["extractor"]})
        assert contents(finished) == before
    return found


@pytest.fixture
def recorded(made: Remade, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are to be made again come from `made`."""

    def remade(rows: Resolved, places: list[Place], extractors: set[str]) -> list[Remade]:
        return [replace(made, cells={place: made.cells[place] for place in places})]

    monkeypatch.setattr(pipeline.commands.verify, "remake", remade)


@pytest.mark.torchrun
@pytest.mark.usefixtures("recorded")
def test_a_whole_study_comes_back_to_the_last_digit(study: Path) -> None:
    """Two flows, one taught by the other, a fitted grid, an adaptive solver, failures, an image set."""
    lines: list[str] = []
    found = verify(rows_of(), "all", lines.append)
    assert {n.result for n in found.numbers} == {"identical"}, [n for n in found.numbers if n.result != "identical"]
    assert found.sentences[0] == "Data, extractor, reference, weights and samples are the same."
    assert found.sentences[1:] == [
        f"{len(found.numbers)} numbers of 19 cells: {len(found.numbers)} identical, 0 within tolerance, 0 outside"
    ]
    assert lines == ["tiny: 19 of 19 cells, from nothing; no cache is used"]
    assert {n.place.curve for n in found.numbers if n.metric == FAILED} == {"diverging", "wild"}


@pytest.mark.torchrun
@pytest.mark.usefixtures("recorded")
def test_the_command_says_identical_and_ends_well(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--cells=edm:4:0,0 other"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: 4 of 19 cells, from nothing; no cache is used"
    assert lines[1].split()[:4] == ["curve", "NFE", "seeds", "metric"]
    assert [line.split()[:4] + line.split()[-1:] for line in lines[2:6]] == [
        ["edm", "3", "0,0", "fd_corrected", "identical"],
        *(["other", "9", f"0,{i}", "fd_corrected", "identical"] for i in range(3)),
    ]
    assert lines[-1] == "Every number: build/tiny/verify.csv"
    stated = pd.read_csv(PATHS.build / "verify.csv")
    assert len(stated) == 4 * 12 and set(stated.result) == {"identical"} and (stated.difference == 0).all()
    committed = pd.read_csv(RESULTS)
    own = committed[(committed.curve == "edm") & (committed.nfe == 3) & (committed.train_seed == 0)]
    made_again = dict(zip(stated[:12].metric, stated[:12].yours, strict=True))
    assert made_again == dict(zip(own.metric, own.value, strict=True)) | {"nfe": 3, "samples": 40}


@pytest.mark.torchrun
@pytest.mark.usefixtures("recorded")
def test_another_value_is_named_and_ends_with_an_error_code(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change("edm", "kd", "value", 1.0)
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--cells=edm:4:1,1"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (1, "")
    [line] = [line for line in out.splitlines() if "outside" in line and "kd" in line]
    assert line.split()[:4] == ["edm", "3", "1,1", "kd"] and line.split()[6] == "-1"
    assert "12 numbers of 1 cells: 11 identical, 0 within tolerance, 1 outside: edm:3:1,1" in out
    assert "The weights are the same; samples or metrics differ: edm at 3." in out
    assert "so all numbers should be identical" in out


@pytest.mark.torchrun
@pytest.mark.usefixtures("recorded")
def test_a_small_difference_is_within_tolerance_but_not_called_identical(study: Path) -> None:
    change("edm", "fd", "value", 1e-9)
    found = verify(rows_of(), "edm:3:0,0", print)
    assert {n.metric: n.result for n in found.numbers if n.result != "identical"} == {"fd": "within"}
    assert any("so all numbers should be identical" in sentence for sentence in found.sentences)
    assert found.sentences[-1].endswith("11 identical, 1 within tolerance, 0 outside")


@pytest.mark.torchrun
def test_another_extractor_is_named_first_and_the_spread_between_extractors_is_allowed_for(study: Path) -> None:
    """One cell alone is made again, and comes back as it does with all others."""
    change("edm", "", "extractor", "0" * 12)
    change("edm", "", "reference_hash", "0" * 12)
    change("edm", "fd_corrected", "value", 1e-4)
    origins = read_json(PATHS.reports / "provenance.json")
    origins["edm"]["machine"]["python"] = "2.7"
    write_json(PATHS.reports / "provenance.json", origins)
    found = verify(rows_of(), "edm:4:0,0", print)
    differing = {n.metric: n for n in found.numbers if n.metric in ("fd_corrected", "nfe", "samples")}
    assert differing["fd_corrected"].differs == "extractor" and differing["fd_corrected"].result == "within"
    assert differing["fd_corrected"].tolerance > SAME_WEIGHTS * differing["fd_corrected"].se
    assert differing["nfe"].tolerance == differing["samples"].tolerance == 0
    assert {n.metric for n in found.numbers if n.result != "identical"} == {"fd_corrected"}
    assert found.sentences[0] == "The data are the same; the extractor differs, and with it every score."
    assert "python: 2.7 then, " in found.sentences[1] and found.sentences[2].startswith("Tolerance: ")


@pytest.mark.torchrun
@pytest.mark.usefixtures("recorded")
def test_a_cell_that_no_longer_fails_and_a_cell_of_a_deleted_curve_are_outside(study: Path) -> None:
    change("fitted", "", "metric", FAILED)
    table = pd.read_csv(RESULTS, dtype=str, keep_default_na=False)
    gone = table[(table.curve == "edm") & (table.train_seed == "0")].assign(curve="gone")
    write_text(RESULTS, pd.concat([table, gone]).to_csv(index=False, lineterminator="\n"))
    text = STUDY.replace("  again: {model: again}\n", "").replace("  adaptive: {", "  adaptive: {samples: 40, ")
    (study / "params.yaml").write_text(text)
    found = verify(rows_of(), "all", print)
    outside = {n.place.curve for n in found.numbers if n.result == "outside"}
    assert outside == {"fitted", "gone", "again"}
    cells = "again at 3; again at 7; gone at 3; gone at 7"
    assert found.sentences[0] == f"The study file and the results have different cells: {cells}."
    assert {n.result for n in found.numbers if n.place.curve in ("edm", "adaptive", "diverging")} == {"identical"}


@pytest.mark.torchrun
def test_a_stage_that_fails_is_one_line(study: Path) -> None:
    shutil.rmtree("images")
    with pytest.raises(StudyError, match=r"^prepare: data\.source: '.*images' is no folder"):
        verify(rows_of(), "edm:4:0,0", print)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("edm:4", [("edm", 2, 0, 0), ("edm", 2, 1, 1)]),  # a budget
        ("edm:3", [("edm", 2, 0, 0), ("edm", 2, 1, 1)]),  # what it cost
        ("edm:7:1,1", [("edm", 4, 1, 1)]),
        ("fitted edm:4:0,0 fitted", [("fitted", 2, 0, 0), ("fitted", 2, 1, 1), ("edm", 2, 0, 0)]),
        ("adaptive:35:0,0", [("adaptive", 2, 0, 0)]),
        ("other:9:0,2", [("other", 0, 0, 2)]),
        ("", [("edm", 2, 0, 0), ("edm", 4, 0, 0)]),  # the one curve with a method
    ],
)
def test_cells_are_chosen_by_curve_budget_and_seeds(
    finished: Path, monkeypatch: pytest.MonkeyPatch, text: str, places: list[tuple[str, int, int, int]]
) -> None:
    monkeypatch.chdir(finished)
    assert choose(text, rows_of(), read_committed(PATHS)) == [Place(*place) for place in places]


def test_without_a_method_the_first_curve_is_taken_at_three_budgets(study: Path) -> None:
    text = STUDY.replace(", method: EDM", "").replace("nfe: [4, 7]", "nfe: [4, 6, 7, 9, 11]")
    (study / "params.yaml").write_text(text)
    cells = {Place("edm", steps, 0, 0): Record(0, 0, {}, {}) for steps in range(2, 7)}
    assert choose("", rows_of(), Committed("x", cells)) == [Place("edm", steps, 0, 0) for steps in (2, 4, 6)]


WRONG = {
    "--cells=edm:4:0,0 edm/7": "CELLS: 'edm/7' names no cell; write a curve, edm, or with its budget, edm:35",
    "--cells=edm:4:0": "CELLS: 'edm:4:0' names no cell",
    "--cells=$(touch pwned)": "CELLS: '$(touch' names no cell",
    "--cells=emd": "CELLS: emd: no curve 'emd'; did you mean 'edm'?",
    "--cells=edm:5": "CELLS: edm:5: edm has no budget 5; it has 3, 4, 7",
    "--cells=edm:4:0,1": "CELLS: edm:4:0,1: edm has no seeds 0,1; it has 0,0 1,1",
    "--study=../x": "study '../x': not found; valid: tiny",
}


@pytest.mark.parametrize("argument", WRONG)
def test_what_is_asked_wrongly_is_refused_before_anything_runs(
    study: Path, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    before = contents(study)
    assert main(["verify", argument]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {WRONG[argument]}") and len(printed.err.splitlines()) == 1
    assert printed.out == "" and contents(study) == before


def test_without_results_the_command_is_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RESULTS.unlink()
    assert main(["verify"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: reports/tiny/results.csv: missing; there are no results to verify")


def test_results_that_are_not_there_are_one_line(study: Path) -> None:
    rows = rows_of()
    (study / "params.yaml").write_text(STUDY.replace("sets:\n", "  rho_3: {model: edm, rho: 3}\nsets:\n"))
    with pytest.raises(StudyError, match=r"results\.csv: no result of rho_3 at 2 steps, seeds 0 and 0; `make repro`"):
        verify(rows_of(), "rho_3", print)
    RESULTS.write_text(RESULTS.read_text().replace(",value,", ",worth,"))
    with pytest.raises(StudyError, match=r"results\.csv: broken .*worth|results\.csv: broken .*value"):
        verify(rows, "", print)


def test_what_has_changed_since_is_told(study: Path) -> None:
    (study / "params.yaml").write_text(STUDY.replace("{model: edm, method: EDM}", "{model: edm, method: X, rho: 3}"))
    committed, places = read_committed(PATHS), [HERE]
    assert other_rows(committed.rows, ["edm"], rows_of()) == ["curves.edm.rho: 7.0 then, 3.0 now"]
    assert other_machine(committed, PATHS, places, rows_of()) == []
    summary = read_json(PATHS.metrics("train", "edm"))
    write_json(PATHS.metrics("train", "edm"), summary | {"machine": machine() | {"device": "a GPU"}})
    [told] = other_machine(committed, PATHS, places, rows_of())
    assert told.startswith("device: a GPU then, ")
