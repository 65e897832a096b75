"""Multistep solvers: the denoisers for which they are exact, lower orders at the ends, kept tensors, first steps."""

import math
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pipeline.data.dataset import to_range
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.exact import Gaussian, Mixture
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES
from pipeline.sampling.loop import sample
from pipeline.sampling.multistep import ADAMS_BASHFORTH, MULTISTEP, Evaluation, Multistep, adams_weights
from pipeline.sampling.ode import Ode, RandnLike, Solver
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS

F64 = torch.float64
GAUSSIAN = Gaussian(0.2, 0.5)
UNEQUAL = [3.0, 2.1, 1.6, 0.9, 0.75, 0.4]  # falling, at unlike distances in sigma and in ln sigma
POINTS = {  # evaluations that a step combines, and whether there are no more than steps are left
    "dpmpp_2m": (2, True),
    "dpmpp_3m": (3, True),
    "exp_adams": (3, True),
    "unipc": (3, True),
    "deis": (4, False),
    "ipndm": (4, False),
    "lms": (4, False),
    "dpmpp_2m_sde": (2, True),
}

all_multistep = pytest.mark.parametrize("name", POINTS)


def solver_of(name: str, **keys: Any) -> Multistep:
    solver = Sampler(solver=name, nfe=(99,), **keys).build_solver()
    assert isinstance(solver, Multistep)
    return solver


def ode_of(denoiser: Callable[[Tensor, Tensor], Tensor], schedule: str = "linear") -> Ode:
    return Ode(denoiser, SCHEDULES[schedule](0.002, 80.0), SCALINGS[SCALING_OF_SCHEDULE[schedule]])


def noise_of(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(0))


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver asked for noise")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_every_multistep_solver_has_its_points_here() -> None:
    many = {name: Sampler(solver=name, nfe=(99,)).build_solver() for name in SOLVERS}
    found = {
        name: (solver.points, solver.lower_at_end) for name, solver in many.items() if isinstance(solver, Multistep)
    }
    assert found == POINTS and POINTS.keys() >= MULTISTEP.keys()


