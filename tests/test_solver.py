"""Solvers: the ODE they solve, measured orders, tableaus, and DDIM against Euler and DDPM's posterior."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import linear_regression

import pytest
import torch
from torch import Tensor

from pipeline.oracle import Gaussian, Mixture
from pipeline.sampler import Sampler
from pipeline.sampling import sample
from pipeline.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES
from pipeline.solver import DDIM, SOLVERS, STOCHASTIC, Path, RungeKutta, Solver
from tests.runge_kutta import flow_by_rk4

F64 = torch.float64
GAUSSIAN = Gaussian(0.2, 0.5)
LOW, HIGH = 0.002, 80.0
ORDERS = {"euler": 1, "heun": 2, "ddim": 1}
MIXTURE = Mixture(torch.tensor([[1.0], [-0.5]], dtype=F64).expand(2, 3), torch.tensor([0.2, 0.8], dtype=F64), 0.5)
BEGIN, END = 1.5, 0.6  # of the interval on which orders are measured
SETTINGS = [(oracle, name, 1.0) for oracle in (GAUSSIAN, MIXTURE) for name in SOLVERS]
SETTINGS += [(oracle, "heun", 2 / 3) for oracle in (GAUSSIAN, MIXTURE)]
SETTINGS += [(MIXTURE, "heun", 0.5)]  # on the Gaussian the midpoint method happens to be of order 3

all_schedules = pytest.mark.parametrize("schedule", SCHEDULES)


def path_of(schedule: str, scaling: str | None = None) -> Path:
    return Path(GAUSSIAN, SCHEDULES[schedule](LOW, HIGH), SCALINGS[scaling or SCALING_OF_SCHEDULE[schedule]])


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def start(sigma: float) -> Tensor:
    """z, (N, d), spread as the noisy data are."""
    spread = torch.linspace(-2, 2, 12, dtype=F64).reshape(4, 3)
    return GAUSSIAN.mean + math.hypot(sigma, GAUSSIAN.std) * spread


@cache
def exact(oracle: Gaussian | Mixture) -> Tensor:
    """z at sigma = END, from dz/dsigma = (z - D) / sigma: a Runge-Kutta method of order 4 in ln sigma."""
    if isinstance(oracle, Gaussian):
        return oracle.flow(start(BEGIN), scalar(BEGIN), scalar(END))
    return flow_by_rk4(oracle, start(BEGIN), BEGIN, END, 500)


def error(solver: Solver, path: Path, steps: int) -> float:
    """Of z at sigma = END after `steps` steps, uniform in t, from sigma = BEGIN."""
    first, last = path.schedule.t(scalar(BEGIN)), path.schedule.t(scalar(END))
    times = torch.lerp(first, last, torch.arange(steps + 1, dtype=F64) / steps)
    x = path.s(first) * start(BEGIN)
    for t, t_next in pairwise(times):
        x = solver.step(path, x, t, t_next, silent)
    return float((x / path.s(last) - exact(path.denoiser)).square().mean().sqrt())


def test_every_solver_has_an_order_here() -> None:
    assert ORDERS.keys() == SOLVERS.keys()
    assert {name for name in SOLVERS if hasattr(SOLVERS[name](1.0, 0.5), "eta")} == STOCHASTIC


@all_schedules
@pytest.mark.parametrize("scaling", SCALINGS)
def test_slope_is_the_derivative_of_the_exact_flow(schedule: str, scaling: str) -> None:
    path = path_of(schedule, scaling)
    for sigma in (0.01, 0.3, 1.0, 20.0):
        t = path.schedule.t(scalar(sigma)).requires_grad_()

        def x(t: Tensor, path: Path = path) -> Tensor:
            return path.s(t) * GAUSSIAN.flow(start(80.0), scalar(80.0), path.schedule.sigma(t))

        expected = torch.autograd.functional.jacobian(x, t)
        with torch.no_grad():
            torch.testing.assert_close(path.slope(x(t), t), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("oracle", "name", "alpha"), SETTINGS)
@all_schedules
def test_measured_order(oracle: Gaussian | Mixture, name: str, alpha: float, schedule: str) -> None:
    """The slope of a line through log error over log h."""
    solver, path = SOLVERS[name](alpha, 0.0), replace(path_of(schedule), denoiser=oracle)
    steps = [32, 64, 128, 256]
    errors = [error(solver, path, n) for n in steps]
    order = -linear_regression([math.log(n) for n in steps], [math.log(e) for e in errors]).slope
    assert order == pytest.approx(ORDERS[name], abs=0.15), errors
    assert solver.order == ORDERS[name]


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2 / 3, 0.25])
def test_second_order_family(alpha: float) -> None:
    path, t, t_next = path_of("vp"), scalar(0.6), scalar(0.5)
    x = path.s(t) * start(float(path.schedule.sigma(t)))
    h = t_next - t
    d = path.slope(x, t)
    d_prime = path.slope(x + alpha * h * d, t + alpha * h)
    expected = x + h * ((1 - 1 / (2 * alpha)) * d + d_prime / (2 * alpha))
    torch.testing.assert_close(SOLVERS["heun"](alpha, 0.0).step(path, x, t, t_next, silent), expected)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (((),), (0.5,)),  # weights that do not sum to 1
        (((), (1.0,)), (1.0,)),  # a longer than b
        (((),), (0.5, 0.5)),  # a shorter than b
        (((0.0,), (1.0,)), (0.5, 0.5)),  # not strictly lower triangular
        (((), (1.0, 0.0)), (0.5, 0.5)),
    ],
)
def test_a_wrong_tableau_is_refused(a: tuple[tuple[float, ...], ...], b: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lower triangular"):
        RungeKutta(a=a, b=b, order=1)


@pytest.mark.parametrize(
    ("name", "schedule"), [("euler", "linear"), ("euler", "flow"), ("heun", "linear"), ("heun", "flow")]
)
def test_a_last_step_along_a_straight_path_returns_the_denoised(name: str, schedule: str) -> None:
    path = path_of(schedule)
    z, sigma = start(0.3), scalar(0.3)
    t = path.schedule.t(sigma)
    end = SOLVERS[name](1.0, 0.0).step(path, path.s(t) * z, t, scalar(0.0), silent)
    torch.testing.assert_close(end, GAUSSIAN(z, sigma), rtol=1e-12, atol=1e-12)


@all_schedules
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_of_ddim_returns_the_denoised(schedule: str, eta: float) -> None:
    path = path_of(schedule)
    z, sigma = start(0.3), scalar(0.3)
    t = path.schedule.t(sigma)
    end = DDIM(eta).step(path, path.s(t) * z, t, scalar(0.0), silent)
    torch.testing.assert_close(end, GAUSSIAN(z, sigma), rtol=1e-9, atol=1e-9)


def test_ddim_is_euler_in_linear_and_in_flow_but_not_in_vp() -> None:
    noise = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    run = lambda **row: sample(GAUSSIAN, noise, Sampler(**row), 9, silent).x0  # noqa: E731
    expected = run(solver="ddim")
    for schedule in SCHEDULES:
        torch.testing.assert_close(run(solver="ddim", schedule=schedule), expected, rtol=1e-10, atol=1e-10)
    for schedule in ("linear", "flow"):
        torch.testing.assert_close(run(solver="euler", schedule=schedule), expected, rtol=1e-10, atol=1e-10)
    for row in ({"solver": "euler", "schedule": "vp"}, {"solver": "heun"}, {"solver": "heun", "schedule": "flow"}):
        assert float((run(**row) - expected).abs().max()) > 1e-3
    assert float((run(solver="heun", schedule="flow") - run(solver="heun")).abs().max()) > 1e-3


@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.8), (0.5, 0.45), (0.2, 0.001)])
def test_eta_of_one_is_the_posterior_of_ddpm(t: float, t_next: float) -> None:
    """q(x_prev | x, x0) for x = sqrt(abar) x0 + sqrt(1 - abar) eps (Ho et al. 2020, eqs. 6 and 7)."""
    path = path_of("vp")
    abar, abar_prev = (float(1 / (1 + path.schedule.sigma(scalar(v)) ** 2)) for v in (t, t_next))
    alpha, beta = abar / abar_prev, 1 - abar / abar_prev
    sigma = math.sqrt((1 - abar) / abar)
    x0 = GAUSSIAN(start(sigma), scalar(sigma))
    x = math.sqrt(abar) * start(sigma)
    mean = (math.sqrt(abar_prev) * beta * x0 + math.sqrt(alpha) * (1 - abar_prev) * x) / (1 - abar)
    std = math.sqrt((1 - abar_prev) / (1 - abar) * beta)
    step = lambda noise: DDIM(1.0).step(path, x, scalar(t), scalar(t_next), noise)  # noqa: E731
    torch.testing.assert_close(step(torch.zeros_like), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step(torch.ones_like), mean + std, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_eta_scales_the_noise_and_keeps_the_total(eta: float) -> None:
    """Song et al. 2021, eq. 16: sigma_tau is eta times DDPM's, and the direction to x makes up the rest of 1 - abar."""
    path, t, t_next = path_of("vp"), scalar(0.6), scalar(0.5)
    abar, abar_prev = (float(1 / (1 + path.schedule.sigma(v) ** 2)) for v in (t, t_next))
    sigma = math.sqrt((1 - abar) / abar)
    x0 = GAUSSIAN(start(sigma), scalar(sigma))
    x = math.sqrt(abar) * start(sigma)
    eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
    std = eta * math.sqrt((1 - abar_prev) / (1 - abar)) * math.sqrt(1 - abar / abar_prev)
    expected = math.sqrt(abar_prev) * x0 + math.sqrt(1 - abar_prev - std**2) * eps + std
    torch.testing.assert_close(DDIM(eta).step(path, x, t, t_next, torch.ones_like), expected, rtol=1e-9, atol=1e-9)
