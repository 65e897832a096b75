"""The section on likelihood, from made-up results: its tables, marks, findings and failures."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json, write_csv, write_json
from pipeline.evaluation.likelihoods import COLUMNS, HELDOUT, TRAIN, Likelihood
from pipeline.report.build import build
from pipeline.report.nll import NOT_CONVERGED, UNKNOWN
from pipeline.report.sections import likelihood
from pipeline.report.study import Report
from tests.report.studies import HOSTILE, fail, made_up_study, markdown, row, score

MODELS: dict[str, dict[str, Any]] = {
    "edm": {},
    "ddpm": {"parametrization": "vp", "noise": "vp_uniform"},
    "flow": {"parametrization": "flow", "noise": "flow_uniform"},
    "snr": {"weighting": "snr"},
}
CURVES: dict[str, dict[str, Any]] = {name: {"model": name} for name in MODELS}
HEADING = "\n## Likelihood\n"
BITS = {"edm": 3.111, "ddpm": 3.333, "flow": 3.555, "snr": 3.777}
IMAGES = {TRAIN: 50, HELDOUT: 40}


def measured(
    paths: Paths,
    keys: Mapping[str, Any] | None = None,
    drift: float = 0.001,
    apart: float = 0.2,
    heldout: bool = True,
    failed: Mapping[tuple[str, int, int], str] | None = None,
    lost: tuple[str, ...] = (),
    unbounded: tuple[tuple[str, int], ...] = (),
    dimensions: int = 64,
    noise_p: float = 0.5,
) -> Paths:
    """Ask for likelihoods of models and write made-up ones: BITS for training images at the last number of steps.

    drift: what each smaller number of steps adds. apart: held-out minus training. failed: (model, seed, steps) ->
    reason. lost: models without any training. unbounded: (model, seed) without a bound.
    """
    rows = read_json(paths.row("", "report"))
    asked = Likelihood(**{"models": ("edm", "ddpm"), "nfe": (11, 19, 35)} | dict(keys or {})).filled()
    write_json(paths.row("", "report"), rows | {"likelihood": asked.model_dump(mode="json")})
    images = IMAGES if heldout else {TRAIN: IMAGES[TRAIN]}
    lines, own = [], {}
    seeds = {name: rows["models"][name]["row"]["train_seeds"] if name not in lost else [] for name in asked.models}
    for name in asked.models:
        for seed in seeds[name]:
            for part in images:
                for place, steps in enumerate(reversed(asked.step_counts)):
                    reason = (failed or {}).get((name, seed, steps), "")
                    bits = BITS[name] + 0.01 * (seed - 1) + drift * place + apart * (part == HELDOUT)
                    values = {"bits": bits, "se": 0.05, "round_trip": 0.02 * 4**place, "noise_p": noise_p}
                    values |= {"nfe": asked.evaluations(steps), "products": steps}
                    line = {"model": name, "train_seed": seed, "part": part, "steps": steps, "images": images[part]}
                    lines.append(line | (dict.fromkeys(values, "") if reason else values) | {"failed": reason})
        bounds = [
            {"train_seed": seed, "part": list(images)[-1], "L_0": 0.125, "L_diffusion": 4.0 + 0.01 * seed, "L_T": 1e-4}
            | {"total": 4.1251 + 0.01 * seed, "se": 0.02, "shares": [[0.002, 0.4, 3.0], [0.4, 80.0, 1.0 + 0.01 * seed]]}
            for seed in seeds[name]
            if (name, seed) not in unbounded
        ]
        gaps = [
            {"steps": steps, "gap": apart, "se": 0.07}
            for steps in asked.step_counts
            if heldout and seeds[name] and not any((name, seed, steps) in (failed or {}) for seed in seeds[name])
        ]
        own[name] = {"gaps": gaps, "bounds": bounds if asked.build_guidance().idle else []}
    points = dimensions == 2
    settled = asked.settled((2,) if points else (1, 8, 8)).model_dump(mode="json")
    about = {"row": settled, "dimensions": dimensions, "offset_bits": -0.0 if points else 6.994354, "images": images}
    write_csv(paths.reports / "likelihood.csv", COLUMNS, [{key: line[key] for key in COLUMNS} for line in lines])
    write_json(paths.metrics("likelihood", "models"), {"about": about, "models": own})
    return paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.chdir(tmp_path)
    return made_up_study(tmp_path, CURVES, [0, 1, 2], models=MODELS)


def section(paths: Paths) -> str:
    build(paths)
    return markdown(paths).split(HEADING)[1].split("\n## ")[0]


def summary(paths: Paths) -> dict[str, Any]:
    found: dict[str, Any] = read_json(paths.reports / "summary.json")["likelihood"]
    return found


def series(paths: Paths, figure: str) -> set[str]:
    """The series of a figure's chart."""
    drawn = json.loads((paths.reports / "figures" / f"{figure}.json").read_text())
    return {point["series"] for point in drawn["data"]["values"]}