@all_multistep
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
def test_points_rise_from_one_and_fall_again_at_the_end(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, lengths = solver_of(name), []
    (points, lower_at_end), advance = POINTS[name], type(solver).advance

    def spy(
        self: Multistep, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike
    ) -> Tensor:
        lengths.append(len(past))
        assert all(newer.sigma < older.sigma for newer, older in pairwise(past)) and past[0].sigma > sigma_next
        return advance(self, ode, z, sigma_next, past, noise)

    monkeypatch.setattr(type(solver), "advance", spy)
    sample(GAUSSIAN, noise_of(3, 2), Sampler(solver=name, nfe=(99,)), steps)
    left = range(steps, 0, -1) if lower_at_end else [points] * steps
    assert lengths == [min(i, points, most) for i, most in zip(range(1, steps + 1), left, strict=True)]


@all_multistep
def test_no_more_evaluations_are_kept_than_points(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver frees the oldest tensor before the next call, unless it corrects the previous step."""
    solver, made, alive = solver_of(name), [], []
    evaluate = type(solver).evaluate

    def spy(self: Multistep, ode: Ode, z: Tensor, sigma: float) -> Tensor:
        alive.append(sum(tensor() is not None for tensor in made))
        value = evaluate(self, ode, z, sigma)
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(type(solver), "evaluate", spy)
    sample(GAUSSIAN, noise_of(3, 2), Sampler(solver=name, nfe=(99,)), 20)
    assert len(alive) == 20 and max(alive) == solver.points - (not solver.corrects)


def reach(solver: Multistep, ode: Ode, exact: Callable[[float], Tensor], sigmas: Sequence[float]) -> list[Tensor]:
    """The states from sigmas[points - 1] on; earlier evaluations come from the exact flow."""
    first = solver.points - 1
    known = [Evaluation(s, solver.evaluate(ode, exact(s), s)) for s in reversed(sigmas[:first])]
    rest = [*sigmas[first:], *(sigmas[-1] * 0.8 ** np.arange(1, 5))]  # so that the end's lower orders don't begin
    return list(solver.run(ode, exact(sigmas[first]), rest, silent, known))[: len(sigmas) - solver.points]


def power_of_log(degree: int) -> tuple[Ode, Callable[[float], Tensor]]:
    """D = u^degree, u = ln sigma, and a solution of dz/du = z - D: e^u / 3 and the polynomial p with p' = p - D."""
    coefficients = [0.0] * degree + [1.0]
    for k in range(degree, 0, -1):
        coefficients[k - 1] = k * coefficients[k]

    def exact(sigma: float) -> Tensor:
        polynomial = sum(c * math.log(sigma) ** k for k, c in enumerate(coefficients))
        return torch.full((2, 1), sigma / 3 + polynomial, dtype=F64)

    return ode_of(lambda z, sigma: torch.full_like(z, math.log(sigma) ** degree)), exact


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exponential_adams_is_exact_where_d_is_a_polynomial_in_ln_sigma(order: int) -> None:
    ode, exact = power_of_log(order - 1)
    states = reach(solver_of("exp_adams", order=order), ode, exact, UNEQUAL)
    assert len(states) == 6 - order
    close(states[-1], exact(UNEQUAL[-1]), 1e-11)
    lower = solver_of("exp_adams", order=order - 1) if order > 1 else None
    assert lower is None or float((reach(lower, ode, exact, UNEQUAL)[-1] - exact(UNEQUAL[-1])).abs().max()) > 1e-3


def test_unipc_is_exact_where_d_is_a_polynomial_in_ln_sigma() -> None:
    """UniP-3 is exact for degree 2, UniC-3 for degree 3: it corrects the last term of a prediction."""
    for degree in (0, 1, 2, 3):
        ode, exact = power_of_log(degree)
        solver = solver_of("unipc")
        states = reach(solver, ode, exact, UNEQUAL)
        errors = [float((s - exact(sigma)).abs().max()) for s, sigma in zip(states, UNEQUAL[3:], strict=True)]
        assert (max(errors) < 1e-11) == (degree < 3)
        levels = [UNEQUAL[3], UNEQUAL[2], UNEQUAL[1], UNEQUAL[0]]
        past = [Evaluation(s, solver.evaluate(ode, exact(s), s)) for s in levels]
        close(solver.correct(states[0], exact(UNEQUAL[2]), past), exact(UNEQUAL[3]), 1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_deis_is_exact_where_eps_is_a_polynomial_in_t(order: int, schedule: str) -> None:
    """For eps = t^n, z is the integral of t^n over sigma, computed by Gauss-Legendre quadrature."""
    at = ode_of(GAUSSIAN, schedule)
    ode = ode_of(lambda z, sigma: z - sigma * at.t(float(sigma)) ** (order - 1), schedule)
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def exact(sigma: float) -> Tensor:
        levels = (nodes + 1) / 2 * (sigma - 0.1) + 0.1
        times = at.schedule.t(torch.from_numpy(levels)).numpy()
        return torch.full((2, 1), float((weights * times ** (order - 1)).sum() * (sigma - 0.1) / 2), dtype=F64)

    states = reach(solver_of("deis", order=order), ode, exact, UNEQUAL)
    close(states[-1], exact(UNEQUAL[-1]), 1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_methods_are_exact_where_the_slope_is_a_polynomial_in_sigma(order: int) -> None:
    """iPNDM only on equal steps, because its weights are for equal steps."""
    ode = ode_of(lambda z, sigma: z - sigma * sigma ** (order - 1))
    exact = lambda sigma: torch.full((2, 1), sigma**order / order, dtype=F64)  # noqa: E731
    equal = [3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    for name, sigmas in (("lms", UNEQUAL), ("deis", UNEQUAL), ("lms", equal), ("ipndm", equal)):
        close(reach(solver_of(name, order=order), ode, exact, sigmas)[-1], exact(sigmas[-1]), 1e-11)
    error = (reach(solver_of("ipndm", order=order), ode, exact, UNEQUAL)[-1] - exact(UNEQUAL[-1])).abs().max()
    assert order == 1 or float(error) > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_weights_of_equal_steps_are_those_of_the_textbook(order: int) -> None:
    times = [-0.3 * i for i in range(order)]
    weights = adams_weights(times, 0.0, 0.3, np.ones_like)
    assert weights == pytest.approx([0.3 * w for w in ADAMS_BASHFORTH[order - 1]], rel=1e-12)
    assert sum(ADAMS_BASHFORTH[order - 1]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "exp_adams", "unipc", "deis", "ipndm"])
def test_the_first_step_is_that_of_ddim(name: str) -> None:
    sigmas, z = [5.0, 2.0, 1.0, 0.5, 0.2, 0.0], noise_of(4, 3)
    for schedule in SCHEDULES:
        ode = ode_of(GAUSSIAN, schedule)
        ddim: Solver = Sampler(solver="ddim").build_solver()
        first = next(iter(ddim.run(ode, z, sigmas, silent)))
        close(next(iter(solver_of(name).run(ode, z, sigmas, silent))), first, 1e-12)


def dpmpp(z: list[Tensor], d: list[Tensor], sigmas: Sequence[float], third: bool) -> Tensor:
    """The step from sigmas[-2] to sigmas[-1] in the published coordinates, lambda = ln(alpha / std), alpha = rsqrt(1 +
    sigma^2): Algorithm 2 of arXiv 2211.01095, and with three points its heirs' third-order one."""
    alpha = [1 / math.sqrt(1 + s * s) for s in sigmas]
    std = [s * a for s, a in zip(sigmas, alpha, strict=True)]
    lam = [math.log(a / s) for a, s in zip(alpha, std, strict=True)]
    h, r0 = lam[-1] - lam[-2], (lam[-2] - lam[-3]) / (lam[-1] - lam[-2])
    start = std[-1] / std[-2] * alpha[-2] * z[-1]
    phi_1 = math.expm1(-h)
    d1_0 = (d[-1] - d[-2]) / r0
    if not third:
        return (start - alpha[-1] * phi_1 * (d[-1] + d1_0 / 2)) / alpha[-1]
    r1 = (lam[-3] - lam[-4]) / h
    d1_1 = (d[-2] - d[-3]) / r1
    d1, d2 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1), (d1_0 - d1_1) / (r0 + r1)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    return (start - alpha[-1] * phi_1 * d[-1] + alpha[-1] * phi_2 * d1 - alpha[-1] * phi_3 * d2) / alpha[-1]


@pytest.mark.parametrize(("name", "points"), [("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_dpmpp_in_the_coordinates_it_was_published_in(name: str, points: int) -> None:
    z, ode = [noise_of(4, 3) * 3], ode_of(GAUSSIAN, "vp")
    z += list(solver_of(name).run(ode, z[0], [*UNEQUAL, 0.3, 0.2, 0.1], silent))
    d = [ode.denoise(state, sigma) for state, sigma in zip(z, UNEQUAL, strict=False)]
    for i in range(points, len(UNEQUAL)):
        close(z[i], dpmpp(z[:i], d[:i], UNEQUAL[: i + 1], third=points == 3), 1e-11)
    close(z[2], dpmpp(z[:2], d[:2], UNEQUAL[:3], third=False), 1e-11)


@pytest.mark.parametrize("h", [0.05, 0.7, 3.0])
def test_a_step_of_dpmpp_2m_is_exact_for_a_constant_denoiser(h: float) -> None:
    ode, z = ode_of(lambda z, sigma: torch.full_like(z, 0.7)), noise_of(4, 3)
    sigmas = [2.0 * math.exp(-h * i) for i in range(5)]
    for name in ("dpmpp_2m", "dpmpp_3m", "exp_adams", "unipc"):
        for state, sigma in zip(solver_of(name).run(ode, z, [*sigmas, 0.0], silent), sigmas[1:], strict=False):
            close(state, 0.7 + (z - 0.7) * sigma / 2, 1e-12)


def test_deis_is_lms_in_linear_but_for_the_step_into_zero() -> None:
    ode, z = ode_of(GAUSSIAN), noise_of(4, 3) * 80
    sigmas = Sampler().grid(9).tolist()
    *left, left_end = solver_of("deis").run(ode, z, sigmas, silent)
    *right, right_end = solver_of("lms").run(ode, z, sigmas, silent)
    for one, other in zip(left, right, strict=True):
        close(one, other, 1e-11)
    assert float((left_end - right_end).abs().max()) > 1e-7


@pytest.mark.parametrize(
    "name", [name for name in POINTS if name != "unipc"]
)  # which corrects from the state before, too
def test_evaluations_that_are_known_are_not_made_again(name: str) -> None:
    """A run that starts from known evaluations continues exactly like the run that made them."""
    sigmas, z, asked = [*UNEQUAL, 0.2, 0.0], noise_of(4, 3), []

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return GAUSSIAN(z, sigma)

    ode, solver = ode_of(denoiser), solver_of(name)
    whole = [z, *solver.run(ode, z, sigmas, torch.ones_like)]
    known = [Evaluation(sigmas[i], solver.evaluate(ode, whole[i], sigmas[i])) for i in (2, 1, 0)][: solver.points - 1]
    asked.clear()
    rest = list(solver.run(ode, whole[3], sigmas[3:], torch.ones_like, known))
    assert asked == sigmas[3:-1]
    close(torch.stack(rest), torch.stack(whole[4:]), 1e-13)


def test_an_order_that_a_solver_has_not_is_refused() -> None:
    for name, orders in (("exp_adams", (5, 9)), ("deis", (5,)), ("ipndm", (5,)), ("lms", (5,)), ("unipc", (1, 4))):
        for order in orders:
            with pytest.raises(ValueError, match=f"order: solver {name} has orders"):
                SOLVERS[name](order)
    assert all(SOLVERS[name](None).points == POINTS[name][0] for name in ("exp_adams", "deis", "ipndm", "lms", "unipc"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [3, 4, 6, 18])
def test_the_weights_of_deis_are_its_integrals_on_whole_grids_too(
    schedule: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In long steps down to sigma = 0.002, d sigma / dt changes by orders of magnitude within a step."""
    weights: list[list[float]] = []
    monkeypatch.setattr("pipeline.sampling.multistep._sum", lambda z, own, past: weights.append(list(own)) or z)
    row = Sampler(solver="deis", schedule=schedule, nfe=(99,))
    sigmas = row.grid(steps).tolist()
    sample(GAUSSIAN, noise_of(3, 2), row, steps)
    time = row.build_schedule().t
    for k, found in enumerate(weights, start=1):
        past = sigmas[k::-1][:4]
        times = [float(time(torch.tensor(s, dtype=F64))) for s in past]
        for j, weight in enumerate(found):

            def lagrange(log: float, j: int = j, times: list[float] = times) -> float:
                t = float(time(torch.tensor(math.exp(log), dtype=F64)))
                own = [(t - other) / (times[j] - other) for i, other in enumerate(times) if i != j]
                return math.exp(log) * math.prod(own)

            expected, _ = quad(lagrange, math.log(sigmas[k]), math.log(sigmas[k + 1]), epsabs=1e-12, epsrel=1e-11)
            assert weight == pytest.approx(expected, rel=1e-8, abs=1e-9 * sigmas[k])


@all_multistep
def test_the_steps_needed_are_the_fewest_that_combine_all_points(name: str) -> None:
    solver = solver_of(name)
    lengths = {}
    for steps in range(1, 10):
        left = [min(i + 1, solver.points, steps - i if solver.lower_at_end else solver.points) for i in range(steps)]
        into_0 = 0 if name == "lms" else 1  # others take one of Euler's steps there
        lengths[steps] = max(left[: steps - into_0], default=0)
    assert solver.steps_needed == min(steps for steps, most in lengths.items() if most == solver.points)


@pytest.mark.parametrize("name", ["unipc", "exp_adams"])
def test_third_order_has_too_much_contrast_in_7_steps_and_too_little_in_11(name: str) -> None:
    """docs/surprises.md explains scores by it. The data are digits, each blurred by a Gaussian."""
    digits = to_range(load(Data(limit=256)).images).double()
    oracle = Mixture(digits, torch.full((256,), 1 / 256, dtype=F64), 0.1)
    noise = torch.randn(64, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    exact = sample(oracle, noise, Sampler(solver=name, nfe=(100,)), 100).x0

    def error(order: int, steps: int) -> tuple[float, float]:
        """Excess contrast, and the root mean square."""
        found = sample(oracle, noise, Sampler(solver=name, order=order, nfe=(steps,)), steps).x0 - exact
        return float((found * exact).sum() / exact.square().sum()), float(found.square().mean().sqrt())

    (few, large), (many, small) = error(3, 7), error(3, 11)
    assert few > 0.15 and many < -0.1 and small < large / 2
    (few, large), (many, small) = error(2, 7), error(2, 11)
    assert few > 0.05 and many > 0 and small < large
