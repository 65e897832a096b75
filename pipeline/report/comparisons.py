"""Comparisons of scores: contrasts, the variances behind them, corrections, the set that may be best, and power.

Everything here is a function of numbers; `verdicts` takes them from the results of a study.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, gammaincinv, ndtr, ndtri, polygamma, stdtr, stdtrit

from pipeline.report.statistics import CONFIDENCE

LEVEL = 1 - CONFIDENCE
LEAST_GROUPS = 3  # fewer groups of samples do not show how much their variances differ
EXACT = 1e-12  # variances of logarithms up to this are rounding
NODES = np.linspace(-6, 6, 121)  # of the integral over a logarithm of a variance, in standard deviations
DRAWS = 4096  # of the bootstrap
WORDS = ("better", "worse", "equivalent", "undecided")


class Population(NamedTuple):
    """The distribution of the true variances of several samples.

    variance: their common value if `spread` is 0, else their geometric mean. df: the degrees of freedom of a common
    value. spread: the variance of the logarithms of the true variances. doubt: the squared standard error of the
    logarithm of `variance`.
    """

    variance: float
    df: float
    spread: float
    doubt: float

    @property
    def prior_df(self) -> float:
        """The degrees of freedom of an estimate with the accuracy with which the population predicts one variance."""
        return 2 / (self.spread + self.doubt)


def population(
    variances: Sequence[float], df: Sequence[int], groups: Sequence[Hashable], overlap: float = 0.0
) -> Population | None:
    """The population of variances with `df` degrees of freedom each; None with fewer than LEAST_GROUPS groups.

    The variances of one group rest on the same trainings, so a group counts once. overlap: the squared correlation
    between the samples of two groups, which lowers the degrees of freedom of the common value (1/4 for differences from
    one base of equal variances).

    The logarithm of a sample variance has the mean log(variance) + digamma(df / 2) - log(df / 2) and the variance
    trigamma(df / 2). What the logarithms vary beyond that is `spread`, by the method of moments (Smyth 2004, Stat.
    Appl. Genet. Mol. Biol. 3, article 3, sec. 6.2, with a log-normal in place of a scaled inverse chi-squared
    distribution, whose tail is too long for variances that differ by orders of magnitude). Without any excess, the
    variances are pooled.
    """
    kept = [(s, d, g) for s, d, g in zip(variances, df, groups, strict=True) if d > 0 and s > EXACT]
    names = [g for _, _, g in kept]
    count = len(set(names))
    if count < LEAST_GROUPS:
        return None
    own, half = np.array([s for s, _, _ in kept]), np.array([d for _, d, _ in kept]) / 2
    weights = np.array([1 / names.count(name) for name in names])
    logs = np.log(own) - digamma(half) + np.log(half)
    centre, noise = weights @ logs / count, polygamma(1, half)
    excess = float(weights @ (logs - centre) ** 2 / (count - 1) - weights @ noise / count)
    total = 2 * float(weights @ half)
    common = total / (1 + (count - 1) * overlap)
    if excess <= 0:
        return Population(2 * float(weights @ (half * own)) / total, common, 0.0, 2 / common)
    doubt = (excess + float(weights @ noise) / count) * (1 + (count - 1) * overlap) / count
    return Population(math.exp(centre), common, excess, doubt)


class Contrast(NamedTuple):
    """A difference of two means, usually of logarithms, and its error.

    The squared standard error is `unit` times the variance of one repetition. Of that variance, the contrast has its
    own estimate `variance` with `df` degrees of freedom (0: none), and the `shared` population (None: unknown).
    """

    effect: float
    unit: float
    variance: float
    df: float
    shared: Population | None = None

    def _student(self) -> tuple[float, float] | None:
        """The standard error and its degrees of freedom, unless the variance is one of a spread population."""
        if self.shared is None:
            return math.sqrt(self.unit * self.variance), self.df
        return None if self.shared.spread else (math.sqrt(self.unit * self.shared.variance), self.shared.df)

    def _mixture(self) -> tuple[np.ndarray, np.ndarray]:
        """Possible standard errors and their probabilities (nodes,), given the contrast's own variance."""
        assert self.shared is not None
        logs = math.log(self.shared.variance) + NODES * math.sqrt(self.shared.spread + self.shared.doubt)
        plausible = -(NODES**2) / 2 - self.df / 2 * (logs + self.variance * np.exp(-logs))
        weights = np.exp(plausible - plausible.max())
        return np.sqrt(self.unit * np.exp(logs)), weights / weights.sum()

    @property
    def known(self) -> bool:
        """Whether the error is known."""
        return self.shared is not None or (self.df > 0 and math.isfinite(self.variance))

    @property
    def p(self) -> float:
        """The two-sided p value of no difference: Student's with pooled variances, else averaged over the variance."""
        if not self.known:
            return 1.0
        if student := self._student():
            error, df = student
            return float(2 * stdtr(df, -abs(self.effect) / error)) if error else float(self.effect == 0)
        errors, weights = self._mixture()
        return float(weights @ (2 * ndtr(-abs(self.effect) / errors)))

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the interval that misses the true difference with the probability `level`; NaN: unknown."""
        if not self.known:
            return math.nan
        if student := self._student():
            return float(stdtrit(student[1], 1 - level / 2)) * student[0]
        errors, weights = self._mixture()
        most = -float(ndtri(level / 2)) * float(errors.max())
        return float(brentq(lambda half: weights @ (2 * ndtr(-half / errors)) - level, 0, most, xtol=1e-9 * most))


def paired(differences: np.ndarray, shared: Population | None = None) -> Contrast:
    """The contrast of the mean of differences (n,) by repetition."""
    count = len(differences)
    variance = float(np.var(differences, ddof=1)) if count > 1 else 0.0
    return Contrast(float(np.mean(differences)), 1 / count, variance, count - 1, shared)


def unpaired(own: np.ndarray, base: np.ndarray, shared: Population | None = None) -> Contrast:
    """The contrast of the means of two samples, (n,) and (m,), with Welch's estimate of its error.

    A sample of one value has no variance; without a population, the contrast's error is then unknown.
    """
    effect, unit = float(np.mean(own) - np.mean(base)), 1 / len(own) + 1 / len(base)
    if min(len(own), len(base)) < 2:
        return Contrast(effect, unit, 0.0, 0, shared)
    parts = [(float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in (own, base)]
    square = sum(part for part, _ in parts)
    df = square**2 / sum(part**2 / free for part, free in parts) if square else float(len(own) + len(base) - 2)
    return Contrast(effect, unit, square / unit, df, shared)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (Holm 1979, Scand. J. Stat. 6, 65), in the given order."""
    found, least = [1.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, p[place] * (len(p) - rank)))
        found[place] = least
    return found


