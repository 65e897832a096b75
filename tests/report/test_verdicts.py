"""Verdicts of whole studies: their rates of error in simulated studies, their power, and their fallbacks."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.params.resolve import resolve
from pipeline.params.resolved import CurveEntry
from pipeline.params.study import read_study
from pipeline.report.comparisons import detectable
from pipeline.report.statistics import Interval
from pipeline.report.text import course, stated_verdict
from pipeline.report.verdicts import Verdict, Verdicts

BUDGETS, SEEDS, STUDIES = (4, 7, 11), 3, 60
BASE, MARGIN = "edm", 0.1
SD = 0.15  # of a logarithm between trainings


def by_chance(rate: float) -> float:
    """The share of STUDIES below which 99% of simulations of a true rate are."""
    return rate + 2.33 * math.sqrt(rate * (1 - rate) / STUDIES)


BY_CHANCE = by_chance(0.05)
NOISY = by_chance(0.13)  # a model ten times as noisy, whose trainings can agree by chance (docs/measurement.md)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "long-tailed": lambda random, shape: random.standard_t(5, shape) / math.sqrt(5 / 3),
}


@cache
def default_study() -> dict[str, CurveEntry]:
    """The curves of the repository's default study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        return resolve(read_study(Path("params.yaml"))).curves


def simulated(
    random: np.random.Generator,
    effects: dict[str, float],
    draw: Draw = DRAWS["normal"],
    spread: float = 1.0,
    noisy: float = 1.0,
) -> Verdicts:
    """A study of the default study's shape. The logarithm of a score is its curve's effect, plus an error that the
    curves of a network share, plus one of the curve.

    spread: the standard deviation of the logarithm of the curves' own standard deviations; noisy: how many times as
    noisy as the others the second model is.
    """
    curves = default_study()
    models = list(dict.fromkeys(entry.row.model for entry in curves.values()))
    shared = {name: SD * draw(random, (len(BUDGETS), SEEDS)) for name in models}
    shared[models[1]] = shared[models[1]] * noisy
    index = pd.MultiIndex.from_tuples([(s, s) for s in range(SEEDS)], names=["train_seed", "sample_seed"])
    found = {}
    for name, entry in curves.items():
        sd = 0.03 * np.exp(spread * random.standard_normal(()))
        own = sd * draw(random, (len(BUDGETS), SEEDS))
        for place, budget in enumerate(BUDGETS):
            logs = effects.get(name, 0.0) + shared[entry.row.model][place] + own[place]
            found[name, budget] = pd.DataFrame({"nfe": budget, "value": np.exp(logs), "se": 0.1}, index=index)
    methods = [name for name, entry in curves.items() if entry.row.method]
    distinct = [name for name in curves if name != "edm_seeds"]
    empty = next(iter(found.values())).iloc[:0]
    return Verdicts(curves, distinct, methods, lambda name, budget: found.get((name, budget), empty), MARGIN)


def words(study: Verdicts) -> list[str]:
    return [study.verdict(name, BASE, budget).word for name, budget in study.comparisons(BASE)]


CASES = {"equal spreads": {"spread": 0.0}, "spreads differ": {}, "one noisy model": {"noisy": 10.0}}


@pytest.mark.parametrize(("case", "draw"), [*((case, "normal") for case in CASES), ("spreads differ", "long-tailed")])
def test_false_verdicts_are_rare(case: str, draw: str) -> None:
    """In studies without any difference, a table has any "better" or "worse" in at most 5% of cases, and the methods
    that may be best include each method in at least 95%. With one noisy model, 13% are what three trainings allow."""
    random, tables, sets = np.random.default_rng(1), [], []
    for _ in range(STUDIES):
        study = simulated(random, {}, DRAWS[draw], **CASES[case])
        tables.append({"better", "worse"} & set(words(study)))
        sets.append(study.methods[1] in study.may_be_best(study.methods, 7))
    assert len(study.comparisons(BASE)) > 60
    assert np.mean(list(map(bool, tables))) <= (NOISY if case == "one noisy model" else BY_CHANCE)
    assert np.mean(sets) >= 1 - BY_CHANCE


