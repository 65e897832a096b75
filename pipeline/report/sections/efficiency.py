"""The section on evaluations needed to approach the best score, and Pareto fronts."""

from typing import Any

from pipeline.report.figures.scores import front_figure
from pipeline.report.page import code, table
from pipeline.report.results import FAILED
from pipeline.report.statistics import nfe_to_reach, pareto
from pipeline.report.study import Report
from pipeline.report.text import listed, number, percent

SHARES = (0.05, 0.2, 1.0)  # distances from the best, in excess over the floor


def reached(report: Report, curve: str, best: float) -> list[int | None]:
    """The NFE at which the excess of a curve is within each of SHARES of that of a best score; None if never."""
    means = {nfe: point.mean for nfe, point in report.points(curve).items()}
    return [nfe_to_reach(means, best, report.score_floor.mean, share) for share in SHARES]


def reach(report: Report) -> dict[str, Any] | None:
    """The smallest NFE at which each curve approaches its own best score and the study's; None without any point."""
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
    within = [f"within {share:.0%} of {whose}" for whose in ("its own best", "the study's best") for share in SHARES]
    return {
        "shares": listed([f"{share:.0%}" for share in SHARES]),
        "best": f"{number(best)}, of {report.label(name)} at NFE {nfe}",
        "table": table(["curve", "best score", "at NFE", *within], lines),
    }


def fronts(report: Report) -> list[dict[str, Any]]:
    """The Pareto fronts of the score against NFE, including image sets, and against seconds, if measured."""
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
    """A remark on the accuracy of seconds: the largest ratio between samplers of one network at one NFE."""
    alike: dict[tuple[str, int], list[float]] = {}
    for (curve, nfe), value in seconds.items():
        alike.setdefault((report.curves[curve].row.model, nfe), []).append(value)
    ratio = max((max(values) / min(values) for values in alike.values()), default=1.0)
    return (
        "These are wall-clock times, each the minimum of several interleaved runs. Times of samplers of one network at "
        f"the same NFE differ by up to {percent(ratio - 1)}, because of their other work and by chance; smaller "
        "differences between points of the front are not meaningful."
    )
