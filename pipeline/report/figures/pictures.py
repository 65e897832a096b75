"""Figures of samples, and heat maps."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import seaborn as sns

from pipeline.report.figures.drawing import PALETTE, literal, new_figure, save

MARGIN = 1.15  # half width of the drawn plane, relative to the data


class HeatMap(NamedTuple):
    """Values (rows, columns), NaN if missing, and the text of each cell."""

    values: np.ndarray
    texts: list[list[str]]


def heat_figure(
    path: Path,
    panels: dict[str, HeatMap],
    levels: tuple[list[str], list[str]],
    titles: tuple[str, str],
    label: str,
) -> None:
    """Draw heat maps side by side, title -> map. levels, titles: of rows, then of columns. Darker is higher.

    Each panel has its own colour scale: logarithmic, or linear if a value is not above 0.
    """
    rows, columns = ([literal(level).replace(", ", ",\n") for level in own] for own in levels)
    size = (len(panels) * (1.15 * len(columns) + 0.4) + 2.2, 0.8 * len(rows) + 2.4)
    figure, line = new_figure(size, 1, len(panels), style="white", sharey=True)
    for axes, (title, panel) in zip(line[0], panels.items(), strict=True):
        shades = np.log(panel.values) if np.nanmin(panel.values) > 0 else panel.values
        low, high = np.nanmin(shades), np.nanmax(shades)
        axes.set_facecolor("0.85")
        axes.imshow(shades, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
        for (i, j), shade in np.ndenumerate(shades):
            colour = "white" if shade > (low + high) / 2 else "black"
            axes.text(j, i, literal(panel.texts[i][j]), color=colour, ha="center", va="center", fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set_xlabel(titles[1], fontsize=11)
        axes.set_title(title, fontsize=11)
    line[0][0].set_ylabel(titles[0], fontsize=11)
    figure.suptitle(label, fontsize=12)
    save(figure, path)


def tile(images: np.ndarray, columns: int = 4) -> np.ndarray:
    """Images (n, C, H, W), uint8, as one picture with so many columns, separated by grey lines of one pixel."""
    rows = -(-len(images) // columns)
    c, h, w = images.shape[1:]
    picture = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        picture[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    return picture


def samples_figure(path: Path, grid: dict[str, dict[int, np.ndarray]]) -> None:
    """Draw samples of equal noise by curve (rows) and NFE (columns): label -> {nfe: images (n, C, H, W), uint8}."""
    columns = max(len(cells) for cells in grid.values())
    figure, axes = new_figure((1.4 * columns + 0.5, 1.65 * len(grid)), len(grid), columns, style="white")
    for line, (label, cells) in zip(axes, grid.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            sns.despine(ax=axis, left=True, bottom=True)
        line[0].set_ylabel(literal(label), fontsize=8)
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
    save(figure, path, photos=True)


def points_figure(path: Path, real: np.ndarray, grid: dict[str, dict[int, np.ndarray]]) -> None:
    """Draw the data, (N, 2), and samples by curve (rows) and NFE (columns): label -> {nfe: points (n, 2)}.

    The figure shows as many points of the data as samples, so that both look equally dense. All panels show the part
    of the plane that the data occupy. The title of a panel gives the number of samples outside.
    """
    columns = 1 + max(len(cells) for cells in grid.values())
    figure, axes = new_figure((1.5 * columns + 0.5, 1.7 * len(grid)), len(grid), columns, style="white")
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
        line[0].set_ylabel(literal(label), fontsize=8)
        for axis, (nfe, points) in zip(line[1:], cells.items(), strict=False):
            axis.scatter(*points.T, color=PALETTE[0], **style)
            outside = int((np.abs(points) > reach).any(1).sum())
            axis.set_title(f"NFE {nfe}" + (f", {outside} outside" if outside else ""), fontsize=8)
    save(figure, path)
