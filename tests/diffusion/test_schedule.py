"""Schedules and scalings: formulas, inverses and derivatives, VP's constants, and the levels of DDPM and iDDPM."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.diffusion.schedule import (
    EPS_S,
    SCALING_OF_SCHEDULE,
    SCALINGS,
    SCHEDULES,
    VP_PUBLISHED,
    ddpm_sigmas,
    iddpm_sigmas,
    vp_betas,
)
from pipeline.sampling.row import Sampler


def vp_constants(low: float, high: float) -> np.ndarray:
    """(beta_d, beta_min) as the solution of the two linear equations ln(sigma^2 + 1) = beta_d t^2 / 2 + beta_min t."""
    return np.linalg.solve([[EPS_S**2 / 2, EPS_S], [0.5, 1]], [math.log(low**2 + 1), math.log(high**2 + 1)])


def published_vp(t: float) -> float:
    return math.sqrt(math.exp(19.9 * t * t / 2 + 0.1 * t) - 1)


def solved_vp(t: float, low: float, high: float) -> float:
    beta_d, beta_min = vp_constants(low, high)
    return math.sqrt(math.exp(beta_d * t * t / 2 + beta_min * t) - 1)


def cosine(t: float) -> float:
    """From abar = cos^2((t + s) / (1 + s) pi / 2) / cos^2(s / (1 + s) pi / 2), Nichol and Dhariwal's eq. 17."""
    angle = [(v + 0.008) / 1.008 * math.pi / 2 for v in (t, 0)]
    return math.sqrt((math.cos(angle[1]) / math.cos(angle[0])) ** 2 - 1)


def cosine_time(sigma: float) -> float:
    abar = 1 / (1 + sigma**2)
    angle = math.acos(math.sqrt(abar) * math.cos(0.008 / 1.008 * math.pi / 2))
    return angle * 2 / math.pi * 1.008 - 0.008


SIGMA = {  # sigma(t) and the time of sigma_max
    "linear": (lambda t, low, high: t, lambda high: high),
    "vp": (solved_vp, lambda high: 1.0),
    "ve": (lambda t, low, high: math.sqrt(t), lambda high: high**2),
    "flow": (lambda t, low, high: t / (1 - t), lambda high: high / (1 + high)),
    "cosine": (lambda t, low, high: cosine(t), cosine_time),
}
ROUND_TRIP = {"linear": 1e-15, "vp": 1e-7, "ve": 1e-15, "flow": 1e-12, "cosine": 1e-12}  # over nine decades of sigma
S = {
    "none": lambda sigma: 1.0,
    "vp": lambda sigma: 1 / math.sqrt(1 + sigma**2),
    "flow": lambda sigma: 1 - sigma / (1 + sigma),
}
RANGES = [(0.002, 80.0), (0.02, 100.0), (published_vp(EPS_S), published_vp(1.0)), (0.002, 1000.0), (0.05, 10.0)]

all_schedules = pytest.mark.parametrize("name", SCHEDULES)
all_ranges = pytest.mark.parametrize(("low", "high"), RANGES)


def times(name: str, high: float) -> Tensor:
    last = SIGMA[name][1](high)
    return torch.cat([torch.linspace(0.01, 1, 50).double(), torch.logspace(-2, 0, 50).double()]) * last


def close(actual: Tensor, expected: object, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


def test_every_entry_has_a_formula_here() -> None:
    assert SIGMA.keys() == ROUND_TRIP.keys() == SCHEDULES.keys() == SCALING_OF_SCHEDULE.keys()
    assert S.keys() == SCALINGS.keys()


@all_schedules
@all_ranges
def test_sigma_and_its_derivative(name: str, low: float, high: float) -> None:
    schedule, t = SCHEDULES[name](low, high), times(name, high).requires_grad_()
    sigma = schedule.sigma(t)
    close(sigma.detach(), [SIGMA[name][0](value, low, high) for value in t.tolist()])
    (slope,) = torch.autograd.grad(sigma.sum(), t)
    close(schedule.sigma_dot(t.detach()), slope)


@all_schedules
@all_ranges
def test_round_trips_both_ways(name: str, low: float, high: float) -> None:
    schedule, t = SCHEDULES[name](low, high), times(name, high)
    close(schedule.t(schedule.sigma(t)), t)
    sigma = torch.logspace(math.log10(low / 20), math.log10(high), 200).double()
    close(schedule.sigma(schedule.t(sigma)), sigma)
    assert (schedule.t(sigma).diff() > 0).all()


@all_schedules
def test_round_trip_over_many_decades(name: str) -> None:
    """VP's beta_min nearly cancels near sigma = 0, the published one with a sign and a solved one with the other."""
    schedule, sigma = SCHEDULES[name](0.002, 80.0), torch.logspace(-6, 3, 500, dtype=torch.float64)
    close(schedule.sigma(schedule.t(sigma)), sigma, rtol=ROUND_TRIP[name])
    assert (schedule.t(sigma).diff() > 0).all() and (schedule.sigma_dot(schedule.t(sigma)) > 0).all()
    close(VP_PUBLISHED.sigma(VP_PUBLISHED.t(sigma)), sigma, rtol=1e-7)


@all_schedules
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 2)])
def test_schedules_keep_shape_and_dtype(name: str, shape: tuple[int, ...]) -> None:
    schedule, sigma = SCHEDULES[name](0.002, 80.0), torch.full(shape, 0.5, dtype=torch.float64)
    t = schedule.t(sigma)
    for value in (t, schedule.sigma(t), schedule.sigma_dot(t)):
        assert value.shape == shape and value.dtype == torch.float64