def test_without_the_key_there_is_no_section(paths: Paths) -> None:
    """Not even the stage's outputs are read."""
    build(paths)
    before = {file.name: file.read_bytes() for file in paths.reports.glob("*.*")}
    (paths.reports / "likelihood.csv").unlink()
    paths.metrics("likelihood", "models").unlink()
    build(paths)
    after = {file.name: file.read_bytes() for file in paths.reports.glob("*.*")}
    assert {name: before[name] for name in after} == after and "report.md" in after
    assert "ikelihood" not in markdown(paths).replace("negative log-likelihood of the data", "")
    assert "likelihood" not in read_json(paths.reports / "summary.json")


def test_the_table_with_held_out_images(paths: Paths) -> None:
    text = section(measured(paths))
    half = 0.01 * 3**-0.5 * 4.302653  # of Student's interval of three trainings
    assert row(text, "`edm`", "| model |") == [
        "`edm`", f"3.111 ± {half:.3f}", "0.050", f"3.311 ± {half:.3f}", "0.050", "+0.200 (+0.0628 to +0.337)", "35",
        "35", f"4.135 ± {half:.3f}", "yes",
    ]  # fmt: skip
    assert row(text, "| model |", "\n") == [
        "model", "training NLL", "se", "held-out NLL", "se", "gap", "NFE", "Jacobian products", "bound (held-out)",
        "converged",
    ]  # fmt: skip
    assert summary(paths)["edm"] == {
        "bits": 3.111, "heldout_bits": 3.311, "gap": 0.2, "bound": 4.1351, "converged": True,
    }  # fmt: skip


def test_the_table_without_held_out_images(paths: Paths) -> None:
    text = section(measured(paths, heldout=False))
    assert row(text, "| model |", "\n") == [
        "model", "training NLL", "se", "NFE", "Jacobian products", "bound (training)", "converged",
    ]  # fmt: skip
    assert "held-out" not in text and "gap" not in text.lower()
    assert "Lowest mean NLL of 50 training images, in bits per dimension: edm, 3.111" in text
    assert set(summary(paths)["edm"]) == {"bits", "bound", "converged"}


def test_the_conventions_are_with_every_table(paths: Paths) -> None:
    keys = {"models": tuple(MODELS), "trace": "hutchinson", "probes": 3, "guidance": 2.0, "prior": "moments"}
    keys |= {"dequantization": "truncated_normal", "sigma_min": 0.01, "solver": "heun", "threshold": "static"}
    text = section(measured(paths, keys))
    tables = len(re.findall(r"^\| ---", text, re.MULTILINE))
    assert text.count("\nConventions: ") == tables >= 4
    for part in (
        "negative log-likelihood (NLL) in bits per dimension (64 dimensions)",
        "from sigma 0.01 to 80 with solver heun, discretization edm, guidance 2, threshold static",
        "3 Hutchinson probes per image",
        "truncated_normal dequantization, offset 6.99 bits per dimension",
        "prior N(mean, sigma_max^2 + variance), both of the data",
        "the interval from 0 to sigma_min is left out, which the dequantization noise replaces",
        "50 training images and 40 held-out images.",
    ):
        assert part in text, part
    assert "no variational bound is known" in text and "### Variational bound" not in text


