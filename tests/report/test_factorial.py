"""Factorial designs: the analysis of variance, the search for grids, and the section."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.common.files import Paths
from pipeline.report import study
from pipeline.report.build import build
from pipeline.report.findings import findings
from pipeline.report.sections import factorial
from pipeline.report.sections.factorial import Analysis, analysed, grids, largest_grid, two_way
from pipeline.report.study import Report, low_and_high
from tests.report.studies import CURVES, fail, made_up_study, markdown, row, score

WEIGHTINGS, MEANS = ("unit", "snr", "min_snr"), (-1.2, -0.8, -0.4, 0.0)
ROWS, COLUMNS = np.array([-0.3, 0.0, 0.3]), np.array([-0.9, -0.3, 0.3, 0.9])


def models(weightings: tuple[str, ...] = WEIGHTINGS, means: tuple[float, ...] = MEANS, **keys: Any) -> dict[str, dict]:
    cells = product(enumerate(weightings), enumerate(means))
    return {f"m{i}{j}": {"weighting": weighting, "P_mean": mean} | keys for (i, weighting), (j, mean) in cells}


def curves(names: Any, prefix: str = "", **keys: Any) -> dict[str, dict]:
    return {f"{prefix}{name}": {"model": name} | keys for name in names}


def grid_study(folder: Path, noise: float = 0.03, interaction: float = 0.0, seeds: int = 3) -> Paths:
    """A made-up study of 3 x 4 models whose scores' logarithms add up, with noise and one cell that stands out."""
    own = models()
    paths = made_up_study(folder, curves(own), list(range(seeds)), models=own)
    random = np.random.default_rng(5)
    block = random.normal(0, 0.5, seeds)
    values = {}
    for (i, j), name in zip(product(range(3), range(4)), own, strict=True):
        beyond = interaction if (i, j) == (0, 0) else 0.0
        draw = [ROWS[i] + COLUMNS[j] + beyond + block + random.normal(0, noise, seeds) for _ in range(2)]
        values[name] = {3: 5 * np.exp(draw[0]), 7: np.exp(draw[1])}
    score(paths, values)
    return paths


def section(paths: Paths) -> str:
    return markdown(paths).split("## Factorial designs")[1].split("\n## ")[0]


def coded(levels: int) -> np.ndarray:
    """Sum-to-zero coding (levels, levels - 1)."""
    return np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])


def test_effects_and_tests_equal_nested_least_squares() -> None:
    random = np.random.default_rng(0)
    count, rows, columns = 4, 3, 5
    values = random.normal(size=(count, rows, columns)) + np.arange(rows)[:, None] + random.normal(size=(count, 1, 1))
    a, b, s = coded(rows), coded(columns), coded(count)
    index = list(product(range(count), range(rows), range(columns)))
    parts = {
        "mean": np.ones((values.size, 1)),
        "block": np.array([s[k] for k, _, _ in index]),
        "rows": np.array([a[i] for _, i, _ in index]),
        "columns": np.array([b[j] for _, _, j in index]),
        "cells": np.array([np.outer(a[i], b[j]).ravel() for _, i, j in index]),
    }

    def left(*without: str) -> float:
        design = np.hstack([part for name, part in parts.items() if name not in without])
        return float(((values.ravel() - design @ np.linalg.lstsq(design, values.ravel())[0]) ** 2).sum())

    found = two_way(values)
    residual, total = left(), left("rows", "columns", "cells")
    df = values.size - count - rows * columns + 1
    assert found.residual_df == df and found.residual_share == pytest.approx(residual / total)
    design = np.hstack(list(parts.values()))
    beta = np.linalg.lstsq(design, values.ravel())[0]
    covariance = np.linalg.inv(design.T @ design) * residual / df
    start = 1 + count - 1
    for source, freedom, coding in (
        (found.rows, rows - 1, a),
        (found.columns, columns - 1, b),
        (found.cells, (rows - 1) * (columns - 1), np.array([np.outer(p, q).ravel() for p in a for q in b])),
    ):
        own = slice(start, start + freedom)
        start += freedom
        name = {id(found.rows): "rows", id(found.columns): "columns"}.get(id(source), "cells")
        f = (left(name) - residual) / freedom / (residual / df)
        assert (source.df, source.f, source.p) == pytest.approx((freedom, f, stats.f.sf(f, freedom, df)))
        assert source.share == pytest.approx((left(name) - residual) / total)
        assert source.effects.ravel() == pytest.approx(coding @ beta[own])
        errors = np.sqrt(np.diag(coding @ covariance[own, own] @ coding.T))
        assert [source.half] * len(errors) == pytest.approx(errors * stats.t.ppf(0.975, df))
    shares = [found.rows.share, found.columns.share, found.cells.share, found.residual_share]
    assert sum(shares) == pytest.approx(1)


