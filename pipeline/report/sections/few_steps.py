"""The section on few steps by training: students beside the best samplers of their teacher, and what they cost."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.comparisons import paired
from pipeline.report.figures.scores import curves_figure
from pipeline.report.page import Markdown, bold, code, escape, table
from pipeline.report.results import FAILED
from pipeline.report.study import Report
from pipeline.report.text import course, leaders, number, percent, stated_verdict
from pipeline.report.verdicts import TRAINING, Point, Verdict
from pipeline.sampling.fitted_grids import FIT_EVALUATIONS, TRAJECTORIES
from pipeline.training.bill import bills
from pipeline.training.row import Model

EXCESSES = (10.0, 5.0, 2.0, 1.2)  # scores to reach, as excess over the floor relative to the reference's
SLACK = 0.02  # relative difference up to which total budgets are equal
LEAST_FLATTERY = 0.0005  # smaller ones round to 0
ONE, THREE = 1, 3  # the question: students at one evaluation against samplers of their teacher at three


class Way(NamedTuple):
    """A way to samples in few steps: the curves of a model, the best of which counts at each budget.

    kind: "student", "training-free" or "fitted" samplers of a teacher, or, on a student's total number of images,
    "denoising" or a training on "pairs" of noise and data.
    teacher: the model that a student is compared with; else the model itself. passes: the cost of the training and of
    everything that it needed, in passes through the network.
    """

    label: str
    kind: str
    teacher: str
    curves: list[str]
    passes: int


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figure. None unless a model of another objective than denoising has points."""
    found = ways(report)
    if not any(_few(report.model(name)) for way in found for name in way.curves):
        return None
    budgets = report.budgets([name for way in found if way.kind == "student" for name in way.curves])
    lines = {way.label: report.lowest(way.curves) for way in found}
    colours = {label: place for place, label in enumerate(lines)}
    curves_figure(report.figures / "few_steps.png", lines, report.score, colours, report.score_floor)
    of_teacher = _verdicts(report, found, budgets, lambda way, other: other.teacher == way.teacher)
    of_denoising = _verdicts(report, found, budgets, lambda way, other: other.kind == "denoising")
    of_pairs = _verdicts(report, found, budgets, lambda way, other: other.kind == "pairs")
    reference = _reference(report, found)
    parts = {report.fitted_part(name) for way in found if way.kind == "fitted" for name in way.curves}
    return {
        "figure": "few_steps.png",
        "table": _table(report, found, budgets),
        "of_teacher": _ratios(of_teacher, budgets),
        "of_denoising": _ratios(of_denoising, budgets),
        "of_pairs": _ratios(of_pairs, budgets),
        "fitting": FIT_EVALUATIONS * TRAJECTORIES if "grid" in parts else 0,
        "solvers": "solver" in parts,
        "reference": f"{number(reference[1])} ({reference[0]})" if reference else "",
        "goals": _goals(report, found, budgets, reference[1]) if reference else Markdown(""),
        "findings": [
            *_questions(report, found),
            *_leaders(report, found, budgets),
            *_courses("the best sampler of their teacher or base", of_teacher),
            *_courses("plain denoising on as many images in total", of_denoising),
            *_courses("optimal-transport pairs on as many images in total", of_pairs),
        ],
    }


def ways(report: Report) -> list[Way]:
    """The ways of a study that have any point: the samplers of teachers, denoising at equal budget, and students."""
    models = {name: entry.row for name, entry in report.models.items()}
    students = {name: _teacher(report, name) for name, row in models.items() if _few(row) or row.pairs == "reflow"}
    teachers = [name for name in dict.fromkeys(students.values()) if name not in students]
    totals = [models[name].total_images for name in students]
    found = []
    for model in teachers:
        curves = _curves(report, model)
        kinds = {name: report.fitted_part(name) for name in curves}
        for part, kind in {"": "training-free", "grid": "fitted", "solver": "fitted"}.items():
            own = [name for name in curves if kinds[name] == part]
            label = f"fitted {part}" if part else kind
            found.append(Way(f"{model} ({label})", kind, model, own, _passes(models[model])))
    for model, row in models.items():
        if model in students:
            found.append(Way(model, "student", students[model], _curves(report, model), _passes(row)))
        elif model not in teachers and any(abs(row.total_images / total - 1) <= SLACK for total in totals):
            kind, what = ("denoising",) * 2 if row.pairs == "independent" else ("pairs", f"pairs {row.pairs}")
            found.append(Way(f"{model} ({what}, equal images)", kind, model, _curves(report, model), _passes(row)))
    return [way for way in found if way.curves]


