"""The section on cost against quality: the NFE that comes near the best score, and Pareto fronts."""

from typing import Any

from pipeline.report.figures.scores import front_figure
from pipeline.report.page import code, table
from pipeline.report.results import FAILED
from pipeline.report.statistics import nfe_to_reach, pareto
from pipeline.report.study import Report
from pipeline.report.text import number, percent

SHARES = (0.05, 0.2, 1.0)  # how near to the best, in excess over the floor


def reached(report: Report, curve: str, best: float) -> list[int | None]:
    """The NFE with which a curve comes within each of SHARES of a best score."""
    means = {nfe: point.mean for nfe, point in report.points(curve).items()}
    return [nfe_to_reach(means, best, report.score_floor.mean, share) for share in SHARES]


def reach(report: Report) -> dict[str, Any] | None:
    """For each curve the smallest NFE that comes near its own best score, and near the study's; None without any."""
    if not report.finished:
        return None
    name, nfe, best = report.best_of_all
    lines: list[list[object]] = []
    failed = {failure.curve for failure in report.failures}
    for curve in report.distinct:
        if not report.points(curve):
            lines.append([code(curve), FAILED if curve in failed else "", *[""] * (1 + 2 * len(SHARES))])
            continue
        own, own_nfe = report.best_point(curve)
        found = [*reached(report, curve, own), *reached(report, curve, best)]
        lines.append(
            [
                code(curve),
                report.linked(number(own), curve, own_nfe),
                own_nfe,
                *("not reached" if n is None else n for n in found),
            ]
        )
    within = [f"within {share:.0%} of {whose}" for whose in ("its own best", "the study's") for share in SHARES]
    return {
        "best": f"{number(best)}, by {report.label(name)} at NFE {nfe}",
        "table": table(["curve", "its best", "at NFE", *within], lines),
    }


def fronts(report: Report) -> list[dict[str, Any]]:
    """The Pareto fronts of the score against NFE, image sets included, and, where measured, against seconds."""
    points = {(name, nfe): p for name in [*report.distinct, *report.sets] for nfe, p in report.points(name).items()}
    costs = {"NFE": {key: float(key[1]) for key in points if key[1]}}
    seconds = {(row.curve, row.nfe): row.seconds_per_image for row in report.timings.itertuples()}
    costs[f"seconds per {report.thing}"] = {key: seconds[key] for key in points if key in seconds}
    found = []
    for title, cost in costs.items():
        if not cost:
            continue
        front = pareto((cost[key], points[key].mean, key) for key in cost)
        lines = [[f"{x:.3g}", code(curve), nfe, report.stated_point(curve, nfe)] for x, _, (curve, nfe) in front]
        file = f"front_{title.replace(' ', '_')}.png"
        front_figure(
            report.figures / file,
            [(cost[key], points[key].mean, f"{key[0]} ({key[1]})") for key in cost],
            [(x, y, f"{curve} ({nfe})") for x, y, (curve, nfe) in front],
            title,
            report.score,
        )
        header = [title, "curve", "at NFE", report.score]
        note = _clock(report, cost) if title != "NFE" else ""
        found.append({"title": title, "file": file, "table": table(header, lines), "note": note})
    return found


def _clock(report: Report, seconds: dict[tuple[str, int], float]) -> str:
    """How far seconds lie apart where networks and evaluations are the same, so that they should be nearly equal."""
    alike: dict[tuple[str, int], list[float]] = {}
    for (curve, nfe), value in seconds.items():
        alike.setdefault((report.curves[curve].row.model, nfe), []).append(value)
    ratio = max((max(values) / min(values) for values in alike.values()), default=1.0)
    return (
        f"A clock measured these, in turns, the least of several times. Samplers of one network with one NFE lie up to "
        f"{percent(ratio - 1)} apart, by what they do besides and by chance; points of the front that are nearer to "
        "each other are not told apart."
    )
