"""Comparisons: contrasts, corrections, populations of variances, sets that may be best, and power."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import polygamma

from pipeline.report.comparisons import (
    Contrast,
    Population,
    across,
    bartlett,
    detectable,
    detectable_ratio,
    flattery,
    holm,
    judged,
    lowest,
    may_be_best,
    overlap,
    paired,
    population,
    repetitions_needed,
    unpaired,
    upward,
)

RANDOM = np.random.default_rng(0)
ONE, TWO = RANDOM.normal(0, 1, 5), RANDOM.normal(1, 3, 4)
POOLED = Population(variance=0.04, prior=math.inf, total=14, mean=0.04)
SPREAD = Population(variance=0.04, prior=3.0, total=30, mean=0.1)


def test_contrasts_without_a_population_are_students_and_welchs() -> None:
    for found, expected in (
        (paired(ONE - 0.3), stats.ttest_1samp(ONE, 0.3)),
        (unpaired(ONE, TWO), stats.ttest_ind(ONE, TWO, equal_var=False)),
    ):
        assert found.p == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.99)
        half = (high - low) / 2
        assert found.half_width(0.01) == pytest.approx(half)


def test_a_pooled_variance_replaces_the_contrasts_own() -> None:
    one, two = 0.2 * ONE, 0.05 * TWO
    found = unpaired(one, two, POOLED)
    error = 0.2 * math.sqrt(1 / 5 + 1 / 4)
    assert found.half_width() == pytest.approx(error * stats.t.ppf(0.975, 14))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.effect) / error, 14))
    assert unpaired(one, TWO, POOLED) == unpaired(one, TWO)  # far noisier than the population
    assert unpaired(ONE[:1], two, POOLED).known and not unpaired(ONE[:1], TWO).known and not paired(ONE[:1]).known


def test_across_populations_each_sample_has_the_variance_of_its_own() -> None:
    """Without populations it is Welch's test, and of one population the pooled one."""
    assert across(ONE, TWO, None, None).half_width() == pytest.approx(unpaired(ONE, TWO).half_width())
    one, two = 0.2 * ONE, 0.05 * TWO
    pooled = across(one, two, POOLED, POOLED)
    assert pooled.p == pytest.approx(unpaired(one, two, POOLED).p)
    other = Population(variance=0.25, prior=math.inf, total=8, mean=0.25)
    found = across(one, two, POOLED, other)
    assert found.half_width() == pytest.approx(math.sqrt(0.04 / 5 + 0.25 / 4) * stats.t.ppf(0.975, 8))
    assert found.effect == pytest.approx(one.mean() - two.mean())
    assert across(one, TWO, POOLED, POOLED).half_width() > 4 * pooled.half_width()  # TWO is far noisier
    assert across(one[:1], two, POOLED, None).known and not across(one[:1], two, None, POOLED).known


def test_the_lowest_of_single_names_is_their_contrast() -> None:
    for contrast in (Contrast(-0.3, 1, 0.01, 6), Contrast(0.1, 0.5, 0.04, 3, SPREAD)):
        found, half = lowest([[contrast]], 0.02), contrast.half_width(0.02)
        assert found == pytest.approx((contrast.effect, contrast.effect - half, contrast.effect + half, contrast.p))


def test_the_lowest_of_unknown_errors_is_unknown() -> None:
    found = lowest([[Contrast(-0.3, 1, 0.01, 6)], [Contrast(-0.1, 1, 0.0, 0)]])
    assert found.effect == -0.3 and math.isnan(found.low) and found.p == 1


@pytest.mark.parametrize("gaps", [(0.0, 0.0, 0.0), (0.0, 0.05, 0.1), (0.0, 9.0, 9.0)], ids=str)
def test_the_interval_of_the_lowest_means_covers_whichever_is_picked(gaps: tuple[float, ...]) -> None:
    """The true lowest means are equal, and the tests that say otherwise, too. Picking by the estimates misses more."""
    random, error, missed, tested = np.random.default_rng(6), 0.1, 0, 0
    for _ in range(1000):
        own, base = (np.array(gaps) + error * random.standard_normal(3) for _ in range(2))
        contrasts = [[Contrast(float(one - two), 2, error**2, 1e6) for two in base] for one in own]
        found = lowest(contrasts)
        assert found.low <= found.effect <= found.high
        missed += not found.low <= 0 <= found.high
        tested += found.p < 0.05
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert missed <= 65 and tested <= 65  # of a true rate of 5%, 98.5% of simulations


