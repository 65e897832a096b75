"""The section on methods: the headline figure, scores by budget, ratios to the first method, and all metrics."""

import math

from pipeline.report.charts import REAL
from pipeline.report.figures.scores import Costs, curves_figure
from pipeline.report.flops import mixes, reference, weighted
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.results import FAILED, cells, of_curve
from pipeline.report.sections.latents import rfd
from pipeline.report.study import Report
from pipeline.report.text import listed, number, percent, stated


def methods_figure(report: Report) -> str:
    """Draw the score of methods and image sets against NFE; no figure if none has a point."""
    shown = report.with_points([*report.methods, *report.sets])
    if not shown:
        return ""
    points = {report.label(name): report.points(name) for name in shown}
    ylabel = f"{report.score}, training {report.things}"
    curves_figure(report.figures / "methods.png", points, ylabel, report.colours, report.score_floor)
    return "methods.png"


def flops_figure(report: Report) -> str:
    """Draw the score of methods against FLOP-weighted NFE; no figure unless they mix networks and one has a point."""
    shown = report.with_points(report.methods)
    if not shown or not mixes(report):
        return ""
    points = {report.label(name): report.points(name) for name in shown}
    costs = {
        report.label(name): {nfe: (weighted(report, name, nfe), f"{name} ({nfe})") for nfe in report.points(name)}
        for name in shown
    }
    axis = Costs(f"FLOP-weighted NFE (evaluations of {reference(report)})", costs)
    ylabel = f"{report.score}, training {report.things}"
    curves_figure(report.figures / "methods_flops.png", points, ylabel, report.colours, report.score_floor, axis)
    return "methods_flops.png"


def spaces(report: Report) -> list[str]:
    """The autoencoders in whose latents methods sample."""
    return list(dict.fromkeys(space for name in report.methods if (space := report.model(name).space)))


def by_budget(report: Report, metric: str | None = None) -> Markdown:
    """The mean and interval of a metric (None: the score) by method and budget, its floor, and the reconstruction
    distance of each autoencoder in use. The scores that may be best are in bold."""
    budgets = report.budgets(report.methods)
    having = {budget: report.having(report.methods, budget) for budget in budgets}
    metric = metric or report.headline
    compared = [budget for budget in budgets if metric == report.headline and len(having[budget]) > 1]
    leaders = {budget: report.best(report.methods, budget) for budget in compared}
    lines = []
    for name in report.methods:
        texts: list[object] = []
        for budget in budgets:
            text = report.stated_at(name, budget, metric)
            texts.append(bold(text) if name in leaders.get(budget, ()) else text)
        lines.append([report.label(name), code(name), *texts])
    floor = report.floor(metric)
    lines.append([REAL, "", *[number(floor.mean) if floor else ""] * len(budgets)])
    lines += [[f"rFD of {name}", "", *[_rfd(report, name, metric)] * len(budgets)] for name in spaces(report)]
    return table(["method", "curve", *(f"budget {b}" for b in budgets)], lines)


def flattered(report: Report) -> str:
    """By how much the lowest mean of the methods at each budget is expected to flatter; empty if unknown."""
    found = {b: report.verdicts.flattery(report.having(report.methods, b), b) for b in report.budgets(report.methods)}
    texts = [f"{percent(1 - ratio)} at {budget}" for budget, ratio in found.items() if not math.isnan(ratio)]
    if not texts:
        return ""
    return (
        "The lowest of several means is too low by chance, because it is picked for being the lowest. A bootstrap "
        f"estimates by how much: {listed(texts)}."
    )


def methods_ratios(report: Report) -> Markdown:
    """The verdict on each method against the first one, by budget."""
    base, *others = report.methods
    if not others:
        return Markdown("")
    budgets = report.budgets(others)
    lines = [[report.label(name), *[report.difference_at(name, base, b) for b in budgets]] for name in others]
    return table([f"ratio to {report.label(base)}", *(f"budget {b}" for b in budgets)], lines)


def best_points(report: Report) -> Markdown:
    """All metrics of each method and image set at its best score, with their floors."""
    header = ["method", "at NFE", report.score, "minimum over repetitions", *map(report.metric, report.metrics[1:])]
    lines: list[list[object]] = []
    failed = {failure.curve for failure in report.failures}
    for name in [*report.methods, *report.sets]:
        if not report.points(name):
            lines.append([report.label(name), "", FAILED if name in failed else "", *[""] * len(report.metrics)])
            continue
        _, nfe = report.best_point(name)
        scores = cells(report.results, name, report.headline)
        values = scores[scores.nfe == nfe].value
        others = [
            report.stated_point(name, nfe, metric) + _fit(report, name, nfe, metric) for metric in report.metrics[1:]
        ]
        least = f"{report.linked(number(values.min()), name, nfe)} (of {len(values)})"
        title = report.label(name) + (" (one repetition)" if len(values) == 1 else "")
        lines.append([title, nfe or "unknown", report.stated_point(name, nfe), least, *others])
    floors = [floor_text(report, metric) for metric in report.metrics]
    lines.append([REAL, "", floors[0], "", *floors[1:]])
    for name in spaces(report):
        first, *others = [_rfd(report, name, metric) for metric in report.metrics]
        lines.append([f"rFD of {name}", "", first, "", *others])
    if held := report.reference.get("heldout"):
        scores = [_heldout(held["scores"].get(metric)) for metric in report.metrics]
        lines.append([f"{held['images']} held-out {report.things}", "", scores[0], "", *scores[1:]])
    return table(header, lines)


def _rfd(report: Report, name: str, metric: str) -> str:
    found = rfd(report, name, metric)
    return stated(found) if found else ""


def _heldout(score: dict[str, float] | None) -> str:
    return f"{number(score['value'])} (se {number(score['se'])})" if score else ""


def floor_text(report: Report, metric: str) -> str:
    floor = report.floor(metric)
    return f"{number(floor.mean)} (sd {number(floor.sd)})" if floor else ""


def _fit(report: Report, name: str, nfe: int, metric: str) -> str:
    """The mean error of the fit of an extrapolation."""
    if metric != "fd_infinity":
        return ""
    found = of_curve(report.results, name)
    found = found[found.metric == metric]
    return f" (fit {number(found[found.nfe == nfe].se.mean())})"
