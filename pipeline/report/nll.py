"""The negative log-likelihood (NLL) of a study's models: means, convergence, gaps, bounds, agreement with scores."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import kendalltau

from pipeline.evaluation.likelihoods import Likelihood
from pipeline.report.comparisons import LEVEL, Contrast, holm, may_be_best, unpaired
from pipeline.report.statistics import CONFIDENCE, Interval, interval
from pipeline.sampling.multistep import Multistep

NOT_CONVERGED, UNKNOWN = "not converged", "convergence unknown"
SPLINE_ORDER, START_ORDER = 4, 2  # of the integral of the trace, of the first step of a multistep solver
NORMAL = 1.96  # half the width of a 95% interval in standard errors
RESAMPLES = 1000


class Value(NamedTuple):
    """The NLL of a model on one part of the data at a number of steps, in bits per dimension.

    by_training: the mean over images, indexed by training seed. se: its standard error over images, the root mean
    square over trainings. nfe, products: what one image costs. mark: NOT_CONVERGED, UNKNOWN, or "" if it converged.
    """

    by_training: pd.Series
    se: float
    nfe: int
    products: int
    mark: str

    @property
    def mean(self) -> float:
        return float(self.by_training.mean())

    @property
    def over_trainings(self) -> Interval:
        """The mean with Student's interval over trainings; with NaN ends for a single training."""
        return interval(self.by_training.to_numpy())


def convergence(bits: Mapping[int, Sequence[float]], errors: Mapping[int, Sequence[float]], steps: int) -> str:
    """The mark of the NLL at a number of steps: NOT_CONVERGED, UNKNOWN, or "" if it converged.

    bits, errors: number of steps -> the NLL of every training, and its standard error over images. A value has
    converged if, for every training, it is within the standard error of the larger number of steps from the value at
    the next larger number, or, for the largest, the next smaller one. With a single number of steps it is unknown.
    """
    larger, smaller = ([n for n in bits if (n > steps if up else n < steps)] for up in (True, False))
    if not larger and not smaller:
        return UNKNOWN
    other = min(larger) if larger else max(smaller)
    limits = errors[max(steps, other)]
    apart = [abs(a - b) for a, b in zip(bits[steps], bits[other], strict=True)]
    return "" if all(gap <= limit for gap, limit in zip(apart, limits, strict=True)) else NOT_CONVERGED


def extrapolated(coarse: float, fine: float, steps: tuple[int, int], order: int) -> float:
    """Richardson's extrapolation of a value whose error is of `order` in the step size, from two numbers of steps.

    K levels above 0 bound K - 1 intervals, so the step size is in proportion to 1 / (K - 1).
    """
    ratio = (steps[1] - 1) / (steps[0] - 1)
    return fine + (fine - coarse) / (ratio**order - 1)


def worst(marks: Sequence[str]) -> str:
    """The mark of a result of several values."""
    return next((mark for mark in (NOT_CONVERGED, UNKNOWN) if mark in marks), "")


class Gap(NamedTuple):
    """Held-out minus training NLL with its 95% interval over images, its p value, and the mark of the two values."""

    interval: Interval
    p: float
    mark: str


