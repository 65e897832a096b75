"""Measured orders of every solver in every schedule and for every choice of a row; the adaptive solver's tolerance."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.exact import Gaussian, empirical, flow
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.evaluation import convergence
from pipeline.evaluation.convergence import (
    STEPS,
    entries,
    has_order,
    in_span,
    measured_order,
    mixture,
    regressed,
    trajectory_errors,
)
from pipeline.sampling.loop import sample
from pipeline.sampling.multistep import VARIANTS, Multistep
from pipeline.sampling.ode import Ode
from pipeline.sampling.row import Sampler
from pipeline.sampling.singlestep import RK45
from pipeline.sampling.solvers import SOLVERS

ORDERS: dict[str, int | None] = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "rk4": 4,
    "dpm_solver_2": 2,
    "dpmpp_2s": 2,
    "rk45": None,  # its steps are its own
    "dpmpp_2m": 2,
    "dpmpp_3m": 2,
    "exp_adams": 3,
    "unipc": 4,
    "deis": 4,
    "ipndm": 4,
    "lms": 4,
    "ddim": 1,
    "ddpm": 1,
    "euler_maruyama": 1,
    "dpmpp_2m_sde": 2,
    "consistency": None,
    "fitted": None,  # fitted to a number of steps
}
OTHERS: list[tuple[dict[str, Any], int]] = [  # rows that choose, and what comes of it
    *(({"solver": "heun", "alpha": alpha}, 2) for alpha in (0.25, 2 / 3)),
    *(({"solver": name, "order": p}, p) for name in ("exp_adams", "deis", "ipndm", "lms") for p in (1, 2, 3, 4)),
    *(({"solver": "unipc", "order": p, "variant": b}, p + 1) for p in (2, 3) for b in VARIANTS),
    ({"solver": "ddim", "eta": 0.5}, 1),
    ({"solver": "ddim", "eta": 1}, 1),
    ({"solver": "ddpm", "variance": "beta"}, 1),
    ({"solver": "euler_maruyama", "diffusion": 0}, 1),
    ({"solver": "euler_maruyama", "diffusion": 2}, 1),
    ({"solver": "euler", "S_churn": 5}, 1),
    ({"solver": "heun", "S_churn": 5}, 2),
]
STEADY = [name for name in SOLVERS if ORDERS[name]]
ODE = [name for name in STEADY if not Sampler(solver=name, nfe=(99,)).build_solver().stochastic]


def test_every_solver_has_an_order_here() -> None:
    assert ORDERS.keys() == SOLVERS.keys()
    assert {row.solver for row in entries().values() if has_order(row)} == set(STEADY)
    assert {row.solver for row in entries().values()} == SOLVERS.keys() - {"consistency", "fitted"}


def enough(row: Sampler) -> tuple[int, ...]:
    """Numbers of steps that show a row's order. High orders of multistep solvers need finer steps, most in `ve`."""
    solver = row.build_solver()
    if not isinstance(solver, Multistep):
        return 32, 64
    if (solver.order or 0) <= 2:
        return 64, 128
    return (256, 512) if row.schedule == "ve" else (128, 256)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """The order that a row shows at these numbers of steps."""

    def found(row: Sampler, steps: tuple[int, ...]) -> float:
        monkeypatch.setattr(convergence, "STEPS", steps)
        return measured_order(row, mixture())

    return found


@pytest.mark.parametrize("solver", STEADY)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_measured_order(solver: str, schedule: str, measured: Callable[..., float]) -> None:
    """iPNDM's weights are for equal steps of sigma, which only `linear` has."""
    row = Sampler(solver=solver, schedule=schedule, nfe=(99,))
    assert row.build_solver().order == ORDERS[solver]
    order = 2 if solver == "ipndm" and schedule != "linear" else ORDERS[solver]
    assert measured(row, enough(row)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["euler", "unipc", "ddpm"])
def test_all_steps_of_a_study_show_the_same_order(solver: str, measured: Callable[..., float]) -> None:
    assert measured(Sampler(solver=solver, nfe=(99,)), STEPS) == pytest.approx(ORDERS[solver], abs=0.1)


