"""The section on results by class: how often a curve generates each class, and the distance of each class from real."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv, chdtrc, ndtri
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.common.sealed import load_json, reading
from pipeline.common.tensors import load_tensors
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared
from pipeline.metrics.estimate import Estimate
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.reference import load_reference
from pipeline.report.comparisons import LEVEL, holm
from pipeline.report.figures.drawing import MARKERS, PALETTE, legend_beside, literal, new_figure, save
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.study import Report
from pipeline.report.text import number, p_value, percent
from pipeline.sampling.guidance import sample_labels

LEAST_EXPECTED = 5  # samples of a class in a test
LEAST = 20  # images of a class on either side for a distance
MOST = 500  # images of a class on either side in a distance: the first ones
SHOWN = 20  # classes in the figure and in the table, those with the largest distances
WIDTH = float(ndtri((1 + CONFIDENCE) / 2))  # of a 95% interval, in standard errors
CLEAR = 0.9  # the least share of real images in their own region for regions to be called classes
SHARE = "its share of the data"
LOST = "has no results by class, because the cell whose features are stored failed."


class Real(NamedTuple):
    """The real data by class: names; centroids (C, d) of the features; features by nearest centroid; and the share of
    features whose nearest centroid is that of their own class."""

    names: list[str]
    centroids: Tensor
    features: list[Tensor]
    agreement: float

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(own) for own in self.features])


class View(NamedTuple):
    """One cell of a curve by class: the number of samples nearest to each centroid (C,), their kernel distances from
    the real features of the region (None: too few), and the share of samples in their requested class (None: none was
    requested)."""

    nfe: int
    counts: np.ndarray
    distances: list[Estimate | None]
    agreement: float | None


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figure. None if the data have no classes or no features are stored."""
    if len(report.data.get("class_counts", {})) < 2:
        return None
    real = read_real(report)
    shown = [n for n in report.distinct if n in report.methods or _conditioned(report, n)]
    tasks = [partial(view, report, real, name) for name in shown]
    found = zip(shown, side_by_side(tasks), strict=True)
    views = {name: own for name, own in found if own}
    if not views:
        return None
    methods = {name: views[name] for name in report.methods if name in views} or dict([next(iter(views.items()))])
    places, adjusted = _places(methods), fits(real, views)
    file = _draw(report, real, methods, places)
    return {
        "agreement": percent(real.agreement),
        "clear": real.agreement >= CLEAR,
        "figure": file,
        "left_out": len(real.names) - len(places),
        "by_class": _by_class(report, real, methods, places),
        "by_curve": _by_curve(report, real, views, adjusted),
        "least": LEAST,
        "findings": [_finding(report, real, name, own, adjusted[name][1]) for name, own in methods.items()],
        "lost": [f"{name} {LOST}" for name in shown if name not in views],
    }


def read_real(report: Report) -> Real:
    """The features of the reference by class. Raises StudyError if the curves were measured against another one."""
    reference = load_reference(report.paths.reference)
    if reference.hash != report.measured["reference_hash"]:
        raise StudyError(f"{report.paths.reference}: the curves were measured against another one; run `dvc repro`")
    labels = load_prepared(report.paths.data).labels
    assert labels is not None
    # The reference holds the images in the random order of pipeline.metrics.reference.
    own = labels[torch.randperm(len(labels), generator=generator("reference", 0))]
    names, features = list(report.data["classes"]), reference.features.double()
    centroids = torch.stack([features[own == k].mean(0) for k in range(len(names))])
    nearest = regions(features, centroids)
    kept = [features[nearest == k] for k in range(len(names))]
    return Real(names, centroids, kept, float((nearest == own).double().mean()))


def regions(features: Tensor, centroids: Tensor) -> Tensor:
    """The nearest of the centroids (C, d) for each of the features (n, d): (n,). An empty class has no region."""
    return torch.cdist(features.double(), centroids).nan_to_num(nan=math.inf).argmin(1)


