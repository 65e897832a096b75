"""Single-step solvers are those of diffusers and of torchdiffeq, on the ODE derived from sigma(t) and s alone."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from torch import Tensor
from torchdiffeq import odeint

from pipeline.diffusion.exact import flow
from pipeline.sampling.row import Sampler
from tests.sampling.peers import (
    BEGIN,
    BETAS,
    EDM,
    END,
    F64,
    FLOW,
    MIXTURE,
    NOISE,
    SIGMA_DATA,
    STEPS,
    VE,
    VP,
    Peers,
    all_scalings,
    all_schedules,
    all_steps,
    assert_equal,
    drawn,
    follow,
    in_double,
    levels,
    made,
    ode_of,
    on_grid,
    ours,
    slope_in,
    solved,
    states,
    times_between,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers and torchdiffeq


@all_steps
def test_euler_is_that_of_diffusers(steps: int) -> None:
    with in_double(EulerDiscreteScheduler):
        scheduler = made(EulerDiscreteScheduler, steps, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VE)[-1]
    for row in ({"solver": "euler"}, {"solver": "ddim"}, {"solver": "euler", "schedule": "flow"}):
        assert_equal(ours(on_grid(sigmas, **row), steps), theirs)


@all_steps
@pytest.mark.parametrize(("grid", "spaced"), [("edm", "karras"), ("exponential", "exponential")])
def test_euler_and_its_grids_are_those_of_diffusers_for_edm(steps: int, grid: str, spaced: str) -> None:
    """One step of their exponential grid starts at sigma_min."""
    with in_double(EDMEulerScheduler):
        scheduler = made(EDMEulerScheduler, steps, sigma_schedule=spaced, sigma_data=SIGMA_DATA)
        sigmas, theirs = levels(scheduler), follow(scheduler, EDM)[-1]
    row = Sampler(solver="euler", discretization=grid)
    if (steps, spaced) != (1, "exponential"):
        torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=0)
        assert_equal(ours(row, steps), theirs)


def every_other(sigmas: Sequence[float]) -> list[float]:
    """The levels of whole steps, from all levels of a second-order scheduler."""
    return [*sigmas[::2], 0.0]


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("karras", [False, True])
def test_heun_is_that_of_diffusers(steps: int, karras: bool) -> None:
    """From two steps on, because one step begins at their smallest level."""
    with in_double(HeunDiscreteScheduler):
        scheduler = made(HeunDiscreteScheduler, steps, use_karras_sigmas=karras, **BETAS)
        sigmas, theirs = every_other(levels(scheduler)), follow(scheduler, VE)[-1]
    assert len(sigmas) == steps + 1
    assert_equal(ours(on_grid(sigmas, solver="heun"), steps), theirs)
    if karras:
        row = Sampler(discretization="edm", rho=7, sigma_min=sigmas[-2], sigma_max=sigmas[0])
        assert_equal(ours(row, steps), theirs)


def with_middles(sigmas: Sequence[float]) -> list[float]:
    """A grid with the middle in ln sigma of each step but the last."""
    inner = [level for a, b in pairwise(sigmas[:-1]) for level in (a, math.sqrt(a * b))]
    return [*inner, *sigmas[-2:]]


@all_steps
def test_dpmpp_2s_is_that_of_diffusers(steps: int) -> None:
    """Theirs takes every second level of its grid for the middle of a step; here they are middles in ln sigma."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(DPMSolverSinglestepScheduler):
        scheduler = made(DPMSolverSinglestepScheduler, 2 * steps - 1, with_middles(sigmas), solver_order=2)
        theirs = follow(scheduler, VP)[-1]
    assert_equal(ours(Sampler(solver="dpmpp_2s"), steps), theirs)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dpm_solver_2_is_that_of_diffusers(steps: int) -> None:
    """Up to the last step, which theirs can't take into 0: their formula is 0 times infinity there."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(DPMSolverSinglestepScheduler):
        config = {"solver_order": 2, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
        scheduler = made(DPMSolverSinglestepScheduler, 2 * steps - 1, with_middles(sigmas), **config)
        theirs = follow(scheduler, VP)
    for one, other in zip(states(Sampler(solver="dpm_solver_2"), sigmas)[:-1], theirs[1:-1:2], strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("karras", [False, True])
def test_dpm_solver_2_is_kdpm_2_of_diffusers(steps: int, karras: bool) -> None:
    """Karras' DPM2: a step of DPM-Solver-2, the last one of Euler's."""
    with in_double(KDPM2DiscreteScheduler):
        scheduler = made(KDPM2DiscreteScheduler, steps, use_karras_sigmas=karras, **BETAS)
        sigmas, theirs = every_other(levels(scheduler)), follow(scheduler, VE)[-1]
    assert_equal(ours(on_grid(sigmas, solver="dpm_solver_2"), steps), theirs)


@all_steps
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("solver", "scheduler"), [("euler", FlowMatchEulerDiscreteScheduler), ("heun", FlowMatchHeunDiscreteScheduler)]
)
def test_flow_matching_is_that_of_diffusers(steps: int, shift: float, solver: str, scheduler: Any) -> None:
    """Theirs begins at t = 1, sigma = infinity, and ends its grid at t = 1 / 1000, shifted before it is shifted again:
    here at what our sigma_max is before the shift, and at as much of it as is left before the last step."""
    row = Sampler(solver=solver, schedule="flow", discretization="flow", shift=shift)
    _, high = row.sigma_range
    start = high / shift / (1 + high / shift)
    with in_double(scheduler):
        built = scheduler(shift=shift)
        built.sigma_max, built.sigma_min = start, start / steps
        built.set_timesteps(steps)
        sigmas, theirs = levels(built), follow(built, FLOW)[-1]
    if solver == "heun":
        sigmas = every_other(sigmas)
    torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=1e-15)
    assert_equal(ours(row, steps), theirs)


def classical(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    for t, t_next in pairwise(times):
        h = t_next - t
        k_1 = slope(t, x)
        k_2 = slope(t + h / 2, x + h / 2 * k_1)
        k_3 = slope(t + h / 2, x + h / 2 * k_2)
        k_4 = slope(t_next, x + h * k_3)
        x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x


@all_schedules
@all_scalings
def test_slope_and_runge_kutta_are_those_of_torchdiffeq(schedule: str, scaling: str) -> None:
    ode, slope, times = ode_of(schedule, scaling), slope_in(schedule, scaling), times_between(schedule, 8)
    start = ode.s(BEGIN) * BEGIN * NOISE
    for t in times:
        sigma = float(ode.schedule.sigma(t))
        assert_equal(ode.slope(NOISE, sigma, float(t)), slope(t, ode.s(sigma) * NOISE))
    for name, method in {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}.items():
        solver = Sampler(solver=name).build_solver()
        assert_equal(solved(solver, ode, times), odeint(slope, start, times, method=method)[-1])
    rk4 = solved(Sampler(solver="rk4").build_solver(), ode, times)
    assert_equal(rk4, classical(slope, start, times))
    three_eighths = odeint(slope, start, times, method="rk4")[-1]
    assert_equal(rk4, three_eighths, rtol=1e-3)  # another method of order 4
    exact = odeint(slope, start, times[[0, -1]], method="dopri5", rtol=1e-8, atol=1e-8)[-1]
    assert_equal(rk4, exact, rtol=1e-3)
    assert_equal(exact, ode.s(END) * flow(MIXTURE, BEGIN * NOISE, BEGIN, END), rtol=1e-6)


@all_schedules
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_rk45_is_dopri5_of_torchdiffeq(schedule: str, tolerance: float) -> None:
    row = Sampler(solver="rk45", schedule=schedule, rtol=tolerance, atol=tolerance)
    scaling = {"linear": "none", "ve": "none", "vp": "vp", "flow": "flow", "cosine": "vp"}[schedule]
    slope, ode = slope_in(schedule, scaling), ode_of(schedule, scaling)
    ends = times_between(schedule, 1)
    start = ode.s(BEGIN) * BEGIN * NOISE
    settings: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "options": {"step_t": ends[1:]}}
    theirs = odeint(slope, start, ends, method="dopri5", **settings)[-1]
    solver = row.build_solver()
    between, last = solver.run(ode, BEGIN * NOISE, [BEGIN, END, 0.0], drawn())
    assert_equal(ode.s(END) * between, theirs)
    assert_equal(last, theirs + (0 - ends[-1]) * slope(ends[-1], theirs))


PEERS: Peers = {
    "euler": (
        test_euler_is_that_of_diffusers,
        test_euler_and_its_grids_are_those_of_diffusers_for_edm,
        test_flow_matching_is_that_of_diffusers,
        test_slope_and_runge_kutta_are_those_of_torchdiffeq,
    ),
    "heun": (
        test_heun_is_that_of_diffusers,
        test_flow_matching_is_that_of_diffusers,
        test_slope_and_runge_kutta_are_those_of_torchdiffeq,
    ),
    "midpoint": (test_slope_and_runge_kutta_are_those_of_torchdiffeq,),
    "rk4": (test_slope_and_runge_kutta_are_those_of_torchdiffeq,),
    "dpm_solver_2": (test_dpm_solver_2_is_that_of_diffusers, test_dpm_solver_2_is_kdpm_2_of_diffusers),
    "dpmpp_2s": (test_dpmpp_2s_is_that_of_diffusers,),
    "rk45": (test_rk45_is_dopri5_of_torchdiffeq,),
}
