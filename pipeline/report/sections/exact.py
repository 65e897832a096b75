"""The section on solvers with exact denoisers: sentences, tables and figures."""

import math
from typing import Any

from pipeline.report.figures.lines import Line, many_lines_figure
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.statistics import Floor
from pipeline.report.study import Report
from pipeline.report.text import listed, number, plain

BUDGETS = (7, 19, 35, 63, 127)
TITLES = {"mixture": "the mixture", "data": "the data"}
ADAPTIVE = "adaptive"  # an adaptive solver has no order in the step size
ORDER_OF = {"ode": "trajectories", "sde": "sampled variance"}

Points = dict[str, dict[int, tuple[float, float]]]  # row -> {nfe: (value, sd)}


def section(report: Report) -> dict[str, Any]:
    """The section's contents; draws the figures."""
    found = report.oracle
    errors = {oracle: _by_row(found["errors"], "error", oracle) for oracle in TITLES}
    distances = _by_row(found["distances"], "distance")
    floor = Floor(found["floor"]["distance"], found["floor"]["sd"])
    floor_text = f"{number(floor.mean)} (sd {number(floor.sd)})"
    return {
        "settings": found["settings"],
        "findings": [
            *_deviations(found["orders"]),
            *(text for oracle, points in errors.items() for text in _least_errors(points, TITLES[oracle])),
            *_nearest(distances, floor_text, found["settings"]["seeds"]),
        ],
        "orders": _orders(found["orders"]),
        "errors": _errors(errors["mixture"]),
        "errors_figure": _errors_figure(report, errors),
        "distances_figure": _distances_figure(report, distances, floor),
        "floor": floor_text,
    }


def _by_row(records: list[dict[str, Any]], value: str, oracle: str | None = None) -> Points:
    """row -> {nfe: (value, sd)}, by NFE; a missing sd is 0."""
    own = [record for record in records if record.get("oracle") == oracle]
    found: Points = {record["row"]: {} for record in own}
    for record in sorted(own, key=lambda record: record["nfe"]):
        found[record["row"]][record["nfe"]] = record[value], record.get("sd", 0.0)
    return found


def _places(report: Report) -> dict[str, int]:
    """The place of each row among all rows, which determines its style in all figures."""
    records = [record for part in ("orders", "errors", "distances") for record in report.oracle[part]]
    return {row: place for place, row in enumerate(dict.fromkeys(record["row"] for record in records))}


def _lines(report: Report, points: Points, solid: set[str]) -> dict[str, Line]:
    lines = {}
    for row, place in _places(report).items():
        if row in points:
            own = [(nfe, value, sd) for nfe, (value, sd) in points[row].items()]
            lines[row] = Line(own, place, row not in solid)
    return lines


def _errors_figure(report: Report, errors: dict[str, Points]) -> str:
    # A logarithmic axis cannot show an error of 0.
    drawn = {
        o: {r: {n: p for n, p in own.items() if p[0] > 0} for r, own in rows.items()} for o, rows in errors.items()
    }
    panels = {
        TITLES[oracle]: _lines(report, {row: own for row, own in rows.items() if own}, set(rows))
        for oracle, rows in drawn.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return ""
    many_lines_figure(report.figures / "oracle_errors.png", panels, "RMS error of x0")
    return "oracle_errors.png"


def _distances_figure(report: Report, distances: Points, floor: Floor) -> str:
    if not distances:
        return ""
    stochastic = {record["row"] for record in report.oracle["distances"] if record["stochastic"]}
    panels = {TITLES["mixture"]: _lines(report, distances, stochastic)}
    path = report.figures / "oracle_distances.png"
    many_lines_figure(path, panels, "distance of sampled mixture", floor, "solid: stochastic\ndashed: deterministic")
    return path.name


def _orders(orders: list[dict[str, Any]]) -> Markdown:
    lines = []
    for record in orders:
        adaptive = record["order"] is None
        theory = ADAPTIVE if adaptive else plain(record["order"])
        unmeasured = ADAPTIVE if adaptive else "not measured"
        measured = unmeasured if record["measured"] is None else f"{record['measured']:.2f}"
        kind, cost = ORDER_OF[record["kind"]], plain(record["evaluations_per_step"])
        lines.append([_named(record["row"]), kind, theory, measured, cost, record["convention"]])
    return table(["solver", "order of", "theoretical", "measured", "evaluations per step", "convention"], lines)


def _named(row: str) -> str:
    """The name of a row, as code if it is an identifier."""
    return code(row) if row.isidentifier() else row


def _in_a_list(row: str) -> str:
    """The name of a row in a list with commas: "unipc (order 2)" for "unipc, order 2"."""
    name, _, rest = row.partition(", ")
    return f"{name} ({rest})" if rest else name


def _within(points: Points, budget: int) -> dict[str, tuple[float, float, int]]:
    """The value, sd and NFE of each row at its largest NFE within a budget, without rows that have none."""
    found = {}
    for row, own in points.items():
        if nfe := max((nfe for nfe in own if nfe <= budget), default=0):
            found[row] = *own[nfe], nfe
    return found


def _errors(points: Points) -> Markdown:
    columns = {budget: _within(points, budget) for budget in BUDGETS}
    lines = []
    for row in points:
        texts: list[object] = []
        for within in columns.values():
            if row not in within:
                texts.append("")
                continue
            error, _, nfe = within[row]
            text = f"{number(error)} ({nfe})"
            texts.append(bold(text) if error == min(other for other, *_ in within.values()) else text)
        lines.append([_named(row), *texts])
    return table(["solver", *(f"budget {b}" for b in BUDGETS)], lines)


def _deviations(orders: list[dict[str, Any]]) -> list[str]:
    known = [record for record in orders if None not in (record["order"], record["measured"])]
    if not known:
        return []
    worst = max(known, key=lambda record: abs(record["measured"] - record["order"]))
    return [
        f"Of {len(known)} measured orders, that of {worst['row']} deviates most from theory: "
        f"{worst['measured']:.2f} instead of {plain(worst['order'])}."
    ]


def _leaders(points: Points, seeds: int) -> str:
    """The rows of the smallest value at each budget: "heun at 8 (0.4 at NFE 7) and 16 (0.1 at NFE 15); rk4 at 32 (..)".

    Rows whose values are equal, or within two standard errors over the seeds, are listed together, without an NFE.
    """
    leaders: dict[str, list[str]] = {}
    for budget in BUDGETS:
        within = {row: [(*own[nfe], nfe) for nfe in own if nfe <= budget] for row, own in points.items()}
        best = {row: min(found) for row, found in within.items() if found}
        if best:
            value, sd, nfe = min(best.values())
            alike = [r for r, (v, s, _) in best.items() if v - value <= 2 * math.hypot(s, sd) / math.sqrt(seeds)]
            where = f" at NFE {nfe}" if len(alike) == 1 else ""
            leaders.setdefault(listed(list(map(_in_a_list, alike))), []).append(f"{budget} ({number(value)}{where})")
    return "; ".join(f"{rows} at {listed(budgets)}" for rows, budgets in leaders.items())


def _least_errors(points: Points, where: str) -> list[str]:
    leaders = _leaders(points, 1)
    return [f"Smallest error on {where}, by budget (NFE): {leaders}."] if leaders else []


def _nearest(distances: Points, floor: str, seeds: int) -> list[str]:
    leaders = _leaders(distances, seeds)
    text = f"Smallest mean distance by budget (NFE), with all rows within two standard errors of it: {leaders}."
    return [f"{text} Exact samples have a distance of {floor}."] if leaders else []
