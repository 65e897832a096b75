"""The report's statistics, and how it writes numbers."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_text
from pipeline.report.results import COLUMNS, ORIGIN, at_budget, read_timings
from pipeline.report.statistics import (
    difference,
    estimate,
    floor_of,
    interval,
    nfe_to_reach,
    pareto,
    spread,
    summarise,
)
from pipeline.report.text import number


def test_an_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == values.mean()


def test_the_interval_of_one_repetition_is_that_of_its_samples() -> None:
    found = interval(np.array([3.0]))
    assert found.mean == 3 and math.isnan(found.low) and math.isnan(found.high)
    assert interval(np.array([3.0]), 0.5).half_width == pytest.approx(0.5 * stats.t.ppf(0.975, 19))


def by_seed(values: dict[tuple[int, int], float], se: float = 0.1) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(list(values), names=["train_seed", "sample_seed"])
    return pd.DataFrame({"nfe": 3, "value": list(values.values()), "se": se}, index=index)


def test_differences_are_paired_by_seeds() -> None:
    base = by_seed({(0, 0): 1.0, (1, 1): 10.0, (2, 2): 100.0})
    found = difference(by_seed({(2, 2): 98.0, (0, 0): -1.0, (1, 1): 8.0, (3, 3): 5.0}), base)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((-2, -2, -2, 3))
    assert difference(base, base.iloc[:0]) is None


def test_a_difference_of_one_repetition_has_both_errors() -> None:
    found = difference(by_seed({(0, 0): 3.0}, 0.3), by_seed({(0, 0): 1.0}, 0.4))
    assert found is not None and found.mean == 2
    assert found.half_width == pytest.approx(0.5 * stats.t.ppf(0.975, 19))


def test_samplings_of_one_network_are_one_repetition() -> None:
    crossed = by_seed({(t, s): 10.0 * t + s for t in (0, 1, 2) for s in (0, 1, 2)})
    assert estimate(crossed) == interval(np.array([1.0, 11.0, 21.0]))
    assert estimate(by_seed({(4, s): float(s) for s in (0, 1, 2)})) == interval(np.array([0.0, 1.0, 2.0]))


def test_spread_estimates_the_components_of_variance() -> None:
    """Trainings share their sampling seeds, whose effect is not part of retraining."""
    random = np.random.default_rng(0)
    training, sampling = random.normal(0, 3, 200), random.normal(0, 2, 200)
    values = {(t, s): 7 + training[t] + sampling[s] + random.normal(0, 0.5) for t in range(200) for s in range(200)}
    found = spread(by_seed(values))
    assert found is not None
    assert (found.mean, found.training, found.sampling) == pytest.approx((7, 3, math.hypot(2, 0.5)), rel=0.15)
    small = [
        spread(by_seed({(t, s): training[t] + sampling[t + s] for t in (k, k + 1) for s in (0, 1)})) for k in (0, 9)
    ]
    assert all(found is not None and found.sampling > 0 for found in small)
    assert spread(by_seed({(0, 0): 1.0, (1, 1): 2.0})) is None
    assert spread(by_seed({(0, 0): 1.0, (0, 1): 2.0})) is None


def test_a_budget_selects_the_largest_nfe_within_it() -> None:
    rows = [("a", "m", 0, 0, n, nfe, 64, "fd", float(nfe), 0.1) for n, nfe in ((2, 3), (4, 7), (6, 11))]
    results = pd.DataFrame(rows, columns=COLUMNS)
    assert at_budget(results, "a", "fd", 10).value.tolist() == [7.0]
    assert at_budget(results, "a", "fd", 2).empty
    assert list(summarise(results, "a", "fd")) == [3, 7, 11]


def test_floors_of_frechet_distances_are_scaled_to_the_counts() -> None:
    """c (1/n + 1/N): halves of 500 against 500 with c = 100 are at 0.4, and at 0.2 where one side's bias is gone."""
    floor = {
        "fd": {"mean": 0.4, "sd": 0.1},
        "fd_corrected": {"mean": 0.2, "sd": 0.1},
        "recall": {"mean": 0.9, "sd": 0.01},
    }
    measured = {"floor": floor, "floor_images": 500, "images": 1000}
    assert floor_of("fd", measured, 250) == pytest.approx((100 / 250 + 100 / 1000, 0.1 * 1.25))
    assert floor_of("fd_corrected", measured, 250) == pytest.approx((100 / 1000, 0.05))
    assert floor_of("recall", measured, 250) == (0.9, 0.01)
    assert floor_of("score", measured, 250) is None


def test_the_nfe_to_reach_counts_the_excess_over_the_floor() -> None:
    points = {3: 5.0, 7: 1.9, 11: 1.2, 35: 1.04, 63: 1.0}
    assert [nfe_to_reach(points, 1.0, 0.0, share) for share in (0.05, 0.2, 1.0, 9.0)] == [35, 11, 7, 3]
    assert [nfe_to_reach(points, 1.0, 0.8, share) for share in (0.05, 0.2, 1.0)] == [63, 35, 11]
    assert nfe_to_reach(points, 0.5, 0.0, 0.2) is None
    assert nfe_to_reach(points, 1.0, 2.0, 0.2) == 7  # whatever is not above the floor


def test_the_pareto_front_has_the_undominated_points() -> None:
    points = [(1.0, 9.0, "a"), (2.0, 5.0, "b"), (2.0, 4.0, "c"), (3.0, 4.5, "d"), (3.0, 1.0, "e"), (9.0, 1.0, "f")]
    assert [name for *_, name in pareto(points)] == ["a", "c", "e"]


def test_broken_timings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Paths("t")
    empty = pd.DataFrame(columns=COLUMNS + ORIGIN)
    assert read_timings(paths, empty, {}).empty
    write_text(paths.timings, "curve,nfe\nedm,3\n")
    with pytest.raises(StudyError, match=r"timings.csv: broken"):
        read_timings(paths, empty, {})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.12345, "-0.123"),
        (0.0, "0"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (51234.5, "51234"),
        (2e-5, "2.0e-05"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
