"""Estimates with 95% intervals, paired differences, components of variance, floors, and Pareto fronts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from pipeline.metrics.estimate import JACKKNIFE_BLOCKS
from pipeline.metrics.wasserstein import W2_POINTS
from pipeline.report.results import SEEDS, cells

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `count` repetitions and its 95% confidence interval, with NaN ends if its error is unknown.

    For a single repetition, it is the interval of drawing its samples, by the jackknife.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(values: np.ndarray, se: float = math.nan) -> Interval:
    """Student's interval of the mean of `values` (n,). A single value uses `se`, a standard error from 20 blocks."""
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else se
    half = float(stdtrit((count if count > 1 else JACKKNIFE_BLOCKS) - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(mean, mean - half, mean + half, count)


def repeated(by_seed: pd.DataFrame) -> np.ndarray:
    """The values of repetitions, from cells by seed: one per training, or one per sampling of a single training.

    Samplings of one network are correlated, so that counting each of them would make the interval too narrow.
    """
    by_training = by_seed.value.groupby("train_seed").mean()
    return (by_training if len(by_training) > 1 else by_seed.value).to_numpy()


def estimate(by_seed: pd.DataFrame) -> Interval:
    """The mean of cells, indexed by seeds, and its interval."""
    return interval(repeated(by_seed), float(by_seed.se.iloc[0]) if len(by_seed) == 1 else math.nan)


def difference(own: pd.DataFrame, base: pd.DataFrame) -> Interval | None:
    """own - base over their common seeds, with an interval; None without a common seed.

    Differences are paired. For a single repetition, the two errors are added as if they were independent. With shared
    noise, this interval is too wide rather than too narrow. `comparisons` has the ratios behind the report's verdicts.
    """
    both = pd.concat([own, base.add_suffix("_base")], axis=1, join="inner")
    if both.empty:
        return None
    both = both.assign(value=both.value - both.value_base, se=np.hypot(both.se, both.se_base))
    return estimate(both)


def summarise(results: pd.DataFrame, curve: str, metric: str) -> dict[int, Interval]:
    """The mean of a curve and its interval, by counted NFE."""
    return {int(nfe): estimate(group.set_index(SEEDS)) for nfe, group in cells(results, curve, metric).groupby("nfe")}


class Spread(NamedTuple):
    """Standard deviations of a score from retraining and from resampling one network."""

    mean: float
    training: float
    sampling: float


def spread(by_seed: pd.DataFrame) -> Spread | None:
    """The components of variance from retraining and resampling, from cells of all pairs of seeds.

    Trainings share their sampling seeds, so this is a two-way analysis of variance with random effects. The variance of
    resampling one network is that of the sampling seeds plus the residual. Negative estimates become 0. None with fewer
    than two training seeds or sampling seeds.
    """
    grid = by_seed.value.unstack("sample_seed")
    if min(grid.shape) < 2 or grid.isna().any(axis=None):
        return None
    values = grid.to_numpy()
    by_training, by_sampling = values.mean(1), values.mean(0)
    rest = values - by_training[:, None] - by_sampling + values.mean()
    residual = float((rest**2).sum()) / ((values.shape[0] - 1) * (values.shape[1] - 1))
    training = float(np.var(by_training, ddof=1)) - residual / values.shape[1]
    sampling = float(np.var(by_sampling, ddof=1)) - residual / values.shape[0]
    return Spread(float(values.mean()), math.sqrt(max(training, 0)), math.sqrt(max(sampling, 0) + residual))


class Floor(NamedTuple):
    """The score of real data against other real data: a mean, and the standard deviation over splits."""

    mean: float
    sd: float


def floor_of(metric: str, measured: dict[str, Any], samples: int) -> Floor | None:
    """The floor of a metric, from two halves of the real data; None if it was not measured.

    measured: the summary of the reference. samples: the number of samples per measurement.

    A Frechet distance between n and N images of one distribution is about c (1 / n + 1 / N) (Chong and Forsyth 2020);
    the bias correction removes the first term. The floor of the halves is therefore scaled to the counts in use. The
    square of a sliced Wasserstein distance scales in the same way, because quantiles do. An exact Wasserstein distance
    between n points in the plane is about sqrt(log n / n) (Ajtai, Komlós and Tusnády 1984); it uses at most W2_POINTS
    points. Floors of other metrics are not scaled.
    """
    if metric not in measured["floor"]:
        return None
    mean, sd = (measured["floor"][metric][key] for key in ("mean", "sd"))
    half, whole = measured["floor_images"], measured["images"]
    apart = (1 / samples + 1 / whole) * half / 2
    n, paired = min(samples, whole, W2_POINTS), min(half, W2_POINTS)
    scale = {
        "fd": apart,
        "fd_corrected": half / whole,
        "fd_infinity": half / whole,
        "w2": math.sqrt(math.log(n) / n * paired / math.log(paired)),
        "sliced_w2": math.sqrt(apart),
    }
    return Floor(mean * scale.get(metric, 1), sd * scale.get(metric, 1))


def nfe_to_reach(points: dict[int, float], best: float, floor: float, share: float) -> int | None:
    """The smallest NFE of points (nfe -> distance) whose excess over the floor is at most (1 + share) times the best's.

    None if no point qualifies. If the best is below the floor, every point that does not exceed the floor qualifies.
    """
    limit = max(floor, floor + (1 + share) * (best - floor))
    return min((nfe for nfe, value in points.items() if value <= limit), default=None)


def pareto(points: Iterable[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """The Pareto front of (cost, distance, item), the cheapest first."""
    front: list[tuple[float, float, Any]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
