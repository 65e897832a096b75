"""Stochastic solvers: formulas, numbers of noise draws, churn's window, and marginals."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE, SCALINGS, SCHEDULES
from pipeline.evaluation.convergence import mixture
from pipeline.sampling.loop import sample
from pipeline.sampling.ode import Ode, Solver
from pipeline.sampling.row import Sampler
from pipeline.sampling.singlestep import euler, heun
from pipeline.sampling.solvers import SOLVERS, VARIANCES
from pipeline.sampling.stochastic import DDIM, DDPM, STOCHASTIC, Churned, EulerMaruyama

F64 = torch.float64
GAUSSIAN = Gaussian(0.2, 0.5)
NOISY: dict[str, list[dict[str, Any]]] = {  # by solver: rows that add noise
    "ddim": [{"eta": 0.5}, {"eta": 1}],
    "ddpm": [{}, {"variance": "beta"}],
    "euler_maruyama": [
        {"diffusion": 0.3},
        {"diffusion": 1},
        {"diffusion": 2},
        {"corrector_steps": 1},
        {"diffusion": 0, "corrector_steps": 2},
    ],
    "dpmpp_2m_sde": [{}],
}
ROWS = [{"solver": name} | keys for name, rows in NOISY.items() for keys in rows]
CHURNED = ("euler", "heun", "midpoint", "rk4", "dpm_solver_2", "dpmpp_2s", "ddim")

all_schedules = pytest.mark.parametrize("schedule", SCHEDULES)


def ode_of(schedule: str, scaling: str | None = None) -> Ode:
    return Ode(GAUSSIAN, SCHEDULES[schedule](0.002, 80.0), SCALINGS[scaling or SCALING_OF_SCHEDULE[schedule]])


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def start(sigma: float) -> Tensor:
    spread = torch.linspace(-2, 2, 12, dtype=F64).reshape(4, 3)
    return GAUSSIAN.mean + math.hypot(sigma, GAUSSIAN.std) * spread


def noise_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def drawn(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_every_way_of_adding_noise_is_here() -> None:
    assert NOISY.keys() == STOCHASTIC.keys() - {"consistency"}  # is for maps, not denoisers: test_objectives.py
    assert all(Sampler(**row).build_solver().stochastic for row in ROWS)
    assert {row.get("variance", "beta_tilde") for row in NOISY["ddpm"]} | {"learned"} == set(VARIANCES)
    assert set(CHURNED) == {name for name in SOLVERS if _churns(name)}


def _churns(solver: str) -> bool:
    try:
        return bool(Sampler(solver=solver, S_churn=1, nfe=(99,)))
    except ValueError:
        return False


@pytest.mark.parametrize("sigmas", [(9.0, 4.0), (1.0, 0.8), (0.3, 0.005)])
def test_ddpm_and_eta_of_one_are_the_posterior(sigmas: tuple[float, float]) -> None:
    """q(x_prev | x, x0) for x = sqrt(abar) x0 + sqrt(1 - abar) eps (Ho et al. 2020, eqs. 6 and 7)."""
    sigma, sigma_next = sigmas
    abar, abar_prev = (1 / (1 + v**2) for v in sigmas)
    alpha, beta = abar / abar_prev, 1 - abar / abar_prev
    x0, x = GAUSSIAN(start(sigma), scalar(sigma)), math.sqrt(abar) * start(sigma)
    mean = (math.sqrt(abar_prev) * beta * x0 + math.sqrt(alpha) * (1 - abar_prev) * x) / (1 - abar)
    std = math.sqrt((1 - abar_prev) / (1 - abar) * beta)
    for solver, expected_std in ((DDIM(1.0), std), (DDPM("beta_tilde"), std), (DDPM("beta"), math.sqrt(beta))):
        for noise, expected in ((torch.zeros_like, mean), (torch.ones_like, mean + expected_std)):
            x_prev = math.sqrt(abar_prev) * solver.step(ode_of("vp"), start(sigma), sigma, sigma_next, noise)
            close(x_prev, expected)


def answering(v: Tensor | float) -> DenoiserFunction:
    """The exact denoiser, with a place v of the variance, a number or of the state's shape."""
    return lambda z, sigma: torch.cat([GAUSSIAN(z, sigma), torch.as_tensor(v, dtype=z.dtype).expand_as(z)], dim=1)


