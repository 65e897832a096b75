"""Training noise: quantiles computed independently, monotonicity, moments and ranges."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.training.noise import NOISES, Levels, distribution, keys_of

P_MEAN, P_STD = -1.2, 1.2
SHIFT, M, S, SCALE = 1.7, -0.4, 0.9, 1.29
RHO_LOW, RHO_HIGH = 0.002 ** (1 / 7), 80 ** (1 / 7)
CHOICES = {"P_mean": P_MEAN, "P_std": P_STD, "shift": SHIFT, "logit_mean": M, "logit_std": S, "mode_scale": SCALE}


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
    "rho_uniform": lambda u: (RHO_LOW + u * (RHO_HIGH - RHO_LOW)) ** 7,
    "iddpm_uniform": iddpm_level,
    "ddpm_uniform": lambda u: math.sqrt(1 / math.prod(1 - np.linspace(1e-4, 0.02, 1000)[: int(u * 1000) + 1]) - 1),
    "flow_uniform": lambda u: SHIFT * u / (1 - u),
    "logit_normal": lambda u: SHIFT * math.exp(NormalDist(M, S).inv_cdf(u)),
    "mode": lambda u: shifted(sd3_mode(1 - u)),
    "cosmap": lambda u: shifted(1 - 1 / (math.tan(math.pi / 2 * u) + 1)),
}


def shifted(t: float) -> float:
    """SD3's timestep shift (eq. 23), as sigma."""
    t = SHIFT * t / (1 + (SHIFT - 1) * t)
    return t / (1 - t)


def sd3_mode(u: float) -> float:
    """SD3's f_mode (eq. 20), which falls with u."""
    return 1 - u - SCALE * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)