def _few(row: Model) -> bool:
    return row.objective != "denoising"


def _teacher(report: Report, name: str) -> str:
    """The model that a student learned from; without a teacher, the first of its bases that is no student."""
    row = report.models[name].row
    taught = [other for other, entry in report.models.items() if row.teacher and entry.row == row.teacher]
    bases = [name]
    while (base := report.models[bases[-1]].base) not in bases and _few(report.models[bases[-1]].row):
        bases.append(base)
    return [*taught, bases[-1]][0]


def _passes(row: Model) -> int:
    return bills(row)["both"].passes


def _curves(report: Report, model: str) -> list[str]:
    return report.with_points([name for name in report.distinct if report.curves[name].row.model == model])


def _points(report: Report, found: Iterable[Way], budget: int) -> list[Point]:
    """The points of ways at a budget, the lowest mean first."""
    names = report.having([name for way in found for name in way.curves], budget)
    return [(name, budget) for name in sorted(names, key=lambda name: report.estimate(name, budget).mean)]


def _best(report: Report, found: list[Way], budget: int) -> list[str]:
    return report.best([name for way in found for name in way.curves], budget)


def _table(report: Report, found: list[Way], budgets: list[int]) -> Markdown:
    """One line per way: its cost, and its score at each budget. In bold: it may be the best."""
    best = {budget: _best(report, found, budget) for budget in budgets}
    unit = next(way.passes for way in found if way.passes)  # an imported network has no training here
    lines = [
        [way.label, f"{way.passes / unit:.2f}", *(_cell(report, way, budget, best[budget]) for budget in budgets)]
        for way in found
    ]
    return table(["way", "training cost", *(f"budget {b}" for b in budgets)], lines)


def _cell(report: Report, way: Way, budget: int, best: list[str]) -> Markdown:
    """The lowest mean of a way at a budget, with its curve, and by how much it flatters, if there are several."""
    having = [name for name, _ in _points(report, [way], budget)]
    if not having:
        return Markdown(FAILED if any(report.missing(name, budget) for name in way.curves) else "")
    text = report.stated_at(having[0], budget)
    text = bold(text) if set(having) & set(best) else escape(text)
    if len(way.curves) == 1:
        return Markdown(text)
    ratio = report.verdicts.flattery(having, budget)
    low = f", too low by about {percent(1 - ratio)}" if ratio < 1 - LEAST_FLATTERY else ""
    return Markdown(f"{text} ({code(having[0])}{low})")


def _verdicts(
    report: Report, found: list[Way], budgets: list[int], rival: Callable[[Way, Way], bool]
) -> dict[str, dict[int, Verdict]]:
    """The verdicts on each student at each budget against the best of its rivals, which are no students."""
    sets = {}
    for way in [way for way in found if way.kind == "student"]:
        rivals = [other for other in found if other.kind != "student" and rival(way, other)]
        for budget in budgets:
            own, others = _points(report, [way], budget), _points(report, rivals, budget)
            if own and others:
                sets[way.label, budget] = own, others
    verdicts: dict[str, dict[int, Verdict]] = {}
    for (label, budget), verdict in report.verdicts.lowest_of(sets).items():
        verdicts.setdefault(label, {})[budget] = verdict
    return verdicts


def _ratios(verdicts: dict[str, dict[int, Verdict]], budgets: list[int]) -> Markdown:
    lines = [
        [label, *(stated_verdict(own[budget]) if budget in own else "" for budget in budgets)]
        for label, own in verdicts.items()
    ]
    return table(["student", *(f"budget {b}" for b in budgets)], lines) if lines else Markdown("")


def _courses(base: str, verdicts: dict[str, dict[int, Verdict]]) -> list[str]:
    text = "; ".join(f"{label} {course(own)}" for label, own in verdicts.items())
    return [f"Students at each budget (NFE), relative to {base} at the same budget: {text}."] if text else []


def _questions(report: Report, found: list[Way]) -> list[str]:
    """For each teacher: its students at one evaluation against its best sampler at each budget, above all at three.

    Then against plain denoising on as many images in total.
    """
    sentences = []
    for teacher in dict.fromkeys(way.teacher for way in found if way.kind == "student"):
        own = [way for way in found if way.kind == "student" and way.teacher == teacher]
        rivals = [way for way in found if way.kind in ("training-free", "fitted") and way.teacher == teacher]
        longer = [way for way in found if way.kind == "denoising"]
        taken, most = (report.models[name].row.total_images for name in (teacher, own[0].label))
        lengths = (
            f", which took {taken:,} {report.things} where its students took {most:,} in total," if most > taken else ""
        )
        first = _compared(report, own, rivals, f"the best sampler of {teacher}{lengths} by budget", THREE)
        if first:
            start = f"The best student of {teacher} at {ONE} evaluation, relative to "
            second = _compared(report, own, longer, "The same, relative to plain denoising on as many in total")
            sentences.append(" ".join(filter(None, (f"{start}{first}", second))))
    return sentences


