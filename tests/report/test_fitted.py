"""The section on fitted samplers: its rivals, costs and transfers follow from made-up results and fits."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.common.files import Paths, write_json
from pipeline.report.build import build
from pipeline.report.page import unmarked
from pipeline.report.sections import fitted
from pipeline.report.study import FITTED, PROTOCOL, Report
from tests.report.studies import CURVES as PLAIN
from tests.report.studies import fail, made_up_study, markdown, score, write_cells

MODELS: dict[str, dict[str, Any]] = {"edm": {}, "flow": {"parametrization": "flow", "noise": "flow_uniform"}}
ALL: dict[str, Any] = {"model": "edm", "solver": "fitted", "told": "fitted", "nfe": [4, 8]}
CURVES: dict[str, dict[str, Any]] = {
    "dpmpp_2m": {"model": "edm", "solver": "dpmpp_2m", "nfe": [4, 8, 16]},
    "ipndm": {"model": "edm", "solver": "ipndm", "nfe": [4, 8, 16]},
    "grid": {"model": "edm", "solver": "dpmpp_2m", "discretization": "optimised", "nfe": [4, 8]},
    "gs": ALL | {"method": "GS"},
    "s4s": ALL | {"fit": "coefficients", "told": "state", "start": "ipndm"},
    "times": ALL | {"fit": "times", "told": "state"},
    "of_seed": ALL | {"fitted_seed": 0, "train_seeds": [1, 2], "sample_seeds": [1, 2]},
    "of_budget": ALL | {"base": "gs", "fitted_nfe": 6, "nfe": [4]},
    "flow_plain": {"model": "flow", "solver": "dpmpp_2m", "rho": 3, "nfe": [4, 8]},
    "flow_moved": {"base": "flow_plain"} | ALL | {"model": "flow", "rho": 7, "fitted_model": "edm"},
}
MEANS: dict[str, dict[int, float]] = {
    "dpmpp_2m": {4: 16, 8: 4, 16: 1},
    "ipndm": {4: 15, 8: 6, 16: 2},
    "grid": {4: 8, 8: 3},
    "gs": {4: 8, 8: 0.9},
    "s4s": {4: 2, 8: 4},
    "times": {4: 14, 8: 4},
    "of_seed": {4: 8, 8: 2},
    "of_budget": {4: 10},
    "flow_plain": {4: 9, 8: 5},
    "flow_moved": {4: 6, 8: 5},
}
HEADING = "\n## Fitted samplers\n"


def fit(curve: str, seed: int, steps: int, calls: int = 800, **changed: Any) -> dict[str, Any]:
    """A fit that halves the distance on its noise and loses a tenth of that on other noise."""
    distances = {"start": 2.0, "error": 1.0, "heldout_start": 2.2, "heldout": 1.21 + 0.01 * (seed - 1)}
    return {"curve": curve, "train_seed": seed, "steps": steps, "calls": calls, "failed": ""} | distances | changed


FITS = [
    fit(name, seed, nfe, 100 * nfe + 10 * (seed - 1))
    for name in ("gs", "s4s", "times", "flow_moved")
    for nfe in (4, 8)
    for seed in (0, 1, 2)
]


def study(
    folder: Path,
    fits: list[dict[str, Any]] | None = FITS,
    seeds: tuple[int, ...] = (0, 1, 2),
    without: tuple[str, ...] = (),
    spread: float = 0.01,
    **more: dict[str, Any],
) -> Paths:
    """A study whose curves have these means, spread by a share of them over trainings. more: curves of any results."""
    curves = {name: keys for name, keys in CURVES.items() if name not in without} | more
    paths = made_up_study(folder, curves, list(seeds), models=MODELS)
    for place, name in enumerate(name for name in curves if name not in more):
        own = curves[name].get("train_seeds", seeds)
        write_cells(paths.curve(name), [[s, s] for s in own], [(nfe, nfe) for nfe in MEANS[name]], {})
        signs = [(1, -1, 0), (0, 1, -1), (-1, 0, 1)][place % 3] if len(seeds) > 1 else (0,)
        score(paths, {name: {nfe: [mean * (1 + spread * s) for s in signs] for nfe, mean in MEANS[name].items()}})
    if fits is not None:
        write_json(paths.metrics("grids", "solvers"), {"solvers": fits})
    return paths


@pytest.fixture(autouse=True)
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The lines of the figures by file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    kept: dict[str, Any] = {}
    draw = fitted.curves_figure

    def keep(path: Path, lines: dict[str, Any], *of: Any) -> None:
        kept[path.name] = lines
        draw(path, lines, *of)

    monkeypatch.setattr(fitted, "curves_figure", keep)
    return kept


def part(paths: Paths, folder: Path) -> dict[str, Any]:
    found = fitted.section(Report(paths, folder))
    assert found is not None
    return {key: unmarked(text).replace("\\", "") if isinstance(text, str) else text for key, text in found.items()}


def lines(text: str, *keys: str) -> dict[tuple[str, ...], list[str]]:
    """The lines of a table by the cells of some columns, code and bold removed: the other cells."""
    split = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    header, places = split[0], [split[0].index(key) for key in keys]
    rest = [i for i in range(len(header)) if i not in places]
    return {tuple(line[i] for i in places): [line[i] for i in rest] for line in split[2:]}


def test_curves_are_fitted_in_place_elsewhere_or_not(tmp_path: Path) -> None:
    report = Report(study(tmp_path), tmp_path)
    unfitted = ["dpmpp_2m", "ipndm"]
    assert fitted.groups(report) == [fitted.Group("edm", ["gs", "s4s", "times"], unfitted, ["grid"])]
    assert fitted._elsewhere(report) == ["of_seed", "of_budget", "flow_moved"]


def test_a_fit_for_another_budget_repeats_no_curve(tmp_path: Path) -> None:
    """The keys of transfer are no keys of sampling, but they choose the numbers."""
    report = Report(study(tmp_path), tmp_path)
    assert report.sampler("gs") == report.sampler("of_budget") == report.sampler("of_seed")
    assert {"gs", "of_budget", "of_seed"} <= set(report.distinct)


def test_a_curve_that_repeats_another_shares_its_fits(tmp_path: Path) -> None:
    """The summary of fits may name either of them."""
    renamed = [own | {"curve": "again"} if own["curve"] == "gs" else own for own in FITS]
    paths = study(tmp_path, FITS, again=CURVES["gs"] | {"method": "again", "sample_seeds": [3, 4, 5]})
    before = lines(part(paths, tmp_path)["fits"], "curve", "budget")
    write_json(paths.metrics("grids", "solvers"), {"solvers": [*renamed, *renamed]})
    assert lines(part(paths, tmp_path)["fits"], "curve", "budget") == before and ("gs", "4") in before


@pytest.mark.parametrize("fits", [None, []])
def test_without_a_summary_of_fits_there_is_no_section(tmp_path: Path, fits: list[dict[str, Any]] | None) -> None:
    paths = study(tmp_path, fits)
    assert fitted.section(Report(paths, tmp_path)) is None
    build(paths)
    assert HEADING not in markdown(paths)


def test_a_study_without_fitted_solvers_is_unchanged(tmp_path: Path) -> None:
    paths = made_up_study(tmp_path, PLAIN, [0, 1, 2])
    before = Report(paths, tmp_path)
    assert before.fits == [] and fitted.section(before) is None
    write_json(paths.metrics("grids", "solvers"), {"solvers": []})
    build(paths)
    text, origins = markdown(paths), (paths.reports / "provenance.json").read_text()
    assert HEADING not in text
    settings = text.split("## All settings")[1].split("## Agree")[0]
    for key in (*FITTED, *PROTOCOL):
        assert f" {key} " not in settings and f'"{key}"' not in origins


def test_keys_that_one_row_uses_are_shown_for_all(tmp_path: Path) -> None:
    curves = {"edm": {"model": "edm"}, "short": {"model": "edm", "end": "sigma_min"}}
    report = Report(made_up_study(tmp_path, curves, [0, 1, 2]), tmp_path)
    assert not report.unused & set(PROTOCOL) and report.unused >= set(FITTED)
    assert report.flat("curves", "edm")["end"] == "zero"
    assert "fit" in Report(study(tmp_path), tmp_path).flat("curves", "ipndm")


def test_the_figure_has_the_lowest_unfitted_means(tmp_path: Path, drawn: dict[str, Any]) -> None:
    found = part(study(tmp_path), tmp_path)
    assert found["figures"] == [{"file": "fitted_edm.png", "model": "edm"}] and list(drawn) == ["fitted_edm.png"]
    assert list(drawn["fitted_edm.png"]) == ["best unfitted", "grid", "GS", "s4s", "times"]
    lowest = drawn["fitted_edm.png"]["best unfitted"]
    assert {nfe: point.mean for nfe, point in lowest.items()} == pytest.approx({4: 15, 8: 4, 16: 1})


def test_scores_have_ratios_to_the_best_rivals(tmp_path: Path) -> None:
    """At 4, the best unfitted curve is ipndm and the ratio is 8 / 15; at 8 it is dpmpp_2m and 0.9 / 4."""
    found = lines(part(study(tmp_path), tmp_path)["scores"], "curve", "budget")
    assert len(found) == 6
    half = stats.t.ppf(0.975, 2) * 0.08 / 3**0.5
    model, like, start, own, best, ratio, grid, of_grid = found["gs", "4"]
    assert [model, like, start, own] == ["edm", "GS", "dpmpp_2m", f"8.00 ± {half:.3g}"]
    assert best.startswith("15.0 ± ") and best.endswith("(ipndm)")
    assert ratio.startswith("×0.533 (") and ratio.endswith("better")
    assert grid == f"8.00 ± {half:.3g} (grid)" and of_grid.startswith("×1.00 (") and of_grid.endswith("equivalent")
    assert found["gs", "8"][4].endswith("(dpmpp_2m)") and found["gs", "8"][5].startswith("×0.225 (")
    assert found["times", "4"][7].startswith("×1.75 (") and found["times", "4"][7].endswith("worse")
    assert [found[name, "4"][1] for name in ("s4s", "times")] == ["S4S", "fit times, told state"]
    assert found["s4s", "4"][2] == "ipndm"


def test_noise_leaves_ratios_undecided(tmp_path: Path) -> None:
    found = lines(part(study(tmp_path, spread=0.5), tmp_path)["scores"], "curve", "budget")
    assert found["times", "4"][5].endswith("undecided")


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (20.0, 4.0),  # the first point suffices
        (16.0, 4.0),
        (8.0, 4 * 2**0.5),  # halfway between 16 and 4, in logarithms
        (4.0, 8.0),
        (2.0, 12.0),  # the next score is not positive
        (-1.0, 12.0),
        (-1.5, math.inf),
        (math.nan, math.inf),
    ],
)
def test_evaluations_needed_for_a_score(goal: float, expected: float) -> None:
    assert fitted.needed({4: 16.0, 8: 4.0, 12: -1.0}, goal) == pytest.approx(expected)


def test_fits_have_distances_gaps_and_costs(tmp_path: Path) -> None:
    """The lowest unfitted means are 15 at 4 and 4 at 8; one of 8 is reached at 4 * 2 ** (ln(15/8) / ln(15/4))."""
    found = lines(part(study(tmp_path), tmp_path)["fits"], "curve", "budget")
    half = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    at_start, when_fitted, gap, calls, evaluations, images = found["gs", "4"]
    assert at_start == "2.20 ± 0" and when_fitted == f"1.21 ± {half:.3g}"
    assert gap == f"+10.0% ± {half / 1.1:.1%}"  # 1.21 / 2.2 is 1.1 times 1 / 2
    assert calls == "400"
    need = [4 * 2 ** (math.log(15 / goal) / math.log(15 / 4)) for goal in (8, 8.1987, 7.8013)]
    assert evaluations == f"{need[0]:.3g} ({need[1]:.3g} to {need[2]:.3g})"
    after = [math.ceil(400 / (own - 4)) for own in need]
    assert images == f"{after[0]} ({after[2]} to {after[1]})"
    assert found["gs", "8"][3:] == ["800", "not reached", "not reached"]


def test_a_fit_that_saves_nothing_is_never_paid_for(tmp_path: Path) -> None:
    found = lines(part(study(tmp_path), tmp_path)["fits"], "curve", "budget")
    assert found["times", "8"][4].startswith("8.00 (") and found["times", "8"][5].startswith("never (at least ")
    assert found["s4s", "4"][5].startswith("55 (")  # 2 is reached at 8 * 2 ** 0.5


def test_failed_fits_are_counted(tmp_path: Path) -> None:
    zero = dict.fromkeys(("start", "error", "heldout_start", "heldout", "calls"), 0) | {"failed": "not finite"}
    lost = [own | zero for own in FITS if (own["curve"], own["steps"]) in (("gs", 4), ("times", 4))]
    lost = [own for own in lost if own["curve"] == "gs" or own["train_seed"] == 0]
    places = {(own["curve"], own["steps"], own["train_seed"]) for own in lost}
    kept = [own for own in FITS if (own["curve"], own["steps"], own["train_seed"]) not in places]
    paths = study(tmp_path, kept + lost)
    fail(paths, "gs", nfes=(4,))
    fail(paths, "times", nfes=(4,), seeds=(0,))
    found = part(paths, tmp_path)
    fits, scores = (lines(found[key], "curve", "budget") for key in ("fits", "scores"))
    assert fits["gs", "4"] == ["", "failed", "", "", "", ""]
    assert fits["times", "4"][1].endswith("(1 of 3 fits failed)") and fits["times", "4"][3:] == ["405", "", ""]
    assert scores["gs", "4"][3] == "failed" and scores["gs", "4"][5] == scores["gs", "4"][7] == ""
    build(paths)
    assert HEADING in markdown(paths)


def test_all_fits_failed(tmp_path: Path, drawn: dict[str, Any]) -> None:
    zero = dict.fromkeys(("start", "error", "heldout_start", "heldout", "calls"), 0) | {"failed": "not finite"}
    paths = study(tmp_path, [own | zero for own in FITS])
    for name in ("gs", "s4s", "times", "of_seed", "of_budget", "flow_moved"):
        fail(paths, name, nfes=(4, 8))
    found = part(paths, tmp_path)
    assert found["figures"] == found["findings"] == [] and not drawn
    assert {cells[1] for cells in lines(found["fits"], "curve", "budget").values()} == {"failed"}


def test_a_missing_fit_leaves_its_cells_empty(tmp_path: Path) -> None:
    paths = study(tmp_path, [own for own in FITS if own["curve"] != "gs"])
    assert lines(part(paths, tmp_path)["fits"], "curve", "budget")["gs", "4"] == [""] * 6


def test_one_training_has_no_interval_of_distances(tmp_path: Path) -> None:
    paths = study(tmp_path, [own for own in FITS if own["train_seed"] == 0], (0,), ("of_seed",))
    found = part(paths, tmp_path)
    assert lines(found["fits"], "curve", "budget")["gs", "4"][:4] == ["2.20", "1.20", "+9.1%", "390"]
    scores = lines(found["scores"], "curve", "budget")
    assert "one training each" in scores["gs", "4"][5]
    build(paths)


def test_transfers_have_ratios_to_the_fit_in_place_and_to_the_start(tmp_path: Path) -> None:
    found = lines(part(study(tmp_path), tmp_path)["transfer"], "curve", "budget")
    assert list(found) == [
        ("of_seed", "4"),
        ("of_seed", "8"),
        ("of_budget", "4"),
        ("flow_moved", "4"),
        ("flow_moved", "8"),
    ]
    model, source, own, place, to_place, start, to_start = found["of_budget", "4"]
    assert [model, source, place, start] == ["edm", "budget 6", "gs", "dpmpp_2m"] and own.startswith("10.0 ± ")
    assert to_place.startswith("×1.25 (") and to_place.endswith("worse")
    assert to_start.startswith("×0.625 (") and to_start.endswith("better")
    assert found["of_seed", "4"][1] == "seed 0"
    assert found["flow_moved", "4"][1] == "model edm"
    assert found["flow_moved", "4"][3:6] == ["", "", "flow_plain"]  # no equal keys, but its base
    assert found["flow_moved", "4"][6].startswith("×0.667 (")


def test_a_fit_of_another_seed_is_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    paths = study(tmp_path)
    score(paths, {"of_seed": {4: [math.nan, 6, 9]}, "gs": {4: [1, 3, 3]}})
    found = lines(part(paths, tmp_path)["transfer"], "curve", "budget")
    ratio = float(np.exp(np.log([6 / 3, 9 / 3]).mean()))
    assert found["of_seed", "4"][4].startswith(f"×{ratio:.3g} (")


def test_published_samplers_are_named_with_their_sources(tmp_path: Path) -> None:
    text = part(study(tmp_path), tmp_path)["published"]
    assert text == (
        "S4S (Frankel et al. 2025, arXiv 2502.17423) with `fit: coefficients` and `told: state`; GS (arXiv 2510.17699) "
        "with `fit: both` and `told: fitted`"
    )
    assert {name for name, _ in fitted.PUBLISHED.values()} == {"LD3", "S4S", "S4S-Alt", "DyWeight", "GS"}


def test_findings_are_hedged_by_their_verdicts(tmp_path: Path) -> None:
    bought, of_grid, cost, place, start = part(study(tmp_path), tmp_path)["findings"]
    assert bought.startswith(
        "The best fitted sampler relative to the best one that is not fitted, by budget (NFE): of edm better at 4 and "
        "8; at 4 ×0.133 ("
    )
    assert "one on a fitted grid, by budget (NFE): of edm better at 4 and 8; at 4 ×0.250 (" in of_grid
    assert cost == (
        "A fit takes 400 to 800 network calls. By mean scores, it pays for itself in 3 of 6 cases (curves and budgets)"
        f", after 55 to {math.ceil(400 / (4 * 2 ** (math.log(15 / 14) / math.log(15 / 4)) - 4)):,} samples. In 1, "
        "no unfitted sampler of the study reaches the score, and in 2, the fit saves no evaluations."
    )
    assert place.startswith("Numbers fitted elsewhere, relative to the same sampler fitted in place: of_seed (seed 0) ")
    assert "of_budget (budget 6) worse at 4." in place
    assert "sampler not fitted: " in start and "flow_moved (model edm) better at 4" in start


def test_transfers_alone_have_a_section(tmp_path: Path) -> None:
    """Without a solver fitted in place there is nothing to set beside others but the transfers."""
    paths = study(tmp_path, without=("gs", "s4s", "times", "of_budget"))
    found = part(paths, tmp_path)
    assert found["scores"] == found["fits"] == "" and "| `of_seed` |" in found["transfer"]
    build(paths)
    assert "### Numbers fitted elsewhere" in markdown(paths)


def test_the_report_has_the_section(tmp_path: Path) -> None:
    paths = study(tmp_path)
    build(paths)
    text = markdown(paths)
    section = text.split(HEADING)[1].split("\n## ")[0]
    assert "(figures/fitted_edm.png)" in section and (paths.reports / "figures/fitted_edm.png").exists()
    assert "with 32 steps of Heun's method" in section and "GS (arXiv 2510.17699) with `fit: both`" in section
    assert "The best fitted sampler relative to" in text.split("## Methods")[0]
    assert "numbers" not in json.loads((paths.reports / "provenance.json").read_text())["ipndm"]["row"]
