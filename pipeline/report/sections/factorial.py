"""Two choices of training at once: the grids that models fill over them, and a two-way analysis of their scores."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtrit

from pipeline.report.figures.pictures import HeatMap, heat_figure
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.study import Report, low_and_high
from pipeline.report.text import listed, number, percent, plain
from pipeline.training.row import Model

LEAST_LEVELS = 3  # of each choice
INTERACTION = "interaction"

Level = tuple[Any, ...]  # what a model sets the keys of a choice to
One = TypeVar("One", bound=Hashable)
Two = TypeVar("Two", bound=Hashable)


class Source(NamedTuple):
    """A source of variation: its effects, the half width of their 95% intervals, its share of the sum of squares, and
    its F test, with `df` degrees of freedom."""

    effects: np.ndarray
    half: float
    df: int
    share: float
    f: float
    p: float


@dataclass(frozen=True)
class Analysis:
    """A two-way layout in randomised blocks: effects of rows (I,), of columns (J,) and interactions of cells (I, J).

    Effects of rows and columns are deviations from the grand mean, an interaction is what a cell has beyond both.
    """

    rows: Source
    columns: Source
    cells: Source
    residual_df: int
    residual_share: float


def two_way(values: np.ndarray) -> Analysis:
    """Analysis of variance of `values` (R, I, J): R blocks, at least two, with one value of each of I x J cells.

    value = grand mean + row + column + interaction + block + residual, each kind of effect adding up to 0: a randomised
    complete block design with a factorial treatment (Montgomery, Design and Analysis of Experiments, chapter 5). The
    design is balanced, so the parts of the sum of squares about the blocks' means add up. An effect of a source with
    `df` degrees of freedom has the variance sigma^2 df / (R I J).
    """
    within = values - values.mean((1, 2), keepdims=True)
    means = within.mean(0)
    row, column = means.mean(1), means.mean(0)
    effects = (row, column, means - row[:, None] - column)
    squares = [values.size / own.size * float((own**2).sum()) for own in effects]
    rest = float(((within - means) ** 2).sum())
    total = sum(squares) + rest
    residual_df = (len(values) - 1) * (means.size - 1)
    error = rest / residual_df
    unit = float(stdtrit(residual_df, (1 + CONFIDENCE) / 2)) * math.sqrt(error / values.size)
    rows, columns, cells = (
        Source(
            own, unit * math.sqrt(df), df, square / total if total else 0.0, *_test(square / df, error, df, residual_df)
        )
        for own, square, df in zip(effects, squares, _freedom(*means.shape), strict=True)
    )
    return Analysis(rows, columns, cells, residual_df, rest / total if total else 0.0)


def _freedom(rows: int, columns: int) -> tuple[int, int, int]:
    return rows - 1, columns - 1, (rows - 1) * (columns - 1)


def _test(square: float, error: float, df: int, residual_df: int) -> tuple[float, float]:
    """F and its p value; without any error every effect is certain."""
    if not error:
        return (math.inf, 0.0) if square else (0.0, 1.0)
    return square / error, float(fdtrc(df, residual_df, square / error))


def largest_grid(cells: Iterable[tuple[One, Two]]) -> tuple[list[One], list[Two]]:
    """The rows and columns of the largest complete grid among cells, LEAST_LEVELS each way; empty where there is none.

    The columns of a grid that no row or column can be added to are those that its rows have in common, so all
    intersections of rows are gone through. Of equal ones the first, in the order of the cells.
    """
    own: dict[One, list[Two]] = {}
    for row, column in dict.fromkeys(cells):
        own.setdefault(row, []).append(column)
    sets = {row: frozenset(columns) for row, columns in own.items()}
    common: dict[frozenset[Two], None] = {}
    for columns in sets.values():
        found = [columns, *(columns & others for others in common)]
        common |= dict.fromkeys(both for both in found if len(both) >= LEAST_LEVELS)
    grids = [([row for row in sets if both <= sets[row]], both) for both in common]
    grids = [(rows, both) for rows, both in grids if len(rows) >= LEAST_LEVELS]
    if not grids:
        return [], []
    rows, both = max(grids, key=lambda grid: len(grid[0]) * len(grid[1]))
    return rows, [column for column in own[rows[0]] if column in both]


@dataclass(frozen=True)
class Grid:
    """Curves of one sampler and the same seeds on models that differ in two choices alone.

    titles: of the two choices; rows, columns: their levels, as they are called; curves[i][j]: that of a cell; budgets:
    what all curves ask for; block: the seed that tells repetitions apart, the training's where there are several.
    """

    titles: tuple[str, str]
    rows: list[str]
    columns: list[str]
    curves: list[list[str]]
    budgets: list[int]
    block: str

    @property
    def names(self) -> list[str]:
        return [name for line in self.curves for name in line]


def grids(report: Report) -> list[Grid]:
    """Every complete grid that models fill over two choices while all else, seeds included, is equal.

    A level is what all keys of a choice (fields of one title) are set to. Each two choices, with each setting of all
    others, give one grid at most: the largest, then that of the sampler with the most budgets in common. What failed
    counts as there: a grid that lacks results is better told of than passed over.
    """
    keys: dict[str, list[str]] = {}
    for key, field in Model.model_fields.items():
        if field.title:
            keys.setdefault(field.title, []).append(key)
    samplings, found = _samplings(report), []
    for titles in combinations(keys, 2):
        two = [key for title in titles for key in keys[title]]
        alike: dict[Level, list[str]] = {}
        for model in report.models:
            others = [key for key in Model.model_fields if key not in two]
            alike.setdefault(_settings(report, model, others), []).append(model)
        for models in alike.values():
            own = [{m: curves[m] for m in models if m in curves} for curves in samplings]
            tried = [grid for curves in own if (grid := _grid(report, titles, keys, curves))]
            found += [max(tried, key=lambda grid: (len(grid.names), len(grid.budgets)))] if tried else []
    return found


def _samplings(report: Report) -> list[dict[str, str]]:
    """For each sampler and its seeds the curves by model, of each model the one with the most budgets."""
    found: dict[tuple[str, tuple[tuple[int, int], ...]], dict[str, str]] = {}
    for name, entry in report.curves.items():
        own = found.setdefault((report.sampler(name), entry.row.seeds), {})
        if len(entry.row.nfe) > len(report.curves[own.setdefault(entry.row.model, name)].row.nfe):
            own[entry.row.model] = name
    return list(found.values())


def _settings(report: Report, model: str, keys: list[str]) -> Level:
    """What a model sets these keys to, so that it can be compared."""
    return tuple(getattr(report.models[model].row, key) for key in keys)


def _grid(report: Report, titles: tuple[str, str], keys: dict[str, list[str]], curves: dict[str, str]) -> Grid | None:
    """The largest grid over two choices of curves by model, where it has a budget in common."""
    one, two = (keys[title] for title in titles)
    models: dict[tuple[Level, Level], str] = {}
    for model in curves:
        models.setdefault((_settings(report, model, one), _settings(report, model, two)), model)
    rows, columns = largest_grid(models)
    names = [[curves[models[row, column]] for column in columns] for row in rows]
    budgets = report.common_budgets([name for line in names for name in line]) if names else []
    if not budgets:
        return None
    trainings = {train_seed for train_seed, _ in report.curves[names[0][0]].row.seeds}
    block = "train_seed" if len(trainings) > 1 else "sample_seed"
    return Grid(titles, _called(one, rows), _called(two, columns), names, budgets, block)


def _called(keys: list[str], levels: list[Level]) -> list[str]:
    """Levels by the keys in which they differ: "noise lognormal, P_mean -0.4"."""
    shown = [i for i in range(len(keys)) if any(level[i] != levels[0][i] for level in levels)]
    return [", ".join(f"{keys[i]} {plain(level[i])}" for i in shown) for level in levels]


def analysed(report: Report, grid: Grid, budget: int) -> Analysis | str:
    """The effects on the natural logarithm of the score at a budget, or why there are none.

    Logarithms, always: retraining moves a distance about in proportion to its size (in the digits study its standard
    deviation goes as the mean to the power of 0.87), so on this scale a poor cell and a good one have much the same
    spread, which the analysis takes for granted; choices that each multiply the distance have no interaction; and an
    effect is a ratio. A bias-corrected score that is not above 0 has no logarithm: then the grid is not analysed at
    this budget, rather than on another scale.
    """
    lost = [name for name in grid.names if name not in report.having(grid.names, budget)]
    if lost:
        return "; ".join(_lost(report, grid, name, budget) for name in lost)
    columns = [report.cells(name, budget).value.groupby(grid.block).mean() for name in grid.names]
    values = pd.concat(columns, axis=1, join="inner").to_numpy()
    if len(values) < 2:
        return "with fewer than two repetitions nothing can be told from chance"
    if (values <= 0).any():
        return "a score is not above 0, nearer to real images than can be measured, and has no logarithm"
    return two_way(np.log(values).reshape(-1, len(grid.rows), len(grid.columns)))


def _lost(report: Report, grid: Grid, name: str, budget: int) -> str:
    [(row, column)] = [(i, line.index(name)) for i, line in enumerate(grid.curves) if name in line]
    what = report.missing(name, budget) or "has no result"
    return f"the cell of {grid.rows[row]} and {grid.columns[column]} ({name}) {what}"


def sections(report: Report) -> list[dict[str, Any]]:
    """All that the template shows of each grid; draws the heat maps."""
    return [_section(report, grid, place) for place, grid in enumerate(grids(report), 1)]


def _section(report: Report, grid: Grid, place: int) -> dict[str, Any]:
    budgets = low_and_high(grid.budgets)
    found = {budget: analysed(report, grid, budget) for budget in budgets}
    effects = {budget: own for budget, own in found.items() if isinstance(own, Analysis)}
    trainings, samplings = (len(set(seeds)) for seeds in zip(*report.curves[grid.names[0]].row.seeds, strict=True))
    return {
        "title": " and ".join(grid.titles),
        "curve": code(grid.names[0]),
        "trainings": trainings,
        "samplings": samplings,
        "file": _figure(report, grid, budgets, f"factorial_{place}.png"),
        "lost": [f"No analysis at a budget of {b}: {own}." for b, own in found.items() if isinstance(own, str)],
        "cells": _cells(report, grid, budgets, effects),
        "effects": _main_effects(grid, effects) if effects else "",
        "sources": _sources(grid, effects) if effects else "",
    }


def _figure(report: Report, grid: Grid, budgets: list[int], file: str) -> str:
    """A panel for each budget at which any cell has a result."""
    panels = {}
    for budget in budgets:
        having = report.having(grid.names, budget)
        means = {name: report.estimate(name, budget).mean for name in having}
        values = np.array([[means.get(name, math.nan) for name in line] for line in grid.curves])
        texts = [[number(means[n]) if n in means else report.missing(n, budget) for n in line] for line in grid.curves]
        if having:
            panels[f"budget {budget}"] = HeatMap(values, texts)
    if not panels:
        return ""
    heat_figure(report.figures / file, panels, (grid.rows, grid.columns), grid.titles, report.score)
    return file


def _cells(report: Report, grid: Grid, budgets: list[int], effects: dict[int, Analysis]) -> Markdown:
    """A line for each cell: its mean score, and its interaction where it is known."""
    lines = []
    for i, row in enumerate(grid.rows):
        for j, column in enumerate(grid.columns):
            name, texts = grid.curves[i][j], []
            for budget in budgets:
                texts.append(report.stated_at(name, budget))
                own = effects.get(budget)
                texts += [ratio(own.cells.effects[i, j], own.cells.half)] if own else []
            lines.append([row, column, code(name), *texts])
    header = [*grid.titles, "curve"]
    for budget in budgets:
        header += [f"score, budget {budget}", *([f"{INTERACTION}, budget {budget}"] if budget in effects else [])]
    return table(header, lines)


def _main_effects(grid: Grid, effects: dict[int, Analysis]) -> Markdown:
    lines = [
        [grid.titles[0], level, *(ratio(own.rows.effects[i], own.rows.half) for own in effects.values())]
        for i, level in enumerate(grid.rows)
    ] + [
        [grid.titles[1], level, *(ratio(own.columns.effects[i], own.columns.half) for own in effects.values())]
        for i, level in enumerate(grid.columns)
    ]
    return table(["choice", "level", *(f"effect, budget {budget}" for budget in effects)], lines)


def _sources(grid: Grid, effects: dict[int, Analysis]) -> Markdown:
    """The analysis of variance: shares and tests."""
    parts = [*grid.titles, INTERACTION]
    lines: list[list[object]] = [[part] for part in [*parts, "residual"]]
    for own in effects.values():
        for line, source in zip(lines, (own.rows, own.columns, own.cells), strict=False):
            test = f"F({source.df}, {own.residual_df}) = {number(source.f)}, {p_value(source)}"
            line += [percent(source.share), test]
        lines[-1] += [percent(own.residual_share), f"{own.residual_df} degrees of freedom"]
    header = [text for budget in effects for text in (f"share, budget {budget}", f"test, budget {budget}")]
    return table(["source", *header], lines)


def ratio(effect: float, half: float) -> str:
    """An effect on a logarithm as the ratio that it stands for, with its interval; in bold where that leaves 1 out."""
    low, high = math.exp(effect - half), math.exp(effect + half)
    text = f"{number(math.exp(effect))} ({number(low)} to {number(high)})"
    return bold(text) if abs(effect) > half else text


def p_value(source: Source) -> str:
    return "p < 0.001" if source.p < 0.001 else f"p = {source.p:.3f}"


def told_apart(source: Source) -> bool:
    """Whether a source can be told from chance, at the level of the intervals."""
    return source.p < 1 - CONFIDENCE


def finding(report: Report, grid: Grid) -> str:
    """Which of two choices has the larger main effect, and whether they interact; empty where nothing is analysed."""
    parts = []
    for budget in low_and_high(grid.budgets):
        own = analysed(report, grid, budget)
        if isinstance(own, Analysis):
            parts.append(f"at a budget of {budget} {_compared(grid, own)}")
    size = f"{len(grid.rows)} x {len(grid.columns)} models over {listed(list(grid.titles))}"
    together = "taken together, which tells apart what single rows may tie in"
    return f"Of {size}, sampled as {grid.names[0]} and {together}, {'; '.join(parts)}." if parts else ""


def _compared(grid: Grid, own: Analysis) -> str:
    sources = sorted(zip((own.rows, own.columns), grid.titles, strict=True), key=lambda part: -part[0].share)
    (first, larger), (second, smaller) = sources
    shares = f"{percent(first.share)} of the score's variation, {p_value(first)}; "
    shares += f"{smaller} {percent(second.share)}, {p_value(second)}"
    lead = f"{larger} has the larger main effect ({shares})"
    if not (told_apart(first) or told_apart(second)):
        lead = f"neither main effect can be told from chance ({larger} {shares})"
    can = "can" if told_apart(own.cells) else "cannot"
    interaction = f"their {INTERACTION} ({percent(own.cells.share)}, {p_value(own.cells)})"
    return f"{lead}, and {interaction} {can} be told from chance"
