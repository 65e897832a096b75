"""The data for the page's script: the values of every repetition, and the row and hashes of each curve."""

import math
from typing import Any

from pipeline.common.scalars import dump
from pipeline.metrics.names import TRAIN, split
from pipeline.params.resolved import Filed
from pipeline.report.charts import rounded
from pipeline.report.results import FAILED
from pipeline.report.study import Report

DERIVED = (
    "seeds",
    "differences",
    "axis",
    "explicit",
    "method",
    "earlier",
)  # keys of a resolved row that are not in params.yaml


def behind(report: Report) -> dict[str, Any]:
    """The JSON data of the page's script: the name of each metric; cells, rows and hashes of each curve and image set;
    and the curves of each series in charts."""
    linked = {key.split("/")[2] for key in report.links}
    others = [m for m in report.results.metric.unique() if m != FAILED and (split(m)[0] == TRAIN or m in linked)]
    metrics = list(dict.fromkeys([*report.metrics, *others]))
    return {
        "headline": report.headline,
        "metrics": [[metric, report.metric(metric)] for metric in metrics],
        "curves": [[name, _curve(report, name, metrics)] for name in [*report.curves, *report.sets]],
        "models": [
            [name, [_short(name, entry), _text(report, "models", name)]] for name, entry in report.models.items()
        ],
        "series": [[label, names] for label, names in series(report).items()],
    }


def series(report: Report) -> dict[str, list[str]]:
    """label -> curves or image sets, for all labels in tables and charts."""
    found: dict[str, list[str]] = {}
    for name in [*report.curves, *report.sets]:
        own = {name, f"{name} (base)", report.label(name)}
        if name in report.curves:
            own.add(f"{name}: {report.choice(name)}")
        found |= {label: [name] for label in sorted(own)}
    return found


def _curve(report: Report, name: str, metrics: list[str]) -> dict[str, Any]:
    """The data of one curve. A cell has steps, NFE, training seed, sampling seed and the place of its weights' hash,
    then the value and the standard error of every metric."""
    own, origin = report.results[report.results.curve == name], report.provenance[name]
    places = {metric: i for i, metric in enumerate(metrics)}
    weights = list(dict.fromkeys(own.checkpoint))
    cells: dict[tuple[int, int, int, int], list[Any]] = {}
    for row in own.itertuples():
        key = int(row.steps), int(row.nfe), int(row.train_seed), int(row.sample_seed)
        cell = cells.setdefault(key, [*key, weights.index(row.checkpoint), *[None] * (2 * len(metrics))])
        if row.metric in places:
            at = 5 + 2 * places[row.metric]
            cell[at : at + 2] = [rounded(value) for value in (row.value, row.se)]
    entry = report.curves.get(name)
    failed = [[f.nfe, list(f.seeds), f.reason] for f in report.failures if f.curve == name]
    return {
        "label": report.label(name),
        "model": entry.row.model if entry else "",
        "method": name in report.methods,
        "row": _text(report, "curves" if entry else "sets", name),
        "short": _short(name, entry),
        "cells": list(cells.values()),
        "weights": weights,
        "extractor": f"{origin['extractor']} {origin['extractor_hash']}",
        "reference": f"{origin['reference_split']} {origin['reference_hash']}",
        "samples": origin["samples"],
        "failed": failed,
    }


def _short(name: str, entry: Filed | None) -> str:
    """A row as YAML, with its base and its changes."""
    if not entry or not entry.differences:
        return dump({name: {}})
    changes = {key: _plain(value) for key, value in entry.differences.items()}
    return dump({name: {"base": entry.base, **changes}}, sort_keys=False, width=10_000)


def _text(report: Report, section: str, name: str) -> str:
    """A row as YAML with all defaults."""
    full = {key: _plain(value) for key, value in report.flat(section, name).items() if key not in DERIVED}
    return dump({name: full}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)


def _plain(value: Any) -> Any:
    """A value in its shortest YAML form: 3 for 3.0."""
    whole = isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 1e6
    return int(value) if whole else value
