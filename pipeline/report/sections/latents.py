"""The section on latents and cascades: what they cost, who wins at equal FLOPs, and what their parts lose."""

import math
from typing import Any

import numpy as np

from pipeline.evaluation.curve import Curve
from pipeline.report.figures.scores import scale_figure
from pipeline.report.flops import bill, reference, weighted
from pipeline.report.page import Markdown, bold, code, escape, table
from pipeline.report.sections.networks import mega
from pipeline.report.statistics import Interval, interval
from pipeline.report.study import APART, Report, low_and_high
from pipeline.report.text import course, leaders, listed, number, percent, plain, stated, stated_verdict
from pipeline.report.verdicts import ROUNDING, Point, Verdict

PIXELS, LATENTS, CASCADES = FAMILIES = ("pixels", "latents", "cascades")
PAIRS = ((LATENTS, PIXELS), (CASCADES, PIXELS), (LATENTS, CASCADES))
OWN = ("strength", "truncated", *APART)  # keys that may differ within a cascade

Offers = dict[float, dict[str, list[Point]]]  # by FLOP-weighted budget and family, the lowest mean first
Compared = dict[tuple[str, str, float], Verdict]  # by two of FAMILIES and a budget
Cascade = dict[tuple[bool, float], str]  # by `truncated` and strength, ascending: a curve


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figure. None unless a model has a space, a resolution or an upsampler."""
    if not report.staged:
        return None
    offers, unit = _offers(report), reference(report)
    verdicts, cascades = _verdicts(report, offers), _cascades(report)
    return {
        "reference": code(unit),
        "unit": mega(report.training[unit]["flops"]),
        "systems": _systems(report),
        "autoencoders": _autoencoders(report),
        "ladder": code(_first(report)) if offers else "",
        "scores": _scores(report, offers, verdicts) if verdicts else "",
        "ratios": _ratios(verdicts),
        "strength_figure": _draw_strengths(report, cascades),
        "strengths": _strengths(report, cascades),
        "oracles": [{"name": code(name), "table": _oracle(own)} for name, own in _oracles(report).items()],
        "caveats": _caveats(report),
        "findings": [
            *_leaders(report, offers, verdicts),
            *_courses(verdicts),
            *(text for cascade in cascades if (text := _bought(report, cascade))),
            *(text for name, own in _oracles(report).items() for text in _lost(name, own)),
        ],
    }


def rfd(report: Report, name: str, metric: str | None = None, part: str = "train") -> Interval | None:
    """A metric (None: the score) of reconstructed images of an autoencoder; None if it is unknown.

    part: "train" or "heldout", the images that are reconstructed and those that they are compared with.
    """
    for own in report.reconstructions.get(name, {}).get(part) or []:
        if own["metric"] == (metric or report.headline) and own["value"] is not None:
            return interval(np.array([own["value"]]), math.nan if own["se"] is None else own["se"])
    return None


# What a sample costs


def _systems(report: Report) -> Markdown:
    """One line for the curves of each cost: space, FLOPs of its parts, rFD, and FLOP-weighted NFE by budget."""
    names = report.with_points(list(dict.fromkeys([*report.methods, *report.distinct])))
    budgets = report.budgets(names) if names else []
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault((*_parts(report, name), *(_cost(report, name, b) for b in budgets)), []).append(name)
    lines = [[Markdown(listed([code(name) for name in own])), *texts] for texts, own in groups.items()]
    header = ["curves", "space", "MFLOPs per evaluation", "MFLOPs of the decoder", "rFD"]
    return table([*header, *(f"budget {b}" for b in budgets)], lines)


def _parts(report: Report, name: str) -> list[str]:
    """Where a curve samples, the MFLOPs of an evaluation of each stage and of the decoder, and rFD."""
    models, space = report.curves[name].row.stages, report.model(name).space
    where = ", then ".join(_space(report, model) for model in models)
    flops = " + ".join(mega(report.training[model]["flops"]) for model in models)
    if not space:
        return [where, flops, "", ""]
    found = rfd(report, space)
    return [where, flops, mega(report.autoencoders[space]["decoder_flops"]), stated(found) if found else ""]


def _space(report: Report, model: str) -> str:
    """Where a model's samples live: "pixels 16 x 16", "latents 4 x 8 x 8 of kl"."""
    row = report.models[model].row
    height, width = (report.data[key] for key in ("height", "width"))
    if row.space:
        own = report.autoencoders[row.space]
        return f"latents {own['channels']} x {height // own['factor']} x {width // own['factor']} of {row.space}"
    resolution = row.resolution or height
    return f"pixels {resolution} x {width * resolution // height}"