@pytest.mark.parametrize(("keys", "order"), OTHERS, ids=str)
def test_measured_order_of_a_choice(keys: dict[str, Any], order: int, measured: Callable[..., float]) -> None:
    row = Sampler(**keys, nfe=(99,))
    assert row.build_solver().order == order
    assert measured(row, enough(row)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_measured_order_in_any_scaling(scaling: str, measured: Callable[..., float]) -> None:
    for solver in ("heun", "lms"):
        row = Sampler(solver=solver, scaling=scaling, nfe=(99,))
        assert measured(row, enough(row)) == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_the_order_of_a_power_is_its_exponent(order: float) -> None:
    """Errors at the finest steps may be rounding errors; the coarsest steps do not count."""
    errors = {n: 0.3 * n**-order for n in (32, 64, 128)}
    assert regressed(errors) == pytest.approx(order, rel=1e-9)
    assert regressed({8: 1.0, 16: 1.0} | errors | {256: 1e-12, 512: 3e-12}) == pytest.approx(order, rel=1e-9)


def ode_of(schedule: str) -> Ode:
    row = Sampler(schedule=schedule)
    return Ode(mixture(), row.build_schedule(), row.build_scaling())


def rk45_error(schedule: str, tolerance: float) -> float:
    z = 1.5 * torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = RK45(tolerance, tolerance).run(ode_of(schedule), z, [1.5, 0.2, 0.0], torch.zeros_like)
    return float((next(ends) - flow(mixture(), z, 1.5, 0.2)).square().mean().sqrt())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_of_rk45_falls_with_its_tolerance_to_the_exact_flow(schedule: str) -> None:
    errors = [rk45_error(schedule, tolerance) for tolerance in (1e-3, 1e-5, 1e-7, 1e-9)]
    assert all(3 < error / after < 3000 for error, after in pairwise(errors)), errors
    assert 0.5 < math.log10(errors[0] / errors[-1]) / 6 < 1.5, errors
    assert errors[-1] < 1e-8
    assert schedule != "linear" or rk45_error(schedule, 1e-12) < 1e-10  # the step's size is chosen alike in all


def test_rk45_pays_for_its_tolerance() -> None:
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    costs = [sample(mixture(), noise, Sampler(solver="rk45", rtol=tol, atol=tol), 2).nfe for tol in (1e-1, 1e-3, 1e-6)]
    assert 9 <= costs[0] < costs[1] < costs[2]
    assert all((cost - 3) % 6 == 0 for cost in costs)  # two to begin with, six a step, one into 0


@pytest.mark.parametrize("solver", ODE)
def test_many_steps_take_noise_to_the_exact_end(solver: str) -> None:
    """A whole run, in which a multistep solver has lower orders at both ends."""
    gaussian = Gaussian(0.2, 0.5)
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = gaussian.flow(80 * noise, *torch.tensor([80.0, 0.0], dtype=torch.float64))

    def error(steps: int) -> float:
        x0: Tensor = sample(gaussian, noise, Sampler(solver=solver, nfe=(9999,)), steps).x0
        return float((x0 - exact).square().mean().sqrt())

    few, many = error(40), error(400)
    of_last_step = 1e-5  # from sigma_min, whatever the number of steps
    assert many < 0.02 and many < few / (5 if ORDERS[solver] == 1 else 20) + of_last_step


def test_a_data_set_in_its_own_span_is_solved_to_the_same_images() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 4, 4, dtype=torch.float64, generator=draws) * 2 - 1
    whole, row = empirical(images), Sampler(solver="heun", nfe=(9,))
    inside = in_span(whole)
    assert inside.means.shape == (6, 6)
    basis = torch.linalg.lstsq(inside.means, whole.means.flatten(1)).solution  # (6, 48), orthonormal rows
    noise = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=draws)
    expected = sample(whole, noise, row, 5).x0
    made = sample(inside, noise.flatten(1) @ basis.T, row, 5).x0
    assert (made @ basis).reshape(expected.shape) == pytest.approx(expected, abs=1e-9)


def test_errors_in_the_span_are_per_value_of_an_image() -> None:
    draws = torch.Generator().manual_seed(0)
    whole = empirical(torch.rand(6, 3, 4, 4, dtype=torch.float64, generator=draws) * 2 - 1)
    inside, row = in_span(whole), Sampler(solver="euler", nfe=(4,))
    noise = torch.randn(64, 6, dtype=torch.float64, generator=draws)
    basis = torch.linalg.lstsq(inside.means, whole.means.flatten(1)).solution
    found = [
        trajectory_errors("data", "euler", row, oracle, start, torch.zeros_like(start), 48)
        for oracle, start in ((inside, noise), (whole, (noise @ basis).reshape(64, 3, 4, 4)))
    ]
    assert [r.error for r in found[0]] == pytest.approx([r.error for r in found[1]])


def test_a_data_set_of_more_images_than_values_stays_as_it_is() -> None:
    oracle = empirical(torch.rand(9, 2, dtype=torch.float64))
    assert in_span(oracle) is oracle
