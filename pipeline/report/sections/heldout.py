"""The section on held-out images: every method's score against images that no model has seen, and memorisation."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.names import GAP, HELDOUT, MATCHED, TRAIN, against
from pipeline.report.page import Markdown, code, table
from pipeline.report.statistics import Interval, difference, interval
from pipeline.report.study import Report
from pipeline.report.text import listed, number, percent, signed
from pipeline.report.verdicts import TRAINING, unit_of

DUPLICATES = "near_duplicates"


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; None if no images are held out or no method has a point."""
    found = report.reference.get("heldout")
    names = report.with_points(report.methods)
    if not found or not names:
        return None
    own = found["scores"][report.headline]
    return {
        "images": found["images"],
        "floor": f"{number(own['value'])} (standard error {number(own['se'])})",
        "table": _scores(report, names),
        "orders": _orders(report),
        "findings": [*_gaps(report), *_changes(report), *_memorised(report)],
    }


def gap(report: Report, name: str, budget: int, metric: str) -> Interval:
    """Held-out minus as many training images, for a metric of GAPS and a curve with a result at a budget.

    The 95% interval covers retraining and the drawing of the real images on both sides. Trainings give the variance of
    their mean, and the jackknife over real images that of the drawing. The real images are common to all cells, so the
    second is the mean over cells, and more cells do not reduce it. The squares of the half-widths of both intervals add
    up (Zou and Donner 2008, doi 10.1002/sim.3095). With a single training, the interval does not include retraining.
    """
    cells = report.cells(name, budget, against(GAP, metric))
    return combined(cells.value.groupby("train_seed").mean(), float((cells.se**2).mean()))


def combined(values: pd.Series, variance: float) -> Interval:
    """The mean of `values` (n,), with the interval of their spread and of a common error with this variance, which is
    from the jackknife's blocks."""
    own = interval(values.to_numpy())
    drawn = interval(np.array([own.mean]), math.sqrt(variance))
    half = math.hypot(own.half_width if own.count > 1 else 0.0, drawn.half_width)
    return Interval(own.mean, own.mean - half, own.mean + half, own.count)


def share(score: float, apart: Interval) -> str:
    """The gap as a share of what the score would be against as many unseen images; "" unless the gap is above 0."""
    return f"{apart.mean / (score + apart.mean):.0%}" if apart.low > 0 and score + apart.mean > 0 else ""


def stated_gap(found: Interval) -> str:
    if found.low == found.high == 0:
        return "0"
    return f"{signed(found.mean)} ({signed(found.low)} to {signed(found.high)})"


def _scores(report: Report, names: list[str]) -> Markdown:
    """One line per method and budget: the scores, their gap, and near-duplicates."""
    lines = []
    for name in names:
        for budget in [b for b in report.budgets([name]) if report.having([name], b)]:
            apart, copies = (gap(report, name, budget, metric) for metric in (report.headline, DUPLICATES))
            nfe = report.nfe(name, budget)
            lines.append(
                [
                    report.label(name),
                    code(name),
                    budget,
                    report.stated_at(name, budget),
                    *[report.stated_at(name, budget, against(r, report.headline)) for r in (MATCHED, HELDOUT)],
                    report.linked(stated_gap(apart), name, nfe, against(GAP, report.headline)),
                    share(report.estimate(name, budget).mean, apart),
                    *[report.stated_at(name, budget, against(r, DUPLICATES)) for r in (MATCHED, HELDOUT)],
                    report.linked(stated_gap(_negative(copies)), name, nfe, against(GAP, DUPLICATES)),
                ]
            )
    header: list[object] = ["method", "curve", "budget", report.score, "as many training", "held-out"]
    return table([*header, "gap", "share", "duplicates: training", "held-out", "excess"], lines)


def _negative(found: Interval) -> Interval:
    return Interval(-found.mean, -found.high, -found.low, found.count)


def order(report: Report, budget: int, reference: str) -> list[str]:
    """The methods with a result at a budget by their mean score against a reference, the best first."""
    metric = against(reference, report.headline)
    return sorted(report.having(report.methods, budget), key=lambda n: report.estimate(n, budget, metric).mean)


