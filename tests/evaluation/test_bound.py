"""The variational bound against DDPM's own formulas, closed forms for Gaussian data, and entropies."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pipeline.common.errors import NotFinite
from pipeline.data.dataset import to_range
from pipeline.data.decoder import decoder_log_likelihood
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Gaussian, Mixture, empirical
from pipeline.diffusion.schedule import DDPM_BETAS, ddpm_sigmas, iddpm_sigmas
from pipeline.evaluation import bound
from pipeline.evaluation.bound import Bound, prior_bits, snr_steps, variational_bound

F64 = torch.float64
GAUSSIAN = Gaussian(0.1, 0.4)
TABLES = {"ddpm": ddpm_sigmas(), "iddpm": iddpm_sigmas().flip(0)[1:]}
tables = pytest.mark.parametrize("table", TABLES)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """uint8, from N(0.1, 0.4^2)."""
    x0 = 0.1 + 0.4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def levels(count: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.logspace(low, high, count, dtype=F64)


def betas_of(sigmas: Tensor) -> Tensor:
    """1 - abar_t / abar_{t-1}, with abar_0 = 1."""
    alpha_bar = 1 / (1 + sigmas**2)
    return 1 - alpha_bar / torch.cat([torch.ones(1, dtype=F64), alpha_bar[:-1]])


def kl_in_x_space(betas: Tensor, t: int, x0: Tensor, denoised: Tensor, n: Tensor) -> float:
    """KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) in nats, by Ho et al., eq. 6 and 7, summed over dimensions."""
    alpha_bar = (1 - betas).cumprod(0)
    beta, here, before = float(betas[t - 1]), float(alpha_bar[t - 1]), float(alpha_bar[t - 2])
    of_x0, of_x_t = math.sqrt(before) * beta / (1 - here), math.sqrt(1 - beta) * (1 - before) / (1 - here)
    std = math.sqrt((1 - before) / (1 - here) * beta)
    x_t = math.sqrt(here) * x0 + math.sqrt(1 - here) * n
    q, p = (Normal(of_x0 * x + of_x_t * x_t, std) for x in (x0, denoised))
    return float(kl_divergence(q, p).sum())


def expected_terms(gaussian: Gaussian, images: Tensor, sigmas: Tensor) -> Tensor:
    """L_{t-1} in bits per dimension, t = 2..T: D - x0 is normal for every image."""
    offset = float((to_range(images).double() - gaussian.mean).square().mean())
    total = sigmas[1:] ** 2 + gaussian.std**2
    errors = (sigmas[1:] ** 2 / total) ** 2 * offset + (gaussian.std**2 / total) ** 2 * sigmas[1:] ** 2
    return (sigmas[:-1] ** -2 - sigmas[1:] ** -2) / 2 * errors / math.log(2)


def expected_decoder(gaussian: Gaussian, images: Tensor, sigma: float) -> float:
    """L_0 in bits per dimension, as a sum over the noise, with probabilities from the error function."""
    x0 = to_range(images).double().flatten()[:, None].numpy()
    n = np.linspace(-7, 7, 281)
    weights = np.exp(-(n**2) / 2) / np.exp(-(n**2) / 2).sum()
    mean = gaussian.mean + gaussian.std**2 * (x0 + sigma * n - gaussian.mean) / (sigma**2 + gaussian.std**2)
    scale = math.sqrt(2) * sigma / math.sqrt(1 + sigma**2)
    tail = np.vectorize(math.erfc)
    over = np.where(x0 > -0.999, tail((x0 - 1 / 255 - mean) / scale), 2.0)
    beyond = np.where(x0 < 0.999, tail((x0 + 1 / 255 - mean) / scale), 0.0)
    return float((-np.log2((over - beyond) / 2) * weights).sum(1).mean())


def flat(value: float) -> DenoiserFunction:
    return lambda z, sigma: torch.full_like(z, value)


@tables
@pytest.mark.parametrize("t", [2, 3, 40, 500, 999, 1000])
def test_a_term_is_the_kl_of_ddpm_s_own_gaussians(table: str, t: int) -> None:
    sigmas = TABLES[table]
    betas = torch.linspace(*DDPM_BETAS, 1000, dtype=F64) if table == "ddpm" else betas_of(sigmas)
    x0, denoised, n = torch.randn(3, 5, 7, dtype=F64, generator=torch.Generator().manual_seed(t))
    found = float(snr_steps(sigmas)[t - 2] / 2 * (x0 - denoised).square().sum())
    assert found == pytest.approx(kl_in_x_space(betas, t, x0, denoised, n), rel=1e-8)


@pytest.mark.parametrize("shape", [(4, 1, 4, 4), (3, 3, 2, 5)])
def test_a_denoiser_that_sees_nothing_is_measured_without_error(shape: tuple[int, ...]) -> None:
    """Two levels have one term, which has no noise; neither has L_0."""
    images, sigmas = pictures(*shape), torch.tensor([0.2, 0.7], dtype=F64)
    found = variational_bound(flat(0.3), images[:1].expand(shape), sigmas, seed=0, draws=64)
    x0 = to_range(images[:1]).double()
    nats = kl_in_x_space(betas_of(sigmas), 2, x0, torch.full_like(x0, 0.3), torch.randn(x0.shape, dtype=F64))
    assert found.L_t == pytest.approx((nats / x0.numel() / math.log(2), 0.0), rel=1e-12, abs=1e-12)
    assert found.shares == [(2, 2, pytest.approx(found.L_t.value, rel=1e-12))]
    log_p = decoder_log_likelihood(images[:1], torch.full_like(x0, 0.3), 0.2 / math.sqrt(1.04))
    assert pytest.approx((-float(log_p.mean()) / math.log(2), 0.0), rel=1e-12, abs=1e-12) == found.L_0


def answering(v: float) -> DenoiserFunction:
    """The exact denoiser of Gaussian data, with a place v of all variances."""
    return lambda z, sigma: torch.cat([GAUSSIAN(z, sigma), torch.full_like(z, v)], dim=1)


@tables
def test_learned_variances_include_the_fixed_ones(table: str) -> None:
    """v = 0 has L_t of beta-tilde, v = 1 has L_0 of beta_1. Between them L_t is a closed form of the squared errors."""
    images, sigmas, v = pictures(6, 1, 3, 3), TABLES[table], 0.3
    fixed, low, high, between = (
        variational_bound(denoiser, images, sigmas, seed=1, draws=3200)
        for denoiser in (GAUSSIAN, answering(0.0), answering(1.0), answering(v))
    )
    assert low.L_t == pytest.approx(fixed.L_t, rel=1e-9) and high.L_0.value == pytest.approx(fixed.L_0.value, rel=1e-9)
    assert fixed.L_T == low.L_T == high.L_T
    w = v * (torch.log1p(sigmas[:-1] ** -2) - torch.log1p(sigmas[1:] ** -2))
    nats = (w + torch.expm1(-w)) / 2 + torch.exp(-w) * expected_terms(GAUSSIAN, images, sigmas) * math.log(2)
    assert within(between.L_t, float(nats.sum()) / math.log(2))
    assert between.L_0.value != pytest.approx(fixed.L_0.value, rel=1e-6)


def test_a_learned_variance_s_term_is_the_kl_of_ddpm_s_own_gaussians() -> None:
    """With two levels there is one term, without noise: the denoiser sees nothing."""
    images, sigmas, v = pictures(1, 1, 4, 4), torch.tensor([0.2, 0.7], dtype=F64), 0.4
    answer = lambda z, sigma: torch.cat([torch.full_like(z, 0.3), torch.full_like(z, v)], dim=1)  # noqa: E731
    found = variational_bound(answer, images, sigmas, seed=0, draws=64)
    x0, (_, beta) = to_range(images).double(), betas_of(sigmas).tolist()
    here, before = (float(1 / (1 + sigma**2)) for sigma in (0.7, 0.2))
    tilde, of_x0 = (1 - before) / (1 - here) * beta, math.sqrt(before) * beta / (1 - here)
    std = math.exp((v * math.log(beta) + (1 - v) * math.log(tilde)) / 2)
    nats = kl_divergence(Normal(of_x0 * x0, math.sqrt(tilde)), Normal(torch.full_like(x0, of_x0 * 0.3), std)).mean()
    assert found.L_t == pytest.approx((float(nats) / math.log(2), 0.0), rel=1e-12, abs=1e-12)


@tables
def test_steps_of_snr_are_exact(table: str) -> None:
    """To within a few roundings, also for levels that are neighbours in float64."""
    close = torch.tensor([0.3, math.nextafter(0.3, 1), 0.3000001, 7.0, 7.0000000001], dtype=F64)
    for sigmas in (TABLES[table], close):
        exact = [float(1 / Fraction(a) ** 2 - 1 / Fraction(b) ** 2) for a, b in pairwise(sigmas.tolist())]
        assert snr_steps(sigmas).tolist() == pytest.approx(exact, rel=2e-15, abs=0)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 157.0, 2e4])
def test_the_prior_s_term_is_a_kl(sigma: float) -> None:
    images = pictures(3, 3, 4, 5)
    x0, s = to_range(images).double(), 1 / math.sqrt(1 + sigma**2)
    kl = kl_divergence(Normal(s * x0, torch.tensor(s * sigma, dtype=F64)), Normal(0.0, torch.ones((), dtype=F64)))
    assert prior_bits(images, sigma) == pytest.approx(float(kl.mean()) / math.log(2), rel=1e-7)
    found = variational_bound(GAUSSIAN, images, torch.tensor([0.01, sigma], dtype=F64), seed=0, draws=1)
    assert (prior_bits(images, sigma), 0.0) == found.L_T


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 20.0])
@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.2, 0.0, 0.998, 1.0, 4.0])
def test_the_decoder_s_probabilities_sum_to_1(mean: float, std: float) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    log_p = decoder_log_likelihood(every, torch.full((256,), mean, dtype=F64), std)
    assert log_p.isfinite().all()
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-12)


def log_mass(low: float, high: float) -> float:
    """ln of the standard normal's mass of an interval, by quadrature of the density relative to its largest value."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    top = min(max(low, 0.0), high)
    ends = np.array([low, *[top + side * step for side in (-1, 1) for step in np.logspace(-4, 1.6, 90)], top, high])
    ends = np.unique(ends[(ends >= max(low, -40 - abs(top))) & (ends <= min(high, 40 + abs(top)))])
    middle, half = (ends[1:] + ends[:-1])[:, None] / 2, np.diff(ends)[:, None] / 2
    u = middle + half * nodes
    return float(np.log((np.exp((top**2 - u**2) / 2) * half * weights).sum())) - top**2 / 2 - math.log(2 * math.pi) / 2


