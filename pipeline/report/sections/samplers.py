"""The section on the samplers of each model that may be best."""

from pipeline.report.page import Markdown, code, escape, table
from pipeline.report.results import FAILED
from pipeline.report.study import Report
from pipeline.report.text import percent

LEAST_FLATTERY = 0.0005  # smaller ones round to 0


def best_samplers(report: Report) -> Markdown:
    """The samplers that may be best by budget, for each model with at least two of them."""
    budgets = report.budgets([name for names in report.samplers.values() for name in names])
    lines = [
        [code(model), *(_best_sampler(report, names, b) for b in budgets)] for model, names in report.samplers.items()
    ]
    return table(["model", *(f"budget {b}" for b in budgets)], lines) if lines else Markdown("")


def _best_sampler(report: Report, names: list[str], budget: int) -> Markdown:
    if not (best := report.best(names, budget)):
        return Markdown(next((FAILED for name in names if report.missing(name, budget)), ""))
    leader, *others = best
    text = f"{code(leader)} {escape(report.stated_at(leader, budget))}"
    if len(report.having(names, budget)) == 1:
        return Markdown(f"{text}, no other result")
    ratio = report.verdicts.flattery(report.having(names, budget), budget)
    if ratio < 1 - LEAST_FLATTERY:
        text += f" (too low by about {percent(1 - ratio)})"
    return Markdown(text + (f"; or {', '.join(map(code, others))}" if others else ", alone"))
