"""Exact posteriors against quadrature in two dimensions, against Gaussian closed forms, and against their own draws."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.exact import Gaussian, Mixture, empirical
from pipeline.diffusion.posterior import Posterior, posterior, reweighted

F64 = torch.float64
MEANS = torch.tensor([[0.8, 0.1], [-0.5, 0.7], [-0.3, -0.9]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
MIXTURE = Mixture(MEANS, WEIGHTS, 0.3)
MATRICES = {
    "row": torch.tensor([[0.6, -1.1]], dtype=F64),
    "square": torch.tensor([[0.6, -1.1], [0.4, 0.3]], dtype=F64),
    "tall": torch.tensor([[0.6, -1.1], [0.4, 0.3], [-0.2, 0.9]], dtype=F64),
    "of rank 1": torch.tensor([[0.6, -1.1], [0.3, -0.55]], dtype=F64),
}
all_matrices = pytest.mark.parametrize("name", MATRICES)
sigmas = pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 80.0])


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def measured(matrix: Tensor, std: float) -> Tensor:
    return matrix @ torch.tensor([0.5, 0.4], dtype=F64) + std * normal(len(matrix))


def grid() -> Tensor:
    line = torch.linspace(-3, 3, 1201, dtype=F64)
    return torch.cartesian_prod(line, line)


def log_prior(x: Tensor, data: Mixture) -> Tensor:
    squares = (x[:, None] - data.means).square().sum(2)
    return (data.weights.log() - squares / (2 * data.std**2)).logsumexp(1)


def moments(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    weights = logits.softmax(0)
    mean = weights @ x
    return mean, (weights * (x - mean).T) @ (x - mean)


@all_matrices
@pytest.mark.parametrize("std", [0.1, 0.5])
def test_the_mixtures_posterior_has_the_moments_of_quadrature(name: str, std: float) -> None:
    matrix, x = MATRICES[name], grid()
    y = measured(matrix, std)
    logits = log_prior(x, MIXTURE) - (y - x @ matrix.T).square().sum(1) / (2 * std**2)
    mean, covariance = moments(x, logits)
    ours = posterior(MIXTURE, matrix, y, std)
    torch.testing.assert_close(ours.mean, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.covariance, covariance, rtol=1e-8, atol=1e-8)


@all_matrices
@pytest.mark.parametrize("sigma", [0.1, 0.5, 5.0])
def test_the_conditional_denoiser_is_that_of_quadrature(name: str, sigma: float) -> None:
    matrix, std, x = MATRICES[name], 0.2, grid()
    y = measured(matrix, std)
    ours = posterior(MIXTURE, matrix, y, std)
    for z in (normal(4, 2) * sigma + MEANS[0]).unbind():
        logits = log_prior(x, MIXTURE) - (y - x @ matrix.T).square().sum(1) / (2 * std**2)
        mean, _ = moments(x, logits - (z - x).square().sum(1) / (2 * sigma**2))
        torch.testing.assert_close(ours(z[None], level(sigma))[0], mean, rtol=1e-7, atol=1e-7)


@sigmas
def test_gaussians_have_their_closed_form(sigma: float) -> None:
    """The precisions of prior, measurement and z add up."""
    matrix, std, data = normal(3, 5), 0.2, Gaussian(0.3, 0.7)
    y, z, eye = normal(3, seed=1), sigma * normal(4, 5), torch.eye(5, dtype=F64)
    precision = eye / data.std**2 + matrix.T @ matrix / std**2
    towards = data.mean / data.std**2 + matrix.T @ y / std**2
    ours = posterior(data, matrix, y, std)
    torch.testing.assert_close(ours.mean, torch.linalg.solve(precision, towards))
    torch.testing.assert_close(ours.covariance, torch.linalg.inv(precision))
    denoised = torch.linalg.solve(precision + eye / sigma**2, (towards + z / sigma**2).T).T
    torch.testing.assert_close(ours(z, level(sigma)), denoised, rtol=1e-9, atol=1e-9)


@sigmas
def test_finite_data_are_a_softmax_over_the_data(sigma: float) -> None:
    images, std = normal(20, 1, 2, 3), 0.4
    matrix, y, z = normal(4, 6), normal(4, seed=1), sigma * normal(5, 1, 2, 3, seed=2)
    ours = posterior(empirical(images), matrix, y, std)
    flat = images.flatten(1)
    fit = -(y - flat @ matrix.T).square().sum(1) / (2 * std**2)
    mean, covariance = moments(flat, fit)
    torch.testing.assert_close(ours.mean, mean)
    torch.testing.assert_close(ours.covariance, covariance)
    for one, found in zip(z, ours(z, level(sigma)), strict=True):
        mean, _ = moments(flat, fit - (one - images).flatten(1).square().sum(1) / (2 * sigma**2))
        torch.testing.assert_close(found.flatten(), mean, rtol=1e-9, atol=1e-9)


@all_matrices
def test_no_noise_is_the_limit_of_little(name: str) -> None:
    matrix = MATRICES[name]
    y, z = matrix @ torch.tensor([0.5, 0.4], dtype=F64), normal(4, 2)
    exact, near = (posterior(MIXTURE, matrix, y, std) for std in (0.0, 1e-6))
    torch.testing.assert_close(exact(z, level(0.5)), near(z, level(0.5)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact.covariance, near.covariance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact.mean @ matrix.T, y, rtol=1e-9, atol=1e-9)


def test_much_noise_leaves_the_prior() -> None:
    matrix, z = MATRICES["square"], normal(4, 2)
    ours = posterior(MIXTURE, matrix, normal(2), 1e30)
    torch.testing.assert_close(ours(z, level(0.5)), MIXTURE(z, level(0.5)), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours.weights, WEIGHTS)


def drawn(exact: Posterior, count: int = 40_000) -> Tensor:
    return exact.sample(count, torch.Generator().manual_seed(0))


@all_matrices
def test_draws_have_the_posteriors_moments(name: str) -> None:
    exact = posterior(MIXTURE, MATRICES[name], measured(MATRICES[name], 0.2), 0.2)
    samples = drawn(exact)
    errors = (samples - exact.mean) @ torch.linalg.inv(torch.linalg.cholesky(exact.covariance)).T
    assert errors.mean(0).abs().max() < 4 / math.sqrt(len(samples))
    assert (errors.T.cov() - torch.eye(2, dtype=F64)).abs().max() < 0.05
    assert float((samples @ MATRICES[name].T - exact.y).square().mean().sqrt()) < 0.6


def test_draws_of_finite_data_are_data_in_their_shape() -> None:
    images = normal(6, 1, 2, 3)
    samples = drawn(posterior(empirical(images), normal(2, 6), normal(2), 0.5), 50)
    assert samples.shape == (50, 1, 2, 3)
    assert torch.cdist(samples.flatten(1), images.flatten(1)).min(1).values.max() < 1e-12


def test_far_from_everything_the_nearest_component_remains() -> None:
    z = torch.tensor([[900.0, -700.0]], dtype=F64)
    found = posterior(MIXTURE, MATRICES["row"], normal(1), 0.01)(z, level(0.01))
    assert found.isfinite().all()


def test_what_has_no_posterior_is_one_line() -> None:
    with pytest.raises(StudyError, match="std: 0 leaves no posterior of a finite data set"):
        posterior(empirical(MEANS), MATRICES["row"], normal(1), 0.0)
    with pytest.raises(StudyError, match="matrix: has 3 columns, but x0 has 2 values"):
        posterior(MIXTURE, normal(1, 3), normal(1), 0.1)


@all_matrices
def test_marginal_stds_are_the_roots_of_the_covariances_diagonal(name: str) -> None:
    exact = posterior(MIXTURE, MATRICES[name], measured(MATRICES[name], 0.2), 0.2)
    spread = drawn(exact).std(0)
    torch.testing.assert_close(exact.marginal_std**2, exact.covariance.diagonal())
    torch.testing.assert_close(exact.marginal_std, spread, rtol=0.03, atol=0)


def test_a_finite_posterior_is_that_of_enumeration_for_any_measurement() -> None:
    """Three numbers, of which the absolute value is measured: 1 and -1 fit equally well."""
    x0 = torch.tensor([[1.0], [-1.0], [2.0]], dtype=F64)
    exact = reweighted(x0, x0.abs(), torch.tensor([1.2]), 0.5)
    fits = [math.exp(-((abs(x) - 1.2) ** 2) / (2 * 0.5**2)) for x in (1, -1, 2)]
    weights = [fit / sum(fits) for fit in fits]
    mean = weights[0] - weights[1] + 2 * weights[2]
    square = weights[0] + weights[1] + 4 * weights[2]
    torch.testing.assert_close(exact.weights, torch.tensor(weights, dtype=F64), rtol=1e-6, atol=0)
    assert float(exact.mean) == pytest.approx(mean) and float(exact.marginal_std**2) == pytest.approx(square - mean**2)


@pytest.mark.parametrize("std", [0.05, 0.4, 5.0])
def test_a_finite_posterior_given_a_matrix_is_the_closed_form(std: float) -> None:
    images, matrix, y = normal(20, 1, 2, 3), normal(4, 6), normal(4, seed=1)
    ours = reweighted(images.flatten(1), images.flatten(1) @ matrix.T, y, std)
    closed = posterior(empirical(images), matrix, y, std)
    for key in ("weights", "mean", "marginal_std"):
        torch.testing.assert_close(getattr(ours, key), getattr(closed, key), rtol=1e-6, atol=1e-8)
    draws = [exact.sample(50, torch.Generator().manual_seed(0)).flatten(1) for exact in (ours, closed)]
    assert draws[0].shape == (50, 6) and torch.cdist(draws[0], images.flatten(1)).min(1).values.max() < 1e-6


def test_draws_of_a_prior_approach_the_closed_form() -> None:
    """Importance sampling: errors fall as the root of the number of draws near y."""
    matrix, std = MATRICES["row"], 0.3
    y, x0 = measured(matrix, std), MIXTURE.sample(200_000, torch.Generator().manual_seed(0))
    ours, closed = reweighted(x0, x0 @ matrix.T, y, std), posterior(MIXTURE, matrix, y, std)
    torch.testing.assert_close(ours.mean, closed.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(ours.marginal_std, closed.marginal_std, rtol=0.02, atol=0)


def test_far_from_everything_the_nearest_number_remains() -> None:
    x0 = torch.tensor([[0.0], [1.0]], dtype=F64)
    exact = reweighted(x0, x0, torch.tensor([1e6]), 1e-3)
    assert exact.weights.tolist() == [0, 1] and float(exact.marginal_std) == 0
