"""The Frechet distance against scipy and closed forms; its jackknife, correction and extrapolation."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import linregress
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, Moments, moments
from pipeline.metrics.frechet import frechet_distance, frechet_estimates
from tests.metrics.small import blocks_of, features, rotation


def by_scipy(a: Tensor, b: Tensor) -> float:
    a, b = a.numpy(), b.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(sqrtm(first @ second)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross


def by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """Where covariances are singular, sqrtm loses digits; tr (A B)^(1/2) sums the roots of the eigenvalues of A B."""
    a, b = a.numpy(), b.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.sort(np.linalg.eigvals(first @ second).real)[-min(len(a), len(b)) + 1 :]
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(values).sum()


@pytest.mark.parametrize(("n", "m", "d"), [(500, 500, 16), (500, 300, 16), (17, 40, 16), (40, 17, 1)])
def test_distance_is_that_of_scipy(n: int, m: int, d: int) -> None:
    a, b = features(n, d, 1), features(m, d, 2)
    expected = by_scipy(a, b) if d > 1 else float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, moments(b)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize(("n", "m"), [(10, 10), (10, 25), (31, 12), (10, 200), (200, 10), (2, 2)])
def test_fewer_features_than_dimensions(n: int, m: int) -> None:
    """By the singular values where both sets are small, by the eigenvalues where one is, or where moments are given."""
    a, b = features(n, 32, 1), features(m, 32, 2)
    expected = by_eigenvalues(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(a, moments(b)) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(moments(a), b) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(by_scipy(a, b), rel=1e-4)


@pytest.mark.parametrize("n", [300, 12])
def test_invariances(n: int) -> None:
    a, b = features(n, 16, 1), features(n, 16, 2)
    distance = frechet_distance(a, b)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(a @ rotation(16), b @ rotation(16)) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(3 * a + 5, 3 * b + 5) == pytest.approx(9 * distance, rel=1e-7)
    shift = torch.linspace(0, 1, 16).double()
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-5)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    means, stds = torch.tensor([[0, 1, 2], [1, 1, -1]]).double(), torch.tensor([[1, 2, 0], [3, 0.5, 1]]).double()
    a, b = (Moments(mean, std.square().diag()) for mean, std in zip(means, stds, strict=True))
    expected = 1 + 0 + 9 + 4 + 2.25 + 1
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_float32_features_are_measured_in_float64() -> None:
    """A mean far from 0 would otherwise swallow the covariance."""
    a, b = features(200, 8, 1), features(200, 8, 2)
    far = [(x + 300).float() for x in (a, b)]
    assert frechet_distance(*far) == pytest.approx(by_scipy(*(x.double() for x in far)), rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    bad = features(20, 4, 0)
    bad[3, 1] = bad[7, 2] = bad[7, 3] = value
    for pair in ((bad, features(20, 4, 1)), (features(20, 4, 1), bad)):
        with pytest.raises(StudyError, match="2 of 20 features are not finite"):
            frechet_distance(*pair)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4), torch.zeros(0, 4), torch.zeros(4), torch.zeros(3, 2, 4)])
def test_features_of_a_wrong_shape_are_refused(wrong: Tensor) -> None:
    for pair in ((wrong, features(20, 4, 1)), (features(20, 4, 1), wrong), (wrong, wrong)):
        with pytest.raises(StudyError, match=r"n >= 2"):
            frechet_distance(*pair)


@pytest.mark.parametrize("n", [3, 50])
def test_different_dimensions_are_refused(n: int) -> None:
    with pytest.raises(StudyError, match="of 4 and of 5 dimensions"):
        frechet_distance(features(n, 4, 0), features(n, 5, 0))


def test_jackknife_of_a_mean_is_the_standard_error_of_block_means() -> None:
    x = features(400, 1, 3)
    found = frechet_estimates(blocks_of(x), lambda own: float(own.mean))
    expected = float(x.reshape(JACKKNIFE_BLOCKS, -1).mean(1).std()) / JACKKNIFE_BLOCKS**0.5
    assert found["fd"] == pytest.approx((float(x.mean()), expected), rel=1e-9)
    assert found["fd_corrected"] == pytest.approx((float(x.mean()), expected), rel=1e-9)
    single = frechet_estimates(blocks_of(x, blocks=200), lambda own: float(own.mean))["fd"].se
    assert single == pytest.approx(float(x.std()) / len(x) ** 0.5, rel=0.1)


class Counts:
    """In the place of BlockMoments: a set's moments are no more than its count."""

    blocks, count = JACKKNIFE_BLOCKS, 1000

    def all(self) -> float:
        return self.count

    def without(self, block: int) -> float:
        return self.count * (1 - 1 / self.blocks)

    def group(self, first: int, blocks: int) -> float:
        assert first >= 0 and first + blocks <= self.blocks
        return self.count * blocks / self.blocks


def test_a_bias_in_proportion_to_one_over_n_is_removed_exactly() -> None:
    found = frechet_estimates(Counts(), lambda n: 3 + 50 / n)
    assert found["fd"] == pytest.approx((3.05, 0))
    assert found["fd_corrected"] == pytest.approx((3, 0))
    assert found["fd_infinity"] == pytest.approx((3, 0), abs=1e-9)


def test_the_extrapolation_is_a_least_squares_line() -> None:
    sizes = [200, 250, 300, 400, 500, 1000]
    expected = linregress([1 / n for n in sizes], [3 + 50 / n + 900 / n**1.5 for n in sizes])
    found = frechet_estimates(Counts(), lambda n: 3 + 50 / n + 900 / n**1.5)["fd_infinity"]
    assert found == pytest.approx((expected.intercept, expected.intercept_stderr), rel=1e-7)
