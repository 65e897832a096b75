"""The report's figures, as files whose bytes depend on the results alone: PNG, SVG, and a chart where there is one."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from pipeline.common.files import write_bytes
from pipeline.report import charts
from pipeline.report.charts import Axis, Look, chart
from pipeline.report.results import Floor, Interval

MARKERS = "osD^vP*Xhd"
MANY_MARKERS = (*MARKERS, "<", ">", "p")  # 13 of them: with 10 colours, each pair returns after 130 lines
MANY = 8  # more curves have their legend beside the figure
LEGEND_LINES = 25  # of such a legend's column
DPI = 130
EVERY = 3  # of the points of a density, of which a chart shows this one
NFE = "number of function evaluations (NFE), counted"
MARGIN = 1.15  # of the plane around points


# In SVG, text stays text and identifiers depend on what they name.
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "figure"}


def _save(figure: Figure, path: Path, drawn: dict[str, Any] | None = None, photos: bool = False) -> None:
    """Write a figure as PNG, as SVG beside it, and its chart as JSON, where it has one.

    photos: whether there are images in it, which 256 colours would not show as they are.
    """
    # The canvases' own printing draws once, where savefig would draw twice.
    picture, vectors = io.BytesIO(), io.BytesIO()
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    figure.set_layout_engine("none")  # all stays where it has been put for the first file
    FigureCanvasSVG(figure).print_svg(vectors, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    write_bytes(path, picture.getvalue() if photos else _few_colours(picture))
    write_bytes(path.with_suffix(".svg"), vectors.getvalue())
    if drawn is not None:
        text = json.dumps(drawn, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        write_bytes(path.with_suffix(".json"), (text + "\n").encode())


def _few_colours(picture: io.BytesIO) -> bytes:
    """A PNG with a palette, about a third of the size: lines and letters need no more than its colours."""
    found = io.BytesIO()
    image = Image.open(picture).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(found, format="PNG", optimize=True)
    return found.getvalue()


def plain(text: str) -> str:
    """Text that matplotlib draws letter by letter: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def curves_figure(
    path: Path,
    curves: dict[str, dict[int, Interval]],
    ylabel: str,
    colours: dict[str, int],
    floor: Floor,
) -> None:
    """Distance against counted NFE, both logarithmic: label -> {nfe: interval}; bands are the intervals.

    colours: label -> place in the colour-blind-safe palette. An NFE of 0 is unknown: a level is drawn instead.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    palette = sns.color_palette("colorblind", 10)
    many = len(curves) > MANY
    figure, axes = plt.subplots(figsize=(12 if many else 8, 4.8), layout="constrained")
    for label, points in curves.items():
        place = colours[label]
        colour, marker = palette[place % 10], MANY_MARKERS[place % len(MANY_MARKERS)]
        if 0 in points:
            axes.axhline(points[0].mean, color=colour, linestyle=":", linewidth=1.8, label=plain(label))
            continue
        nfe = np.array(list(points))
        mean, low, high = (np.array([getattr(p, end) for p in points.values()]) for end in ("mean", "low", "high"))
        axes.plot(nfe, mean, color=colour, marker=marker, markersize=5, linewidth=1.8, label=plain(label))
        if len(points) == 1:
            axes.errorbar(nfe, mean, [mean - low, high - mean], color=colour, capsize=3)
        axes.fill_between(nfe, _drawn_low(mean, low), high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label="real against real")
    _nfe_axis(axes, _spaced(sorted({nfe for points in curves.values() for nfe in points if nfe}), 1.12))
    _distance_axis(axes, [p.mean for points in curves.values() for p in points.values()])
    axes.set_ylabel(ylabel)
    if many:
        _legend_beside(axes)
    else:
        axes.legend(frameon=True, fontsize=9)
    _save(figure, path, _curves_chart(curves, ylabel, colours, floor))


def _curves_chart(
    curves: dict[str, dict[int, Interval]], ylabel: str, colours: dict[str, int], floor: Floor
) -> dict[str, Any]:
    points, looks = [], {}
    for label, own in curves.items():
        place = colours[label]
        looks[label] = Look(place, "" if 0 in own else MANY_MARKERS[place % len(MANY_MARKERS)])
        if 0 in own:
            points.append(charts.level(label, own[0].mean))
        else:
            alone = {"bar": True} if len(own) == 1 else {}
            points += [charts.of_interval(label, nfe, found, **alone) for nfe, found in own.items()]
    ticks = _spaced(sorted({nfe for own in curves.values() for nfe in own if nfe}), 1.12)
    return chart({"": [*points, charts.floor(floor)]}, looks, Axis(NFE, ticks=ticks), Axis(ylabel), about=charts.CURVES)


def _drawn_low(mean: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The lower ends of bands and bars as they are drawn, since a logarithmic axis has no 0."""
    return np.where(mean > 0, np.maximum(low, mean / 20), low)