def swapped(report: Report, budget: int) -> list[tuple[str, str]]:
    """The pairs of methods whose order against held-out images is not that of their scores; the first has the better
    score."""
    unseen = order(report, budget, HELDOUT)
    return [(a, b) for a, b in combinations(order(report, budget, TRAIN), 2) if unseen.index(a) > unseen.index(b)]


def told_apart(report: Report, one: str, other: str, budget: int) -> bool:
    """Whether two methods differ against both kinds of images: Student's 95% intervals over trainings exclude 0.

    Both methods are measured against the same images, whose drawing is common to them. False for a single training.
    """
    for reference in (TRAIN, HELDOUT):
        metric = against(reference, report.headline)
        own, base = (report.cells(name, budget, metric) for name in (one, other))
        found = difference(own, base)
        common = own.loc[own.index.intersection(base.index)]
        if found is None or unit_of(common) != TRAINING or found.low <= 0 <= found.high:
            return False
    return True


def _orders(report: Report) -> Markdown:
    """One line per budget: the order of the methods against either kind of images."""
    lines = []
    for budget in report.contested_budgets(report.methods):
        pairs = [
            f"{report.label(a)} and {report.label(b)}" + (" (told apart)" if told_apart(report, a, b, budget) else "")
            for a, b in swapped(report, budget)
        ]
        orders = [", ".join(map(report.label, order(report, budget, kind))) for kind in (TRAIN, HELDOUT)]
        lines.append([budget, *orders, "; ".join(pairs) or "none"])
    header = ["budget", "order against training data", "order against held-out data", "pairs that change places"]
    return table(header, lines) if lines else Markdown("")


def _gaps(report: Report) -> list[str]:
    """How much of the methods' scores is knowledge of their training images, at the largest budget of all."""
    budget = max((b for b in report.common_budgets(report.methods) if report.having(report.methods, b)), default=0)
    if not budget:
        return []
    parts = []
    for name in report.having(report.methods, budget):
        apart = gap(report, name, budget, report.headline)
        part = share(report.estimate(name, budget).mean, apart)
        hidden = f", which hides {part} of the score against unseen {report.things}" if part else ""
        parts.append(f"{report.label(name)} {stated_gap(apart)}{hidden}")
    return [
        f"The score against held-out {report.things}, minus that against as many training {report.things}, at a budget "
        f"of {budget}: {'; '.join(parts)}."
    ]


def _changes(report: Report) -> list[str]:
    """Whether the order of the methods is another one against held-out images."""
    budgets = report.contested_budgets(report.methods)
    pairs = {budget: swapped(report, budget) for budget in budgets}
    changed = [budget for budget in budgets if pairs[budget]]
    if not budgets:
        return []
    if not changed:
        where = listed([str(b) for b in budgets])
        return [f"Held-out and training {report.things} order the methods alike, at {where} evaluations."]
    count = sum(map(len, pairs.values()))
    told = sum(told_apart(report, a, b, budget) for budget, own in pairs.items() for a, b in own)
    text = (
        f"Held-out {report.things} order the methods differently from training {report.things} at "
        f"{listed([str(b) for b in changed])} evaluations: {count} {'pair changes' if count == 1 else 'pairs change'} "
        f"places, {told or 'none'} of them told apart in both orders"
    )
    firsts = {b: [order(report, b, kind)[0] for kind in (HELDOUT, TRAIN)] for b in changed}
    leaders = [
        f"at {budget}, {report.label(new)} leads instead of {report.label(old)}"
        for budget, (new, old) in firsts.items()
        if new != old
    ]
    return ["; ".join([text, *leaders]) + "."]


def _memorised(report: Report) -> list[str]:
    """Where samples are nearer to training images than to held-out ones."""
    parts, count = [], 0
    for name in report.with_points(report.methods):
        for budget in [b for b in report.budgets([name]) if report.having([name], b)]:
            count += 1
            excess = _negative(gap(report, name, budget, DUPLICATES))
            if excess.low > 0:
                where = f"{report.label(name)} at {budget}, by {percent(excess.mean)} of its samples"
                parts.append((excess.mean, where))
    if not count:
        return []
    what = f"near-duplicates of training {report.things} than of as many held-out ones"
    if not parts:
        return [f"Memorisation: at no budget has a method significantly more {what}."]
    where = f"at {len(parts)} of {count} points of the methods"
    return [f"Memorisation: samples are significantly more often {what} {where}, most of all {max(parts)[1]}."]
