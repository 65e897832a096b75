"""Exact posteriors of x0 given y = A x0 + std n, as a reference for posterior samplers.

The prior is a Gaussian, a mixture or a finite data set of `pipeline.diffusion.exact`. All components have the
covariance s^2 I, so that one singular value decomposition A = U diag(a) V^T gives the posterior of each in closed form
(Bishop 2006, Pattern Recognition and Machine Learning, sec. 2.3.3).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.exact import Gaussian, Mixture


@dataclass(frozen=True)
class Posterior:
    """p(x0 | y) for x0 of a mixture and y = A x0 + std n: matrix A (m, d), y (m,).

    It is a mixture, too. Its components have one covariance, I s^2 - V diag(s^4 a^2 / (s^2 a^2 + std^2)) V^T. Called as
    a denoiser, it gives E[x0 | z, y].
    """

    data: Mixture
    matrix: Tensor
    y: Tensor
    std: float

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | z, y; sigma]: z (N, ...), sigma a scalar above 0.

        Given z and the component k, x0 is N(m_k, v I) with v = s^2 sigma^2 / (s^2 + sigma^2). Then y shifts the mean by
        v A^T (v A A^T + std^2 I)^-1 (y - A m_k), and multiplies the weight by N(y; A m_k, v A A^T + std^2 I).
        """
        level, prior, flat, means = float(sigma) ** 2, self.data.std**2, z.flatten(1), self._means
        share = prior / (prior + level)
        variance = share * level
        _, a, v_t = self._svd
        spread = (variance * a**2 + self.std**2).sqrt()
        misfit = _distance(
            (self._seen - share * a * (flat @ v_t.T)) / spread, (1 - share) * a * (means @ v_t.T) / spread
        )
        logits = self.data.weights.log() - _distance(flat, means) / (2 * (prior + level)) - misfit / 2
        mean = share * flat + (1 - share) * (logits.softmax(1) @ means)
        return self._shifted(mean, variance).reshape(z.shape)

    @cached_property
    def weights(self) -> Tensor:
        """The posterior probability of each component, (K,)."""
        _, a, v_t = self._svd
        misfit = (self._seen - a * (self._means @ v_t.T)) ** 2 / (self.data.std**2 * a**2 + self.std**2)
        return (self.data.weights.log() - misfit.sum(1) / 2).softmax(0)

    @cached_property
    def means(self) -> Tensor:
        """The posterior mean of each component, (K, d)."""
        return self._shifted(self._means, self.data.std**2)

    @property
    def mean(self) -> Tensor:
        """E[x0 | y], (d,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Cov[x0 | y], (d, d)."""
        offsets, root = self.means - self.mean, self._root
        return (self.weights * offsets.T) @ offsets + root @ root

    @property
    def marginal_std(self) -> Tensor:
        """The standard deviation of each dimension, (d,)."""
        return self.covariance.diagonal().sqrt()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x0 given y, (count, ...)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.matrix.shape[1], dtype=self.means.dtype, generator=generator)
        return (self.means[which] + noise @ self._root).reshape(count, *self.data.means.shape[1:])

    @cached_property
    def _means(self) -> Tensor:
        return self.data.means.flatten(1)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, r), a (r,), V^T (r, d), without values that are 0 to rounding; other parts of y are noise alone."""
        u, a, v_t = torch.linalg.svd(self.matrix, full_matrices=False)
        kept = a > max(self.matrix.shape) * torch.finfo(a.dtype).eps * a.max()
        return u[:, kept], a[kept], v_t[kept]

    @cached_property
    def _seen(self) -> Tensor:
        """U^T y, (r,)."""
        return self.y @ self._svd[0]

    @cached_property
    def _root(self) -> Tensor:
        """The symmetric root of a component's covariance, (d, d)."""
        _, a, v_t = self._svd
        s = self.data.std
        left = self.std / (s**2 * a**2 + self.std**2).sqrt()  # of s, in the directions of V
        return s * (torch.eye(v_t.shape[1], dtype=v_t.dtype) - (v_t.T * (1 - left)) @ v_t)

    def _shifted(self, mean: Tensor, variance: float) -> Tensor:
        """The mean given y, if it is `mean` (N, d) without y and the covariance is variance I."""
        _, a, v_t = self._svd
        gain = variance * a / (variance * a**2 + self.std**2)
        return mean + (gain * (self._seen - a * (mean @ v_t.T))) @ v_t


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of x (N, d) and y (K, d): (N, K)."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def posterior(data: Gaussian | Mixture, matrix: Tensor, y: Tensor, std: float) -> Posterior:
    """The exact posterior of data given y, (m,) or (1, m), of y = A x0 + std n with the matrix A, (m, d).

    Raises StudyError if std is 0 and the data are finite: then no x0 gives y, or the weights are not defined.
    """
    if isinstance(data, Gaussian):
        means = torch.full((1, matrix.shape[1]), data.mean, dtype=torch.float64)
        data = Mixture(means, torch.ones(1, dtype=torch.float64), data.std)
    if math.prod(data.means.shape[1:]) != matrix.shape[1]:
        raise StudyError(f"matrix: has {matrix.shape[1]} columns, but x0 has {math.prod(data.means.shape[1:])} values")
    if std == 0 and data.std == 0:
        raise StudyError("std: 0 leaves no posterior of a finite data set; write a std above 0")
    return Posterior(data, matrix.double(), y.double().reshape(-1), std)


@dataclass(frozen=True)
class Reweighted:
    """p(x0 | y) for x0 of a finite set, by Bayes' rule: x0 (K, d), with any measurement that gives them A(x0), (K, m).

    Exact for a finite data set. For draws of a prior it is importance sampling, exact in the limit of many draws near
    y.
    """

    x0: Tensor
    weights: Tensor

    @property
    def mean(self) -> Tensor:
        """E[x0 | y], (d,)."""
        return self.weights @ self.x0

    @property
    def marginal_std(self) -> Tensor:
        """The standard deviation of each dimension, (d,)."""
        return (self.weights @ (self.x0 - self.mean).square()).sqrt()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x0 given y, (count, d)."""
        return self.x0[torch.multinomial(self.weights, count, replacement=True, generator=generator)]


def reweighted(x0: Tensor, measured: Tensor, y: Tensor, std: float) -> Reweighted:
    """The posterior of equally likely x0 (K, d) given y (m,), from their A(x0), (K, m), and std > 0."""
    squares = (measured.double() - y.double()).square().sum(1)
    return Reweighted(x0.double(), (-squares / (2 * std**2)).softmax(0))
