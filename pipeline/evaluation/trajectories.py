"""Solutions of the probability-flow ODE in the coordinates of a schedule, and how much they bend there."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import solution
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.sampling.ode import Ode

EQUAL_STEPS, EQUAL_RATIOS = 128, 256  # the levels of a course: equal steps of t, and equal ratios of sigma
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Course:
    """x = s z along t, from noise to data: t (K,), falling; x and its slope dx/dt, (K, N, d)."""

    t: Tensor
    x: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Bend:
    """How much courses bend, as means over courses. All three are 0 for straight courses of constant speed.

    curvature: (int |d^2x/dt^2|^(1/2) dt)^2 / 2. A step h of Euler's method has the error h^2 / 2 |d^2x/dt^2| (Karras et
    al. 2022, arXiv 2206.00364, sec. 3). On the grid of N steps with equal errors the sum of errors is curvature / N, so
    curvature is the cost of a schedule on its best grid.
    straightness: int_0^1 |dx/du - (x(1) - x(0))|^2 du, divided by the number of dimensions, with u the elapsed share of
    the time (Liu et al. 2022, arXiv 2209.03003, sec. 2.2). It is the cost of a schedule in equal steps of t.
    turning: the total angle by which the direction in space turns, in degrees.
    """

    curvature: float
    straightness: float
    turning: float


def courses(
    denoiser: DenoiserFunction, noise: Tensor, pairs: Iterable[tuple[str, str]], sigma_min: float, sigma_max: float
) -> dict[tuple[str, str], Course]:
    """The solutions from sigma_max * noise, (N, d), to sigma_min, by schedule and scaling.

    The ODE is solved once, in z; a schedule and a scaling then give x and t.
    """
    odes = {
        (schedule, scaling): Ode(denoiser, SCHEDULES[schedule](sigma_min, sigma_max), SCALINGS[scaling])
        for schedule, scaling in pairs
    }
    ratios = torch.linspace(0, 1, EQUAL_RATIOS + 1, dtype=torch.float64)
    shared = (sigma_max * (sigma_min / sigma_max) ** ratios)[1:-1].tolist()
    levels = {pair: _levels(ode, sigma_min, sigma_max, shared) for pair, ode in odes.items()}
    every = sorted({sigma for sigmas in levels.values() for sigma in sigmas}, reverse=True)
    place = {sigma: i for i, sigma in enumerate(every)}
    z = solution(denoiser, noise.double() * sigma_max, every, TOLERANCE)
    return {pair: _course(odes[pair], sigmas, z[[place[s] for s in sigmas]]) for pair, sigmas in levels.items()}


def _levels(ode: Ode, sigma_min: float, sigma_max: float, shared: list[float]) -> list[float]:
    """Noise levels in equal steps of t and the shared ones, falling from exactly sigma_max to exactly sigma_min."""
    times = torch.linspace(ode.t(sigma_max), ode.t(sigma_min), EQUAL_STEPS + 1, dtype=torch.float64)[1:-1]
    between = {ode.sigma(t) for t in times.tolist()} | set(shared)
    return [sigma_max, *sorted((s for s in between if sigma_min < s < sigma_max), reverse=True), sigma_min]


def _course(ode: Ode, levels: list[float], z: Tensor) -> Course:
    t = torch.tensor([ode.t(sigma) for sigma in levels], dtype=torch.float64)
    scales = torch.tensor([ode.s(sigma) for sigma in levels], dtype=torch.float64)
    slopes = [ode.slope(state, sigma, float(time)) for state, sigma, time in zip(z, levels, t, strict=True)]
    return Course(t, scales[:, None, None] * z, torch.stack(slopes))


def bend(course: Course) -> Bend:
    """The bend of a course, by the trapezoidal rule."""
    begin, end = course.t[0], course.t[-1]
    way = course.x[-1] - course.x[0]
    rate = (course.slope * (end - begin) - way).square().mean(2)
    changes = (course.slope.diff(dim=0).norm(dim=2) * course.t.diff().abs()[:, None]).sqrt().sum(0)
    return Bend(
        float(changes.square().mean() / 2),
        float(torch.trapezoid(rate, (course.t - begin) / (end - begin), dim=0).mean()),
        float(_angles(course.slope[:-1], course.slope[1:]).sum(0).mean().rad2deg()),
    )


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """The angles between vectors (..., d), in radians, by Kahan's formula, which is accurate near 0."""
    one, other = (v / v.norm(dim=-1, keepdim=True) for v in (one, other))
    return 2 * torch.atan2((one - other).norm(dim=-1), (one + other).norm(dim=-1))
