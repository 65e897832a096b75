"""Sentences computed from the numbers."""

from pipeline.report.results import Interval, difference, estimate, is_tie, nfe_to_reach, spread
from pipeline.report.study import SCORE, Report, listed, number, stated, stated_difference

SHARES = (0.05, 0.2, 1.0)  # how near to the best, in excess over the floor


def findings(report: Report) -> list[str]:
    """What the study found: the best method at each budget, what each choice does, what reaching the best costs."""
    return [*_methods(report), *_reach(report), *_choices(report), *_spread(report)]


def _methods(report: Report) -> list[str]:
    if len(report.methods) < 2:
        return []
    sentences = []
    for budget in report.budgets(report.methods):
        leader, ties = report.best(report.methods, budget)
        tied = f", in a tie with {listed([report.label(n) for n in ties])}" if ties else ", ahead of all others"
        value = f"{stated(estimate(report.cells(leader, budget)))} at NFE {report.nfe(leader, budget)}"
        sentences.append(
            f"At a budget of {budget} evaluations {report.label(leader)} has the lowest {report.score}, {value}{tied}."
        )
    return sentences


def best_of_all(report: Report) -> tuple[str, int, float]:
    """The curve, the NFE and the mean score of the study's best point."""
    points = [(point.mean, nfe, name) for name in report.curves for nfe, point in report.points(name).items()]
    mean, nfe, name = min(points)
    return name, nfe, mean


def reached(report: Report, curve: str) -> list[int | None]:
    """The NFE with which a curve comes within each of SHARES of the study's best."""
    floor, (*_, best) = report.floor(), best_of_all(report)
    means = {nfe: point.mean for nfe, point in report.points(curve).items()}
    return [nfe_to_reach(means, best, floor.mean if floor else 0.0, share) for share in SHARES]


def _reach(report: Report) -> list[str]:
    fastest = {name: nfe for name in report.methods if (nfe := reached(report, name)[1]) is not None}
    never = [report.label(name) for name in report.methods if name not in fastest]
    if not fastest:
        return []
    order = sorted(fastest, key=lambda name: fastest[name])
    text = listed([f"{report.label(name)} at NFE {fastest[name]}" for name in order])
    rest = f"; {listed(never)} never {'do' if len(never) > 1 else 'does'} within the budgets measured" if never else ""
    return [f"Within {SHARES[1]:.0%} of the best score's excess over the floor come {text}{rest}."]


def _choices(report: Report) -> list[str]:
    sentences = []
    for title, names in report.ablations.items():
        base = report.curves[names[0]]["base"]
        budget = max(report.budgets([base, *names]), default=0)
        found: dict[str, Interval | None] = {}
        if budget:
            found = {name: difference(report.cells(name, budget), report.cells(base, budget)) for name in names}
        apart = [f"{report.choice(name)} {stated_difference(d)}" for name, d in found.items() if not is_tie(d)]
        same = [report.choice(name) for name, d in found.items() if is_tie(d)]
        parts = [listed(apart)] if apart else []
        parts += [f"{listed(same)} {'ties' if len(same) == 1 else 'tie'}"] if same else []
        if parts:
            start = f"{title[0].upper()}{title[1:]}, against {base} at a budget of {budget}: "
            sentences.append(start + "; ".join(parts) + ".")
    return sentences


def _spread(report: Report) -> list[str]:
    """Retraining against resampling, at the largest budget of the first curve that tells them apart."""
    for name in report.curves:
        budget = max(report.curves[name]["nfe"])
        found = spread(report.cells(name, budget, SCORE))
        if found:
            times = f", {number(found.training / found.sampling)} times as much" if found.sampling else ""
            return [
                f"Retraining {name} moves its {report.score} at a budget of {budget} by a standard deviation of "
                f"{number(found.training)}, resampling one network by {number(found.sampling)}{times}."
            ]
    return []
