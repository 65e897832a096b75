"""The section on factorial designs: grids of models over two choices, and the analysis of variance of their scores."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtrit

from pipeline.report.comparisons import LEVEL, holm
from pipeline.report.figures.pictures import HeatMap, heat_figure
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.study import Report, low_and_high
from pipeline.report.text import listed, number, p_value, percent, plain
from pipeline.training.row import Model

LEAST_LEVELS = 3  # of each choice
INTERACTION = "interaction"

Level = tuple[Any, ...]  # the values of a choice's keys in a model's row
One = TypeVar("One", bound=Hashable)
Two = TypeVar("Two", bound=Hashable)


class Source(NamedTuple):
    """A source of variation: its effects, the half width of their 95% intervals, that of intervals which hold for all
    effects of all sources at once, its degrees of freedom, its share of the sum of squares, and its F test."""

    effects: np.ndarray
    half: float
    corrected: float
    df: int
    share: float
    f: float
    p: float


@dataclass(frozen=True)
class Analysis:
    """The analysis of a two-way layout in randomised blocks: main effects of rows (I,) and columns (J,), and the
    interactions of cells (I, J).

    Main effects are deviations from the grand mean. An interaction is the deviation of a cell from both main effects.
    """

    rows: Source
    columns: Source
    cells: Source
    residual_df: int
    residual_share: float


def two_way(values: np.ndarray) -> Analysis:
    """The analysis of variance of `values` (R, I, J): R >= 2 blocks with one value in each of I x J cells.

    value = grand mean + row + column + interaction + block + residual, where the effects of each kind sum to 0. This is
    a randomised complete block design with a factorial treatment (Montgomery, Design and Analysis of Experiments,
    chapter 5). The design is balanced, so the parts of the sum of squares about the blocks' means add up. An effect of
    a source with `df` degrees of freedom has the variance sigma^2 df / (R I J).
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
    family = sum(own.size for own in effects)
    units = [
        float(stdtrit(residual_df, 1 - level / 2)) * math.sqrt(error / values.size) for level in (LEVEL, LEVEL / family)
    ]
    rows, columns, cells = (
        Source(
            own,
            units[0] * math.sqrt(df),
            units[1] * math.sqrt(df),
            df,
            square / total if total else 0.0,
            *_test(square / df, error, df, residual_df),
        )
        for own, square, df in zip(effects, squares, _freedom(*means.shape), strict=True)
    )
    return Analysis(rows, columns, cells, residual_df, rest / total if total else 0.0)


def _freedom(rows: int, columns: int) -> tuple[int, int, int]:
    return rows - 1, columns - 1, (rows - 1) * (columns - 1)


def _test(square: float, error: float, df: int, residual_df: int) -> tuple[float, float]:
    """F and its p value. Without any residual, every effect is certain."""
    if not error:
        return (math.inf, 0.0) if square else (0.0, 1.0)
    return square / error, float(fdtrc(df, residual_df, square / error))


def largest_grid(cells: Iterable[tuple[One, Two]]) -> tuple[list[One], list[Two]]:
    """The rows and columns of the largest complete grid among cells, at least LEAST_LEVELS each; empty without one.

    The columns of a maximal grid are the common columns of its rows, so this tries all intersections of rows. Among
    equally large grids, the first in the order of the cells wins.
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
    """Curves with one sampler and the same seeds on models that differ only in two choices.

    titles: the titles of both choices; rows, columns: the names of their levels; curves[i][j]: the curve of a cell;
    budgets: the common budgets; block: the seed of repetitions, "train_seed" if there are several trainings.
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
    """Every complete grid of models over two choices with all else equal, seeds included.

    A level is one setting of all keys of a choice (the fields of one title). Each pair of choices, with each setting of
    all others, gives at most one grid: the largest, then that of the sampler with the most common budgets. Failed
    results count, so that the report mentions a grid that lacks results.
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
    """For each sampler with its seeds, the curve of each model that has the most budgets."""
    found: dict[tuple[str, tuple[tuple[int, int], ...]], dict[str, str]] = {}
    for name, entry in report.curves.items():
        own = found.setdefault((report.sampler(name), entry.row.seeds), {})
        if len(entry.row.nfe) > len(report.curves[own.setdefault(entry.row.model, name)].row.nfe):
            own[entry.row.model] = name
    return list(found.values())


def _settings(report: Report, model: str, keys: list[str]) -> Level:
    """The values of these keys in a model's row."""
    return tuple(getattr(report.models[model].row, key) for key in keys)


def _grid(report: Report, titles: tuple[str, str], keys: dict[str, list[str]], curves: dict[str, str]) -> Grid | None:
    """The largest grid over two choices among curves by model; None without a common budget."""
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
    return Grid(titles, _names(one, rows), _names(two, columns), names, budgets, block)


def _names(keys: list[str], levels: list[Level]) -> list[str]:
    """The names of levels, from the keys in which they differ: "noise lognormal, P_mean -0.4"."""
    shown = [i for i in range(len(keys)) if any(level[i] != levels[0][i] for level in levels)]
    return [", ".join(f"{keys[i]} {plain(level[i])}" for i in shown) for level in levels]


