"""New figures, their axes and legends, and writing them as PNG, SVG and chart."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from pipeline.common.files import write_bytes
from pipeline.report.charts import NFE

MARKERS = "osD^vP*Xhd"
MANY_MARKERS = (*MARKERS, "<", ">", "p")  # 13 markers with 10 colours: a pair repeats after 130 lines
LEGEND_LINES = 25  # in one column of a legend beside a figure
DPI = 130
PALETTE = sns.color_palette("colorblind", 10)


def new_figure(
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    style: str = "whitegrid",
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches with a grid of axes (rows, columns), independent of settings and installed fonts."""
    matplotlib.rcdefaults()
    sns.set_theme(style=style, context="notebook", rc={"font.sans-serif": ["DejaVu Sans"]})  # comes with matplotlib
    # SVG: keep text as text, and make identifiers deterministic.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "figure"}
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def save(figure: Figure, path: Path, drawn: dict[str, Any] | None = None, photos: bool = False) -> None:
    """Write a figure as PNG and SVG, and its chart, if it has one, as JSON.

    photos: whether it contains images, which 256 colours would distort.
    """
    # The canvases print with one drawing; savefig would draw twice.
    picture, vectors = io.BytesIO(), io.BytesIO()
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    figure.set_layout_engine("none")  # keep the layout of the first file
    FigureCanvasSVG(figure).print_svg(vectors, metadata={"Date": None, "Creator": None})
    write_bytes(path, picture.getvalue() if photos else _few_colours(picture))
    write_bytes(path.with_suffix(".svg"), vectors.getvalue())
    if drawn is not None:
        text = json.dumps(drawn, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        write_bytes(path.with_suffix(".json"), (text + "\n").encode())


def _few_colours(picture: io.BytesIO) -> bytes:
    """A PNG with a palette, which has about a third of the size; lines and letters need no more colours."""
    found = io.BytesIO()
    image = Image.open(picture).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(found, format="PNG", optimize=True)
    return found.getvalue()


def literal(text: str) -> str:
    """Text that matplotlib draws literally: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def drawn_low(mean: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The lower ends of bands and bars as drawn: a logarithmic axis has no 0."""
    return np.where(mean > 0, np.maximum(low, mean / 20), low)


def nfe_axis(axes: Axes, ticks: Sequence[float], label: str = NFE) -> None:
    """A logarithmic axis of counted NFE, or of another cost."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(literal(label))


def distance_axis(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis of distances; linear near 0 if a bias-corrected distance is not above 0."""
    above = [value for value in values if value > 0]
    if len(above) == len(values):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(above, default=1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(minor_label)
    axes.tick_params(axis="y", which="minor", labelsize=8)


def minor_label(value: float, _: float) -> str:
    """The label of a minor tick on a logarithmic axis: at 2 and 5."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def spaced(ticks: Sequence[float], ratio: float) -> list[float]:
    """Ascending ticks with at least this ratio between neighbours, including the last one."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or kept[-1] / tick > ratio:
            kept.append(tick)
    return kept[::-1]


def sigma_axis(axes: Axes) -> None:
    """A logarithmic axis of noise levels."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("sigma")


def legend_beside(axes: Axes, note: str = "") -> None:
    """A legend to the right of the axes, with enough columns for its height."""
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
