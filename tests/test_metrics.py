"""Frechet distances against scipy and closed forms, and the jackknife against the standard error of a mean."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pipeline.errors import StudyError
from pipeline.metrics import JACKKNIFE_BLOCKS, Moments, frechet_distance, frechet_with_error, moments


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated, shifted, float64 (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    mix, shift = torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    return (torch.randn(n, d, generator=generator) @ mix / d**0.5 + 0.3 * shift).double()


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


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q


def test_moments_are_those_of_numpy() -> None:
    x = features(50, 6, 0)
    found = moments(x.float())
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.float().double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(found.root @ found.root, found.covariance, rtol=1e-9, atol=1e-12)


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
    value, error = frechet_with_error(x, lambda part: float(part.mean()))
    blocks = x.reshape(JACKKNIFE_BLOCKS, -1).mean(1)
    assert value == pytest.approx(float(x.mean()), rel=1e-12)
    assert error == pytest.approx(float(blocks.std()) / JACKKNIFE_BLOCKS**0.5, rel=1e-9)
    _, single = frechet_with_error(x, lambda part: float(part.mean()), blocks=200)
    assert single == pytest.approx(float(x.std()) / len(x) ** 0.5, rel=0.1)


@pytest.mark.parametrize("n", [40, 47, 59, 1000])
def test_jackknife_leaves_each_feature_out_once(n: int) -> None:
    kept: list[Tensor] = []
    frechet_with_error(torch.arange(n), lambda part: kept.append(part) or 0.0)
    left_out = [n - len(part) for part in kept if len(part) < n]
    assert len(left_out) == JACKKNIFE_BLOCKS and sum(left_out) == n and max(left_out) - min(left_out) <= 1
    assert (torch.cat(kept).bincount() == JACKKNIFE_BLOCKS).all()


def test_jackknife_error_is_the_scatter_of_the_distance() -> None:
    """Over 40 independent draws, the mean error is within a quarter of the distances' standard deviation."""
    reference = moments(features(4000, 4, 5))
    pool = features(40 * 400, 4, 6)
    pairs = [frechet_with_error(x, lambda part: frechet_distance(part, reference)) for x in pool.split(400)]
    values, errors = torch.tensor(pairs).T
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.25)


def test_too_few_samples_for_the_jackknife_are_refused() -> None:
    assert frechet_with_error(torch.arange(40.0), lambda part: float(part.mean()))[0] == 19.5
    with pytest.raises(StudyError, match="39 samples are too few for a 20-block jackknife; at least 40"):
        frechet_with_error(torch.arange(39.0), lambda part: float(part.mean()))