def judged(effect: float, half: float, p: float, margin: float) -> str:
    """One of WORDS for a contrast of which a negative effect is an improvement.

    half: half the width of its corrected interval; p: its adjusted p value; margin: the smallest effect of interest.
    Equivalent: the interval lies within the margin. Such an effect is too small to matter, even if it differs from 0.
    """
    if abs(effect) + half <= margin:
        return "equivalent"
    return ("better" if effect < 0 else "worse") if p < LEVEL else "undecided"


def may_be_best(names: Sequence[str], contrast: Callable[[str, str], Contrast]) -> list[str]:
    """The names that may have the smallest mean, with 95% confidence: subset selection (Gupta 1965; Hsu 1984).

    A name is left out if any other one is lower by a one-sided test at the level 5% / (number of others). The best one
    is therefore in the set with a probability of at least 95%, whatever the other means are.
    contrast: that of the first name minus the second one.
    """

    def lower(other: str, name: str) -> bool:
        found = contrast(other, name)
        return found.effect < 0 and found.p / 2 < LEVEL / (len(names) - 1)

    return [name for name in names if not any(lower(other, name) for other in names if other != name)]


def flattery(logs: Mapping[str, Mapping[Hashable, float]]) -> float:
    """The expected ratio of the lowest mean's value to its true value: at most 1, because the lowest one is picked.

    logs: name -> {repetition: logarithm}. A bootstrap draws each mean with the residuals of its repetitions times
    standard normal numbers, the same number for the same repetition of all names, so that draws have the covariance of
    the means. The estimated means stand for the true ones. Names with one repetition have no known error and do not
    move.
    """
    repetitions = list(dict.fromkeys(key for own in logs.values() for key in own))
    means = np.array([np.mean(list(own.values())) for own in logs.values()])
    loads = np.zeros((len(logs), len(repetitions)))
    for place, own in enumerate(logs.values()):
        if (count := len(own)) > 1:
            for key, value in own.items():
                loads[place, repetitions.index(key)] = (value - means[place]) / math.sqrt(count * (count - 1))
    normal = np.random.Generator(np.random.PCG64(0)).standard_normal((DRAWS, len(repetitions)))
    errors = normal @ loads.T
    picked = (means + errors).argmin(1)
    return math.exp(float(errors[np.arange(DRAWS), picked].mean()))


def detectable_ratio(variance: float, seeds: int, df: float, comparisons: int, power: float = 0.8) -> float:
    """The smallest ratio of two scores that a comparison calls better or worse with the probability `power`.

    variance: the variance of the logarithm of a score over trainings. seeds: the trainings of either side. df: the
    degrees of freedom of the variance. comparisons: their number in the family, for which Bonferroni's correction
    divides the level of 5%. By the noncentral t distribution, found by bisection; `inf` without degrees of freedom.
    A ratio and its inverse are equally detectable.
    """
    if df <= 0 or not math.isfinite(variance):
        return math.inf
    limit = float(stdtrit(df, 1 - LEVEL / comparisons / 2))
    # t exceeds the limit if a normal number of mean `shift` exceeds limit * sqrt(chi2 / df): average over the latter.
    chances = (np.arange(2000) + 0.5) / 2000
    scales = np.sqrt(2 * gammaincinv(df / 2, chances) / df)

    def reached(shift: float) -> float:
        return float(ndtr(shift - limit * scales).mean()) - power

    shift = float(brentq(reached, 0, 40 * limit + 40))
    return math.exp(shift * math.sqrt(2 * variance / seeds))
