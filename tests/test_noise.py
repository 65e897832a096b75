"""Training noise: quantiles in plain numbers, monotone, and the moments and ranges that follow from them."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.noise import NOISES

P_MEAN, P_STD = -1.2, 1.2


def vp_sigma(t: float) -> float:
    return math.sqrt(math.exp(19.9 * t * t / 2 + 0.1 * t) - 1)


def iddpm_level(u: float) -> float:
    abar = np.sin(np.pi * np.arange(1001) / (2 * 1000 * 1.008)) ** 2
    level = 0.0
    for j in range(1000, 999 - int(u * 1000), -1):
        level = math.sqrt((level**2 + 1) / max(abar[j - 1] / abar[j], 1e-3) - 1)
    return level


QUANTILES: dict[str, Callable[[float], float]] = {
    "lognormal": lambda u: math.exp(NormalDist(P_MEAN, P_STD).inv_cdf(u)),
    "vp_uniform": lambda u: vp_sigma(1e-5 + u * (1 - 1e-5)),
    "ve_loguniform": lambda u: math.exp(math.log(0.02) + u * (math.log(100) - math.log(0.02))),
    "iddpm_uniform": iddpm_level,
    "flow_uniform": lambda u: u / (1 - u),
}


def draws(name: str, count: int = 100_000) -> Tensor:
    """sigma at evenly spaced quantiles: as many independent draws would be spread, without their scatter."""
    return NOISES[name]((torch.arange(count, dtype=torch.float64) + 0.5) / count, P_MEAN, P_STD)


def test_every_noise_has_a_quantile_here() -> None:
    assert QUANTILES.keys() == NOISES.keys()


@pytest.mark.parametrize("name", NOISES)
def test_quantiles(name: str) -> None:
    u = [0.0003, 0.0207, 0.1003, 0.25, 0.5, 0.7503, 0.9, 0.9999]
    sigma = NOISES[name](torch.tensor(u, dtype=torch.float64).reshape(2, 4), P_MEAN, P_STD)
    assert sigma.shape == (2, 4) and sigma.dtype == torch.float64
    assert sigma.flatten().tolist() == pytest.approx([QUANTILES[name](value) for value in u], rel=1e-9)


@pytest.mark.parametrize("name", NOISES)
def test_sigma_rises_with_u_and_is_positive_and_finite(name: str) -> None:
    sigma = draws(name, 3000)
    assert (sigma.diff() >= 0).all()
    assert (sigma > 0).all() and sigma.isfinite().all()


def test_medians() -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    assert float(NOISES["lognormal"](half, 0.7, 3.0)) == pytest.approx(math.exp(0.7))
    assert float(NOISES["ve_loguniform"](half, P_MEAN, P_STD)) == pytest.approx(math.sqrt(0.02 * 100))
    assert float(NOISES["flow_uniform"](half, P_MEAN, P_STD)) == 1


@pytest.mark.parametrize(("mean", "std"), [(P_MEAN, P_STD), (0.4, 2.0)])
def test_lognormal_moments(mean: float, std: float) -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logs = NOISES["lognormal"](u, mean, std).log()
    assert (float(logs.mean()), float(logs.std())) == pytest.approx((mean, std), rel=1e-3)


def test_uniform_time_of_the_flow_is_a_logistic_log_sigma() -> None:
    logs = draws("flow_uniform").log()
    assert float(logs.mean()) == pytest.approx(0, abs=1e-9)
    assert float(logs.var()) == pytest.approx(math.pi**2 / 3, rel=1e-3)
    shares = torch.searchsorted(logs, torch.tensor([-3.0, -1, 0, 2], dtype=torch.float64)) / len(logs)
    assert shares.tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (-3, -1, 0, 2)], abs=1e-4)


def test_logit_normal_time_is_the_prior_of_edm() -> None:
    """sigma = t / (1 - t) with logit t ~ N(m, s^2)."""
    u = torch.linspace(0.01, 0.99, 50).double()
    t = torch.tensor([NormalDist(P_MEAN, P_STD).inv_cdf(v) for v in u.tolist()], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(NOISES["lognormal"](u, P_MEAN, P_STD), t / (1 - t), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("ve_loguniform", 0.02, 100.0), ("vp_uniform", vp_sigma(1e-5), vp_sigma(1.0))]
)
def test_ranges(name: str, low: float, high: float) -> None:
    ends = NOISES[name](torch.tensor([0.0, 1.0], dtype=torch.float64), P_MEAN, P_STD)
    assert ends.tolist() == pytest.approx([low, high], rel=1e-9)


def test_iddpm_levels_are_equally_likely_and_never_zero() -> None:
    values, counts = draws("iddpm_uniform", 4000).unique(return_counts=True)
    assert len(values) == 1000 and (counts == 4).all() and values[0] > 0
