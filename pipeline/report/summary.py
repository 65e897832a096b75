"""The summary files that `dvc metrics`, `dvc exp show` and `dvc plots` compare between runs."""

import math
from typing import Any

import pandas as pd

from pipeline.common.files import write_csv, write_json
from pipeline.evaluation.given import PRIOR
from pipeline.metrics.names import GAP, HELDOUT, against
from pipeline.report.given import DISTANCE, GivenResults
from pipeline.report.nll import NOT_CONVERGED, Nll
from pipeline.report.study import Report
from pipeline.training.bill import bills

METHODS = "methods"  # the figure of methods; other figures have the title of their axis
CURVE_COLUMNS = ["figure", "curve", "nfe", "score", "low", "high"]
TRAINING_COLUMNS = ["model", "images", "loss"]
COUNTED = ("images", "evaluations")  # of a bill


def write_summary(report: Report) -> None:
    """Write summary.json, the study's metrics; curves.csv, the mean score and interval of every curve by NFE; and
    training.csv, the mean loss over seeds of every model by images seen."""
    reports, numbers, points, losses = report.paths.reports, summary(report), curves(report), training(report)
    write_json(reports / "summary.json", numbers)
    write_csv(reports / "curves.csv", CURVE_COLUMNS, points)
    write_csv(reports / "training.csv", TRAINING_COLUMNS, losses)


def summary(report: Report) -> dict[str, Any]:
    """The mean scores of methods at their largest common budget, and the best score of the study, to six digits.

    With held-out images also the scores against them, and their gap: see the section on held-out images. If a model
    learns from a teacher, also what trainings cost; if the study measures likelihoods, also these, and if it has
    posterior samplers, their distances. Methods without a result at this budget are omitted, as is the best score of a
    study without any result.
    """
    budget = max(report.common_budgets(report.methods), default=0)
    having = report.having(report.methods, budget)
    best = {}
    if report.finished:
        curve, nfe, mean = report.best_of_all
        best = {"best": {"score": rounded(mean), "nfe": nfe, "curve": curve}}
    unseen = {}
    if "heldout" in report.reference:
        metrics = {reference: against(reference, report.headline) for reference in (HELDOUT, GAP)}
        unseen = {
            reference: {name: rounded(report.estimate(name, budget, metric).mean) for name in having}
            for reference, metric in metrics.items()
        }
    return {
        "score": report.score,
        "floor": rounded(report.score_floor.mean),
        "budget": budget,
        METHODS: {name: rounded(report.estimate(name, budget).mean) for name in having},
        **unseen,
        **best,
        **({"trainings": trainings(report)} if report.rows.billed else {}),
        **({"likelihood": likelihoods(report.nll)} if report.nll else {}),
        **({"given": distances(report.given)} if report.given else {}),
        "failed": len(report.failures),
    }


def trainings(report: Report) -> dict[str, Any]:
    """Images and network evaluations of one training of each billed model: its own, its teacher's, and of both."""
    found = {}
    for name in report.rows.billed:
        parts = bills(report.models[name].row)
        found[name] = {key: {part: getattr(own, key) for part, own in parts.items()} for key in COUNTED}
    return found


def likelihoods(nll: Nll) -> dict[str, Any]:
    """The NLL of each model at the largest budget in bits per dimension, its gap and its bound, without failed ones.

    converged: whether the NLLs have converged; None if it is unknown.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in nll.models:
        values = [nll.value(name, part) for part in nll.images]
        gap, bound = nll.gap(name), nll.bound(name)
        known: dict[str, float | None] = {
            **dict(zip(("bits", "heldout_bits"), [value.mean if value else None for value in values], strict=False)),
            "gap": gap.interval.mean if gap else None,
            "bound": bound.mean if bound else None,
        }
        found[name] = {key: rounded(value) for key, value in known.items() if value is not None}
        if any(values):
            found[name]["converged"] = {"": True, NOT_CONVERGED: False}.get(nll.mark(name))
    return found


def distances(given: GivenResults) -> dict[str, dict[str, float]]:
    """The distance of each posterior sampler to the exact posterior at its largest budget, by measurement and row."""
    found: dict[str, dict[str, float]] = {}
    for measurement in given.measurements:
        for name in given.measured(list(given.entries), measurement, PRIOR):
            point = given.point(name, measurement, PRIOR, given.largest(name, measurement, PRIOR))
            if point and (own := given.estimate(point, DISTANCE)):
                found.setdefault(measurement, {})[name] = rounded(own.mean)
    return found


def curves(report: Report) -> list[dict[str, object]]:
    """The points of every curve by figure; the figure of an axis begins with the bases of its rows."""
    figures = {METHODS: report.methods} | {
        title: [*dict.fromkeys([*(report.curves[name].base for name in names), *names])]
        for title, names in report.ablations.items()
    }
    return [
        {"figure": figure, "curve": name, "nfe": nfe, "score": rounded(point.mean)}
        | {end: "" if math.isnan(point.low) else rounded(getattr(point, end)) for end in ("low", "high")}
        for figure, names in figures.items()
        for name in names
        for nfe, point in report.points(name).items()
    ]


def training(report: Report) -> list[dict[str, object]]:
    """The training curves of all models, as far as all of their seeds got. Raises OSError if one is missing."""
    found: list[dict[str, object]] = []
    for name, entry in report.models.items():
        for images, own in pd.read_csv(report.paths.training_curve(name)).groupby("images"):
            if len(own) == len(entry.row.train_seeds):
                found.append({"model": name, "images": images, "loss": rounded(own.loss.mean())})
    return found


def rounded(value: float) -> float:
    return float(f"{value:.6g}")
