"""The findings: sentences computed from the results."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pipeline.report.sections import factorial, paths
from pipeline.report.sections.efficiency import SHARES, reached
from pipeline.report.statistics import Interval, difference, is_tie, spread
from pipeline.report.study import Report
from pipeline.report.text import apart_or_tied, listed, number, stated, stated_difference

FIRST = 8  # the most sentences at the top of the report
MANY = 4  # rows of a choice that a sentence lists; of more it names the best and the worst
MOST_METHODS = 12  # methods of which all subsets are searched for ties


class Findings(NamedTuple):
    """The sentences at the top of the report, and all others."""

    first: list[str]
    more: list[str]


def findings(report: Report, others: Sequence[list[str]] = ()) -> Findings:
    """What the study found about its methods, their costs and ties, and each choice.

    others: the findings of other sections. The first finding of each comes first as long as there is room.
    """
    samplers = _samplers(report)
    first = [
        *_failures(report),
        *_leaders(report),
        *_reach(report),
        *_ties(report),
        *_best(report),
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


def _failures(report: Report) -> list[str]:
    if not report.failures:
        return []
    count, curves = len(report.failures), list(dict.fromkeys(f.curve for f in report.failures))
    return [
        f"{count} {'set' if count == 1 else 'sets'} of samples failed, of {listed(curves)}. The report omits their "
        'points (see "Failed measurements").'
    ]


def _methods(report: Report) -> list[str]:
    if len(report.methods) < 2:
        return []
    sentences = []
    for budget in report.common_budgets(report.methods):
        having = report.having(report.methods, budget)
        if len(having) < 2:
            continue
        leader, *ties = report.best(having, budget)
        tied = f", tied with {listed([report.label(n) for n in ties])}" if ties else ", ahead of all others"
        value = f"{stated(report.estimate(leader, budget))} at NFE {report.nfe(leader, budget)}"
        lowest = f"{report.label(leader)} has the lowest {report.score}, {value}{tied}"
        without = _without(report, {n: report.label(n) for n in report.methods if n not in having}, budget)
        sentences.append(f"At a budget of {budget} evaluations, {'; '.join([lowest, *without])}.")
    return sentences


def _leaders(report: Report) -> list[str]:
    """The method with the lowest score at each budget, in one sentence."""
    budgets = [b for b in report.common_budgets(report.methods) if len(report.having(report.methods, b)) > 1]
    text = _by_leader(report, report.methods, budgets)
    return [f"Lowest {report.score} among the methods, by budget (NFE): {text}."] if text else []


def _by_leader(report: Report, curves: list[str], budgets: list[int]) -> str:
    """The curves with the lowest score, each with its budgets: "a at 4 and 7, tied at 11; b tied at 19"."""
    alone: dict[str, list[str]] = {}
    tied: dict[str, list[str]] = {}
    for budget in budgets:
        leader, *ties = report.best(curves, budget)
        (tied if ties else alone).setdefault(leader, []).append(str(budget))
    parts = []
    for name in dict.fromkeys(leader for budget in budgets for leader in report.best(curves, budget)[:1]):
        where = [f"at {listed(alone[name])}"] if name in alone else []
        where += [f"tied at {listed(tied[name])}"] if name in tied else []
        parts.append(f"{report.label(name)} {', '.join(where)}")
    return "; ".join(parts)


def _ties(report: Report) -> list[str]:
    """The budgets from which on methods tie: all pairs of them, at this budget and at all larger ones."""
    budgets = [b for b in report.common_budgets(report.methods) if len(report.having(report.methods, b)) > 1]
    parts: list[str] = []
    before: tuple[str, ...] = ()
    for budget in budgets:
        tied = tied_from(report, [b for b in budgets if b >= budget])
        if len(tied) > len(before):
            when = f"at {budget}" if budget == budgets[-1] else f"from {budget} evaluations on"
            new = [report.label(n) for n in tied if n not in before]
            joined = before and set(before) <= set(tied)
            who = f"also {listed(new)}" if joined else listed([report.label(n) for n in tied])
            parts.append(f"{who} {when}")
            before = tied
    if parts:
        return [f"Methods that tie: {'; '.join(parts)}."]
    return [f"No two methods tie at {budgets[-1]} evaluations, their largest common budget."] if budgets else []


def tied_from(report: Report, budgets: list[int]) -> tuple[str, ...]:
    """The largest set of methods in which all pairs tie at all of these budgets; the first of equally large sets."""
    having = [n for n in report.methods if all(report.having([n], b) for b in budgets)][:MOST_METHODS]
    tied = {
        pair
        for pair in combinations(having, 2)
        if all(is_tie(difference(*(report.cells(name, budget) for name in pair))) for budget in budgets)
    }
    for count in range(len(having), 1, -1):
        for names in combinations(having, count):
            if tied.issuperset(combinations(names, 2)):
                return names
    return ()


def _samplers(report: Report) -> list[str]:
    """The best sampler of each model at the budgets of most of its curves; a table lists its ties."""
    sentences = []
    for model, names in report.samplers.items():
        budgets = [b for b in report.budgets(names) if len(report.having(names, b)) > max(1, len(names) / 2)]
        text = _by_leader(report, names, budgets)
        sentences += (
            [f"Lowest score among the {len(names)} samplers of {model}, by budget (NFE): {text}."] if text else []
        )
    return sentences


def _without(report: Report, curves: dict[str, str], budget: int) -> list[str]:
    """Remarks on curves, name -> label, without a result at a budget."""
    failed = [label for name, label in curves.items() if report.missing(name, budget)]
    absent = [label for name, label in curves.items() if not report.missing(name, budget)]
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
    where = f"{report.label(name)} at NFE {nfe} has the best mean score of the study, {number(best)}"
    return [f"{where}{_below(report, best)}."]


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
    """Rows of a choice against a base at a budget: (change, difference), and rows without a result, name -> change."""

    title: str
    base: str
    budget: int
    found: list[tuple[str, Interval | None]]
    lost: dict[str, str]


def _compared(report: Report) -> list[Compared]:
    """Every choice against every base of its rows, if there is a budget with results of both."""
    found = []
    for title, axis in report.ablations.items():
        for base in dict.fromkeys(report.curves[name].base for name in axis):
            names = [name for name in axis if report.curves[name].base == base]
            budget = _compared_at(report, base, names)
            having = report.having(names, budget) if budget else []
            differences = [
                (
                    report.choice(name) + report.once(name, base, budget),
                    difference(report.cells(name, budget), report.cells(base, budget)),
                )
                for name in having
            ]
            lost = {name: report.choice(name) for name in names if name not in having}
            found += [Compared(title, base, budget, differences, lost)] if having else []
    return found


def _all_choices(report: Report) -> list[str]:
    """The numbers of choices that are better, worse or tie, and the extremes."""
    found = [(change, d, group) for group in _compared(report) for change, d in group.found]
    apart = [(change, d, group) for change, d, group in found if d and not is_tie(d)]
    better, worse = ([entry for entry in apart if (entry[1].mean < 0) is sign] for sign in (True, False))
    if len(found) < 2:
        return []
    parts = []
    for entries, word, pick in ((better, "better", min), (worse, "worse", max)):
        if entries:
            change, d, group = pick(entries, key=lambda entry: entry[1].mean)
            most = "" if len(entries) == 1 else "most of all "
            extreme = f"{most}{change}: {stated_difference(d)} relative to {group.base} at budget {group.budget}"
            parts.append(f"{len(entries)} {'is' if len(entries) == 1 else 'are'} {word}, {extreme}")
    ties = len(found) - len(apart)
    parts += [f"{ties} {'ties' if ties == 1 else 'tie'}"] if ties else []
    chance = " By chance alone, about one in twenty would not tie." if apart else ""
    return [f"Of {len(found)} choices, each compared with its base at the largest budget: {'; '.join(parts)}.{chance}"]


def _choices(report: Report) -> list[str]:
    sentences = []
    for group in _compared(report):
        parts = apart_or_tied(group.found) if len(group.found) <= MANY else _ends(group.found)
        parts += _without(report, group.lost, group.budget)
        start = f"{group.title[0].upper()}{group.title[1:]}, relative to {group.base} at a budget of {group.budget}: "
        sentences.append(start + "; ".join(parts) + ".")
    return sentences


def _ends(found: list[tuple[str, Interval | None]]) -> list[str]:
    """The best and the worst of many rows, and the number of ties."""
    apart = sorted((d.mean, change, d) for change, d in found if d and not is_tie(d))
    ties = len(found) - len(apart)
    parts = [f"{ties or 'none'} of {len(found)} rows {'tie' if ties > 1 else 'ties'}"]
    better, worse = [entry for entry in apart if entry[0] < 0], [entry for entry in apart if entry[0] >= 0]
    for entries, word, place in ((better, "better", 0), (worse, "worse", -1)):
        if entries:
            _, change, d = entries[place]
            end = "best" if word == "better" else "worst"
            which = f"the {end} is {change}" if len(entries) > 1 else change
            count = f"{len(entries)} {'is' if len(entries) == 1 else 'are'}"
            parts.append(f"{count} {word}, {which}: {stated_difference(d)}")
        else:
            parts.append(f"none is {word}")
    return parts


def _compared_at(report: Report, base: str, names: list[str]) -> int:
    """The largest common budget at which a base and any of its rows have a result; 0 without one."""
    budgets = report.common_budgets([base, *names])
    return max((b for b in budgets if report.having([base], b) and report.having(names, b)), default=0)


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
