"""Figures of many lines: solvers on exact denoisers, quantities by noise level, and noise distributions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from pipeline.report import charts
from pipeline.report.charts import NFE, Axis, Look, chart
from pipeline.report.figures.drawing import (
    MANY_MARKERS,
    MARKERS,
    PALETTE,
    distance_axis,
    drawn_low,
    legend_beside,
    literal,
    new_figure,
    nfe_axis,
    save,
    sigma_axis,
)
from pipeline.report.statistics import Floor

EVERY = 3  # a chart shows every third point of a density


class Line(NamedTuple):
    """A line: its points (x, value, standard deviation or 0) by x, its place among all lines, and its style."""

    points: Sequence[tuple[float, float, float]]
    place: int
    dashed: bool = False


def many_lines_figure(
    path: Path, panels: dict[str, dict[str, Line]], ylabel: str, floor: Floor | None = None, note: str = ""
) -> None:
    """Draw panels side by side, title -> {label: line}, with logarithmic axes and one legend on the right.

    No two of a hundred lines share both colour and marker. floor: a grey line; note: the legend's title.
    """
    handles: dict[str, Artist] = {}
    size = (2.6 * len(panels) + 5.8, 5.8)
    figure, row = new_figure(size, 1, len(panels))
    for axes, (title, lines) in zip(row[0], panels.items(), strict=True):
        for label, line in lines.items():
            handles[label] = _line(axes, label, line, PALETTE[line.place % 10])
        if floor:
            handles["exact samples"] = axes.axhline(floor.mean, color="0.5", linewidth=2.5, label="exact samples")
            axes.axhspan(floor.mean - floor.sd, floor.mean + floor.sd, color="0.5", alpha=0.2, linewidth=0)
        costs = [nfe for line in lines.values() for nfe, *_ in line.points]
        nfe_axis(axes, [2**k for k in range(1, 20) if min(costs, default=2) <= 2**k <= max(costs, default=2)])
        distance_axis(axes, [value for line in lines.values() for _, value, _ in line.points])
        axes.set_title(title, fontsize=11)
    row[0][0].set_ylabel(ylabel)
    places = {label: line.place for lines in panels.values() for label, line in lines.items()}
    order = sorted(handles, key=lambda label: places.get(label, len(places)))
    row[0][-1].legend(
        [handles[label] for label in order],
        [literal(label) for label in order],
        title=note,
        title_fontsize=9,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        handlelength=3,
    )
    save(figure, path, _many_lines_chart(panels, ylabel, floor))


def _many_lines_chart(panels: dict[str, dict[str, Line]], ylabel: str, floor: Floor | None) -> dict[str, Any]:
    looks: dict[str, Look] = {}
    drawn = {}
    for title, lines in panels.items():
        looks |= {label: Look(own.place, MANY_MARKERS[own.place % len(MANY_MARKERS)]) for label, own in lines.items()}
        drawn[title] = _points(lines, bar=True) + ([charts.floor(floor, "exact samples")] if floor else [])
    looks = dict(sorted(looks.items(), key=lambda item: item[1].colour or 0))
    costs = [nfe for lines in panels.values() for own in lines.values() for nfe, *_ in own.points]
    ticks = [2**k for k in range(1, 20) if min(costs, default=2) <= 2**k <= max(costs, default=2)]
    return chart(drawn, looks, Axis(NFE, ticks=ticks), Axis(ylabel), band="mean ± sd")


def _points(lines: dict[str, Line], bar: bool) -> list[charts.Point]:
    """The chart points of lines, with standard deviations as bars or as bands."""
    style: dict[str, Any] = {"bar": True} if bar else {}
    return [
        charts.point(label, x, value, value - sd, value + sd, **style | ({"dashed": True} if own.dashed else {}))
        for label, own in lines.items()
        for x, value, sd in own.points
    ]


def _line(axes: Axes, label: str, line: Line, colour: tuple[float, float, float]) -> Artist:
    nfe, values, deviations = (np.array(part) for part in zip(*line.points, strict=True))
    [drawn] = axes.plot(
        nfe,
        values,
        color=colour,
        marker=MANY_MARKERS[line.place % len(MANY_MARKERS)],
        linestyle="--" if line.dashed else "-",
        markersize=5.5,
        linewidth=1.5,
        label=literal(label),
    )
    if deviations.any():
        axes.errorbar(nfe, values, deviations, color=colour, linestyle="none", linewidth=1, alpha=0.6)
    return drawn


def noise_levels_figure(path: Path, panels: dict[str, dict[str, list[Line]]], ylabel: str, note: str) -> None:
    """Draw quantities against sigma, on equal logarithmic axes: two panels per row, title -> {label: lines}.

    A label's lines share a colour; bands are standard deviations. Each panel has its legend, with title
    `note`, on the right. The axis ends near the solid lines.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    size = (6.2 * columns + (columns == 1) * 2.2, 3.3 * rows + (rows == 1) * 1.2)
    figure, grid = new_figure(size, rows, columns)
    limits = _limits([line for lines in panels.values() for own in lines.values() for line in own])
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for label, own in lines.items():
            for i, line in enumerate(own):
                _level_line(axes, line, None if i else label)
        sigma_axis(axes)
        distance_axis(axes, list(limits))
        axes.set_ylim(limits)
        axes.set_title(literal(title), fontsize=11)
        legend_beside(axes, note)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for first in grid[:, 0]:
        first.set_ylabel(ylabel)
    looks = {
        label: Look(own[0].place, MARKERS[own[0].place % len(MARKERS)])
        for lines in panels.values()
        for label, own in lines.items()
    }
    drawn = {
        title: [p for label, own in lines.items() for line in own for p in _points({label: line}, bar=False)]
        for title, lines in panels.items()
    }
    axis = Axis(ylabel, ends=limits)
    save(figure, path, chart(drawn, looks, Axis("sigma"), axis, band="mean ± sd", about=charts.MODELS))


