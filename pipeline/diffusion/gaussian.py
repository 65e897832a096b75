"""The exact denoiser of a Gaussian with any mean and covariance, and the laws that follow from it in closed form."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class CorrelatedGaussian:
    """The denoiser of data x0 ~ N(mean, covariance), x0 flattened to d values.

    mean: (d,), or (N, d) if each of N samples has its own; covariance: (d, d); both float64, on the CPU. z is (N, ...)
    with d values a sample, sigma > 0 is a scalar or (N,). Answers have z's shape and dtype. Eigenvalues of the
    covariance up to d eps times the largest count as 0: x0 does not vary in their directions.
    """

    mean: Tensor
    covariance: Tensor

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D = mean + C (C + sigma^2 I)^-1 (z - mean), with C the covariance (Bishop 2006, sec. 2.3.3)."""
        return self._stretched(z, self.variances / (self.variances + sigma.reshape(-1, 1) ** 2))

    def flow(self, z: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The solution of the probability-flow ODE at sigma_next >= 0 from z at sigma.

        In an eigenvector's direction of variance v, z - mean scales as sqrt(sigma^2 + v).
        """
        before, after = (self.variances + level.reshape(-1, 1) ** 2 for level in (sigma, sigma_next))
        return self._stretched(z, (after / before).sqrt())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x0, (count, d); count is N if the samples have means of their own."""
        noise = torch.randn(count, len(self.covariance), dtype=torch.float64, generator=generator)
        return self.mean + noise @ self.root.T

    def under(self, matrix: Tensor, offset: Tensor | float = 0.0) -> "CorrelatedGaussian":
        """The law of matrix x0 + offset: matrix (m, d), offset (m,)."""
        return CorrelatedGaussian(self.mean @ matrix.T + offset, matrix @ self.covariance @ matrix.T)

    def given(self, matrix: Tensor, y: Tensor, std: float = 0.0) -> "CorrelatedGaussian":
        """The law of x0 given y = matrix x0 + std n, n standard normal: matrix (m, d), y (m,) or (N, m).

        With C = R R^T and matrix R = U diag(a) V^T, the gain is R V diag(a / (a^2 + std^2)) U^T and the covariance is
        R (I - V diag(a^2 / (a^2 + std^2)) V^T) R^T. Values of a up to max(m, d) eps times the largest count as 0: y
        says nothing in their directions. So std may be 0, and matrix and covariance may be singular.
        (Bishop 2006, sec. 2.3.3.)
        """
        root = self.root
        u, a, v_t = torch.linalg.svd(matrix @ root, full_matrices=False)
        kept = a > max(matrix.shape) * torch.finfo(a.dtype).eps * a.max()
        u, a, v_t = u[:, kept], a[kept], v_t[kept]
        gain = root @ (v_t.T * (a / (a**2 + std**2))) @ u.T
        left = root - root @ (v_t.T * (1 - std / (a**2 + std**2).sqrt())) @ v_t  # a root of the covariance
        return CorrelatedGaussian(self.mean + (y - self.mean @ matrix.T) @ gain.T, left @ left.T)

    def frechet(self, other: "CorrelatedGaussian") -> float:
        """The squared 2-Wasserstein distance from another Gaussian with one mean, in squared units of x0.

        |m_a - m_b|^2 + min |A - B Q|^2 over orthogonal Q, with covariances A A^T and B B^T. The minimum is at Q = U V^T
        with B^T A = U S V^T; it loses no digits if the Gaussians are close. (Dowson and Landau 1982; Bhatia, Jain and
        Lim 2019, arXiv 1712.01504.)
        """
        u, _, v_t = torch.linalg.svd(other.root.T @ self.root)
        return float((self.mean - other.mean).square().sum() + (self.root - other.root @ (u @ v_t)).square().sum())

    @property
    def variances(self) -> Tensor:
        """The covariance's eigenvalues, ascending, (d,)."""
        return self._eigen[0]

    @property
    def directions(self) -> Tensor:
        """The covariance's eigenvectors as columns, (d, d), in the order of `variances`."""
        return self._eigen[1]

    @cached_property
    def root(self) -> Tensor:
        """R with R R^T the covariance, (d, d): the eigenvectors, each times the root of its eigenvalue."""
        return self.directions * self.variances.sqrt()

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
        return torch.where(values > rounding, values, 0.0), vectors

    def _stretched(self, z: Tensor, factors: Tensor) -> Tensor:
        """z with z - mean multiplied by factors, (1, d) or (N, d), along the eigenvectors."""
        offset = (z.flatten(1).double() - self.mean) @ self.directions
        return (self.mean + (offset * factors) @ self.directions.T).reshape(z.shape).to(z.dtype)
