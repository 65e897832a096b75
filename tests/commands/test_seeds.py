"""What further seeds cost and buy: against estimates of larger studies, and from results with a known scatter."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.commands.seeds import minutes_of_seeds, power, with_more_seeds, worth
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import parse_study
from pipeline.report.comparisons import detectable_ratio
from pipeline.report.results import COLUMNS
from tests.commands.test_check import HERE, TINY, estimated

STAGES = ("train@edm", "train@flow", "sweep@edm", "sweep@flow", "losses", "grids", "report", "prepare")
FIVE, THREE = [0, 1, 2, 3, 4], [0, 1, 2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())


def study(models: dict[str, Any], curves: dict[str, Any]) -> Resolved:
    sections = TINY | {"data": {"source": "digits"}, "defaults": {}, "models": models, "curves": curves}
    return resolve(parse_study(str(sections), Path("params.yaml")))


def test_every_model_gets_new_seeds_and_every_curve_samples_from_them() -> None:
    models = {"edm": {"train_seeds": [1, 7]}, "flow": {"train_seeds": [4]}}
    curves = {
        "edm": {"model": "edm"},
        "few": {"model": "edm", "train_seeds": [7], "sample_seeds": [5, 6]},
        "crossed": {"model": "flow", "sample_seeds": [5, 6], "repetitions": "crossed"},
    }
    before = study(models, curves)
    after = with_more_seeds(before, 2)
    assert after.models["edm"].row.train_seeds == (1, 7, 0, 2) and after.models["flow"].row.train_seeds == (4, 0, 1)
    added = {name: entry.row.seeds[len(before.curves[name].row.seeds) :] for name, entry in after.curves.items()}
    assert added == {
        "edm": ((0, 0), (2, 0)),
        "few": ((0, 5), (2, 5)),
        "crossed": ((0, 5), (0, 6), (1, 5), (1, 6)),
    }
    assert with_more_seeds(before, 0) == before


@pytest.mark.parametrize("more", [1, 3])
def test_the_cost_of_seeds_is_that_of_a_study_that_has_them(more: int) -> None:
    def seeded(count: int) -> dict[str, Any]:
        seeds = [*range(count)]
        models, curves = TINY["defaults"]["models"], TINY["defaults"]["curves"]
        return {"models": models | {"train_seeds": seeds}, "curves": curves | {"sample_seeds": seeds}}

    small, large = (estimated(HERE, defaults=seeded(count)) for count in (2, 2 + more))
    expected = sum(large.of(stage).seconds - small.of(stage).seconds for stage in STAGES) / 60
    assert minutes_of_seeds(small, STAGES, more) == pytest.approx(expected) and expected > 0
    assert minutes_of_seeds(small, ["report", "prepare"], more) == 0


def results(rows: Resolved, deviation: float, common: float = 0.0) -> pd.DataFrame:
    """Log-normal scores: of standard deviation `deviation` by training and curve, and `common` to each training."""
    draws = np.random.Generator(np.random.PCG64(0))
    shared = {(name, seed): draws.normal(0, common) for name in rows.models for seed in range(99)}
    lines = []
    for name, entry in rows.curves.items():
        for budget in entry.row.nfe:
            own = {train: draws.normal(0, deviation) for train, _ in entry.row.seeds}
            for train, sample in entry.row.seeds:
                value = math.exp(own[train] + shared[entry.row.model, train])
                seeds = [train, sample, budget, budget]
                lines.append([name, entry.row.model, *seeds, 1024, "fd_corrected", value, 0.1])
    return pd.DataFrame(lines, columns=COLUMNS)


def many(count: int, seeds: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Many models, each with one curve; the first one has five trainings."""
    models = {f"m{i}": {"train_seeds": seeds if i else FIVE, "P_mean": -i / 10} for i in range(count)}
    curves = {f"c{i}": {"model": f"m{i}", "solver": "ddim", "nfe": [4, 7, 35]} for i in range(count)}
    return models, curves


def test_power_comes_from_the_scatter_between_trainings() -> None:
    models, curves = many(80, THREE)
    curves["c0"]["nfe"] = [7, 35, 63]
    rows = study(models, curves)
    found = power(results(rows, 0.2), rows)
    assert found and (found.budget, found.within, found.comparisons) == (35, False, 2 * 79)
    assert found.seeds == pytest.approx(2 / (1 / 5 + 1 / 3))
    assert found.scatter.median == pytest.approx(0.04, rel=0.25)
    known = detectable_ratio(0.04, found.seeds, 80 * 2, found.comparisons)
    assert math.log(found.ratio()) == pytest.approx(math.log(known), rel=0.4)
    assert found.ratio() > found.ratio(1) > found.ratio(2) > 1


def test_power_is_of_the_planned_seeds_and_not_of_those_that_were_measured() -> None:
    measured, planned = (study(*many(30, seeds)) for seeds in (THREE, FIVE))
    table = results(measured, 0.2)
    now, then = power(table, measured), power(table, planned)
    assert now and then and then.seeds == 5 > now.seeds and then.scatter == now.scatter
    assert then.ratio() < now.ratio()


def test_samplers_of_one_network_are_told_by_their_paired_differences() -> None:
    """What a training shares with all its samplers does not count."""
    curves = {f"c{i}": {"model": "edm", "rho": 3 + i, "nfe": [7, 35]} for i in range(40)}
    rows = study({"edm": {"train_seeds": FIVE}}, curves)
    found = power(results(rows, 0.05, common=2.0), rows)
    assert found and found.within and found.seeds == 5
    assert found.scatter.median == pytest.approx(0.05**2, rel=0.35)
    known = detectable_ratio(0.05**2, 5, 4 * 39, found.comparisons)
    assert 0.9 < math.log(found.ratio()) / math.log(known) < 1.6  # at least what it is with a known variance


def written(table: pd.DataFrame, file: Path) -> None:
    """results.csv, with scores against held-out images, which do not count."""
    others = table.assign(reference="heldout", value=1.0)
    pd.concat([others, table.assign(reference="train")]).to_csv(file, index=False)


def test_one_line_says_what_seeds_cost_and_buy(tmp_path: Path) -> None:
    rows, file = study(*many(30, THREE)), tmp_path / "results.csv"
    written(results(rows, 0.2), file)
    found = power(results(rows, 0.2), rows)
    assert found
    assert worth(rows, {1: 3.14, 2: 6.2}, file) == (
        f"at 35 evaluations the study tells {found.ratio():.2f}-fold effects between models in 4 of 5 cases; "
        f"1 more seed of every row: 3.1 min, {found.ratio(1):.2f}-fold; "
        f"2 more seeds of every row: 6.2 min, {found.ratio(2):.2f}-fold"
    )


@pytest.mark.parametrize("case", ["no results", "broken", "another study's", "one seed", "one model", "below 0"])
def test_without_known_scatter_the_line_says_so(tmp_path: Path, case: str) -> None:
    rows, file = study(*many(6, [0] if case == "one seed" else THREE)), tmp_path / "results.csv"
    table = results(rows, 0.2)
    if case == "another study's":
        table["curve"] = "other_" + table["curve"]
    elif case == "one model":
        table = table[table.curve == "c1"]
    elif case == "below 0":
        table.value -= 9
    if case == "broken":
        file.write_text("{}\n")
    elif case != "no results":
        written(table, file)
    assert worth(rows, {1: 1.0, 2: 2.0}, file).endswith("is unknown until it has results of several seeds")
