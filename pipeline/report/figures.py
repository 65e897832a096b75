"""The report's figures, as PNG files whose bytes depend on the results alone."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipeline.files import write_bytes
from pipeline.report.results import Floor, Interval

MARKERS = "osD^vP*Xhd"
MANY_MARKERS = (*MARKERS, "<", ">", "p")  # 13 of them: with 10 colours, each pair returns after 130 lines
DPI = 130


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


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
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for label, points in curves.items():
        place = colours[label]
        colour, marker = palette[place % 10], MARKERS[place % len(MARKERS)]
        if 0 in points:
            axes.axhline(points[0].mean, color=colour, linestyle=":", linewidth=1.8, label=plain(label))
            continue
        nfe = np.array(list(points))
        mean, low, high = (np.array([getattr(p, end) for p in points.values()]) for end in ("mean", "low", "high"))
        axes.plot(nfe, mean, color=colour, marker=marker, markersize=5, linewidth=1.8, label=plain(label))
        if len(points) == 1:
            axes.errorbar(nfe, mean, [mean - low, high - mean], color=colour, capsize=3)
        bottom = np.where(mean > 0, np.maximum(low, mean / 20), low)  # a logarithmic axis has no 0
        axes.fill_between(nfe, bottom, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(floor.mean, color="0.4", linestyle="--", linewidth=1.2, label="real against real")
    _nfe_axis(axes, _spaced(sorted({nfe for points in curves.values() for nfe in points if nfe}), 1.12))
    _distance_axis(axes, [p.mean for points in curves.values() for p in points.values()])
    axes.set_ylabel(ylabel)
    axes.legend(frameon=True, fontsize=9)
    _save(figure, path)


def _nfe_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic axis of counted NFE."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("number of function evaluations (NFE), counted")


def _distance_axis(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis of distances; linear near 0 where a bias-corrected one is not above it."""
    above = [value for value in values if value > 0]
    if len(above) == len(values):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(above, default=1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    axes.tick_params(axis="y", which="minor", labelsize=8)


def _spaced(ticks: Sequence[float], ratio: float) -> list[float]:
    """Those of ascending ticks that are so much larger than the one kept before; always the last."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or kept[-1] / tick > ratio:
            kept.append(tick)
    return kept[::-1]


def front_figure(
    path: Path,
    points: list[tuple[float, float]],
    front: list[tuple[float, float, str]],
    xlabel: str,
    ylabel: str,
) -> None:
    """All points (cost, distance), and those of the Pareto front (cost, distance, name) joined and named."""
    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    costs, distances = zip(*points, strict=True)
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
    _save(figure, path)


class Line(NamedTuple):
    """One of many lines of a figure: (nfe, value, standard deviation or 0), by NFE, its place among all, its style."""

    points: list[tuple[int, float, float]]
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
    _save(figure, path)


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
    _save(figure, path)
