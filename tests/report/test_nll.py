"""Convergence, extrapolation and Kendall's interval, as functions of numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.report.nll import NOT_CONVERGED, UNKNOWN, convergence, extrapolated, rank_agreement, worst


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("steps", [(2, 3), (11, 19), (35, 63)])
def test_extrapolation_removes_an_error_of_its_order(order: int, steps: tuple[int, int]) -> None:
    coarse, fine = (3.25 + 0.7 / (n - 1) ** order for n in steps)
    assert extrapolated(coarse, fine, steps, order) == pytest.approx(3.25, rel=1e-12)


def test_a_value_converges_within_the_error_of_the_larger_budget() -> None:
    bits = {10: [4.0, 4.0], 20: [3.5, 3.5], 40: [3.45, 3.445]}
    errors = {10: [9.0, 9.0], 20: [0.1, 0.1], 40: [0.06, 0.06]}
    assert [convergence(bits, errors, steps) for steps in bits] == [NOT_CONVERGED, "", ""]
    errors[40] = [0.06, 0.05]  # 3.5 - 3.445 is above the error of one training
    assert [convergence(bits, errors, steps) for steps in bits] == [NOT_CONVERGED] * 3
    assert convergence({20: bits[20]}, errors, 20) == UNKNOWN


def test_differences_of_trainings_do_not_cancel() -> None:
    assert convergence({10: [4.0, 5.0], 20: [5.0, 4.0]}, {10: [0.1] * 2, 20: [0.1] * 2}, 20) == NOT_CONVERGED


def test_a_result_of_several_values_has_the_worst_mark() -> None:
    assert worst(["", UNKNOWN, NOT_CONVERGED]) == NOT_CONVERGED
    assert worst(["", UNKNOWN]) == UNKNOWN and worst([""]) == worst([]) == ""


def models(means: list[tuple[float, float]], spread: float, trainings: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [
        (a + spread * draw.standard_normal(trainings), b + spread * draw.standard_normal(trainings)) for a, b in means
    ]


def test_measures_far_apart_have_a_tau_without_doubt() -> None:
    alike = models([(k, 10 * k) for k in range(5)], 0.01)
    found = rank_agreement(alike)
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((1, 1, 1, 5))
    found = rank_agreement([(one, -two) for one, two in alike])
    assert (found.mean, found.low, found.high) == pytest.approx((-1, -1, -1))


def test_tau_is_that_of_the_means_and_lies_in_its_interval() -> None:
    noisy = models([(k, k) for k in range(6)], 1.5)
    found = rank_agreement(noisy)
    means = np.array([[one.mean(), two.mean()] for one, two in noisy]).T
    assert found.mean == pytest.approx(stats.kendalltau(*means).statistic)
    assert -1 <= found.low < found.mean <= found.high <= 1
    again = rank_agreement(noisy)
    assert (again.low, again.high) == (found.low, found.high)


def test_pairs_of_a_training_stay_together() -> None:
    """Two measures that are equal in every training order the models alike in every resample."""
    values = [one for one, _ in models([(k, k) for k in range(5)], 3)]
    found = rank_agreement([(one, one) for one in values])
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_single_training_has_no_interval() -> None:
    found = rank_agreement([*models([(0, 0), (1, 2), (2, 1)], 0.1), *models([(3, 3)], 0.1, trainings=1)])
    assert found.mean == pytest.approx(2 / 3) and math.isnan(found.low) and math.isnan(found.high)