@pytest.mark.parametrize("steps", [1, 2, 6, 50])
@pytest.mark.parametrize(("v", "variance"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_a_learned_variance_ends_at_the_fixed_ones(v: float, variance: str, steps: int) -> None:
    """On every grid, for one call a step: at v = 0 to the last bit, at v = 1 to rounding."""
    row = Sampler(solver="ddpm", variance="learned", nfe=(99,))
    learned = sample(answering(v), noise_of(5, 3), row, steps, drawn(0))
    fixed = sample(GAUSSIAN, noise_of(5, 3), row.model_copy(update={"variance": variance}), steps, drawn(0))
    assert learned.nfe == fixed.nfe == steps == row.evaluations(steps)
    close(learned.x0, fixed.x0, 1e-12)
    assert v or torch.equal(learned.x0, fixed.x0)


@pytest.mark.parametrize("sigmas", [(9.0, 4.0), (1.0, 0.8), (0.3, 0.005)])
def test_a_learned_variance_is_a_geometric_mean_for_each_value(sigmas: tuple[float, float]) -> None:
    """Nichol and Dhariwal 2021, eq. 15, in the coordinates of DDPM."""
    sigma, sigma_next = sigmas
    abar, abar_prev = (1 / (1 + v**2) for v in sigmas)
    beta = 1 - abar / abar_prev
    tilde = (1 - abar_prev) / (1 - abar) * beta
    v = torch.linspace(-0.2, 1.3, 12, dtype=F64).reshape(4, 3)
    ode = Ode(answering(v), SCHEDULES["linear"](0.002, 80.0), SCALINGS["none"])
    still, moved = (
        DDPM("learned").step(ode, start(sigma), sigma, sigma_next, f) for f in (torch.zeros_like, torch.ones_like)
    )
    close((moved - still).square() * abar_prev, torch.exp(v * math.log(beta) + (1 - v) * math.log(tilde)))
    close(still, DDPM("beta").step(ode_of("linear"), start(sigma), sigma, sigma_next, torch.zeros_like))


def test_a_denoiser_without_a_variance_is_refused_in_one_line() -> None:
    with pytest.raises(StudyError, match=r"^variance: learned needs a denoiser that answers D and v; use beta or"):
        sample(GAUSSIAN, noise_of(5, 3), Sampler(solver="ddpm", variance="learned"), 3, torch.ones_like)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_eta_scales_the_noise_and_keeps_the_total(eta: float) -> None:
    """Song et al. 2021, eq. 16: sigma_tau is eta times DDPM's, and the direction to x makes up the rest of 1 - abar."""
    sigma, sigma_next = 2.0, 1.1
    abar, abar_prev = (1 / (1 + v**2) for v in (sigma, sigma_next))
    x0, x = GAUSSIAN(start(sigma), scalar(sigma)), math.sqrt(abar) * start(sigma)
    eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
    std = eta * math.sqrt((1 - abar_prev) / (1 - abar)) * math.sqrt(1 - abar / abar_prev)
    expected = math.sqrt(abar_prev) * x0 + math.sqrt(1 - abar_prev - std**2) * eps + std
    z = DDIM(eta).step(ode_of("vp"), start(sigma), sigma, sigma_next, torch.ones_like)
    close(math.sqrt(abar_prev) * z, expected)


@all_schedules
@pytest.mark.parametrize("row", [{"eta": 0}, {"eta": 1}, {"solver": "ddpm"}, {"solver": "dpmpp_2m_sde"}], ids=str)
def test_a_last_step_returns_the_denoised(row: dict[str, Any], schedule: str) -> None:
    solver = Sampler(**{"solver": "ddim"} | row).build_solver()
    [end] = solver.run(ode_of(schedule), start(0.3), [0.3, 0.0], silent)
    close(end, GAUSSIAN(start(0.3), scalar(0.3)))


@all_schedules
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("diffusion", [0.0, 0.5, 2.0])
def test_euler_maruyama_is_the_reverse_sde(schedule: str, scaling: str, diffusion: float) -> None:
    """In x = s z: drift s'/s x - (1 + diffusion) s sigma' sigma score, noise s sqrt(2 diffusion sigma' sigma h); the
    variance that it adds to z in a short step is diffusion (sigma^2 - sigma_next^2), whatever the path."""
    ode, sigma, sigma_next = ode_of(schedule, scaling), 0.9, 0.7
    t, t_next = ode.t(sigma), ode.t(sigma_next)
    s, z = ode.s(sigma), start(sigma)
    score = (GAUSSIAN(z, scalar(sigma)) - z) / sigma**2
    s_dot = ode.log_slope(sigma) * ode.sigma_dot(t) * s
    drift = s_dot * z - (1 + diffusion) * s * ode.sigma_dot(t) * sigma * score
    spread = s * math.sqrt(2 * diffusion * ode.sigma_dot(t) * sigma * (t - t_next))
    solver = EulerMaruyama(diffusion, 0, 0.16)
    expected = (s * z + (t_next - t) * drift + spread) / ode.s(sigma_next)
    close(solver.step(ode, z, sigma, sigma_next, torch.ones_like), expected, 1e-11)
    near = sigma * (1 - 1e-6)
    added = solver.step(ode, z, sigma, near, torch.ones_like) - solver.step(ode, z, sigma, near, torch.zeros_like)
    assert float(added.mean()) ** 2 == pytest.approx(diffusion * (sigma**2 - near**2), rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 8, 8), (5, 1, 8, 8), (3, 2), (4,)])
