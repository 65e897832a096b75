"""Solvers: the ODE, tableaus, formulas in plain numbers, last steps, and solvers that are equal."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.exact import Gaussian, flow
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES
from pipeline.sampling.loop import sample
from pipeline.sampling.multistep import MULTISTEP, Multistep
from pipeline.sampling.ode import Ode, RandnLike, SingleStep, Solver
from pipeline.sampling.row import Sampler
from pipeline.sampling.singlestep import (
    RK45,
    SINGLE_STEP,
    DPMSolver2,
    DPMSolverPP2S,
    RungeKutta,
    euler,
    heun,
    midpoint,
    rk4,
)
from pipeline.sampling.solvers import SOLVERS
from pipeline.sampling.stochastic import STOCHASTIC

F64 = torch.float64
GAUSSIAN = Gaussian(0.2, 0.5)
LOW, HIGH = 0.002, 80.0

all_schedules = pytest.mark.parametrize("schedule", SCHEDULES)
all_solvers = pytest.mark.parametrize("name", SOLVERS)


def ode_of(schedule: str, scaling: str | None = None) -> Ode:
    return Ode(GAUSSIAN, SCHEDULES[schedule](LOW, HIGH), SCALINGS[scaling or SCALING_OF_SCHEDULE[schedule]])


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def solver_of(name: str, steps: int = 3, **keys: Any) -> Solver:
    """steps: those for which a fitted solver has numbers."""
    return Sampler(solver=name, nfe=(99,), **keys).as_started(steps).build_solver()


def start(sigma: float) -> Tensor:
    """z, (N, d), with the spread of noisy data."""
    spread = torch.linspace(-2, 2, 12, dtype=F64).reshape(4, 3)
    return GAUSSIAN.mean + math.hypot(sigma, GAUSSIAN.std) * spread


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def run(**row: Any) -> Tensor:
    """x0 of Gaussian data after nine steps."""
    noise = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    return sample(GAUSSIAN, noise, Sampler(**row, nfe=(99,)).as_started(9), 9, torch.ones_like).x0


def test_no_solver_hides_another_and_each_is_of_its_kind() -> None:
    assert len(SOLVERS) == len(SINGLE_STEP) + len(MULTISTEP) + len(STOCHASTIC) + len(["fitted"])
    assert all(isinstance(solver_of(name), Multistep) and not solver_of(name).stochastic for name in MULTISTEP)
    assert all(isinstance(solver_of(name), SingleStep | RK45) for name in SINGLE_STEP)
    assert not any(solver_of(name).stochastic for name in SINGLE_STEP)
    assert all(solver_of(name, **({"eta": 1} if name == "ddim" else {})).stochastic for name in STOCHASTIC)
    assert [name for name in SOLVERS if solver_of(name).adaptive] == ["rk45"]


@all_schedules
@pytest.mark.parametrize("scaling", SCALINGS)
def test_slope_is_the_derivative_of_the_exact_flow(schedule: str, scaling: str) -> None:
    ode = ode_of(schedule, scaling)
    for sigma in (0.01, 0.3, 1.0, 20.0):
        t = ode.schedule.t(scalar(sigma)).requires_grad_()

        def x(t: Tensor, ode: Ode = ode) -> Tensor:
            level = ode.schedule.sigma(t)
            return ode.scaling.s(level) * GAUSSIAN.flow(start(80.0), scalar(80.0), level)

        expected = torch.autograd.functional.jacobian(x, t)
        z = GAUSSIAN.flow(start(80.0), scalar(80.0), scalar(sigma))
        close(ode.slope(z, sigma, float(t.detach())), expected, 1e-7)


@all_schedules
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_path_holds_the_numbers_of_its_schedule_and_scaling(schedule: str, scaling: str) -> None:
    ode, sigma = ode_of(schedule, scaling), 0.7
    t = ode.schedule.t(scalar(sigma))
    found = [ode.t(sigma), ode.sigma(float(t)), ode.sigma_dot(float(t)), ode.s(sigma), ode.log_slope(sigma)]
    formulas = ode.schedule.sigma(t), ode.schedule.sigma_dot(t), ode.scaling.s(scalar(sigma))
    assert found == [float(v) for v in (t, *formulas, ode.scaling.log_slope(scalar(sigma)))]
    assert all(type(value) is float for value in found)
    z = start(sigma)
    close(ode.eps(z, sigma), (z - GAUSSIAN(z, scalar(sigma))) / sigma, 1e-14)


def test_the_denoiser_gets_sigma_as_a_scalar_tensor_in_float64() -> None:
    seen: list[Tensor] = []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return GAUSSIAN(z, sigma)

    Ode(denoiser, SCHEDULES["linear"](LOW, HIGH), SCALINGS["none"]).denoise(start(0.3), 0.3)
    assert seen[0].shape == () and seen[0].dtype == F64 and float(seen[0]) == 0.3


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2 / 3, 0.25])
def test_second_order_family(alpha: float) -> None:
    """EDM, Algorithm 3 without churn, in x = s z."""
    ode, t, t_next = ode_of("vp"), 0.6, 0.5
    sigma, sigma_next, h = ode.sigma(t), ode.sigma(t_next), t_next - t
    x = ode.s(sigma) * start(sigma)
    d = ode.slope(start(sigma), sigma, t)
    middle = ode.sigma(t + alpha * h)
    d_prime = ode.slope((x + alpha * h * d) / ode.s(middle), middle, t + alpha * h)
    expected = x + h * ((1 - 1 / (2 * alpha)) * d + d_prime / (2 * alpha))
    close(heun(alpha).step(ode, start(sigma), sigma, sigma_next, silent), expected / ode.s(sigma_next))


def test_midpoint_is_heun_with_half_a_step_first() -> None:
    assert midpoint() == heun(0.5) != heun(1.0)
    for schedule in SCHEDULES:
        assert torch.equal(run(solver="midpoint", schedule=schedule), run(solver="heun", alpha=0.5, schedule=schedule))


def test_rk4_is_simpsons_rule_where_the_slope_is_of_t_alone() -> None:
    """D = z - sigma^4 has dz / dsigma = sigma^3, a cubic, for which Simpson's rule is exact."""
    ode = Ode(lambda z, sigma: z - sigma**4, SCHEDULES["linear"](LOW, HIGH), SCALINGS["none"])
    close(rk4().step(ode, start(2.0), 2.0, 0.5, silent), start(2.0) + (0.5**4 - 2.0**4) / 4, 1e-13)


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


