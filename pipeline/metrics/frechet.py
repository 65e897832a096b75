"""Distances between sets of features, with standard errors. All in float64, and in blocks where sets are large."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.errors import StudyError

JACKKNIFE_BLOCKS = 20
GROUPINGS = (4, 5, 6, 8, 10, 20)  # blocks a group, when the distance is extrapolated to infinitely many samples
TILE = 1024  # rows and columns of a kernel or distance matrix that are in memory at once
PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020
SCORE_SPLITS = 10  # Salimans et al. 2016
W2_POINTS = 2048  # on either side of the exact Wasserstein distance, which takes cubic time
W2_ITERATIONS = 10_000_000  # of the network simplex, which ends by itself long before
DIRECTIONS = 32  # of the sliced Wasserstein distance


class Estimate(NamedTuple):
    """A metric's value and its standard error."""

    value: float
    se: float


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
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) < 2:
        raise StudyError(f"moments need features of shape (n, d) with n >= 2, not {tuple(features.shape)}")
    _check_finite(features)
    parts = features.split(TILE)  # in float64 a part at a time, for the memory
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(features)
    product = mean.new_zeros(len(mean), len(mean))
    for part in parts:
        centred = part.double() - mean
        product.addmm_(centred.T, centred)
    return Moments(mean, product / (len(features) - 1))


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise StudyError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """The squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) between Gaussians with these moments.

    a, b: features (n, d) and (m, d), or Moments. (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500.)
    The trace of the root comes from the eigenvalues of B^(1/2) A B^(1/2), B's root being computed once per Moments;
    where `a` holds fewer features than dimensions, from the singular values of them times B^(1/2), or times the
    features of `b` where these are few as well. Raises StudyError where the dimensions differ or a feature is not
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
    """X (n, d) with X^T X the covariance, where these are fewer features than dimensions; else None."""
    if isinstance(features, Moments) or len(features) >= features.shape[1]:
        return None
    return (torch.as_tensor(features).double() - own.mean) / (len(features) - 1) ** 0.5


class BlockMoments:
    """Sums over `count` features that come in any number of parts, apart for each of 20 blocks of equal size.

    Takes 20 d^2 numbers of memory, however many features there are. `centre` (d,), a rough mean, keeps the sums small.
    """

    def __init__(self, count: int, centre: Tensor, blocks: int = JACKKNIFE_BLOCKS) -> None:
        if count < 2 * blocks:
            raise StudyError(f"{count} samples are too few for a {blocks}-block jackknife; at least {2 * blocks}")
        self.count, self.centre, self.blocks, self.seen = count, centre.double(), blocks, 0
        d = len(centre)
        self.counts = self.centre.new_zeros(blocks)
        self.sums = self.centre.new_zeros(blocks, d)
        self.products = self.centre.new_zeros(blocks, d, d)

    def add(self, features: Tensor) -> None:
        """Count in the next features (k, d). Raises StudyError where one is not finite."""
        _check_finite(features)
        index = torch.arange(self.seen, self.seen + len(features)) * self.blocks // self.count
        self.seen += len(features)
        for block in index.unique().tolist():
            part = features[(index == block).to(features.device)].double() - self.centre
            self.counts[block] += len(part)
            self.sums[block] += part.sum(0)
            self.products[block].addmm_(part.T, part)

    @cached_property
    def _total(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.counts.sum(), self.sums.sum(0), self.products.sum(0)

    def _moments(self, count: Tensor, total: Tensor, product: Tensor) -> Moments:
        mean = total / count
        return Moments(mean + self.centre, (product - count * torch.outer(mean, mean)) / (count - 1))

    def all(self) -> Moments:
        return self._moments(*self._total)

    def without(self, block: int) -> Moments:
        """The moments of all features but one block's."""
        parts = (self.counts[block], self.sums[block], self.products[block])
        return self._moments(*(total - part for total, part in zip(self._total, parts, strict=True)))

    def group(self, first: int, blocks: int) -> Moments:
        """The moments of so many blocks, from the `first` one on."""
        own = slice(first, first + blocks)
        return self._moments(self.counts[own].sum(), self.sums[own].sum(0), self.products[own].sum(0))