def _nfe_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis of counted NFE."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(NFE)


def _distance_axis(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis of distances; linear near 0 where a bias-corrected one is not above it."""
    above = [value for value in values if value > 0]
    if len(above) == len(values):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(above, default=1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(_minor)
    axes.tick_params(axis="y", which="minor", labelsize=8)


def _minor(value: float, _: float) -> str:
    """The label of a logarithmic axis's minor tick: at 2 and 5."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _spaced(ticks: Sequence[float], ratio: float) -> list[float]:
    """Those of ascending ticks that are so much larger than the one kept before; always the last."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or kept[-1] / tick > ratio:
            kept.append(tick)
    return kept[::-1]


def front_figure(
    path: Path,
    points: list[tuple[float, float, str]],
    front: list[tuple[float, float, str]],
    xlabel: str,
    ylabel: str,
) -> None:
    """All points (cost, distance, name), and those of the Pareto front, joined and named."""
    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    costs, distances, _ = zip(*points, strict=True)
    axes.scatter(costs, distances, color="0.7", s=18, label="all curves and budgets")
    colour = sns.color_palette("colorblind")[0]
    x, y, names = zip(*front, strict=True)
    axes.plot(x, y, color=colour, marker="o", markersize=6, drawstyle="steps-post", label="Pareto front")
    for place, name in enumerate(names):
        shift = (6, 10) if place % 2 else (6, -16)
        axes.annotate(plain(name), (x[place], y[place]), xytext=shift, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks(_spaced(list(x), 1.25))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _distance_axis(axes, list(distances))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=True, fontsize=9)
    every, best = "all curves and budgets", "Pareto front"
    drawn = [charts.point(every, cost, value, note=name, alone=True) for cost, value, name in points]
    drawn += [charts.point(best, cost, value, note=name) for cost, value, name in front]
    looks = {every: Look(None, "o"), best: Look(0, "o")}
    axis = Axis(xlabel, ticks=_spaced(list(x), 1.25))
    _save(
        figure, path, chart({"": drawn}, looks, axis, Axis(ylabel), steps=True, note="curve (NFE)", about=charts.POINTS)
    )


class Line(NamedTuple):
    """One of many lines of a figure: (x, value, standard deviation or 0) by x, its place among all, its style."""

    points: Sequence[tuple[float, float, float]]
    place: int
    dashed: bool = False


def many_lines_figure(
    path: Path, panels: dict[str, dict[str, Line]], ylabel: str, floor: Floor | None = None, note: str = ""
) -> None:
    """Panels side by side, title -> {label: line}, both axes logarithmic, with one legend on the right.

    No two of a hundred lines share both colour and marker. floor: a grey line; note: the legend's title.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    palette, handles = sns.color_palette("colorblind", 10), {}
    size = (2.6 * len(panels) + 5.8, 5.8)
    figure, row = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (title, lines) in zip(row[0], panels.items(), strict=True):
        for label, line in lines.items():
            handles[label] = _line(axes, label, line, palette[line.place % 10])
        if floor:
            handles["exact samples"] = axes.axhline(floor.mean, color="0.5", linewidth=2.5, label="exact samples")
            axes.axhspan(floor.mean - floor.sd, floor.mean + floor.sd, color="0.5", alpha=0.2, linewidth=0)
        costs = [nfe for line in lines.values() for nfe, *_ in line.points]
        _nfe_axis(axes, [2**k for k in range(1, 20) if min(costs, default=2) <= 2**k <= max(costs, default=2)])
        _distance_axis(axes, [value for line in lines.values() for _, value, _ in line.points])
        axes.set_title(title, fontsize=11)
    row[0][0].set_ylabel(ylabel)
    places = {label: line.place for lines in panels.values() for label, line in lines.items()}
    order = sorted(handles, key=lambda label: places.get(label, len(places)))
    row[0][-1].legend(
        [handles[label] for label in order],
        [plain(label) for label in order],
        title=note,
        title_fontsize=9,
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        handlelength=3,
    )
    _save(figure, path, _many_lines_chart(panels, ylabel, floor))


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
    """The points of lines with a standard deviation on either side, drawn as bars or as bands."""
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
        label=plain(label),
    )
    if deviations.any():
        axes.errorbar(nfe, values, deviations, color=colour, linestyle="none", linewidth=1, alpha=0.6)
    return drawn