def test_langevin_steps_come_after_the_step_at_the_new_level(shape: tuple[int, ...]) -> None:
    """z + e score + sqrt(2 e) n, e = 2 (corrector_snr sigma)^2, with new noise and a new score each."""
    ode, sigma, sigma_next = ode_of("vp"), 0.9, 0.7
    noises = list(torch.randn(3, *shape, dtype=F64, generator=torch.Generator().manual_seed(1)))
    z, first, all_of_them = noise_of(*shape).double(), iter(noises[:1]), iter(noises)
    end = EulerMaruyama(1.0, 2, 0.2).step(ode, z, sigma, sigma_next, lambda x: next(all_of_them))
    state = EulerMaruyama(1.0, 0, 0.2).step(ode, z, sigma, sigma_next, lambda x: next(first))
    e = 2 * (0.2 * sigma_next) ** 2
    for noise in noises[1:]:
        score = (GAUSSIAN(state, scalar(sigma_next)) - state) / sigma_next**2
        state = state + e * score + math.sqrt(2 * e) * noise
    close(end, state, 1e-12)
    assert next(all_of_them, None) is None


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_dpmpp_2m_sde_has_the_exact_law_for_a_constant_denoiser(constant: float) -> None:
    """z - D ~ N(0, sigma^2) at every level: r^4 sigma^2 + sigma_next^2 (1 - r^2) = sigma_next^2, in any steps."""
    sigmas = [5.0, 2.0, 1.7, 0.2, 0.1]
    ode = Ode(lambda z, sigma: torch.full_like(z, constant), SCHEDULES["linear"](0.1, 5.0), SCALINGS["none"])
    identity = iter(torch.eye(5, dtype=F64)[1:, :, None])
    z = torch.eye(5, dtype=F64)[0][:, None] * 5.0 + constant  # sample i holds what the i-th noise becomes
    solver: Solver = SOLVERS["dpmpp_2m_sde"]()
    for state, sigma in zip(solver.run(ode, z, sigmas, lambda x: next(identity)), sigmas[1:], strict=True):
        assert float((state - constant).square().sum()) == pytest.approx(sigma**2, rel=1e-12)


def test_dpmpp_2m_sde_in_the_coordinates_it_was_published_in() -> None:
    """x = alpha z, lambda = ln(alpha / std): x_next = std_next / std exp(-h) x + alpha_next (1 - exp(-2h)) (D + D1 / 2)
    + std_next sqrt(1 - exp(-2h)) n, with D1 = (D - D_before) h / h_before (arXiv 2211.01095, its SDE-DPM-Solver++)."""
    sigmas, ode = [3.0, 1.9, 0.8, 0.5, 0.3], ode_of("vp")
    alpha = [1 / math.sqrt(1 + s * s) for s in sigmas]
    std = [s * a for s, a in zip(sigmas, alpha, strict=True)]
    lam = [math.log(a / s) for a, s in zip(alpha, std, strict=True)]
    z = [start(3.0), *SOLVERS["dpmpp_2m_sde"]().run(ode, start(3.0), sigmas, torch.ones_like)]
    d = [ode.denoise(state, sigma) for state, sigma in zip(z, sigmas, strict=True)]
    for i in (1, 2):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        x = std[i + 1] / std[i] * math.exp(-h) * alpha[i] * z[i]
        x = x - alpha[i + 1] * math.expm1(-2 * h) * (d[i] + (d[i] - d[i - 1]) * h / before / 2)
        x = x + std[i + 1] * math.sqrt(-math.expm1(-2 * h))
        close(alpha[i + 1] * z[i + 1], x, 1e-12)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_stochastic_samplers_ask_once_a_step_but_the_last(row: dict[str, Any]) -> None:
    """Also once for each Langevin step; without noise to add there is no draw."""
    asked: list[torch.Size] = []
    sampler = Sampler(**row, nfe=(99,))
    sample(GAUSSIAN, noise_of(2, 3), sampler, 6, lambda x: asked.append(x.shape) or torch.ones_like(x))
    of_step = int(row.get("diffusion", 1) > 0) + row.get("corrector_steps", 0)
    assert asked == 5 * of_step * [(2, 3)]


