"""Figures as Vega-Lite charts: the lines, colours and markers of the PNG files, with all their numbers.

A chart is a dictionary in Vega-Lite's format. Names and labels are values of data and never names of fields, so they
can be any text. Panels are the parts of "hconcat", which the page draws one by one.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.report.statistics import Floor, Interval

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
DIGITS = 6  # significant digits of every number
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9")
GREY = "#888888"
SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "*": "M0,-1L0.24,-0.31L0.95,-0.31L0.38,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.38,0.12L-0.95,-0.31L-0.24,-0.31Z",
    "X": "M-0.9,-0.5L-0.5,-0.9L0,-0.4L0.5,-0.9L0.9,-0.5L0.4,0L0.9,0.5L0.5,0.9L0,0.4L-0.5,0.9L-0.9,0.5L-0.4,0Z",
    "h": "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z",
    "d": "M0,-1L0.55,0L0,1L-0.55,0Z",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
}  # matplotlib's markers
REAL = "floor (real data)"
NFE = "number of function evaluations (NFE)"
CURVES = {"series": "curves"}  # the series are labels of curves, x is the counted NFE
MODELS = {"series": "models"}
POINTS = {"note": "points"}  # the note of a point is "curve (NFE)"


class Look(NamedTuple):
    """The style of a series: the place of its colour in the palette (None: grey), and its marker (or none)."""

    colour: int | None = None
    marker: str = ""

    @property
    def hue(self) -> str:
        return GREY if self.colour is None else COLOURS[self.colour % len(COLOURS)]


class Axis(NamedTuple):
    """An axis: its title, whether it is logarithmic, and optional ticks, tick names and ends."""

    title: str
    log: bool = True
    ticks: Sequence[float] = ()
    names: Sequence[str] = ()
    ends: tuple[float, float] | None = None


Point = dict[str, Any]


def rounded(value: float) -> float | None:
    """A number for a chart or the page's data; None if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def point(series: str, x: float, y: float, low: float = math.nan, high: float = math.nan, **more: Any) -> Point:
    """A point of a series, with the ends of its interval if they are known.

    more: `count`, its number of repetitions; `note`, a text; `dashed`; `bar` instead of a band; `alone`, not on a line;
    `place`, its order along a line that does not go from left to right.
    """
    found: Point = {"series": series, "x": rounded(x), "y": rounded(y)}
    if math.isfinite(low) and math.isfinite(high) and high > low:
        found |= {"low": rounded(low), "high": rounded(high)}
    return found | more


def of_interval(series: str, x: float, found: Interval, **more: Any) -> Point:
    return point(series, x, found.mean, found.low, found.high, count=found.count, **more)


def level(series: str, value: float, **more: Any) -> Point:
    """A horizontal line across a panel."""
    return {"series": series, "y": rounded(value), "level": True} | more


def floor(found: Floor, series: str = REAL) -> Point:
    return level(series, found.mean)


