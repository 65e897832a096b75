"""Solutions in the coordinates of a schedule: straight courses, and closed forms for Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch

from pipeline.diffusion.exact import Gaussian, Mixture, flow, solution
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCHEDULES
from pipeline.evaluation.trajectories import bend, courses

F64 = torch.float64
LOW, HIGH = 0.002, 80.0
PUBLISHED = list(SCALING_OF_SCHEDULE.items())
NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def two_hills() -> Mixture:
    return Mixture(torch.tensor([[1.0, 0.2], [-0.7, 0.5]], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64), 0.1)


def test_a_solution_is_the_flow_at_every_level() -> None:
    oracle, sigmas = two_hills(), [5.0, 1.0, 0.3, 0.01]
    found = solution(oracle, 5 * NOISE, sigmas)
    assert found.shape == (4, 16, 2)
    for z, sigma in zip(found[1:], sigmas[1:], strict=True):
        torch.testing.assert_close(z, flow(oracle, 5 * NOISE, 5.0, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pair", PUBLISHED)
def test_a_course_is_where_the_solution_is_and_its_slope_the_derivative(pair: tuple[str, str]) -> None:
    course = courses(Gaussian(0.3, 0.5), NOISE, [pair], LOW, HIGH)[pair]
    assert (course.t.diff() < 0).all() and len(course.t) == len(course.x) == len(course.slope) > 256
    schedule = SCHEDULES[pair[0]](LOW, HIGH)
    sigma = schedule.sigma(course.t)
    s = {"none": torch.ones_like(sigma), "vp": (1 + sigma**2).rsqrt(), "flow": 1 / (1 + sigma)}[pair[1]]
    # of a Gaussian: z = mean + (z_0 - mean) sqrt((sigma^2 + std^2) / (sigma_0^2 + std^2))
    shrunk = ((sigma**2 + 0.25) / (HIGH**2 + 0.25)).sqrt()
    expected = s[:, None, None] * (0.3 + (HIGH * NOISE - 0.3) * shrunk[:, None, None])
    torch.testing.assert_close(course.x, expected, rtol=1e-6, atol=1e-7)
    middle = (course.slope[1:] + course.slope[:-1]) / 2  # the trapezoidal rule gives back the way
    way = torch.einsum("k,knd->nd", course.t.diff(), middle)
    torch.testing.assert_close(way, course.x[-1] - course.x[0], rtol=5e-3, atol=5e-3)


def test_on_one_point_the_linear_schedule_and_the_straight_path_have_straight_lines() -> None:
    """x = x0 + t n, and x = (1 - t) x0 + t n; in sigma = sqrt(t) the speed alone changes, in VP the direction does."""
    found = courses(Gaussian(0.3, 0.0), NOISE, PUBLISHED, LOW, HIGH)
    bends = {schedule: bend(course) for (schedule, _), course in found.items()}
    for schedule in ("linear", "flow"):
        assert max(vars(bends[schedule]).values()) < 1e-4, schedule
    assert bends["ve"].straightness > 0.05 and bends["ve"].curvature > 0.05 and bends["ve"].turning < 1e-4
    assert bends["vp"].straightness > 0.05 and bends["vp"].curvature > 0.05 and bends["vp"].turning > 1


@pytest.mark.parametrize("std", [0.2, 0.5, 1.0])
def test_a_gaussian_in_the_linear_schedule_bends_as_the_formulas_say(std: float) -> None:
    """x = n sqrt(t^2 + s^2), so int x'^2 dt = n^2 (T - s atan(T / s)) between the ends, and |x''| is
    n s^2 (t^2 + s^2)^(-3/2), whose root's integral over all t is sqrt(n s pi) Gamma(1/4) / (2 Gamma(3/4))."""
    bent = bend(courses(Gaussian(0.0, std), NOISE, [("linear", "none")], LOW, HIGH)["linear", "none"])
    start = NOISE * HIGH / math.hypot(HIGH, std)
    squares = (HIGH - LOW) - std * (math.atan(HIGH / std) - math.atan(LOW / std))
    way = math.hypot(HIGH, std) - math.hypot(LOW, std)
    straightness = float(start.square().mean()) * ((HIGH - LOW) * squares - way**2)
    assert bent.straightness == pytest.approx(straightness, rel=1e-3)
    root = math.sqrt(std * math.pi) * math.gamma(1 / 4) / (2 * math.gamma(3 / 4))
    beyond = 2 * std / math.sqrt(HIGH) + LOW / math.sqrt(std)  # of the integral, outside of the ends
    assert bent.curvature == pytest.approx(float(start.norm(dim=1).mean()) * (root - beyond) ** 2 / 2, rel=5e-3)
    assert bent.turning < 1e-4  # towards the mean all along


def test_the_turning_of_a_gaussian_on_the_straight_path_is_the_angle_between_its_ends() -> None:
    """In the plane of mean and noise the course is a convex arc, which turns by the angle between its end slopes."""
    course = courses(Gaussian(0.8, 0.3), NOISE, [("flow", "flow")], LOW, HIGH)["flow", "flow"]
    cosine = torch.nn.functional.cosine_similarity(course.slope[0], course.slope[-1], dim=1)
    assert bend(course).turning == pytest.approx(float(cosine.acos().rad2deg().mean()), rel=1e-3)
    assert bend(course).turning > 1


def test_eulers_errors_on_the_best_grid_are_the_curvature_over_the_steps() -> None:
    """Steps that share int |x''|^(1/2) dt equally: N local errors, from the exact course, add up to curvature / N."""
    for pair in PUBLISHED:
        course, steps = courses(two_hills(), NOISE[:1], [pair], LOW, HIGH)[pair], 24
        shares = (course.slope.diff(dim=0).norm(dim=2)[:, 0] * course.t.diff().abs()).sqrt().cumsum(0)
        wanted = shares[-1] * torch.arange(1, steps, dtype=F64) / steps
        places = [0, *(torch.searchsorted(shares, wanted) + 1).tolist(), len(course.t) - 1]
        errors = 0.0
        for i, j in pairwise(places):
            step = course.x[i] + (course.t[j] - course.t[i]) * course.slope[i]
            errors += float((step - course.x[j]).norm())
        assert steps * errors == pytest.approx(bend(course).curvature, rel=0.15), pair


def test_a_bend_grows_with_the_units_alone() -> None:
    """Data and noise levels of twice the size give the same courses at another scale."""
    pair = ("linear", "none")
    small = bend(courses(Gaussian(0.4, 0.5), NOISE, [pair], LOW, HIGH)[pair])
    large = bend(courses(Gaussian(0.8, 1.0), NOISE, [pair], 2 * LOW, 2 * HIGH)[pair])
    assert large.curvature == pytest.approx(2 * small.curvature, rel=1e-4)
    assert large.straightness == pytest.approx(4 * small.straightness, rel=1e-4)
    assert large.turning == pytest.approx(small.turning, rel=1e-4, abs=1e-4)


def test_one_solution_serves_all_schedules() -> None:
    together = courses(two_hills(), NOISE, PUBLISHED, LOW, HIGH)
    for pair, course in together.items():
        alone = courses(two_hills(), NOISE, [pair], LOW, HIGH)[pair]
        torch.testing.assert_close(course.x, alone.x, rtol=1e-5, atol=1e-6)
