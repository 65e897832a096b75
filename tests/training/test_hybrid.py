"""The hybrid loss against the divergences of DDPM's own Gaussians, its gradient, its scale, and what it trains."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pipeline.common.randomness import generator
from pipeline.data.dataset import to_range
from pipeline.diffusion.denoiser import Denoiser, per_sample
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.schedule import ddpm_sigmas, iddpm_sigmas
from pipeline.training import loop
from pipeline.training.batches import Examples
from pipeline.training.hybrid import CHAINS, Steps, bound_bits, transition_nats
from pipeline.training.loop import advance
from pipeline.training.loss import Terms, network_error
from pipeline.training.noise import Levels
from pipeline.training.row import Model
from pipeline.training.run import Run
from tests.training.small import IMAGES, SHAPE, SMALL, train

F64 = torch.float64
CPU = torch.device("cpu")
TABLES = {"ddpm": ddpm_sigmas(), "iddpm": iddpm_sigmas().flip(0)[1:]}
CHAIN = {"parametrization": "ddpm", "noise": "ddpm_uniform", "learned_variance": "hybrid"}

tables = pytest.mark.parametrize("table", TABLES)


def row_of(**changes: Any) -> Model:
    return Model(**SMALL | {"images": 20 * 8} | CHAIN | changes)


def betas_of(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """beta_t and beta_tilde_t, t = 1 .. T, the latter with beta_tilde_2 in place of beta_tilde_1 = 0."""
    alpha_bar = 1 / (1 + sigmas**2)
    before = torch.cat([torch.ones(1, dtype=F64), alpha_bar[:-1]])
    beta = 1 - alpha_bar / before
    tilde = (1 - before) / (1 - alpha_bar) * beta
    return beta, torch.cat([tilde[1:2], tilde[1:]])


def batch_of(sigmas: Tensor, t: Tensor) -> tuple[Steps, Tensor, Tensor, Tensor]:
    """The steps from levels t (N,), images on the levels of pixels, differences of F, and places v of the variance."""
    draw = generator("hybrid", len(t))
    x0 = torch.randint(0, 256, (len(t), 1, 2, 3), generator=draw) / 127.5 - 1
    x0[:, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    difference = torch.randn(x0.shape, generator=draw)
    v = 0.5 + 0.5 * torch.randn(x0.shape, generator=draw)
    sigma = sigmas[t - 1]
    return Steps.of(sigmas, sigma, -sigma, CPU), x0, difference, v


def expected_bits(sigmas: Tensor, t: int, x0: Tensor, difference: Tensor, v: Tensor) -> float:
    """The bound's term in DDPM's coordinates: Ho et al., eqs. 6, 7 and 13; Nichol and Dhariwal, eq. 15."""
    beta, tilde = (float(values[t - 1]) for values in betas_of(sigmas))
    x0, v, sigma = x0.double(), v.double(), float(sigmas[t - 1])
    denoised, std = x0 - sigma * difference.double(), torch.exp((v * math.log(beta) + (1 - v) * math.log(tilde)) / 2)
    if t == 1:
        p = Normal(denoised, std)
        over = torch.where(x0 > -0.999, p.cdf(x0 - 1 / 255), 0.0)
        below = torch.where(x0 < 0.999, p.cdf(x0 + 1 / 255), 1.0)
        return float(-(below - over).log2().mean())
    here, before = (float(1 / (1 + sigmas[i] ** 2)) for i in (t - 1, t - 2))
    of_x0, of_x_t = math.sqrt(before) * beta / (1 - here), math.sqrt(1 - beta) * (1 - before) / (1 - here)
    x_t = math.sqrt(here) * (x0 + sigma * torch.ones_like(x0))
    q, p = Normal(of_x0 * x0 + of_x_t * x_t, math.sqrt(tilde)), Normal(of_x0 * denoised + of_x_t * x_t, std)
    return float(kl_divergence(q, p).mean()) / math.log(2)


@tables
@pytest.mark.parametrize("count", [3, 7])  # equal to the images' width, and not
def test_the_terms_are_those_of_ddpm_s_own_gaussians(table: str, count: int) -> None:
    t = torch.tensor([1, 2, 3, 40, 500, 999, 1000])[:count]
    steps, x0, difference, v = batch_of(TABLES[table], t)
    found = bound_bits(steps, x0, difference, v)
    assert found.shape == (count,) and steps.first.tolist() == [True] + (count - 1) * [False]
    for i in range(count):
        expected = expected_bits(TABLES[table], int(t[i]), x0[i], difference[i], v[i])
        assert float(found[i]) == pytest.approx(expected, rel=1e-4), int(t[i])


@tables
def test_the_range_is_that_of_beta_over_beta_tilde(table: str) -> None:
    sigmas = TABLES[table]
    beta, tilde = betas_of(sigmas)
    found = Steps.of(sigmas, sigmas, -sigmas, CPU)
    assert found.length == 1000 and bool((found.log_range > 0).all())
    torch.testing.assert_close(found.log_range.double(), (beta / tilde).log(), rtol=1e-6, atol=1e-9)


def test_the_divergence_is_0_for_the_posterior_and_least_at_its_own_spread() -> None:
    error, snr_step = torch.tensor([0.0, 0.4, 2.0], dtype=F64), torch.tensor([5.0, 1.0, 0.3], dtype=F64)
    log_range = torch.tensor([0.7, 1.1, 0.2], dtype=F64)
    best = (torch.log1p(snr_step * error**2) / log_range).requires_grad_()
    least = transition_nats(error, best, log_range, snr_step)
    assert float(least.detach()[0]) == 0
    (gradient,) = torch.autograd.grad(least.sum(), best)
    assert float(gradient.abs().max()) < 1e-15
    for other in (best - 0.1, best + 0.1):
        assert bool((transition_nats(error, other, log_range, snr_step) > least).all())


def test_the_gradient_of_the_bound_reaches_the_variance_alone_and_is_finite() -> None:
    """Also for a decoder whose mean is far off, at both ends of the range of a pixel."""
    t = torch.tensor([1, 1, 2, 1000])
    steps, x0, difference, v = batch_of(TABLES["ddpm"], t)
    difference[1] *= 1e4
    difference, v = difference.requires_grad_(), v.requires_grad_()
    to_mean, to_variance = torch.autograd.grad(
        bound_bits(steps, x0, difference, v).sum(), (difference, v), allow_unused=True
    )
    assert to_mean is None and bool(to_variance.isfinite().all() and (to_variance[:3] != 0).all())
    for i in range(len(t)):
        step = torch.zeros_like(v).index_fill(0, torch.tensor(i), 1e-2)
        ends = [bound_bits(steps, x0, difference, v + sign * step).detach()[i] for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / 2e-2
        assert float(to_variance[i].sum()) == pytest.approx(slope, rel=2e-2, abs=2e-4)


def gradients(row: Model) -> tuple[Run, Tensor]:
    """A run after one step from weights that are not 0, and the gradient of its last layer's weights."""
    run = Run(row_of().spec(0.5, SHAPE), row, 0)
    with torch.no_grad():
        for index, parameter in enumerate(run.denoiser.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator("test", index)), alpha=0.1)
    advance(run, Examples(IMAGES))
    gradient = run.denoiser.network.head.weight.grad
    assert isinstance(gradient, Tensor)
    return run, gradient


