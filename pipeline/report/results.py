"""Results as one tidy table, and the statistics that the report states."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from pipeline.files import Paths, read_json

COLUMNS = ["curve", "model", "train_seed", "sample_seed", "steps", "nfe", "samples", "metric", "value", "se"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `count` repetitions and its 95% interval, whose ends are NaN where there is one repetition alone."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(values: np.ndarray) -> Interval:
    """Student's interval of the mean of `values` (n,)."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def read_results(paths: Paths, curves: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The results of the declared curves as one table with COLUMNS, and each curve's machine."""
    rows, machines = [], {}
    for name, curve in curves.items():
        content = read_json(paths.curve(name) / "results.json")
        machines[name] = content["machine"]
        for cell in content["cells"]:
            row = {"curve": name, "model": curve["model"]} | {k: v for k, v in cell.items() if k != "metrics"}
            rows += [row | metric for metric in cell["metrics"]]
    return pd.DataFrame(rows, columns=COLUMNS), machines


def at_budget(results: pd.DataFrame, curve: str, metric: str, budget: int) -> pd.Series:
    """A curve's values at its largest NFE within a budget, by (train seed, sample seed); empty where it has none."""
    of_curve = results[(results.curve == curve) & (results.metric == metric) & (results.nfe <= budget)]
    return of_curve[of_curve.nfe == of_curve.nfe.max()].set_index(["train_seed", "sample_seed"]).value


def ratio(values: pd.Series, base: pd.Series) -> Interval | None:
    """values / base over the seeds that both have: geometric mean, and an interval from the logarithms.

    Both sides share their initial noise, and their network where the model is the same, so the ratios are paired.
    None where they have no seeds in common.
    """
    both = pd.concat([values, base], axis=1, join="inner")
    if both.empty:
        return None
    log = interval(np.log(both.iloc[:, 0] / both.iloc[:, 1]).to_numpy())
    return Interval(math.exp(log.mean), math.exp(log.low), math.exp(log.high), log.count)


def is_tie(found: Interval | None) -> bool:
    """Whether a ratio's interval holds 1. One repetition alone decides nothing, and counts as a tie."""
    return found is None or math.isnan(found.low) or found.low <= 1 <= found.high


def summarise(results: pd.DataFrame, curve: str, metric: str) -> dict[int, Interval]:
    """A curve's mean and interval over seeds, by counted NFE."""
    of_curve = results[(results.curve == curve) & (results.metric == metric)]
    return {int(nfe): interval(group.value.to_numpy()) for nfe, group in of_curve.groupby("nfe")}