def draws(name: str, count: int = 100_000) -> Tensor:
    """sigma at evenly spaced quantiles."""
    return distribution(name, CHOICES).sigma((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def test_every_noise_has_a_quantile_here() -> None:
    assert QUANTILES.keys() == NOISES.keys()


@pytest.mark.parametrize("name", NOISES)
def test_quantiles(name: str) -> None:
    u = [0.0003, 0.0207, 0.1003, 0.25, 0.5, 0.7503, 0.9, 0.9999]
    sigma = distribution(name, CHOICES).sigma(torch.tensor(u, dtype=torch.float64).reshape(2, 4))
    assert sigma.shape == (2, 4) and sigma.dtype == torch.float64
    assert sigma.flatten().tolist() == pytest.approx([QUANTILES[name](value) for value in u], rel=1e-9)


@pytest.mark.parametrize("name", NOISES)
def test_sigma_rises_with_u_and_is_positive_and_finite(name: str) -> None:
    sigma = draws(name, 3000)
    assert (sigma.diff() >= 0).all()
    assert (sigma > 0).all() and sigma.isfinite().all()


@pytest.mark.parametrize(("mean", "std"), [(P_MEAN, P_STD), (0.4, 2.0)])
def test_lognormal_moments(mean: float, std: float) -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logs = distribution("lognormal", {"P_mean": mean, "P_std": std}).sigma(u).log()
    assert (float(logs.mean()), float(logs.std())) == pytest.approx((mean, std), rel=1e-3)


def test_uniform_time_of_the_flow_is_a_logistic_log_sigma() -> None:
    logs = draws("flow_uniform").log() - math.log(SHIFT)
    assert float(logs.mean()) == pytest.approx(0, abs=1e-9)
    assert float(logs.var()) == pytest.approx(math.pi**2 / 3, rel=1e-3)
    shares = torch.searchsorted(logs, torch.tensor([-3.0, -1, 0, 2], dtype=torch.float64)) / len(logs)
    assert shares.tolist() == pytest.approx([1 / (1 + math.exp(-v)) for v in (-3, -1, 0, 2)], abs=1e-4)


def test_logit_normal_time_is_the_prior_of_edm() -> None:
    """sigma = t / (1 - t) with logit t ~ N(m, s^2); a shift adds its logarithm to P_mean."""
    logit_normal = draws("logit_normal", 1000)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    edm = distribution("lognormal", {"P_mean": M + math.log(SHIFT), "P_std": S}).sigma(u)
    torch.testing.assert_close(logit_normal, edm, rtol=1e-12, atol=0)


def test_mode_without_scale_is_uniform_in_time() -> None:
    u = torch.linspace(0.01, 0.99, 50).double()
    one, other = (distribution(name, CHOICES | {"mode_scale": 0.0}).sigma(u) for name in ("mode", "flow_uniform"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


DENSITIES: dict[str, Callable[[float], float]] = {  # over ln sigma, in closed form
    "lognormal": lambda log: NormalDist(P_MEAN, P_STD).pdf(log),
    "ve_loguniform": lambda log: 1 / math.log(5000),
    "rho_uniform": lambda log: math.exp(log / 7) / 7 / (RHO_HIGH - RHO_LOW),
    "flow_uniform": lambda log: 1 / (4 * math.cosh((log - math.log(SHIFT)) / 2) ** 2),
    "logit_normal": lambda log: NormalDist(M + math.log(SHIFT), S).pdf(log),
    "cosmap": lambda log: 2 / math.pi * math.exp(log) * SHIFT / (SHIFT**2 + math.exp(2 * log)),
}


@pytest.mark.parametrize("name", NOISES)
def test_densities(name: str) -> None:
    """They equal the closed forms and integrate to the difference of quantiles."""
    found = distribution(name, CHOICES)
    u = torch.linspace(0.03, 0.97, 20_001).double()
    log, density = found.sigma(u).log(), found.density(u)
    assert density.shape == u.shape and (density > 0).all()
    assert float(torch.trapezoid(density, log)) == pytest.approx(0.94, rel=5e-3)
    if name in DENSITIES:
        expected = [DENSITIES[name](value) for value in log[::500].tolist()]
        assert density[::500].tolist() == pytest.approx(expected, rel=1e-9)
    else:
        assert name in ("vp_uniform", "iddpm_uniform", "ddpm_uniform", "mode")


@pytest.mark.parametrize("name", NOISES)
def test_u_inverts_sigma(name: str) -> None:
    found, u = distribution(name, CHOICES), torch.linspace(0.002, 0.998, 200).double().reshape(2, 100)
    if isinstance(found, Levels):
        assert torch.equal(found.sigma(found.u(found.levels)), found.levels)
    else:
        torch.testing.assert_close(found.u(found.sigma(u)), u, rtol=1e-9, atol=1e-12)


def test_the_snr_rate_integrates_to_the_snr() -> None:
    """The integral of -dSNR/du between two quantiles is the difference of 1 / sigma^2; with levels exactly so."""
    for name in NOISES:
        found = distribution(name, CHOICES)
        if isinstance(found, Levels):
            rates = found.snr_rate((torch.arange(1000) + 0.5).double() / 1000) / 1000
            snr = found.levels.double() ** -2
            torch.testing.assert_close(rates[1:], snr[:-1] - snr[1:])
            assert float(rates[0]) == pytest.approx(float(snr[0]))
        else:
            u = torch.linspace(0.1, 0.9, 20_001).double()
            ends = found.sigma(u[[0, -1]]) ** -2
            assert float(torch.trapezoid(found.snr_rate(u), u)) == pytest.approx(float(ends[0] - ends[1]), rel=1e-4)


def test_keys_are_those_of_a_model_row() -> None:
    assert {key for name in NOISES for key in keys_of(name)} == CHOICES.keys()


@pytest.mark.parametrize(
    ("name", "low", "high"), [("ve_loguniform", 0.02, 100.0), ("vp_uniform", vp_sigma(1e-5), vp_sigma(1.0))]
)
def test_ranges(name: str, low: float, high: float) -> None:
    ends = distribution(name, CHOICES).sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([low, high], rel=1e-9)


@pytest.mark.parametrize("name", ["iddpm_uniform", "ddpm_uniform"])
def test_levels_are_equally_likely_and_never_zero(name: str) -> None:
    values, counts = draws(name, 4000).unique(return_counts=True)
    assert len(values) == 1000 and (counts == 4).all() and values[0] > 0