def _conditioned(report: Report, name: str) -> bool:
    """Whether the samples of a curve are conditioned on classes."""
    row = report.curves[name].row
    by_classifier = row.guide == "classifier" and not row.build_guidance().idle
    return row.labels == "data" and (report.model(name).labels == "classes" or by_classifier)


def view(report: Report, real: Real, name: str) -> View | None:
    """The stored cell of a curve by class; None if it failed."""
    path = report.paths.curve(name) / "features.safetensors"
    with reading(path):
        tensors, index = load_tensors(path, "cell")
        features, cell = tensors["features"], load_json(path.with_name("results.json"))["cells"][index]
    if not len(features):
        return None
    nearest = regions(features, real.centroids)
    agreement = None
    if _conditioned(report, name):
        wanted = sample_labels(cell["sample_seed"], range(len(features)), list(report.data["class_counts"].values()))
        agreement = float((nearest == wanted).double().mean())
    own = [features[nearest == k].double() for k in range(len(real.names))]
    distances = [_distance(x, y) for x, y in zip(own, real.features, strict=True)]
    return View(cell["nfe"], np.array([len(x) for x in own]), distances, agreement)


def _distance(x: Tensor, y: Tensor) -> Estimate | None:
    return kernel_distance(x[:MOST], y[:MOST]) if min(len(x), len(y)) >= LEAST else None


def share(count: int, total: int, expected: float, level: float = LEVEL) -> tuple[float, float, float]:
    """The frequency of a class among samples relative to its share of the data, with its interval; NaN if that is 0.

    The data's share, `expected`, is given: only the count among `total` samples is random. The interval misses with the
    probability `level` at most (Clopper and Pearson 1934, Biometrika 26, 404).
    """
    if not expected:
        return math.nan, math.nan, math.nan
    low = float(betaincinv(count, total - count + 1, level / 2)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - level / 2)) if count < total else 1.0
    return count / total / expected, low / expected, high / expected


def shares_of(real: Real, own: View, level: float = LEVEL) -> np.ndarray:
    """`share` of every class, (C, 3)."""
    total, expected = int(own.counts.sum()), real.counts / real.counts.sum()
    pairs = zip(own.counts.tolist(), expected.tolist(), strict=True)
    return np.array([share(count, total, kept, level) for count, kept in pairs])


