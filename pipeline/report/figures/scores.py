"""Figures of scores: against NFE, seconds, the steps of a path or a choice, and one metric against another."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipeline.report import charts
from pipeline.report.charts import NFE, REAL, Axis, Look, chart
from pipeline.report.figures.drawing import (
    MANY_MARKERS,
    MARKERS,
    PALETTE,
    distance_axis,
    drawn_low,
    legend_beside,
    literal,
    minor_label,
    new_figure,
    nfe_axis,
    save,
    spaced,
)
from pipeline.report.statistics import Floor, Interval

APART = 1.12  # the least ratio of neighbouring ticks of NFE
MANY = 8  # the legend of more curves is beside the figure


class Costs(NamedTuple):
    """A horizontal axis in place of NFE: its title, and label -> {nfe: (cost, "curve (NFE)")}."""

    title: str
    points: dict[str, dict[int, tuple[float, str]]]


def curves_figure(
    path: Path,
    curves: dict[str, dict[int, Interval]],
    ylabel: str,
    colours: dict[str, int],
    floor: Floor,
    costs: Costs | None = None,
) -> None:
    """Draw distances against counted NFE, both logarithmic: label -> {nfe: interval}; bands are intervals.

    colours: label -> place in the colour-blind-safe palette. An NFE of 0 is unknown; its value is a
    horizontal line. costs: another cost than NFE.
    """
    axis = _cost_axis(curves, costs)
    many = len(curves) > MANY
    figure, [[axes]] = new_figure((12 if many else 8, 4.8))
    for label, points in curves.items():
        place = colours[label]
        colour, marker = PALETTE[place % 10], MANY_MARKERS[place % len(MANY_MARKERS)]
        if 0 in points:
            axes.axhline(points[0].mean, color=colour, linestyle=":", linewidth=1.8, label=literal(label))
            continue
        x = np.array([costs.points[label][nfe][0] if costs else nfe for nfe in points])
        mean, low, high = (np.array([getattr(p, end) for p in points.values()]) for end in ("mean", "low", "high"))
        axes.plot(x, mean, color=colour, marker=marker, markersize=5, linewidth=1.8, label=literal(label))
        if len(points) == 1:
            axes.errorbar(x, mean, [mean - low, high - mean], color=colour, capsize=3)
        axes.fill_between(x, drawn_low(mean, low), high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label=REAL)
    nfe_axis(axes, axis.ticks, axis.title)
    distance_axis(axes, [p.mean for points in curves.values() for p in points.values()])
    axes.set_ylabel(ylabel)
    if many:
        legend_beside(axes)
    else:
        axes.legend(frameon=True, fontsize=9)
    save(figure, path, _curves_chart(curves, ylabel, colours, floor, axis, costs))


def _cost_axis(curves: dict[str, dict[int, Interval]], costs: Costs | None) -> Axis:
    """The horizontal axis: of counted NFE without costs."""
    if not costs:
        return Axis(NFE, ticks=spaced(sorted({nfe for points in curves.values() for nfe in points if nfe}), APART))
    values = [costs.points[label][nfe][0] for label, points in curves.items() for nfe in points]
    first, last = (math.floor(math.log2(end)) for end in (min(values), max(values)))
    return Axis(costs.title, ticks=[2.0**power for power in range(first, last + 2)])


def _curves_chart(
    curves: dict[str, dict[int, Interval]],
    ylabel: str,
    colours: dict[str, int],
    floor: Floor,
    axis: Axis,
    costs: Costs | None,
) -> dict[str, Any]:
    points, looks = [], {}
    for label, own in curves.items():
        place = colours[label]
        looks[label] = Look(place, "" if 0 in own else MANY_MARKERS[place % len(MANY_MARKERS)])
        if 0 in own:
            points.append(charts.level(label, own[0].mean))
        else:
            alone = {"bar": True} if len(own) == 1 else {}
            for nfe, found in own.items():
                x, note = costs.points[label][nfe] if costs else (nfe, "")
                points.append(charts.of_interval(label, x, found, **alone, **({"note": note} if note else {})))
    kind = {"note": "curve (NFE)", "about": charts.POINTS} if costs else {"about": charts.CURVES}
    return chart({"": [*points, charts.floor(floor)]}, looks, axis, Axis(ylabel), **kind)


def front_figure(
    path: Path,
    points: list[tuple[float, float, str]],
    front: list[tuple[float, float, str]],
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw all points (cost, distance, name), with the Pareto front as a labelled line."""
    figure, [[axes]] = new_figure((8, 4.8))
    costs, distances, _ = zip(*points, strict=True)
    axes.scatter(costs, distances, color="0.7", s=18, label="all curves and budgets")
    colour = PALETTE[0]
    x, y, names = zip(*front, strict=True)
    axes.plot(x, y, color=colour, marker="o", markersize=6, drawstyle="steps-post", label="Pareto front")
    for place, name in enumerate(names):
        shift = (6, 10) if place % 2 else (6, -16)
        axes.annotate(literal(name), (x[place], y[place]), xytext=shift, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks(spaced(list(x), 1.25))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    distance_axis(axes, list(distances))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=True, fontsize=9)
    every, best = "all curves and budgets", "Pareto front"
    drawn = [charts.point(every, cost, value, note=name, alone=True) for cost, value, name in points]
    drawn += [charts.point(best, cost, value, note=name) for cost, value, name in front]
    looks = {every: Look(None, "o"), best: Look(0, "o")}
    axis = Axis(xlabel, ticks=spaced(list(x), 1.25))
    save(
        figure, path, chart({"": drawn}, looks, axis, Axis(ylabel), steps=True, note="curve (NFE)", about=charts.POINTS)
    )


