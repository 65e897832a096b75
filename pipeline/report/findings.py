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


def best_of(report: Report, curve: str) -> tuple[float, int]:
    """The mean score of a curve's best point, and its NFE."""
    return min((point.mean, nfe) for nfe, point in report.points(curve).items())


def best_of_all(report: Report) -> tuple[str, int, float]:
    """The curve, the NFE and the mean score of the study's best point."""
    (mean, nfe), name = min((best_of(report, name), name) for name in report.distinct)
    return name, nfe, mean


def reached(report: Report, curve: str, best: float) -> list[int | None]:
    """The NFE with which a curve comes within each of SHARES of a best score."""
    floor = report.floor()
    means = {nfe: point.mean for nfe, point in report.points(curve).items()}
    return [nfe_to_reach(means, best, floor.mean if floor else 0.0, share) for share in SHARES]


def _reach(report: Report) -> list[str]:
    found = {name: reached(report, name, best_of(report, name)[0])[1] for name in report.methods}
    order = sorted((nfe, report.label(name)) for name, nfe in found.items() if nfe is not None)
    text = listed([f"{label} at NFE {nfe}" for nfe, label in order])
    name, nfe, best = best_of_all(report)
    return [
        f"Within {SHARES[1]:.0%} of its own best score's excess over the floor comes {text}.",
        f"The study's best mean score is {number(best)}, by {report.label(name)} at NFE {nfe}.",
    ]


def _choices(report: Report) -> list[str]:
    sentences = []
    for title, axis in report.ablations.items():
        for base in dict.fromkeys(report.curves[name]["base"] for name in axis):
            names = [name for name in axis if report.curves[name]["base"] == base]
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
            training = f"by {number(found.training)}" if found.training else "by less than these seeds can tell"
            return [
                f"Resampling one network moves the {report.score} of {name} at a budget of {budget} by a standard "
                f"deviation of {number(found.sampling)}, retraining it {training}."
            ]
    return []