def test_block_effects_do_not_change_the_analysis() -> None:
    values = np.random.default_rng(1).normal(size=(3, 3, 4))
    one, two = two_way(values), two_way(values + np.array([5.0, -100.0, 3.0])[:, None, None])
    assert (one.rows.p, one.cells.half, one.residual_share) == pytest.approx(
        (two.rows.p, two.cells.half, two.residual_share)
    )
    assert one.cells.effects == pytest.approx(two.cells.effects)


def test_without_residuals_effects_are_certain() -> None:
    found = two_way(np.tile(np.array([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]]), (2, 1, 1)))
    assert (found.rows.f, found.rows.p, found.rows.share) == (math.inf, 0, 1)
    assert (found.columns.f, found.columns.p, found.columns.share, found.residual_share) == (0, 1, 0, 0)
    same = two_way(np.zeros((2, 3, 3)))
    assert [part.share for part in (same.rows, same.columns, same.cells)] == [0, 0, 0] and same.cells.p == 1


def test_intervals_and_tests_have_their_nominal_level() -> None:
    """In 4000 simulated grids, 95% of intervals contain the truth, and 5% of tests find an absent interaction."""
    random = np.random.default_rng(2)
    truth = 0.3 + ROWS[:, None] + COLUMNS
    held, found = np.zeros((4000, 3)), 0
    for trial in range(len(held)):
        own = two_way(truth + random.normal(0, 2, (3, 1, 1)) + random.normal(0, 0.4, (3, 3, 4)))
        expected = (ROWS - ROWS.mean(), COLUMNS - COLUMNS.mean(), np.zeros((3, 4)))
        for kind, source in enumerate((own.rows, own.columns, own.cells)):
            held[trial, kind] = (np.abs(source.effects - expected[kind]) <= source.half).mean()
        found += own.cells.p < 0.05
    assert held.mean(0) == pytest.approx(0.95, abs=0.01)
    assert found / len(held) == pytest.approx(0.05, abs=0.012)


def test_the_largest_grid_equals_exhaustive_search() -> None:
    """Exhaustive search tries every set of columns."""
    random = np.random.default_rng(3)
    for _ in range(60):
        there = random.random((6, 7)) < 0.75
        cells = [(f"r{i}", j) for i, j in np.argwhere(there).tolist()]
        sizes = [0]
        for mask in product([False, True], repeat=7):
            full = int(there[:, list(mask)].all(1).sum())
            sizes += [full * sum(mask)] if full >= 3 and sum(mask) >= 3 else []
        rows, columns = largest_grid(cells)
        assert len(rows) * len(columns) == max(sizes)
        assert set(product(rows, columns)) <= set(cells)
    assert largest_grid(cells) == largest_grid(cells[:]) and largest_grid([]) == ([], [])
    assert largest_grid(product("ab", range(9))) == ([], []) and largest_grid(product(range(9), "ab")) == ([], [])
    assert largest_grid(product("cab", "zxy")) == (["c", "a", "b"], ["z", "x", "y"])


@pytest.mark.parametrize(
    ("budgets", "found"),
    [([4, 8], [8]), ([5, 35], [5, 35]), ([4, 7, 11, 35], [7, 35]), ([63], [63]), ([11, 35], [11, 35])],
)
def test_a_small_budget_and_the_largest(budgets: list[int], found: list[int]) -> None:
    assert low_and_high(budgets) == found


