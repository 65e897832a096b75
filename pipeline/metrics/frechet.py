"""Frechet distances between Gaussians with the moments of two sets of features, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import BlockMoments, Estimate, Moments, intercept, jackknife_error, moments

GROUPINGS = (4, 5, 6, 8, 10, 20)  # blocks in a group, for the extrapolation to infinitely many samples


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """The squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) between Gaussians with these moments.

    a, b: features (n, d) and (m, d), or Moments. (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500.)
    The trace of the root comes from the eigenvalues of B^(1/2) A B^(1/2); a Moments computes its root once. If `a`
    holds fewer features than dimensions, the trace comes from the singular values of these features times B^(1/2), or
    times the features of `b` if these are few as well. Raises StudyError if the dimensions differ or a feature is not
    finite.
    """
    first = a if isinstance(a, Moments) else moments(a)
    second = b if isinstance(b, Moments) else moments(b)
    if first.mean.shape != second.mean.shape:
        raise StudyError(f"features of {len(first.mean)} and of {len(second.mean)} dimensions cannot be compared")
    if (few := _few(a, first)) is not None:
        other = _few(b, second)
        cross = torch.linalg.svdvals(few @ (second.root if other is None else other.T)).sum()
    else:
        product = second.root @ first.covariance @ second.root
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + first.covariance.trace() + second.covariance.trace()
    return max(float(distance - 2 * cross), 0.0)


def _few(features: Tensor | Moments, own: Moments) -> Tensor | None:
    """X (n, d) with X^T X the covariance if there are fewer features than dimensions; else None."""
    if isinstance(features, Moments) or len(features) >= features.shape[1]:
        return None
    return (torch.as_tensor(features).double() - own.mean) / (len(features) - 1) ** 0.5


def frechet_estimates(features: BlockMoments, distance: Callable[[Moments], float]) -> dict[str, Estimate]:
    """Three estimates of the Frechet distance of generated features, from a `distance` to a fixed reference.

    `fd`: the plain distance, whose bias is about c / n. `fd_corrected`: without that bias, by the jackknife over blocks
    (Quenouille 1956; Efron and Stein 1981); it may fall below 0 if the true distance is near 0. Both have the
    jackknife's standard error, which covers the drawing of these n samples and not the reference. `fd_infinity`: the
    intercept of a line in 1 / n through the mean distances of disjoint groups of 4 to 20 blocks, with the standard
    error of the fit (Chong and Forsyth 2020, arXiv 1911.07023).
    """
    found, blocks = jackknifed(features, distance), features.blocks
    sizes, means = [], []
    for size in (g for g in GROUPINGS if g < blocks):
        groups = [distance(features.group(first, size)) for first in range(0, blocks - size + 1, size)]
        sizes.append(size * features.count / blocks)
        means.append(sum(groups) / len(groups))
    counts, distances = torch.tensor([[*sizes, features.count], [*means, found["fd"].value]], dtype=torch.float64)
    return found | {"fd_infinity": intercept(1 / counts, distances)}


def jackknifed(features: BlockMoments, distance: Callable[[Moments], float]) -> dict[str, Estimate]:
    """`fd` and `fd_corrected` of `frechet_estimates`, which take 21 distances."""
    blocks = features.blocks
    value = distance(features.all())
    left_out = torch.tensor([distance(features.without(b)) for b in range(blocks)], dtype=torch.float64)
    corrected = blocks * value - (blocks - 1) * float(left_out.mean())
    se = jackknife_error(left_out)
    return {"fd": Estimate(value, se), "fd_corrected": Estimate(corrected, se)}