def chart(
    panels: Mapping[str, Sequence[Point]],
    looks: dict[str, Look],
    x: Axis,
    y: Axis,
    band: str = "95% interval",
    steps: bool = False,
    note: str = "",
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A chart of panels, title -> points. looks: the style of each series, in the order of the legend.

    band: the name of low and high; steps: whether lines are steps; note: the title of notes. An axis with distances
    that are not above 0 is linear near 0, as in the PNG. about: CURVES, MODELS or POINTS, for the page's filter.
    """
    drawn = [_panel(title, list(points), looks, x, y, band, steps, note) for title, points in panels.items()]
    head = {"$schema": SCHEMA} | ({"usermeta": about} if about else {})
    return head | (drawn[0] if len(drawn) == 1 else {"hconcat": drawn})


def _panel(
    title: str,
    points: list[Point],
    looks: dict[str, Look],
    x: Axis,
    y: Axis,
    band: str,
    steps: bool,
    note: str,
) -> dict[str, Any]:
    shown = dict.fromkeys(p["series"] for p in points)
    own = {series: looks.get(series, Look()) for series in [*looks, *shown] if series in shown}
    return {
        **({"title": title} if title else {}),
        "width": 560,
        "height": 340,
        "data": {"name": "points", "values": points},
        "encoding": {
            "y": _position("y", y, points) | {"axis": _shown(y, _reached(points))},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": list(own), "range": [look.hue for look in own.values()]},
                "legend": {"title": None},
            },
            "tooltip": _tooltip(x, y, band, points, note),
        },
        "layer": _layers(points, own, x, steps, clipped=y.ends is not None),
    }


def _layers(points: list[Point], looks: dict[str, Look], x: Axis, steps: bool, clipped: bool) -> list[dict[str, Any]]:
    """The marks that have points, from back to front."""
    at = {"x": _position("x", x, points)}
    silent = {"tooltip": {"value": None}, "detail": {"field": "dashed", "type": "nominal"}}
    # A logarithmic axis has no 0, so bands end at a twentieth of the mean.
    bottom = {"calculate": "datum.y > 0 ? max(datum.low, datum.y / 20) : datum.low", "as": "bottom"}
    ends = {"y": {"field": "bottom", "type": "quantitative"}, "y2": {"field": "high"}}
    dash = {"domain": [True], "range": [[6, 4]], "unknown": [1, 0]}
    order = "place" if any("place" in p for p in points) else "x"
    line = {
        "strokeDash": {"field": "dashed", "type": "nominal", "scale": dash, "legend": None},
        "order": {"field": order, "type": "quantitative"},
    }
    shapes = [SHAPES.get(look.marker, "circle") for look in looks.values()]
    shape = {"field": "series", "type": "nominal", "scale": {"domain": list(looks), "range": shapes}, "legend": None}
    unmarked = not any(look.marker for look in looks.values())  # invisible points still show tooltips
    dot = {"type": "point", "filled": True, "opacity": 0 if unmarked else 1, "size": 45, "clip": clipped}
    path = {"type": "line", "strokeWidth": 1.8} | ({"interpolate": "step-after"} if steps else {})
    level, placed = "datum.level === true", "datum.level !== true && isValid(datum.y)"
    joined, ended = f"{placed} && datum.alone !== true", f"{placed} && isValid(datum.low)"
    ruled = {"type": "rule", "strokeWidth": 1.5, "strokeDash": [6, 4], "clip": True}
    area, bar = {"type": "area", "opacity": 0.16, "clip": True}, {"type": "rule", "opacity": 0.7, "clip": True}
    kinds: list[tuple[bool, dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = [
        (any("level" in p for p in points), ruled, {}, [{"filter": level}]),
        (
            any("low" in p and "bar" not in p for p in points),
            area,
            at | silent | ends,
            [{"filter": f"{ended} && datum.bar !== true"}, bottom],
        ),
        (any("low" in p and "bar" in p for p in points), bar, at | ends, [{"filter": f"{ended} && datum.bar"}, bottom]),
        (any("alone" not in p for p in points), path | {"clip": True}, at | silent | line, [{"filter": joined}]),
        (True, dot, at | {"shape": shape}, [{"filter": placed}]),
    ]
    return [
        {"mark": mark, "transform": transform, "encoding": encoding}
        for wanted, mark, encoding, transform in kinds
        if wanted
    ]


def _position(field: str, axis: Axis, points: Iterable[Point]) -> dict[str, Any]:
    values = [p[field] for p in points if p.get(field) is not None]
    above = [value for value in values if value > 0]
    scale: dict[str, Any] = {"zero": False, "nice": False}
    if axis.log and len(above) == len(values):
        scale = {"type": "log", "nice": False}
    elif axis.log:
        scale |= {"type": "symlog", "constant": min(above, default=1.0)}
    if field == "y" and not axis.ends:
        scale["padding"] = 8  # pixels, so that markers are not cut off
    if axis.ends:
        scale["domain"] = [rounded(end) for end in axis.ends]
    elif field == "x" and values:
        low, high = min(values), max(values)
        room = (high / low) ** 0.03 if scale.get("type") == "log" else (high - low) * 0.03
        if low < high:
            ends = (low / room, high * room) if scale.get("type") == "log" else (low - room, high + room)
            scale["domain"] = [rounded(end) for end in ends]
    return {"field": field, "type": "quantitative", "title": axis.title, "scale": scale, "axis": _shown(axis, values)}


def _reached(points: Iterable[Point]) -> list[float]:
    """All values on a panel's vertical axis, with the ends of intervals as drawn."""
    found = []
    for p in points:
        if p["y"] is not None:
            low = max(p.get("low", p["y"]), p["y"] / 20) if p["y"] > 0 else p.get("low", p["y"])
            found += [low, p["y"], p.get("high", p["y"])]
    return found


def _shown(axis: Axis, values: list[float]) -> dict[str, Any]:
    """The ticks of an axis and their labels."""
    shown: dict[str, Any] = {"format": "~g", "labelOverlap": "greedy"}
    ticks = list(axis.ticks)
    low, high = axis.ends or (min(values, default=1.0), max(values, default=1.0))
    if axis.log and not ticks and low > 0:
        ticks = _log_ticks(low, high)
    if ticks:
        shown["values"] = [rounded(tick) for tick in ticks]
    if axis.names:
        shown |= {"labelExpr": f"{json.dumps(list(axis.names))}[datum.value - 1]", "labelAngle": -25, "grid": False}
    return shown


def _log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, fewer per decade for more decades."""
    decades = math.log10(high / low)
    parts = (1,) if decades > 3.5 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [part * 10.0**power for power in powers for part in parts if low / 1.2 <= part * 10.0**power <= high * 1.2]


def _tooltip(x: Axis, y: Axis, band: str, points: list[Point], note: str) -> list[dict[str, Any]]:
    """The fields of tooltips that any point has."""

    def number(field: str, title: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "title": title, "format": f".{DIGITS}~g"}

    found: list[dict[str, Any]] = [{"field": "series", "type": "nominal", "title": "series"}]
    found += [number("x", x.title), number("y", y.title)]
    if any("low" in p for p in points):
        found += [number("low", f"{band}, from"), number("high", f"{band}, to")]
    if any("count" in p for p in points):
        found.append({"field": "count", "type": "quantitative", "title": "repetitions"})
    if any("note" in p for p in points):
        found.append({"field": "note", "type": "nominal", "title": note})
    return found