def exact_cosine(t: float) -> float:
    """The plain formula with 60 digits, because its difference of nearly equal numbers loses many."""
    with localcontext(prec=60):
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")

        def cos(x: Decimal) -> Decimal:
            term = total = Decimal(1)
            for k in range(1, 40):
                term *= -x * x / (2 * k * (2 * k - 1))
                total += term
            return total

        s = Decimal("0.008")
        now, first = ((v + s) / (1 + s) * pi / 2 for v in (Decimal(t), Decimal(0)))
        return float(((cos(first) / cos(now)) ** 2 - 1).sqrt())


def test_cosine_is_accurate_at_small_times() -> None:
    schedule = SCHEDULES["cosine"](0.002, 80.0)
    t = torch.logspace(-14, -0.01, 60, dtype=torch.float64)
    sigma = torch.tensor([exact_cosine(value) for value in t.tolist()], dtype=torch.float64)
    close(schedule.sigma(t), sigma, rtol=1e-13)
    close(schedule.t(sigma), t, rtol=1e-13)
    assert abs(cosine(1e-12) / exact_cosine(1e-12) - 1) > 1e-4


@all_schedules
@all_ranges
def test_sigma_zero_is_at_time_zero(name: str, low: float, high: float) -> None:
    schedule, zero = SCHEDULES[name](low, high), torch.zeros((), dtype=torch.float64)
    assert schedule.t(zero) == 0 and schedule.sigma(zero) == 0
    mixed = torch.tensor([[0.0, high], [low, 0.0]], dtype=torch.float64)
    assert ((schedule.t(mixed) == 0) == (mixed == 0)).all()


@all_ranges
def test_vp_constants_meet_the_range(low: float, high: float) -> None:
    close(torch.tensor(vp_betas(low, high), dtype=torch.float64), vp_constants(low, high), rtol=1e-8)
    ends = SCHEDULES["vp"](low, high).sigma(torch.tensor([EPS_S, 1], dtype=torch.float64))
    close(ends, [low, high], rtol=1e-9)


def test_vp_constants_of_the_published_range_are_the_published_ones() -> None:
    assert vp_betas(published_vp(1e-3), published_vp(1.0)) == pytest.approx((19.9, 0.1), rel=1e-9)
    t = torch.logspace(-5, 0, 50).double()
    close(VP_PUBLISHED.sigma(t), [published_vp(value) for value in t.tolist()])
    close(VP_PUBLISHED.t(VP_PUBLISHED.sigma(t)), t, rtol=1e-8)
    assert vp_betas(0.002, 80.0)[1] < 0  # the case that makes t(0) = 0 worth a test


def test_vp_on_a_short_range_overshoots_sigma_max() -> None:
    """If sigma_min is large, sigma(t) exceeds sigma_max before t = 1. The vp grid refuses it, the schedule does not."""
    with pytest.raises(ValueError, match="sigma_min"):
        Sampler(discretization="vp", sigma_min=0.2)
    schedule, sigma = SCHEDULES["vp"](0.2, 80.0), torch.logspace(-2, math.log10(80), 100).double()
    assert (schedule.t(sigma).diff() > 0).all() and (schedule.sigma_dot(schedule.t(sigma)) > 0).all()
    close(schedule.sigma(schedule.t(sigma)), sigma, rtol=1e-8)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_and_its_log_slope(name: str) -> None:
    scaling, sigma = SCALINGS[name], torch.logspace(-3, 3, 100).double().requires_grad_()
    s = scaling.s(sigma)
    close(s.detach(), [S[name](value) for value in sigma.tolist()])
    (slope,) = torch.autograd.grad(s.log().sum() + 0 * sigma.sum(), sigma)
    close(scaling.log_slope(sigma.detach()), slope, rtol=1e-9)
    zero = torch.zeros((), dtype=torch.float64)
    assert scaling.s(zero) == 1 and scaling.log_slope(zero).isfinite()


def test_published_scalings() -> None:
    assert SCALING_OF_SCHEDULE == {"linear": "none", "vp": "vp", "ve": "none", "flow": "flow", "cosine": "vp"}
    t = torch.linspace(0, 0.999, 100).double()
    close(SCALINGS["flow"].s(SCHEDULES["flow"](0.002, 1000.0).sigma(t)), 1 - t)


def test_iddpm_levels_follow_the_recursion() -> None:
    abar = [math.sin(math.pi * j / (2 * 1000 * 1.008)) ** 2 for j in range(1001)]
    u = [0.0] * 1001
    for j in range(1000, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], 1e-3) - 1)
    levels = iddpm_sigmas()
    assert levels.shape == (1001,) and levels[-1] == 0 and (levels.diff() < 0).all()
    close(levels, u)


def test_ddpm_levels_are_those_of_the_linear_betas() -> None:
    """sqrt((1 - abar) / abar), abar the product of 1 - beta from 1e-4 to 0.02 (Ho et al. 2020, section 4)."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    levels = ddpm_sigmas()
    assert levels.shape == (1000,) and levels.dtype == torch.float64 and (levels.diff() > 0).all()
    close(levels, np.sqrt((1 - abar) / abar))
    assert levels[[0, -1]].tolist() == pytest.approx([math.sqrt(1e-4 / (1 - 1e-4)), 157.407], rel=1e-5)