def test_the_mean_is_trained_as_without_the_variance() -> None:
    """The last layer's weights for F have the gradient of the simple loss, those for v have one from the bound only."""
    (_, both), (_, simple) = (gradients(row_of(learned_variance=choice)) for choice in ("hybrid", "none"))
    torch.testing.assert_close(both[:1], simple[:1], rtol=1e-5, atol=1e-8)
    assert not simple[1:].any() and bool(both[1:].any())


@pytest.mark.parametrize("weighting", ["unit", "edm", "uncertainty"])
def test_the_loss_is_the_simple_loss_plus_the_bound_of_all_steps(
    weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.001 T L_t, so one bit per dimension at every step adds 1."""
    monkeypatch.setattr(loop, "bound_bits", lambda steps, x0, difference, v: torch.ones(len(x0)))
    row = row_of(weighting=weighting)
    both, simple = (gradients(row.model_copy(update={"learned_variance": c}))[0] for c in ("hybrid", "none"))
    assert float(both.losses[0]) == pytest.approx(float(simple.losses[0]) + 1, rel=1e-6)


def mean_bits(denoiser: Denoiser, images: Tensor, fixed: float | None = None) -> float:
    """The mean term over the lowest levels of a denoiser's chain for images x0, with v as learned or fixed."""
    levels = TABLES[denoiser.spec.parametrization][:50].repeat_interleave(40)
    x0 = images[torch.arange(len(levels)) % len(images)]
    n = torch.randn(x0.shape, generator=generator("bits"))
    coefficients = denoiser.coefficients(levels, denoiser.sigma_data)
    terms = Terms.of(coefficients, coefficients.c_out**-2, levels)
    terms = Terms(*(values.float() for values in terms))
    with torch.no_grad():
        _, difference, v = network_error(denoiser.network, terms, x0, n)
        assert v is not None
        v = v if fixed is None else torch.full_like(v, fixed)
        steps = Steps.of(TABLES[denoiser.spec.parametrization], levels, coefficients.c_out, CPU)
        return float(bound_bits(steps, x0, difference, v).mean())


@pytest.mark.parametrize("parametrization", CHAINS)
def test_a_brief_training_lowers_the_bound_below_that_of_fixed_variances(parametrization: str) -> None:
    """At the lowest 50 levels, where variances matter; the mean is the same in all three."""
    images = torch.linspace(20, 230, 16).round().to(torch.uint8).reshape(1, *SHAPE).repeat(30, 1, 1, 1)
    x0 = to_range(images)
    row = row_of(parametrization=parametrization, noise=CHAINS[parametrization], images=400 * 8)
    spec = row.spec(float(x0.std()), SHAPE)
    trained = train(row, spec, images, 0).denoiser
    before, after = mean_bits(Run(spec, row, 0).denoiser, x0), mean_bits(trained, x0)
    small, large = (mean_bits(trained, x0, fixed) for fixed in (0.0, 1.0))
    assert after < 0.7 * before and after < 0.97 * small and after < large, (before, after, small, large)


def test_every_chain_is_the_noise_of_its_parametrization() -> None:
    for parametrization, noise in CHAINS.items():
        distribution, path = (
            Model(noise=noise, parametrization=parametrization).distribution,
            PARAMETRIZATIONS[parametrization],
        )
        assert isinstance(distribution, Levels) and torch.equal(distribution.levels, TABLES[parametrization])
        assert (path.smallest, path.largest) == tuple(distribution.levels[[0, -1]].tolist())


def test_the_levels_of_a_batch_are_told_apart() -> None:
    sigmas = TABLES["iddpm"]
    t = torch.tensor([1000, 1, 2, 1, 7])
    steps = Steps.of(sigmas, sigmas[t - 1], -sigmas[t - 1], CPU)
    assert steps.first.tolist() == [False, True, False, True, False]
    part = steps.part(slice(1, 4))
    assert part.first.tolist() == [True, False, True] and part.length == 1000
    torch.testing.assert_close(part.sigma, sigmas[t - 1][1:4].float())
    assert per_sample(part.snr_step, torch.zeros(3, 1, 1, 1)).flatten()[[0, 2]].tolist() == [0, 0]