@pytest.mark.parametrize("std", [0.003, 0.01, 0.1, 1.0, 30.0])
def test_the_decoder_is_the_mass_of_each_level(std: float) -> None:
    """Down to probabilities that float64 cannot represent."""
    for mean in (-1.0, -0.31, 0.0, 0.9):
        level = torch.tensor([0, 1, 86, 88, 127, 128, 200, 254, 255], dtype=torch.uint8)
        x = level.double() / 127.5 - 1
        low = torch.where(level == 0, -math.inf, (x - 1 / 255 - mean) / std).tolist()
        high = torch.where(level == 255, math.inf, (x + 1 / 255 - mean) / std).tolist()
        found = decoder_log_likelihood(level, torch.full((9,), mean, dtype=F64), std).tolist()
        expected = [log_mass(max(a, -1e9), min(b, 1e9)) for a, b in zip(low, high, strict=True)]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)  # levels are known to 1e-7 of float32
    mirrored = decoder_log_likelihood(255 - level, torch.full((9,), -mean, dtype=F64), std).tolist()
    assert found == pytest.approx(mirrored, rel=1e-5, abs=1e-5)


def within(found: tuple[float, float], expected: float, errors: float = 4) -> bool:
    return abs(found[0] - expected) < errors * found[1]


@tables
def test_the_terms_of_gaussian_data(table: str) -> None:
    """On the published tables, whose first and last levels are 0.01 and 157, 0.006 and 20 291."""
    images, sigmas = pictures(20, 1, 5, 5), TABLES[table]
    found = variational_bound(GAUSSIAN, images, sigmas, seed=1, draws=3200)
    terms = expected_terms(GAUSSIAN, images, sigmas)
    assert within(found.L_t, float(terms.sum())) and found.L_t.se < 0.02 * found.L_t.value
    assert found.L_T.value < 3e-5
    assert found.total.value == pytest.approx(found.L_0.value + found.L_t.value + found.L_T.value, rel=1e-12)
    assert found.total.se == pytest.approx(math.hypot(found.L_0.se, found.L_t.se), rel=1e-12)
    assert [(a, b) for a, b, _ in found.shares] == [(2, 201), (202, 401), (402, 601), (602, 801), (802, 1000)]
    assert sum(bits for *_, bits in found.shares) == pytest.approx(found.L_t.value, rel=1e-12)
    for a, b, bits in found.shares:
        assert bits == pytest.approx(float(terms[a - 2 : b - 1].sum()), rel=0.15)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_the_decoder_s_term_of_gaussian_data(sigma: float) -> None:
    images = pictures(200, 1, 3, 3)
    assert {0, 255} <= set(images.flatten().tolist())
    found = variational_bound(GAUSSIAN, images, torch.tensor([sigma], dtype=F64), seed=0, draws=1)
    assert within(found.L_0, expected_decoder(GAUSSIAN, images, sigma)) and found.L_0.se < 0.03
    assert found.L_t == (0.0, 0.0) and found.shares == []