def frechet_estimates(features: BlockMoments, distance: Callable[[Moments], float]) -> dict[str, Estimate]:
    """The Frechet distance of generated features from something given, in three readings.

    `fd`: as it is measured, too large by about c / n. `fd_corrected`: without that bias, by the jackknife over blocks
    (Quenouille 1956; Efron and Stein 1981); it may fall below 0 where the truth is near 0. Both have the jackknife's
    standard error: that of drawing these n samples, whatever they are compared with being given. `fd_infinity`: the
    intercept of a line in 1 / n through the mean distances of disjoint groups of 4 to 20 blocks, with the intercept's
    error of fit (Chong and Forsyth 2020, arXiv 1911.07023).
    """
    blocks = features.blocks
    value = distance(features.all())
    left_out = torch.tensor([distance(features.without(b)) for b in range(blocks)], dtype=torch.float64)
    corrected = blocks * value - (blocks - 1) * float(left_out.mean())
    se = _jackknife_error(left_out)
    sizes, means = [], []
    for size in (g for g in GROUPINGS if g < blocks):
        groups = [distance(features.group(first, size)) for first in range(0, blocks - size + 1, size)]
        sizes.append(size * features.count / blocks)
        means.append(sum(groups) / len(groups))
    counts, distances = torch.tensor([[*sizes, features.count], [*means, value]], dtype=torch.float64)
    line = _line(1 / counts, distances)
    return {"fd": Estimate(value, se), "fd_corrected": Estimate(corrected, se), "fd_infinity": line}


def _jackknife_error(left_out: Tensor) -> float:
    """The jackknife's standard error, from the values without each block (b,)."""
    blocks = len(left_out)
    return float(((left_out - left_out.mean()).square().sum() * (blocks - 1) / blocks).sqrt())


def _line(x: Tensor, y: Tensor) -> Estimate:
    """The intercept of the least-squares line through points (n,), and its standard error from the residuals."""
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    intercept = y.mean() - slope * x.mean()
    variance = (y - intercept - slope * x).square().sum() / (len(x) - 2)
    return Estimate(float(intercept), float((variance * (1 / len(x) + x.mean() ** 2 / spread)).sqrt()))


def _tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The inner products of features (n, d) and (m, d), a tile at a time: its rows, its columns, the products."""
    for top in range(0, len(x), TILE):
        rows = x[top : top + TILE].double()
        for left in range(0, len(y), TILE):
            columns = y[left : left + TILE].double()
            yield slice(top, top + len(rows)), slice(left, left + len(columns)), rows @ columns.T


@dataclass(frozen=True)
class KernelSums:
    """Of the kernel matrix between features: its row sums (n,), its column sums (m,), and the sum of its squares.

    For one set with itself the diagonal is left out.
    """

    rows: Tensor
    columns: Tensor
    squares: Tensor


def kernel_sums(x: Tensor, y: Tensor | None = None) -> KernelSums:
    """Sums of KID's kernel (x . y / d + 1)^3 between features (n, d) and (m, d), or of one set with itself."""
    other = x if y is None else y
    rows, columns = (torch.zeros(len(side), dtype=torch.float64, device=x.device) for side in (x, other))
    squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for own, across, product in _tiles(x, other):
        if y is None and own.start > across.start:
            continue  # the mirror image of a tile that was counted
        root = product.div_(x.shape[1]).add_(1)
        kernel = root.square().mul_(root)
        if y is None and own == across:
            kernel.fill_diagonal_(0)
        rows[own] += kernel.sum(1)
        columns[across] += kernel.sum(0)
        squares += kernel.square().sum()
        if y is None and own != across:
            rows[across] += kernel.sum(0)
            columns[own] += kernel.sum(1)
            squares += kernel.square().sum()
    return KernelSums(rows, columns, squares)


