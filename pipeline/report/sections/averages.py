"""The section on weight averages: the score against their length."""

from functools import cache
from typing import Any, NamedTuple

import torch

from pipeline.diffusion.averages import HalfLife, Power, Profile, profiles, response, synthesis_of
from pipeline.evaluation.curve import Curve
from pipeline.report.figures.scores import scale_figure
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.study import APART, Report, low_and_high
from pipeline.report.text import course, number, percent, plain

KEYS = ("ema_halflife_images", "ema_sigma_rel")
OWN = (*KEYS, *APART)  # keys that may differ within a family
LEAST_LENGTHS = 3
SMALL_ERROR = 0.001


class Member(NamedTuple):
    """A curve with its average: the profile, and its length relative to the training.

    error: the error of a synthesised average; None for a tracked one. main: whether it is the model's own average.
    """

    curve: str
    profile: Profile
    length: float
    error: float | None
    main: bool


def families(report: Report) -> dict[str, list[Member]]:
    """The curves that differ only in their average of the weights, by model, in order of length.

    Of equal curves, the first one counts.
    """
    found: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
    for name, entry in report.curves.items():
        rest = tuple(getattr(entry.row, key) for key in Curve.model_fields if key not in OWN)
        found.setdefault((entry.row.model, rest), []).append(name)
    lines: dict[str, list[Member]] = {}
    for (model, _), names in found.items():
        if len(names) < LEAST_LENGTHS:
            continue
        distinct = {member.profile: member for member in [_member(report, name) for name in reversed(names)]}
        if len(distinct) >= LEAST_LENGTHS:
            label = model if model not in lines else f"{model}, sampled like {names[0]}"
            lines[label] = sorted(distinct.values(), key=lambda member: member.length)
    return lines


@cache
def relative_length(profile: Profile, steps: int, batch: int) -> float:
    """The standard deviation of the step of an average's weights, relative to the number of steps (EDM2)."""
    weights = response(profile, steps, batch)
    step = torch.arange(len(weights), dtype=torch.float64)
    mean = (weights * step).sum()
    return float((weights * (step - mean).square()).sum().sqrt()) / steps


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; draws the figure. None if no model has enough lengths."""
    found = families(report)
    budgets = report.common_budgets([m.curve for members in found.values() for m in members]) if found else []
    if not budgets:
        return None
    compared = low_and_high(budgets)
    panels = {f"budget {b}": lines for b in compared if (lines := _points(report, found, b))}
    if not panels:
        return None
    xlabel = "relative length of the average"
    scale_figure(report.figures / "ema_length.png", panels, xlabel, report.score, report.score_floor, log=True)
    return {
        "figure": "ema_length.png",
        "table": _table(report, found, compared),
        "findings": [text for label, members in found.items() if (text := finding(report, label, members))],
    }


def finding(report: Report, label: str, members: list[Member]) -> str:
    """The length with the lowest score at the largest budget, relative to the model's own average.

    Empty if the model's own average has no result, or if no other average has one.
    """
    budgets = report.common_budgets([m.curve for m in members])
    having = [m for m in members if budgets and report.having([m.curve], budgets[-1])]
    main = [m for m in having if m.main]
    if not main or len(having) < 2:
        return ""
    best = min(having, key=lambda m: report.estimate(m.curve, budgets[-1]).mean)
    start = f"Weight averages of {label} at a budget of {budgets[-1]}: "
    if best.main:
        return start + f"no average scores lower than the model's own ({_name(report, best.profile)})."
    return start + (
        f"the {_name(report, best.profile)}, with relative length {number(best.length)}, has the lowest mean "
        f"{report.score}; relative to the model's own, it is {course(report.course(best.curve, main[0].curve))}."
    )


def _member(report: Report, name: str) -> Member:
    row, model = report.curves[name].row, report.model(name)
    main, *others = profiles(model)
    profile: Profile = main
    if row.ema_halflife_images:
        profile = HalfLife(row.ema_halflife_images, model.ema_ramp_up)
    elif row.ema_sigma_rel:
        profile = Power(row.ema_sigma_rel)
    error = None if profile in (main, *others) else synthesis_of(model, profile).error
    return Member(name, profile, relative_length(profile, model.steps, model.batch), error, profile == main)


def _name(report: Report, profile: Profile) -> str:
    if isinstance(profile, HalfLife):
        return f"half-life of {profile.images} {report.things}"
    return f"power function of sigma_rel {plain(profile.sigma_rel)}"


def _points(report: Report, found: dict[str, list[Member]], budget: int) -> dict[str, dict[float, Any]]:
    """label -> {relative length: interval} at a budget, separately for power functions and half-lives."""
    lines: dict[str, dict[float, Any]] = {}
    for label, members in found.items():
        for member in members:
            if report.having([member.curve], budget):
                kind = "half-lives" if isinstance(member.profile, HalfLife) else "power functions"
                lines.setdefault(f"{label}, {kind}", {})[member.length] = report.estimate(member.curve, budget)
    return lines


def _table(report: Report, found: dict[str, list[Member]], budgets: list[int]) -> Markdown:
    """One line per average: its length, its origin, its score at each budget, and the verdict against the main one."""
    lines, high = [], budgets[-1]
    for label, members in found.items():
        main = next((m.curve for m in members if m.main), "")
        for member in members:
            scores = [report.stated_at(member.curve, budget) for budget in budgets]
            both = main and main != member.curve and len(report.having([main, member.curve], high)) == 2
            change = report.compared(member.curve, main, high) if both else ""
            called = _name(report, member.profile)
            shown = bold(called) if member.main else called
            lines.append(
                [label, code(member.curve), shown, number(member.length), _origin(member.error), *scores, change]
            )
    header = ["model", "curve", "average", "relative length", "origin", *(f"budget {b}" for b in budgets)]
    return table([*header, f"ratio to the model's own, budget {high}"], lines)


def _origin(error: float | None) -> str:
    if error is None:
        return "tracked"
    return f"synthesised, error {percent(error) if error >= SMALL_ERROR else f'below {percent(SMALL_ERROR)}'}"