@pytest.mark.parametrize(
    ("shape", "draws", "batch"),
    [((4, 1, 4, 4), 320, 256), ((4, 1, 4, 4), 32, 4), ((7, 1, 1, 2), 64, 256), ((3, 2, 2, 4), 5, 4)],
)
def test_estimates_are_unbiased_and_their_standard_errors_right(
    shape: tuple[int, ...], draws: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many seeds, with more and fewer draws per round than images, and batches as large as an image is wide."""
    monkeypatch.setattr(bound, "BATCH", batch)
    images, sigmas, seeds = pictures(*shape), levels(8), 250
    found = [variational_bound(GAUSSIAN, images, sigmas, seed, draws) for seed in range(seeds)]
    expected = {
        "L_0": expected_decoder(GAUSSIAN, images, 0.1),
        "L_t": float(expected_terms(GAUSSIAN, images, sigmas).sum()),
    }
    for name, mean in expected.items():
        values, errors = np.array([getattr(one, name) for one in found]).T
        scale = math.sqrt((errors**2).mean())
        assert abs(values.mean() - mean) < 3 * scale / math.sqrt(seeds)
        assert 0.85 < values.std(ddof=1) / scale < 1.15
        covered = (abs(values - mean) < 2 * errors).mean()
        assert 0.9 < covered < 0.99 or (name == "L_0" and covered > 0.8)  # few images show few spreads
    shares = np.array([[bits for *_, bits in one.shares] for one in found])
    terms = expected_terms(GAUSSIAN, images, sigmas)
    expected_shares = np.array([float(terms[a - 2 : b - 1].sum()) for a, b, _ in found[0].shares])
    assert (abs(shares.mean(0) - expected_shares) < 4 * shares.std(0) / math.sqrt(seeds)).all()


def test_more_steps_tighten_the_bound() -> None:
    """All have the same first and last levels (Kingma et al., section 5.2)."""
    images = pictures(16, 1, 4, 4)
    found = [variational_bound(GAUSSIAN, images, levels(count, -2, 2), 0, 3200) for count in (3, 9, 33, 129, 513)]
    assert len({(one.L_0, one.L_T) for one in found}) == 1
    for low, high in pairwise(reversed(found)):
        assert high.total.value - low.total.value > 3 * math.hypot(low.L_t.se, high.L_t.se)


def entropy(weights: list[float]) -> float:
    return -sum(w * math.log2(w) for w in weights)


def measured(mixture: Mixture, images: Tensor, steps: int) -> Bound:
    return variational_bound(mixture, images, levels(steps, -3, 1.5), seed=0, draws=64_000)


@pytest.mark.parametrize("values", [(0, 255), (120, 140), (127, 128)])
@pytest.mark.parametrize("share", [1, 3, 5])
def test_the_bound_of_two_levels_is_their_entropy_and_something(values: tuple[int, int], share: int) -> None:
    """Of ten pixels, `share` have the first level. With the exact denoiser and many steps the bound is nearly tight."""
    images = torch.tensor([values[0]] * share + [values[1]] * (10 - share), dtype=torch.uint8).reshape(10, 1, 1, 1)
    means = to_range(torch.tensor(values, dtype=torch.uint8)).double().reshape(2, 1, 1, 1)
    mixture = Mixture(means, torch.tensor([share / 10, 1 - share / 10], dtype=F64), 0.0)
    least = entropy([share / 10, 1 - share / 10])
    few, many = measured(mixture, images, 20), measured(mixture, images, 2000)
    assert few.total.value - 3 * few.total.se > 1.3 * least
    assert least - 3 * many.total.se < many.total.value < least + 0.02 + 3 * many.total.se
    assert many.total.se < 0.03


def test_the_bound_of_a_finite_data_set_is_its_entropy_and_something() -> None:
    """Four equally likely images: 2 bits, divided by the number of dimensions."""
    images = pictures(4, 1, 2, 3)
    many = measured(empirical(to_range(images)), images, 2000)
    assert many.total.se < 0.02
    assert 2 / 6 - 3 * many.total.se < many.total.value < 2 / 6 + 0.02 + 3 * many.total.se


def test_a_worse_denoiser_has_a_larger_bound() -> None:
    """Both use the same pairs and noise, so the difference has a smaller error than either."""
    images, seen = pictures(12, 1, 4, 4), []

    def keeping(std: float) -> DenoiserFunction:
        def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
            seen.append((z, sigma))
            return Gaussian(0.1, std)(z, sigma)

        return denoiser

    good, bad = (variational_bound(keeping(std), images, levels(30), 3, 100) for std in (0.4, 0.6))
    assert good.L_t.value < bad.L_t.value
    for (z, sigma), (other, level) in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        assert torch.equal(z, other) and torch.equal(sigma, level)
        assert z.dtype == sigma.dtype == F64 and sigma.shape == z.shape[:1]
    assert sum(len(z) for z, _ in seen) == 2 * (2 * 12 + 128)
    again, other_seed = (variational_bound(keeping(0.4), images, levels(30), seed, 100) for seed in (3, 4))
    assert again == good != other_seed


def test_a_network_in_float32_is_measured_and_not_differentiated() -> None:
    """Answers in float32 change the bound only by float32's rounding."""
    images, factor = pictures(3, 1, 4, 4), torch.ones((), requires_grad=True)
    answers = []

    def network(z: Tensor, sigma: Tensor) -> Tensor:
        answers.append(factor * GAUSSIAN(z.float(), sigma.float()))
        return answers[-1]

    found, exact = (variational_bound(d, images, levels(10, -2), seed=0, draws=32) for d in (network, GAUSSIAN))
    assert not any(answer.requires_grad for answer in answers)
    assert [*found.total, *found.L_0, *found.L_t] == pytest.approx([*exact.total, *exact.L_0, *exact.L_t], rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize(("first", "named"), [(0.0, "sigma 0.1:"), (5.0, "sigma 10:")])
def test_an_answer_that_is_not_finite_is_told(value: float, first: float, named: str) -> None:
    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.where(sigma.reshape(-1, 1, 1, 1) > first, value, z)

    with pytest.raises(NotFinite, match=named) as raised:
        variational_bound(denoiser, pictures(3, 1, 2, 2), torch.tensor([0.1, 1.0, 10.0], dtype=F64), 0, 64)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sigmas", [[0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, math.nan], [[1.0, 2.0]]])
def test_a_table_ascends_from_above_0(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        variational_bound(GAUSSIAN, pictures(3, 1, 2, 2), torch.tensor(sigmas, dtype=F64), 0, 64)