def test_the_lowest_means_of_distant_sets_are_told_apart() -> None:
    means, base = (0.0, 0.1, 2.0), (0.5, 0.6)
    contrasts = [[Contrast(one - two, 2, 1e-4, 20) for two in base] for one in means]
    found = lowest(contrasts)
    assert found.high < 0 and found.p < 1e-6 and found.effect == pytest.approx(-0.5)
    swapped = lowest([[Contrast(-row[j].effect, 2, 1e-4, 20) for row in contrasts] for j in range(2)])
    assert swapped == pytest.approx((-found.effect, -found.high, -found.low, found.p))


def test_in_a_spread_population_a_contrasts_own_variance_counts() -> None:
    """The p value and the interval agree; a noisier contrast has a wider interval, within bounds."""
    widths = []
    for variance in (0.001, 0.04, 1.0):
        found = Contrast(0.3, 2 / 3, variance, 4, SPREAD)
        assert found.half_width(found.p) == pytest.approx(0.3)
        widths.append(found.half_width())
        both = math.sqrt(2 / 3 * (3 * 0.04 + 4 * variance) / 7)
        assert found.p == pytest.approx(2 * stats.t.sf(0.3 / both, 7))
    assert widths == sorted(widths)
    alone = [Contrast(0.3, 2 / 3, variance, 4).half_width() for variance in (0.001, 0.04, 1.0)]
    assert alone[0] < widths[0] and widths[2] < alone[2]
    assert Contrast(0.3, 2 / 3, 0.04, 40, SPREAD).p == pytest.approx(Contrast(0.3, 2 / 3, 0.04, 27, SPREAD).p)


def test_a_population_is_pooled_if_its_variances_differ_less_than_by_chance() -> None:
    assert population([4.0, 3.9, 4.1], [2, 2, 2], "abc") == pytest.approx((4.0, math.inf, 6, 4.0))
    random, priors = np.random.default_rng(1), []
    for _ in range(200):
        found = population(4 * random.chisquare(2, 20) / 2, [2] * 20, range(20))
        assert found is not None and found.variance == pytest.approx(4, rel=0.9) and found.total == 40
        priors.append(found.prior)
    assert np.median(priors) > 10  # degrees of freedom that a comparison has beside its own


def test_tests_of_equal_means_keep_their_level_if_variances_differ() -> None:
    """At the level of a comparison among a hundred, where the tail of the error counts."""
    random, wrong, count = np.random.default_rng(4), 0, 0
    for _ in range(200):
        true = 1 / random.chisquare(3, 40)
        samples = random.normal(0, np.sqrt(true), (3, 40)).T
        shared = population(list(samples.var(1, ddof=1)), [2] * 40, range(40))
        contrasts = [paired(own, shared) for own in samples]
        wrong, count = wrong + sum(found.p < 0.005 for found in contrasts), count + len(contrasts)
    assert wrong / count == pytest.approx(0.005, abs=0.0025)


def test_bartletts_test_is_scipys() -> None:
    samples = [RANDOM.normal(0, sd, count) for sd, count in ((1, 4), (2, 3), (3, 5))]
    expected = stats.bartlett(*samples).pvalue
    found = bartlett([float(np.var(x, ddof=1)) for x in samples], [len(x) - 1 for x in samples])
    assert found == pytest.approx(expected)
    assert math.isnan(bartlett([1.0, 0.0], [2, 2]))


def test_a_population_is_smyths() -> None:
    """Of 400 variances from a prior of 4 degrees of freedom, it finds the prior."""
    random = np.random.default_rng(2)
    found = [
        population(1.5 * 4 / random.chisquare(4, 400) * random.chisquare(2, 400) / 2, [2] * 400, range(400))
        for _ in range(40)
    ]
    assert np.mean([math.log(p.variance) for p in found if p]) == pytest.approx(math.log(1.5), abs=0.1)
    assert np.median([p.prior for p in found if p]) == pytest.approx(4, rel=0.25)
    assert upward(1.0) < polygamma(1, 1.0) / 2


def test_the_variances_of_a_group_count_once() -> None:
    ones = population([1.0, 2.0, 9.0], [2] * 3, "abc")
    assert population([1.0, 1.0, 1.0, 2.0, 9.0], [2] * 5, "aaabc") == pytest.approx(ones)
    assert population([1.0, 2.0, 9.0, 4.0], [2] * 4, "aabb") is None
    assert population([1.0, 2.0, 0.0], [2] * 3, "abc") is None


