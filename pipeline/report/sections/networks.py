"""The table of networks in the section on cost: their sizes, their costs, and which match the cost of another."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report
from pipeline.report.text import listed, percent

KEYS = ("network", "channels", "parameters", "flops")
COSTS = {"parameters": "parameters", "flops": "FLOPs"}  # values of `equal`


def section(report: Report) -> Markdown:
    """One line per network: its models, its size, the cost of an evaluation, the cost that it matches, and the score of
    its first model if there are several networks."""
    models: dict[tuple[str, int, int, int], list[str]] = {}
    for name, summary in report.training.items():
        network, channels, parameters, flops = (summary[key] for key in KEYS)
        models.setdefault((network, channels, parameters, flops), []).append(name)
    scores = _scores(report, [names[0] for names in models.values()]) if len(models) > 1 else {}
    lines = []
    for (network, channels, parameters, flops), names in models.items():
        own = [Markdown(listed([code(name) for name in names])), network, channels]
        equal = dict.fromkeys(text for name in names if (text := _equalled(report, name)))
        cost: list[object] = [f"{parameters:,}", mega(flops), Markdown(listed(list(equal)))]
        lines.append([*own, *cost, *([scores[names[0]]] if scores else [])])
    header = ["models", "network", "channels", "parameters", f"MFLOPs per {report.thing}", "matches"]
    budget = _budget(report, list(scores))
    return table([*header, *([f"{report.score} of the first model, budget {budget}"] if scores else [])], lines)


def _equalled(report: Report, name: str) -> str:
    """The cost of its base that a model matches, and its own cost relative to it."""
    entry = report.models[name]
    if not entry.row.equal:
        return ""
    own, base = (report.training[n][entry.row.equal] for n in (name, entry.base))
    return f"{COSTS[entry.row.equal]} of {code(entry.base)} ({percent(own / base)})"


def _curves(report: Report, models: list[str]) -> dict[str, str]:
    """The curve of each model by the sampler of the study's first curve, if it has one."""
    sampler = report.sampler(next(iter(report.curves)))
    found: dict[str, str] = {}
    for name, entry in report.curves.items():
        if entry.row.model in models and report.sampler(name) == sampler:
            found.setdefault(entry.row.model, name)
    return found


def _budget(report: Report, models: list[str]) -> int:
    """The largest common budget of these models' curves by the first sampler; 0 without one."""
    curves = list(_curves(report, models).values())
    return max(report.common_budgets(curves), default=0) if curves else 0


def _scores(report: Report, models: list[str]) -> dict[str, str]:
    """The scores of models by the first curve's sampler at their largest common budget; empty without one."""
    curves, budget = _curves(report, models), _budget(report, models)
    if not budget:
        return {}
    return {name: report.stated_at(curves[name], budget) if name in curves else "" for name in models}


def mega(flops: int) -> str:
    """Millions of floating-point operations, with at least three digits."""
    return f"{flops / 1e6:#,.3g}".rstrip(".") if flops < 999.5e6 else f"{flops / 1e6:,.0f}"
