"""The section on the likelihood of the data: NLL, its convergence, the way to noise and back, bounds, and scores."""

import math
from typing import Any

import numpy as np

from pipeline.data.dequantization import WIDTH
from pipeline.evaluation.likelihoods import HELDOUT, PERMUTATIONS, TESTED, TRAIN, Likelihood
from pipeline.report.comparisons import LEVEL
from pipeline.report.figures.lines import Line, shares_figure
from pipeline.report.figures.scores import Place, scatter_figure
from pipeline.report.nll import Nll, Value, rank_agreement, worst
from pipeline.report.page import Markdown, code, table
from pipeline.report.results import FAILED
from pipeline.report.sections.heldout import stated_gap
from pipeline.report.statistics import Interval, interval
from pipeline.report.study import Report
from pipeline.report.text import listed, number, plain
from pipeline.sampling.row import Sampler

LEARNED, GIVEN = ("L_diffusion", "total"), ("L_0", "L_T")  # terms of the bound that depend on the model, or do not
NAMED = ("solver", "discretization")  # sampler keys that the conventions always name
RESOLVED = ("sigma_min", "sigma_max", "scaling")  # sampler keys with values that follow from others
KINDS = {TRAIN: "training", HELDOUT: "held-out"}
UNIFORM = 8.0  # bits per dimension of equally likely levels
LEAST_MODELS = 4  # fewer say nothing about the agreement of two orders


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figures. None unless the study measures likelihoods."""
    nll = report.nll
    if nll is None:
        return None
    return {
        "conventions": _conventions(report, nll),
        "kind": KINDS[nll.part],
        "bounded": nll.bounded,
        "heldout": len(nll.images) > 1,
        "table": _table(report, nll),
        "convergence": _convergence(report, nll),
        "trips": _trips(report, nll),
        "normality": _normality(nll),
        "tested": TESTED,
        "bounds": _bounds(report, nll),
        "shares_figure": _shares(report, nll),
        "ranks": _ranks(report, nll),
        "failures": _failures(nll),
        "findings": [*_best(report, nll), *_gaps(nll)],
    }


def _conventions(report: Report, nll: Nll) -> str:
    """How the numbers of every table were measured, in one sentence."""
    row = nll.row
    low, high = row.sigma_range
    start = f"negative log-likelihood (NLL) in bits per dimension ({nll.dimensions} dimensions)"
    density = f" of the density at sigma_min = {low:g}, which may be negative" if report.of_points else ""
    noise = "no" if row.dequantization == "none" else row.dequantization
    trace = f"{row.probes} Hutchinson {'probe' if row.probes == 1 else 'probes'} per {report.thing}"
    prior = "N(0, sigma_max^2)" if row.prior == "noise" else "N(mean, sigma_max^2 + variance), both of the data"
    left_out = ", which the dequantization noise replaces" if row.dequantization == "truncated_normal" else ""
    told = any(report.models[name].row.labels == "classes" for name in nll.models)
    parts = [
        start + density,
        f"probability-flow ODE from sigma {low:g} to {high:g} with {_sampler(row)}",
        "exact trace" if row.trace == "exact" else f"trace from {trace}",
        f"{noise} dequantization, offset {number(nll.offset)} bits per dimension",
        f"prior {prior}",
        f"the interval from 0 to sigma_min is left out{left_out}",
        *([f"models with classes are {'' if row.labels == 'data' else 'not '}given those of the data"] if told else []),
        listed([f"{count} {KINDS[part]} {report.things}" for part, count in nll.images.items()]),
    ]
    return f"Conventions: {'; '.join(parts)}."


def _sampler(row: Likelihood) -> str:
    """The sampler's choices that are not the defaults, after its solver and its grid."""
    keys = [key for key, field in Sampler.model_fields.items() if field.title and key not in NAMED + RESOLVED]
    changed = [key for key in keys if getattr(row, key) != type(row).model_fields[key].default]
    return ", ".join(f"{key} {plain(getattr(row, key))}" for key in [*NAMED, *changed])


def bits(value: float) -> str:
    """A number of bits per dimension."""
    return f"{value:.3f}" if abs(value) < 1000 else number(value)


