"""Posterior samplers: intervals, paired ratios, sets that may be the best, and failures, as functions of numbers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.given import EXACT, HELDOUT, PRIOR, Cell
from pipeline.report.given import DISTANCE, SCORE, GivenResults, Key, Point, contrast, crossed
from tests.report.posteriors import BUDGETS, POSTERIORS, SHAPE, cell, made_up_cells, rows_of

E = math.e


def results(cells: dict[str, list[Cell]], posteriors: dict | None = None) -> GivenResults:
    return GivenResults(rows_of(posteriors or POSTERIORS), cells, {}, {}, SHAPE)


def point(row: str, by_training: Sequence[Sequence[float]], model: str = "edm", seeds: Sequence[int] = ()) -> Point:
    """A point of a network with these logarithms of distances by training and problem."""
    places = seeds or range(len(by_training))
    cells = [
        cell(row, np.exp(own).tolist(), seeds=(s, s), model=model) for s, own in zip(places, by_training, strict=False)
    ]
    return Point.of(cells)


def test_the_exact_denoiser_has_the_interval_over_problems() -> None:
    """Seeds of sampling are averaged within a problem, as logarithms."""
    cells = [cell("dps", [1, E, E**2, E**3], seeds=("", 0)), cell("dps", [1, E**3, E**2, E**5], seeds=("", 1))]
    found = results({"dps": cells})
    own = found.point("dps", "noisy", PRIOR, 27)
    assert own is not None
    interval = found.estimate(own, DISTANCE)
    logs = np.array([0, 2, 2, 4])
    half = 3.182446 * logs.std(ddof=1) / 2  # Student's factor of 3 degrees of freedom
    assert interval is not None and interval.count == 4
    assert np.log([interval.mean, interval.low, interval.high]) == pytest.approx([2, 2 - half, 2 + half], rel=1e-6)


@pytest.mark.parametrize(("exact", "counted"), [([1, 2, 0, 3], 3), ([1, 2, 1, 3], 4), ([0, 0, 0, 3], 0)])
def test_problems_whose_exact_draws_are_all_one_x0_have_no_distance(exact: list[float], counted: int) -> None:
    perfect = cell(EXACT, exact, budget=0, seeds=("", 0))
    found = results({EXACT: [perfect], "dps": [cell("dps", [1, E, 1e-20, E**2], seeds=("", 0))]})
    own = found.point("dps", "noisy", PRIOR, 27)
    assert own is not None
    interval = found.estimate(own, DISTANCE)
    if not counted:
        assert interval is None
    else:
        assert interval is not None and interval.count == counted
        assert interval.mean == pytest.approx(E if counted == 3 else math.exp((3 - 20 * math.log(10)) / 4))
    assert own.values[SCORE].shape == (1, 4)


def test_problems_and_trainings_add_their_variances() -> None:
    values = np.array([[0.0, 1.0, 2.0, 5.0], [1.0, 2.0, 3.0, 6.0]])
    found = crossed(values.mean(0), [values.mean(1)])
    parts = (np.var([0.5, 1.5, 2.5, 5.5], ddof=1) / 4, np.var([2.0, 3.0], ddof=1) / 2)
    assert (found.effect, found.variance) == pytest.approx((2.5, sum(parts)))
    df = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 1)
    assert found.half_width() == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(sum(parts)))


def test_a_single_training_adds_no_variance() -> None:
    values = np.array([[0.0, 1.0, 2.0, 5.0]])
    assert crossed(values.mean(0), [values.mean(1)]) == crossed(values.mean(0))


def test_the_interval_of_networks_covers() -> None:
    """With effects of problems, trainings and both, 95% intervals hold the true mean at least 93 times of 100."""
    draw, inside, count = np.random.default_rng(0), 0, 2000
    for _ in range(count):
        problems, trainings = draw.standard_normal(12), 0.5 * draw.standard_normal((3, 1))
        values = problems + trainings + 0.7 * draw.standard_normal((3, 12))
        found = crossed(values.mean(0), [values.mean(1)])
        inside += abs(found.effect) <= found.half_width()
    assert inside / count > 0.93


@pytest.mark.parametrize("values", [[1.0, math.inf, 2.0], [1.0, math.nan], [1e300, -1e300], [1.0]])
def test_an_unknown_error_decides_nothing(values: list[float]) -> None:
    found = crossed(np.array(values))
    assert not found.known and found.p == 1


def test_ratios_are_paired_by_problem() -> None:
    """Problems that differ by orders of magnitude do not hide a ratio."""
    logs = np.array([0.0, 5, -5, 9])
    found = results(
        {
            "dps_tuned": [cell("dps_tuned", np.exp(logs + np.array([0.9, 1.1, 1, 1])).tolist())],
            "dps": [cell("dps", np.exp(logs).tolist())],
        }
    )
    [(key, verdict)] = found.tuning.items()
    half = 3.182446 * np.std([0.9, 1.1, 1, 1], ddof=1) / 2
    assert key == ("dps_tuned", "noisy", 27) and verdict.word == "worse"
    ends = [verdict.effect.mean, verdict.effect.low, verdict.effect.high]
    assert np.log(ends) == pytest.approx([1, 1 - half, 1 + half], rel=1e-6)


@pytest.mark.parametrize(("model", "variance"), [("edm", 0.0), ("flow", 2 * np.var([0, 1, 2], ddof=1) / 3)])
def test_trainings_are_pairs_within_a_model_only(model: str, variance: float) -> None:
    """Networks of one model with one effect of training each cancel; those of two models do not."""
    problems = np.array([0.0, 1, 2, 3])
    own = [(seed + problems + [0.1, -0.1, 0, 0]).tolist() for seed in range(3)]
    base = [(seed + problems).tolist() for seed in range(3)]
    found = contrast(point("a", own), point("b", base, model), DISTANCE)
    assert found.effect == pytest.approx(0, abs=1e-9)
    assert found.variance == pytest.approx(np.var([0.1, -0.1, 0, 0], ddof=1) / 4 + variance)


def test_common_trainings_are_compared() -> None:
    one = point("a", [[9.0, 9, 9, 9], [1.0, 2, 3, 4]], seeds=(0, 1))
    two = point("b", [[1.0, 2, 3, 5], [7.0, 7, 7, 7]], seeds=(1, 2))
    assert contrast(one, two, DISTANCE).effect == pytest.approx(-0.25)


def test_equal_rows_are_ties() -> None:
    cells = {name: [cell(name, [1, 2, 3, 4])] for name in ("dps", "dps_tuned", "tmp")}
    cells["tmp"] = [cell("tmp", [2, 4, 6.1, 8])]
    found = results(cells)
    assert found.best(["dps", "tmp", "dps_tuned"], "noisy", PRIOR, 27) == ["dps", "dps_tuned"]
    [verdict] = found.tuning.values()
    assert verdict.equal and verdict.p == 1


@pytest.mark.parametrize(("spread", "kept"), [(0.01, ["tmp"]), (3.0, ["tmp", "dps"])])
def test_only_rows_that_are_told_apart_are_left_out(spread: float, kept: list[str]) -> None:
    noise = spread * np.array([1, -1, 0.5, -0.5])
    cells = {"dps": [cell("dps", np.exp(0.3 + noise).tolist())], "tmp": [cell("tmp", [1, 1, 1, 1])]}
    assert results(cells).best(["dps", "tmp"], "noisy", PRIOR, 27) == kept


def test_rows_without_a_result_are_no_candidates() -> None:
    cells = {"dps": [cell("dps", [9, 9, 9, 9])], "tmp": [cell("tmp", [1] * 4, failed="step 2")]}
    found = results(cells)
    assert found.best(["dps", "tmp", "edm_dps"], "noisy", PRIOR, 27) == ["dps"]
    assert found.best(["dps", "tmp"], "noisy", PRIOR, 9) == found.best([], "noisy", PRIOR, 27) == []


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_distance_that_is_not_finite_fails_the_point(value: float) -> None:
    found = results({"dps": [cell("dps", [1, 2, value, 4]), cell("dps", [1, 2, 3, 4], seeds=("", 1))]})
    assert found.point("dps", "noisy", PRIOR, 27) is None and found.failed("dps", "noisy", PRIOR, 27)
    [((*_, reason), budgets)] = found.failures.items()
    assert reason.startswith("samples of 1 of 4 problems are not finite") and budgets == [27]


def test_another_score_that_is_not_finite_has_no_mean() -> None:
    found = results({"dps": [cell("dps", [1, 2, 3, 4], misfit=[1, math.inf, 1, 1], mean_error=[1e250, 1, 1, 1])]})
    own = found.points[Key("dps", "noisy", PRIOR, 27)]
    assert found.estimate(own, "misfit") is None
    assert found.estimate(own, "psnr") is not None and found.estimate(own, "nothing") is None
    wide = found.estimate(own, "mean_error")
    assert wide is not None and math.isnan(wide.low)


def test_verdicts_are_corrected_for_their_family() -> None:
    """The p values of 8 comparisons are larger than those of each alone."""
    rows = rows_of()
    cells = made_up_cells(rows, {"dps": 1.0, "dps_tuned": 1.02})
    found = GivenResults(rows, cells, {}, {}, SHAPE)
    assert len(found.tuning) == 2 * len(BUDGETS)
    for (name, measurement, budget), verdict in found.tuning.items():
        one, two = (found.point(own, measurement, PRIOR, budget) for own in (name, "dps"))
        assert one and two and verdict.p >= contrast(one, two, DISTANCE).p
        low, high = verdict.corrected
        assert low < verdict.effect.low < verdict.effect.high < high


def test_kinds_of_rows_are_found() -> None:
    found = results({})
    assert found.tuned_pairs == {"dps_tuned": "dps"}
    assert found.network_pairs == {"edm_dps": "dps_tuned", "flow_tmp": "tmp"}
    assert found.sampler_pairs == {"tmp_ddim": "tmp"}
    assert found.variants == ["tmp", "dps_tuned"] and found.networks == ["edm_dps", "flow_tmp"]


@pytest.mark.parametrize(("ranks", "word"), [(0.5, "more"), (0.01, "less"), ([0.5, 0.5, 0.5, 0.01], "")])
def test_calibration_is_tested_against_the_level(ranks: float | list[float], word: str) -> None:
    """Without variance between problems, a coverage has that of independent ranks."""
    inside = [float(abs(2 * rank - 1) <= 0.9) for rank in (ranks if isinstance(ranks, list) else [ranks] * 4)]
    many = [
        cell(
            "dps", [1.0] * 64, ranks=[rank for rank in np.resize(ranks, 64)], coverage_90=np.resize(inside, 64).tolist()
        )
    ]
    [found] = results({"dps": many}).calibration.values()
    assert found == (word if word else "less")
    few = [cell("dps", [1.0] * 4, ranks=ranks, coverage_90=inside)]
    [found] = results({"dps": few}).calibration.values()
    assert found == ("less" if word == "less" else "")


def test_exact_draws_are_the_floor() -> None:
    rows = rows_of()
    found = GivenResults(rows, made_up_cells(rows, {"tmp": 0.1, "dps": 1.0}), {}, {}, SHAPE)
    words = {name: found.against_exact[name, "noisy"].word for name in ("tmp", "dps")}
    assert words == {"tmp": "equivalent", "dps": "worse"} and EXACT not in found.entries


def test_held_out_images_are_compared_by_energy_score() -> None:
    rows = rows_of()
    found = GivenResults(rows, made_up_cells(rows, {"edm_dps": 2.0, "flow_tmp": 1.0}), {}, {}, SHAPE)
    assert found.heldout and found.best(found.networks, "half", HELDOUT, 27, SCORE) == ["flow_tmp"]
    assert found.best(found.networks, "half", HELDOUT, 27) == []


def test_a_single_training_is_remarked() -> None:
    rows = rows_of()
    found = GivenResults(rows, made_up_cells(rows, {}, train_seeds=(0,)), {}, {}, SHAPE)
    assert {verdict.remark for verdict in found.network_verdicts.values()} == {"one training"}
    assert {verdict.remark for verdict in found.tuning.values()} == {""}