def analysed(report: Report, grid: Grid, budget: int) -> Analysis | str:
    """The effects on the natural logarithm of the score at a budget, or the reason for their absence.

    Why logarithms: the standard deviation of a distance over trainings is about proportional to its mean (to the power
    of 0.87 in the digits study), so that good and poor cells have similar variances on this scale, as the analysis
    assumes. Choices that multiply the distance have no interaction, and an effect is a ratio. A bias-corrected score
    that is not above 0 has no logarithm; the grid is then not analysed at this budget.
    """
    lost = [name for name in grid.names if name not in report.having(grid.names, budget)]
    if lost:
        return "; ".join(_lost(report, grid, name, budget) for name in lost)
    columns = [report.cells(name, budget).value.groupby(grid.block).mean() for name in grid.names]
    values = pd.concat(columns, axis=1, join="inner").to_numpy()
    if len(values) < 2:
        return "it needs at least two repetitions"
    if (values <= 0).any():
        return "a score is not above 0, closer to real images than the metric resolves, and has no logarithm"
    return two_way(np.log(values).reshape(-1, len(grid.rows), len(grid.columns)))


def _lost(report: Report, grid: Grid, name: str, budget: int) -> str:
    """The cell of a curve without a result."""
    [(row, column)] = [(i, line.index(name)) for i, line in enumerate(grid.curves) if name in line]
    what = report.missing(name, budget) or "has no result"
    return f"the cell of {grid.rows[row]} and {grid.columns[column]} ({name}) {what}"


def sections(report: Report) -> list[dict[str, Any]]:
    """The contents of the section for each grid; draws the heat maps."""
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
    """Draw a panel for each budget at which any cell has a result."""
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
    """One line per cell: its mean score, its interaction if it is known, and the verdict against its base."""
    lines = []
    for i, row in enumerate(grid.rows):
        for j, column in enumerate(grid.columns):
            name, texts = grid.curves[i][j], []
            for budget in budgets:
                texts.append(report.stated_at(name, budget))
                own = effects.get(budget)
                texts += [ratio(own.cells.effects[i, j], own.cells)] if own else []
                base = report.curves[name].base
                texts.append(report.difference_at(name, base, budget) if name != base else "")
            lines.append([row, column, code(name), *texts])
    header = [*grid.titles, "curve"]
    for budget in budgets:
        header += [f"score, budget {budget}", *([f"{INTERACTION}, budget {budget}"] if budget in effects else [])]
        header.append(f"ratio to its base, budget {budget}")
    return table(header, lines)


def _main_effects(grid: Grid, effects: dict[int, Analysis]) -> Markdown:
    lines = [
        [grid.titles[0], level, *(ratio(own.rows.effects[i], own.rows) for own in effects.values())]
        for i, level in enumerate(grid.rows)
    ] + [
        [grid.titles[1], level, *(ratio(own.columns.effects[i], own.columns) for own in effects.values())]
        for i, level in enumerate(grid.columns)
    ]
    return table(["choice", "level", *(f"effect, budget {budget}" for budget in effects)], lines)


def _sources(grid: Grid, effects: dict[int, Analysis]) -> Markdown:
    """The analysis of variance: shares and tests of each source."""
    parts = [*grid.titles, INTERACTION]
    lines: list[list[object]] = [[part] for part in [*parts, "residual"]]
    for own in effects.values():
        for line, source in zip(lines, (own.rows, own.columns, own.cells), strict=False):
            test = f"F({source.df}, {own.residual_df}) = {number(source.f)}, {p_value(source.p)}"
            line += [percent(source.share), test]
        lines[-1] += [percent(own.residual_share), f"{own.residual_df} degrees of freedom"]
    header = [text for budget in effects for text in (f"share, budget {budget}", f"test, budget {budget}")]
    return table(["source", *header], lines)


def ratio(effect: float, source: Source) -> str:
    """An effect of a source as a ratio, with its 95% interval; in bold if the corrected interval excludes 1."""
    low, high = math.exp(effect - source.half), math.exp(effect + source.half)
    text = f"{number(math.exp(effect))} ({number(low)} to {number(high)})"
    return bold(text) if abs(effect) > source.corrected else text


def finding(report: Report, grid: Grid) -> str:
    """Which main effects and which interaction are detected at each budget; empty without an analysis."""
    every = {budget: analysed(report, grid, budget) for budget in low_and_high(grid.budgets)}
    found = {budget: own for budget, own in every.items() if isinstance(own, Analysis)}
    sources = [(source.p, budget) for budget, own in found.items() for source in (own.rows, own.columns, own.cells)]
    detected = iter(p < LEVEL for p in holm([p for p, _ in sources]))
    parts = [
        f"at a budget of {budget}, {_compared(grid, own, [next(detected) for _ in range(3)])}"
        for budget, own in found.items()
    ]
    size = f"{len(grid.rows)} x {len(grid.columns)} models over {listed(list(grid.titles))}"
    power = "whose main effects are means over several models"
    start = f"Factorial design of {size}, sampled like {grid.names[0]}, {power}: "
    return f"{start}{'; '.join(parts)}." if parts else ""


def _compared(grid: Grid, own: Analysis, detected: list[bool]) -> str:
    """The detected sources with their shares of the score's variation, then the others. The order: rows, columns,
    interaction."""
    names = [f"the main effect of {title}" for title in grid.titles] + [f"their {INTERACTION}"]
    texts = [
        f"{name} ({percent(source.share)} of the variation, {p_value(source.p)})"
        for name, source in zip(names, (own.rows, own.columns, own.cells), strict=True)
    ]
    parts = []
    for wanted, words in ((True, ("is", "are")), (False, ("is not", "are not"))):
        chosen = [text for text, found in zip(texts, detected, strict=True) if found is wanted]
        parts += [f"{listed(chosen)} {words[len(chosen) > 1]} detected"] if chosen else []
    return " and ".join(parts)