def path_figure(path: Path, steps: list[str], lines: dict[str, dict[int, Interval]], ylabel: str, floor: Floor) -> None:
    """Draw distances along the steps of a path: label -> {place of the step: interval}, with gaps for missing ones."""
    figure, [[axes]] = new_figure((max(8.0, 1.1 * len(steps)), 4.8))
    for place, (label, points) in enumerate(lines.items()):
        x = np.arange(len(steps)) + 0.08 * (place - (len(lines) - 1) / 2)
        own = [points.get(i, Interval(math.nan, math.nan, math.nan, 0)) for i in range(len(steps))]
        mean, low, high = (np.array([getattr(p, end) for p in own]) for end in ("mean", "low", "high"))
        bottom = drawn_low(mean, low)
        style = {"color": PALETTE[place % 10], "marker": MARKERS[place % len(MARKERS)], "label": literal(label)}
        axes.errorbar(x, mean, [mean - bottom, high - mean], markersize=6, linewidth=1.8, capsize=3, **style)
    axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label=REAL)
    axes.set_xticks(
        range(len(steps)), [literal(step) for step in steps], rotation=20, ha="right", rotation_mode="anchor"
    )
    axes.set_xlim(-0.4, len(steps) - 0.6)
    distance_axis(axes, [point.mean for points in lines.values() for point in points.values()])
    axes.set_ylabel(ylabel)
    axes.legend(frameon=True, fontsize=9)
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(lines)}
    drawn = [
        charts.of_interval(label, i + 1, found, note=steps[i], bar=True)
        for label, points in lines.items()
        for i, found in points.items()
    ]
    axis = Axis("step", log=False, ticks=range(1, len(steps) + 1), names=steps)
    save(figure, path, chart({"": [*drawn, charts.floor(floor)]}, looks, axis, Axis(ylabel), note="curve"))


