"""Verdicts on differences between the curves of a study: one for each curve, base and budget."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from pipeline.metrics.estimate import JACKKNIFE_BLOCKS
from pipeline.params.resolved import CurveEntry
from pipeline.report.comparisons import (
    LEVEL,
    Contrast,
    Population,
    across,
    detectable,
    flattery,
    holm,
    judged,
    lowest,
    may_be_best,
    overlap,
    paired,
    population,
    unpaired,
)
from pipeline.report.statistics import Interval, repeated

TRAINING, SAMPLING, DRAWING = "training", "sampling", "drawing"  # what a repetition is

ROUNDING = 1e-9  # relative differences up to this are rounding

Cells = Callable[[str, int], pd.DataFrame]
Key = TypeVar("Key", bound=Hashable)
Point = tuple[str, int]  # a curve and a budget at which it has a result


class Verdict(NamedTuple):
    """The comparison of a curve with a base at a budget.

    word: better, worse, equivalent or undecided. effect: the ratio of their scores, or their difference if a score is
    not positive, with its plain 95% interval. corrected: the ends of the interval that holds for all comparisons with
    the base at once. p: the p value, adjusted for them. remark: what the error leaves out.
    """

    word: str
    effect: Interval
    corrected: tuple[float, float]
    p: float
    is_ratio: bool
    remark: str = ""

    @property
    def equal(self) -> bool:
        """Whether all repetitions of both are equal."""
        return self.effect.low == self.effect.high == (1 if self.is_ratio else 0)


@dataclass(frozen=True)
class Compared:
    """A contrast of two curves, whether it is of logarithms, the number of repetitions, and a remark on its error."""

    contrast: Contrast
    is_ratio: bool
    count: int
    remark: str = ""

    @property
    def equal(self) -> bool:
        """Whether all repetitions of both curves are equal up to rounding, so that there is nothing to test."""
        contrast = self.contrast
        if contrast.variance == 0 and contrast.df > 0 and abs(contrast.effect) <= ROUNDING:
            return True
        return contrast.known and abs(contrast.effect) + contrast.half_width() <= ROUNDING


class Verdicts:
    """All verdicts of a study, each computed once.

    curves: the study's curves; distinct: those without repeated ones; methods: the curves of the headline figure;
    cells: (curve, budget) -> its cells by seeds, empty without a result; smallest_effect: as in the study file.
    """

    def __init__(
        self,
        curves: Mapping[str, CurveEntry],
        distinct: list[str],
        methods: list[str],
        cells: Cells,
        smallest_effect: float,
    ) -> None:
        self.curves, self.distinct, self.methods, self.cells = curves, distinct, methods, cells
        self.smallest_effect = smallest_effect
        self._populations: dict[tuple[int, Point | None], Population | None] = {}
        self._values: dict[tuple[str, int, str], dict[int, float]] = {}
        self._units: dict[int, str] = {}
        self._compared: dict[tuple[Point, Point], Compared] = {}
        self._families: dict[str, dict[tuple[str, int], Verdict]] = {}

    def verdict(self, curve: str, base: str, budget: int) -> Verdict:
        """The verdict on a curve against a base at a budget at which both have a result.

        Raises KeyError unless the curve names the base, samples the same model, or both are methods.
        """
        if base not in self._families:
            self._families[base] = self._family(base)
        return self._families[base][curve, budget]

    def comparisons(self, base: str) -> list[tuple[str, int]]:
        """The family of a base: the curves and budgets that the report may compare with it.

        These are the curves that name the base, the distinct curves of its model and, for the first method, all others.
        """
        entry, first = self.curves[base], base == self.methods[0]
        return [
            (name, budget)
            for name, own in self.curves.items()
            if name != base
            and (
                own.base == base
                or (first and name in self.methods)
                or (own.row.model == entry.row.model and name in self.distinct)
            )
            for budget in own.row.nfe
            if self._has(name, budget) and self._has(base, budget)
        ]

    def _has(self, name: str, budget: int) -> bool:
        return budget in self.curves[name].row.nfe and not self.cells(name, budget).empty

    def _family(self, base: str) -> dict[tuple[str, int], Verdict]:
        found = {key: self.compared(key[0], base, key[1]) for key in self.comparisons(base)}
        open_ones = [key for key, own in found.items() if not own.equal]
        adjusted = dict(zip(open_ones, holm([found[key].contrast.p for key in open_ones]), strict=True))
        return {key: self._verdict(own, adjusted.get(key, 1.0), max(len(open_ones), 1)) for key, own in found.items()}

    def _verdict(self, found: Compared, p: float, family: int) -> Verdict:
        def ends(half: float) -> tuple[float, float]:
            low, high = effect - half, effect + half
            return (math.exp(min(low, 700)), math.exp(min(high, 700))) if found.is_ratio else (low, high)

        effect, half = found.contrast.effect, found.contrast.half_width(LEVEL / family)
        margin = math.log1p(self.smallest_effect) if found.is_ratio else -1.0  # a difference has no margin
        word = judged(effect, half, p, margin) if found.contrast.known else "undecided"
        plain = Interval(ends(0)[0], *ends(found.contrast.half_width()), found.count)
        return Verdict(word, plain, ends(half), p, found.is_ratio, found.remark)

    def compared(self, curve: str, base: str, budget: int) -> Compared:
        """The contrast of two curves with a result at a budget, the curve minus the base."""
        return self.between((curve, budget), (base, budget))

    def between(self, point: Point, other: Point) -> Compared:
        """The contrast of two points with a result, the first minus the second; their budgets may differ."""
        key = point, other
        if key not in self._compared:
            self._compared[key] = self._contrast(*key)
        return self._compared[key]

    def _contrast(self, point: Point, against: Point) -> Compared:
        own, other = self.cells(*point), self.cells(*against)
        within = self.curves[point[0]].row.model == self.curves[against[0]].row.model
        units = self.unit(point[1]), self.unit(against[1])
        values = self.values(*point, units[0]), self.values(*against, units[1])
        same, unit = own.index.equals(other.index), units[0]
        if within and not same and (common := list(own.index.intersection(other.index))):
            own, other, same = own.loc[common], other.loc[common], True
            unit = unit_of(own)
            values = by_unit(own, unit), by_unit(other, unit)
        elif within and same:
            unit = unit_of(own)
            values = self.values(*point, unit), self.values(*against, unit)
        is_ratio = min(min(found.values()) for found in values) > 0
        one, two = (np.array(list(found.values())) for found in values)
        if is_ratio:
            one, two = np.log(one), np.log(two)
        pooled = is_ratio and units == (unit, unit)
        pooled &= not (within and same and np.abs(one - two).max() <= ROUNDING)  # equal results have no error
        if within and same:
            found = paired(one - two, self.population(point[1], against) if pooled else None)
        elif point[1] == against[1]:
            shared = self.population(point[1], against if within else None) if pooled else None
            found = unpaired(one, two, shared)
        else:
            found = across(one, two, *(self.population(p[1]) if is_ratio else None for p in (point, against)))
        count = min(len(one), len(two))
        if found.known:
            return Compared(found, is_ratio, count, "" if within or unit == TRAINING else "one training each")
        errors = [_error(frame, logs, is_ratio) for frame, logs in ((own, one), (other, two))]
        drawn = Contrast(found.effect, 1, float(np.square(errors).sum()), JACKKNIFE_BLOCKS - 1)
        return Compared(drawn, is_ratio, count, "one repetition" if within else "one training each")

    def values(self, curve: str, budget: int, unit: str) -> dict[int, float]:
        """The scores of a curve at a budget, by repetition."""
        key = curve, budget, unit
        if key not in self._values:
            self._values[key] = by_unit(self.cells(curve, budget), unit)
        return self._values[key]

    def unit(self, budget: int) -> str:
        """What a repetition is at a budget: a training if any curve has several."""
        if budget not in self._units:
            units = {unit_of(self.cells(name, budget)) for name in self.distinct if self._has(name, budget)}
            self._units[budget] = next((unit for unit in (TRAINING, SAMPLING) if unit in units), DRAWING)
        return self._units[budget]

    def logs(self, budget: int) -> dict[str, dict[int, float]]:
        """The logarithms of the scores by repetition, of all distinct curves with positive scores at a budget."""
        unit = self.unit(budget)
        found = {name: self.values(name, budget, unit) for name in self.distinct if self._has(name, budget)}
        return {
            name: {seed: math.log(value) for seed, value in own.items()}
            for name, own in found.items()
            if min(own.values()) > 0
        }

    def population(self, budget: int, base: Point | None = None) -> Population | None:
        """The population of variances at a budget, of the logarithms of the scores over repetitions.

        base: None for the variances of curves; else for those of differences within one network, of each curve from
        the base, or from the first curve of its model, at the base's budget.
        """
        key = budget, base
        if key not in self._populations:
            found = {name: np.array(list(own.values())) for name, own in self.logs(budget).items()}
            if base is not None:
                found = self.differences(budget, *base)
            variances = [float(own.var(ddof=1)) if len(own) > 1 else 0.0 for own in found.values()]
            df, models = [len(own) - 1 for own in found.values()], [self.curves[name].row.model for name in found]
            if base is None:
                self._populations[key] = population(variances, df, models)
            else:
                self._populations[key] = population(variances, df, list(found), overlap(list(found.values())))
        return self._populations[key]

    def differences(self, budget: int, base: str, base_budget: int) -> dict[str, np.ndarray]:
        """The differences of logarithms of each distinct curve from another one of its network, by repetition.

        Curves of the base's model are compared with the base, others with the first curve of their model, at the
        base's budget.
        """
        logs, others, found = self.logs(budget), self.logs(base_budget), dict[str, np.ndarray]()
        first = {self.curves[base].row.model: base} if base in others else {}
        for name, own in logs.items():
            other = first.setdefault(self.curves[name].row.model, name)
            if (other, base_budget) == (name, budget) or other not in others:
                continue
            if common := [seed for seed in own if seed in others[other]]:
                found[name] = np.array([own[seed] - others[other][seed] for seed in common])
        return found

    def may_be_best(self, names: list[str], budget: int) -> list[str]:
        """Those of several curves with a result at a budget that may have the lowest score, the lowest mean first."""
        kept = may_be_best(names, lambda one, two: self.compared(one, two, budget).contrast)
        ordered = sorted(names, key=lambda name: np.mean(repeated(self.cells(name, budget))))
        return [*ordered[:1], *(name for name in names if name in kept and name != ordered[0])]

    def flattery(self, names: list[str], budget: int) -> float:
        """By what ratio the lowest mean of several curves at a budget is expected to flatter; NaN if unknown."""
        unit = self.unit(budget)
        found: dict[str, dict[Hashable, float]] = {}
        for name in names:
            own = self.values(name, budget, unit)
            if min(own.values()) > 0:
                found[name] = {seed: math.log(value) for seed, value in own.items()}
        several = len(found) > 1 and len(found) == len(names) and any(len(own) > 1 for own in found.values())
        return flattery(found) if several else math.nan

    def lowest_of(self, families: Mapping[Key, tuple[list[Point], list[Point]]]) -> dict[Key, Verdict]:
        """The verdicts on the lowest true score of one set of points against that of another one, by key.

        Both sets have points. The budgets may differ if the models of the two sets do. See `comparisons.lowest`: a
        verdict holds whichever points are the lowest ones, and it is corrected for all of these comparisons.
        """
        found = {key: self._contrasts(*sets) for key, sets in families.items()}
        adjusted = holm([lowest(contrasts).p for contrasts, _ in found.values()])
        verdicts: dict[Key, Verdict] = {}
        for (key, (contrasts, is_ratio)), p in zip(found.items(), adjusted, strict=True):
            plain, corrected = lowest(contrasts), lowest(contrasts, LEVEL / len(found))
            margin = math.log1p(self.smallest_effect) if is_ratio else -1.0
            within = -margin <= corrected.low and corrected.high <= margin
            word = "equivalent" if within else judged(plain.effect, math.inf, p, margin)
            effect, *ends = (
                (math.exp(min(value, 700)) if is_ratio else value)
                for value in (plain.effect, plain.low, plain.high, corrected.low, corrected.high)
            )
            counts = [len(self.cells(*point)) for point in (*families[key][0], *families[key][1])]
            interval = Interval(effect, ends[0], ends[1], min(counts))
            units = {self.unit(budget) for _, budget in (*families[key][0], *families[key][1])}
            verdicts[key] = Verdict(
                word, interval, (ends[2], ends[3]), p, is_ratio, "" if units == {TRAINING} else "one training each"
            )
        return verdicts

    def _contrasts(self, own: list[Point], base: list[Point]) -> tuple[list[list[Contrast]], bool]:
        """The contrasts of all points of one set with all of another one, and whether they are of logarithms."""
        values = {point: np.array(list(self.values(*point, self.unit(point[1])).values())) for point in (*own, *base)}
        is_ratio = min(float(found.min()) for found in values.values()) > 0
        logs = {point: np.log(found) if is_ratio else found for point, found in values.items()}

        def contrast(one: Point, two: Point) -> Contrast:
            if one[1] == two[1] and is_ratio:
                return self.between(one, two).contrast
            return across(logs[one], logs[two], *(self.population(p[1]) if is_ratio else None for p in (one, two)))

        return [[contrast(one, two) for two in base] for one in own], is_ratio

    def detectable(self, budget: int, comparisons: int) -> tuple[float, int]:
        """The ratio that a comparison of two models detects with 80% power at a budget, and their trainings.

        The trainings are the most frequent number. `inf` without a population of variances.
        """
        found, counts = self.population(budget), [len(own) for own in self.logs(budget).values()]
        if found is None or not counts:
            return math.inf, 0
        seeds = max(dict.fromkeys(counts), key=counts.count)
        return detectable(found, seeds, max(comparisons, 1)), seeds

    @cached_property
    def budgets(self) -> list[int]:
        """The budgets at which any distinct curve has a result."""
        return sorted({b for name in self.distinct for b in self.curves[name].row.nfe if self._has(name, b)})


def unit_of(frame: pd.DataFrame) -> str:
    """What a repetition is among cells by seeds."""
    if frame.index.get_level_values("train_seed").nunique() > 1:
        return TRAINING
    return SAMPLING if len(frame) > 1 else DRAWING


def by_unit(frame: pd.DataFrame, unit: str) -> dict[int, float]:
    """The mean value of each training, or that of each sampling seed."""
    seeds = frame.index.get_level_values("train_seed" if unit == TRAINING else "sample_seed")
    found: dict[int, list[float]] = {}
    for seed, value in zip(seeds, frame.value, strict=True):
        found.setdefault(int(seed), []).append(float(value))
    return {seed: sum(found[seed]) / len(found[seed]) for seed in sorted(found)}


def _error(frame: pd.DataFrame, values: np.ndarray, is_ratio: bool) -> float:
    """The standard error of a mean of scores, or of their logarithms, from its repetitions or its only cell."""
    if len(values) > 1:
        return float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(frame.se.iloc[0]) / (float(frame.value.iloc[0]) if is_ratio else 1.0)
