"""The section on design choices: the effect of each choice, and a figure for each kind of choice."""

from typing import Any

from pipeline.report.figures.scores import curves_figure
from pipeline.report.page import Markdown, code, escape, table
from pipeline.report.study import Report, low_and_high


def effects(report: Report) -> Markdown:
    """One line per row: its changes, and the verdicts on them at a small budget and at the largest."""
    lines = []
    for title, names in report.ablations.items():
        for name in names:
            base = report.curves[name].base
            shared = report.common_budgets([name, base]) or report.budgets([name])
            low, high = low_and_high(shared)[0], shared[-1]
            few = [low if low < high else shared[0]] if len(shared) > 1 else []
            texts = [*([] if few else [""]), *(_effect(report, name, base, budget) for budget in (*few, high))]
            figure = Markdown(f"[{escape(title)}](figures/{ablation_file(title)})") if _drawn(report, names) else title
            lines.append([code(name), report.choice(name), code(base), *texts, figure])
    header = ["curve", "change", "base", "effect at a small budget", "effect at the largest budget", "category"]
    return table(header, lines) if lines else Markdown("")


def _effect(report: Report, name: str, base: str, budget: int) -> str:
    """The verdict on a row against its base, after the budget."""
    text = report.difference_at(name, base, budget)
    return f"{budget}: {text}" if text else ""


def ablation(report: Report, title: str, names: list[str]) -> dict[str, Any]:
    """The figure of an axis, and a table of the verdicts on each row against its base by budget."""
    bases = list(dict.fromkeys(report.curves[name].base for name in names))
    labels = {name: f"{name} (base)" for name in bases} | {n: f"{n}: {report.choice(n)}" for n in names}
    file = ablation_file(title)
    points = {labels[name]: report.points(name) for name in report.with_points(list(labels))}
    colours = {label: i for i, label in enumerate(labels.values())}
    if points:
        curves_figure(report.figures / file, points, report.score, colours, report.score_floor)
    budgets = report.budgets(names)
    lines = []
    for name in names:
        base = report.curves[name].base
        texts = [report.difference_at(name, base, b) for b in budgets]
        lines.append([code(name), report.choice(name), code(base), *texts])
    header = ["curve", "change", "base", *(f"budget {b}" for b in budgets)]
    return {"title": title, "file": file if points else "", "table": table(header, lines)}


def ablation_file(title: str) -> str:
    return f"ablation_{_slug(title)}.png"


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title)


def _drawn(report: Report, names: list[str]) -> bool:
    """Whether an axis has a figure: any of its rows or their bases has a point."""
    return bool(report.with_points([*names, *(report.curves[name].base for name in names)]))
