"""`best`: the curves that may be best within a budget of network evaluations or of seconds."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.claim import effect
from pipeline.commands.scores import Scores, read_scores
from pipeline.common.errors import StudyError, nearest
from pipeline.evaluation.curve import SAMPLING_KEYS, TRANSFER, Curve
from pipeline.params.places import flow
from pipeline.report.comparisons import may_be_best
from pipeline.report.statistics import repeated
from pipeline.report.text import stated
from pipeline.report.verdicts import Point

SHOWN = 12  # rows of the table
FILLED = ("sigma_min", "sigma_max", "scaling")  # keys that a row fills in by itself
STAGE_KEYS = ("after", "strength", "truncated", "share", "guide_images", "ema_halflife_images", "ema_sigma_rel")
DECLARED = SAMPLING_KEYS | {*STAGE_KEYS, *TRANSFER}


def best_lines(params: Path, budget: int | None, seconds: float | None, model: str) -> list[str]:
    """The best curves of a study and those that may be as good, in lines.

    budget: the most network evaluations; seconds: the most seconds per image; None: any. model: "" for all. Raises
    StudyError if neither is given, or no curve has a result within them.
    """
    if budget is None and seconds is None:
        raise StudyError("best: name a limit, such as --budget 11 or --seconds 0.01")
    scores = read_scores(params)
    points = candidates(scores, budget, seconds, model)
    ordered = sorted(points, key=lambda point: float(np.mean(repeated(scores.cells(*point)))))
    by_name = dict(ordered)
    kept = may_be_best(list(by_name), lambda a, b: scores.between((a, by_name[a]), (b, by_name[b])).contrast)
    best, ties = ordered[0], [point for point in ordered[1:] if point[0] in kept]
    limits = [
        f"at most {budget} network evaluations" if budget is not None else "",
        f"at most {seconds:g} s per image" if seconds is not None else "",
        f"model {model}" if model else "",
    ]
    lines = [f"{', '.join(filter(None, [scores.label, *limits]))}; lower is better:"]
    lines += table(scores, best, ties)
    if len(ties) >= SHOWN:
        lines.append(f"  and {len(ties) - SHOWN + 1} more")
    lines.append(
        f"{len(ties)} of {len(points) - 1} others may be as good as {best[0]}." if ties else _alone(scores, ordered)
    )
    if budget is not None and scores.nfe(best) < budget:
        lines.append(f"{best[0]} uses {scores.nfe(best)} of {budget} evaluations{_gap(scores, points, budget)}.")
    line = flow(declared(scores.rows.curves[best[0]].row, scores.nfe(best)))
    return [*lines, *scores.changes([best[0]]), "The row for params.yaml:", f"  {best[0]}: {line}"]


def candidates(scores: Scores, budget: int | None, seconds: float | None, model: str) -> list[Point]:
    """The point of each curve that counts: that of its largest NFE within the limits.

    Raises StudyError if there is no such model, no timing, or no such point.
    """
    if model and model not in scores.rows.models:
        raise StudyError(f"--model: no model {model[:100]!r}; {nearest(model, scores.rows.models)}")
    if seconds is not None and not scores.seconds:
        raise StudyError(f"--seconds: {scores.paths.timings} has no current timing; `make timings` measures them")
    names = [name for name in scores.verdicts.distinct if model in ("", scores.rows.curves[name].row.model)]
    every = [(name, own, nfe) for name in names for own, nfe in scores.points(name).items()]
    found: dict[str, tuple[int, int]] = {}
    for name, own, nfe in every:
        timed = seconds is None or scores.seconds.get((name, nfe), math.inf) <= seconds
        if (budget is None or nfe <= budget) and timed and nfe > found.get(name, (0, 0))[0]:
            found[name] = nfe, own
    if not found:
        counts = ", ".join(map(str, sorted({nfe for _, _, nfe in every}))) or "none"
        fastest = min((scores.seconds.get((name, nfe), math.inf) for name, _, nfe in every), default=math.inf)
        limit = "" if seconds is None else f"; the fastest point takes {fastest:.2g} s per image"
        raise StudyError(f"best: no result within these limits; the NFE of results are {counts}{limit}")
    return [(name, own) for name, (_, own) in found.items()]


def table(scores: Scores, best: Point, ties: list[Point]) -> list[str]:
    """The best point and those that may be as good, in aligned lines."""
    rows = [("curve", "NFE", "score", "ratio to the best", "s per image")]
    for point in [best, *ties][:SHOWN]:
        nfe = scores.nfe(point)
        ratio = "" if point == best else effect(scores.between(point, best))
        time = scores.seconds.get((point[0], nfe))
        rows.append((point[0], str(nfe), stated(scores.estimate(point)), ratio, f"{time:.2g}" if time else ""))
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return ["  " + "  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def _alone(scores: Scores, ordered: list[Point]) -> str:
    """That the first point is better than all others, the next one of which is named."""
    if len(ordered) == 1:
        return "No other curve has a result here."
    best, second = ordered[:2]
    return f"No other may be as good; next is {second[0]}: {effect(scores.between(second, best))}."


def _gap(scores: Scores, points: list[Point], budget: int) -> str:
    """Why a best point uses less than the budget, if no curve has a result there."""
    if any(scores.nfe(point) == budget for point in points):
        return ""
    counts = sorted({nfe for name in scores.verdicts.distinct for nfe in scores.points(name).values()})
    return f"; no curve uses {budget}, only {', '.join(map(str, counts))}"


def declared(curve: Curve, nfe: int) -> dict[str, Any]:
    """The keys that declare a curve at one budget, without those at their defaults."""
    defaults, fields = Curve.model_fields, curve.model_dump(mode="json")
    keys = [key for key in defaults if key in DECLARED]
    found = {"model": curve.model} | {key: fields[key] for key in keys if getattr(curve, key) != defaults[key].default}
    for key in FILLED:
        without = {other: value for other, value in found.items() if other != key}
        if key in found and fields[key] == getattr(Curve(**without, nfe=(nfe,)).filled(), key):
            found = without
    return found | {"nfe": [nfe]}
