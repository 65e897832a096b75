"""Figures of posterior samplers: distance against cost, calibration, and draws beside exact ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipeline.report import charts
from pipeline.report.charts import Axis, Look, chart
from pipeline.report.figures.drawing import (
    LEGEND_LINES,
    MANY_MARKERS,
    PALETTE,
    distance_axis,
    literal,
    new_figure,
    save,
    spaced,
)
from pipeline.report.figures.lines import Line
from pipeline.report.statistics import Floor

FLOOR, IDEAL = "exact draws", "nominal"
MARGIN = 1.15  # half width of the drawn plane, relative to the data
COLUMNS = 2  # panels side by side


def distances_figure(
    path: Path, panels: dict[str, dict[str, Line]], floors: dict[str, float], labels: tuple[str, str]
) -> None:
    """Draw distances against cost, on logarithmic axes: title -> {label: line}.

    floors: title -> the distance of exact draws. The vertical axis of all panels ends near the solid lines.
    """
    figure, grid = _panels(panels)
    limits = _limits([line for lines in panels.values() for line in lines.values()], list(floors.values()))
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for label, line in lines.items():
            _line(axes, label, line)
        if title in floors:
            axes.axhline(floors[title], color="0.4", linestyle=":", linewidth=1.8, label=FLOOR)
        costs = sorted({x for line in lines.values() for x, *_ in line.points})
        axes.set_xscale("log")
        axes.set_xticks(spaced(costs, 1.6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        distance_axis(axes, list(limits))
        axes.set_ylim(limits)
        _titled(axes, title, labels)
    _legend(figure, grid, len(panels))
    drawn = {
        title: [*_points(lines), *([charts.floor(Floor(floors[title], 0), FLOOR)] if title in floors else [])]
        for title, lines in panels.items()
    }
    save(figure, path, chart(drawn, _looks(panels), Axis(labels[0]), Axis(labels[1], ends=limits)))


def calibration_figure(path: Path, panels: dict[str, dict[str, Line]]) -> None:
    """Draw observed coverage against the level of central intervals: title -> {label: line}. The diagonal is exact."""
    labels = ("level of the central interval", "share of truths inside")
    figure, grid = _panels(panels)
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for label, line in lines.items():
            _line(axes, label, line)
        axes.plot([0, 1], [0, 1], color="0.4", linestyle=":", linewidth=1.8, label=IDEAL)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _titled(axes, title, labels)
    _legend(figure, grid, len(panels))
    drawn = {
        title: [*_points(lines), charts.point(IDEAL, 0, 0, dashed=True), charts.point(IDEAL, 1, 1, dashed=True)]
        for title, lines in panels.items()
    }
    x, y = (Axis(label, log=False) for label in labels)
    save(figure, path, chart(drawn, _looks(panels), x, y))


def _limits(lines: list[Line], floors: list[float]) -> tuple[float, float]:
    """The ends of an axis with all solid lines and floors, and dashed lines up to twice further out."""
    every = [y for line in lines for _, y, _ in line.points]
    solid = [*([y for line in lines if not line.dashed for _, y, _ in line.points] or every), *floors]
    return max(min([*every, *floors]), min(solid) / 2) / 1.15, min(max(every), 2 * max(solid)) * 1.15


def _panels(panels: Mapping[str, object]) -> tuple[Figure, list[Axes]]:
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure, grid = new_figure((4.6 * columns + 3.2, 3.9 * rows + (rows == 1) * 0.9), rows, columns)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure, list(grid.flat[: len(panels)])


def _line(axes: Axes, label: str, line: Line) -> None:
    x, y, _ = zip(*line.points, strict=True)
    axes.plot(
        x,
        y,
        color=PALETTE[line.place % 10],
        marker=MANY_MARKERS[line.place % len(MANY_MARKERS)],
        linestyle="--" if line.dashed else "-",
        alpha=0.6 if line.dashed else 1,
        markersize=4.5,
        linewidth=1.1 if line.dashed else 1.7,
        label=literal(label),
    )


def _titled(axes: Axes, title: str, labels: tuple[str, str]) -> None:
    axes.set_title(literal(title), fontsize=11)
    axes.set_xlabel(labels[0], fontsize=10)
    axes.set_ylabel(labels[1], fontsize=10)
    axes.tick_params(labelsize=9)


def _legend(figure: Figure, grid: list[Axes], panels: int) -> None:
    """One legend of all panels on the right."""
    handles = dict[str, Artist]()
    for axes in grid:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    last = [label for label in handles if label in (FLOOR, IDEAL)]
    order = [*(label for label in handles if label not in last), *last]
    figure.legend(
        handles=[handles[label] for label in order],
        labels=order,
        ncols=1 + (len(order) - 1) // (LEGEND_LINES * (1 + (panels > COLUMNS))),
        fontsize=8,
        handlelength=3,
        loc="outside right upper",
    )


def _looks(panels: dict[str, dict[str, Line]]) -> dict[str, Look]:
    return {
        label: Look(line.place, MANY_MARKERS[line.place % len(MANY_MARKERS)])
        for lines in panels.values()
        for label, line in lines.items()
    }


def _points(lines: dict[str, Line]) -> list[charts.Point]:
    return [
        charts.point(label, x, y, **({"dashed": True} if line.dashed else {}))
        for label, line in lines.items()
        for x, y, _ in line.points
    ]


class Draws(NamedTuple):
    """A panel of draws in the plane, (P, S, 2)."""

    title: str
    draws: np.ndarray


def planes_figure(path: Path, cloud: np.ndarray, rows: dict[str, tuple[np.ndarray, list[Draws]]]) -> None:
    """Draw points given measurements: label of a measurement -> truths (P, 2) and its panels. cloud: the data (N, 2).

    A colour is a problem: a cross is its truth, dots are draws.
    """
    columns = max(len(panels) for _, panels in rows.values())
    figure, axes = new_figure((1.9 * columns + 0.4, 2.1 * len(rows)), len(rows), columns, style="white")
    reach = MARGIN * float(np.abs(cloud).max())
    for line, (label, (truths, panels)) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        line[0].set_ylabel(literal(label), fontsize=8)
        for axis, panel in zip(line, panels, strict=False):
            axis.scatter(*cloud.T, color="0.85", s=1, linewidths=0, rasterized=True)
            for place, (truth, draws) in enumerate(zip(truths, panel.draws, strict=False)):
                colour = PALETTE[place % 10]
                axis.scatter(*draws.T, color=colour, s=14, linewidths=0, alpha=0.8)
                axis.scatter(*truth, color=colour, marker="x", s=45, linewidths=1.8)
            outside = int((~(np.abs(panel.draws) <= reach).all(-1)).sum())
            axis.set_title(literal(panel.title) + (f", {outside} outside" if outside else ""), fontsize=7.5)
    save(figure, path)


def grid_figure(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Draw images by problem (rows) and kind (columns): title -> images (P, C, H, W) in [-1, 1]."""
    count = max(len(images) for images in columns.values())
    figure, axes = new_figure((0.85 * len(columns) + 0.3, 0.95 * count + 0.6), count, len(columns), style="white")
    for place, (title, images) in enumerate(columns.items()):
        for axis, image in zip(axes[:, place], images, strict=False):
            picture = np.clip(np.nan_to_num((image.transpose(1, 2, 0) + 1) / 2), 0, 1)
            flat = picture.shape[2] == 1
            axis.imshow(picture.squeeze(2) if flat else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for axis in axes[:, place]:
            axis.set_axis_off()
        axes[0, place].set_title(literal(title), fontsize=6.5)
    save(figure, path, photos=True)