@pytest.mark.parametrize(("keys", "drift", "mark"), [({}, 0.06, NOT_CONVERGED), ({"nfe": (35,)}, 0.0, UNKNOWN)])
def test_a_value_is_never_without_its_mark(paths: Paths, keys: dict[str, Any], drift: float, mark: str) -> None:
    """In tables, findings and figures, at every budget, extrapolated, and as a gap; the summary has it, too."""
    score(paths, {name: {3: [i + 1] * 3, 7: [i + 1, i + 1.1, i + 1.2]} for i, name in enumerate(MODELS)})
    measured(paths, {"models": tuple(MODELS)} | keys, drift=drift)
    build(paths)
    text = markdown(paths)
    values = [BITS[n] + apart + drift * k for n in MODELS for apart in (0, 0.2) for k in range(3 if drift else 1)]
    found = [match for value in values for match in re.finditer(re.escape(f"{value:.3f}"), text)]
    assert len(found) >= len(values)
    for match in found:
        assert re.match(rf"( ± [\d.]+|, se [\d.]+)? \({mark}\)", text[match.end() :]), text[match.start() :][:60]
    if drift:
        part = text.split("### Convergence")[1].split("Conventions")[0]
        assert all(line.count(mark) == 4 for line in part.splitlines() if line.startswith("| `"))
    assert text.count("+0.200 (+0.0628 to +0.337)") == text.count(f"+0.200 (+0.0628 to +0.337) ({mark})") >= 4
    assert series(paths, "likelihood_and_score") == {f"{name} ({mark})" for name in MODELS}
    assert f"over 4 models ({mark}), with a 95% interval from" in text
    assert {own["converged"] for own in summary(paths).values()} == {False if mark == NOT_CONVERGED else None}


def test_convergence_is_that_of_each_value(paths: Paths) -> None:
    """35 and 19 steps are within the standard error of each other, 19 and 11 steps are not."""
    measured(paths, {"models": ("edm",)})
    file = paths.reports / "likelihood.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table.loc[table.steps == 11, "bits"] += 0.5
    table.to_csv(file, index=False)
    cells = row(section(paths), "| training |", "### Convergence")
    assert cells[2:] == ["3.613, se 0.050 (not converged)", "3.112, se 0.050", "3.111, se 0.050", "3.111"]


def test_the_extrapolation_uses_the_order_of_the_solver(paths: Paths) -> None:
    for solver, order, ratio in (("unipc", 2, 34 / 18), ("heun", 2, 17 / 9), ("euler", 1, 34 / 18), ("rk4", 4, 8 / 4)):
        nll = Report(measured(paths, {"solver": solver, "nfe": (19, 35)}), Path()).nll
        assert nll and nll.limit("edm", TRAIN) == pytest.approx(3.111 - 0.001 / (ratio**order - 1), abs=1e-9)


def test_round_trips_are_in_units_and_levels(paths: Paths) -> None:
    text = section(measured(paths))
    assert row(text, "`edm`", "### There and back")[1:] == [
        "0.320 (40.8 levels)", "0.0800 (10.2 levels)", "0.0200 (2.55 levels)", "0 of 3",
    ]  # fmt: skip
    assert "rejects for 0 of 6 trainings, in 12 tests." in text


def test_normality_is_corrected_for_all_tests(paths: Paths) -> None:
    """12 tests at 0.004 each are at 0.048 by Holm's method, at 0.005 they are not rejected."""
    text = section(measured(paths, noise_p=0.004))
    assert row(text, "`edm`", "### There and back")[-1] == "3 of 3" and "rejects for 6 of 6 trainings" in text
    text = section(measured(paths, noise_p=0.005))
    assert row(text, "`edm`", "### There and back")[-1] == "0 of 3"


