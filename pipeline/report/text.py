"""How the report writes numbers, intervals, verdicts and lists."""

import math
import re
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

from pipeline.common.files import SHORT_HASH
from pipeline.common.rows import Row
from pipeline.report.statistics import Interval
from pipeline.report.verdicts import Verdict

Budget = TypeVar("Budget", bound=Hashable)
MANY = 4  # names that a sentence lists; more are counted


def number(value: float) -> str:
    """A number with three significant digits; with an exponent only if it is very small or very large."""
    size = abs(value)
    if size >= 999_999.5:
        return f"{value:.2e}"
    if 0.001 <= size < 999.5:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:.0f}" if size >= 1 or value == 0 else f"{value:.1e}"


def signed(value: float) -> str:
    """A number with its sign."""
    return ("−" if value < 0 else "+") + number(abs(value))


def plain(value: Any) -> str:
    """A value of a row as text; of a hash, the beginning."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Row):
        return plain(value.model_dump())
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(own)}" for key, own in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:SHORT_HASH]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def stated(interval: Interval) -> str:
    """A mean with the half width of its 95% interval, if that is known."""
    return number(interval.mean) + ("" if math.isnan(interval.low) else f" ± {number(interval.half_width)}")


def stated_verdict(found: Verdict) -> str:
    """A ratio (or a difference) with its plain 95% interval, and the verdict: "×1.23 (1.10 to 1.38), worse"."""
    if found.equal:
        return "equal"
    write = number if found.is_ratio else signed
    sign, effect = "×" if found.is_ratio else "", found.effect
    ends = "error unknown" if math.isnan(effect.low) else f"{write(effect.low)} to {write(effect.high)}"
    return f"{sign}{write(effect.mean)} ({ends}), {found.word}{remark(found)}"


def remark(found: Verdict) -> str:
    """What the error of a verdict leaves out, in brackets; empty if nothing."""
    return f" ({found.remark})" if found.remark else ""


def course(found: Mapping[Budget, Verdict]) -> str:
    """The verdicts by budget: "worse at 4 and 7, equivalent at 19, undecided at 35"."""
    budgets: dict[str, list[str]] = {}
    for budget, verdict in found.items():
        word = "equal" if verdict.equal else verdict.word
        budgets.setdefault(word + remark(verdict), []).append(str(budget))
    return ", ".join(f"{word} at {listed(own)}" for word, own in budgets.items())


def leaders(found: Mapping[Budget, list[str]]) -> str:
    """The names that may be best by budget, each set with its budgets: "a alone at 4 and 7; b, a or c at 19".

    A set begins with the lowest mean; a set of more than MANY is counted.
    """
    budgets: dict[str, list[str]] = {}
    for budget, (first, *others) in found.items():
        text = f"{first} alone" if not others else f"{first} (lowest mean) or any of {len(others)} others"
        if 0 < len(others) < MANY:
            text = f"{', '.join([first, *others[:-1]])} or {others[-1]}"
        budgets.setdefault(text, []).append(str(budget))
    return "; ".join(f"{text} at {listed(own)}" for text, own in budgets.items())


def percent(share: float) -> str:
    return f"{share:.1%}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
