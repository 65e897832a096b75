"""Sentences computed from the numbers."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pipeline.report.sections import factorial, paths
from pipeline.report.sections.efficiency import SHARES, reached
from pipeline.report.statistics import Interval, difference, is_tie, spread
from pipeline.report.study import Report
from pipeline.report.text import apart_or_tied, listed, number, stated, stated_difference

FIRST = 8  # sentences that a reader sees at once, at most
MANY = 4  # rows of one choice against one base: of more a sentence names the ends alone
MOST_METHODS = 12  # whose sets are gone through for ties


class Findings(NamedTuple):
    """What a reader wants to know first, and all else that can be said."""

    first: list[str]
    more: list[str]


def findings(report: Report, others: Sequence[list[str]] = ()) -> Findings:
    """What the study found: the methods, what reaching the best costs, from where on they tie, what each choice does.

    others: the findings of other sections, of which the first ones come first while there is room.
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
    lead = [own[0] for own in others if own][: max(FIRST - len(first), 0)]
    more = [
        *_methods(report),
        *samplers[1:],
        *_choices(report),
        *(text for path in paths.paths(report) if (text := paths.finding(report, path))),
        *(text for grid in factorial.grids(report) if (text := factorial.finding(report, grid))),
        *(text for own in others for text in own if text not in lead),
        *_spread(report),
    ]
    return Findings([*first, *lead], more)