def with_interval(found: Interval) -> str:
    """A mean over trainings, with its half width unless there is a single one."""
    return bits(found.mean) + ("" if math.isnan(found.low) else f" ± {bits(found.half_width)}")


def remarked(text: str, mark: str) -> str:
    """The text of a result with the mark that it is never shown without."""
    return f"{text} ({mark})" if mark else text


def stated(value: Value | None) -> str:
    """The NLL of a model with its interval over trainings, and its mark."""
    return remarked(with_interval(value.over_trainings), value.mark) if value else FAILED


def _with_error(value: Value | None) -> str:
    """The NLL of a model with its standard error over images, and its mark."""
    return remarked(f"{bits(value.mean)}, se {bits(value.se)}", value.mark) if value else FAILED


def _name(report: Report, model: str) -> Markdown:
    share = report.share_trained(model)
    return Markdown(f"{code(model)} ({share})") if share else code(model)


def _table(report: Report, nll: Nll) -> Markdown:
    """One line per model: its NLL on each part at the largest budget, the gap, the cost, and the bound."""
    lines = []
    for name in nll.models:
        found = [nll.value(name, part) for part in nll.images]
        gap, bound, cost = nll.gap(name), nll.bound(name), next(filter(None, found), None)
        cells = [text for value in found for text in (stated(value), bits(value.se) if value else "")]
        if len(nll.images) > 1:
            cells.append(remarked(stated_gap(gap.interval), gap.mark) if gap else FAILED)
        cells += [str(cost.nfe), str(cost.products)] if cost else ["", ""]
        cells += [_bound(bound)] if nll.bounded else []
        converged = (nll.mark(name) or "yes") if None not in found else FAILED
        lines.append([_name(report, name), *cells, converged])
    heads = [text for part in nll.images for text in (f"{KINDS[part]} NLL", "se")]
    heads += ["gap"] if len(nll.images) > 1 else []
    heads += ["NFE", "Jacobian products", *([f"bound ({KINDS[nll.part]})"] if nll.bounded else []), "converged"]
    return table(["model", *heads], lines)


def _bound(found: Interval | None) -> str:
    return with_interval(found) if found else FAILED


def _convergence(report: Report, nll: Nll) -> Markdown:
    """One line per model and part: its NLL at each budget, and the extrapolated one."""
    lines = []
    for name in nll.models:
        for part in nll.images:
            found, limit, last = nll.values(name, part), nll.limit(name, part), nll.value(name, part)
            text = remarked(bits(limit), last.mark) if limit is not None and last else ""
            cells = [_with_error(found.get(steps)) for steps in nll.steps]
            lines.append([_name(report, name), KINDS[part], *cells, *([text] if len(nll.steps) > 1 else [])])
    extrapolated = ["extrapolated"] if len(nll.steps) > 1 else []
    return table(["model", report.things, *_budgets(nll), *extrapolated], lines)


def _budgets(nll: Nll) -> list[str]:
    """The headers of columns, one for each number of steps: its counted NFE, if it is known."""
    counted = nll.lines.groupby("steps").nfe.max().dropna()
    return [f"NFE {int(counted[n])}" if n in counted.index else f"{n} steps" for n in nll.steps]


def _trips(report: Report, nll: Nll) -> Markdown:
    """One line per model: the error of the way to sigma_max and back, and for how many trainings z is not normal."""
    lines = []
    for name in nll.models:
        errors = [nll.of(name, steps) for steps in nll.steps]
        texts = [_trip(report, own.round_trip.to_numpy(), own.images.to_numpy()) for own in errors]
        tested = {seed for model, seed, _ in nll.rejected if model == name}
        rejected = {seed for (model, seed, _), apart in nll.rejected.items() if model == name and apart}
        lines.append([_name(report, name), *texts, f"{len(rejected)} of {len(tested)}" if tested else FAILED])
    return table(["model", *_budgets(nll), "trainings with z not normal"], lines)


