"""Loss weightings against formulas written out independently."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training.noise import distribution
from pipeline.training.weighting import WEIGHTINGS, Uncertainty

SD = 0.6
K, GAMMA, BIAS = 0.7, 0.8, -1.5
KEYS = {"min_snr": {"gamma": GAMMA}, "p2": {"k": K, "gamma": GAMMA}, "sigmoid": {"bias": BIAS}}


def log_snr(sigma: float) -> float:
    return -2 * math.log(sigma)


LAMBDA: dict[str, Callable[[float, float, float], float]] = {  # of sigma, c_out and snr_rate
    "unit": lambda sigma, c_out, rate: 1 / c_out**2,
    "edm": lambda sigma, c_out, rate: (sigma**2 + SD**2) / (sigma * SD) ** 2,
    "snr": lambda sigma, c_out, rate: 1 / sigma**2,
    "truncated_snr": lambda sigma, c_out, rate: max(1 / sigma**2, 1),
    "min_snr": lambda sigma, c_out, rate: min(1 / sigma**2, GAMMA),
    "soft_min_snr": lambda sigma, c_out, rate: 1 / (sigma**2 + SD**2),
    "p2": lambda sigma, c_out, rate: (1 / sigma**2) / (K + 1 / sigma**2) ** GAMMA,
    "sigmoid": lambda sigma, c_out, rate: math.exp(log_snr(sigma)) / (1 + math.exp(log_snr(sigma) - BIAS)),
    "uniform_x0": lambda sigma, c_out, rate: 1,
    "uniform_eps": lambda sigma, c_out, rate: 1 / sigma**2,
    "uniform_v": lambda sigma, c_out, rate: 1 / sigma**2 + 1,
    "uniform_velocity": lambda sigma, c_out, rate: (1 + 1 / sigma) ** 2,
    "uniform_score": lambda sigma, c_out, rate: 1 / sigma**4,
    "inverse_step": lambda sigma, c_out, rate: 1 / rate,  # the tests use one number for both
    "vlb": lambda sigma, c_out, rate: rate / 2,
    "uncertainty": lambda sigma, c_out, rate: 1 / c_out**2,
}
PREDICTED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # what D = d predicts of z = x0 + sigma n
    "uniform_x0": lambda d, z, sigma: d,
    "uniform_eps": lambda d, z, sigma: (z - d) / sigma,
    "uniform_v": lambda d, z, sigma: ((z - d) / sigma - sigma * d) / (1 + sigma**2).sqrt(),
    "uniform_score": lambda d, z, sigma: (d - z) / sigma**2,
    "uniform_velocity": lambda d, z, sigma: (z - d) / sigma - d,
}
VP_TABLE: dict[str, Callable[[float], float]] = {  # lambda(sigma), on D, by parametrization
    "edm": lambda sigma: (sigma**2 + SD**2) / (sigma * SD) ** 2,
    "ve": lambda sigma: 1 / sigma**2,
    "flow": lambda sigma: (1 + sigma) ** 2 / sigma**2,
    "flow_t": lambda sigma: (1 + sigma) ** 2 / sigma**2,
    **dict.fromkeys(("vp_x0", "ddpm_x0", "iddpm_x0"), lambda sigma: 1),
    **dict.fromkeys(("vp_v", "ddpm_v", "iddpm_v"), lambda sigma: (1 + sigma**2) / sigma**2),
    "flow_x0": lambda sigma: 1,
}
TABLE = {name: VP_TABLE.get(name, lambda sigma: 1 / sigma**2) for name in PARAMETRIZATIONS}


def sigmas() -> Tensor:
    return torch.logspace(-3, 3, 200).double().reshape(2, 100)


def test_every_weighting_has_a_formula_here() -> None:
    assert LAMBDA.keys() == WEIGHTINGS.keys()


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_weightings(name: str, parametrization: str) -> None:
    c_out = PARAMETRIZATIONS[parametrization](sigmas(), SD).c_out
    rate = 0.3 + sigmas() / 7
    triples = zip(*(part.flatten().tolist() for part in (sigmas(), c_out, rate)), strict=True)
    expected = torch.tensor([LAMBDA[name](*triple) for triple in triples], dtype=torch.float64).reshape(2, 100)
    actual = WEIGHTINGS[name](sigmas(), sigma_data=SD, c_out=c_out, snr_rate=rate, step=rate, **KEYS.get(name, {}))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PREDICTED)
def test_a_uniform_weighting_weighs_the_error_of_its_prediction_equally_at_every_sigma(name: str) -> None:
    """lambda(sigma) (D error)^2 is the squared error of the prediction."""
    sigma, error = sigmas(), torch.full((2, 100), 0.01, dtype=torch.float64)
    z, d = torch.randn(2, 2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = PREDICTED[name](d + error, z, sigma) - PREDICTED[name](d, z, sigma)
    torch.testing.assert_close(moved**2, WEIGHTINGS[name](sigma) * error**2, rtol=1e-6, atol=0)


def test_published_defaults() -> None:
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    assert WEIGHTINGS["min_snr"](sigma, gamma=None).tolist() == pytest.approx([5, 1, 0.01])
    assert WEIGHTINGS["p2"](sigma, k=None, gamma=None).tolist() == pytest.approx((1 / (1 + sigma**2)).tolist())
    assert WEIGHTINGS["sigmoid"](sigma, bias=0.0).tolist() == pytest.approx((1 / (1 + sigma**2)).tolist())
    assert WEIGHTINGS["sigmoid"](sigma).tolist() == pytest.approx((1 / (math.exp(-2) + sigma**2)).tolist())


def bound(noise: str, **keys: float) -> Tensor:
    """The weight of the bound at 9999 quantiles, times the error of Gaussian data's exact denoiser: its mean is the
    bound, in nats, whatever the noise distribution."""
    found = distribution(noise, keys)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    sigma = found.sigma(u)
    inside = (sigma > 0.05) & (sigma < 20)
    weight = WEIGHTINGS["vlb"](sigma, snr_rate=found.snr_rate(u))
    return (inside * weight * (sigma * SD) ** 2 / (sigma**2 + SD**2)).mean()


def test_the_bound_is_the_same_under_every_noise_distribution() -> None:
    """Between two noise levels it is ln((sigma^2 + sd^2) / sigma^2) / 2 at the lower less that at the higher one."""
    at = [math.log(1 + (SD / sigma) ** 2) / 2 for sigma in (0.05, 20)]
    continuous = {"lognormal": {"P_mean": -1.2, "P_std": 1.2}, "flow_uniform": {"shift": 1.3}, "cosmap": {"shift": 1.0}}
    for noise, keys in continuous.items():
        assert float(bound(noise, **keys)) == pytest.approx(at[0] - at[1], rel=2e-3)
    for noise in ("vp_uniform", "ve_loguniform"):
        assert float(bound(noise)) == pytest.approx(at[0] - at[1], rel=2e-3)
    for noise in ("ddpm_uniform", "iddpm_uniform"):  # T = 1000 steps are not infinitely many, and bound it less tightly
        assert at[0] - at[1] < float(bound(noise)) < 1.06 * (at[0] - at[1])


@pytest.mark.parametrize(("noise", "agrees"), [("ve_loguniform", True), ("vp_uniform", False), ("ddpm_uniform", False)])
def test_sigmoid_is_that_of_the_paper_if_ln_sigma_is_uniform(noise: str, agrees: bool) -> None:
    """The paper's weight of a drawn level, on D, is sigmoid(bias - ln SNR) times that of the bound."""
    found = distribution(noise, {})
    u = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    sigma = found.sigma(u)
    paper = torch.sigmoid(BIAS + 2 * sigma.log()) * WEIGHTINGS["vlb"](sigma, snr_rate=found.snr_rate(u))
    ratio = WEIGHTINGS["sigmoid"](sigma, bias=BIAS) / paper
    assert (float(ratio.max() / ratio.min()) < 1 + 1e-9) == agrees


