"""Gaussians of any covariance against isotropic ones, quadrature, the ODE's solution, and joint-Gaussian formulas."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.exact import Gaussian, Mixture, solution
from pipeline.diffusion.gaussian import CorrelatedGaussian
from pipeline.diffusion.posterior import posterior
from pipeline.metrics.estimate import Moments
from pipeline.metrics.frechet import frechet_distance

F64 = torch.float64
SIGMAS = [0.002, 0.05, 0.4, 3.0, 80.0]
sigmas = pytest.mark.parametrize("sigma", SIGMAS)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gaussian(dimensions: int, rank: int | None = None, seed: int = 1) -> CorrelatedGaussian:
    factor = normal(dimensions, rank or dimensions, seed=seed) / math.sqrt(dimensions)
    return CorrelatedGaussian(normal(dimensions, seed=seed + 1), factor @ factor.T)


def isotropic(mean: float, std: float, dimensions: int) -> CorrelatedGaussian:
    return CorrelatedGaussian(torch.full((dimensions,), mean, dtype=F64), std**2 * torch.eye(dimensions, dtype=F64))


@sigmas
@pytest.mark.parametrize("shape", [(5, 12), (4, 1, 4, 4), (3, 3, 2, 2)])
def test_an_isotropic_covariance_is_the_plain_gaussian(shape: tuple[int, ...], sigma: float) -> None:
    z, plain, ours = sigma * normal(*shape), Gaussian(0.3, 0.7), isotropic(0.3, 0.7, math.prod(shape[1:]))
    torch.testing.assert_close(ours(z, level(sigma)), plain(z, level(sigma)), rtol=1e-12, atol=1e-13)
    ends = level(sigma), level(sigma / 3)
    torch.testing.assert_close(ours.flow(z, *ends), plain.flow(z, *ends), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 5.0])
def test_the_denoiser_is_the_posterior_mean_by_quadrature(sigma: float) -> None:
    data, line = gaussian(2), torch.linspace(-6, 6, 1201, dtype=F64)
    x = torch.cartesian_prod(line, line)
    prior = torch.distributions.MultivariateNormal(data.mean, data.covariance).log_prob(x)
    for z in data.mean + sigma * normal(4, 2):
        weights = (prior - (z - x).square().sum(1) / (2 * sigma**2)).softmax(0)
        torch.testing.assert_close(data(z[None], level(sigma))[0], weights @ x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [6, 3])
def test_the_flow_is_the_solution_of_its_ode(rank: int) -> None:
    data, z, levels = gaussian(6, rank), 5 * normal(4, 1, 2, 3), [5.0, 1.0, 0.1, 0.01]
    expected = solution(data, z, levels)
    for sigma, there in zip(levels, expected, strict=True):
        torch.testing.assert_close(data.flow(z, level(5.0), level(sigma)), there, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 1, 4, 4), (3, 1, 4, 4), (1, 16)])
def test_each_sample_has_its_own_sigma_and_mean(shape: tuple[int, ...]) -> None:
    """Also if the batch size equals the image width."""
    data, z, sigma = gaussian(16), normal(*shape), torch.logspace(-1, 1, shape[0], dtype=F64)
    means = normal(shape[0], 16, seed=5)
    many = CorrelatedGaussian(means, data.covariance)
    denoised, flowed = many(z, sigma), many.flow(z, sigma, sigma / 2)
    for i in range(shape[0]):
        one = CorrelatedGaussian(means[i], data.covariance)
        torch.testing.assert_close(denoised[i], one(z[i : i + 1], sigma[i])[0])
        torch.testing.assert_close(flowed[i], one.flow(z[i : i + 1], sigma[i], sigma[i] / 2)[0])
    assert many(z.float(), sigma).dtype == torch.float32


@pytest.mark.parametrize("rank", [4, 2])
def test_the_flow_carries_noise_to_the_data_and_draws_have_their_moments(rank: int) -> None:
    data, count = gaussian(4, rank), 100_000
    high = level(3.0)
    z = data.sample(count, torch.Generator().manual_seed(0)) + high * normal(count, 4, seed=3)
    for x in (data.sample(count, torch.Generator().manual_seed(2)), data.flow(z, high, level(0.0))):
        torch.testing.assert_close(x.mean(0), data.mean, rtol=0, atol=0.02)
        torch.testing.assert_close(x.T.cov(), data.covariance, rtol=0, atol=0.03)
    assert torch.linalg.matrix_rank(data.sample(50, torch.Generator()) - data.mean) == rank


def test_the_law_under_a_matrix_is_that_of_the_transformed_draws() -> None:
    data, matrix, offset = gaussian(5), normal(3, 5), normal(3, seed=9)
    law, x = data.under(matrix, offset), data.sample(200_000, torch.Generator().manual_seed(0)) @ matrix.T + offset
    torch.testing.assert_close(law.mean, x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(law.covariance, x.T.cov(), rtol=0.02, atol=0.05)


def joint(data: CorrelatedGaussian, matrix: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (x0, y)."""
    both = torch.cat([torch.eye(len(data.mean), dtype=F64), matrix])
    covariance = both @ data.covariance @ both.T
    d = len(data.mean)
    covariance[d:, d:] += std**2 * torch.eye(len(matrix), dtype=F64)
    return both @ data.mean, covariance