@pytest.mark.parametrize("case", ["equal spreads", "spreads differ"])
def test_equivalent_is_rarely_wrong_at_the_edge(case: str) -> None:
    """If all curves differ from the base by the smallest effect of interest, 5% of tables at most call any so."""
    random = np.random.default_rng(2)
    effects = {name: math.log1p(MARGIN) for name in default_study() if name != BASE}
    wrong = ["equivalent" in words(simulated(random, effects, **CASES[case])) for _ in range(STUDIES)]
    assert np.mean(wrong) <= BY_CHANCE


def test_the_best_set_contains_the_best_method_at_any_distance() -> None:
    random, sets = np.random.default_rng(3), []
    for _ in range(STUDIES):
        study = simulated(random, {"ddpm": -0.2, "flow_euler": -0.15, "flow_heun": -0.1})
        sets.append("ddpm" in study.may_be_best(study.methods, 7))
    assert np.mean(sets) >= 1 - BY_CHANCE


def test_printed_power_is_that_of_simulated_studies() -> None:
    """A ratio as large as what such studies print is detected in 55% to 85% of them: with three trainings, what they
    print varies by a tenth, and a verdict needs a variance from the same trainings."""
    random, printed = np.random.default_rng(4), []
    for _ in range(STUDIES // 2):
        study = simulated(random, {}, spread=0.0)
        ratio, seeds = study.detectable(7, len(study.comparisons(BASE)))
        assert seeds == SEEDS
        printed.append(math.log(ratio))
    effects = {"weighting_snr": -float(np.mean(printed))}
    hits = [
        simulated(random, effects, spread=0.0).verdict("weighting_snr", BASE, 7).word == "better"
        for _ in range(2 * STUDIES)
    ]
    assert 0.55 <= np.mean(hits) <= 0.85


@pytest.mark.parametrize("case", ["equal spreads", "spreads differ"])
def test_points_at_different_budgets_are_rarely_told_apart_by_chance(case: str) -> None:
    """Of points without a difference, 5% at most, within one network and between two."""
    random, within, between = np.random.default_rng(6), [], []
    for _ in range(STUDIES):
        study = simulated(random, {}, **CASES[case])
        within += [study.between(("rho_3", 4), (BASE, 11)), study.between((BASE, 7), (BASE, 11))]
        between += [study.between(("flow_heun", 4), (BASE, 11)), study.between(("ddim", 11), ("flow_euler", 4))]
    for found in (within, between):
        assert np.mean([own.contrast.p < 0.05 for own in found]) <= BY_CHANCE


@pytest.fixture
def one() -> Verdicts:
    return simulated(np.random.default_rng(5), {"rho_1": 3.0})


def test_a_contrast_has_one_verdict(one: Verdicts) -> None:
    first = one.verdict("rho_1", BASE, 7)
    assert one.verdict("rho_1", BASE, 7) is first and first.word == "worse"
    assert first.effect.mean == pytest.approx(math.exp(3), rel=0.5) and first.effect.count == SEEDS
    low, high = first.corrected
    assert low < first.effect.low < first.effect.mean < first.effect.high < high
    with pytest.raises(KeyError):
        one.verdict("weighting_snr", "rho_1", 7)


def changed(study: Verdicts, **frames: pd.DataFrame) -> Verdicts:
    """A study in which some curves have other cells at all budgets."""

    def cells(name: str, budget: int) -> pd.DataFrame:
        return frames.get(name, study.cells(name, budget))

    return Verdicts(study.curves, study.distinct, study.methods, cells, MARGIN)


def frame(*values: float, seeds: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 2))) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(seeds[: len(values)], names=["train_seed", "sample_seed"])
    return pd.DataFrame({"nfe": 7, "value": list(values), "se": 0.1}, index=index)


def test_scores_that_are_not_positive_are_compared_by_differences(one: Verdicts) -> None:
    found = changed(one, rho_3=frame(-0.1, 0.2, 0.1)).verdict("rho_3", BASE, 7)
    base = one.cells(BASE, 7).value.to_numpy()
    assert not found.is_ratio and found.effect.mean == pytest.approx(np.mean([-0.1, 0.2, 0.1] - base))
    assert found.word != "equivalent" and "×" not in stated_verdict(found)


