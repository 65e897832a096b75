"""The section on the precision of comparisons: residuals, variances, pairs, and detectable ratios."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.report.comparisons import EXACT, Population, bartlett
from pipeline.report.figures.scores import residuals_figure
from pipeline.report.page import Markdown, table
from pipeline.report.study import Report
from pipeline.report.text import number, p_value, percent
from pipeline.report.verdicts import TRAINING

LEAST = 3  # points of a budget for an exponent


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figure. None without repetitions."""
    known = [b for b in report.verdicts.budgets if any(len(own) > 1 for own in report.verdicts.logs(b).values())]
    if not known:
        return None
    residuals_figure(report.figures / "residuals.png", _residuals(report, known), report.score)
    return {
        "figure": "residuals.png",
        "table": _table(report, known),
        "exponents": _exponents(report, known),
        "pairs": _pairs(report, known),
        "comparisons": len(report.verdicts.comparisons(report.methods[0])),
        "base": report.label(report.methods[0]),
    }


def finding(report: Report) -> list[str]:
    """The smallest ratios that comparisons of two models with the first method detect."""
    family = len(report.verdicts.comparisons(report.methods[0]))
    found = {b: report.verdicts.detectable(b, family) for b in report.common_budgets(report.methods)}
    found = {budget: own for budget, own in found.items() if math.isfinite(own[0])}
    if not found:
        return []
    seeds = sorted({seeds for _, seeds in found.values()})
    text = ", ".join(f"{number(ratio)}-fold at {budget}" for budget, (ratio, _) in found.items())
    return [
        f"With {' or '.join(map(str, seeds))} trainings of each model, this study can tell these differences between "
        f"models from chance, by budget (80% power for models of typical spread, corrected for {family} comparisons): "
        f"{text}. Models whose scores spread more need larger differences."
    ]


def exponent(points: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """k of standard deviation ~ mean^k within groups, each with means (n,) and variances (n,); NaN with too few points.

    By least squares on logarithms, from which the mean of each group is subtracted.
    """
    x, y = [], []
    for means, variances in points:
        kept = (means > 0) & (variances > EXACT * means**2)
        if kept.sum() >= LEAST:
            logs = np.log(means[kept]), np.log(variances[kept]) / 2
            x.append(logs[0] - logs[0].mean())
            y.append(logs[1] - logs[1].mean())
    if not x or not (total := float((np.concatenate(x) ** 2).sum())):
        return math.nan
    return float(np.concatenate(x) @ np.concatenate(y)) / total


def ratio_of_variances(pairs: Iterable[tuple[dict[int, float], dict[int, float]]]) -> tuple[float, int]:
    """The variance of differences relative to the sum of both, over pairs of samples; and their number.

    1: pairing gains nothing; 0: both differ by a constant. A sample is a mapping from repetitions to values.
    """
    of_differences, of_both, count = 0.0, 0.0, 0
    for one, two in pairs:
        both = np.array([(one[seed], two[seed]) for seed in one if seed in two])
        if len(both) > 1:
            of_differences += float((both[:, 0] - both[:, 1]).var(ddof=1))
            of_both, count = of_both + float(both.var(0, ddof=1).sum()), count + 1
    return (of_differences / of_both if of_both else math.nan), count


def _residuals(report: Report, budgets: list[int]) -> dict[str, list[tuple[float, float]]]:
    """label of a budget -> (mean score, ratio of a repetition to it), of all curves."""
    found = {}
    for budget in budgets:
        points = []
        for own in report.verdicts.logs(budget).values():
            mean = sum(own.values()) / len(own)
            points += [(math.exp(mean), math.exp(value - mean)) for value in own.values()] if len(own) > 1 else []
        found[f"budget {budget}"] = points
    return found


def _table(report: Report, budgets: list[int]) -> Markdown:
    """One line per budget: the variances of scores and of differences, tests of equal spread, and power."""
    family, lines = len(report.verdicts.comparisons(report.methods[0])), []
    for budget in budgets:
        logs = report.verdicts.logs(budget)
        firsts: dict[str, np.ndarray] = {}
        for name, own in logs.items():
            firsts.setdefault(report.curves[name].row.model, np.array(list(own.values())))
        several = [own for own in firsts.values() if len(own) > 1]
        tests = [
            bartlett([float(f(own).var(ddof=1)) for own in several], [len(own) - 1 for own in several])
            for f in (np.asarray, np.exp)
        ]
        ratio, seeds = report.verdicts.detectable(budget, family)
        lines.append(
            [
                budget,
                len(logs),
                _stated(report.verdicts.population(budget)),
                *("" if math.isnan(p) else p_value(p) for p in tests),
                _stated(report.verdicts.population(budget, (report.methods[0], budget))),
                f"{number(ratio)} ({seeds} trainings)" if math.isfinite(ratio) else "unknown",
            ]
        )
    header = ["budget", "curves", "sd of a score", "equal spread of logarithms", "equal spread of scores"]
    return table([*header, "sd of a difference within one network", "detectable ratio between models"], lines)


def _stated(found: Population | None) -> str:
    """A standard deviation of a logarithm as a percentage, and how far those of single curves are from it."""
    if found is None:
        return "not pooled"
    sd = percent(math.sqrt(found.variance))
    if math.isinf(found.prior):
        return f"{sd}, {found.total:.0f} degrees of freedom"
    return f"{sd}, {found.prior:.1f} degrees of freedom before a comparison's own"


def _exponents(report: Report, budgets: list[int]) -> list[str]:
    """How the spread of scores grows with their mean, for scores and for scores above the floor."""
    points = []
    for budget in budgets:
        values = [np.exp(list(own.values())) for own in report.verdicts.logs(budget).values() if len(own) > 1]
        points.append((np.array([own.mean() for own in values]), np.array([own.var(ddof=1) for own in values])))
    plain = exponent(points)
    above = exponent([(means - report.score_floor.mean, variances) for means, variances in points])
    if math.isnan(plain):
        return []
    also = "" if math.isnan(above) else f" For the excess over the floor, the power is {number(above)}."
    return [
        "Among the curves of a budget, the standard deviation of a score is about proportional to its mean to the "
        f"power of {number(plain)}. With a power of 1, the spread of logarithms is constant; with 0, that of "
        f"scores is.{also}"
    ]


def _pairs(report: Report, budgets: list[int]) -> list[str]:
    """The measured gain of pairing within one network and between models."""

    within, between = [], []
    for budget in budgets:
        models: dict[str, list[dict[int, float]]] = {}
        for name, own in report.verdicts.logs(budget).items():
            models.setdefault(report.curves[name].row.model, []).append(own)
        within += [(first, own) for first, *others in models.values() for own in others]
        between += [(one, two) for (one, *_), (two, *_) in pairwise(models.values())]
    texts = []
    for what, pairs in (("two curves of one network", within), ("curves of two models", between)):
        ratio, count = ratio_of_variances(pairs)
        if count and not math.isnan(ratio):
            texts.append(f"{number(ratio)} for {what} ({count} pairs)")
    if not texts:
        return []
    unit = "training" if any(report.verdicts.unit(b) == TRAINING for b in budgets) else "sampling"
    return [
        f"The variance of the difference of two logarithms with the same {unit} seeds, relative to the sum of both "
        f"variances, is {' and '.join(texts)}. Below 1, pairing pays."
    ]