def _compared(report: Report, own: list[Way], rivals: list[Way], to: str, above_all: int | None = None) -> str:
    """The verdicts on the best of some ways at one evaluation against the best of others by budget; "" without any."""
    students = _points(report, own, ONE)
    budgets = report.budgets([name for way in rivals for name in way.curves])
    sets = {b: (students, others) for b in budgets if students and (others := _points(report, rivals, b))}
    verdicts = report.verdicts.lowest_of(sets)
    if not verdicts:
        return ""
    answer = _answer(report, sets[above_all], verdicts[above_all]) if above_all in sets else ""
    return f"{to}: {course(verdicts)}{answer}."


def _answer(report: Report, sets: tuple[list[Point], list[Point]], verdict: Verdict) -> str:
    """The verdict at three evaluations in numbers, and the paired ratio of the lowest means, which is not corrected."""
    (own, *_), (base, *_) = sets
    low, high = (number(end) for end in verdict.corrected)
    means = [f"{name} ({number(report.estimate(name, budget).mean)})" for name, budget in (own, base)]
    text = f". At {THREE} it is {stated_verdict(verdict)}, corrected {low} to {high}; the lowest means are "
    return f"{text}{means[0]} and {means[1]}{_paired(report, own, base)}"


def _paired(report: Report, own: Point, base: Point) -> str:
    """The ratio of two points with its interval if the trainings of a seed are pairs; empty with fewer than two."""
    one, two = (report.verdicts.values(*point, TRAINING) for point in (own, base))
    seeds = [seed for seed in one if seed in two]
    if len(seeds) < 2 or min(*one.values(), *two.values()) <= 0:
        return ""
    found = paired(np.log([one[seed] / two[seed] for seed in seeds]))
    mean, low, high = (math.exp(found.effect + sign * found.half_width()) for sign in (0, -1, 1))
    return f", for these two alone ×{number(mean)} ({number(low)} to {number(high)}, paired by training, not corrected)"


def _leaders(report: Report, found: list[Way], budgets: list[int]) -> list[str]:
    """The ways that may be the best at each budget."""
    label = {name: way.label for way in found for name in way.curves}
    best = {b: list(dict.fromkeys(label[name] for name in _best(report, found, b))) for b in budgets}
    text = leaders({budget: labels for budget, labels in best.items() if labels})
    return [f"Ways that may have the lowest {report.score} in few steps, by budget (NFE): {text}."] if text else []


def _reference(report: Report, found: list[Way]) -> tuple[str, float] | None:
    """The first teacher's point of the largest NFE, in words, and its mean; None without a teacher."""
    points = [
        (-nfe, point.mean, name)
        for way in found
        if way.kind == "training-free" and way.teacher == found[0].teacher
        for name in way.curves
        for nfe, point in report.points(name).items()
    ]
    if not points:
        return None
    nfe, mean, name = min(points)
    return f"{report.label(name)} at NFE {-nfe}", mean


def _goals(report: Report, found: list[Way], budgets: list[int], reference: float) -> Markdown:
    """The cheapest ways to scores within budgets: one line per score, one column per budget."""
    floor, lines = report.score_floor.mean, []
    for excess in EXCESSES:
        goal = floor + excess * max(reference - floor, 0)
        lines.append([number(goal), *(_cheapest(report, found, budget, goal) for budget in budgets)])
    return table(["score", *(f"budget {b}" for b in budgets)], lines)


def _cheapest(report: Report, found: list[Way], budget: int, goal: float) -> str:
    """The cheapest ways whose interval within a budget is below a goal, after cheaper ones that may reach it."""
    doubtful: list[str] = []
    for cost in sorted({way.passes for way in found}):
        points = {
            way.label: [point for nfe, point in report.lowest(way.curves).items() if nfe <= budget]
            for way in found
            if way.passes == cost
        }
        sure = [label for label, own in points.items() if any(point.high <= goal for point in own)]
        if sure:
            return ", ".join([*doubtful, *sure])
        doubtful += [
            f"perhaps {label}"
            for label, own in points.items()
            if any(point.low <= goal or point.mean <= goal for point in own)
        ]
    return ", ".join(doubtful) or "none"
