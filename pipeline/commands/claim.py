"""`claim`: whether the results of a study confirm or refute that one point has a lower score than another."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.commands.scores import Scores, read_scores
from pipeline.common.errors import StudyError, nearest
from pipeline.common.rows import NAME
from pipeline.report.comparisons import LEVEL, repetitions_needed
from pipeline.report.text import number, p_value, percent, signed, stated
from pipeline.report.verdicts import DRAWING, SAMPLING, TRAINING, Compared, Point, unit_of

_POINT = rf"({NAME[1:-1]}) *@ *(\d{{1,9}})"
CLAIM = re.compile(rf" *{_POINT} *([<>]) *{_POINT} *")
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
REPETITIONS = {TRAINING: "trainings", SAMPLING: "samplings", DRAWING: "samplings"}


class Claim(NamedTuple):
    """That the score of a point is lower (<) or higher (>) than that of another one. Points have counted NFE."""

    point: Point
    sign: str
    other: Point


def parse(text: str) -> Claim:
    """The claim that a text makes. Raises StudyError if it has another form."""
    match = CLAIM.fullmatch(text)
    if not match:
        raise StudyError(
            f"claim: {text[:100]!r} has another form; write <curve> @ <nfe> < <curve> @ <nfe>, "
            'as "edm @ 11 < ddim @ 19"'
        )
    curve, nfe, sign, other, other_nfe = match.groups()
    return Claim((curve, int(nfe)), sign, (other, int(other_nfe)))


def budget_at(scores: Scores, point: Point) -> int:
    """The budget of a curve that a claim names, by itself or by the NFE that the curve uses there.

    Raises StudyError if there is no such curve, or no result.
    """
    curve, nfe = point
    if curve not in scores.rows.curves:
        raise StudyError(f"claim: no curve {curve[:100]!r}; {nearest(curve, scores.rows.curves)}")
    points = scores.points(curve)
    budgets = {counted: budget for budget, counted in points.items()} | {budget: budget for budget in points}
    if nfe not in budgets:
        valid = f"it has results at {', '.join(map(str, points))}" if points else "it has no result"
        raise StudyError(f"claim: {curve} has no result at {nfe}; {valid}")
    return budgets[nfe]


def judge(found: Compared, sign: str) -> str:
    """CONFIRMED, REFUTED or UNDECIDED for a contrast of the two points. Equal scores refute either sign."""
    if found.equal:
        return REFUTED
    if found.contrast.p >= LEVEL:
        return UNDECIDED
    return CONFIRMED if (found.contrast.effect < 0) == (sign == "<") else REFUTED


def answer(scores: Scores, claim: Claim) -> list[str]:
    """The answer to a claim in lines. Raises StudyError if a point has no result, or both points are one."""
    points = [(point[0], budget_at(scores, point)) for point in (claim.point, claim.other)]
    one, two = points
    if one[0] == two[0] and scores.nfe(one) == scores.nfe(two):
        raise StudyError(f"claim: {one[0]} @ {scores.nfe(one)} is on both sides; compare two points")
    found = scores.between(one, two)
    word = judge(found, claim.sign)
    names = [f"{curve} @ {nfe}" for curve, nfe in (claim.point, claim.other)]
    lines = [f"{names[0]} {claim.sign} {names[1]}: {word}"]
    lines.append(f"{scores.label}, lower is better:")
    lines += [f"  {name}: {stated(scores.estimate(point))}" for name, point in zip(names, points, strict=True)]
    kind = "Ratio" if found.is_ratio else "Difference"
    lines.append(f"{kind}: {effect(found)}, {p_value(found.contrast.p)}; {_basis(scores, one, two, found)}")
    margin = math.log1p(scores.rows.report.smallest_effect)
    if found.is_ratio and found.contrast.known and abs(found.contrast.effect) + found.contrast.half_width() <= margin:
        lines.append(f"The interval lies within the smallest effect of interest, {percent(math.expm1(margin))}.")
    if word == UNDECIDED:
        lines.append(_needed(scores, one, two, found))
    return lines + scores.changes(list(dict.fromkeys([one[0], two[0]])))


def _unit(scores: Scores, one: Point, two: Point) -> str:
    """What a repetition is of a comparison."""
    units = [unit_of(scores.cells(*point)) for point in (one, two)]
    return next((unit for unit in (DRAWING, SAMPLING) if unit in units), TRAINING)


def _basis(scores: Scores, one: Point, two: Point, found: Compared) -> str:
    """What a comparison rests on: "3 trainings each"."""
    models = {scores.rows.curves[point[0]].row.model for point in (one, two)}
    shared = not scores.cells(*one).index.intersection(scores.cells(*two).index).empty
    unit = REPETITIONS[_unit(scores, one, two)]
    count = f"{found.count} {unit}" if found.count > 1 else f"one {unit[:-1]}"
    if len(models) == 1 and shared:
        return f"paired differences within {count} of {models.pop()}"
    return f"{count} each"


def effect(found: Compared) -> str:
    """The ratio of two scores, or their difference, with its 95% interval: "×0.62 (0.55 to 0.70)"."""
    contrast, half = found.contrast, found.contrast.half_width()
    if found.equal:
        return "equal"
    ends = [contrast.effect, contrast.effect - half, contrast.effect + half]
    shown = [number(math.exp(min(end, 700.0))) if found.is_ratio else signed(end) for end in ends]
    interval = f"{shown[1]} to {shown[2]}" if contrast.known else "error unknown"
    return f"{'×' if found.is_ratio else ''}{shown[0]} ({interval})"


def _needed(scores: Scores, one: Point, two: Point, found: Compared) -> str:
    """What would decide a claim at the observed effect."""
    unit, needed = _unit(scores, one, two), repetitions_needed(found.contrast, found.count)
    if not found.contrast.known:
        return "The error is unknown, because a point has a single cell without a standard error."
    if needed is None:
        return "The observed effect is too small for any feasible number of repetitions to decide it."
    words = f"{needed} {REPETITIONS[unit]}"
    if unit == DRAWING:
        words = f"{needed * scores.rows.samples} samples"
    return f"About {words} of each would decide it with 80% power, if the observed effect is the true one."


def claim_lines(params: Path, text: str) -> list[str]:
    """The answer of a study to a claim such as "dpmpp_2m @ 11 < edm @ 19". Raises StudyError as `answer` does."""
    claim = parse(text)
    return answer(read_scores(params), claim)
