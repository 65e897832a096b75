"""Metrics from nearest neighbours: precision, recall, density, coverage, near-duplicates; in float64, in tiles."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import JACKKNIFE_BLOCKS, Estimate, block_of, mean_estimate
from pipeline.metrics.tiles import parts, tiles

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    lengths_x, lengths_y = (torch.cat([t.double().square().sum(1) for t in parts(side)]) for side in (x, y))
    for rows, columns, product in tiles(x, y):
        yield rows, columns, (lengths_x[rows, None] + lengths_y[columns] - 2 * product).clamp_(min=0)


def nearest_squared(x: Tensor, y: Tensor | None = None, neighbours: int = 1) -> Tensor:
    """Squared distances (n, neighbours) of features (n, d) to their nearest ones among y (m, d), nearest first.

    Without y: among the other features of x. Raises StudyError if there are too few.
    """
    other = x if y is None else y
    if len(other) - (y is None) < neighbours:
        raise StudyError(f"{len(other)} samples are too few for {neighbours} neighbours each")
    nearest = torch.full((len(x), neighbours), torch.inf, dtype=torch.float64, device=x.device)
    for rows, columns, squared in _squared_distances(x, other):
        if y is None and rows == columns:
            squared.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], squared], 1).topk(neighbours, largest=False).values
    return nearest


def neighbour_metrics(x: Tensor, y: Tensor, y_nearest: Tensor | None = None) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of generated features (n, d) against as many real ones (n, d).

    Precision: the share of generated features within the ball of a real one, whose radius is the distance to its third
    neighbour; recall: the reverse (Kynkäänniemi et al. 2019, arXiv 1904.06991). Density: the number of real balls, now
    up to the fifth neighbour, that contain a generated feature, divided by five; coverage: the share of real balls that
    contain one (Naeem et al. 2020, arXiv 2002.09797). The standard errors are of the mean over features for fixed
    balls. y_nearest: `nearest_squared(y, neighbours=COVERAGE_NEIGHBOURS)`. Raises StudyError if the counts differ.
    """
    if len(x) != len(y):
        raise StudyError(f"precision and recall need equal counts, not {len(x)} and {len(y)} features")
    real = nearest_squared(y, neighbours=COVERAGE_NEIGHBOURS) if y_nearest is None else y_nearest
    near, far = real[:, PRECISION_NEIGHBOURS - 1], real[:, COVERAGE_NEIGHBOURS - 1]
    own = nearest_squared(x, neighbours=PRECISION_NEIGHBOURS)[:, -1]
    precise, recalled, covered = (torch.zeros(len(x), dtype=torch.bool, device=x.device) for _ in range(3))
    dense = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for rows, columns, squared in _squared_distances(x, y):
        precise[rows] |= (squared <= near[columns]).any(1)
        recalled[columns] |= (squared <= own[rows, None]).any(0)
        inside = squared <= far[columns]
        dense[rows] += inside.sum(1)
        covered[columns] |= inside.any(0)
    return {
        "precision": mean_estimate(precise),
        "recall": mean_estimate(recalled),
        "density": mean_estimate(dense / COVERAGE_NEIGHBOURS),
        "coverage": mean_estimate(covered),
    }


def near_duplicates(x: Tensor, y: Tensor, threshold: float) -> Estimate:
    """The share of features (n, d) whose nearest one among (m, d) is within `threshold`, a squared distance.

    Allows for rounding, so that copies count even if the threshold is 0.
    """
    return mean_estimate(nearest_squared(x, y)[:, 0] <= threshold + _rounding(y))


def _rounding(y: Tensor) -> float:
    return 1e-12 * float(torch.cat([t.double().square().sum(1) for t in parts(y)]).mean())


def near_duplicates_without(x: Tensor, y: Tensor, threshold: float) -> Tensor:
    """`near_duplicates` (20,) without each of 20 blocks of y in turn, for the jackknife over y."""
    blocks = one_hot(block_of(len(y)), JACKKNIFE_BLOCKS).double().to(y.device)
    near = torch.zeros(len(x), JACKKNIFE_BLOCKS, dtype=torch.float64, device=x.device)
    for rows, columns, squared in _squared_distances(x, y):
        near[rows] += (squared <= threshold + _rounding(y)).double() @ blocks[columns]
    return (near.sum(1, keepdim=True) - near > 0).double().mean(0)
