"""The section on fitted samplers: solvers fitted to a network, beside other samplers of it, and what a fit costs."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.evaluation.curve import TRANSFER, Curve
from pipeline.report.figures.scores import curves_figure
from pipeline.report.page import Markdown, code, escape, table
from pipeline.report.results import FAILED
from pipeline.report.statistics import Interval, interval, pareto
from pipeline.report.study import FITTED, Report
from pipeline.report.text import course, number, percent, stated, stated_verdict
from pipeline.report.verdicts import Point, Verdict
from pipeline.sampling.fitting import BACKWARD, TEACHER_STEPS

PUBLISHED = {
    ("times", "fitted"): ("LD3", "Tong et al. 2024, arXiv 2405.15506"),
    ("coefficients", "state"): ("S4S", "Frankel et al. 2025, arXiv 2502.17423"),
    ("both", "state"): ("S4S-Alt", "Frankel et al. 2025, arXiv 2502.17423"),
    ("coefficients", "fitted"): ("DyWeight", "arXiv 2603.11607"),
    ("both", "fitted"): ("GS", "arXiv 2510.17699"),
}
"""(fit, told) -> the published sampler that fits the same numbers, and its source."""
NOT_REACHED, NEVER = "not reached", "never"

Verdicts = dict[Point, Verdict]


class Group(NamedTuple):
    """The distinct curves of a model: fitted to its own networks at their budgets, not fitted, and on fitted grids."""

    model: str
    fitted: list[str]
    unfitted: list[str]
    grids: list[str]


class Payback(NamedTuple):
    """What a fit costs and saves.

    calls: network calls. needed: the evaluations that an unfitted sampler needs for the same score, inf if none reaches
    it, for the mean of the score and for the upper and the lower end of its interval. nfe: those of the fitted one.
    """

    calls: float
    needed: tuple[float, ...]
    nfe: int

    def images(self, needed: float) -> float:
        """The samples after which the calls that they save are those of the fit; inf if they save none."""
        return self.calls / (needed - self.nfe) if needed > self.nfe else math.inf


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figures. None without a fitted solver or without the summary of the fits."""
    found = groups(report)
    if not report.fits or not (found or _elsewhere(report)):
        return None
    unfitted = _verdicts(report, found, lambda group: group.unfitted)
    grids = _verdicts(report, found, lambda group: group.grids)
    paybacks = _paybacks(report, found)
    return {
        "figures": [_draw(report, group) for group in found if report.with_points(group.fitted)],
        "scores": _scores(report, found, unfitted, grids),
        "fits": _fits(report, found, paybacks),
        "transfer": _transfer(report),
        "published": _published(report),
        "teacher_steps": TEACHER_STEPS,
        "backward": BACKWARD,
        "findings": [
            *_bought(report, found, "one that is not fitted", lambda group: group.unfitted),
            *_bought(report, found, "one on a fitted grid", lambda group: group.grids),
            *_cost(paybacks),
            *_moved(report),
        ],
    }


def groups(report: Report) -> list[Group]:
    """The curves of each model that a solver is fitted to in place."""
    found = []
    for model in report.models:
        own = [name for name in report.distinct if report.curves[name].row.model == model]
        kinds = {name: report.fitted_part(name) for name in own}
        fitted = [name for name in own if kinds[name] == "solver" and not transferred(report.curves[name].row)]
        rest = ([name for name in own if kinds[name] == kind] for kind in ("", "grid"))
        found += [Group(model, fitted, *rest)] if fitted else []
    return found


def transferred(row: Curve) -> bool:
    """Whether the numbers of a row are fitted to another training, budget or model than its own."""
    return any(getattr(row, key) is not None for key in TRANSFER)


def needed(points: Mapping[int, float], score: float) -> float:
    """The NFE at which scores reach another score, by a power law between neighbouring points; inf if none reaches it.

    points: NFE -> score, ascending. The scores of an interval whose lower one is not positive are not interpolated.
    """
    before: tuple[int, float] | None = None
    for nfe, mean in points.items():
        if mean <= score:
            if before is None or mean <= 0:
                return nfe
            return before[0] * (nfe / before[0]) ** (math.log(before[1] / score) / math.log(before[1] / mean))
        before = nfe, mean
    return math.inf


