"""The section on the best sampler of each model."""

from pipeline.report.page import Markdown, code, escape, table
from pipeline.report.results import FAILED
from pipeline.report.study import Report


def best_samplers(report: Report) -> Markdown:
    """The best sampler and its ties by budget, for each model with at least two samplers."""
    budgets = report.budgets([name for names in report.samplers.values() for name in names])
    lines = [
        [code(model), *(_best_sampler(report, names, b) for b in budgets)] for model, names in report.samplers.items()
    ]
    return table(["model", *(f"budget {b}" for b in budgets)], lines) if lines else Markdown("")


def _best_sampler(report: Report, names: list[str], budget: int) -> Markdown:
    if not (best := report.best(names, budget)):
        return Markdown(next((FAILED for name in names if report.missing(name, budget)), ""))
    leader, *ties = best
    text = f"{code(leader)} {escape(report.stated_at(leader, budget))}"
    if len(report.having(names, budget)) == 1:
        return Markdown(f"{text}, no other result")
    return Markdown(text + (f"; tie: {', '.join(map(code, ties))}" if ties else ""))
