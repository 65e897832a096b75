"""Exact denoisers against quadrature, autograd and fine integration."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Cubes, Gaussian, Mixture, consistency_map, empirical, flow
from tests.runge_kutta import flow_by_rk4

MEANS, WEIGHTS, STD = [-1.0, 0.3, 2.0], [0.2, 0.5, 0.3], 0.4
F64 = torch.float64
X0 = np.linspace(-12, 12, 20_001)  # the quadrature's nodes
sigma_values = pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])


def mixture_1d() -> Mixture:
    return Mixture(torch.tensor(MEANS, dtype=F64)[:, None], torch.tensor(WEIGHTS, dtype=F64), STD)


def mixture_2d() -> Mixture:
    means = torch.tensor([[0.0, 1.0], [1.5, -0.5]], dtype=F64)
    return Mixture(means, torch.tensor([0.35, 0.65], dtype=F64), 0.3)


def single(mean: float, std: float, dimensions: int) -> Mixture:
    return Mixture(torch.full((1, dimensions), mean, dtype=F64), torch.ones(1, dtype=F64), std)


def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-(((x - mean) / std) ** 2) / 2) / std


def posterior_mean(prior: np.ndarray, z: Tensor, sigma: float) -> list[float]:
    """E[x0 | z] in one dimension, as a sum over the nodes."""
    joint = [prior * normal(value, X0, sigma) for value in z.flatten().tolist()]
    return [float((p * X0).sum() / p.sum()) for p in joint]


@sigma_values
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.7, 1.2)])
def test_gaussian_is_the_posterior_mean(mean: float, std: float, sigma: float) -> None:
    z = torch.linspace(-3, 3, 13).double()[:, None]
    actual = Gaussian(mean, std)(z, torch.tensor(sigma, dtype=F64))
    expected = posterior_mean(normal(X0, mean, std), z, sigma)
    assert actual.flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@sigma_values
def test_mixture_is_the_posterior_mean(sigma: float) -> None:
    z = torch.linspace(-3, 3, 13).double()[:, None]
    prior = sum(w * normal(X0, m, STD) for w, m in zip(WEIGHTS, MEANS, strict=True))
    actual = mixture_1d()(z, torch.tensor(sigma, dtype=F64))
    assert actual.flatten().tolist() == pytest.approx(posterior_mean(prior, z, sigma), rel=1e-6, abs=1e-6)


def log_density(mixture: Mixture, z: Tensor, sigma: Tensor) -> Tensor:
    parts = torch.distributions.MultivariateNormal(
        mixture.means, torch.eye(mixture.means.shape[1], dtype=F64) * (mixture.std**2 + sigma**2)
    )
    family = torch.distributions.Categorical(mixture.weights)
    return torch.distributions.MixtureSameFamily(family, parts).log_prob(z)


@sigma_values
def test_score_is_the_gradient_of_the_log_density(sigma: float) -> None:
    z = 2 * torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    level = torch.tensor(sigma, dtype=F64)
    for density, denoiser in ((mixture_2d(), mixture_2d()), (single(0.3, 0.8, 2), Gaussian(0.3, 0.8))):
        at = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(density, at, level).sum(), at)
        torch.testing.assert_close((denoiser(z, level) - z) / level**2, gradient, rtol=1e-8, atol=1e-9)


def test_one_component_mixture_is_the_gaussian() -> None:
    z, sigma = torch.linspace(-3, 3, 18, dtype=F64).reshape(6, 3), torch.tensor(0.7, dtype=F64)
    torch.testing.assert_close(single(-0.2, 0.9, 3)(z, sigma), Gaussian(-0.2, 0.9)(z, sigma), rtol=1e-12, atol=1e-12)


def test_gaussian_flow_is_the_integral_of_its_ode() -> None:
    """dz/dsigma = (z - D) / sigma, integrated by the classical Runge-Kutta method in ln sigma."""
    gaussian = Gaussian(0.4, 0.6)
    start = torch.linspace(-40, 40, 9).double()
    begin, end = math.exp(3.0), math.exp(-4.0)
    z = flow_by_rk4(gaussian, start, begin, end, 400)
    sigmas = torch.tensor([begin, end], dtype=torch.float64)
    torch.testing.assert_close(gaussian.flow(start, *sigmas), z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 1, 8, 8), (3, 2)])
def test_each_sample_has_its_own_sigma(shape: tuple[int, ...]) -> None:
    """Also if the batch size equals the image width."""
    z = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    sigma = torch.logspace(-1, 1, shape[0]).double()
    gaussian = Gaussian(0.1, 0.5)
    together = gaussian(z, sigma), gaussian.flow(z, sigma, sigma / 2)
    for i in range(shape[0]):
        torch.testing.assert_close(together[0][i], gaussian(z[i : i + 1], sigma[i])[0])
        torch.testing.assert_close(together[1][i], gaussian.flow(z[i : i + 1], sigma[i], sigma[i] / 2)[0])
    flat = z.flatten(1)[:, :2]
    mixture = mixture_2d()(flat, sigma)
    for i in range(shape[0]):
        torch.testing.assert_close(mixture[i], mixture_2d()(flat[i : i + 1], sigma[i])[0])


def test_mixture_samples_have_its_moments() -> None:
    mixture = mixture_2d()
    x0 = mixture.sample(200_000, torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    offsets = mixture.means - mean
    covariance = offsets.T @ (mixture.weights[:, None] * offsets) + mixture.std**2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(x0.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x0.T.cov(), covariance, rtol=0, atol=0.01)
    assert torch.equal(x0, mixture.sample(200_000, torch.Generator().manual_seed(0)))


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("count", [4, 5, 1])
def test_mixtures_of_images_take_a_sigma_for_each_sample(count: int) -> None:
    """Against the Gaussians of the components, also if the batch size equals the image width."""
    weights, std = torch.tensor([0.5, 0.2, 0.3], dtype=F64), 0.4
    mixture, z = Mixture(images(3), weights, std), 2 * images(count + 3)[3:]
    sigma = torch.logspace(-1, 1, count, dtype=F64)
    together = mixture(z, sigma)
    assert together.shape == z.shape and mixture.sample(6, torch.Generator()).shape == (6, 1, 4, 4)
    for i in range(count):
        variance = sigma[i] ** 2 + std**2
        logs = weights.log() - (z[i] - mixture.means).square().sum((1, 2, 3)) / (2 * variance)
        parts = mixture.means + std**2 / variance * (z[i] - mixture.means)
        expected = sum(p * part for p, part in zip((logs - logs.max()).exp().tolist(), parts, strict=True))
        expected = expected / (logs - logs.max()).exp().sum()
        torch.testing.assert_close(together[i], expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(mixture(z[i : i + 1], sigma[i])[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 30.0])
def test_the_optimal_denoiser_of_images_is_their_mean_weighted_by_likelihood(sigma: float) -> None:
    data, z = images(7), sigma * images(12)[7:] + images(5)
    likelihoods = [[math.exp(-float((a - b).square().sum()) / (2 * sigma**2)) for b in data] for a in z]
    expected = torch.stack([sum(p * b for p, b in zip(row, data, strict=True)) / sum(row) for row in likelihoods])
    torch.testing.assert_close(empirical(data)(z, torch.tensor(sigma, dtype=F64)), expected, rtol=1e-10, atol=1e-12)


def test_the_optimal_denoiser_of_images_goes_from_the_nearest_to_their_mean() -> None:
    """It stays finite, even if the likelihoods underflow in float64."""
    data, z = images(7), images(12)[7:]
    denoiser = empirical(data.float())
    nearest = data.float().double()[torch.cdist(z.flatten(1), data.flatten(1)).argmin(1)]
    for sigma in (1e-9, 1e-4, 0.02):
        torch.testing.assert_close(denoiser(z, torch.tensor(sigma, dtype=F64)), nearest, rtol=0, atol=1e-6)
    far = denoiser(z, torch.tensor(1e6, dtype=F64))
    torch.testing.assert_close(far, data.mean(0).expand(5, 1, 4, 4), rtol=0, atol=1e-6)
    assert denoiser(1e4 * z, torch.tensor(1e-3, dtype=F64)).isfinite().all()


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 3), (4,)])
@pytest.mark.parametrize(("begin", "end"), [(80.0, 0.002), (1.5, 0.6), (0.6, 1.5)])
def test_the_exact_flow_equals_that_of_a_gaussian(shape: tuple[int, ...], begin: float, end: float) -> None:
    """In both directions."""
    gaussian = Gaussian(0.2, 0.5)
    z = 0.2 + math.hypot(begin, 0.5) * torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = gaussian.flow(z, torch.tensor(begin, dtype=F64), torch.tensor(end, dtype=F64))
    found = flow(gaussian, z, begin, end)
    assert found.shape == shape and found.dtype == F64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_exact_flow_of_a_mixture_equals_that_of_small_steps() -> None:
    z = 1.5 * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = flow(mixture_2d(), z, 1.5, 0.3)
    torch.testing.assert_close(found, flow_by_rk4(mixture_2d(), z, 1.5, 0.3, 500), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow(mixture_2d(), found, 0.3, 1.5), z, rtol=1e-8, atol=1e-8)


SIDE = 0.5
CENTRES = torch.tensor([[-0.75, -0.25], [0.25, -0.25], [0.25, 0.75]], dtype=F64)  # two of them one above the other
CUBES = Cubes(CENTRES, SIDE)


def cubes_by_quadrature(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the density of z, but for a constant, and E[x0 | z], by Gauss-Legendre quadrature."""
    place, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    offsets = torch.cartesian_prod(place, place) * SIDE / 2
    nodes = (CENTRES[:, None] + offsets).flatten(0, 1)
    weights = torch.cartesian_prod(weight, weight).prod(1).repeat(len(CENTRES))
    logs = weights.log() - (z[:, None] - nodes).square().sum(2) / (2 * sigma**2)
    return logs.logsumexp(1) - 2 * sigma.log(), logs.softmax(1) @ nodes


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.5, 3.0, 80.0])
def test_cubes_have_the_posterior_mean(sigma: float) -> None:
    """For z inside of the cubes, between them, and outside."""
    level = torch.tensor(sigma, dtype=F64)
    z = (1 + 2 * sigma) * torch.randn(60, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = torch.cat([z, CENTRES, CENTRES + SIDE / 2, torch.tensor([[-0.25, -0.25], [0.0, 0.0]], dtype=F64)])
    torch.testing.assert_close(CUBES(z, level), cubes_by_quadrature(z, level)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_cubes_have_the_score_of_their_density(sigma: float) -> None:
    """Tweedie's formula, D = z + sigma^2 grad ln p, by central differences of the density."""
    level, h = torch.tensor(sigma, dtype=F64), 1e-4 * sigma
    z = (0.7 + sigma) * torch.randn(30, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    steps = h * torch.eye(2, dtype=F64)
    up, down = (torch.stack([cubes_by_quadrature(z + sign * s, level)[0] for s in steps], 1) for sign in (1, -1))
    torch.testing.assert_close(CUBES(z, level), z + sigma**2 * (up - down) / (2 * h), rtol=0, atol=1e-6)


def test_cubes_far_away_and_at_extreme_levels() -> None:
    """The nearest point of the cubes for sigma -> 0, the mean of the data for sigma -> infinity; always finite."""
    z = torch.tensor([[-0.8, -0.3], [5.0, 0.7], [-0.9, -400.0], [0.1, 0.3], [1e6, 1e6]], dtype=F64)
    nearest = torch.tensor([[-0.8, -0.3], [0.5, 0.7], [-0.9, -0.5], [0.1, 0.5], [0.5, 1.0]], dtype=F64)
    for sigma in (1e-12, 1e-7, 1e-4):
        torch.testing.assert_close(CUBES(z, torch.tensor(sigma, dtype=F64)), nearest, rtol=0, atol=2 * sigma + 1e-9)
    mean = CENTRES.mean(0).expand(5, 2)
    torch.testing.assert_close(CUBES(z, torch.tensor(1e3, dtype=F64))[:4], mean[:4], rtol=0, atol=1e-3)
    for sigma in (1e-12, 1e-3, 1.0, 1e6):
        assert CUBES(1e3 * z, torch.tensor(sigma, dtype=F64)).isfinite().all()


def test_cubes_take_a_sigma_for_each_sample() -> None:
    z, sigma = (
        torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0)),
        torch.logspace(-2, 2, 5).double(),
    )
    apart = [CUBES(z[i : i + 1], sigma[i]) for i in range(5)]
    torch.testing.assert_close(CUBES(z, sigma), torch.cat(apart), rtol=1e-13, atol=0)


E = 0.002  # where consistency maps end


@pytest.mark.parametrize("sigma", [E, 0.1, 1.0, 80.0])
def test_the_consistency_map_of_a_gaussian(sigma: float) -> None:
    """m + (z - m) sqrt((sd^2 + e^2) / (sd^2 + sigma^2)), for the Gaussian and for a mixture of one."""
    z = 0.3 + math.hypot(sigma, 0.6) * torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    expected = 0.3 + (z.double() - 0.3) * math.sqrt((0.6**2 + E**2) / (0.6**2 + sigma**2))
    for denoiser in (Gaussian(0.3, 0.6), single(0.3, 0.6, 2)):
        found = consistency_map(denoiser, z, sigma, E)
        assert found.dtype == F64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("denoiser", [mixture_2d(), CUBES, empirical(CENTRES)], ids=["mixture", "cubes", "finite set"])
def test_the_consistency_map_is_one_along_a_solution(denoiser: DenoiserFunction) -> None:
    """f(z', t) = f(z, s), where the ODE takes z from s to z' at t; f(z, e) = z."""
    z = 3 * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    whole = consistency_map(denoiser, z, 3.0, E)
    for level in (1.0, 0.2, E):
        between = flow(denoiser, z, 3.0, level)
        torch.testing.assert_close(consistency_map(denoiser, between, level, E), whole, rtol=0, atol=1e-7)
    assert consistency_map(denoiser, z, E, E).equal(z)