def _cost(report: Report, name: str, budget: int) -> str:
    """The FLOP-weighted NFE of a curve at a budget, with the decoder's share."""
    if not report.having([name], budget):
        return report.missing(name, budget)
    nfe = report.nfe(name, budget)
    found, text = bill(report, name, nfe), number(weighted(report, name, nfe))
    return f"{text} (decoder {percent(found.decoder / found.total)})" if found.decoder else text


def _autoencoders(report: Report) -> Markdown:
    parts = {part: f"rFD, {title}" for part, title in (("train", "training"), ("heldout", "held-out"))}
    shown = [part for part in parts if any(rfd(report, name, part=part) for name in report.autoencoders)]
    lines = []
    for name, own in report.autoencoders.items():
        mse = report.reconstructions.get(name, {}).get("mse")
        distances = [stated(found) if (found := rfd(report, name, part=part)) else "" for part in shown]
        size = [own["kind"], own["factor"], own["channels"], percent(own["values"]), f"{own['parameters']:,}"]
        costs = [mega(own[f"{part}_flops"]) for part in ("encoder", "decoder")]
        lines.append([code(name), *size, "" if mse is None else number(mse), *distances, *costs])
    header = ["autoencoder", "kind", "factor", "channels", "values kept", "parameters", "MSE"]
    header += [*(parts[part] for part in shown), "MFLOPs of the encoder", "MFLOPs of the decoder"]
    return table(header, lines) if lines else Markdown("")


# Families at equal FLOPs


def _family(report: Report, name: str) -> str:
    """One of FAMILIES; empty for small images."""
    if report.curves[name].row.after:
        return CASCADES
    row = report.model(name)
    return LATENTS if row.space else PIXELS if row.lives_in_data else ""


def _stated(budget: float) -> str:
    """A FLOP-weighted budget as text; that of the reference itself is a whole number."""
    return f"{budget:.0f}" if math.isclose(budget, round(budget)) else number(budget)


def _first(report: Report) -> str:
    """The first method, whose costs are the budgets."""
    return report.methods[0]


def _offers(report: Report) -> Offers:
    """The points that each family offers within the cost of each point of the first method.

    Each distinct curve offers its point of largest cost. A curve whose point failed offers none.
    """
    costs = {name: {weighted(report, name, nfe): nfe for nfe in report.steps(name)} for name in report.distinct}
    found: Offers = {}
    for budget in sorted(weighted(report, _first(report), nfe) for nfe in report.points(_first(report))):
        found[budget] = {family: [] for family in FAMILIES}
        for name, own in costs.items():
            affordable = [cost for cost in own if cost <= budget * (1 + ROUNDING)]
            point = _point(report, name, own[max(affordable)]) if affordable else None
            if point and (family := _family(report, name)):
                found[budget][family].append(point)
        for points in found[budget].values():
            points.sort(key=lambda point: report.estimate(*point).mean)
    return found


def _point(report: Report, name: str, nfe: int) -> Point | None:
    """A curve and its smallest budget with the result at a counted NFE; None if there is no result."""
    budgets = [b for b in report.curves[name].row.nfe if report.having([name], b) and report.nfe(name, b) == nfe]
    return (name, min(budgets)) if budgets else None


def _verdicts(report: Report, offers: Offers) -> Compared:
    """The verdicts on the lowest true scores of two families at each budget at which both offer a point."""
    pairs = {
        (one, base, budget): (tuple(own[one]), tuple(own[base]))
        for one, base in PAIRS
        for budget, own in offers.items()
        if own[one] and own[base]
    }
    sets = {pair: (list(pair[0]), list(pair[1])) for pair in pairs.values()}  # budgets may have equal ones
    verdicts = report.verdicts.lowest_of(sets)
    return {key: verdicts[pair] for key, pair in pairs.items()}