def noise_levels_figure(path: Path, panels: dict[str, dict[str, list[Line]]], ylabel: str, note: str) -> None:
    """Quantities against sigma, all axes logarithmic and the same: panels two a row, title -> {label: its lines}.

    A label's lines share a colour; bands are standard deviations. Beside each panel stands its legend, titled note. The
    axis ends not far outside the solid lines.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    size = (6.2 * columns + (columns == 1) * 2.2, 3.3 * rows + (rows == 1) * 1.2)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    limits = _limits([line for lines in panels.values() for own in lines.values() for line in own])
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for label, own in lines.items():
            for i, line in enumerate(own):
                _level_line(axes, line, None if i else label)
        _sigma_axis(axes)
        _distance_axis(axes, list(limits))
        axes.set_ylim(limits)
        axes.set_title(plain(title), fontsize=11)
        _legend_beside(axes, note)
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
    _save(figure, path, chart(drawn, looks, Axis("sigma"), axis, band="mean ± sd", about=charts.MODELS))


def _limits(lines: list[Line]) -> tuple[float, float]:
    """The ends of an axis that holds all solid lines, and dashed ones up to three times further out."""
    every = [value for line in lines for _, value, _ in line.points]
    solid = [value for line in lines if not line.dashed for _, value, _ in line.points] or every
    return max(min(every), min(solid) / 3) / 1.2, min(max(every), max(solid) * 3) * 1.2


def _level_line(axes: Axes, line: Line, label: str | None) -> None:
    sigma, values, deviations = (np.array(part) for part in zip(*line.points, strict=True))
    colour = sns.color_palette("colorblind", 10)[line.place % 10]
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
        label=label and plain(label),
    )
    axes.fill_between(
        sigma, _drawn_low(values, values - deviations), values + deviations, color=colour, alpha=0.2, linewidth=0
    )


def _sigma_axis(axes: Axes) -> None:
    """A logarithmic axis of noise levels."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("sigma")


def _legend_beside(axes: Axes, note: str = "") -> None:
    """A legend to the right of the axes, in as many columns as their height asks for."""
    axes.legend(
        ncols=1 + (len(axes.get_legend_handles_labels()[1]) - 1) // LEGEND_LINES,
        title=note,
        title_fontsize=9,
        alignment="left",
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
    )


def densities_figure(path: Path, lines: dict[str, Line]) -> None:
    """Densities over ln sigma against sigma: label -> line, those of discrete distributions dashed."""
    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(figsize=(9.5, 4.4), layout="constrained")
    palette = sns.color_palette("colorblind", 10)
    for label, line in lines.items():
        sigma, density, _ = zip(*line.points, strict=True)
        style = "--" if line.dashed else "-" if line.place < len(palette) else "-."
        [drawn] = axes.plot(sigma, density, style, color=palette[line.place % 10], linewidth=1.8, label=plain(label))
        drawn.set_zorder(2.1 if line.dashed else 2)  # a discrete one may lie on what it was made from
    _sigma_axis(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("density over ln sigma")
    _legend_beside(axes, "dashed: discrete" if any(line.dashed for line in lines.values()) else "")
    looks = {label: Look(line.place) for label, line in lines.items()}
    thinned = {label: line._replace(points=line.points[::EVERY]) for label, line in lines.items()}
    _save(
        figure,
        path,
        chart({"": _points(thinned, bar=False)}, looks, Axis("sigma"), Axis("density over ln sigma", log=False)),
    )


def path_figure(path: Path, steps: list[str], lines: dict[str, dict[int, Interval]], ylabel: str, floor: Floor) -> None:
    """Distance along the steps of a path: label -> {place among the steps: interval}, a gap where there is none."""
    sns.set_theme(style="whitegrid", context="notebook")
    palette = sns.color_palette("colorblind", 10)
    figure, axes = plt.subplots(figsize=(max(8.0, 1.1 * len(steps)), 4.8), layout="constrained")
    for place, (label, points) in enumerate(lines.items()):
        x = np.arange(len(steps)) + 0.08 * (place - (len(lines) - 1) / 2)
        own = [points.get(i, Interval(math.nan, math.nan, math.nan, 0)) for i in range(len(steps))]
        mean, low, high = (np.array([getattr(p, end) for p in own]) for end in ("mean", "low", "high"))
        bottom = _drawn_low(mean, low)
        style = {"color": palette[place % 10], "marker": MARKERS[place % len(MARKERS)], "label": plain(label)}
        axes.errorbar(x, mean, [mean - bottom, high - mean], markersize=6, linewidth=1.8, capsize=3, **style)
    axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label="real against real")
    axes.set_xticks(range(len(steps)), [plain(step) for step in steps], rotation=20, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.4, len(steps) - 0.6)
    _distance_axis(axes, [point.mean for points in lines.values() for point in points.values()])
    axes.set_ylabel(ylabel)
    axes.legend(frameon=True, fontsize=9)
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(lines)}
    drawn = [
        charts.of_interval(label, i + 1, found, note=steps[i], bar=True)
        for label, points in lines.items()
        for i, found in points.items()
    ]
    axis = Axis("step", log=False, ticks=range(1, len(steps) + 1), names=steps)
    _save(figure, path, chart({"": [*drawn, charts.floor(floor)]}, looks, axis, Axis(ylabel), note="curve"))