@pytest.mark.parametrize(("sigma", "sigma_next"), [(20.0, 5.0), (1.0, 0.8), (0.05, 0.01)])
def test_dpm_solvers_in_the_coordinates_they_were_published_in(sigma: float, sigma_next: float) -> None:
    """x = alpha z with alpha = 1 / sqrt(1 + sigma^2), lambda = ln(alpha / std): DPM-Solver-2 with eps and r_1 = 1/2
    (Lu et al. 2022, arXiv 2206.00927, Algorithm 1), DPM-Solver++ (2S) with D (arXiv 2211.01095, Algorithm 1)."""
    h = math.log(sigma / sigma_next)
    middle = sigma * math.exp(-h / 2)
    alpha = tuple(1 / math.sqrt(1 + v * v) for v in (sigma, middle, sigma_next))
    std = tuple(v * a for v, a in zip((sigma, middle, sigma_next), alpha, strict=True))
    x = alpha[0] * start(sigma)

    def denoised(x: Tensor, i: int) -> Tensor:
        return GAUSSIAN(x / alpha[i], scalar((sigma, middle)[i]))

    def eps(x: Tensor, i: int) -> Tensor:
        return (x - alpha[i] * denoised(x, i)) / std[i]

    u = alpha[1] / alpha[0] * x - std[1] * math.expm1(h / 2) * eps(x, 0)
    end = alpha[2] / alpha[0] * x - std[2] * math.expm1(h) * eps(u, 1)
    close(DPMSolver2().step(ode_of("vp"), start(sigma), sigma, sigma_next, silent), end / alpha[2])
    u = std[1] / std[0] * x - alpha[1] * math.expm1(-h / 2) * denoised(x, 0)
    end = std[2] / std[0] * x - alpha[2] * math.expm1(-h) * denoised(u, 1)
    close(DPMSolverPP2S().step(ode_of("vp"), start(sigma), sigma, sigma_next, silent), end / alpha[2])


