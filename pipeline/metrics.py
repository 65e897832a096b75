"""Distances between sets of features, with standard errors. All in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.errors import StudyError

JACKKNIFE_BLOCKS = 20


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of n features, float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(features: Tensor) -> Moments:
    """The moments of features (n, d). Raises StudyError for fewer than two of them, or where one is not finite."""
    features = torch.as_tensor(features).double()
    if features.ndim != 2 or len(features) < 2:
        raise StudyError(f"moments need features of shape (n, d) with n >= 2, not {tuple(features.shape)}")
    if not features.isfinite().all():
        raise StudyError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """The squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) between Gaussians with these moments.

    a, b: features (n, d) and (m, d), or Moments. (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500.)
    The trace of the root comes from the eigenvalues of B^(1/2) A B^(1/2), B's root being computed once per Moments;
    where both sets have fewer features than dimensions, from the singular values of the product of the sets.
    Raises StudyError where the dimensions differ or a feature is not finite.
    """
    few = not isinstance(a, Moments) and not isinstance(b, Moments) and max(len(a), len(b)) < a.shape[-1]
    first = a if isinstance(a, Moments) else moments(a)
    second = b if isinstance(b, Moments) else moments(b)
    if first.mean.shape != second.mean.shape:
        raise StudyError(f"features of {len(first.mean)} and of {len(second.mean)} dimensions cannot be compared")
    if few:
        left, right = torch.as_tensor(a).double() - first.mean, torch.as_tensor(b).double() - second.mean
        scale = ((len(left) - 1) * (len(right) - 1)) ** 0.5
        cross = torch.linalg.svdvals(left @ right.T).sum() / scale
    else:
        product = second.root @ first.covariance @ second.root
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + first.covariance.trace() + second.covariance.trace()
    return max(float(distance - 2 * cross), 0.0)


def frechet_with_error(
    features: Tensor, distance: Callable[[Tensor], float], blocks: int = JACKKNIFE_BLOCKS
) -> tuple[float, float]:
    """distance(features), features (n, d), and its standard error by the jackknife over blocks (Efron and Stein 1981).

    The error is that of drawing these samples; whatever they are compared with counts as given.
    """
    if len(features) < 2 * blocks:
        raise StudyError(f"{len(features)} samples are too few for a {blocks}-block jackknife; at least {2 * blocks}")
    block = torch.arange(len(features)) * blocks // len(features)
    left_out = torch.tensor([distance(features[block != b]) for b in range(blocks)], dtype=torch.float64)
    variance = (left_out - left_out.mean()).square().sum() * (blocks - 1) / blocks
    return distance(features), float(variance.sqrt())