def test_too_many_tests_for_the_permutations_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(likelihood, "PERMUTATIONS", 999)
    seeds = list(range(13))
    paths = made_up_study(tmp_path, CURVES, seeds, models=MODELS)
    text = section(measured(paths, {"models": ("edm", "ddpm")}, noise_p=0.001))
    assert "cannot reject anything here: with 52 tests" in text


def test_the_terms_of_the_bound_and_their_shares(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(likelihood, "shares_figure", lambda path, lines, label: drawn.update(lines))
    found = likelihood.section(Report(measured(paths), Path()))
    assert found is not None
    assert row(found["bounds"], "`edm`", "\n")[1:4] == ["0.125", "1.0e-04", "4.010 ± 0.025"]
    (low, first, spread), (high, second, _) = drawn["edm"].points
    assert (low, high) == pytest.approx(((0.002 * 0.4) ** 0.5, (0.4 * 80) ** 0.5))
    assert (first, spread, second) == pytest.approx((3.0, 0.0, 1.01)) and list(drawn) == ["edm", "ddpm"]


def test_the_best_model_is_told_apart_by_its_trainings(paths: Paths) -> None:
    text = section(measured(paths, {"models": tuple(MODELS)}))
    said = "Lowest mean NLL of 40 held-out images, in bits per dimension: edm, 3.311 ± 0.025; higher by a test over "
    assert f"{said}trainings: ddpm, flow and snr." in text
    text = section(measured(paths, {"models": tuple(MODELS)}, drift=0.06))
    assert "edm, 3.311 ± 0.025 (not converged); not told apart from it: ddpm, flow and snr." in text


@pytest.mark.parametrize(("apart", "words"), [(0.2, "differs from 0 for edm"), (0.1, "is not told apart from 0 for")])
def test_a_gap_is_told_apart_from_0(paths: Paths, apart: float, words: str) -> None:
    assert f"corrected for 2 tests, {words}" in section(measured(paths, apart=apart))


def test_few_models_do_not_show_whether_both_measures_rank_alike(paths: Paths) -> None:
    text = section(measured(paths))
    assert "2 models have both an NLL and a score, too few to tell whether" in text and "Kendall" not in text


@pytest.mark.parametrize(("sign", "words"), [(1, "rank these models alike"), (-1, "in opposite orders")])
def test_the_orders_of_nll_and_score(paths: Paths, sign: int, words: str) -> None:
    score(paths, {n: {3: [9] * 3, 7: [5 + sign * (i + s / 99) for s in range(3)]} for i, n in enumerate(MODELS)})
    text = section(measured(paths, {"models": tuple(MODELS)}))
    assert f"tau between NLL and score is {sign}.00 over 4 models, with a 95% interval from {sign}.00 to" in text
    assert words in text and "(figures/likelihood_and_score.png)" in text
    assert row(text, "`flow`", "### NLL and score")[1:4] == ["3.755 ± 0.025", "`flow`", "7"]


def test_models_worse_than_chance_are_left_out_of_the_figure(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "UNIFORM", 3.7)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(likelihood, "scatter_figure", lambda path, places, labels: drawn.update(places))
    found = likelihood.section(Report(measured(paths, {"models": tuple(MODELS)}), Path()))
    assert found and found["ranks"]["left_out"].startswith("It leaves out flow and snr, above 3.7 bits")
    assert "flow" not in drawn and "edm" in drawn


def test_models_without_a_score_are_not_ranked(paths: Paths) -> None:
    fail(paths, "flow", nfes=(7,))
    text = section(measured(paths, {"models": tuple(MODELS)}))
    assert "3 models have both an NLL and a score" in text


def test_failures_are_shown_with_their_reason(paths: Paths) -> None:
    failed = {("ddpm", 1, 35): HOSTILE, ("ddpm", 2, 35): HOSTILE, ("edm", 0, 11): "not finite"}
    text = section(measured(paths, failed=failed, unbounded=(("edm", 2),)))
    first = row(text, "`ddpm`", "| model |")
    assert first[1:8] == ["failed", "", "failed", "", "failed", "", ""] and first[-1] == "failed"
    assert row(text, "`edm`", "| model |")[-2:] == ["failed", "yes"]
    assert row(text, "`edm`", "### Convergence")[2] == row(text, "`ddpm`", "### There and back")[3] == "failed"
    assert row(text, "`ddpm`", "### Convergence")[2:] == ["3.335, se 0.050", "3.334, se 0.050", "failed", ""]
    assert row(text, "training, 35 steps", "### Failed likelihoods")[2] == "1 and 2"
    assert "<script>" in text and "<script>alert" not in (paths.reports / "report.html").read_text()
    assert row(text, "bound", "### Failed likelihoods")[2:] == ["2", "an answer of the denoiser is not finite"]
    assert "edm, 3.311 ± 0.025; failed: ddpm." in text
    assert summary(paths)["ddpm"] == {"bound": 4.1351} and "nan" not in text


def test_nothing_but_failures_breaks_nothing(paths: Paths) -> None:
    failed = {("edm", seed, steps): "not finite" for seed in range(3) for steps in (11, 19, 35)}
    every = tuple(("edm", seed) for seed in range(3))
    text = section(measured(paths, failed=failed, lost=("ddpm",), unbounded=every))
    assert "No models have both an NLL and a score" in text and "Lowest" not in text and "nan" not in text
    assert row(text, "`ddpm`", "| model |")[1] == row(text, "`edm`", "| model |")[1] == "failed"
    assert "likelihood_bound.png" not in text and summary(paths) == {"edm": {}, "ddpm": {}}


def test_one_model_of_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rough_figures: None) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [1], models={"edm": {}})
    text = section(measured(paths, {"models": ("edm",)}))
    assert row(text, "`edm`", "| model |")[1:6] == ["3.111", "0.050", "3.311", "0.050", "+0.200 (+0.0628 to +0.337)"]
    assert "- NLL of 40 held-out images, in bits per dimension: edm, 3.311." in text
    assert "1 model has both an NLL and a score, too few" in text and "nan" not in text


