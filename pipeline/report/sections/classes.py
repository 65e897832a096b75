"""The report's section on classes: which kinds of images a curve makes too often or too seldom, and how near to real
ones they are."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from scipy.special import chdtrc, ndtri
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import read_json
from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.metrics.estimate import Estimate
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.reference import load_reference
from pipeline.report.figures.drawing import MARKERS, PALETTE, legend_beside, literal, new_figure, save
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.study import Report
from pipeline.report.text import number, percent
from pipeline.sampling.guidance import sample_labels

LEAST = 20  # images of a class on either side, below which no distance is stated
MOST = 500  # of a class on either side, the first ones, in a distance
SHOWN = 20  # classes in the figure and in the table: those of the largest distances, where there are more
WIDTH = float(ndtri((1 + CONFIDENCE) / 2))  # of a 95% interval, in standard errors
CLEAR = 0.9  # the share of real images in their own part, below which parts are not called classes
EVEN = "as often as in the data"


class Real(NamedTuple):
    """Real images by class: its name; centroids (C, d) of the classes' features; features by the centroid that they are
    nearest to; and the share of images that are nearest to their own class's."""

    names: list[str]
    centroids: Tensor
    features: list[Tensor]
    agreement: float

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(own) for own in self.features])


class View(NamedTuple):
    """One cell of a curve by class: samples nearest to each centroid (C,), their kernel distances from the real ones
    there (None: too few of either), and, where samples were told classes, the share that is nearest to its own."""

    nfe: int
    counts: np.ndarray
    distances: list[Estimate | None]
    agreement: float | None


def section(report: Report) -> dict[str, Any] | None:
    """All that the template shows of classes; draws the figure. None where the data have none, or no features were
    kept."""
    if len(report.data.get("class_counts", {})) < 2:
        return None
    real = read_real(report)
    shown = [n for n in report.distinct if n in report.methods or _told(report, n)]
    tasks = [partial(view, report, real, name) for name in shown]
    found = zip(shown, side_by_side(tasks), strict=True)
    views = {name: own for name, own in found if own}
    if not views:
        return None
    methods = {name: views[name] for name in report.methods if name in views} or dict([next(iter(views.items()))])
    places = _places(methods)
    file = _draw(report, real, methods, places)
    return {
        "agreement": percent(real.agreement),
        "clear": real.agreement >= CLEAR,
        "figure": file,
        "left_out": len(real.names) - len(places),
        "by_class": _by_class(report, real, methods, places),
        "by_curve": _by_curve(report, real, views),
        "least": LEAST,
        "findings": [_finding(report, real, name, found) for name, found in methods.items()],
        "lost": [name for name in shown if name not in views],
    }


def read_real(report: Report) -> Real:
    """The reference's features by class. Raises StudyError where they are not those that the curves were measured
    against."""
    reference = load_reference(report.paths.reference)
    if reference.hash != report.measured["reference_hash"]:
        raise StudyError(f"{report.paths.reference}: not what the curves were measured against; run `dvc repro`")
    labels = load_file(report.paths.data / "images.safetensors")["labels"]
    # The reference holds the images in the random order that pipeline.reference gives them.
    own = labels[torch.randperm(len(labels), generator=generator("reference", 0))]
    names, features = list(report.data["classes"]), reference.features.double()
    centroids = torch.stack([features[own == k].mean(0) for k in range(len(names))])
    nearest = regions(features, centroids)
    kept = [features[nearest == k] for k in range(len(names))]
    return Real(names, centroids, kept, float((nearest == own).double().mean()))


def regions(features: Tensor, centroids: Tensor) -> Tensor:
    """The centroid, of (C, d), that each of features (n, d) is nearest to: (n,). A class without images has none."""
    return torch.cdist(features.double(), centroids).nan_to_num(nan=math.inf).argmin(1)


def _told(report: Report, name: str) -> bool:
    """Whether the samples of a curve are told classes."""
    row = report.curves[name].row
    by_classifier = row.guide == "classifier" and not row.build_guidance().idle
    return row.labels == "data" and (report.model(name).labels == "classes" or by_classifier)


