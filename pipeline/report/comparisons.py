"""Comparisons of scores: contrasts, the variances behind them, corrections, the set that may be best, and power.

Everything here is a function of numbers; `verdicts` takes them from the results of a study.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtrc, digamma, fdtrc, gammaincinv, ndtr, polygamma, stdtr, stdtrit

from pipeline.report.statistics import CONFIDENCE

LEVEL = 1 - CONFIDENCE
LEAST_GROUPS = 3  # fewer groups of samples do not show how much their variances differ
EXACT = 1e-12  # variances of logarithms up to this are rounding
LEAST_EXCESS = 1e-3  # a smaller excess of the variance of logarithms of variances counts as none
QUANTILES = (np.arange(2000) + 0.5) / 2000
DRAWS = 4096  # of the bootstrap
WORDS = ("better", "worse", "equivalent", "undecided")


class Population(NamedTuple):
    """The true variances of several samples: 1 / variance is distributed as chi-squared with `prior` degrees of freedom
    over prior * `variance` (Smyth 2004). With prior = inf all are equal.

    total: the degrees of freedom of all sample variances. mean: their mean.
    """

    variance: float
    prior: float
    total: float
    mean: float

    @property
    def median(self) -> float:
        """The median of the true variances."""
        if math.isinf(self.prior):
            return self.variance
        return self.variance * self.prior / 2 / float(gammaincinv(self.prior / 2, 0.5))

    def moderated(self, variance: float, df: float) -> tuple[float, float]:
        """The variance behind a sample variance with `df` degrees of freedom, and the degrees of freedom of the result.

        Smyth's moderated variance: the mean of the population's and the sample's own, by their degrees of freedom.
        """
        if math.isinf(self.prior):
            return self.variance, self.total
        both = self.prior + df
        return (self.prior * self.variance + df * variance) / both, min(both, self.total)


def population(
    variances: Sequence[float], df: Sequence[int], groups: Sequence[Hashable], overlap: float = 0.0
) -> Population | None:
    """The population of variances with `df` degrees of freedom each; None with fewer than LEAST_GROUPS groups.

    The variances of one group rest on the same trainings, so a group counts once. overlap: the mean squared correlation
    between the samples of different groups, which is the correlation of their variances.

    The logarithm of a sample variance has the mean log(variance) + digamma(df / 2) - log(df / 2) and the variance
    trigamma(df / 2). By how much the logarithms vary beyond that gives `prior` (method of moments, Smyth 2004, Stat.
    Appl. Genet. Mol. Biol. 3, article 3, sec. 6.2). Both all deviations from the mean and upward ones alone are looked
    at, and the larger excess counts: variances larger than the population suggests lead to false verdicts.
    """
    kept = [(s, d, g) for s, d, g in zip(variances, df, groups, strict=True) if d > 0 and s > EXACT]
    names = [g for _, _, g in kept]
    count = len(set(names))
    if count < LEAST_GROUPS:
        return None
    own, half = np.array([s for s, _, _ in kept]), np.array([d for _, d, _ in kept]) / 2
    weights = np.array([1 / names.count(name) for name in names])
    logs = np.log(own) - digamma(half) + np.log(half)
    centre = float(weights @ logs) / count
    noise, noise_up = (float(weights @ [f(d) for d in half]) / count for f in (lambda d: polygamma(1, d), upward))
    seen = float(weights @ (logs - centre) ** 2) / (count - 1)
    seen_up = float(weights @ np.maximum(logs - centre, 0) ** 2) / (count - 1)
    excess = max(seen - noise * (1 - overlap), 2 * (seen_up - noise_up * (1 - overlap)))
    freedom = 2 * float(weights @ half)
    total, mean = freedom / (1 + (count - 1) * overlap), 2 * float(weights @ (half * own)) / freedom
    if excess <= LEAST_EXCESS:
        return Population(mean, math.inf, total, mean)
    prior = 2 * float(brentq(lambda d: polygamma(1, d) - excess, 1e-3, 2 / LEAST_EXCESS))
    return Population(math.exp(centre + digamma(prior / 2) - math.log(prior / 2)), prior, total, mean)


def bartlett(variances: Sequence[float], df: Sequence[int]) -> float:
    """The p value of Bartlett's test of equal variances (1937, Proc. R. Soc. A 160, 268); NaN for fewer than two.

    Tests that use deviations from medians (Brown and Forsythe 1974) have hardly any power for three repetitions.
    """
    found = [(s, d) for s, d in zip(variances, df, strict=True) if s > EXACT and d > 0]
    if len(found) < 2:
        return math.nan
    own, free = np.array(found).T
    total = free.sum()
    statistic = total * math.log(float(free @ own) / total) - float(free @ np.log(own))
    correction = 1 + (float((1 / free).sum()) - 1 / total) / (3 * (len(free) - 1))
    return float(chdtrc(len(free) - 1, statistic / correction))


@cache
def upward(half: float) -> float:
    """The mean square of upward deviations of the logarithm of a chi-squared number, of 2 `half` degrees of freedom."""
    logs = np.log(gammaincinv(half, QUANTILES))
    return float((np.maximum(logs - digamma(half), 0) ** 2).mean())


def overlap(samples: Sequence[np.ndarray]) -> float:
    """The mean squared correlation between samples (n,) of the same repetitions, without its bias; 1 for n = 2.

    The squared cosine between the deviations of two independent samples has the mean 1 / (n - 1).
    """
    deviations = [own - own.mean() for own in samples]
    units = [own / norm for own in deviations if (norm := float(np.linalg.norm(own))) ** 2 > EXACT]
    cosines = [
        float(one @ two) ** 2 - (1 - float(one @ two) ** 2) / (len(one) - 2) if len(one) > 2 else 1.0
        for i, one in enumerate(units)
        for two in units[:i]
        if len(one) == len(two)
    ]
    return min(max(float(np.mean(cosines)), 0.0), 1.0) if cosines else 0.0


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

    @property
    def known(self) -> bool:
        """Whether the error is known."""
        return self.shared is not None or (self.df > 0 and math.isfinite(self.variance))

    @property
    def error(self) -> tuple[float, float]:
        """The standard error and its degrees of freedom."""
        variance, df = self.shared.moderated(self.variance, self.df) if self.shared else (self.variance, self.df)
        return math.sqrt(self.unit * variance), df

    @property
    def p(self) -> float:
        """The two-sided p value of no difference, by Student's t."""
        if not self.known:
            return 1.0
        error, df = self.error
        return float(2 * stdtr(df, -abs(self.effect) / error)) if error else float(self.effect == 0)

    def half_width(self, level: float = LEVEL) -> float:
        """Half the width of the interval that misses the true difference with the probability `level`; NaN: unknown."""
        if not self.known:
            return math.nan
        error, df = self.error
        return float(stdtrit(df, 1 - level / 2)) * error


