"""The few numbers that `dvc metrics`, `dvc exp show` and `dvc plots` compare between runs."""

import math
from typing import Any

import pandas as pd

from pipeline.common.files import write_csv, write_json
from pipeline.report.study import Report

METHODS = "methods"  # the figure of the rows with a method; every other one is called as its axis
CURVE_COLUMNS = ["figure", "curve", "nfe", "score", "low", "high"]
TRAINING_COLUMNS = ["model", "images", "loss"]


def write_summary(report: Report) -> None:
    """Write summary.json, the study's metrics; curves.csv, every curve's mean score and interval by NFE; and
    training.csv, every model's loss by images seen, the mean over its seeds."""
    reports, numbers, points, losses = report.paths.reports, summary(report), curves(report), training(report)
    write_json(reports / "summary.json", numbers)
    write_csv(reports / "curves.csv", CURVE_COLUMNS, points)
    write_csv(reports / "training.csv", TRAINING_COLUMNS, losses)


def summary(report: Report) -> dict[str, Any]:
    """The methods' mean scores at the largest budget that they share, and the study's best, to six digits.

    A method without a result there is left out, and so is the best of a study that has none.
    """
    budget = max(report.common_budgets(report.methods), default=0)
    having = report.having(report.methods, budget)
    best = {}
    if report.finished:
        curve, nfe, mean = report.best_of_all
        best = {"best": {"score": rounded(mean), "nfe": nfe, "curve": curve}}
    return {
        "score": report.score,
        "floor": rounded(report.score_floor.mean),
        "budget": budget,
        METHODS: {name: rounded(report.estimate(name, budget).mean) for name in having},
        **best,
        "failed": len(report.failures),
    }


def curves(report: Report) -> list[dict[str, object]]:
    """The points of every curve, figure by figure; an axis' figure begins with the bases of its rows."""
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
    """The declared models' training curves. Raises OSError where one is missing."""
    return [
        {"model": name, "images": images, "loss": rounded(loss)}
        for name in report.models
        for images, loss in pd.read_csv(report.paths.training_curve(name)).groupby("images").loss.mean().items()
    ]


def rounded(value: float) -> float:
    return float(f"{value:.6g}")