def view(report: Report, real: Real, name: str) -> View | None:
    """A curve's kept cell by class; None where that failed."""
    path = report.paths.curve(name) / "features.safetensors"
    try:
        features = load_file(path)["features"]
        with safetensors.safe_open(path, "pt") as file:
            cell = read_json(path.with_name("results.json"))["cells"][int(file.metadata()["cell"])]
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StudyError(f"{path}: broken or missing ({error}); `dvc repro` makes it") from None
    if not len(features):
        return None
    nearest = regions(features, real.centroids)
    told = None
    if _told(report, name):
        wanted = sample_labels(cell["sample_seed"], range(len(features)), list(report.data["class_counts"].values()))
        told = float((nearest == wanted).double().mean())
    own = [features[nearest == k].double() for k in range(len(real.names))]
    distances = [_distance(x, y) for x, y in zip(own, real.features, strict=True)]
    return View(cell["nfe"], np.array([len(x) for x in own]), distances, told)


def _distance(x: Tensor, y: Tensor) -> Estimate | None:
    return kernel_distance(x[:MOST], y[:MOST]) if min(len(x), len(y)) >= LEAST else None


def share(count: int, total: int, real: int, real_total: int) -> tuple[float, float, float]:
    """How many times as often as in the data, and its 95% interval, that of independent counts (Katz et al. 1978).

    Of a class that was never made it is that of its count alone (Clopper and Pearson 1934). NaN where the data have
    none.
    """
    if not real:
        return math.nan, math.nan, math.nan
    ratio = count / total / (real / real_total)
    if not count:
        return 0.0, 0.0, (1 - ((1 - CONFIDENCE) / 2) ** (1 / total)) / (real / real_total)
    half = WIDTH * math.sqrt(max(1 / count - 1 / total + 1 / real - 1 / real_total, 0))
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def shares_of(real: Real, own: View) -> np.ndarray:
    """`share` of every class, (C, 3)."""
    total, real_total = int(own.counts.sum()), int(real.counts.sum())
    pairs = zip(own.counts.tolist(), real.counts.tolist(), strict=True)
    return np.array([share(count, total, kept, real_total) for count, kept in pairs])


