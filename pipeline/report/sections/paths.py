"""The section on cumulative paths: chains of curves like EDM's configurations A to F."""

from itertools import pairwise
from typing import Any

from pipeline.report.figures.scores import path_figure
from pipeline.report.page import Markdown, code, table
from pipeline.report.results import FAILED
from pipeline.report.study import Report, low_and_high
from pipeline.report.text import course

LEAST_CURVES = 4  # shorter chains are an ablation and its base


def paths(report: Report) -> list[list[str]]:
    """Every chain of at least LEAST_CURVES curves, from a curve that names no base to a curve that is no base.

    A link is a row that names its base and differs from it in a design choice. A row that names no base begins a chain,
    because its default base, the first row of the study, implies no order. A branching chain is a path for each end.
    """
    links = {name: entry.base for name, entry in report.curves.items() if entry.explicit and entry.differences}
    found = []
    for end in report.curves:
        if end not in links.values():
            path = [end]
            while path[0] in links:
                path.insert(0, links[path[0]])
            found += [path] if len(path) >= LEAST_CURVES else []
    return found


def sections(report: Report) -> list[dict[str, Any]]:
    """The contents of the section for each path; draws the figures."""
    return [_section(report, path) for path in paths(report)]


def finding(report: Report, path: list[str]) -> str:
    """The verdicts on a path's steps at all budgets; empty without one."""
    steps = [(report.label(name), report.course(name, before)) for before, name in pairwise(path)]
    parts = [f"{label}: {course(found)}" for label, found in steps if found]
    start = f"Path from {path[0]} to {path[-1]}, each step relative to the previous one: "
    return start + "; ".join(parts) + "." if parts else ""


def _section(report: Report, path: list[str]) -> dict[str, Any]:
    """A path at the common budgets of its curves, or at all of their budgets without a common one."""
    budgets = report.common_budgets(path) or report.budgets(path)
    return {
        "begin": code(path[0]),
        "end": code(path[-1]),
        "file": _figure(report, path, budgets, f"path_{path[-1]}.png"),
        "table": _table(report, path, budgets),
    }


def _figure(report: Report, path: list[str], budgets: list[int], file: str) -> str:
    """Draw the score along a path at a small, a middle and the largest budget; no figure without any point."""
    low, high = low_and_high(budgets)[0], budgets[-1]
    between = [budget for budget in budgets if low < budget < high]
    lines = {}
    for budget in dict.fromkeys([low, *between[len(between) // 2 :][:1], high]):
        having = report.having(path, budget)
        if having:
            lines[f"budget {budget}"] = {path.index(name): report.estimate(name, budget) for name in having}
    if not lines:
        return ""
    path_figure(report.figures / file, path, lines, report.score, report.score_floor)
    return file


def _table(report: Report, path: list[str], budgets: list[int]) -> Markdown:
    """One line per step: its changes, the score at each budget, and the verdict against the previous step."""
    compared = low_and_high(budgets)
    lines = []
    for place, name in enumerate(path):
        scores = [report.stated_at(name, budget) for budget in budgets]
        changes = [_change(report, name, path[place - 1], b) if place else "" for b in compared]
        lines.append([code(name), report.choice(name) if place else "", *scores, *changes])
    header = [*(f"budget {b}" for b in budgets), *(f"ratio to the previous step, budget {b}" for b in compared)]
    return table(["step", "change", *header], lines)


def _change(report: Report, name: str, before: str, budget: int) -> str:
    """The verdict against the previous step, or which of the two failed."""
    if len(report.having([name, before], budget)) == 2:
        return report.compared(name, before, budget)
    return report.missing(name, budget) or (f"{before} {FAILED}" if report.missing(before, budget) else "")