def test_points_have_a_density(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BITS, "edm", -1.25)
    report = Report(measured(paths, {"models": ("edm",)}, dimensions=2), Path())
    report.of_points, report.things = True, "points"
    found = likelihood.section(report)
    assert found is not None
    assert "(2 dimensions) of the density at sigma_min = 0.002, which may be negative" in found["conventions"]
    assert "exact trace; no dequantization, offset 0 bits" in found["conventions"]
    assert row(found["table"], "`edm`", "\n")[1].startswith("-1.250 ±") and "levels" not in found["trips"]


def test_figures_are_drawn(paths: Paths, rough_figures: None) -> None:
    build(measured(paths, {"models": tuple(MODELS)}))
    for name in ("likelihood_bound", "likelihood_and_score"):
        assert series(paths, name) == set(MODELS)


def test_missing_and_broken_results_are_refused(paths: Paths) -> None:
    measured(paths)
    file, summary = paths.reports / "likelihood.csv", paths.metrics("likelihood", "models")
    own = read_json(summary)
    del own["models"]["ddpm"]
    write_json(summary, own)
    with pytest.raises(StudyError, match=r"models\.json: no model ddpm; run `dvc repro`"):
        Report(paths, Path())
    measured(paths)
    file.write_text(file.read_text().replace("bits", "nats"))
    with pytest.raises(StudyError, match=r"likelihood\.csv: broken"):
        Report(paths, Path())
    file.unlink()
    with pytest.raises(StudyError, match=r"likelihood\.csv: missing"):
        Report(paths, Path())