def unequal(counts: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """How far shares lie from the data's: half the sum of their differences, and Pearson's chi-squared test's p."""
    both = np.stack([counts, real]).astype(float)
    both = both[:, both.sum(0) > 0]
    expected = both.sum(1, keepdims=True) * both.sum(0) / both.sum()
    statistic = float(((both - expected) ** 2 / expected).sum())
    shares = both / both.sum(1, keepdims=True)
    return float(abs(shares[0] - shares[1]).sum() / 2), float(chdtrc(both.shape[1] - 1, statistic))


def _places(methods: dict[str, View]) -> list[int]:
    """The classes that are shown, in the data's order: all, or those that any method is furthest from."""
    count = len(next(iter(methods.values())).counts)
    worst = [max((d.value for v in methods.values() if (d := v.distances[k])), default=-math.inf) for k in range(count)]
    return sorted(sorted(range(count), key=lambda k: -worst[k])[:SHOWN])


def _stated(found: Estimate | None) -> str:
    return f"{number(found.value)} ± {number(WIDTH * found.se)}" if found else "too few"


def _by_class(report: Report, real: Real, methods: dict[str, View], places: list[int]) -> Markdown:
    """A line a class: real images, and of each method how often it makes it, and how far it is from real ones."""
    lines, often = [], [shares_of(real, own) for own in methods.values()]
    for k in places:
        line: list[object] = [real.names[k], int(real.counts[k])]
        for own, shares in zip(methods.values(), often, strict=True):
            ratio, low, high = shares[k]
            text = f"{number(ratio)} ({number(low)} to {number(high)})" if math.isfinite(ratio) else ""
            line += [bold(text) if low > 1 or high < 1 else text, _stated(own.distances[k])]
        lines.append(line)
    header: list[object] = ["class", report.things]
    for name in methods:
        header += [f"{report.label(name)}: how often", f"{report.label(name)}: {report.metric('kd')}"]
    return table(header, lines)


def _by_curve(report: Report, real: Real, views: dict[str, View]) -> Markdown:
    """A line a curve: how far its shares are from the data's, whether it makes what it is told, its worst class."""
    lines = []
    for name, own in views.items():
        apart, p = unequal(own.counts, real.counts)
        told = "" if own.agreement is None else percent(own.agreement)
        stated = f"{percent(apart)}, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"
        known = [d.value for d in own.distances if d]
        worst = _worst(own)
        furthest = f"{real.names[worst]}: {_stated(own.distances[worst])}" if known else "too few"
        mean = number(float(np.mean(known))) if known else ""
        lines.append([code(name), own.nfe, told, stated, mean, furthest])
    header = ["curve", "at NFE", "makes the class that it is told", "shares off by", f"mean {report.metric('kd')}"]
    return table([*header, "furthest class"], lines)


def _worst(own: View) -> int:
    """The class that is furthest from the real one."""
    values = [-math.inf if d is None else d.value for d in own.distances]
    return int(np.argmax(values))


def _finding(report: Report, real: Real, name: str, own: View) -> str:
    """What a method makes too often or too seldom, and which class is furthest from real."""
    _, p = unequal(own.counts, real.counts)
    shares = "its classes' shares are those of the data, as far as can be told"
    if p < 1 - CONFIDENCE:
        ratios = shares_of(real, own)[:, 0]
        most, least = int(np.nanargmax(ratios)), int(np.nanargmin(ratios))
        shares = (
            f"it makes {real.names[most]} {ratios[most]:.2f} times and {real.names[least]} {ratios[least]:.2f} times "
            f"{EVEN}"
        )
    worst = _worst(own)
    text = f"Class by class, {report.label(name)} at NFE {own.nfe}: {shares}"
    if own.distances[worst]:
        text += f"; furthest from real is {real.names[worst]} ({report.metric('kd')} {_stated(own.distances[worst])})"
    if own.agreement is not None:
        text += f"; {percent(own.agreement)} of its samples are of the class that they were told"
    return text + "."


def _draw(report: Report, real: Real, methods: dict[str, View], places: list[int]) -> str:
    """Above how often each class is made, below how far it is from real, by method."""
    size = (max(7.0, 0.75 * len(places)) + 2.5, 6.0)
    figure, [[often], [far]] = new_figure(size, 2, sharex=True)
    x = np.arange(len(places))
    for order, (name, own) in enumerate(methods.items()):
        place = report.colours.get(report.label(name), order)
        style = {"color": PALETTE[place % 10], "marker": MARKERS[place % len(MARKERS)], "linestyle": "none"}
        shift = x + 0.6 * ((order + 0.5) / len(methods) - 0.5)
        value, low, high = shares_of(real, own)[places].T
        known = [own.distances[k] or Estimate(math.nan, math.nan) for k in places]
        for axes, mean, bars, label in (
            (often, value, np.nan_to_num([value - low, high - value]), literal(report.label(name))),
            (far, *np.array([(d.value, WIDTH * d.se) for d in known]).T, None),
        ):
            axes.errorbar(shift, mean, bars, label=label, markersize=5, elinewidth=1, capsize=2, **style)
    often.axhline(1, color="0.4", linestyle="--", linewidth=1.2)
    far.axhline(0, color="0.4", linestyle="--", linewidth=1.2)
    often.set_ylabel("times as often\nas in the data")
    far.set_ylabel(report.metric("kd"))
    far.set_xticks(x, [literal(real.names[k][:24]) for k in places], rotation=30 if len(places) > 10 else 0)
    far.set_xlabel("class")
    legend_beside(often)
    path = report.figures / "classes.png"
    save(figure, path)
    return path.name