def _limits(lines: list[Line]) -> tuple[float, float]:
    """The ends of an axis with all solid lines, and dashed lines up to three times further out."""
    every = [value for line in lines for _, value, _ in line.points]
    solid = [value for line in lines if not line.dashed for _, value, _ in line.points] or every
    return max(min(every), min(solid) / 3) / 1.2, min(max(every), max(solid) * 3) * 1.2


def _level_line(axes: Axes, line: Line, label: str | None) -> None:
    sigma, values, deviations = (np.array(part) for part in zip(*line.points, strict=True))
    colour = PALETTE[line.place % 10]
    axes.plot(
        sigma,
        values,
        color=colour,
        marker="" if line.dashed else MARKERS[line.place % len(MARKERS)],
        linestyle="--" if line.dashed else "-",
        alpha=0.7 if line.dashed else 1,
        zorder=1.9 if line.dashed else 2,
        markersize=4,
        linewidth=1.2 if line.dashed else 1.6,
        label=label and literal(label),
    )
    axes.fill_between(
        sigma, drawn_low(values, values - deviations), values + deviations, color=colour, alpha=0.2, linewidth=0
    )


def densities_figure(path: Path, lines: dict[str, Line]) -> None:
    """Draw densities over ln sigma against sigma: label -> line; lines of discrete distributions are dashed."""
    figure, [[axes]] = new_figure((9.5, 4.4))
    for label, line in lines.items():
        sigma, density, _ = zip(*line.points, strict=True)
        style = "--" if line.dashed else "-" if line.place < len(PALETTE) else "-."
        [drawn] = axes.plot(sigma, density, style, color=PALETTE[line.place % 10], linewidth=1.8, label=literal(label))
        drawn.set_zorder(2.1 if line.dashed else 2)  # a discrete distribution may coincide with its continuous one
    sigma_axis(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("density over ln sigma")
    legend_beside(axes, "dashed: discrete" if any(line.dashed for line in lines.values()) else "")
    looks = {label: Look(line.place) for label, line in lines.items()}
    thinned = {label: line._replace(points=line.points[::EVERY]) for label, line in lines.items()}
    save(
        figure,
        path,
        chart({"": _points(thinned, bar=False)}, looks, Axis("sigma"), Axis("density over ln sigma", log=False)),
    )


def shares_figure(path: Path, lines: dict[str, Line], ylabel: str) -> None:
    """Draw parts of a quantity against sigma, label -> line, on a linear vertical axis; bands are sd."""
    figure, [[axes]] = new_figure((9.5, 4.4))
    for label, line in lines.items():
        _level_line(axes, line, label)
    sigma_axis(axes)
    axes.set_ylabel(ylabel)
    legend_beside(axes)
    looks = {label: Look(line.place, MARKERS[line.place % len(MARKERS)]) for label, line in lines.items()}
    points, y = _points(lines, bar=False), Axis(ylabel, log=False)
    save(figure, path, chart({"": points}, looks, Axis("sigma"), y, band="mean ± sd", about=charts.MODELS))
