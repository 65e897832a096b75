"""2-Wasserstein distances between sets of points, exact and sliced, with standard errors, in float64."""

import math

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, Estimate, block_of, check_finite, jackknife_error

W2_POINTS = 2048  # on either side of the exact Wasserstein distance, which takes cubic time
W2_ITERATIONS = 10_000_000  # an upper bound for the network simplex, which converges long before
DIRECTIONS = 32  # of the sliced Wasserstein distance


def w2(x: Tensor, y: Tensor) -> Estimate:
    """The exact 2-Wasserstein distance between the first min(n, m, W2_POINTS) points of x (n, d) and of y (m, d).

    Its square is the least mean squared distance over all pairings, by the network simplex (Bonneel et al. 2011).
    Two finite sets of one distribution have a distance above 0, in the plane about sqrt(log n / n) (Ajtai, Komlós and
    Tusnády 1984): compare values at equal counts only. The standard error covers the drawing of x for a fixed y. It is
    the error of the square, from the mean of x's Kantorovich potential (del Barrio and Loubes 2019, arXiv 1705.01299),
    divided by twice the distance. Raises StudyError if a point is not finite.
    """
    square, potential, _ = _transport(x, y)
    distance = math.sqrt(square)
    spread = float(potential.std()) / math.sqrt(len(potential))
    return Estimate(distance, spread / (2 * distance) if distance else 0.0)


def w2_without(x: Tensor, y: Tensor) -> Tensor:
    """`w2` (20,) without each of 20 blocks of y's points in turn, for the jackknife over y.

    To first order in the weights of the points: the square changes by the mean of y's Kantorovich potential.
    """
    square, _, potential = _transport(x, y)
    block = block_of(len(potential))
    left_out = torch.stack([potential[block != b].mean() for b in range(JACKKNIFE_BLOCKS)])
    return (square + left_out - potential.mean()).clamp(min=0).sqrt()


def _transport(x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
    """The least mean squared distance over pairings of the first points of x and y, and both potentials (count,)."""
    import ot  # takes a second to import, and only points need it

    count = min(len(x), len(y), W2_POINTS)
    check_finite(x[:count])
    own, other = x[:count].double(), y[:count].double()
    costs = torch.cdist(own, other, compute_mode="donot_use_mm_for_euclid_dist").square()
    square, solution = ot.emd2([], [], costs.cpu().numpy(), numItermax=W2_ITERATIONS, log=True)
    if solution["warning"]:
        raise StudyError(f"the Wasserstein distance of {count} points has no solution ({solution['warning']})")
    own, other = (torch.as_tensor(solution[side], dtype=torch.float64) for side in "uv")
    return max(float(square), 0.0), own, other


def sliced_w2(x: Tensor, y: Tensor, directions: int = DIRECTIONS) -> Estimate:
    """The sliced 2-Wasserstein distance between all points x (n, 2) and y (m, 2) of the plane, for any n and m.

    The root of the mean over directions of the squared distance between projections, which is the distance of their
    quantiles (Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters). Directions are evenly spaced on the half
    circle instead of random, so a shift by v has the distance |v| / sqrt(2). The standard error is the jackknife's over
    20 blocks of x for a fixed y. Raises StudyError for too few points, or if one is not finite.
    """
    if len(x) < 2 * JACKKNIFE_BLOCKS:
        raise StudyError(f"{len(x)} samples are too few for a {JACKKNIFE_BLOCKS}-block jackknife")
    check_finite(x)
    angles = torch.arange(directions, dtype=torch.float64, device=x.device) * (math.pi / directions)
    across = torch.stack([angles.cos(), angles.sin()])
    own, other = x.double() @ across, (y.double() @ across).sort(0).values
    block = block_of(len(x)).to(x.device)
    value = _quantile_distance(own.sort(0).values, other)
    left_out = [_quantile_distance(own[block != b].sort(0).values, other) for b in range(JACKKNIFE_BLOCKS)]
    return Estimate(value, jackknife_error(torch.tensor(left_out, dtype=torch.float64)))


def _quantile_distance(x: Tensor, y: Tensor) -> float:
    """The root mean square difference of the quantiles of sorted x (n, k) and y (m, k), over levels and columns.

    Exact: both quantile functions are constant between the levels i / n and j / m, here in units of 1 / (n m).
    """
    n, m = len(x), len(y)
    steps = [torch.arange(0, n * m + 1, step, device=x.device) for step in (m, n)]
    levels = torch.cat(steps).unique()
    widths, low = levels.diff().double() / (n * m), levels[:-1]
    return math.sqrt(float(widths @ (x[low // m] - y[low // n]).square().mean(1)))