def kernel_distance(x: Tensor, y: Tensor, y_sums: KernelSums | None = None) -> Estimate:
    """KID's squared MMD between features (n, d) and (m, d), by the full U-statistic: unbiased, and below 0 by chance.

    (Bińkowski et al. 2018, arXiv 1801.01401, eq. 4, all pairs instead of subsets.) The error is that of drawing both
    sets, from Hoeffding's decomposition to second order (Hoeffding 1948): the terms linear in either set, and the
    degenerate ones, which are all that is left where both sets have one distribution. `y_sums`: `kernel_sums(y)`.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise StudyError(f"{min(n, m)} samples are too few for a kernel distance; at least 2")
    xx, yy, xy = kernel_sums(x), y_sums or kernel_sums(y), kernel_sums(x, y)
    within_x, within_y = xx.rows / (n - 1), yy.rows / (m - 1)
    across_x, across_y = xy.rows / m, xy.columns / n
    value = within_x.mean() + within_y.mean() - 2 * across_x.mean()
    rest_x = (xx.squares / (n * (n - 1)) - within_x.mean() ** 2 - 2 * within_x.var()).clamp(min=0)
    rest_y = (yy.squares / (m * (m - 1)) - within_y.mean() ** 2 - 2 * within_y.var()).clamp(min=0)
    rest_xy = (xy.squares / (n * m) - across_x.mean() ** 2 - across_x.var() - across_y.var()).clamp(min=0)
    # Row means scatter by the degenerate terms too, which would otherwise be counted three times over.
    linear_x = ((within_x - across_x).var() - rest_x / (n - 1) - rest_xy / m).clamp(min=0)
    linear_y = ((within_y - across_y).var() - rest_y / (m - 1) - rest_xy / n).clamp(min=0)
    variance = (
        4 * (linear_x / n + linear_y / m)
        + 2 * (rest_x / (n * (n - 1)) + rest_y / (m * (m - 1)))
        + 4 * rest_xy / (n * m)
    )
    return Estimate(float(value), float(variance.sqrt()))


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    lengths_x, lengths_y = (torch.cat([t.double().square().sum(1) for t in side.split(TILE)]) for side in (x, y))
    for rows, columns, product in _tiles(x, y):
        yield rows, columns, (lengths_x[rows, None] + lengths_y[columns] - 2 * product).clamp_(min=0)


def nearest_squared(x: Tensor, y: Tensor | None = None, neighbours: int = 1) -> Tensor:
    """Squared distances of features (n, d) to their nearest ones among (m, d), or among the others: (n, neighbours).

    The nearest one comes first. Raises StudyError where there are not so many.
    """
    other = x if y is None else y
    if len(other) - (y is None) < neighbours:
        raise StudyError(f"{len(other)} samples are too few for {neighbours} neighbours each")
    found = torch.full((len(x), neighbours), torch.inf, dtype=torch.float64, device=x.device)
    for rows, columns, squared in _squared_distances(x, other):
        if y is None and rows == columns:
            squared.fill_diagonal_(torch.inf)
        found[rows] = torch.cat([found[rows], squared], 1).topk(neighbours, largest=False).values
    return found


def _share(values: Tensor) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def neighbour_metrics(x: Tensor, y: Tensor, y_nearest: Tensor | None = None) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of generated features (n, d) against as many real ones (n, d).

    Precision: the share of generated features within a real one's ball, which reaches to its third neighbour; recall:
    the reverse (Kynkäänniemi et al. 2019, arXiv 1904.06991). Density: how many real balls, reaching to the fifth
    neighbour, hold a generated feature, over five; coverage: the share of real balls that hold one (Naeem et al. 2020,
    arXiv 2002.09797). Errors are those of the mean over features, balls being given.
    `y_nearest`: `nearest_squared(y, neighbours=COVERAGE_NEIGHBOURS)`.
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
        "precision": _share(precise),
        "recall": _share(recalled),
        "density": _share(dense / COVERAGE_NEIGHBOURS),
        "coverage": _share(covered),
    }


def near_duplicates(x: Tensor, y: Tensor, threshold: float) -> Estimate:
    """The share of features (n, d) whose nearest one among (m, d) is no farther than `threshold`, a squared distance.

    To rounding, so that copies count where the threshold is 0.
    """
    rounding = 1e-12 * float(torch.cat([t.double().square().sum(1) for t in y.split(TILE)]).mean())
    return _share(nearest_squared(x, y)[:, 0] <= threshold + rounding)


def inception_score(logits: Tensor) -> Estimate:
    """exp E KL(p(y|x) || p(y)) of logits (n, classes), the mean over ten splits (Salimans et al. 2016, 1606.03498)."""
    if len(logits) < SCORE_SPLITS:
        raise StudyError(f"{len(logits)} samples are too few for the score's {SCORE_SPLITS} splits")
    log_p = logits.double().log_softmax(1)
    scores = []
    for i in range(SCORE_SPLITS):
        part = log_p[i * len(logits) // SCORE_SPLITS : (i + 1) * len(logits) // SCORE_SPLITS]
        divergence = part.exp() * (part - part.logsumexp(0) + math.log(len(part)))
        scores.append(float(divergence.sum(1).mean().exp()))
    values = torch.tensor(scores, dtype=torch.float64)
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def w2(x: Tensor, y: Tensor) -> Estimate:
    """The 2-Wasserstein distance between points (n, d) and (m, d): the exact one, of the first min(n, m, W2_POINTS).

    Its square is the least mean squared distance over all pairings, by the network simplex (Bonneel et al. 2011).
    Finite sets of one distribution are apart, in the plane by about sqrt(log n / n) (Ajtai, Komlós and Tusnády 1984),
    so it compares at equal counts only. The error is that of drawing x, y being given: the square's, which is that of
    the mean of x's Kantorovich potential (del Barrio and Loubes 2019, arXiv 1705.01299), over twice the distance.
    """
    import ot  # a second to import, which only points need

    count = min(len(x), len(y), W2_POINTS)
    _check_finite(x[:count])
    own, other = x[:count].double(), y[:count].double()
    costs = torch.cdist(own, other, compute_mode="donot_use_mm_for_euclid_dist").square()
    square, found = ot.emd2([], [], costs.cpu().numpy(), numItermax=W2_ITERATIONS, log=True)
    if found["warning"]:
        raise StudyError(f"the Wasserstein distance of {count} points has no solution ({found['warning']})")
    distance = math.sqrt(max(square, 0.0))
    spread = float(found["u"].std(ddof=1)) / math.sqrt(count)
    return Estimate(distance, spread / (2 * distance) if distance else 0.0)


def sliced_w2(x: Tensor, y: Tensor, directions: int = DIRECTIONS) -> Estimate:
    """The sliced 2-Wasserstein distance between points (n, 2) and (m, 2) of the plane, all of them, in any numbers.

    The root of the mean over directions of the squared distance between projections, which is that between their
    quantiles (Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters). Directions are spread evenly over the
    half circle instead of drawn, so that a shift by v is measured as |v| / sqrt(2). The error is the jackknife's over
    20 blocks of x, y being given.
    """
    if len(x) < 2 * JACKKNIFE_BLOCKS:
        raise StudyError(f"{len(x)} samples are too few for a {JACKKNIFE_BLOCKS}-block jackknife")
    _check_finite(x)
    angles = torch.arange(directions, dtype=torch.float64, device=x.device) * (math.pi / directions)
    across = torch.stack([angles.cos(), angles.sin()])
    own, other = x.double() @ across, (y.double() @ across).sort(0).values
    block = torch.arange(len(x), device=x.device) * JACKKNIFE_BLOCKS // len(x)
    value = _quantile_distance(own.sort(0).values, other)
    left_out = [_quantile_distance(own[block != b].sort(0).values, other) for b in range(JACKKNIFE_BLOCKS)]
    return Estimate(value, _jackknife_error(torch.tensor(left_out, dtype=torch.float64)))


def _quantile_distance(x: Tensor, y: Tensor) -> float:
    """The root mean square difference of quantiles, over all of them and all columns, of sorted x (n, k) and y (m, k).

    Exact: both quantile functions are constant between the levels i / n and j / m, which are counted in 1 / (n m).
    """
    n, m = len(x), len(y)
    steps = [torch.arange(0, n * m + 1, step, device=x.device) for step in (m, n)]
    levels = torch.cat(steps).unique()
    widths, low = levels.diff().double() / (n * m), levels[:-1]
    return math.sqrt(float(widths @ (x[low // m] - y[low // n]).square().mean(1)))