class Nll:
    """The results of the stage `likelihood` for these models.

    lines: likelihood.csv. summary: about the measurement and each model, as `measure_model` writes it.
    """

    def __init__(self, lines: pd.DataFrame, summary: Mapping[str, Any], models: Sequence[str]) -> None:
        self.lines, self.models, self._own = lines, list(models), summary["models"]
        about = summary["about"]
        self.row = Likelihood(**about["row"])
        self.dimensions = int(about["dimensions"])
        self.offset = float(about["offset_bits"]) + 0.0  # never -0
        self.images: dict[str, int] = about["images"]
        self.part = list(self.images)[-1]  # the held-out data, if there are any
        self.steps = self.row.step_counts
        self._values: dict[tuple[str, str], dict[int, Value]] = {}

    def of(self, model: str, steps: int) -> pd.DataFrame:
        """The lines of a model at a number of steps; empty if one has failed or the model has no training."""
        found = self.lines[(self.lines.model == model) & (self.lines.steps == steps)]
        return found if (found.failed == "").all() else found.iloc[:0]

    def values(self, model: str, part: str) -> dict[int, Value]:
        """The values of a model on a part by number of steps, without those of which a training failed."""
        if (model, part) not in self._values:
            self._values[model, part] = self._measured(model, part)
        return self._values[model, part]

    def _measured(self, model: str, part: str) -> dict[int, Value]:
        own = self.lines[(self.lines.model == model) & (self.lines.part == part)]
        failed = set(own[own.failed != ""].steps)
        grouped = {
            int(steps): lines.set_index("train_seed").sort_index()
            for steps, lines in own.groupby("steps")
            if steps not in failed
        }
        bits, errors = ({steps: lines[key].tolist() for steps, lines in grouped.items()} for key in ("bits", "se"))
        return {
            steps: Value(
                lines.bits,
                math.sqrt(float((lines.se**2).mean())),
                int(lines.nfe.max()),
                int(lines.products.max()),
                convergence(bits, errors, steps),
            )
            for steps, lines in grouped.items()
        }

    def value(self, model: str, part: str) -> Value | None:
        """The value of a model on a part at the largest budget; None if it failed."""
        return self.values(model, part).get(self.steps[-1])

    def mark(self, model: str) -> str:
        """The mark of a model: that of the values of all parts at the largest budget."""
        return worst([found.mark for part in self.images if (found := self.value(model, part))])

    @property
    def order(self) -> int:
        """The order of the NLL's error in the step size: the solver's, unless its first step or the spline has less."""
        solver = self.row.build_solver()
        return min(solver.order or SPLINE_ORDER, START_ORDER if isinstance(solver, Multistep) else SPLINE_ORDER)

    def limit(self, model: str, part: str) -> float | None:
        """The extrapolated NLL of a model, from its two largest budgets; None unless both have a value."""
        found = self.values(model, part)
        if len(self.steps) < 2 or not all(steps in found for steps in self.steps[-2:]):
            return None
        coarse, fine = self.steps[-2:]
        return extrapolated(found[coarse].mean, found[fine].mean, (coarse, fine), self.order)

    def gap(self, model: str) -> Gap | None:
        """The gap of a model at the largest budget; None without held-out data, or if a value failed."""
        found = next((own for own in self._own[model]["gaps"] if own["steps"] == self.steps[-1]), None)
        if found is None:
            return None
        gap, se = found["gap"], found["se"]
        p = float(2 * ndtr(-abs(gap) / se)) if se else float(gap == 0)
        return Gap(Interval(gap, gap - NORMAL * se, gap + NORMAL * se, 1), p, self.mark(model))

    def gaps_apart(self) -> list[str]:
        """The models whose gap differs from 0 at 5%, corrected for the number of models."""
        gaps = {name: gap.p for name in self.models if (gap := self.gap(name))}
        return [name for name, p in zip(gaps, holm(list(gaps.values())), strict=True) if p < LEVEL]

    def seeds(self, model: str) -> list[int]:
        """The trainings of a model that were measured."""
        return sorted(set(self.lines[self.lines.model == model].train_seed))

    def bounds(self, model: str) -> dict[int, dict[str, Any]]:
        """The variational bounds of a model by training seed, without those that are not finite."""
        return {own["train_seed"]: own for own in self._own[model]["bounds"]}

    @property
    def bounded(self) -> bool:
        """Whether bounds are measured: guidance, which has none, is idle."""
        return self.row.build_guidance().idle

    def bound(self, model: str, term: str = "total") -> Interval | None:
        """A term of a model's variational bound over trainings; None unless all of them have one."""
        found = self.bounds(model)
        return interval(np.array([own[term] for own in found.values()])) if self.complete(model) else None

    def complete(self, model: str) -> bool:
        """Whether every training of a model has a bound."""
        return bool(found := self.bounds(model)) and set(found) == set(self.seeds(model))

    def best(self) -> list[str]:
        """The model with the lowest NLL on the last part, then the others that may have it; without failed models.

        A model is left out only by a test over trainings of values that have converged. It is a test of the difference
        less its change from the second-largest budget. All models are measured on the same images, with the same
        dequantization and probes, and the test says nothing about others.
        """
        found = {name: value for name in self.models if (value := self.value(name, self.part))}

        def contrast(own: str, base: str) -> Contrast:
            one, two = found[own], found[base]
            known = unpaired(one.by_training.to_numpy(), two.by_training.to_numpy())
            if one.mark or two.mark:
                return Contrast(known.effect, known.unit, 0.0, 0)
            before = [self.values(name, self.part)[self.steps[-2]].mean for name in (own, base)]
            moved = abs(known.effect - (before[0] - before[1]))
            return known._replace(effect=math.copysign(max(abs(known.effect) - moved, 0.0), known.effect))

        return may_be_best(sorted(found, key=lambda name: found[name].mean), contrast)

    @cached_property
    def rejected(self) -> dict[tuple[str, int, str], bool]:
        """Whether z at sigma_max differs from its prior by model, training and part, at the largest budget.

        By Holm's method at 5% over all of these tests.
        """
        own = self.lines[(self.lines.steps == self.steps[-1]) & (self.lines.failed == "")]
        own = own[own.model.isin(self.models)]
        keys = [(row.model, int(row.train_seed), row.part) for row in own.itertuples()]
        return {key: p < LEVEL for key, p in zip(keys, holm(own.noise_p.tolist()), strict=True)}


def rank_agreement(models: Sequence[tuple[np.ndarray, np.ndarray]]) -> Interval:
    """Kendall's tau between two measures of models, and its 95% interval over trainings.

    models: for each model, either measure of its trainings, (n,) and (n,). Tau is that of the means. The interval is
    the percentile interval of a bootstrap that draws the trainings of each model anew; its ends are NaN if a model has
    a single training. Equal means of a measure make tau NaN.
    """

    def tau(means: Sequence[tuple[float, float]]) -> float:
        return float(kendalltau(*zip(*means, strict=True)).statistic)

    found = tau([(float(one.mean()), float(two.mean())) for one, two in models])
    if min(len(one) for one, _ in models) < 2:
        return Interval(found, math.nan, math.nan, len(models))
    draw, drawn = np.random.Generator(np.random.PCG64(0)), list[float]()
    for _ in range(RESAMPLES):
        places = [draw.integers(len(one), size=len(one)) for one, _ in models]
        pairs = zip(models, places, strict=True)
        drawn.append(tau([(float(one[place].mean()), float(two[place].mean())) for (one, two), place in pairs]))
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(found, float(low), float(high), len(models))
