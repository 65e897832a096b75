"""Exact denoisers, the outputs of perfect networks, as a reference for solvers (Karras et al. 2022, app. B.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction


def _expand(sigma: Tensor, like: Tensor) -> Tensor:
    """A scalar sigma or one per sample (N,), in a shape that multiplies `like` (N, ...)."""
    return sigma if sigma.ndim == 0 else sigma.reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    """The denoiser of data x0 ~ N(mean, std^2) in every dimension. z is (N, ...), sigma a scalar or (N,)."""

    mean: float
    std: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D = mean + std^2 (z - mean) / (sigma^2 + std^2)."""
        sigma = _expand(sigma, z)
        return self.mean + self.std**2 * (z - self.mean) / (sigma**2 + self.std**2)

    def flow(self, z: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The solution of the probability-flow ODE at sigma_next: z - mean scales as sqrt(sigma^2 + std^2)."""
        sigma, sigma_next = _expand(sigma, z), _expand(sigma_next, z)
        return self.mean + (z - self.mean) * ((sigma_next**2 + self.std**2) / (sigma**2 + self.std**2)).sqrt()


@dataclass(frozen=True)
class Mixture:
    """The denoiser of Gaussians N(means[k], std^2) with probabilities weights[k]: means (K, ...), weights (K,).

    z is (N, ...). With std = 0 the data are the means themselves, a finite data set.
    """

    means: Tensor
    weights: Tensor
    std: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the components' denoisers, weighted by their posterior probabilities."""
        variance = sigma.reshape(-1, 1) ** 2 + self.std**2
        flat, means = z.flatten(1), self.means.flatten(1)
        squares = torch.cdist(flat, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        near = (self.weights.log() - squares / (2 * variance)).softmax(1) @ means
        return (near + self.std**2 / variance * (flat - near)).reshape(z.shape)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x0, (count, ...)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.means.shape[1:], dtype=self.means.dtype, generator=generator)
        return self.means[which] + self.std * noise


@dataclass(frozen=True)
class LabelledMixture(Mixture):
    """A mixture whose component k is class k. labels (N,), int64; -1 is any class."""

    def __call__(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoiser of the whole mixture, or of each sample's class."""
        unconditional = super().__call__(z, sigma)
        if labels is None:
            return unconditional
        mean, level = self.means[labels], _expand(sigma, z)
        conditional = mean + self.std**2 / (level**2 + self.std**2) * (z - mean)
        return torch.where(_expand(labels, z) < 0, unconditional, conditional)

    def log_posterior(self, z: Tensor, sigma: Tensor) -> Tensor:
        """ln p(k | z; sigma) of every class, by Bayes' rule: (N, K)."""
        squares = (z.flatten(1)[:, None] - self.means.flatten(1)).square().sum(2)
        return (self.weights.log() - squares / (2 * (sigma.reshape(-1, 1) ** 2 + self.std**2))).log_softmax(1)

    def log_gradient(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """grad_z ln p(labels | z; sigma) = (means[labels] - sum_k p(k | z) means[k]) / (sigma^2 + std^2)."""
        near = (self.log_posterior(z, sigma).exp() @ self.means.flatten(1)).reshape(z.shape)
        return (self.means[labels] - near) / (_expand(sigma, z) ** 2 + self.std**2)


@dataclass(frozen=True)
class Cubes:
    """The denoiser of data uniform on K cubes of equal probability: centres (K, d), width of their sides.

    z is (N, d). Given z, x0 in one cube follows a truncated normal distribution in each dimension (Johnson, Kotz and
    Balakrishnan 1994, vol. 1, ch. 13, sec. 10.1). D stays accurate far from all cubes and for small sigma. Its rounding
    error grows as sigma^2 and is about 1e-12 at sigma = 80.
    """

    centres: Tensor
    width: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the truncated distributions, weighted by the cubes' posterior probabilities."""
        level = sigma.reshape(-1, 1, 1)
        offset = z[:, None] - self.centres
        log_mass, towards = _truncated(offset.abs() / level, self.width / (2 * level))
        means = z[:, None] - offset.sign() * level * towards
        return (log_mass.sum(2).softmax(1)[..., None] * means).sum(1)


def _truncated(distance: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """A standard normal distribution within distance -+ half, distance >= 0: the logarithm of twice its mass, its mean.

    Outside of the interval, mass and mean share the factor exp(-near^2 / 2), which underflows and is left out.
    """
    near, far = distance - half, distance + half
    inside, root, outer = near < 0, math.sqrt(2), near.clamp(min=0)
    between = torch.erf(far / root) - torch.erf(near.clamp(max=0) / root)
    fall = -2 * distance * half  # (near^2 - far^2) / 2
    scaled = torch.special.erfcx(outer / root) - fall.exp() * torch.special.erfcx(far / root)
    log_mass = torch.where(inside, between.log(), scaled.log() - outer.square() / 2)
    share = torch.where(inside, (-near.square() / 2).exp() / between, 1 / scaled)
    return log_mass, -math.sqrt(2 / math.pi) * torch.expm1(fall) * share


def empirical(images: Tensor) -> Mixture:
    """The optimal denoiser of a finite data set, images (K, ...): a network that has memorised it."""
    return Mixture(images.double(), torch.full((len(images),), 1 / len(images), dtype=torch.float64), 0.0)


def flow(denoiser: DenoiserFunction, z: Tensor, sigma: float, sigma_next: float, tolerance: float = 1e-12) -> Tensor:
    """The solution of the probability-flow ODE at sigma_next > 0 from z (N, ...) at sigma: (N, ...), float64."""
    if sigma == sigma_next:
        return z.double()
    return solution(denoiser, z, [sigma, sigma_next], tolerance)[-1]


def consistency_map(
    denoiser: DenoiserFunction, z: Tensor, sigma: float, end: float, tolerance: float = 1e-12
) -> Tensor:
    """The exact consistency map f(z, sigma) of z (N, ...), to `end` > 0: (N, ...), float64. f(z, end) = z.

    It follows the probability-flow ODE from sigma to `end`, in closed form for a Gaussian, else by `flow` with its
    tolerance. Source: Song et al. 2023, arXiv 2303.01469, sec. 3.
    """
    if isinstance(denoiser, Gaussian):
        begin, final = (torch.tensor(value, dtype=torch.float64) for value in (sigma, end))
        return denoiser.flow(z.double(), begin, final)
    return flow(denoiser, z, sigma, end, tolerance)


def solution(denoiser: DenoiserFunction, z: Tensor, sigmas: Sequence[float], tolerance: float = 1e-12) -> Tensor:
    """The solution of the probability-flow ODE at K sigmas > 0, in order, from z (N, ...) at sigmas[0].

    Returns (K, N, ...), float64. The solver is scipy's of order 8 in ln sigma, where dz / d ln sigma = z - D, with
    error `tolerance` per step.
    """

    def slope(log: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(z.shape)
        return (x - denoiser(x, torch.tensor(math.exp(log), dtype=torch.float64))).flatten().numpy()

    logs = [math.log(sigma) for sigma in sigmas]
    ends = logs[0], logs[-1]
    solved = solve_ivp(
        slope, ends, z.double().flatten().numpy(), "DOP853", t_eval=logs[1:], rtol=tolerance, atol=tolerance
    )
    return torch.cat([z.double()[None], torch.from_numpy(solved.y.T.copy()).reshape(-1, *z.shape)])