def fit(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The total variation distance between shares of counts (C,) and given shares (C,), and the p value of their fit.

    Pearson's chi-squared test of goodness of fit. Classes of which fewer than LEAST_EXPECTED samples are expected are
    pooled (Cochran 1954, Biometrics 10, 417). p is 0 if a class occurs that the data do not have.
    """
    total = int(counts.sum())
    apart = float(abs(counts / total - expected).sum() / 2)
    if (counts[expected == 0] > 0).any():
        return apart, 0.0
    rare = expected * total < LEAST_EXPECTED
    pooled = [np.append(own[~rare], own[rare].sum()) for own in (counts.astype(float), expected * total)]
    observed, wanted = (own[pooled[1] > 0] for own in pooled)
    return apart, float(chdtrc(len(wanted) - 1, ((observed - wanted) ** 2 / wanted).sum())) if len(wanted) > 1 else 1.0


def _places(methods: dict[str, View]) -> list[int]:
    """The classes in the tables, in the order of the data: all, or those with the largest distance of any method."""
    count = len(next(iter(methods.values())).counts)
    worst = [max((d.value for v in methods.values() if (d := v.distances[k])), default=-math.inf) for k in range(count)]
    return sorted(sorted(range(count), key=lambda k: -worst[k])[:SHOWN])


def _stated(found: Estimate | None) -> str:
    return f"{number(found.value)} ± {number(WIDTH * found.se)}" if found else "too few"


def _by_class(report: Report, real: Real, methods: dict[str, View], places: list[int]) -> Markdown:
    """One line per class: the number of real images, and the relative frequency and the distance of each method."""
    lines, often = [], [shares_of(real, own) for own in methods.values()]
    at_once = LEVEL / (len(methods) * len(real.names))  # for intervals that hold for all methods and classes
    certain = [shares_of(real, own, at_once) for own in methods.values()]
    for k in places:
        line: list[object] = [real.names[k], int(real.counts[k])]
        for own, shares, wide in zip(methods.values(), often, certain, strict=True):
            ratio, low, high = shares[k]
            text = f"{number(ratio)} ({number(low)} to {number(high)})" if math.isfinite(ratio) else ""
            line += [bold(text) if wide[k, 1] > 1 or wide[k, 2] < 1 else text, _stated(own.distances[k])]
        lines.append(line)
    header: list[object] = ["class", report.things]
    for name in methods:
        header += [f"{report.label(name)}: relative frequency", f"{report.label(name)}: {report.metric('kd')}"]
    return table(header, lines)


def fits(real: Real, views: dict[str, View]) -> dict[str, tuple[float, float]]:
    """`fit` of each curve, with p values that are adjusted for the number of curves."""
    found = {name: fit(own.counts, real.counts / real.counts.sum()) for name, own in views.items()}
    adjusted = holm([p for _, p in found.values()])
    return {name: (apart, p) for (name, (apart, _)), p in zip(found.items(), adjusted, strict=True)}


def _by_curve(report: Report, real: Real, views: dict[str, View], found: dict[str, tuple[float, float]]) -> Markdown:
    """One line per curve: agreement with requested classes, distance of the frequencies from the data, worst class.

    found: the `fits` of the curves.
    """
    lines = []
    for name, own in views.items():
        apart, p = found[name]
        agreement = "" if own.agreement is None else percent(own.agreement)
        stated = f"{percent(apart)}, {p_value(p)}"
        known = [d.value for d in own.distances if d]
        worst = _worst(own)
        furthest = f"{real.names[worst]}: {_stated(own.distances[worst])}" if known else "too few"
        mean = number(float(np.mean(known))) if known else ""
        lines.append([code(name), own.nfe, agreement, stated, mean, furthest])
    header = [
        "curve",
        "at NFE",
        "samples in the requested class",
        "total variation distance",
        f"mean {report.metric('kd')}",
    ]
    return table([*header, "class with the largest distance"], lines)


def _worst(own: View) -> int:
    """The class with the largest distance."""
    values = [-math.inf if d is None else d.value for d in own.distances]
    return int(np.argmax(values))


def _finding(report: Report, real: Real, name: str, own: View, p: float) -> str:
    """How the class shares of a method differ from those of the data, and the class with the largest distance.

    p: the adjusted p value of their fit.
    """
    shares = "the class shares of this network's samples are not shown to differ from those of the data"
    if p < LEVEL:
        ratios = shares_of(real, own)[:, 0]
        most, least = int(np.nanargmax(ratios)), int(np.nanargmin(ratios))
        shares = (
            f"the class shares of this network's samples differ from those of the data "
            f"({p_value(p)}); {real.names[most]} has {ratios[most]:.2f} times and "
            f"{real.names[least]} {ratios[least]:.2f} times {SHARE}"
        )
    worst = _worst(own)
    text = f"Classes of {report.label(name)} at NFE {own.nfe}: {shares}"
    if own.distances[worst]:
        text += (
            f"; {real.names[worst]} has the largest distance ({report.metric('kd')} {_stated(own.distances[worst])})"
        )
    if own.agreement is not None:
        text += f"; {percent(own.agreement)} of its samples are in their requested class"
    return text + "."


def _draw(report: Report, real: Real, methods: dict[str, View], places: list[int]) -> str:
    """Top: the relative frequency of each class by method. Bottom: its distance from real."""
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
    often.set_ylabel("frequency\nrelative to the data")
    far.set_ylabel(report.metric("kd"))
    far.set_xticks(x, [literal(real.names[k][:24]) for k in places], rotation=30 if len(places) > 10 else 0)
    far.set_xlabel("class")
    legend_beside(often)
    path = report.figures / "classes.png"
    save(figure, path)
    return path.name
