"""The report's section on trajectories: solutions with an exact denoiser in each schedule's coordinates, and how much
they bend there."""

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import load_prepared
from pipeline.diffusion.exact import Mixture, empirical
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE
from pipeline.evaluation.convergence import mixture
from pipeline.evaluation.trajectories import Bend, Course, bend, courses
from pipeline.report.figures.drawing import PALETTE, new_figure, save
from pipeline.report.page import Markdown, bold, code, table
from pipeline.report.study import Report
from pipeline.report.text import number
from pipeline.sampling.row import Sampler

COUNT, DRAWN = 64, 10  # solutions that are measured, and drawn
POINTS = 512  # of a study's own, in the denoiser and behind the solutions
DOTS = 8  # equal steps of t
REACH = 1.4  # of the plane that is drawn, in units of the data's

Pair = tuple[str, str]


class Plane(NamedTuple):
    """A distribution in the plane with its exact denoiser: what it is called, and points of it (n, 2)."""

    oracle: Mixture
    name: str
    points: Tensor


def section(report: Report) -> dict[str, Any]:
    """All that the template shows of trajectories; draws the figure."""
    used, plane = _used(report), _plane(report)
    noise = torch.randn(COUNT, 2, dtype=torch.float64, generator=generator("trajectories", 0))
    low, high = Sampler().sigma_range
    pairs = list(dict.fromkeys([*SCALING_OF_SCHEDULE.items(), *used]))

    def follow() -> tuple[dict[Pair, Course], dict[Pair, Bend]]:
        own = courses(plane.oracle, noise, pairs, low, high)
        return own, {pair: bend(course) for pair, course in own.items()}

    [(found, bends)] = side_by_side([follow])
    path = report.figures / "trajectories.png"
    _draw(path, {pair: found[pair] for pair in SCALING_OF_SCHEDULE.items()}, plane.points.numpy())
    return {
        "data": plane.name,
        "figure": path.name,
        "count": COUNT,
        "range": f"{number(high)} to {low:g}",
        "dots": DOTS,
        "table": _table(bends, used),
        "findings": [_finding(bends)],
    }


def _plane(report: Report) -> Plane:
    """A study's own points, else the mixture that solvers are measured on."""
    if report.of_points:
        points = load_prepared(report.paths.data).images[:POINTS].double()
        return Plane(empirical(points), f"the study's first {len(points)} points", points)
    oracle = mixture()
    name = f"{len(oracle.means)} Gaussians of standard deviation {oracle.std} in the plane"
    return Plane(oracle, name, oracle.sample(POINTS, generator("trajectories", 1)))


def _used(report: Report) -> dict[Pair, list[str]]:
    """(schedule, scaling) -> the curves whose solvers step in that schedule's t; others go by sigma alone."""
    found: dict[Pair, list[str]] = {}
    for name, entry in report.curves.items():
        row = entry.row
        if row.build_solver().variable == "t":
            scaling = row.scaling or SCALING_OF_SCHEDULE[row.schedule]
            found.setdefault((row.schedule, scaling), []).append(name)
    return found


def _called(pair: Pair) -> str:
    """A schedule, with its scaling where that is not the one it was published with."""
    schedule, scaling = pair
    return schedule if SCALING_OF_SCHEDULE[schedule] == scaling else f"{schedule}, scaling {scaling}"


def _table(bends: dict[Pair, Bend], used: dict[Pair, list[str]]) -> Markdown:
    """A line a schedule and scaling; the least of each column in bold."""
    shown = {pair: (number(b.curvature), number(b.straightness), f"{b.turning:.0f}°") for pair, b in bends.items()}
    least = [min(bends, key=lambda pair: vars(bends[pair])[field.name]) for field in fields(Bend)]
    best = [shown[pair][column] for column, pair in enumerate(least)]
    lines = []
    for (schedule, scaling), texts in shown.items():
        names = used.get((schedule, scaling), [])
        by = f"{len(names)} curves, {code(names[0])} first" if len(names) > 1 else "".join(map(code, names))
        marked = [bold(text) if text == best[column] else text for column, text in enumerate(texts)]
        lines.append([code(schedule), code(scaling), *marked, Markdown(by)])
    return table(["schedule", "scaling", "curvature", "straightness", "turning", "stepped in by"], lines)


def _finding(bends: dict[Pair, Bend]) -> str:
    """Which schedules lie at the two ends of the measures."""
    ends = {}
    for key in ("curvature", "straightness"):
        order = sorted(bends, key=lambda pair: vars(bends[pair])[key])
        least, most = (f"{_called(pair)} ({number(vars(bends[pair])[key])})" for pair in (order[0], order[-1]))
        ends[key] = f"least in {least} and most in {most}"
    return (
        f"Exact solutions bend {ends['curvature']}, by their curvature, which counts on the grid that suits a schedule "
        f"best; in equal steps of t {ends['straightness']}, by their straightness."
    )


def _draw(path: Path, found: dict[Pair, Course], points: np.ndarray) -> None:
    """A column a schedule: the same solutions in the plane, above the first coordinate against time."""
    size = (2.7 * len(found) + 0.4, 5.6)
    figure, (planes, times) = new_figure(size, 2, len(found), style="white")
    reach = REACH * float(np.abs(points).max())
    for (pair, course), plane, time in zip(found.items(), planes, times, strict=True):
        plane.scatter(*points.T, color="0.75", s=2, linewidths=0)
        plane.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        plane.set_title(_called(pair), fontsize=11)
        _lines(plane, time, course)
        time.set_xlim(float(course.t[0]), float(course.t[-1]))
        time.tick_params(labelsize=8)
        time.set_xlabel("t, from noise to data", fontsize=9)
    planes[0].set_ylabel("x in the plane", fontsize=9)
    times[0].set_ylabel("first coordinate of x", fontsize=9)
    save(figure, path)


def _lines(plane: Axes, time: Axes, course: Course) -> None:
    t, x = course.t.numpy(), course.x.numpy()
    dots = [int(np.abs(t - wanted).argmin()) for wanted in np.linspace(t[0], t[-1], DOTS + 1)]
    for place in range(DRAWN):
        colour = PALETTE[place]
        plane.plot(x[:, place, 0], x[:, place, 1], color=colour, linewidth=1.2)
        plane.scatter(x[dots, place, 0], x[dots, place, 1], color=colour, s=5, zorder=3)
        time.plot(t, x[:, place, 0], color=colour, linewidth=1.2)
