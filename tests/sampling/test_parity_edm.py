"""EDM's sampler, of second order or Euler's and with churn, is its paper's formulas written out here."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.sampling.row import Sampler
from tests.sampling.peers import CHURN, DRAWS, F64, MIXTURE, NOISE, Peers, assert_equal, ours


class Formulas(NamedTuple):
    """sigma(t), its derivative and its inverse, in plain floats."""

    sigma: Callable[[float], float]
    sigma_dot: Callable[[float], float]
    t: Callable[[float], float]


def vp_formulas(low: float, high: float) -> Formulas:
    """EDM, Table 1, with the constants that give this range."""
    eps_s, log_low, log_high = 1e-3, math.log(low**2 + 1), math.log(high**2 + 1)
    b_d = 2 * (log_low / eps_s - log_high) / (eps_s - 1)
    b_min = log_high - b_d / 2

    def sigma(t: float) -> float:
        return math.sqrt(math.expm1(b_d * t * t / 2 + b_min * t))

    def sigma_dot(t: float) -> float:
        return (b_min + b_d * t) * (1 + sigma(t) ** 2) / (2 * sigma(t))

    return Formulas(sigma, sigma_dot, lambda s: (math.sqrt(b_min**2 + 2 * b_d * math.log1p(s**2)) - b_min) / b_d)


FORMULAS: dict[str, Callable[[float, float], Formulas]] = {
    "vp": vp_formulas,
    "ve": lambda low, high: Formulas(math.sqrt, lambda t: 1 / (2 * math.sqrt(t)), lambda s: s * s),
    "linear": lambda low, high: Formulas(lambda t: t, lambda t: 1.0, lambda s: s),
}


@cache
def cosine_levels() -> list[float]:
    """iDDPM's u_0 > ... > u_M = 0."""
    c_1, c_2, m = 0.001, 0.008, 1000
    abar = [math.sin(math.pi / 2 * j / (m * (c_2 + 1))) ** 2 for j in range(m + 1)]
    u = [0.0]
    for j in range(m, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(abar[j - 1] / abar[j], c_1) - 1))
    return u[::-1]


def published_grid(name: str, n: int) -> list[float]:
    """sigma_0 > ... > sigma_N = 0, over the range that each grid was published with."""
    share = [i / max(n - 1, 1) for i in range(n)]
    match name:
        case "vp":
            sigmas = [math.sqrt(math.expm1(19.9 / 2 * t**2 + 0.1 * t)) for t in (1 + i * (1e-3 - 1) for i in share)]
        case "ve":
            sigmas = [math.sqrt(100**2 * (0.02**2 / 100**2) ** i) for i in share]
        case "iddpm":
            levels_left = [u for u in cosine_levels() if 0.002 <= u <= 81]
            sigmas = [levels_left[round((len(levels_left) - 1) * i)] for i in share]
        case _:
            sigmas = [(80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in share]
    return [*sigmas, 0.0]


RANGES = {"vp": (published_grid("vp", 2)[1], published_grid("vp", 2)[0]), "ve": (0.02, 100.0)}
RANGES |= {"iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}


def edm_sampler(
    sigmas: Sequence[float], formulas: Formulas, scaled: bool, alpha: float | None, churn: dict[str, Any] | None
) -> Tensor:
    """Karras et al. 2022: Algorithm 2 on the ODE of eq. 81, of any schedule and of s = 1 or 1 / sqrt(1 + sigma^2), with
    the second-order family of appendix D.2; alpha None: Euler. The last step, into 0, is Euler's."""

    def s(t: float) -> float:
        return 1 / math.sqrt(1 + formulas.sigma(t) ** 2) if scaled and t else 1.0

    def s_dot(t: float) -> float:
        return -formulas.sigma(t) * formulas.sigma_dot(t) * s(t) ** 3 if scaled else 0.0

    def slope(x: Tensor, t: float) -> Tensor:
        sigma, sigma_dot = formulas.sigma(t), formulas.sigma_dot(t)
        denoised = MIXTURE(x / s(t), torch.tensor(sigma, dtype=F64))
        return (sigma_dot / sigma + s_dot(t) / s(t)) * x - sigma_dot * s(t) / sigma * denoised

    n, draws = len(sigmas) - 1, iter(DRAWS)
    times = [*(formulas.t(sigma) for sigma in sigmas[:-1]), 0.0]
    x = NOISE * sigmas[0] * s(times[0])
    for i in range(n):
        t_hat, x_hat = times[i], x
        if churn and churn["S_min"] <= sigmas[i] <= churn["S_max"]:
            gamma = min(churn["S_churn"] / n, math.sqrt(2) - 1)
            t_hat = formulas.t(sigmas[i] + gamma * sigmas[i])
            added = math.sqrt((1 + gamma) ** 2 - 1) * sigmas[i] * churn["S_noise"]
            x_hat = s(t_hat) / s(times[i]) * x + s(t_hat) * added * next(draws)
        h, d = times[i + 1] - t_hat, slope(x_hat, t_hat)
        x = x_hat + h * d
        if alpha and i < n - 1:
            d_prime = slope(x_hat + alpha * h * d, t_hat + alpha * h)
            x = x_hat + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x


GRIDS, ALPHAS = ["vp", "ve", "iddpm", "edm"], [None, 1.0, 2 / 3, 0.5]


@pytest.mark.parametrize(
    ("grid", "schedule", "alpha"),  # all pairs
    [
        (grid, schedule, ALPHAS[(i + j + k) % 4])
        for i, grid in enumerate(GRIDS)
        for j, schedule in enumerate(FORMULAS)
        for k in (0, 1)
    ],
)
@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize("churn", [None, CHURN])
def test_edm_sampler(grid: str, schedule: str, alpha: float | None, scaling: str, churn: dict[str, Any] | None) -> None:
    row = Sampler(
        **({"solver": "heun", "alpha": alpha} if alpha else {"solver": "euler"}),
        **(churn or {}),
        discretization=grid,
        schedule=schedule,
        scaling=scaling,
    )
    for steps in (1, 2, 3, 18):
        sigmas = published_grid(grid, steps)
        torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=0)
        theirs = edm_sampler(sigmas, FORMULAS[schedule](*RANGES[grid]), scaling == "vp", alpha, churn)
        assert_equal(ours(row, steps), theirs)
        if alpha == 0.5 and not churn:
            midpoint = Sampler(solver="midpoint", discretization=grid, schedule=schedule, scaling=scaling)
            assert_equal(ours(midpoint, steps), theirs)


PEERS: Peers = {"euler": (test_edm_sampler,), "heun": (test_edm_sampler,), "midpoint": (test_edm_sampler,)}
