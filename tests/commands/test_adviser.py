"""`best` and `claim` answer from committed results alone, of known scatter."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.commands.best import best_lines, candidates, declared
from pipeline.commands.claim import CONFIRMED, REFUTED, UNDECIDED, Claim, answer, parse
from pipeline.commands.cli import main
from pipeline.commands.scores import Scores, read_scores
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_csv, write_json
from pipeline.evaluation.curve import Curve
from pipeline.params.places import flow
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.report.comparisons import Contrast
from pipeline.report.results import CSV_COLUMNS, FAILED, TIMING_COLUMNS
from pipeline.report.verdicts import Compared
from tests.imports import ROOT

FILE = Path("params.yaml")
CURVES: dict[str, dict[str, Any]] = {
    "edm": {"model": "edm"},
    "euler": {"model": "edm", "solver": "euler"},
    "dpmpp_2m": {"model": "edm", "solver": "dpmpp_2m"},
    "again": {"model": "edm"},  # the points of edm
    "flow": {"model": "flow", "nfe": [8, 12]},
}
RNG = np.random.default_rng(0)
TRAININGS = np.exp(2 * RNG.standard_normal(4))  # what all curves of a network share
Values = Mapping[str, Mapping[int, Sequence[float]]]  # curve -> {budget: scores by training}
VALUES: Values = {
    "edm": {4: 4 * TRAININGS, 8: TRAININGS * [1.02, 0.99, 1, 1], 12: 0.5 * TRAININGS},
    "euler": {4: 2 * TRAININGS * [1, 0.98, 1.02, 1.01], 8: 1.5 * TRAININGS, 12: 1.2 * TRAININGS},
    "dpmpp_2m": {4: 2 * TRAININGS, 8: TRAININGS, 12: 0.45 * TRAININGS * [1.3, 0.8, 1.4, 0.9]},
    "again": {4: 4 * TRAININGS, 8: TRAININGS * [1.02, 0.99, 1, 1], 12: 0.5 * TRAININGS},
    "flow": {8: 0.8 * TRAININGS[::-1], 12: 0.4 * TRAININGS[::-1]},
}


def write_study(values: Values, seeds: int = 4, samples: int = 64) -> None:
    """Write a study file and the committed files of its report into the working folder."""
    study = {
        "study": {"name": "t", "root": ".", "params": "params.yaml"},
        "models": {"edm": {"train_seeds": list(range(seeds))}, "flow": {"train_seeds": list(range(seeds))}},
        "defaults": {"curves": {"nfe": [4, 8, 12], "sample_seeds": list(range(seeds)), "samples": samples}},
        "curves": CURVES,
        "sets": {},
    }
    FILE.write_text(json.dumps(study))
    rows, paths, cells = resolve(read_study(FILE)), Paths("t"), []
    for name, by_budget in values.items():
        row = rows.curves[name].row
        for budget, own in by_budget.items():
            steps = row.steps(budget)
            place = {
                "curve": name,
                "model": row.model,
                "steps": steps,
                "nfe": row.evaluations(steps),
                "samples": samples,
            }
            origin = {"reference": "train", "extractor": "e", "reference_hash": "r", "checkpoint": row.model}
            for seed, value in enumerate(own):
                found = {"metric": "fd_corrected", "value": value, "se": 0.1 * value}
                if np.isnan(value):
                    found = {"metric": FAILED, "value": 1, "se": ""}
                cells.append(place | origin | {"train_seed": seed, "sample_seed": seed} | found)
    write_csv(paths.reports / "results.csv", CSV_COLUMNS, cells)
    write_json(paths.metrics("features", "extractor"), {"name": "classifier", "official": False})
    write_json(paths.reports / "provenance.json", {name: {"row": rows.flat("curves", name)} for name in CURVES})
    timed = {("edm", 3): 0.1, ("edm", 7): 0.2, ("dpmpp_2m", 4): 0.1, ("dpmpp_2m", 8): 0.3, ("flow", 7): 0.4}
    lines = [
        {"curve": curve, "nfe": nfe, "seconds_per_image": seconds, "images": 1, "device": "CPU"}
        | {"checkpoint": rows.curves[curve].row.model, "sampler": rows.curves[curve].row.sampler_hash}
        for (curve, nfe), seconds in timed.items()
    ]
    write_csv(paths.timings, TIMING_COLUMNS, lines)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())


@pytest.fixture
def scores(folder: None) -> Scores:
    write_study(VALUES)
    return read_scores(FILE)


def test_a_claim_is_parsed_strictly() -> None:
    expected = Claim(("dpmpp_2m", 11), "<", ("edm", 19))
    assert parse("dpmpp_2m @ 11 < edm @ 19") == parse(" dpmpp_2m@11<edm@19 ") == expected


@pytest.mark.parametrize(
    "text",
    ["", "edm", "edm < flow", "edm @ 4 = flow @ 4", "edm @ < flow @ 4", "edm @ 4 <= flow @ 4",
     "edm @ 4 < flow @ 4 < x @ 4", "edm @ -4 < flow @ 4", "edm @ 4.0 < flow @ 4",
     "edm @ 4\n< flow @ 4", "EDM (Heun) @ 4 < flow @ 4"],
)  # fmt: skip
def test_anything_else_is_one_line_that_shows_the_form(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", text]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: claim: ") and "write <curve> @ <nfe> < <curve> @ <nfe>" in line


@pytest.mark.parametrize(
    ("claim", "word", "basis"),
    [
        ("euler @ 4 < edm @ 4", CONFIRMED, "paired differences within 4 trainings of edm"),
        ("edm @ 3 < euler @ 4", REFUTED, "paired"),  # edm uses 3 of 4
        ("edm @ 4 > euler @ 4", CONFIRMED, "paired"),
        ("edm @ 8 < dpmpp_2m @ 8", UNDECIDED, "paired"),
        ("edm @ 12 < edm @ 8", CONFIRMED, "paired"),
        ("dpmpp_2m @ 8 < euler @ 12", CONFIRMED, "paired differences within 4 trainings of edm"),
        ("edm @ 8 < again @ 8", REFUTED, "paired"),  # equal
        ("flow @ 8 < edm @ 8", UNDECIDED, "4 trainings each"),
        ("flow @ 8 < edm @ 12", UNDECIDED, "4 trainings each"),
    ],
)
def test_answers(scores: Scores, claim: str, word: str, basis: str) -> None:
    """Networks scatter by a factor of two, so that only points of the same networks can be told apart."""
    first, *lines = answer(scores, parse(claim))
    assert first == f"{claim}: {word}"
    assert lines[0] == "bias-corrected FD (classifier), lower is better:"
    assert basis in lines[3]
    assert ("with 80% power" in lines[-1]) == (word == UNDECIDED)
    assert max(map(len, lines)) <= 100


def test_differences_by_rounding_are_equal() -> None:
    rounded = {budget: np.multiply(own, 1 + 1e-13 * np.arange(1, 5)) for budget, own in VALUES["edm"].items()}
    write_study({**VALUES, "again": rounded})
    scores = read_scores(FILE)
    for sign in "<>":
        assert answer(scores, parse(f"edm @ 8 {sign} again @ 8"))[0].endswith(REFUTED)


def test_equal_needs_an_interval_within_rounding_and_a_known_error() -> None:
    assert Compared(Contrast(1e-13, 0.5, 1e-26, 3), True, 4).equal
    assert not Compared(Contrast(1e-8, 0.5, 1e-26, 3), True, 4).equal
    assert not Compared(Contrast(0.0, 0.5, 1e-2, 3), True, 4).equal
    assert not Compared(Contrast(0.0, 0.5, np.nan, 0), True, 1).equal


def test_a_claim_and_its_converse_agree(scores: Scores) -> None:
    points = [(name, budget) for name in VALUES for budget in VALUES[name]]
    for one in points:
        for two in points:
            there, back = scores.between(one, two).contrast, scores.between(two, one).contrast
            assert there.effect == pytest.approx(-back.effect, abs=1e-12)
            assert there.p == pytest.approx(back.p)


def test_equivalent_points_are_named(scores: Scores) -> None:
    lines = answer(scores, parse("edm @ 8 < dpmpp_2m @ 8"))
    assert "The interval lies within the smallest effect of interest, 10.0%." in lines


def test_single_trainings_are_decided_by_samples() -> None:
    write_study({name: {b: own[:1] for b, own in by.items()} for name, by in VALUES.items()}, seeds=1)
    lines = answer(read_scores(FILE), parse("edm @ 8 < dpmpp_2m @ 8"))
    assert lines[0].endswith(UNDECIDED)
    needed = re.fullmatch(r"About (\d+) samples of each would .*", lines[-1])
    assert needed and int(needed[1]) % 64 == 0 and int(needed[1]) > 64


@pytest.mark.parametrize(
    ("claim", "line"),
    [
        ("edmm @ 4 < flow @ 8", "no curve 'edmm'; did you mean 'edm'? valid: "),
        ("edm @ 5 < flow @ 8", "edm has no result at 5; it has results at 4, 8, 12"),
        ("edm @ 4 < edm @ 3", "edm @ 3 is on both sides; compare two points"),
        ("euler @ 12 < flow @ 8", "euler has no result at 12; it has results at 4, 8"),
    ],
)
def test_a_claim_without_results_is_one_line(claim: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_study({**VALUES, "euler": {**VALUES["euler"], 12: [1, np.nan, 1, 1]}})
    assert main(["claim", claim]) == 1
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: claim: {line}")


def test_a_study_without_results_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(VALUES)
    table = Paths("t").reports / "results.csv"
    table.write_text(table.read_text().replace("value", "worth"))
    assert main(["best", "--budget=4"]) == 1
    table.unlink()
    assert main(["claim", "edm @ 4 < flow @ 8"]) == 1
    broken, missing = capsys.readouterr().err.splitlines()
    assert broken.startswith(f"error: {table}: broken (")
    assert missing == f"error: {table}: missing; `make repro` makes it"


def test_results_without_depth_are_read(scores: Scores) -> None:
    table = Paths("t").reports / "results.csv"
    pd.read_csv(table, dtype=str, keep_default_na=False).drop(columns="depth").to_csv(table, index=False)
    pd.testing.assert_frame_equal(read_scores(FILE).table, scores.table)


def test_changed_rows_are_named() -> None:
    write_study(VALUES)
    FILE.write_text(FILE.read_text().replace('"solver": "euler"', '"solver": "euler", "rho": 3'))
    lines = answer(read_scores(FILE), parse("euler @ 4 < edm @ 4"))
    assert lines[-1] == "The study file has changed since: curves.euler.rho: 7.0 then, 3.0 now."


def names(points: list[tuple[str, int]]) -> dict[str, int]:
    return dict(points)


def test_every_curve_counts_at_its_largest_nfe_within_the_limits(scores: Scores) -> None:
    assert names(candidates(scores, 8, None, "")) == {"edm": 8, "euler": 8, "dpmpp_2m": 8, "flow": 8}
    assert names(candidates(scores, 7, None, "")) == {"edm": 8, "euler": 4, "dpmpp_2m": 4, "flow": 8}  # Heun uses 7
    assert names(candidates(scores, None, 0.25, "")) == {"edm": 8, "dpmpp_2m": 4}
    assert names(candidates(scores, 6, 0.25, "edm")) == {"edm": 4, "dpmpp_2m": 4}
    assert names(candidates(scores, 12, None, "flow")) == {"flow": 12}


def test_the_best_and_those_that_may_be_as_good(scores: Scores) -> None:
    heading, columns, first, second, count, *rest = best_lines(FILE, 6, None, "")
    assert heading == "bias-corrected FD (classifier), at most 6 network evaluations; lower is better:"
    assert columns.split() == ["curve", "NFE", "score", "ratio", "to", "the", "best", "s", "per", "image"]
    assert (first.split()[0], first.split()[-1], second.split()[0]) == ("dpmpp_2m", "0.1", "euler")
    assert count == "1 of 2 others may be as good as dpmpp_2m."
    assert rest[0] == "dpmpp_2m uses 4 of 6 evaluations; no curve uses 6, only 3, 4, 7, 8, 11, 12."
    assert rest[-1] == "  dpmpp_2m: {model: edm, solver: dpmpp_2m, nfe: [4]}"
    assert max(map(len, [heading, columns, first, second, count, *rest])) <= 100


def test_a_clear_best_names_the_next(scores: Scores) -> None:
    lines = best_lines(FILE, 8, 0.15, "edm")
    assert lines[0].endswith("at most 8 network evaluations, at most 0.15 s per image, model edm; lower is better:")
    assert lines[3].startswith("No other may be as good; next is edm: ×2")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "best: name a limit, such as --budget 11 or --seconds 0.01"),
        (["--budget=2"], "best: no result within these limits; the NFE of results are 3, 4, 7, 8, 11, 12"),
        (["--budget=2", "--model=flow"], "best: no result within these limits; the NFE of results are 7, 11"),
        (["--seconds=0.01"], "best: no result within these limits; .* the fastest point takes 0.1 s per image"),
        (["--seconds=nan"], "best: no result within these limits; .*"),
        (["--budget=8", "--model=flwo"], "--model: no model 'flwo'; did you mean 'flow'. valid: edm, flow"),
    ],
)
def test_limits_without_a_result_are_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(VALUES)
    assert main(["best", *arguments]) == 1
    [printed] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: {line}", printed)


def test_a_study_that_was_not_timed_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(VALUES)
    Paths("t").timings.unlink()
    assert main(["best", "--seconds=1"]) == 1
    assert "reports/t/timings.csv has no current timing; `make timings` measures them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "study",
    ["params.yaml", "studies/solvers/params.yaml", "studies/networks/params.yaml", "studies/fitted/params.yaml"],
)
def test_a_declared_row_samples_as_the_curve_does(study: str) -> None:
    for name, entry in resolve(read_study(ROOT / study)).curves.items():
        row: dict[str, Any] = yaml.safe_load(flow(declared(entry.row, entry.row.nfe[-1])))
        assert Curve(**row).filled().fitting_hash == entry.row.fitting_hash, name


def test_the_committed_studies_have_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    answered: Callable[[str, str], list[str]] = lambda file, text: answer(read_scores(Path(file)), parse(text))  # noqa: E731
    assert answered("params.yaml", "edm @ 35 < edm @ 4")[0].endswith(CONFIRMED)
    assert answered("studies/solvers/params.yaml", "dpmpp_2m @ 7 < heun @ 7")[0].endswith(CONFIRMED)


def test_a_study_of_no_curve_with_results(scores: Scores) -> None:
    write_study({"edm": {}})
    with pytest.raises(StudyError, match=r"no curve of params\.yaml has a result"):
        read_scores(FILE)