def _draw(report: Report, group: Group) -> dict[str, str]:
    """Draw the fitted curves of a model beside the lowest mean of the unfitted ones and those on fitted grids."""
    lines = {"best unfitted": _falling(report, group.unfitted)}
    lines |= {report.label(name): report.points(name) for name in [*group.grids, *group.fitted]}
    lines = {label: points for label, points in lines.items() if points}
    path = report.figures / f"fitted_{group.model}.png"
    colours = {label: place for place, label in enumerate(lines)}
    curves_figure(path, lines, report.score, colours, report.score_floor)
    return {"file": path.name, "model": group.model}


def _falling(report: Report, names: list[str]) -> dict[int, Interval]:
    """The lowest means of curves by NFE, without those that are no lower than at a smaller NFE."""
    front = pareto((nfe, point.mean, point) for nfe, point in report.lowest(names).items())
    return {int(nfe): point for nfe, _, point in front}


def _points(report: Report, names: Iterable[str], budget: int) -> list[Point]:
    """The points of curves at a budget, the lowest mean first."""
    having = report.having(list(names), budget)
    return [(name, budget) for name in sorted(having, key=lambda name: report.estimate(name, budget).mean)]


def _places(report: Report, found: list[Group]) -> list[tuple[Group, str, int]]:
    """Every fitted curve at every one of its budgets."""
    return [(group, name, b) for group in found for name in group.fitted for b in sorted(report.curves[name].row.nfe)]


def _verdicts(report: Report, found: list[Group], rivals: Callable[[Group], list[str]]) -> Verdicts:
    """The verdicts on each fitted curve at each budget against the lowest true score of its rivals."""
    sets = {}
    for group, name, budget in _places(report, found):
        own, others = _points(report, [name], budget), _points(report, rivals(group), budget)
        if own and others:
            sets[name, budget] = own, others
    return report.verdicts.lowest_of(sets)


def _like(row: Curve) -> str:
    """The published sampler that fits the same numbers, or the numbers that are fitted."""
    name, _ = PUBLISHED.get((row.fit, row.told), ("", ""))
    return name or f"fit {row.fit}, told {row.told}"


def _published(report: Report) -> Markdown:
    """The published samplers that fit the same numbers as rows of the study, with sources."""
    rows = [entry.row for entry in report.curves.values() if entry.row.solver == "fitted"]
    used = {(row.fit, row.told) for row in rows}
    texts = [
        f"{name} ({source}) with `fit: {fit}` and `told: {told}`"
        for (fit, told), (name, source) in PUBLISHED.items()
        if (fit, told) in used
    ]
    return Markdown("; ".join(texts))


def _scores(report: Report, found: list[Group], unfitted: Verdicts, grids: Verdicts) -> Markdown:
    """One line for each fitted curve and budget: its score, and its ratios to the best of its rivals."""
    lines = []
    for group, name, budget in _places(report, found):
        row = report.curves[name].row
        best = [_named(report, _points(report, rivals, budget)) for rivals in (group.unfitted, group.grids)]
        ratios = [stated_verdict(own[name, budget]) if (name, budget) in own else "" for own in (unfitted, grids)]
        start = [group.model, code(name), _like(row), row.start, budget, report.stated_at(name, budget)]
        lines.append([*start, best[0], ratios[0], best[1], ratios[1]])
    header = ["model", "curve", "fits like", "start", "budget", "score"]
    header += ["best unfitted", "ratio to it", "best on a fitted grid", "ratio to it"]
    return table(header, lines) if lines else Markdown("")


def _named(report: Report, points: list[Point]) -> Markdown:
    """The lowest mean of some points, with its curve; empty without a point."""
    if not points:
        return Markdown("")
    (name, budget), *_ = points
    return Markdown(f"{escape(report.stated_at(name, budget))} ({code(name)})")


def _records(report: Report, name: str, budget: int) -> list[dict[str, Any]]:
    """The fits of a curve at a budget, one for each training. Curves that only repeat others may have their fits."""
    key = report.fittings[name], report.curves[name].row.steps(budget)
    found = {own["train_seed"]: own for own in report.fits if (report.fittings[own["curve"]], own["steps"]) == key}
    return list(found.values())