def found_grids(
    folder: Path, models: dict[str, dict], curves: dict[str, dict], seeds: tuple[int, ...] = (0, 1)
) -> list[tuple[tuple[str, str], tuple[int, int], str]]:
    """The choices, the size and the first curve of each grid."""
    found = grids(Report(made_up_study(folder, curves, list(seeds), models=models), folder))
    return [(grid.titles, (len(grid.rows), len(grid.columns)), grid.names[0]) for grid in found]


BOTH = ("noise distribution", "loss weighting")


def test_grids_are_found_automatically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = models()
    assert found_grids(tmp_path, own, curves(own)) == [(BOTH, (4, 3), "m00")]
    del own["m23"]
    assert found_grids(tmp_path, own, curves(own)) == [(BOTH, (3, 3), "m00")]
    del own["m12"]  # two cells away: no three complete rows and columns but of those that are left
    assert found_grids(tmp_path, own, curves(own)) == []
    assert found_grids(tmp_path, models(WEIGHTINGS[:2]), curves(models(WEIGHTINGS[:2]))) == []
    assert found_grids(tmp_path, {"edm": {}, "edm_snr": {"weighting": "snr"}}, CURVES) == []


def test_all_else_must_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ({"images": 5000}, {"train_seeds": [0, 7]}, {"learning_rate": 0.1}):
        own = models(WEIGHTINGS, MEANS[:3])
        own["m22"] |= other
        assert found_grids(tmp_path, own, curves(own)) == []
    own = models(WEIGHTINGS, MEANS[:3])
    for other in ({"solver": "euler"}, {"sample_seeds": [0, 7]}):
        changed = curves(own)
        changed["m22"] |= other
        assert found_grids(tmp_path, own, changed) == []
    changed["m22"] = {"model": "m22", "nfe": [5]}
    assert found_grids(tmp_path, own, changed) == []
    two = own | {f"long_{name}": row | {"images": 5000} for name, row in own.items()}
    assert found_grids(tmp_path, two, curves(two)) == [(BOTH, (3, 3), "m00"), (BOTH, (3, 3), "long_m00")]


def test_the_sampler_is_that_of_the_largest_grid_then_of_the_most_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = models()
    both = curves(own, nfe=[4]) | curves(own, "euler_", solver="euler")
    assert [found[2] for found in found_grids(tmp_path, own, both)] == ["euler_m00"]
    del both["euler_m23"]
    assert [found[2] for found in found_grids(tmp_path, own, both)] == ["m00"]
    again = curves(own, nfe=[4]) | {"again": {"model": "m00"}}  # the same sampler with more budgets
    assert found_grids(tmp_path, own, again) == [(BOTH, (4, 3), "again")]


def test_a_grid_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = grid_study(tmp_path)
    build(paths)
    text = section(paths)
    assert "### Noise distribution and loss weighting" in text and "3 trainings of each model" in text
    assert "All models are sampled like `m00`." in text and "nan" not in text and "No analysis" not in text
    assert row(text, "residual", "###")[2] == "22 degrees of freedom"
    assert "F(3, 22)" in row(text, "| noise distribution", "test, budget")[2]
    assert row(text, "min_snr", "effect, budget")[:2] == ["loss weighting", "weighting min_snr"]
    ratios = [row(text, f"P_mean {m:g}", "effect, budget")[2].strip("*").split()[0] for m in MEANS]
    assert [float(ratio) for ratio in ratios] == pytest.approx(np.exp(COLUMNS - COLUMNS.mean()).tolist(), rel=0.05)
    cell = row(text, "`m23`", "interaction, budget 8")
    assert cell[:3] == ["P_mean 0", "weighting min_snr", "`m23`"] and "±" in cell[3]
    assert cell[5].startswith("×") and cell[5].endswith(", worse")
    assert cell[4].startswith("0.9") and cell[4].endswith("to 1.01)")  # not bold
    [said] = [
        line for line in markdown(paths).splitlines() if line.startswith("- Factorial design of 4 x 3 models over")
    ]
    assert "sampled like m00, whose main effects are means over several models" in said
    assert ": at a budget of 8, the main effect of noise distribution (" in said
    assert said.count("p < 0.001) and the main effect of loss weighting (") and said.endswith(" is not detected.")