def test_equal_results_are_equal_and_count_as_no_comparison(one: Verdicts) -> None:
    same = changed(one, rho_3=one.cells(BASE, 7), edm=one.cells(BASE, 7))
    found = same.verdict("rho_3", BASE, 7)
    assert found.equal and found.word == "equivalent" and stated_verdict(found) == "equal"
    width = [math.log(own.verdict("rho_10", BASE, 7).corrected[1]) for own in (same, one)]
    assert all(map(math.isfinite, width))


def test_one_network_is_compared_at_its_common_seeds(one: Verdicts) -> None:
    """A curve of five trainings and one of three share three networks."""
    five = frame(*np.exp([0.5, 0.1, -0.3, 9.0, 9.0]), seeds=tuple((s, s) for s in range(5)))
    three = frame(*np.exp([0.6, 0.2, -0.2]))
    found = changed(one, edm=five, rho_3=three).verdict("rho_3", BASE, 7)
    assert found.effect.mean == pytest.approx(math.exp(0.1)) and found.effect.count == 3


def test_models_of_one_training_say_so(one: Verdicts) -> None:
    random = np.random.default_rng(6)
    several, single = ((0, 0), (0, 1), (0, 2)), ((0, 0),)
    for seeds, remark in ((several, ""), (single, " (one repetition)")):
        frames = {name: frame(*np.exp(0.1 * random.normal(size=len(seeds))), seeds=seeds) for name in one.curves}
        study = changed(one, **frames)
        between, within = study.verdict("noise_vp", BASE, 7), study.verdict("rho_3", BASE, 7)
        assert stated_verdict(between).endswith(" (one training each)") and stated_verdict(within).endswith(remark)
        assert within.remark == remark.strip(" ()") and math.isfinite(between.effect.low)


def test_a_curve_of_one_training_borrows_the_variance_of_the_others(one: Verdicts) -> None:
    found = changed(one, noise_vp=frame(1.0)).verdict("noise_vp", BASE, 7)
    assert found.remark == "" and found.effect.count == 1 and 0 < found.effect.low < found.effect.high < math.inf


def test_the_lowest_mean_of_a_study_flatters(one: Verdicts) -> None:
    assert 0.5 < one.flattery(["edm", "noise_vp", "noise_flow", "weighting_snr"], 7) < 1
    assert math.isnan(one.flattery(["edm"], 7))
    assert math.isnan(changed(one, edm=frame(-1.0, 1.0, 1.0)).flattery(["edm", "noise_vp"], 7))


def test_detectable_ratios_shrink_with_fewer_comparisons(one: Verdicts) -> None:
    (many, seeds), (few, _) = one.detectable(7, 100), one.detectable(7, 1)
    shared = one.population(7)
    assert shared is not None and many == detectable(shared, seeds, 100) and 1 < few < many
    assert one.detectable(63, 1) == (math.inf, 0)


def test_verdicts_as_text() -> None:
    def verdict(word: str, mean: float, remark: str = "") -> Verdict:
        return Verdict(word, Interval(mean, mean / 1.1, mean * 1.1, 3), (0.5, 2.0), 0.5, True, remark)

    assert stated_verdict(verdict("worse", 1.234)) == "×1.23 (1.12 to 1.36), worse"
    unknown = verdict("undecided", 2.0)._replace(effect=Interval(2.0, math.nan, math.nan, 1), remark="one repetition")
    assert stated_verdict(unknown) == "×2.00 (error unknown), undecided (one repetition)"
    difference = Verdict("better", Interval(-0.2, -0.3, -0.1, 3), (-0.4, 0.0), 0.01, False)
    assert stated_verdict(difference) == "−0.200 (−0.300 to −0.100), better"
    found = {4: verdict("worse", 2.0), 7: verdict("worse", 2.0), 19: verdict("equivalent", 1.0), 35: unknown}
    assert course(found) == "worse at 4 and 7, equivalent at 19, undecided (one repetition) at 35"