def test_a_step_of_dpmpp_2s_is_exact_for_a_constant_denoiser() -> None:
    ode = Ode(lambda z, sigma: torch.full_like(z, 0.7), SCHEDULES["linear"](LOW, HIGH), SCALINGS["none"])
    z = start(3.0)
    close(DPMSolverPP2S().step(ode, z, 3.0, 0.1, silent), 0.7 + (z - 0.7) * 0.1 / 3, 1e-13)


@all_schedules
def test_rk45_goes_by_the_exact_flow_in_tight_tolerance(schedule: str) -> None:
    ode, z = ode_of(schedule), start(2.0)
    states = list(RK45(1e-10, 1e-10).run(ode, z, [2.0, 0.1, 0.0], silent))
    exact = GAUSSIAN.flow(z, scalar(2.0), scalar(0.1))
    close(states[0], exact, 1e-8)
    assert len(states) == 2 and torch.equal(states[1], euler().step(ode, states[0], 0.1, 0.0, silent))
    close(flow(GAUSSIAN, z, 2.0, 0.1), exact, 1e-10)


@all_schedules
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("end", [0.002, 0.5])
def test_rk45_stays_within_its_range(schedule: str, scaling: str, end: float) -> None:
    """This holds for its first trial and its last step, too: there may be no noise level beyond the end."""
    ode, seen = ode_of(schedule, scaling), []
    denoiser = lambda z, sigma: seen.append(float(sigma)) or GAUSSIAN(z, sigma)  # noqa: E731
    within = Ode(denoiser, ode.schedule, ode.scaling)
    assert all(state.isfinite().all() for state in RK45(1e-3, 1e-3).run(within, start(80.0), [80.0, end, 0.0], silent))
    assert all(end * (1 - 1e-9) <= sigma <= 80 * (1 + 1e-9) for sigma in seen)


def test_rk45_with_one_noise_level_is_a_step_of_euler() -> None:
    [only] = RK45(1e-3, 1e-3).run(ode_of("linear"), start(2.0), [2.0, 0.0], silent)
    close(only, GAUSSIAN(start(2.0), scalar(2.0)), 1e-13)


@all_solvers
@pytest.mark.parametrize("schedule", ["linear", "flow"])
def test_a_single_step_is_one_of_euler_to_the_denoised(name: str, schedule: str) -> None:
    """Along a straight path, where a step into 0 ends at D; exponential solvers end there in every schedule."""
    ode, z = ode_of(schedule), start(80.0)
    [end] = solver_of(name, 1).run(ode, z, [80.0, 0.0], silent)
    close(end, GAUSSIAN(z, scalar(80.0)), 1e-11)


@all_solvers
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_step_of_a_solver_that_knows_no_time_returns_the_denoised(name: str, schedule: str) -> None:
    solver, ode, asked = solver_of(name), ode_of(schedule), []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        asked.append(GAUSSIAN(z, sigma))
        return asked[-1]

    *_, end = solver.run(Ode(denoiser, ode.schedule, ode.scaling), start(3.0), [3.0, 1.0, 0.3, 0.0], torch.ones_like)
    if name != "lms" and (solver.variable != "t" or name == "deis" or schedule in ("linear", "flow")):
        close(end, asked[-1], 1e-11)
    else:
        assert float((end - asked[-1]).abs().max()) > 1e-3