def _trip(report: Report, errors: np.ndarray, images: np.ndarray) -> str:
    """The root mean square error over all images of all trainings."""
    if not len(errors):
        return FAILED
    error = math.sqrt(float(np.average(errors**2, weights=images)))
    return number(error) + ("" if report.of_points else f" ({number(error / WIDTH)} levels)")


def _normality(nll: Nll) -> str:
    """For how many trainings the test rejects, or that it cannot."""
    count, least = len(nll.rejected), 1 / (1 + PERMUTATIONS)
    if not count:
        return ""
    if count * least >= LEVEL:
        return (
            f"The test cannot reject anything here: with {count} tests, Holm's method needs a p value below "
            f"{LEVEL / count:.2g}, and {PERMUTATIONS} permutations give {least:g} at best."
        )
    apart = len({key[:2] for key, rejected in nll.rejected.items() if rejected})
    trainings = len({key[:2] for key in nll.rejected})
    return f"Here it rejects for {apart} of {trainings} trainings, in {count} tests."


def _bounds(report: Report, nll: Nll) -> Markdown:
    """The terms of the variational bound; empty if bounds are not measured."""
    if not nll.bounded:
        return Markdown("")
    lines = []
    for name in nll.models:
        errors = [own["se"] for own in nll.bounds(name).values()] if nll.complete(name) else []
        error = bits(math.sqrt(float(np.mean(np.square(errors))))) if errors else ""
        given = [number(found.mean) if (found := nll.bound(name, term)) else "" for term in GIVEN]
        lines.append([_name(report, name), *given, *(_bound(nll.bound(name, term)) for term in LEARNED), error])
    return table(["model", *GIVEN, *LEARNED, "se of total"], lines)


def _shares(report: Report, nll: Nll) -> str:
    """Draw the parts of L_diffusion by noise level; no figure without any bound."""
    lines = {}
    for place, name in enumerate(nll.models):
        if nll.complete(name):
            low, high, parts = np.array([own["shares"] for own in nll.bounds(name).values()]).transpose(2, 0, 1)
            sigma, spread = np.sqrt(low[0] * high[0]), parts.std(0, ddof=1) if len(parts) > 1 else 0 * parts[0]
            lines[name] = Line(list(zip(sigma.tolist(), parts.mean(0).tolist(), spread.tolist(), strict=True)), place)
    if not lines:
        return ""
    path = report.figures / "likelihood_bound.png"
    count = len(next(iter(lines.values())).points)
    shares_figure(path, lines, f"bits per dimension, in each of {count} stretches")
    return path.name


def _ranks(report: Report, nll: Nll) -> dict[str, Any]:
    """Whether NLL and score order the models alike; with enough models, a table and a figure."""
    pairs, lines, places, out = [], [], dict[str, Place](), list[str]()
    for name in nll.models:
        value, at = nll.value(name, nll.part), _largest(report, name)
        scores = report.cells(*at).value.groupby("train_seed").mean() if at else None
        if value is None or at is None or scores is None:
            continue
        common = value.by_training.index.intersection(scores.index)
        if common.empty:
            continue
        own = value.by_training[common].to_numpy(), scores[common].to_numpy()
        pairs.append(own)
        x, y = (interval(values) for values in own)
        if report.of_points or x.mean <= UNIFORM:
            places[remarked(name, value.mark)] = Place(x, y)
        else:
            out.append(name)
        nfe = report.nfe(*at)
        lines.append([code(name), remarked(with_interval(x), value.mark), code(at[0]), nfe, _score(y), len(common)])
    if len(pairs) < LEAST_MODELS:
        few = f"{len(pairs) or 'No'} {'model has' if len(pairs) == 1 else 'models have'} both an NLL and a score"
        return {"text": f"{few}, too few to tell whether the two measures rank models alike.", "figure": ""}
    path = report.figures / "likelihood_and_score.png"
    scatter_figure(path, places, (f"{KINDS[nll.part]} NLL, bits per dimension", report.score))
    head = ["model", f"{KINDS[nll.part]} NLL", "curve", "NFE", report.score, "trainings"]
    mark = worst([value.mark for name in nll.models if (value := nll.value(name, nll.part))])
    left_out = f"It leaves out {listed(out)}, above {UNIFORM:g} bits, the NLL of equally likely levels." if out else ""
    text = _agreement(rank_agreement(pairs), mark)
    return {"text": text, "figure": path.name, "left_out": left_out, "table": table(head, lines)}