def _failures(report: Report) -> list[str]:
    if not report.failures:
        return []
    count, curves = len(report.failures), list(dict.fromkeys(f.curve for f in report.failures))
    return [
        f"{count} {'set' if count == 1 else 'sets'} of samples failed, of {listed(curves)}, and the points that "
        "they belong to are left out (see the failed measurements)."
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
        tied = f", in a tie with {listed([report.label(n) for n in ties])}" if ties else ", ahead of all others"
        value = f"{stated(report.estimate(leader, budget))} at NFE {report.nfe(leader, budget)}"
        lowest = f"{report.label(leader)} has the lowest {report.score}, {value}{tied}"
        without = _without(report, {n: report.label(n) for n in report.methods if n not in having}, budget)
        sentences.append(f"At a budget of {budget} evaluations {'; '.join([lowest, *without])}.")
    return sentences


def _leaders(report: Report) -> list[str]:
    """Which method has the lowest score at which budgets, in one sentence."""
    budgets = [b for b in report.common_budgets(report.methods) if len(report.having(report.methods, b)) > 1]
    text = _by_leader(report, report.methods, budgets)
    return [f"Lowest {report.score} of the methods, by budget of evaluations: {text}."] if text else []


def _by_leader(report: Report, curves: list[str], budgets: list[int]) -> str:
    """The curves of the lowest score, each with its budgets: "a at 4 and 7, in a tie at 11; b in a tie at 19"."""
    alone: dict[str, list[str]] = {}
    tied: dict[str, list[str]] = {}
    for budget in budgets:
        leader, *ties = report.best(curves, budget)
        (tied if ties else alone).setdefault(leader, []).append(str(budget))
    parts = []
    for name in dict.fromkeys(leader for budget in budgets for leader in report.best(curves, budget)[:1]):
        where = [f"at {listed(alone[name])}"] if name in alone else []
        where += [f"in a tie at {listed(tied[name])}"] if name in tied else []
        parts.append(f"{report.label(name)} {', '.join(where)}")
    return "; ".join(parts)


def _ties(report: Report) -> list[str]:
    """From which budget on which methods tie: at it and at every larger one each of them with each other one."""
    budgets = [b for b in report.common_budgets(report.methods) if len(report.having(report.methods, b)) > 1]
    parts: list[str] = []
    before: tuple[str, ...] = ()
    for budget in budgets:
        tied = tied_from(report, [b for b in budgets if b >= budget])
        if len(tied) > len(before):
            when = f"at {budget}" if budget == budgets[-1] else f"from {budget} evaluations on"
            new = [report.label(n) for n in tied if n not in before]
            joined = before and set(before) <= set(tied)
            who = f"{listed(new)} with them" if joined else listed([report.label(n) for n in tied])
            parts.append(f"{who} {when}")
            before = tied
    if parts:
        return [f"Not told apart by paired differences: {'; '.join(parts)}."]
    return [f"No two methods tie at {budgets[-1]} evaluations, the largest budget that they share."] if budgets else []


def tied_from(report: Report, budgets: list[int]) -> tuple[str, ...]:
    """The most methods of which each two tie at all of these budgets; of equally many the first ones."""
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
    """The best sampler of each model at the budgets that most of them have; its ties stand in a table."""
    sentences = []
    for model, names in report.samplers.items():
        budgets = [b for b in report.budgets(names) if len(report.having(names, b)) > max(1, len(names) / 2)]
        text = _by_leader(report, names, budgets)
        sentences += [f"Lowest score of the {len(names)} ways to sample {model}: {text}."] if text else []
    return sentences


def _without(report: Report, curves: dict[str, str], budget: int) -> list[str]:
    """What becomes of curves, name -> what they are called, that have no result at a budget."""
    failed = [called for name, called in curves.items() if report.missing(name, budget)]
    absent = [called for name, called in curves.items() if not report.missing(name, budget)]
    texts = [f"{listed(failed)} failed"] if failed else []
    return texts + ([f"{listed(absent)} {'has' if len(absent) == 1 else 'have'} no result there"] if absent else [])


def _reach(report: Report) -> list[str]:
    """With how many evaluations each method comes near its own best."""
    found: dict[int, list[str]] = {}
    for name in report.with_points(report.methods):
        nfe = reached(report, name, report.best_point(name)[0])[0]
        if nfe is not None:
            found.setdefault(nfe, []).append(report.label(name))
    text = "; ".join(f"{listed(found[nfe])} with {nfe}" for nfe in sorted(found))
    near = f"a method's excess over the floor is within {SHARES[0]:.0%} of its own best"
    return [f"Fewest evaluations with which {near}: {text}."] if found else []


def _best(report: Report) -> list[str]:
    if not report.with_points(report.distinct):
        return []
    name, nfe, best = report.best_of_all
    where = f"by {report.label(name)} at NFE {nfe}{_below(report, best)}"
    return [f"The study's best mean score is {number(best)}, {where}."]


def _below(report: Report, best: float) -> str:
    """What a best score below the floor means; nothing where it is above."""
    floor = report.score_floor
    if best >= floor.mean:
        return ""
    apart = "less" if floor.mean - best < floor.sd else "more"
    return (
        f", below the floor ({number(floor.mean)}) by {apart} than its standard deviation over splits "
        f"({number(floor.sd)}): a model that has seen the real {report.things} it is measured against can score so, "
        "and chance can, but none is better than real"
    )


class Compared(NamedTuple):
    """Rows of one choice against one base at a budget: each row's difference, by what it changes; those without one."""

    title: str
    base: str
    budget: int
    found: list[tuple[str, Interval | None]]
    lost: dict[str, str]


def _compared(report: Report) -> list[Compared]:
    """Every choice against every base of its rows, where there is a budget at which they can be compared."""
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
    """How many of all choices help, hurt or tie, and the furthest of either kind."""
    found = [(called, d, own) for own in _compared(report) for called, d in own.found]
    apart = [(called, d, own) for called, d, own in found if d and not is_tie(d)]
    better, worse = ([entry for entry in apart if (entry[1].mean < 0) is sign] for sign in (True, False))
    if len(found) < 2:
        return []
    parts = []
    for entries, word, pick in ((better, "better", min), (worse, "worse", max)):
        if entries:
            called, change, own = pick(entries, key=lambda entry: entry[1].mean)
            most = "" if len(entries) == 1 else "most of all "
            furthest = f"{most}{called}: {stated_difference(change)} from {own.base} at {own.budget}"
            parts.append(f"{len(entries)} {'is' if len(entries) == 1 else 'are'} {word}, {furthest}")
    ties = len(found) - len(apart)
    parts += [f"{ties} {'ties' if ties == 1 else 'tie'}"] if ties else []
    chance = " Chance alone sets about one in twenty apart." if apart else ""
    return [f"Of {len(found)} choices, each against its base at the largest budget: {'; '.join(parts)}.{chance}"]


def _choices(report: Report) -> list[str]:
    sentences = []
    for own in _compared(report):
        parts = apart_or_tied(own.found) if len(own.found) <= MANY else _ends(own.found)
        parts += _without(report, own.lost, own.budget)
        start = f"{own.title[0].upper()}{own.title[1:]}, against {own.base} at a budget of {own.budget}: "
        sentences.append(start + "; ".join(parts) + ".")
    return sentences


def _ends(found: list[tuple[str, Interval | None]]) -> list[str]:
    """Of many rows the best, the worst, and how many tie."""
    apart = sorted((d.mean, called, d) for called, d in found if d and not is_tie(d))
    ties = len(found) - len(apart)
    parts = [f"of {len(found)} rows {ties or 'none'} {'ties' if ties == 1 else 'tie'}"]
    better, worse = [entry for entry in apart if entry[0] < 0], [entry for entry in apart if entry[0] >= 0]
    for entries, word, place in ((better, "better", 0), (worse, "worse", -1)):
        if entries:
            _, called, change = entries[place]
            end = "best" if word == "better" else "worst"
            which = f"the {end} {called}" if len(entries) > 1 else called
            count = f"{len(entries)} {'is' if len(entries) == 1 else 'are'}"
            parts.append(f"{count} {word}, {which} {stated_difference(change)}")
        else:
            parts.append(f"none is {word}")
    return parts


def _compared_at(report: Report, base: str, names: list[str]) -> int:
    """The largest common budget at which a base and any of its rows have a result; 0 where there is none."""
    budgets = report.common_budgets([base, *names])
    return max((b for b in budgets if report.having([base], b) and report.having(names, b)), default=0)


def _spread(report: Report) -> list[str]:
    """Retraining against resampling, at the largest budget of the first curve that tells them apart."""
    for name, entry in report.curves.items():
        budget = max((b for b in entry.row.nfe if report.having([name], b)), default=0)
        found = spread(report.cells(name, budget)) if budget else None
        if found:
            training = f"by {number(found.training)}" if found.training else "by less than these seeds can tell"
            return [
                f"Resampling one network moves the {report.score} of {name} at a budget of {budget} by a standard "
                f"deviation of {number(found.sampling)}, retraining it {training}."
            ]
    return []