@all_solvers
def test_a_solver_that_steps_in_sigma_does_the_same_in_every_schedule_and_scaling(name: str) -> None:
    """A solver that steps in t does depend on it."""
    runs = [run(solver=name, schedule=schedule) for schedule in SCHEDULES]
    runs += [run(solver=name, schedule="flow", scaling=scaling) for scaling in SCALINGS]
    spread = float(torch.stack(runs).std(0, correction=0).max())
    assert spread < 1e-9 if solver_of(name).variable != "t" else spread > 1e-3


def test_ddim_is_euler_in_linear_and_in_flow_but_not_in_the_others() -> None:
    expected = run(solver="ddim")
    for schedule in SCHEDULES:
        same = torch.allclose(run(solver="euler", schedule=schedule), expected, rtol=1e-10, atol=1e-10)
        assert same == (schedule in ("linear", "flow"))
    for row in ({"solver": "heun"}, {"solver": "heun", "schedule": "flow"}):
        assert float((run(**row) - expected).abs().max()) > 1e-3
    assert float((run(solver="heun", schedule="flow") - run(solver="heun")).abs().max()) > 1e-3


def same_pairs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Rows that sample the same under different names."""
    for name in ("exp_adams", "deis", "ipndm"):
        yield f"{name} of order 1", {"solver": name, "order": 1}, {"solver": "ddim"}
    equal = {"discretization": "explicit", "sigmas": (0.9, 0.7, 0.5, 0.3, 0.1)}
    yield "ipndm on equal steps of sigma", {"solver": "ipndm"} | equal, {"solver": "deis"} | equal
    yield "the posterior of ddpm", {"solver": "ddpm"}, {"solver": "ddim", "eta": 1}
    for schedule in SCHEDULES:
        in_it = {"schedule": schedule}
        yield f"lms of order 1, {schedule}", {"solver": "lms", "order": 1} | in_it, {"solver": "euler"} | in_it
        for scaling in SCALINGS:
            both = in_it | {"scaling": scaling}
            still = {"solver": "euler_maruyama", "diffusion": 0} | both
            yield f"no diffusion, {schedule}, {scaling}", still, {"solver": "euler"} | both
    for name in ("euler", "heun", "midpoint", "rk4", "dpm_solver_2", "dpmpp_2s", "ddim"):
        yield f"no churn, {name}", {"solver": name, "S_min": 1, "S_max": 9, "S_noise": 2}, {"solver": name}


SAME = list(same_pairs())


@pytest.mark.parametrize(("left", "right"), [pair[1:] for pair in SAME], ids=[pair[0] for pair in SAME])
def test_solvers_that_are_the_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    noise = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    steps = len(left.get("sigmas", range(9)))
    first, second = (
        sample(GAUSSIAN, noise, Sampler(**row, nfe=(99,)), steps, torch.ones_like).x0 for row in (left, right)
    )
    close(first, second, 1e-10)


class Doubling(SingleStep):
    """A solver that is no numerical method, to test SingleStep alone."""

    order = None
    variable = "sigma"

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        return 2 * z + sigma_next


def test_a_single_step_solver_yields_z_after_every_step() -> None:
    states: Iterator[Tensor] = Doubling().run(ode_of("linear"), torch.ones(2), [3.0, 2.0, 1.0, 0.0], silent)
    assert [state.tolist() for state in states] == [[4.0, 4.0], [9.0, 9.0], [18.0, 18.0]]
    assert Doubling().evaluations(5) == 5 and not Doubling().stochastic


@all_solvers
def test_every_state_of_a_run_has_the_shape_of_z_and_leaves_z_alone(name: str) -> None:
    sigmas = [3.0, 1.0, 0.3, 0.0]
    for shape in [(8, 1, 8, 8), (5, 1, 8, 8), (3, 2), (4,)]:
        z = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))
        kept = z.clone()
        states = list(solver_of(name).run(ode_of("linear"), z, sigmas, torch.ones_like))
        assert len(states) == (2 if name == "rk45" else len(list(pairwise(sigmas))))
        assert all(state.shape == shape and state.dtype == F64 for state in states) and torch.equal(z, kept)