def _score(found: Interval) -> str:
    return number(found.mean) + ("" if math.isnan(found.low) else f" ± {number(found.half_width)}")


def _largest(report: Report, model: str) -> tuple[str, int] | None:
    """The first curve of a model and its largest budget; None without a curve, or if it has no result there."""
    curve = next((name for name, entry in report.curves.items() if entry.row.model == model), None)
    if curve is None:
        return None
    budget = max(report.curves[curve].row.nfe)
    return (curve, budget) if report.having([curve], budget) else None


def _agreement(tau: Interval, mark: str) -> str:
    """The sentence on Kendall's tau, which has the mark of the NLLs behind it."""
    if math.isnan(tau.mean):
        return "Kendall's tau is undefined, because all models are equal by one of the measures."
    text = f"Kendall's tau between NLL and score is {tau.mean:.2f} over {tau.count} models"
    if math.isnan(tau.low):
        return f"{remarked(text, mark)}; its error is unknown, because a model has a single training."
    verdict = "it is not clear whether the two measures rank these models alike"
    if tau.low > 0:
        verdict = "the two measures tend to rank these models alike"
    if tau.high < 0:
        verdict = "the two measures tend to rank these models in opposite orders"
    return f"{remarked(text, mark)}, with a 95% interval from {tau.low:.2f} to {tau.high:.2f}: {verdict}."


def _failures(nll: Nll) -> Markdown:
    """What failed, one line for each model, quantity and reason, with the seeds of its trainings."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for row in nll.lines[nll.lines.failed != ""].itertuples():
        what = f"NLL, {KINDS[str(row.part)]}, {row.steps} steps"
        seeds.setdefault((str(row.model), what, str(row.failed)), []).append(int(str(row.train_seed)))
    for name in nll.models if nll.bounded else ():
        for seed in nll.seeds(name):
            if seed not in nll.bounds(name):
                seeds.setdefault((name, "bound", "an answer of the denoiser is not finite"), []).append(seed)
    lines = [[code(name), what, listed(list(map(str, own))), why] for (name, what, why), own in seeds.items()]
    return table(["model", "quantity", "trainings", "reason"], lines) if lines else Markdown("")


def _best(report: Report, nll: Nll) -> list[str]:
    """The model with the lowest NLL, and those that are not told apart from it."""
    found = nll.best()
    if not found:
        return []
    lead, *ties = found
    value, count = nll.value(lead, nll.part), nll.images[nll.part]
    others = [name for name in nll.models if name not in found and nll.value(name, nll.part)]
    lost = [name for name in nll.models if not nll.value(name, nll.part)]
    what = f"NLL of {count} {KINDS[nll.part]} {report.things}, in bits per dimension"
    parts = [f"{'Lowest mean ' if ties or others else ''}{what}: {lead}, {stated(value)}"]
    parts += [f"not told apart from it: {listed(ties)}"] if ties else []
    parts += [f"higher by a test over trainings: {listed(others)}"] if others else []
    parts += [f"{FAILED}: {listed(lost)}"] if lost else []
    return ["; ".join(parts) + "."]


def _gaps(nll: Nll) -> list[str]:
    """Which models' gaps differ from 0."""
    gaps = {name: gap for name in nll.models if (gap := nll.gap(name))}
    if not gaps:
        return []
    apart = nll.gaps_apart()
    texts = {name: f"{name}, {remarked(stated_gap(gap.interval), gap.mark)}" for name, gap in gaps.items()}
    parts = [f"differs from 0 for {'; '.join(texts[name] for name in apart)}"] if apart else []
    rest = [texts[name] for name in gaps if name not in apart]
    parts += [f"is not told apart from 0 for {'; '.join(rest)}"] if rest else []
    return [f"Held-out minus training NLL, corrected for {len(gaps)} tests, {'. It '.join(parts)}."]