def _paybacks(report: Report, found: list[Group]) -> dict[Point, Payback]:
    """What the fits of each curve with a result cost and save, by curve and budget."""
    lowest = {group.model: {n: p.mean for n, p in _falling(report, group.unfitted).items()} for group in found}
    paybacks = {}
    for group, name, budget in _places(report, found):
        made = [own["calls"] for own in _records(report, name, budget) if not own["failed"]]
        if made and report.having([name], budget):
            score = report.estimate(name, budget)
            reached = tuple(needed(lowest[group.model], goal) for goal in (score.mean, score.high, score.low))
            paybacks[name, budget] = Payback(float(np.mean(made)), reached, report.nfe(name, budget))
    return paybacks


def _fits(report: Report, found: list[Group], paybacks: dict[Point, Payback]) -> Markdown:
    """One line for each fitted curve and budget: distances to the teacher, calls, and when they are paid for."""
    lines = []
    for _, name, budget in _places(report, found):
        records = _records(report, name, budget)
        made = [own for own in records if not own["failed"]]
        lost = f" ({len(records) - len(made)} of {len(records)} fits failed)" if len(made) < len(records) else ""
        texts = ["", FAILED if records else "", "", "", "", ""]
        if made:
            distances = [stated(_mean(own[key] for own in made)) for key in ("heldout_start", "heldout")]
            gap = [_gap(own) for own in made if min(own["start"], own["error"], own["heldout_start"]) > 0]
            calls = f"{np.mean([own['calls'] for own in made]):,.0f}"
            paid = _paid(paybacks[name, budget]) if (name, budget) in paybacks else ["", ""]
            texts = [distances[0], distances[1] + lost, _change(_mean(gap)) if gap else "", calls, *paid]
        lines.append([code(name), budget, *texts])
    header = ["curve", "budget", "distance at the start", "distance when fitted", "gap", "network calls"]
    header += ["evaluations without a fit", f"paid for after {report.things}"]
    return table(header, lines) if lines else Markdown("")


def _mean(values: Iterable[float]) -> Interval:
    return interval(np.array(list(values)))


def _gap(record: Mapping[str, float]) -> float:
    """How much less a fit gains on other noise than on its own: a ratio of ratios, minus 1."""
    return record["heldout"] / record["heldout_start"] / (record["error"] / record["start"]) - 1


def _change(gap: Interval) -> str:
    half = "" if math.isnan(gap.low) else f" ± {percent(gap.half_width)}"
    return ("−" if gap.mean < 0 else "+") + percent(abs(gap.mean)) + half


def _paid(payback: Payback) -> list[str]:
    """The evaluations that a fit replaces, and the samples after which it has paid for itself, with their ranges."""
    mean, low, high = payback.needed
    after, most, least = map(payback.images, payback.needed)
    evaluations = _reached(mean) + (f" ({_reached(low)} to {_reached(high)})" if low != high else "")
    paid = NOT_REACHED if math.isinf(mean) else NEVER if math.isinf(after) else f"{math.ceil(after):,}"
    return [evaluations, paid + _range(least, most)]


def _reached(nfe: float) -> str:
    return NOT_REACHED if math.isinf(nfe) else number(nfe)


def _range(least: float, most: float) -> str:
    """The ends of a number of samples in brackets, of which 0 and inf are none; empty without one, or if equal."""
    low, high = ("" if end in (0, math.inf) else f"{math.ceil(end):,}" for end in (least, most))
    if low == high:
        return ""
    return f" ({low} to {high})" if low and high else f" (at most {high})" if high else f" (at least {low})"


# Numbers fitted elsewhere


def _elsewhere(report: Report) -> list[str]:
    return [name for name in report.distinct if transferred(report.curves[name].row)]


def _alike(report: Report, row: Curve) -> str:
    """The first curve that samples and is fitted like a row, from the same model; empty if none is."""
    key = row.model, row.fitting_hash
    return next((name for name, own in report.fittings.items() if own == key), "")


def _in_place(report: Report, name: str) -> str:
    """The curve with the same keys that is fitted in place; empty if there is none."""
    return _alike(report, report.curves[name].row.model_copy(update=dict.fromkeys(TRANSFER)))