def _best(report: Report, own: dict[str, list[Point]], verdicts: Compared, budget: float) -> list[str]:
    """The families that may be the best at a budget, the lowest mean first."""
    lost = {
        base if verdict.word == "better" else one
        for (one, base, at), verdict in verdicts.items()
        if at == budget and verdict.word in ("better", "worse")
    }
    kept = [family for family, points in own.items() if points and family not in lost]
    return sorted(kept, key=lambda family: report.estimate(*own[family][0]).mean)


def _scores(report: Report, offers: Offers, verdicts: Compared) -> Markdown:
    shown = [family for family in FAMILIES if any(own[family] for own in offers.values())]
    lines = []
    for budget, own in offers.items():
        best = _best(report, own, verdicts, budget)
        lines.append([_stated(budget), *(_offered(report, own[family], family in best) for family in shown)])
    return table(["FLOP-weighted budget", *shown], lines)


def _offered(report: Report, points: list[Point], best: bool) -> Markdown:
    if not points:
        return Markdown("")
    name, budget = points[0]
    text, nfe = report.stated_at(name, budget), report.nfe(name, budget)
    score = bold(text) if best else escape(text)
    return Markdown(f"{score} ({code(name)}, NFE {nfe}, costs {number(weighted(report, name, nfe))})")


def _ratios(verdicts: Compared) -> Markdown:
    pairs = list(dict.fromkeys((one, base) for one, base, _ in verdicts))
    budgets = sorted({budget for *_, budget in verdicts})
    lines = [
        [_stated(b), *(stated_verdict(verdicts[*pair, b]) if (*pair, b) in verdicts else "" for pair in pairs)]
        for b in budgets
    ]
    return table(["FLOP-weighted budget", *(f"{one} relative to {base}" for one, base in pairs)], lines)


def _leaders(report: Report, offers: Offers, verdicts: Compared) -> list[str]:
    compared = {budget for *_, budget in verdicts}
    text = leaders({_stated(b): _best(report, own, verdicts, b) for b, own in offers.items() if b in compared})
    start = f"Families that may have the lowest {report.score} at equal FLOPs, by budget"
    return [f"{start} (evaluations of {reference(report)}): {text}."] if text else []


def _courses(verdicts: Compared) -> list[str]:
    """For each two families: the verdicts at all budgets, and the ratios at the smallest and the largest one."""
    sentences = []
    for one, base in PAIRS:
        found = {_stated(b): verdict for (*pair, b), verdict in verdicts.items() if pair == [one, base]}
        if found:
            first, *_, last = [*found, *found]
            ends = {b: f"at {b} {stated_verdict(found[b])}" for b in (first, last)}
            start = f"{one.capitalize()} relative to {base} at equal FLOPs, by budget: {course(found)}"
            sentences.append(f"{start}; {', '.join(ends.values())}.")
    return sentences


# Conditioning augmentation


def _cascades(report: Report) -> list[Cascade]:
    """Every set of at least two distinct curves that differ only in the strength and the truncation of a cascade."""
    found: dict[tuple[Any, ...], Cascade] = {}
    for name in report.distinct:
        row = report.curves[name].row
        if row.after:
            rest = tuple(getattr(row, key) for key in Curve.model_fields if key not in OWN)
            found.setdefault(rest, {})[row.truncated, row.strength] = name
    return [dict(sorted(own.items())) for own in found.values() if len(own) > 1]


def _base(cascade: Cascade) -> str:
    """The curve of strength 0, or else the first one."""
    return cascade.get((False, 0.0), next(iter(cascade.values())))


def _label(report: Report, cascade: Cascade) -> str:
    row = report.curves[_base(cascade)].row
    return f"{row.model} after {row.after}"


def _setting(report: Report, name: str) -> str:
    row = report.curves[name].row
    return f"strength {plain(row.strength)}{', truncated' if row.truncated else ''}"


def _shared(report: Report, cascade: Cascade) -> list[int]:
    """The small and the largest budget of all curves of a cascade; the smallest if the small one is the largest."""
    budgets = report.common_budgets(list(cascade.values()))
    if not budgets:
        return []
    low, high = low_and_high(budgets)[0], budgets[-1]
    return list(dict.fromkeys([low if low < high else budgets[0], high]))