@pytest.mark.parametrize("solver", CHURNED)
@pytest.mark.parametrize(
    ("window", "levels"),
    [
        ({}, [4.0, 2.0, 1.0, 0.5]),
        ({"S_min": 1}, [4.0, 2.0, 1.0]),
        ({"S_max": 2}, [2.0, 1.0, 0.5]),
        ({"S_min": 1, "S_max": 2}, [2.0, 1.0]),
        ({"S_min": 0.6, "S_max": 0.9}, []),
    ],
    ids=str,
)
def test_churn_goes_by_its_window(solver: str, window: dict[str, float], levels: list[float]) -> None:
    """The window includes both ends."""
    asked = []
    explicit = {"discretization": "explicit", "sigmas": (4.0, 2.0, 1.0, 0.5), "nfe": (99,)}
    row = Sampler(solver=solver, S_churn=1, **window, **explicit)
    sample(GAUSSIAN, noise_of(2, 3), row, 4, lambda x: asked.append(x.shape) or torch.zeros_like(x))
    assert asked == len(levels) * [(2, 3)] and row.build_solver().stochastic
    seen: list[float] = []
    denoiser = lambda z, sigma: seen.append(float(sigma)) or GAUSSIAN(z, sigma)  # noqa: E731
    sample(denoiser, noise_of(2, 3), row, 4, torch.zeros_like)
    assert [sigma for sigma in (4.0, 2.0, 1.0, 0.5) if 1.25 * sigma in seen] == levels


@pytest.mark.parametrize(("S_churn", "gamma"), [(0.4, 0.1), (1.0, 0.25), (40.0, math.sqrt(2) - 1)])
@pytest.mark.parametrize("S_noise", [1.0, 1.003])
def test_churn_is_algorithm_2(S_churn: float, gamma: float, S_noise: float) -> None:
    """Karras et al. 2022, Algorithm 2, in plain numbers, with Heun's steps."""
    sigmas = [4.0, 2.0, 1.0, 0.5, 0.0]
    x = start(4.0)
    expected = []
    for t, t_next in pairwise(sigmas):
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * S_noise
        d = (x_hat - GAUSSIAN(x_hat, scalar(t_hat))) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next:
            x = x_hat + (t_next - t_hat) * (d + (x - GAUSSIAN(x, scalar(t_next))) / t_next) / 2
        expected.append(x)
    churned = Churned(heun(1.0), S_churn, 0.0, None, S_noise)
    states = list(churned.run(ode_of("linear"), start(4.0), sigmas, torch.ones_like))
    for state, value in zip(states, expected, strict=True):
        close(state, value, 1e-12)


def test_churn_costs_what_its_solver_does() -> None:
    for solver in (euler(), heun(1.0)):
        churned = Churned(solver, 3.0, 0.0, None, 1.0)
        assert (churned.order, churned.stages, churned.variable) == (solver.order, solver.stages, solver.variable)
        assert [churned.evaluations(n) for n in (1, 2, 5)] == [solver.evaluations(n) for n in (1, 2, 5)]


def fine() -> Iterator[dict[str, Any]]:
    """Rows whose fine steps preserve the data distribution, by schedule if it matters."""
    yield from ROWS
    yield from ({"solver": solver, "S_churn": 10} for solver in CHURNED)
    yield {"solver": "heun", "S_churn": 80, "S_min": 0.05, "S_max": 50}
    yield from ({"solver": "euler_maruyama", "schedule": schedule} for schedule in SCHEDULES)


@pytest.mark.parametrize("row", list(fine()), ids=str)
def test_fine_steps_keep_the_mean_and_std_of_a_gaussian(row: dict[str, Any]) -> None:
    """Without sampling: a step is linear in z and its noises, so one sample for each noise holds what becomes of it."""
    drawn = 0

    def one_at_a_time(z: Tensor) -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros_like(z).index_fill(0, torch.tensor(drawn), 1.0)

    first = torch.zeros(1000, 1).index_fill(0, torch.tensor(0), 1.0)  # the first sample holds the initial noise
    x0 = sample(GAUSSIAN, first, Sampler(**row, nfe=(9999,)), 400, one_at_a_time).x0
    mean = x0[-1]  # no noise reaches the last sample
    assert drawn < 999 and float(mean) == pytest.approx(0.2, abs=0.005)
    assert float((x0 - mean).norm()) == pytest.approx(0.5, rel=0.02)


@cache
def many() -> Tensor:
    return mixture().sample(200_000, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_fine_steps_keep_the_moments_of_a_mixture(row: dict[str, Any]) -> None:
    """No coordinate is Gaussian here: mean, covariance and fourth moments."""
    x0 = sample(mixture(), noise_of(8192, 2), Sampler(**row, nfe=(999,)), 100, drawn(2)).x0
    expected = many()
    close(x0.mean(0), expected.mean(0), 0.03)
    close(x0.T.cov(), expected.T.cov(), 0.03)
    close(x0.pow(4).mean(0), expected.pow(4).mean(0), 0.05)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_noise_is_what_makes_samples_differ(row: dict[str, Any]) -> None:
    run = lambda seed: sample(GAUSSIAN, noise_of(5, 3), Sampler(**row, nfe=(99,)), 6, drawn(seed)).x0  # noqa: E731
    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