def scale_figure(
    path: Path,
    panels: dict[str, dict[str, dict[float, Interval]]],
    xlabel: str,
    ylabel: str,
    floor: Floor,
    log: bool,
) -> None:
    """Draw distances against a choice, panels side by side: title -> {label: {value: interval}}; bars are intervals.

    log: whether the axis of the choice is logarithmic.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    size = (4.4 * len(panels) + 3.2, 4.6)
    figure, row = new_figure(size, 1, len(panels))
    for axes, (title, lines) in zip(row[0], panels.items(), strict=True):
        for label, points in lines.items():
            place = labels.index(label)
            x = np.array(list(points))
            mean, low, high = (np.array([getattr(p, end) for p in points.values()]) for end in ("mean", "low", "high"))
            style = {"color": PALETTE[place % 10], "marker": MARKERS[place % len(MARKERS)], "label": literal(label)}
            bars = [mean - drawn_low(mean, low), high - mean]
            axes.errorbar(x, mean, bars, markersize=5, linewidth=1.6, elinewidth=1, capsize=2, **style)
        axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label=REAL)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(minor_label)
            axes.tick_params(axis="x", which="minor", labelsize=8)
        distance_axis(axes, [p.mean for points in lines.values() for p in points.values()])
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(xlabel)
    row[0][0].set_ylabel(ylabel)
    legend_beside(row[0][-1])
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(labels)}
    drawn = {
        title: [
            *(charts.of_interval(label, x, p, bar=True) for label, points in lines.items() for x, p in points.items()),
            charts.floor(floor),
        ]
        for title, lines in panels.items()
    }
    save(figure, path, chart(drawn, looks, Axis(xlabel, log=log), Axis(ylabel)))


def frontier_figure(
    path: Path, lines: dict[str, dict[float, tuple[Interval, Interval]]], labels: tuple[str, str]
) -> None:
    """Draw one metric against another along a choice: label -> {value: (x, y)}; each point has its value as label."""
    figure, [[axes]] = new_figure((9.2, 4.8))
    for place, (label, points) in enumerate(lines.items()):
        x, y = (np.array([point[i].mean for point in points.values()]) for i in (0, 1))
        colour, marker = PALETTE[place % 10], MARKERS[place % len(MARKERS)]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.4, label=literal(label))
        for value, right, up in zip(points, x, y, strict=True):
            axes.annotate(
                f"{value:g}", (right, up), xytext=(4, 4), textcoords="offset points", fontsize=8, color=colour
            )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    legend_beside(axes)
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(lines)}
    drawn = [
        charts.of_interval(label, x.mean, y, note=f"{value:g}", place=place, bar=True)
        for label, points in lines.items()
        for place, (value, (x, y)) in enumerate(points.items())
    ]
    x_axis, y_axis = (Axis(label, log=False) for label in labels)
    save(figure, path, chart({"": drawn}, looks, x_axis, y_axis, note="scale"))


def residuals_figure(path: Path, points: dict[str, list[tuple[float, float]]], xlabel: str) -> None:
    """Draw the ratio of each repetition to its mean against the mean: label -> [(mean, ratio)], both logarithmic."""
    figure, [[axes]] = new_figure((9.2, 4.2))
    for place, (label, own) in enumerate(points.items()):
        x, y = np.array(own).reshape(-1, 2).T
        axes.plot(x, y, MARKERS[place % len(MARKERS)], color=PALETTE[place % 10], markersize=4, label=label)
    axes.axhline(1, color="0.4", linestyle="--", linewidth=1.2)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(minor_label)
    axes.tick_params(which="minor", labelsize=8)
    ylabel = "repetition / mean"
    axes.set_xlabel(f"mean {xlabel}")
    axes.set_ylabel(ylabel)
    legend_beside(axes)
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(points)}
    drawn = [charts.point(label, x, y, alone=True) for label, own in points.items() for x, y in own]
    save(figure, path, chart({"": drawn}, looks, Axis(f"mean {xlabel}"), Axis(ylabel)))


class Place(NamedTuple):
    """A point of a scatter plot with both of its intervals."""

    x: Interval
    y: Interval


def scatter_figure(path: Path, places: dict[str, Place], labels: tuple[str, str]) -> None:
    """Draw one measure against another, label -> point; bars are intervals."""
    figure, [[axes]] = new_figure((9.2, 4.8))
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(places)}
    for (label, found), look in zip(places.items(), looks.values(), strict=True):
        bars = [None if math.isnan(own.low) else own.half_width for own in (found.y, found.x)]
        style = {"color": look.hue, "marker": look.marker, "label": literal(label)}
        axes.errorbar(found.x.mean, found.y.mean, *bars, linestyle="none", markersize=6, elinewidth=1, **style)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    legend_beside(axes)
    drawn = [charts.of_interval(label, own.x.mean, own.y, bar=True, alone=True) for label, own in places.items()]
    x_axis, y_axis = (Axis(label, log=False) for label in labels)
    save(figure, path, chart({"": drawn}, looks, x_axis, y_axis))
