"""Scores of posterior samples: distances to exact draws, errors of moments, ranks of the truth, and the misfit.

Each takes draws (P, S, d), S samples of x0 for each of P measurements, and gives a value for each, (P,), float64.
"""

import math

import torch
from torch import Tensor

from pipeline.common.randomness import generator

DIRECTIONS = 64  # of sliced distances
RANKED = 8  # directions along which the truth is ranked


def directions(dimensions: int, count: int) -> Tensor:
    """Random unit vectors, the same for all methods: (count, d), float64."""
    drawn = torch.randn(count, dimensions, dtype=torch.float64, generator=generator("directions", dimensions))
    return drawn / drawn.norm(dim=1, keepdim=True)


def sliced_w2(draws: Tensor, exact: Tensor) -> Tensor:
    """The sliced 2-Wasserstein distance to exact draws (P, k S, d), for a whole number k.

    The root of the mean over DIRECTIONS random directions of the squared distance between the quantiles of projections
    (Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters). Finite sets of one distribution have a distance
    above 0: compare at equal counts, and with that of a perfect sampler.
    """
    across = directions(draws.shape[2], DIRECTIONS).T
    own, other = ((each.double() @ across).sort(1).values for each in (draws, exact))
    own = own.repeat_interleave(other.shape[1] // own.shape[1], dim=1)
    return (own - other).square().mean((1, 2)).sqrt()


def energy_distance(draws: Tensor, exact: Tensor) -> Tensor:
    """The energy distance to exact draws (P, E, d), a kernel distance: unbiased, so it can be below 0.

    Formula: 2 E|x - z| - E|x - x'| - E|z - z'|
    Source: Szekely and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018; Sejdinovic et al. 2013, arXiv 1207.6076
    """
    draws, exact = draws.double(), exact.double()
    across = torch.cdist(draws, exact).mean((1, 2))
    return 2 * across - _within(draws) - _within(exact)


def energy_score(draws: Tensor, truth: Tensor) -> Tensor:
    """The energy score of the truth (P, d), a proper scoring rule: exact posterior samples have the lowest expectation.

    It needs no exact posterior, only an x0 that y was measured from.

    Formula: E|x - x0| - E|x - x'| / 2
    Source: Gneiting and Raftery 2007, doi 10.1198/016214506000001437, eq. 21
    """
    draws = draws.double()
    towards = (draws - truth.double()[:, None]).norm(dim=2).mean(1)
    return towards - _within(draws) / 2


def _within(draws: Tensor) -> Tensor:
    """The mean distance between two different draws."""
    count = draws.shape[1]
    return torch.cdist(draws, draws).sum((1, 2)) / (count * (count - 1))


def mean_error(draws: Tensor, mean: Tensor) -> Tensor:
    """The root mean square over dimensions of the draws' mean minus the exact one (P, d)."""
    return (draws.double().mean(1) - mean).square().mean(1).sqrt()


def std_error(draws: Tensor, std: Tensor) -> Tensor:
    """The root mean square over dimensions of the draws' standard deviation minus the exact one (P, d)."""
    return (draws.double().std(1) - std).square().mean(1).sqrt()


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """The rank of the truth (P, d) among the draws along RANKED directions, made continuous: (P, RANKED), in (0, 1).

    Uniform for draws of the exact posterior, if x0 is a draw of the prior. Ties and the width of a rank are filled at
    random.

    Source: Talts et al. 2018, arXiv 1804.06788, sec. 4
    """
    across = directions(draws.shape[2], RANKED).T
    own, value = draws.double() @ across, (truth.double() @ across)[:, None]
    below, equal = (own < value).sum(1), (own == value).sum(1)
    share = torch.rand(below.shape, dtype=torch.float64, generator=generator("ranks"))
    return (below + share * (equal + 1)) / (draws.shape[1] + 1)


def coverage(ranks: Tensor, level: float) -> Tensor:
    """The share of ranks (P, K) in the central interval of this level, which is `level` for exact draws: (P,)."""
    return ((2 * ranks - 1).abs() <= level).double().mean(1)


def misfit(measured: Tensor, y: Tensor, std: float) -> Tensor:
    """The mean over draws of |A(x) - y|^2 / (m std^2): measured is A(x), (P, S, m), and y is (P, m).

    It is near 1 for draws that fit y as well as the noise lets the truth fit.
    """
    return (measured.double() - y.double()[:, None]).square().mean((1, 2)) / std**2


def psnr(draws: Tensor, truth: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of the draws' mean, for images in [-1, 1]: truth (P, d)."""
    return 10 * (4 / (draws.double().mean(1) - truth.double()).square().mean(1)).log10()


def paired_distance(features: Tensor, truth: Tensor) -> Tensor:
    """The mean distance of the draws' features (P, S, f) from those of the truth (P, f), per root of f."""
    return (features.double() - truth.double()[:, None]).norm(dim=2).mean(1) / math.sqrt(features.shape[2])