class HeatMap(NamedTuple):
    """Values (rows, columns), NaN where there is none, and what stands in each cell."""

    values: np.ndarray
    texts: list[list[str]]


def heat_figure(
    path: Path,
    panels: dict[str, HeatMap],
    levels: tuple[list[str], list[str]],
    titles: tuple[str, str],
    label: str,
) -> None:
    """Heat maps side by side, title -> map; levels and titles: of rows, then columns. The darker, the higher.

    Colours are in proportion to logarithms, each panel's its own; linear where a value is not above 0.
    """
    sns.set_theme(style="white", context="notebook")
    rows, columns = ([plain(level).replace(", ", ",\n") for level in own] for own in levels)
    size = (len(panels) * (1.15 * len(columns) + 0.4) + 2.2, 0.8 * len(rows) + 2.4)
    figure, line = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, (title, panel) in zip(line[0], panels.items(), strict=True):
        shades = np.log(panel.values) if np.nanmin(panel.values) > 0 else panel.values
        low, high = np.nanmin(shades), np.nanmax(shades)
        axes.set_facecolor("0.85")
        axes.imshow(shades, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
        for (i, j), shade in np.ndenumerate(shades):
            colour = "white" if shade > (low + high) / 2 else "black"
            axes.text(j, i, plain(panel.texts[i][j]), color=colour, ha="center", va="center", fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set_xlabel(titles[1], fontsize=11)
        axes.set_title(title, fontsize=11)
    line[0][0].set_ylabel(titles[0], fontsize=11)
    figure.suptitle(label, fontsize=12)
    _save(figure, path)


def tile(images: np.ndarray, columns: int = 4) -> np.ndarray:
    """images (n, C, H, W), uint8, as one picture, `columns` wide, with a grey line of one pixel between them."""
    rows = -(-len(images) // columns)
    c, h, w = images.shape[1:]
    picture = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        picture[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    return picture


def samples_figure(path: Path, grid: dict[str, dict[int, np.ndarray]]) -> None:
    """Samples by curve (rows) and NFE (columns): label -> {nfe: images (n, C, H, W), uint8} of the same noise."""
    sns.set_theme(style="white", context="notebook")
    columns = max(len(cells) for cells in grid.values())
    figure, axes = plt.subplots(
        len(grid), columns, figsize=(1.4 * columns + 0.5, 1.65 * len(grid)), squeeze=False, layout="constrained"
    )
    for line, (label, cells) in zip(axes, grid.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            sns.despine(ax=axis, left=True, bottom=True)
        line[0].set_ylabel(plain(label), fontsize=8)
        for axis, (nfe, images) in zip(line, cells.items(), strict=False):
            picture = tile(images)
            axis.imshow(
                picture.squeeze(2) if picture.shape[2] == 1 else picture,
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest",
            )
            axis.set_title(f"NFE {nfe}", fontsize=8)
    _save(figure, path, photos=True)


def points_figure(path: Path, real: np.ndarray, grid: dict[str, dict[int, np.ndarray]]) -> None:
    """The data, (N, 2), then samples by curve (rows) and NFE (columns): label -> {nfe: points (n, 2)}.

    As many of the data are drawn as of the samples, so that both look equally dense, and all panels show the same part
    of the plane: that of the data. How many samples lie outside of it stands above a panel.
    """
    sns.set_theme(style="white", context="notebook")
    columns = 1 + max(len(cells) for cells in grid.values())
    figure, axes = plt.subplots(
        len(grid), columns, figsize=(1.5 * columns + 0.5, 1.7 * len(grid)), squeeze=False, layout="constrained"
    )
    reach = MARGIN * np.abs(real).max()
    style = {"s": 1.5, "linewidths": 0, "rasterized": True}  # thousands of points: an image in SVG too
    for line, (label, cells) in zip(axes, grid.items(), strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        for axis in line[1 + len(cells) :]:
            axis.set_axis_off()
        count = max(len(points) for points in cells.values())
        line[0].scatter(*real[:count].T, color="0.35", **style)
        line[0].set_title("data", fontsize=8)
        line[0].set_ylabel(plain(label), fontsize=8)
        for axis, (nfe, points) in zip(line[1:], cells.items(), strict=False):
            axis.scatter(*points.T, color=sns.color_palette("colorblind")[0], **style)
            outside = int((np.abs(points) > reach).any(1).sum())
            axis.set_title(f"NFE {nfe}" + (f", {outside} outside" if outside else ""), fontsize=8)
    _save(figure, path)


def scale_figure(
    path: Path,
    panels: dict[str, dict[str, dict[float, Interval]]],
    xlabel: str,
    ylabel: str,
    floor: Floor,
    log: bool,
) -> None:
    """Distance against a choice, panels side by side: title -> {label: {value: interval}}; bars are intervals.

    log: whether the value's axis is logarithmic.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    palette = sns.color_palette("colorblind", 10)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    size = (4.4 * len(panels) + 3.2, 4.6)
    figure, row = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (title, lines) in zip(row[0], panels.items(), strict=True):
        for label, points in lines.items():
            place = labels.index(label)
            x = np.array(list(points))
            mean, low, high = (np.array([getattr(p, end) for p in points.values()]) for end in ("mean", "low", "high"))
            style = {"color": palette[place % 10], "marker": MARKERS[place % len(MARKERS)], "label": plain(label)}
            bars = [mean - _drawn_low(mean, low), high - mean]
            axes.errorbar(x, mean, bars, markersize=5, linewidth=1.6, elinewidth=1, capsize=2, **style)
        axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label="real against real")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(_minor)
            axes.tick_params(axis="x", which="minor", labelsize=8)
        _distance_axis(axes, [p.mean for points in lines.values() for p in points.values()])
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(xlabel)
    row[0][0].set_ylabel(ylabel)
    _legend_beside(row[0][-1])
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(labels)}
    drawn = {
        title: [
            *(charts.of_interval(label, x, p, bar=True) for label, points in lines.items() for x, p in points.items()),
            charts.floor(floor),
        ]
        for title, lines in panels.items()
    }
    _save(figure, path, chart(drawn, looks, Axis(xlabel, log=log), Axis(ylabel)))


def frontier_figure(
    path: Path, lines: dict[str, dict[float, tuple[Interval, Interval]]], labels: tuple[str, str]
) -> None:
    """One metric against another along a choice: label -> {value: (x, y)}, each point with its value beside."""
    sns.set_theme(style="whitegrid", context="notebook")
    palette = sns.color_palette("colorblind", 10)
    figure, axes = plt.subplots(figsize=(9.2, 4.8), layout="constrained")
    for place, (label, points) in enumerate(lines.items()):
        x, y = (np.array([point[i].mean for point in points.values()]) for i in (0, 1))
        colour, marker = palette[place % 10], MARKERS[place % len(MARKERS)]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.4, label=plain(label))
        for value, right, up in zip(points, x, y, strict=True):
            axes.annotate(
                f"{value:g}", (right, up), xytext=(4, 4), textcoords="offset points", fontsize=8, color=colour
            )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _legend_beside(axes)
    looks = {label: Look(place, MARKERS[place % len(MARKERS)]) for place, label in enumerate(lines)}
    drawn = [
        charts.of_interval(label, x.mean, y, note=f"{value:g}", place=place, bar=True)
        for label, points in lines.items()
        for place, (value, (x, y)) in enumerate(points.items())
    ]
    x_axis, y_axis = (Axis(label, log=False) for label in labels)
    _save(figure, path, chart({"": drawn}, looks, x_axis, y_axis, note="scale"))