def _draw_strengths(report: Report, cascades: list[Cascade]) -> str:
    """Draw the score against the strength, one panel for each budget; no figure without two strengths."""
    panels: dict[str, dict[str, dict[float, Interval]]] = {}
    for cascade in cascades:
        for budget in _shared(report, cascade):
            for (truncated, strength), name in cascade.items():
                label = _label(report, cascade) + (", truncated" if truncated else "")
                if report.having([name], budget):
                    lines = panels.setdefault(f"budget {budget}", {})
                    lines.setdefault(label, {})[strength] = report.estimate(name, budget)
    if not panels:
        return ""
    path, xlabel = report.figures / "strength.png", "strength of conditioning augmentation"
    scale_figure(path, panels, xlabel, report.score, report.score_floor, log=False)
    return path.name


def _strengths(report: Report, cascades: list[Cascade]) -> Markdown:
    """One line for each curve: its score, and the verdict on it against strength 0, by budget."""
    budgets = sorted({budget for cascade in cascades for budget in _shared(report, cascade)})
    lines = []
    for cascade in cascades:
        base = _base(cascade)
        for name in cascade.values():
            texts = []
            for b in budgets:
                texts += [report.stated_at(name, b), report.difference_at(name, base, b) if name != base else ""]
            lines.append([code(name), _label(report, cascade), _setting(report, name), *texts])
    header = ["curve", "cascade", "setting"]
    for budget in budgets:
        header += [f"score, budget {budget}", f"ratio to strength 0, budget {budget}"]
    return table(header, lines) if budgets else Markdown("")


def _bought(report: Report, cascade: Cascade) -> str:
    """The verdicts on all settings of a cascade against its base at the largest budget; empty without one."""
    base, budget = _base(cascade), max(_shared(report, cascade), default=0)
    having = report.having(list(cascade.values()), budget)
    if base not in having or len(having) < 2:
        return ""
    texts = [
        f"{_setting(report, name)} {stated_verdict(report.verdict(name, base, budget))}"
        for name in having
        if name != base
    ]
    start = f"Conditioning augmentation of {_label(report, cascade)} at a budget of {budget}"
    return f"{start}, relative to {_setting(report, base)}: {'; '.join(texts)}."


# Exact denoisers


def _oracles(report: Report) -> dict[str, dict[str, Any]]:
    """The exact distances of each autoencoder that has them."""
    return {name: found for name, own in report.reconstructions.items() if (found := own.get("oracle"))}


def _oracle(found: dict[str, Any]) -> Markdown:
    lost = found["autoencoder"]
    lines = [
        [p["sampler"], p["nfe"], *map(number, (lost, p["together"] - lost, p["together"], p["pixels"]))]
        for p in found["points"]
    ]
    header = ["sampler", "NFE", "autoencoder loses", "sampler loses", "together", "the sampler in pixels"]
    return table(header, lines)


def _lost(name: str, found: dict[str, Any]) -> list[str]:
    """For each sampler: from which NFE on the autoencoder loses more than it, and pixels lose less than both."""
    lost, sentences = found["autoencoder"], []
    for sampler in dict.fromkeys(point["sampler"] for point in found["points"]):
        points = sorted((p for p in found["points"] if p["sampler"] == sampler), key=lambda p: p["nfe"])
        finer = _from([(p["nfe"], p["together"] - lost < lost) for p in points])
        pixels = _from([(p["nfe"], p["pixels"] < p["together"]) for p in points])
        start = f"On Gaussian data with exact denoisers, autoencoder {name} loses a squared distance of {number(lost)}"
        more = f"{sampler} loses less than that {finer}; in pixels, it loses less than both together {pixels}"
        sentences.append(f"{start}; {more}.")
    return sentences


def _from(found: list[tuple[int, bool]]) -> str:
    """From which NFE on something holds at all larger ones."""
    first = None
    for nfe, holds in reversed(found):
        if not holds:
            break
        first = nfe
    return "at no measured NFE" if first is None else f"from NFE {first} on"


def _caveats(report: Report) -> list[str]:
    rows = [entry.row for entry in report.curves.values()]
    found = ["FLOPs count the products of matrices and the convolutions only."]
    if report.autoencoders:
        found.append(
            "Each autoencoder is trained once, and all trainings in its latents share it: no interval includes the "
            "variance of retraining it."
        )
    if shares := sorted({row.share for row in rows if row.after}):
        found.append(
            "A cascade splits its budget between its stages by share, the part of the earlier ones "
            f"({listed([plain(share) for share in shares])}); another split may score lower."
        )
    return found