def test_overlap_is_the_squared_correlation() -> None:
    random = np.random.default_rng(3)
    assert overlap(list(random.normal(size=(60, 3)))) == pytest.approx(0, abs=0.08)
    assert overlap([ONE, ONE + 1, 2 * ONE]) == pytest.approx(1)
    long = random.normal(size=(3, 4000))
    assert overlap([long[0] - long[1], long[0] - long[2]]) == pytest.approx(1 / 4, abs=0.04)
    assert overlap([ONE]) == 0


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    """The level at which the sequence of tests first fails to reject (Holm 1979)."""
    p = [0.011, 0.02, 0.0001, 0.3, 0.012]
    adjusted = holm(p)
    for level in np.linspace(0.001, 0.999, 400):
        rejected: set[int] = set()
        for rank, place in enumerate(sorted(range(5), key=lambda i: p[i])):
            if p[place] > level / (5 - rank):
                break
            rejected.add(place)
        assert rejected == {i for i, own in enumerate(adjusted) if own <= level}
    assert holm([]) == []


@pytest.mark.parametrize(
    ("effect", "half", "p", "word"),
    [
        (-0.3, 0.1, 0.001, "better"),
        (0.3, 0.1, 0.001, "worse"),
        (0.3, 0.1, 0.06, "undecided"),
        (0.01, 0.005, 0.001, "equivalent"),  # different from 0, but too small to matter
        (-0.01, 0.08, 0.9, "equivalent"),
        (-0.01, 0.095, 0.9, "undecided"),
    ],
)
def test_words(effect: float, half: float, p: float, word: str) -> None:
    assert judged(effect, half, p, margin=0.1) == word


def test_names_that_are_surely_worse_cannot_be_best() -> None:
    means = {"a": 0.0, "b": 0.1, "c": 5.0}

    def contrast(one: str, two: str) -> Contrast:
        return Contrast(means[one] - means[two], 1, 0.04, 14, None)

    assert may_be_best(list(means), contrast) == ["a", "b"]
    assert may_be_best(["c"], contrast) == ["c"]


def test_the_lowest_of_equal_means_flatters_by_its_expected_order_statistic() -> None:
    """E min of k normal numbers: -0.846 standard errors for k = 3 (independent), 0 for a single one far below."""
    random = np.random.default_rng(4)
    own = random.normal(size=(3, 400))
    own -= own.mean(1, keepdims=True)
    logs = {name: dict(enumerate(values)) for name, values in zip("abc", own, strict=True)}
    error = 1 / math.sqrt(400)
    assert math.log(flattery(logs)) == pytest.approx(-0.846 * error, rel=0.12)
    apart = logs | {"a": {seed: value - 9 for seed, value in logs["a"].items()}}
    assert flattery(apart) == 1
    shared = {name: logs["a"] for name in "abc"}
    assert flattery(shared) == pytest.approx(1, abs=1e-6)  # no chance in the choice
    assert flattery(logs) == flattery(logs)


@pytest.mark.parametrize(("variance", "seeds", "df", "comparisons"), [(0.04, 3, 14, 1), (0.02, 5, 8, 100)])
def test_the_detectable_ratio_has_its_power(variance: float, seeds: int, df: float, comparisons: int) -> None:
    """Against the noncentral t distribution of scipy."""
    ratio = detectable_ratio(variance, seeds, df, comparisons)
    shift = math.log(ratio) / math.sqrt(2 * variance / seeds)
    assert stats.nct.sf(stats.t.ppf(1 - 0.025 / comparisons, df), df, shift) == pytest.approx(0.8, abs=2e-3)
    more, noisier = (
        detectable_ratio(variance, seeds + 1, df, comparisons),
        detectable_ratio(2 * variance, seeds, df, 200),
    )
    assert more < ratio < noisier
    assert detectable(Population(variance, math.inf, df, variance), seeds, comparisons) == ratio
    assert detectable_ratio(variance, seeds, 0, comparisons) == math.inf


def test_power_in_a_spread_population_is_that_of_its_test() -> None:
    random, hits = np.random.default_rng(5), []
    effect = math.log(detectable(SPREAD, 3, 20))
    for _ in range(1500):
        own = SPREAD.median * random.chisquare(4) / 4
        seen = effect + math.sqrt(2 / 3 * SPREAD.median) * random.normal()
        hits.append(Contrast(seen, 2 / 3, own, 4, SPREAD).p < 0.05 / 20 and seen > 0)
    assert np.mean(hits) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("effect", "needed"), [(1.0, 10), (0.5, 34), (0.2, 199)])
def test_repetitions_needed_are_those_of_tables_of_power(effect: float, needed: int) -> None:
    """Of the paired t test, by its effect in standard deviations (Cohen 1988, Statistical Power Analysis, ch. 2)."""
    found = Contrast(-0.3 * effect, 1 / 4, 0.09, 3)
    assert repetitions_needed(found, 4) == needed
    assert repetitions_needed(found._replace(effect=0.0), 4) is None
    assert repetitions_needed(found._replace(df=0), 4) is None
