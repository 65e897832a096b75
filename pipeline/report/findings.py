"""The findings: sentences computed from the results."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.report.comparisons import WORDS
from pipeline.report.sections import factorial, paths, precision
from pipeline.report.sections.efficiency import SHARES, reached
from pipeline.report.statistics import spread
from pipeline.report.study import Report
from pipeline.report.text import MANY, course, leaders, listed, number, percent, stated_verdict
from pipeline.report.verdicts import Verdict

FIRST = 9  # the most sentences at the top of the report


class Findings(NamedTuple):
    """The sentences at the top of the report, and all others."""

    first: list[str]
    more: list[str]


def findings(report: Report, others: Sequence[list[str]] = ()) -> Findings:
    """What the study found about its methods, their costs, and each choice.

    others: the findings of other sections. The first finding of each comes first as long as there is room.
    """
    samplers = _samplers(report)
    first = [
        *_failed_trainings(report),
        *_failures(report),
        *_leaders(report),
        *_reach(report),
        *_best(report),
        *precision.finding(report),
        *_all_choices(report),
        *samplers[:1],
    ]
    lead = [sentences[0] for sentences in others if sentences][: max(FIRST - len(first), 0)]
    more = [
        *_methods(report),
        *samplers[1:],
        *_choices(report),
        *(text for path in paths.paths(report) if (text := paths.finding(report, path))),
        *(text for grid in factorial.grids(report) if (text := factorial.finding(report, grid))),
        *(text for sentences in others for text in sentences if text not in lead),
        *_spread(report),
    ]
    return Findings([*first, *lead], more)


def _failed_trainings(report: Report) -> list[str]:
    lost = [f"{name} ({report.share_trained(name)} left)" for name in report.models if report.failed_trainings(name)]
    return [f'Trainings failed, of {listed(lost)} (see "Failed trainings").'] if lost else []


def _failures(report: Report) -> list[str]:
    if not report.failures:
        return []
    count, curves = len(report.failures), list(dict.fromkeys(f.curve for f in report.failures))
    return [
        f"{count} {'set' if count == 1 else 'sets'} of samples failed, of {listed(curves)}. The report omits their "
        'points (see "Failed measurements").'
    ]


def _methods(report: Report) -> list[str]:
    """Each method against the first one, at all budgets."""
    base, *others = report.methods
    sentences = []
    for name in others:
        found = report.course(name, base)
        parts = [course(found)] if found else []
        lost = [b for b in report.common_budgets([name, base]) if b not in found]
        parts += [f"no result at {listed([str(b) for b in lost])}"] if lost else []
        if parts:
            sentences.append(f"{report.label(name)}, relative to {report.label(base)}: {'; '.join(parts)}.")
    return sentences


def _leaders(report: Report) -> list[str]:
    """The methods that may be the best at each budget, in one sentence."""
    text = _by_leader(report, report.methods, report.contested_budgets(report.methods))
    return [f"Methods that may have the lowest {report.score}, by budget (NFE): {text}."] if text else []


def _by_leader(report: Report, curves: list[str], budgets: list[int]) -> str:
    """The curves that may be best, each set with its budgets."""
    return leaders({budget: [report.label(name) for name in report.best(curves, budget)] for budget in budgets})


def _samplers(report: Report) -> list[str]:
    """The samplers of each model that may be best, at the budgets of most of its curves; a table lists them."""
    sentences = []
    for model, names in report.samplers.items():
        budgets = [b for b in report.budgets(names) if len(report.having(names, b)) > max(1, len(names) / 2)]
        text = _by_leader(report, names, budgets)
        sentences += (
            [f"Of the {len(names)} samplers of {model}, these may have the lowest score, by budget (NFE): {text}."]
            if text
            else []
        )
    return sentences


def _without(report: Report, curves: dict[str, str]) -> list[str]:
    """Remarks on curves, name -> label, without a result together with their base."""
    failed = [label for name, label in curves.items() if any(report.missing(name, b) for b in report.budgets([name]))]
    absent = [label for label in curves.values() if label not in failed]
    texts = [f"{listed(failed)} failed"] if failed else []
    return texts + ([f"{listed(absent)} {'has' if len(absent) == 1 else 'have'} no result"] if absent else [])


def _reach(report: Report) -> list[str]:
    """The evaluations that each method needs to approach its own best score."""
    found: dict[int, list[str]] = {}
    for name in report.with_points(report.methods):
        nfe = reached(report, name, report.best_point(name)[0])[0]
        if nfe is not None:
            found.setdefault(nfe, []).append(report.label(name))
    text = "; ".join(f"{listed(found[nfe])} with {nfe}" for nfe in sorted(found))
    goal = f"bring a method's excess over the floor within {SHARES[0]:.0%} of its lowest excess"
    return [f"Fewest evaluations that {goal}: {text}."] if found else []


def _best(report: Report) -> list[str]:
    if not report.with_points(report.distinct):
        return []
    name, nfe, best = report.best_of_all
    budget = min(b for b in report.curves[name].row.nfe if report.having([name], b) and report.nfe(name, b) == nfe)
    where = f"{report.label(name)} at NFE {nfe} has the lowest mean score of the study, {number(best)}"
    names = report.having(report.distinct, budget)
    ratio = report.verdicts.flattery(names, budget)
    by_chance = (
        f"; the lowest of the {len(names)} means at its budget is too low by chance, by about {percent(1 - ratio)}"
    )
    chosen = "" if math.isnan(ratio) else by_chance
    return [f"{where}{chosen}{_below(report, best)}."]


def _below(report: Report, best: float) -> str:
    """A remark on a best score below the floor; nothing if it is not."""
    floor = report.score_floor
    if best >= floor.mean:
        return ""
    apart = "less" if floor.mean - best < floor.sd else "more"
    return (
        f". It is below the floor ({number(floor.mean)}) by {apart} than the floor's standard deviation over splits "
        f"({number(floor.sd)}). Chance, or training on the same real {report.things}, can cause this; samples cannot "
        "be better than real"
    )


class Compared(NamedTuple):
    """Rows of a choice against a base: row -> verdicts by budget, and rows without a result, row -> change."""

    title: str
    base: str
    found: dict[str, dict[int, Verdict]]
    lost: dict[str, str]


def _compared(report: Report) -> list[Compared]:
    """Every choice against every base of its rows, if any of them has a result together with the base."""
    found = []
    for title, axis in report.ablations.items():
        for base in dict.fromkeys(report.curves[name].base for name in axis):
            names = [name for name in axis if report.curves[name].base == base]
            courses = {name: own for name in names if (own := report.course(name, base))}
            lost = {name: report.choice(name) for name in names if name not in courses}
            found += [Compared(title, base, courses, lost)] if courses else []
    return found


def kind(found: dict[int, Verdict]) -> str:
    """The verdicts on a row at all budgets in one phrase."""
    words = {"equivalent" if verdict.equal else verdict.word for verdict in found.values()}
    if {"better", "worse"} <= words:
        return "better at some budgets and worse at others"
    for word, never in (("better", "worse"), ("worse", "better")):
        if word in words:
            return f"{word} at one budget or more and {never} at none"
    return "equivalent at all budgets" if words == {"equivalent"} else "neither better nor worse at any budget"


def _all_choices(report: Report) -> list[str]:
    """The numbers of choices by kind, over all budgets, and the largest effects."""
    every = [(name, own, group) for group in _compared(report) for name, own in group.found.items()]
    if len(every) < 2:
        return []
    counts: dict[str, int] = {}
    for _, own, _ in every:
        counts[kind(own)] = counts.get(kind(own), 0) + 1
    told = [(v.effect.mean, name, b, v, g) for name, own, g in every for b, v in own.items() if v.is_ratio]
    extremes = []
    for word, pick in (("improvement", min), ("worsening", max)):
        decided = [entry for entry in told if entry[3].word == WORDS[word == "worsening"]]
        if decided:
            _, name, budget, verdict, group = pick(decided, key=lambda entry: entry[0])
            extremes.append(
                f"the largest {word} is {report.choice(name)} at {budget}, {stated_verdict(verdict)}, relative to "
                f"{group.base}"
            )
    parts = [f"{count} {'is' if count == 1 else 'are'} {text}" for text, count in counts.items()]
    ends = f" Of the budgets and choices, {'; '.join(extremes)}." if extremes else ""
    return [f"Of {len(every)} choices, each compared with its base at all budgets, {'; '.join(parts)}.{ends}"]


def _choices(report: Report) -> list[str]:
    sentences = []
    for group in _compared(report):
        if len(group.found) <= MANY:
            parts = [f"{report.choice(name)}: {course(own)}" for name, own in group.found.items()]
        else:
            kinds: dict[str, list[str]] = {}
            for name, own in group.found.items():
                kinds.setdefault(kind(own), []).append(report.choice(name))
            parts = [f"{_counted(names)} {text}" for text, names in kinds.items()]
        parts += _without(report, group.lost)
        start = f"{group.title[0].upper()}{group.title[1:]}, relative to {group.base}: "
        sentences.append(start + "; ".join(parts) + ".")
    return sentences


def _counted(names: list[str]) -> str:
    """Few names, or the number of many."""
    if len(names) > MANY:
        return f"{len(names)} rows are"
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"


def _spread(report: Report) -> list[str]:
    """Retraining against resampling, at the largest budget of the first curve that has both components."""
    for name, entry in report.curves.items():
        budget = max((b for b in entry.row.nfe if report.having([name], b)), default=0)
        found = spread(report.cells(name, budget)) if budget else None
        if found:
            training = number(found.training) if found.training else "too little to estimate from these seeds"
            return [
                f"Standard deviations of the {report.score} of {name} at a budget of {budget}: "
                f"{number(found.sampling)} from resampling one network, {training} from retraining it."
            ]
    return []
