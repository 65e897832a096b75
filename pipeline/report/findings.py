"""Sentences computed from the numbers."""

from pipeline.report import factorial, paths
from pipeline.report.results import difference, nfe_to_reach, spread
from pipeline.report.study import Report, apart_or_tied, listed, number, stated

SHARES = (0.05, 0.2, 1.0)  # how near to the best, in excess over the floor


def findings(report: Report) -> list[str]:
    """What the study found: the best method at each budget, what each choice does, what reaching the best costs."""
    return [
        *_failures(report),
        *_methods(report),
        *_samplers(report),
        *_reach(report),
        *_choices(report),
        *(text for path in paths.paths(report) if (text := paths.finding(report, path))),
        *(text for grid in factorial.grids(report) if (text := factorial.finding(report, grid))),
        *_spread(report),
    ]


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


def _samplers(report: Report) -> list[str]:
    """The best sampler of each model at the budgets that most of them have; its ties stand in a table."""
    sentences = []
    for model, names in report.samplers.items():
        leaders: dict[str, list[str]] = {}
        for budget in report.budgets(names):
            if len(report.having(names, budget)) > max(1, len(names) / 2):
                leader, *ties = report.best(names, budget)
                leaders.setdefault(leader, []).append(f"{budget} (in a tie)" if ties else str(budget))
        text = "; ".join(f"{name} at {listed(budgets)}" for name, budgets in leaders.items())
        sentences += [f"Of the ways to sample {model} that of the lowest score, by budget: {text}."] if text else []
    return sentences


def _without(report: Report, curves: dict[str, str], budget: int) -> list[str]:
    """What becomes of curves, name -> what they are called, that have no result at a budget."""
    failed = [called for name, called in curves.items() if report.missing(name, budget)]
    absent = [called for name, called in curves.items() if not report.missing(name, budget)]
    texts = [f"{listed(failed)} failed"] if failed else []
    return texts + ([f"{listed(absent)} {'has' if len(absent) == 1 else 'have'} no result there"] if absent else [])


def best_of(report: Report, curve: str) -> tuple[float, int]:
    """The mean score of the best point of a curve that has any, and its NFE."""
    return min((point.mean, nfe) for nfe, point in report.points(curve).items())


def best_of_all(report: Report) -> tuple[str, int, float]:
    """The curve, the NFE and the mean score of the study's best point."""
    (mean, nfe), name = min((best_of(report, name), name) for name in report.with_points(report.distinct))
    return name, nfe, mean


def reached(report: Report, curve: str, best: float) -> list[int | None]:
    """The NFE with which a curve comes within each of SHARES of a best score."""
    means = {nfe: point.mean for nfe, point in report.points(curve).items()}
    return [nfe_to_reach(means, best, report.score_floor.mean, share) for share in SHARES]


def _reach(report: Report) -> list[str]:
    methods = report.with_points(report.methods)
    found = {name: reached(report, name, best_of(report, name)[0])[1] for name in methods}
    order = sorted((nfe, report.label(name)) for name, nfe in found.items() if nfe is not None)
    text = listed([f"{label} at NFE {nfe}" for nfe, label in order])
    name, nfe, best = best_of_all(report)
    near = f"A method's score, less the floor, comes within {SHARES[1]:.0%} of that of its own best with {text}."
    return [
        *([near] if methods else []),
        f"The study's best mean score is {number(best)}, by {report.label(name)} at NFE {nfe}{_below(report, best)}.",
    ]


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


def _choices(report: Report) -> list[str]:
    sentences = []
    for title, axis in report.ablations.items():
        for base in dict.fromkeys(report.curves[name]["base"] for name in axis):
            names = [name for name in axis if report.curves[name]["base"] == base]
            budget = _compared_at(report, base, names)
            having = report.having(names, budget) if budget else []
            found = [
                (report.choice(name), difference(report.cells(name, budget), report.cells(base, budget)))
                for name in having
            ]
            lost = {name: report.choice(name) for name in names if name not in having}
            if parts := apart_or_tied(found):
                parts += _without(report, lost, budget)
                start = f"{title[0].upper()}{title[1:]}, against {base} at a budget of {budget}: "
                sentences.append(start + "; ".join(parts) + ".")
    return sentences


def _compared_at(report: Report, base: str, names: list[str]) -> int:
    """The largest common budget at which a base and any of its rows have a result; 0 where there is none."""
    budgets = report.common_budgets([base, *names])
    return max((b for b in budgets if report.having([base], b) and report.having(names, b)), default=0)


def _spread(report: Report) -> list[str]:
    """Retraining against resampling, at the largest budget of the first curve that tells them apart."""
    for name, row in report.curves.items():
        budget = max((b for b in row["nfe"] if report.having([name], b)), default=0)
        found = spread(report.cells(name, budget)) if budget else None
        if found:
            training = f"by {number(found.training)}" if found.training else "by less than these seeds can tell"
            return [
                f"Resampling one network moves the {report.score} of {name} at a budget of {budget} by a standard "
                f"deviation of {number(found.sampling)}, retraining it {training}."
            ]
    return []