def test_uncertainty_starts_at_zero_and_fits_a_smooth_function() -> None:
    head, sigma = Uncertainty(), torch.logspace(-3, 2, 500).double()
    ln_sigma = sigma.log().float()
    assert not head(ln_sigma).any() and head(ln_sigma).shape == (500,)
    target = (sigma.log() / 2).sin().float() + 0.3
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (head(ln_sigma) - target).square().mean()
        value.backward()
        return value

    optimizer.step(closure)
    assert float((head(ln_sigma) - target).abs().max().detach()) < 0.05


@pytest.mark.parametrize("parametrization", [name for name in PARAMETRIZATIONS if name != "consistency"])
def test_unit_is_the_published_weighting(parametrization: str) -> None:
    c_out = PARAMETRIZATIONS[parametrization](sigmas(), SD).c_out
    expected = [TABLE[parametrization](sigma) for sigma in sigmas().flatten().tolist()]
    assert WEIGHTINGS["unit"](sigmas(), c_out=c_out).flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_min_snr_clamps_below_its_sigma() -> None:
    edge = 1 / math.sqrt(5)
    sigma = torch.tensor([1e-6, edge / 2, edge * 0.999, edge * 2, 10.0], dtype=torch.float64)
    weights = WEIGHTINGS["min_snr"](sigma)
    assert weights[:3].tolist() == [5, 5, 5]
    assert weights[3:].tolist() == pytest.approx([1.25, 0.01])