def test_the_section_and_the_figure_of_a_grid_are_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_figures: None
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(grid_study(tmp_path), tmp_path)
    [shown] = factorial.sections(report)
    before = (tmp_path / shown["file"]).read_bytes()
    assert len(before) > 10_000
    assert factorial.sections(Report(report.paths, tmp_path)) == [shown]
    assert (tmp_path / shown["file"]).read_bytes() == before


def test_a_detected_interaction_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(grid_study(tmp_path, interaction=1.0), tmp_path)
    [said] = [text for text in findings(report).more if text.startswith("Factorial design of 4 x 3")]
    assert "and their interaction (" in said and said.endswith("p < 0.001) are detected.")


def test_effects_within_chance_are_not_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(grid_study(tmp_path, noise=30.0), tmp_path)
    [said] = [text for text in findings(report).more if text.startswith("Factorial design of 4 x 3")]
    assert said.endswith(" are not detected.") and ") is detected" not in said and ") are detected" not in said


def test_a_study_without_a_grid_has_no_section(plain: Paths) -> None:
    assert "## Factorial designs" not in markdown(plain) and "models over" not in markdown(plain)


def test_a_grid_with_a_failed_cell_is_not_analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = grid_study(tmp_path)
    fail(paths, "m12", (7,), (1,))
    report = Report(paths, tmp_path)
    [shown] = factorial.sections(report)
    assert shown["lost"] == ["No analysis at a budget of 8: the cell of P_mean -0.4 and weighting snr (m12) failed."]
    assert shown["effects"] == shown["sources"] == "" and "interaction, budget" not in shown["cells"]
    assert row(shown["cells"], "`m12`", "score, budget 8")[3] == "failed" and "nan" not in shown["cells"]
    assert (tmp_path / shown["file"]).exists()
    assert not any("models over" in text for text in findings(report).more)
    paths = grid_study(tmp_path)
    for name in models():
        fail(paths, name, (7,))
    [shown] = factorial.sections(Report(paths, tmp_path))
    assert shown["file"] == "" and "nan" not in shown["cells"]


def test_a_failed_cell_prevents_the_analysis_of_its_budget_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "SMALL_BUDGET", 4)
    paths = grid_study(tmp_path)
    fail(paths, "m12", (3,), (1,))
    report = Report(paths, tmp_path)
    [shown] = factorial.sections(report)
    assert [line.split(": ")[0] for line in shown["lost"]] == ["No analysis at a budget of 4"]
    assert "effect, budget 8" in shown["effects"] and "budget 4" not in shown["effects"] + shown["sources"]
    assert "interaction, budget 8" in shown["cells"] and "interaction, budget 4" not in shown["cells"]
    assert "| failed |" in shown["cells"] and factorial.finding(report, grids(report)[0]).count("budget") == 1


def test_scores_without_logarithm_or_repetition_are_not_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = grid_study(tmp_path)
    score(paths, {"m11": {7: [0.5, -0.01, 0.5]}})
    report = Report(paths, tmp_path)
    [shown] = factorial.sections(report)
    assert shown["lost"][0].startswith("No analysis at a budget of 8: a score is not above 0, ")
    assert (tmp_path / shown["file"]).exists() and shown["sources"] == shown["effects"] == ""
    assert factorial.finding(report, grids(report)[0]) == ""
    [shown] = factorial.sections(Report(grid_study(tmp_path, seeds=1), tmp_path))
    assert shown["lost"][0].startswith("No analysis at a budget of 8: it needs at least two repetitions")
    assert "nan" not in shown["cells"]


def test_samplings_are_blocks_if_there_is_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = models(train_seeds=[4])
    report = Report(made_up_study(tmp_path, curves(own), [0, 1, 2], models=own), tmp_path)
    [shown] = factorial.sections(report)
    assert (shown["trainings"], shown["samplings"]) == (1, 3)
    [grid] = grids(report)
    found = analysed(report, grid, 8)
    assert isinstance(found, Analysis) and found.residual_df == 2 * 11


def test_crossed_repetitions_count_once_per_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = models()
    paths = made_up_study(tmp_path, curves(own, repetitions="crossed"), [0, 1, 2], models=own)
    report = Report(paths, tmp_path)
    [grid] = grids(report)
    found = analysed(report, grid, 8)
    assert isinstance(found, Analysis) and found.residual_df == 2 * 11
