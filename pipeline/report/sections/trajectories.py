"""The section on trajectories: exact solutions in the coordinates of each schedule, and their curvature there."""

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

COUNT, DRAWN = 64, 10  # solutions in the table, and in the figure
POINTS = 512  # points of a study's data in the denoiser and in the figure
DOTS = 8  # equal steps of t
REACH = 1.4  # half width of the drawn plane, relative to the data

Pair = tuple[str, str]


class Plane(NamedTuple):
    """A distribution in the plane: its exact denoiser, its name, and points of it (n, 2)."""

    oracle: Mixture
    name: str
    points: Tensor


def section(report: Report) -> dict[str, Any]:
    """The section's contents; draws the figure."""
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
    """The points of a study, or the mixture of the section on exact denoisers."""
    if report.of_points:
        points = load_prepared(report.paths.data).images[:POINTS].double()
        return Plane(empirical(points), f"the study's first {len(points)} points", points)
    oracle = mixture()
    name = f"{len(oracle.means)} Gaussians of standard deviation {oracle.std} in the plane"
    return Plane(oracle, name, oracle.sample(POINTS, generator("trajectories", 1)))


def _used(report: Report) -> dict[Pair, list[str]]:
    """(schedule, scaling) -> the curves whose solvers step in t of that schedule; other solvers use sigma only."""
    found: dict[Pair, list[str]] = {}
    for name, entry in report.curves.items():
        row = entry.row
        if row.build_solver().variable == "t":
            scaling = row.scaling or SCALING_OF_SCHEDULE[row.schedule]
            found.setdefault((row.schedule, scaling), []).append(name)
    return found


def _called(pair: Pair) -> str:
    """A schedule, with its scaling if that is not the published one."""
    schedule, scaling = pair
    return schedule if SCALING_OF_SCHEDULE[schedule] == scaling else f"{schedule}, scaling {scaling}"


def _table(bends: dict[Pair, Bend], used: dict[Pair, list[str]]) -> Markdown:
    """One line per schedule and scaling, with the smallest value of each column in bold."""
    shown = {pair: (number(b.curvature), number(b.straightness), f"{b.turning:.0f}°") for pair, b in bends.items()}
    least = [min(bends, key=lambda pair: vars(bends[pair])[field.name]) for field in fields(Bend)]
    best = [shown[pair][column] for column, pair in enumerate(least)]
    lines = []
    for (schedule, scaling), texts in shown.items():
        names = used.get((schedule, scaling), [])
        by = f"{len(names)} curves, {code(names[0])} first" if len(names) > 1 else "".join(map(code, names))
        marked = [bold(text) if text == best[column] else text for column, text in enumerate(texts)]
        lines.append([code(schedule), code(scaling), *marked, Markdown(by)])
    return table(["schedule", "scaling", "curvature", "straightness", "turning", "used by"], lines)


def _finding(bends: dict[Pair, Bend]) -> str:
    """The schedules with the lowest and the highest curvature and straightness."""
    ends = {}
    for key in ("curvature", "straightness"):
        order = sorted(bends, key=lambda pair: vars(bends[pair])[key])
        least, most = (f"{_called(pair)} ({number(vars(bends[pair])[key])})" for pair in (order[0], order[-1]))
        ends[key] = f"lowest in {least} and highest in {most}"
    return (
        f"The curvature of exact solutions, which determines errors on the best grid of a schedule, is "
        f"{ends['curvature']}. Their straightness, which determines errors in equal steps of t, is "
        f"{ends['straightness']} (0 is straight)."
    )


def _draw(path: Path, found: dict[Pair, Course], points: np.ndarray) -> None:
    """One column per schedule. Top: the solutions in the plane. Bottom: the first coordinate against time."""
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
