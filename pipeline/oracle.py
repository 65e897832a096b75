"""Exact denoisers: what a perfect network would answer, to measure solvers against (EDM, app. B.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor


def _expand(sigma: Tensor, like: Tensor) -> Tensor:
    """A scalar sigma or one a sample (N,), ready to multiply `like` (N, ...)."""
    return sigma if sigma.ndim == 0 else sigma.reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    """Data x0 ~ N(mean, std^2) in every dimension. z (N, ...), sigma a scalar or (N,)."""

    mean: float
    std: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D = mean + std^2 (z - mean) / (sigma^2 + std^2)."""
        sigma = _expand(sigma, z)
        return self.mean + self.std**2 * (z - self.mean) / (sigma**2 + self.std**2)

    def flow(self, z: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Where the probability-flow ODE takes z by sigma_next: z - mean shrinks as sqrt(sigma^2 + std^2)."""
        sigma, sigma_next = _expand(sigma, z), _expand(sigma_next, z)
        return self.mean + (z - self.mean) * ((sigma_next**2 + self.std**2) / (sigma**2 + self.std**2)).sqrt()


@dataclass(frozen=True)
class Mixture:
    """Data from Gaussians N(means[k], std^2) with probabilities weights[k]: means (K, d), weights (K,); z (N, d)."""

    means: Tensor
    weights: Tensor
    std: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The components' denoisers, weighed by how likely each made z."""
        variance = _expand(sigma, z) ** 2 + self.std**2
        offsets = z[:, None] - self.means
        likelihood = self.weights.log() - offsets.square().sum(2) / (2 * variance)
        means = (likelihood.softmax(1)[..., None] * self.means).sum(1)
        return means + self.std**2 / variance * (z - means)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x0, (count, d)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        return self.means[which] + self.std * noise