MATRICES = {
    "wide": normal(3, 6),
    "square": normal(6, 6, seed=3),
    "tall": normal(8, 6, seed=4),
    "of rank 1": normal(3, 1) @ normal(1, 6, seed=6),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rank", [6, 2])
@pytest.mark.parametrize("std", [0.0, 1e-3, 0.3, 10.0])
def test_the_conditional_law_is_that_of_the_joint_gaussian(name: str, rank: int, std: float) -> None:
    """By Schur's complement with Moore and Penrose's inverse; each sample has its own y."""
    data, matrix = gaussian(6, rank), MATRICES[name]
    y = data.sample(4, torch.Generator().manual_seed(0)) @ matrix.T + std * normal(4, len(matrix), seed=8)
    mean, covariance = joint(data, matrix, std)
    gain = covariance[:6, 6:] @ torch.linalg.pinv(covariance[6:, 6:], rtol=1e-11, hermitian=True)
    law = data.given(matrix, y, std)
    torch.testing.assert_close(law.mean, data.mean + (y - mean[6:]) @ gain.T, rtol=1e-6, atol=1e-7)
    expected = data.covariance - gain @ covariance[6:, :6]
    torch.testing.assert_close(law.covariance, expected, rtol=1e-6, atol=1e-7)
    one = data.given(matrix, y[2], std)
    torch.testing.assert_close(one.mean, law.mean[2])
    assert one.mean.shape == (6,)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rank", [6, 2])
def test_without_noise_the_measurement_holds_exactly(name: str, rank: int) -> None:
    data, matrix = gaussian(6, rank), MATRICES[name]
    y = data.sample(50, torch.Generator().manual_seed(0)) @ matrix.T
    law = data.given(matrix, y)
    torch.testing.assert_close(law.mean @ matrix.T, y, rtol=1e-10, atol=1e-11)
    assert (matrix @ law.covariance @ matrix.T).abs().max() < 1e-13
    near = data.given(matrix, y, 1e-6)
    torch.testing.assert_close(law.mean, near.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(law.covariance, near.covariance, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_projected_onto_what_can() -> None:
    """y contradicts data that do not vary in its direction: it says nothing."""
    data = CorrelatedGaussian(torch.zeros(2, dtype=F64), torch.diag(torch.tensor([1.0, 0.0], dtype=F64)))
    law = data.given(torch.eye(2, dtype=F64), torch.tensor([0.5, 3.0], dtype=F64))
    assert law.mean.tolist() == pytest.approx([0.5, 0.0]) and law.covariance.abs().max() == 0
    plane, draw = gaussian(6, 2), torch.Generator().manual_seed(0)  # four eigenvalues are 0 up to rounding alone
    x = plane.sample(1, draw)[0]
    seen = plane.given(torch.eye(6, dtype=F64), x + plane.directions[:, :4] @ normal(4))
    torch.testing.assert_close(seen.mean, x, rtol=1e-9, atol=1e-9)
    still = CorrelatedGaussian(data.mean, torch.zeros(2, 2, dtype=F64)).given(torch.eye(2, dtype=F64), law.mean)
    assert still.mean.tolist() == [0, 0]


@sigmas
@pytest.mark.parametrize("std", [0.0, 0.2])
def test_the_conditional_denoiser_is_the_exact_posterior_of_an_isotropic_gaussian(sigma: float, std: float) -> None:
    matrix, y, z = MATRICES["wide"], normal(3, seed=7), sigma * normal(5, 6)
    expected = posterior(Gaussian(0.3, 0.7), matrix, y, std)(z, level(sigma))
    ours = isotropic(0.3, 0.7, 6).given(matrix, y, std)(z, level(sigma))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_conditional_laws_average_to_the_data(std: float) -> None:
    data, matrix = gaussian(6), MATRICES["wide"]
    root = torch.linalg.cholesky(joint(data, matrix, std)[1][6:, 6:])
    y = data.mean @ matrix.T + torch.cat([torch.zeros(1, 3, dtype=F64), root.T])
    law = data.given(matrix, y, std)
    torch.testing.assert_close(law.mean[0], data.mean)
    offsets = law.mean[1:] - data.mean
    torch.testing.assert_close(law.covariance + offsets.T @ offsets, data.covariance)


def test_the_distance_of_two_gaussians_is_that_of_their_moments() -> None:
    a, b = gaussian(7), gaussian(7, seed=11)
    expected = frechet_distance(Moments(a.mean, a.covariance), Moments(b.mean, b.covariance))
    assert a.frechet(b) == pytest.approx(expected, rel=1e-10) and b.frechet(a) == pytest.approx(expected, rel=1e-10)
    assert a.frechet(a) < 1e-13
    shifted = CorrelatedGaussian(a.mean + 0.5, a.covariance)
    assert a.frechet(shifted) == pytest.approx(7 * 0.25, rel=1e-12)
    assert isotropic(0, 0.5, 3).frechet(isotropic(0, 0.2, 3)) == pytest.approx(3 * 0.09, rel=1e-12)


def test_small_distances_of_singular_gaussians_keep_their_digits() -> None:
    """The root of a product of covariances would leave errors near 1e-8."""
    data, step = gaussian(8, 3), 1e-6
    near = CorrelatedGaussian(data.mean, (1 + step) ** 2 * data.covariance)
    assert data.frechet(near) == pytest.approx(step**2 * float(data.covariance.trace()), rel=1e-3)


def test_one_component_mixture_is_the_gaussian() -> None:
    mean, z, sigma = normal(1, 2, 3), normal(5, 2, 3), level(0.7)
    mixture = Mixture(mean, torch.ones(1, dtype=F64), 0.4)
    ours = CorrelatedGaussian(mean.flatten(), 0.16 * torch.eye(6, dtype=F64))
    torch.testing.assert_close(ours(z, sigma), mixture(z, sigma), rtol=1e-12, atol=1e-13)