def paired(differences: np.ndarray, shared: Population | None = None) -> Contrast:
    """The contrast of the mean of differences (n,) by repetition."""
    count = len(differences)
    variance = float(np.var(differences, ddof=1)) if count > 1 else 0.0
    return Contrast(float(np.mean(differences)), 1 / count, variance, count - 1, shared)


def unpaired(own: np.ndarray, base: np.ndarray, shared: Population | None = None) -> Contrast:
    """The contrast of the means of two samples, (n,) and (m,), with Welch's estimate of its error.

    A sample of one value has no variance; without a population, the contrast's error is then unknown. If one sample is
    far noisier than its population, the error is Welch's alone.
    """
    effect, unit = float(np.mean(own) - np.mean(base)), 1 / len(own) + 1 / len(base)
    if min(len(own), len(base)) < 2:
        return Contrast(effect, unit, 0.0, 0, shared)
    parts = [(float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in (own, base)]
    if shared and any(apart(part * (free + 1), free, shared) for part, free in parts):
        shared = None
    square = sum(part for part, _ in parts)
    df = square**2 / sum(part**2 / free for part, free in parts) if square else float(len(own) + len(base) - 2)
    return Contrast(effect, unit, square / unit, df, shared)


def across(own: np.ndarray, base: np.ndarray, shared: Population | None, base_shared: Population | None) -> Contrast:
    """The contrast of the means of two samples, (n,) and (m,), whose variances come from different populations.

    Each sample has the variance of its population, moderated by its own, or its own alone if it is far noisier or there
    is no population. The degrees of freedom are Welch's, but not more than those of either population, because both may
    rest on the same trainings. The error is unknown if a sample of one value has no population.
    """
    parts, most = [], math.inf
    for values, among in ((own, shared), (base, base_shared)):
        df: float = len(values) - 1
        variance = float(np.var(values, ddof=1)) if df else 0.0
        if among and not (df and apart(variance, df, among)):
            variance, df = among.moderated(variance, df)
            most = min(most, among.total)
        parts.append((variance / len(values), df))
    effect, square = float(np.mean(own) - np.mean(base)), sum(part for part, _ in parts)
    if min(df for _, df in parts) <= 0:
        return Contrast(effect, 1, 0.0, 0)
    welch = square**2 / sum(part**2 / df for part, df in parts) if square else float(len(own) + len(base) - 2)
    return Contrast(effect, 1, square, min(welch, most))


def apart(variance: float, df: float, shared: Population) -> bool:
    """Whether a variance is larger than the mean of the others in its population, by an F test at 5% over their number.

    Of equal variances, one in 20 budgets has such a curve.
    """
    rest = shared.total - df
    if rest <= 0 or variance <= shared.mean:
        return False
    others = (shared.total * shared.mean - df * variance) / rest
    return others <= 0 or float(fdtrc(df, rest, variance / others)) < LEVEL * df / shared.total


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


class Lowest(NamedTuple):
    """The difference of the lowest true means of two sets: its estimate, interval and p value; see `lowest`."""

    effect: float
    low: float
    high: float
    p: float


def lowest(contrasts: Sequence[Sequence[Contrast]], level: float = LEVEL) -> Lowest:
    """The lowest true mean of one set of names minus that of another one, whichever names they belong to.

    contrasts[i][j]: name i of the set minus name j of the other one. level: the probability that the interval misses.

    Nothing is picked by its estimate, so no lowest mean flatters. The lowest mean of the set is at most that of any
    member i, and i minus the other set's lowest is at most the largest upper end of its contrasts, because one of them
    is with the lowest. The least of these ends over i, each at the level divided by the size of the set, is therefore
    an upper end of the difference (an intersection-union test, Berger 1982, Technometrics 24, 295, with Bonferroni's
    correction), and the lower end likewise. Two single names have the interval and the p value of their contrast.
    """
    means = np.array([[contrast.effect for contrast in row] for row in contrasts])
    effect = float(means.max(1).min())
    if not all(contrast.known for row in contrasts for contrast in row):
        return Lowest(effect, math.nan, math.nan, 1.0)
    rows, columns = means.shape
    high, low = (
        means + sign * np.array([[contrast.half_width(level / count) for contrast in row] for row in contrasts])
        for sign, count in ((1, rows), (-1, columns))
    )
    lower = np.array(
        [[contrast.p / 2 if contrast.effect < 0 else 1 - contrast.p / 2 for contrast in row] for row in contrasts]
    )
    p = min(rows * float(lower.max(1).min()), columns * float((1 - lower).max(0).min()))
    return Lowest(effect, float(low.min(0).max()), float(high.max(1).min()), min(2 * p, 1.0))


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
    errors = np.concatenate([normal, -normal]) @ loads.T  # in pairs, so that the error of a fixed name averages to 0
    picked = (means + errors).argmin(1)
    return math.exp(min(float(errors[np.arange(2 * DRAWS), picked].mean()), 0.0))


def detectable_ratio(variance: float, seeds: float, df: float, comparisons: int, power: float = 0.8) -> float:
    """The smallest ratio of two scores that a comparison calls better or worse with the probability `power`.

    variance: the variance of the logarithm of a score over trainings. seeds: the trainings of either side. df: the
    degrees of freedom of the variance. comparisons: their number in the family, for which Bonferroni's correction
    divides the level of 5%. By the noncentral t distribution, found by bisection; `inf` without degrees of freedom.
    A ratio and its inverse are equally detectable.
    """
    if df <= 0 or not math.isfinite(variance):
        return math.inf
    return math.exp(detectable_shift(df, comparisons, power) * math.sqrt(2 * variance / seeds))


def detectable_shift(df: float, comparisons: int, power: float = 0.8) -> float:
    """The difference that `detectable_ratio` detects, in standard errors with `df` degrees of freedom."""
    limit = float(stdtrit(df, 1 - LEVEL / comparisons / 2))
    # t exceeds the limit if a normal number of mean `shift` exceeds limit * sqrt(chi2 / df): average over the latter.
    scales = np.sqrt(2 * gammaincinv(df / 2, QUANTILES) / df)

    def reached(shift: float) -> float:
        return float(ndtr(shift - limit * scales).mean()) - power

    return float(brentq(reached, 0, 40 * limit + 40))


def detectable(shared: Population, seeds: float, comparisons: int, power: float = 0.8) -> float:
    """`detectable_ratio` of two curves with the median variance of their population, by the test that judges them."""
    variance, df = shared.moderated(shared.median, 2 * (seeds - 1))
    return detectable_ratio(variance, seeds, df, comparisons, power)


def repetitions_needed(found: Contrast, count: int, most: int = 100_000) -> int | None:
    """The repetitions of either side that would decide a contrast of `count` with 80% power; None if beyond `most`.

    Its effect and its variance are taken for the true ones. A further repetition adds one degree of freedom.
    """
    if not found.known:
        return None
    error, df = found.error

    def decides(repetitions: int) -> bool:
        shift = detectable_shift(df + repetitions - count, 1)
        return shift * error * math.sqrt(count / repetitions) <= abs(found.effect)

    return bisect_left(range(most + 1), True, lo=count, key=decides) if decides(most) else None
