"""How the report writes numbers, intervals, differences and lists."""

import math
from collections.abc import Iterable
from typing import Any

from pipeline.report.statistics import Interval, is_tie


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
    """A value of a row as text."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def stated(interval: Interval) -> str:
    """A mean with the half width of its 95% interval, if that is known."""
    return number(interval.mean) + ("" if math.isnan(interval.low) else f" ± {number(interval.half_width)}")


def stated_difference(change: Interval | None) -> str:
    """A difference with its 95% interval; a tie if the interval contains 0."""
    if change is None:
        return "no common seeds"
    if math.isnan(change.low):
        return f"{signed(change.mean)} (error unknown)"
    if change.low == change.high == 0:
        return "equal"
    text = f"{signed(change.mean)} ({signed(change.low)} to {signed(change.high)})"
    return text + (", tie" if is_tie(change) else "") + (", one repetition" if change.count < 2 else "")


def apart_or_tied(named: Iterable[tuple[str, Interval | None]], with_what: str = "") -> list[str]:
    """Texts for named differences: first the significant ones, then the names of all ties."""
    pairs = list(named)
    apart = [f"{name} {stated_difference(change)}" for name, change in pairs if not is_tie(change)]
    same = [name for name, change in pairs if is_tie(change)]
    parts = [listed(apart)] if apart else []
    return parts + ([f"{listed(same)} {'ties' if len(same) == 1 else 'tie'}{with_what}"] if same else [])


def relative(change: Interval | None, base: str) -> str:
    """A difference from a base, and whether it is significant."""
    verdict = "a tie" if is_tie(change) else "significant"
    return f"{stated_difference(change).replace(', tie', '')} relative to {base}, {verdict}"


def percent(share: float) -> str:
    return f"{share:.1%}"


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