def _start(report: Report, name: str) -> str:
    """The unfitted curve that the fit of a curve begins with: by its keys, or else the first of its bases; or empty."""
    row = report.curves[name].row
    defaults = {key: Curve.model_fields[key].default for key in FITTED}
    if found := _alike(report, row.model_copy(update=defaults | {"solver": row.start})):
        return found
    bases = [name]
    while (base := report.curves[bases[-1]].base) not in bases:
        bases.append(base)
    same = [base for base in bases if report.curves[base].row.model == row.model and not report.fitted_part(base)]
    return same[0] if same else ""


def _source(row: Curve) -> str:
    """Where a row's numbers were fitted: "seed 0", "budget 6", "model edm"."""
    parts = {key.removeprefix("fitted_"): getattr(row, key) for key in TRANSFER}
    return ", ".join(
        f"{'budget' if key == 'nfe' else key} {value}" for key, value in parts.items() if value is not None
    )


def _transfer(report: Report) -> Markdown:
    """One line for each curve fitted elsewhere and budget: its ratios to the curve fitted in place and to the start."""
    lines = []
    for name in _elsewhere(report):
        row, bases = report.curves[name].row, (_in_place(report, name), _start(report, name))
        for budget in sorted(row.nfe):
            start = [code(name), row.model, _source(row), budget, report.stated_at(name, budget)]
            lines.append([*start, *(cell for base in bases for cell in _against(report, name, base, budget))])
    header = ["curve", "model", "fitted to", "budget", "score", "fitted in place", "ratio to it"]
    return table([*header, "not fitted", "ratio to it"], lines) if lines else Markdown("")


def _against(report: Report, name: str, base: str, budget: int) -> list[Any]:
    """A base and the ratio to it at a budget; empty without a base."""
    return [code(base), report.difference_at(name, base, budget)] if base else ["", ""]


# Findings


def _bought(report: Report, found: list[Group], other: str, rivals: Callable[[Group], list[str]]) -> list[str]:
    """For each model: the lowest score of its fitted samplers against that of their rivals, at each budget."""
    sets = {}
    for group in found:
        for budget in report.budgets(group.fitted):
            own, others = _points(report, group.fitted, budget), _points(report, rivals(group), budget)
            if own and others:
                sets[group.model, budget] = own, others
    by_model: dict[str, dict[int, Verdict]] = {}
    for (model, budget), verdict in report.verdicts.lowest_of(sets).items():
        by_model.setdefault(model, {})[budget] = verdict
    parts = []
    for model, verdicts in by_model.items():
        ends = ", ".join(f"at {b} {stated_verdict(verdicts[b])}" for b in sorted({min(verdicts), max(verdicts)}))
        parts.append(f"of {model} {course(verdicts)}; {ends}")
    start = f"The best fitted sampler relative to the best {other}, by budget (NFE)"
    return [f"{start}: {'. The same '.join(parts)}."] if parts else []


def _cost(paybacks: dict[Point, Payback]) -> list[str]:
    """The calls of all fits, and how many have paid for themselves after how many samples, by mean scores."""
    if not paybacks:
        return []
    calls = sorted(own.calls for own in paybacks.values())
    unreached = [own for own in paybacks.values() if math.isinf(own.needed[0])]
    images = sorted(own.images(own.needed[0]) for own in paybacks.values() if own not in unreached)
    paid = [value for value in images if math.isfinite(value)]
    after = f", after {math.ceil(paid[0]):,} to {math.ceil(paid[-1]):,} samples" if paid else ""
    return [
        f"A fit takes {calls[0]:,.0f} to {calls[-1]:,.0f} network calls. By mean scores, it pays for itself in "
        f"{len(paid)} of {len(paybacks)} cases (curves and budgets){after}. In {len(unreached)}, no unfitted sampler "
        f"of the study reaches the score, and in {len(images) - len(paid)}, the fit saves no evaluations."
    ]


def _moved(report: Report) -> list[str]:
    """The verdicts on numbers fitted elsewhere against those fitted in place, and against no fit."""
    sentences = []
    for other, base_of in (("fitted in place", _in_place), ("not fitted", _start)):
        pairs = {name: base for name in _elsewhere(report) if (base := base_of(report, name))}
        courses = {name: own for name, base in pairs.items() if (own := report.course(name, base))}
        text = "; ".join(f"{name} ({_source(report.curves[name].row)}) {course(own)}" for name, own in courses.items())
        sentences += [f"Numbers fitted elsewhere, relative to the same sampler {other}: {text}."] if text else []
    return sentences
