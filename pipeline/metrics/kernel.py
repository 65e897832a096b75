"""The kernel distance of KID between two sets of features, with its standard error, in float64 and in tiles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import Estimate
from pipeline.metrics.tiles import tiles


@dataclass(frozen=True)
class KernelSums:
    """Row sums (n,), column sums (m,) and sum of squares of the kernel matrix between two sets of features.

    For one set with itself they leave out the diagonal.
    """

    rows: Tensor
    columns: Tensor
    squares: Tensor


def kernel_sums(x: Tensor, y: Tensor | None = None) -> KernelSums:
    """Sums of KID's kernel (x . y / d + 1)^3 between features (n, d) and (m, d), or of one set with itself."""
    other = x if y is None else y
    rows, columns = (torch.zeros(len(side), dtype=torch.float64, device=x.device) for side in (x, other))
    squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for own, across, product in tiles(x, other):
        if y is None and own.start > across.start:
            continue  # the mirror image of another tile
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


def kernel_distance(
    x: Tensor, y: Tensor, y_sums: KernelSums | None = None, x_sums: KernelSums | None = None
) -> Estimate:
    """KID's squared MMD between features (n, d) and (m, d): the full U-statistic, unbiased, so it can be below 0.

    (Bińkowski et al. 2018, arXiv 1801.01401, eq. 4, all pairs instead of subsets.) The standard error covers the
    drawing of both sets, from Hoeffding's decomposition to second order (Hoeffding 1948): the terms that are linear in
    either set, and the degenerate ones, which alone remain if both sets have the same distribution. y_sums, x_sums:
    `kernel_sums` of y and of x. Raises StudyError for fewer than two features on either side.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise StudyError(f"{min(n, m)} samples are too few for a kernel distance; at least 2")
    xx, yy, xy = x_sums or kernel_sums(x), y_sums or kernel_sums(y), kernel_sums(x, y)
    within_x, within_y = xx.rows / (n - 1), yy.rows / (m - 1)
    across_x, across_y = xy.rows / m, xy.columns / n
    value = within_x.mean() + within_y.mean() - 2 * across_x.mean()
    rest_x = (xx.squares / (n * (n - 1)) - within_x.mean() ** 2 - 2 * within_x.var()).clamp(min=0)
    rest_y = (yy.squares / (m * (m - 1)) - within_y.mean() ** 2 - 2 * within_y.var()).clamp(min=0)
    rest_xy = (xy.squares / (n * m) - across_x.mean() ** 2 - across_x.var() - across_y.var()).clamp(min=0)
    # The degenerate terms scatter the row means as well; without this subtraction they would count three times.
    linear_x = ((within_x - across_x).var() - rest_x / (n - 1) - rest_xy / m).clamp(min=0)
    linear_y = ((within_y - across_y).var() - rest_y / (m - 1) - rest_xy / n).clamp(min=0)
    variance = (
        4 * (linear_x / n + linear_y / m)
        + 2 * (rest_x / (n * (n - 1)) + rest_y / (m * (m - 1)))
        + 4 * rest_xy / (n * m)
    )
    return Estimate(float(value), float(variance.sqrt()))
