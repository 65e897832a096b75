"""The continuous-time bound against exact entropies, the ODE's likelihood, and each of its terms by quadrature."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pipeline.common.errors import NotFinite
from pipeline.data.dataset import to_range
from pipeline.diffusion.exact import Gaussian, Mixture
from pipeline.evaluation.continuous_bound import ContinuousBound, continuous_bound
from pipeline.evaluation.likelihood import Prior, log_likelihood
from pipeline.params import Sampler
from pipeline.training.noise import Distribution, distribution
from tests.evaluation.test_likelihood import F64, density, mixture

LOW, HIGH = 0.02, 40.0
PROPOSALS = {
    "none": None,
    "lognormal": distribution("lognormal", {"P_mean": -1.2, "P_std": 1.2}),
    "flow": distribution("flow_uniform", {"shift": 1.0}),
    "vp": distribution("vp_uniform", {}),
    "far away": distribution("lognormal", {"P_mean": 30.0, "P_std": 0.1}),
    "discrete": distribution("ddpm_uniform", {}),
}


def points(data: Mixture, count: int) -> Tensor:
    return data.sample(count, torch.Generator().manual_seed(7)).float()


def prior(x: Tensor) -> Prior:
    return Prior(float(x.mean()), float(x.double().var(correction=0)))


def bound(denoiser: Gaussian | Mixture, x: Tensor, proposal: Distribution | None, draws: int = 4096) -> ContinuousBound:
    return continuous_bound(denoiser, x, (LOW, HIGH), prior(x), proposal, 0, draws)


@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS)
def test_the_bound_of_an_exact_denoiser_is_the_negative_log_likelihood(proposal: Distribution | None) -> None:
    data = mixture(8)
    x = points(data, 4000)
    found = bound(data, x, proposal)
    z = x.double() + LOW * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(8))
    true = -density(data, z, LOW) / 8 / math.log(2)
    se = math.hypot(found.total.se, float(true.std()) / math.sqrt(len(true)))
    assert abs(found.total.value - float(true.mean())) < 3 * se and se < 0.05
    assert found.L_diffusion.value == pytest.approx(sum(bits for _, _, bits in found.shares), rel=1e-9)


def test_proposals_change_the_error_and_not_the_value() -> None:
    data = mixture(2)
    x = points(data, 500)
    found = [bound(data, x, proposal).total for proposal in PROPOSALS.values()]
    assert all(abs(a.value - found[0].value) < 4 * math.hypot(a.se, found[0].se) for a in found)


@pytest.mark.parametrize("d", [2, 8])
def test_the_ode_is_within_the_bound(d: int) -> None:
    """Of a denoiser that is not exact, too: the bound of a worse one is higher than its ODE's value."""
    data, sampler = mixture(d), Sampler(solver="unipc", sigma_min=LOW, sigma_max=HIGH)
    x = points(data, 300)
    z = x.double() + LOW * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(9))
    worse = Gaussian(0.0, 0.6)
    for denoiser in (data, worse):
        found = bound(denoiser, x, PROPOSALS["lognormal"]).total
        nats = log_likelihood(denoiser, z, sampler, 80, prior=prior(x)).nats
        bits = -nats / d / math.log(2)
        assert float(bits.mean()) <= found.value + 2 * math.hypot(found.se, float(bits.std()) / math.sqrt(300))


def test_terms_of_a_gaussian_denoiser_are_those_of_quadrature() -> None:
    gaussian, images = Gaussian(0.1, 0.4), torch.randint(256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    pictures = images.to(torch.uint8)
    found = continuous_bound(gaussian, pictures, (LOW, HIGH), Prior(), PROPOSALS["lognormal"], 0, 60_000)
    offset = float((to_range(pictures).double() - 0.1).square().mean())
    logs = torch.linspace(math.log(LOW), math.log(HIGH), 20_001, dtype=F64)
    sigma, total = logs.exp(), logs.exp() ** 2 + 0.16
    expected = ((sigma**2 / total) ** 2 * offset + (0.16 / total) ** 2 * sigma**2) / sigma**2
    assert found.L_diffusion.value == pytest.approx(
        float(torch.trapezoid(expected, logs)) / math.log(2), abs=4 * found.L_diffusion.se
    )
    square = float(to_range(pictures).double().square().mean())
    assert pytest.approx(square / HIGH**2 / 2 / math.log(2), rel=1e-9) == found.L_T


def test_the_prior_with_moments_is_the_divergence_of_normal_distributions() -> None:
    x = torch.tensor([[0.3, -0.2], [0.1, 0.9]])
    found = continuous_bound(Gaussian(0.0, 1.0), x, (LOW, 2.0), Prior(0.2, 0.5), None, 0, 64)
    p = MultivariateNormal(torch.full((2,), 0.2, dtype=F64), (4 + 0.5) * torch.eye(2, dtype=F64))
    q = [MultivariateNormal(each, 4 * torch.eye(2, dtype=F64)) for each in x.double()]
    expected = sum(float(torch.distributions.kl_divergence(each, p)) for each in q) / 2 / 2 / math.log(2)
    assert pytest.approx(expected, rel=1e-9) == found.L_T


@pytest.mark.parametrize(("sigma", "expected"), [(1e-4, 0.0), (100.0, 8.0)])
def test_levels_are_read_without_loss_at_little_noise_and_not_at_all_at_much(sigma: float, expected: float) -> None:
    images = torch.randint(256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    found = continuous_bound(Gaussian(0.0, 0.5), images, (sigma, 200.0), Prior(), None, 0, 64)
    assert found.L_0.value == pytest.approx(expected, abs=1e-3)


def test_labels_go_with_their_images() -> None:
    """The denoiser knows each image by its label, so the whole error is 0 only if no label is mixed up."""
    images = (torch.arange(5) * 50).to(torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)

    def told(z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return to_range(images[labels]).to(z)

    found = continuous_bound(told, images, (LOW, HIGH), Prior(), None, 0, 320, torch.arange(5))
    assert found.L_diffusion.value == pytest.approx(0, abs=4 * found.L_diffusion.se)


def test_an_answer_that_is_not_finite_is_named() -> None:
    with pytest.raises(NotFinite, match="the bound at sigma"):
        continuous_bound(lambda z, sigma: z * math.nan, torch.zeros(4, 2), (LOW, HIGH), Prior(), None, 0, 64)
