"""The report's table of networks: what each costs, and which were made to cost as much as another."""

from pipeline.report.page import Markdown, code, table
from pipeline.report.study import Report
from pipeline.report.text import listed, percent

KEYS = ("network", "channels", "parameters", "flops")
COSTS = {"parameters": "parameters", "flops": "FLOPs"}  # what `equal` stands for


def section(report: Report) -> Markdown:
    """A line a network: which models have it, its size, what an evaluation costs, what it was made to equal and how
    nearly it does, and what the first of its models scores where networks differ."""
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
    header = ["models", "network", "channels", "parameters", f"MFLOPs per {report.thing}", "made to equal"]
    budget = _budget(report, list(scores))
    return table([*header, *([f"{report.score} of the first, budget {budget}"] if scores else [])], lines)


def _equalled(report: Report, name: str) -> str:
    """What of its base's cost a model was made to equal, and the share of it that it has."""
    entry = report.models[name]
    if not entry.row.equal:
        return ""
    own, base = (report.training[n][entry.row.equal] for n in (name, entry.base))
    return f"{COSTS[entry.row.equal]} of {code(entry.base)} ({percent(own / base)})"


def _curves(report: Report, models: list[str]) -> dict[str, str]:
    """Of models the curve by the sampler of the study's first one, where there is one."""
    sampler = report.sampler(next(iter(report.curves)))
    found: dict[str, str] = {}
    for name, entry in report.curves.items():
        if entry.row.model in models and report.sampler(name) == sampler:
            found.setdefault(entry.row.model, name)
    return found


def _budget(report: Report, models: list[str]) -> int:
    """The largest budget that all of these models' curves by the first sampler ask for; 0 where there is none."""
    curves = list(_curves(report, models).values())
    return max(report.common_budgets(curves), default=0) if curves else 0


def _scores(report: Report, models: list[str]) -> dict[str, str]:
    """What models score by the first curve's sampler at the largest budget of all; nothing where they share none."""
    curves, budget = _curves(report, models), _budget(report, models)
    if not budget:
        return {}
    return {name: report.stated_at(curves[name], budget) if name in curves else "" for name in models}


def mega(flops: int) -> str:
    """Millions of floating-point operations, to three digits at least."""
    return f"{flops / 1e6:#,.3g}".rstrip(".") if flops < 999.5e6 else f"{flops / 1e6:,.0f}"
