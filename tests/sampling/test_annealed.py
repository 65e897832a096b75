"""Posterior samplers with loops: plain lines from their papers, exact moments on Gaussian data, counts and refusals.

Every method is affine in its noise on Gaussian data. So a batch whose samples each have one unit of noise, in one
coordinate of one draw, gives the exact mean and covariance, without Monte Carlo error.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Gaussian
from pipeline.diffusion.posterior import posterior
from pipeline.sampling import sample
from pipeline.sampling.annealed import LOOPS
from pipeline.sampling.counting import Counted
from pipeline.sampling.guidance import Guidance
from pipeline.sampling.measurement import Linear, Measurement, blur, clip, downsample, identity, mask
from pipeline.sampling.row import Sampler
from tests.sampling.test_posterior import MASK, MEASURED, MIXTURE, Correlated, level, normal, skewed

F64 = torch.float64
THREE = Sampler(discretization="explicit", sigmas=(3.0, 0.5, 0.02), nfe=(5,))
all_loops = pytest.mark.parametrize("method", LOOPS)


def measurement_for(method: str) -> Linear:
    return MASK if method == "repaint" else MEASURED


class Streams:
    """Noise with one generator per sample, so that a sample's noise does not depend on its batch."""

    def __init__(self, seeds: range) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        shape = x.shape[1:]
        return torch.stack([torch.randn(shape, dtype=x.dtype, generator=one) for one in self.generators])


def edm(sigma: float, low: float, steps: int) -> list[float]:
    """EDM's levels from sigma to low, then 0."""
    if sigma <= low:
        return [sigma, 0.0]
    a, b = sigma ** (1 / 7), low ** (1 / 7)
    return [(a + i / (steps - 1) * (b - a)) ** 7 for i in range(steps)] + [0.0]


def repaint(
    d: Callable[[Tensor, float], Tensor], a: Tensor, y: Tensor, std: float, z: Tensor, n: Iterator[Tensor], r: int
) -> Tensor:
    """Algorithm 1 in coordinates z = x / sqrt(alpha_bar): q adds the noise of the difference of variances."""
    kept = a.sum(0)
    for sigma, below in ((3.0, 0.5), (0.5, 0.02), (0.02, 0.0)):
        for u in range(r if below else 1):
            mean = (below**2 * z + (sigma**2 - below**2) * d(z, sigma)) / sigma**2
            beta_tilde = below**2 * (sigma**2 - below**2) / sigma**2
            unknown = mean + math.sqrt(beta_tilde) * next(n) if below else mean
            known = y @ a + below * next(n) if below else y @ a
            z = kept * known + (1 - kept) * unknown
            if below and u < r - 1:
                z = z + math.sqrt(sigma**2 - below**2) * next(n)
    return z


def diffpir(
    d: Callable[[Tensor, float], Tensor],
    a: Tensor,
    y: Tensor,
    std: float,
    z: Tensor,
    n: Iterator[Tensor],
    lam: float,
    zeta: float,
) -> Tensor:
    """Algorithm 1: the proximal step by its normal equations."""
    for sigma, below in ((3.0, 0.5), (0.5, 0.02), (0.02, 0.0)):
        rho = lam * std**2 / sigma**2
        x0 = torch.linalg.solve(a.T @ a + rho * torch.eye(5, dtype=F64), a.T @ y + rho * d(z, sigma))
        eps = (z - x0) / sigma
        z = x0 + below * (math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * next(n)) if below else x0
    return z


def ddrm(
    d: Callable[[Tensor, float], Tensor],
    a: Tensor,
    y: Tensor,
    std: float,
    z: Tensor,
    n: Iterator[Tensor],
    eta_free: float,
    eta_b: float,
) -> Tensor:
    """Equations 4 to 8, one direction of V after the other."""
    u, s, vt = torch.linalg.svd(a, full_matrices=True)
    ybar, x = (u.T @ y) / s, vt @ z
    for i in range(3):
        if std / s[i] < 3.0:
            x[i] = ybar[i] + math.sqrt(9 - std**2 / s[i] ** 2) * (vt @ z)[i] / 3
    for sigma, below in ((3.0, 0.5), (0.5, 0.02), (0.02, 0.0)):
        x0, fresh = vt @ d(vt.T @ x, sigma), vt @ next(n) if below else torch.zeros(5, dtype=F64)
        made = torch.empty(5, dtype=F64)
        for i in range(5):
            if i >= 3:
                made[i] = (
                    x0[i] + math.sqrt(1 - eta_free**2) * below * (x[i] - x0[i]) / sigma + eta_free * below * fresh[i]
                )
            elif below < std / s[i]:
                made[i] = x0[i] + math.sqrt(1 - eta_free**2) * below * (ybar[i] - x0[i]) / (std / s[i])
                made[i] += eta_free * below * fresh[i]
            else:
                variance = below**2 - std**2 / s[i] ** 2 * eta_b**2
                made[i] = (1 - eta_b) * x0[i] + eta_b * ybar[i] + math.sqrt(variance) * fresh[i]
        x = made
    return vt.T @ x


def conditional(centre: Tensor, r: float, a: Tensor, y: Tensor, std: float, n: Tensor) -> Tensor:
    """A draw by information form; the root of the covariance is the symmetric one."""
    precision = torch.eye(5, dtype=F64) / r**2 + a.T @ a / std**2
    values, vectors = torch.linalg.eigh(torch.linalg.inv(precision))
    mean = torch.linalg.solve(precision, centre / r**2 + a.T @ y / std**2)
    return mean + vectors @ (values.sqrt() * (vectors.T @ n))


def daps(
    d: Callable[[Tensor, float], Tensor],
    a: Tensor,
    y: Tensor,
    std: float,
    z: Tensor,
    n: Iterator[Tensor],
    k: int,
    c: float,
) -> Tensor:
    """Algorithm 1: Euler's steps of dz / d sigma = (z - D) / sigma, a draw, and noise."""
    for sigma, below in ((3.0, 0.5), (0.5, 0.02), (0.02, 0.0)):
        levels, x = edm(sigma, 0.02, k), z
        for s, s_next in pairwise(levels):
            x = x + (s_next - s) * (x - d(x, s)) / s
        x0 = conditional(x, c * sigma, a, y, std, next(n))
        z = x0 + below * next(n) if below else x0
    return z


def pnpdm(
    d: Callable[[Tensor, float], Tensor], a: Tensor, y: Tensor, std: float, z: Tensor, n: Iterator[Tensor], k: int
) -> Tensor:
    """Algorithm 1, with DDPM's steps in x = z / sqrt(1 + sigma^2) and variance beta."""
    x0, first = torch.zeros(5, dtype=F64), z / 3
    for i, sigma in enumerate((3.0, 0.5, 0.02)):
        x = conditional(x0, sigma, a, y, std, next(n) if i else first)
        levels = edm(sigma, 0.02, k)
        for s, below in pairwise(levels):
            bar, bar_prev = 1 / (1 + s**2), 1 / (1 + below**2)
            beta = 1 - bar / bar_prev
            of_z, of_x0 = math.sqrt(bar / bar_prev) * (1 - bar_prev) / (1 - bar), math.sqrt(bar_prev) * beta / (1 - bar)
            mean = of_z * math.sqrt(bar) * x + of_x0 * d(x, s)
            x = (mean + math.sqrt(beta) * next(n) if below else mean) / math.sqrt(bar_prev)
        x0 = x
    return x0


PLAIN: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("repaint", repaint, {"resamplings": 1}),
    ("repaint", repaint, {"resamplings": 3}),
    ("diffpir", diffpir, {"fidelity": 1.0, "renoise": 1.0}),
    ("diffpir", diffpir, {"fidelity": 7.0, "renoise": 0.3}),
    ("ddrm", ddrm, {"eta_free": 0.85, "eta_b": 1.0}),
    ("ddrm", ddrm, {"eta_free": 0.4, "eta_b": 0.7}),
    ("daps", daps, {"prior_steps": 2, "spread": 1.0}),
    ("daps", daps, {"prior_steps": 4, "spread": 0.6}),
    ("pnpdm", pnpdm, {"prior_steps": 2}),
    ("pnpdm", pnpdm, {"prior_steps": 4}),
]


@pytest.mark.parametrize(("method", "plain", "keys"), PLAIN, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("denoiser", [MIXTURE, skewed], ids=["mixture", "skewed"])
def test_every_loop_is_a_few_plain_lines_from_its_paper(
    method: str, plain: Callable[..., Tensor], keys: dict[str, Any], denoiser: DenoiserFunction
) -> None:
    seen, noise, drawn = measurement_for(method), normal(4, 5), []
    assert seen.y is not None

    def recorded(x: Tensor) -> Tensor:
        drawn.append(normal(*x.shape, seed=100 + len(drawn)))
        return drawn[-1]

    made = LOOPS[method].draw(denoiser, seen, noise, THREE, 3, recorded, **keys)
    for i in range(4):
        of_sample = iter([each[i] for each in drawn])
        expected = plain(
            lambda z, sigma: denoiser(z[None], level(sigma))[0],
            seen.matrix,
            seen.y[0],
            seen.std,
            3 * noise[i],
            of_sample,
            *keys.values(),
        )
        torch.testing.assert_close(made.x0[i], expected, rtol=1e-10, atol=1e-10)
        assert next(of_sample, None) is None


def test_every_loop_is_here() -> None:
    assert {method for method, _, _ in PLAIN} == set(LOOPS)


def moments(
    method: str, denoiser: DenoiserFunction, measurement: Linear, steps: int, **keys: Any
) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of samples of Gaussian data: x0 is affine in all noise."""
    [d] = measurement.shape
    draws = 1

    def none(x: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros_like(x)

    row, loop = Sampler(), LOOPS[method]
    mean = loop.draw(denoiser, measurement, torch.zeros(1, d, dtype=F64), row, steps, none, **keys).x0
    units = torch.eye(d, dtype=F64)
    done = 0

    def unit(x: Tensor) -> Tensor:
        nonlocal done
        done += 1
        noise = torch.zeros_like(x)
        noise[done * d : (done + 1) * d] = units
        return noise

    first = torch.zeros(draws * d, d, dtype=F64)
    first[:d] = units
    effects = loop.draw(denoiser, measurement, first, row, steps, unit, **keys).x0 - mean
    return mean[0], effects.T @ effects


S, Y = 0.5, 0.8
ROUND = Gaussian(0.0, S)


def measured(std: float) -> Linear:
    return identity((1,), std).observed(torch.tensor([Y], dtype=F64))


@pytest.mark.parametrize(("spread", "of_mean", "of_variance"), [(1.0, 4 / 3, 4 / 3), (2.0, 16 / 9, 10 / 9)])
def test_daps_samples_another_posterior_if_there_are_many_levels(
    spread: float, of_mean: float, of_variance: float
) -> None:
    """Of levels that fall slowly, each moves x0 by sigma^2 (score / 2 + c^2 grad ln p(y | x0)), c = spread, with noise
    (1 + c^2) sigma^2: Langevin steps of p^(1 / (1 + c^2)) p(y | x0)^(2 c^2 / (1 + c^2)).

    At s = std and c = 1, the precision is 1.5 / s^2, where that of the posterior is 2 / s^2.
    """
    mean, covariance = moments("daps", ROUND, measured(S), 400, prior_steps=60, spread=spread)
    of_prior, of_y = 1 / (1 + spread**2), 2 * spread**2 / (1 + spread**2)
    theory = of_y / (of_prior + of_y) / 0.5, 2 / (of_prior + of_y)
    assert theory == pytest.approx((of_mean, of_variance))
    assert float(mean) / (Y / 2) == pytest.approx(of_mean, rel=0.02)
    assert float(covariance) / (S**2 / 2) == pytest.approx(of_variance, rel=0.02)


@pytest.mark.parametrize(("prior_steps", "of_mean", "of_variance"), [(1, 1.02, 1.0), (5, 1.2, 1.2)])
def test_daps_with_few_prior_steps_is_nearer_to_the_posterior(
    prior_steps: int, of_mean: float, of_variance: float
) -> None:
    """One step of Euler's ends at E[x0 | z], so that nothing is biased in the limit of many levels."""
    mean, covariance = moments("daps", ROUND, measured(S), 400, prior_steps=prior_steps)
    assert float(mean) / (Y / 2) == pytest.approx(of_mean, abs=0.01)
    assert float(covariance) / (S**2 / 2) == pytest.approx(of_variance, abs=0.01)


@pytest.mark.parametrize("renoise", [1.0, 0.5])
@pytest.mark.parametrize("fidelity", [1.0, 3.0])
def test_diffpir_lacks_a_known_share_of_the_variance_if_there_are_many_levels(renoise: float, fidelity: float) -> None:
    """The mean is that of the posterior for noise sqrt(lambda) std. The variance is (1 + q) / 2 of that posterior's,
    q = sqrt(1 - zeta): half of it at zeta = 1. All other errors fall as 1 / levels.

    With the precision P of that posterior, a step at a sigma far below s and std moves z to its mean by the share
    (1 - q) sigma^2 P, and adds noise of variance (1 - q^2) sigma^2.
    """
    coarse, fine = (
        moments("diffpir", ROUND, measured(S), levels, renoise=renoise, fidelity=fidelity) for levels in (400, 800)
    )
    mean, covariance = (2 * b - a for a, b in zip(coarse, fine, strict=True))
    variance = S**2 / (1 + 1 / fidelity)
    share = (1 + math.sqrt(1 - renoise)) / 2
    assert float(mean) == pytest.approx(Y / (1 + fidelity), rel=0.01)
    assert float(covariance) == pytest.approx(share * variance, rel=0.01)


def test_ddrm_collapses_to_y_if_there_are_many_levels() -> None:
    """A step below b = std / a pulls to y by the share sqrt(1 - eta^2) sigma / b, which falls as sigma, and the prior's
    pull as sigma^2. So there is no limit but y itself, as far as the levels allow: with the noise eta sigma, a variance
    of eta^2 sigma b / (2 sqrt(1 - eta^2)).
    """
    found = {levels: moments("ddrm", ROUND, measured(S), levels) for levels in (20, 100, 1000)}
    known = {20: (1.03, 0.27), 100: (1.48, 0.13), 1000: (1.87, 0.03)}
    for levels, (mean, covariance) in found.items():
        relative = float(mean) / (Y / 2), float(covariance) / (S**2 / 2)
        assert relative == pytest.approx(known[levels], abs=0.006), levels
    mean, covariance = moments("ddrm", ROUND, measured(S), 20, eta_free=1.0)  # no pull at all below b
    assert float(mean) / (Y / 2) < 0.4


PAIR = Correlated(torch.tensor([0.1, -0.2], dtype=F64), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64))  # corr. 0.8


@pytest.mark.parametrize("resamplings", [1, 2, 10])
def test_repaint_has_a_bias_that_resampling_lowers_and_levels_do_not(resamplings: int) -> None:
    """The known value has fresh noise, so it does not tell about the noise of the unknown one, x.

    With w(v) = (1 + v)^2 - c^2 for the correlation c at v = sigma^2, R resamplings and b the misfit of the known value,
    d mean / dv = R (w' / (2 w) mean - c b / w) and d variance / dv = R w' / w variance - (2 R - 1), up to v = infinity.
    At R = 1, the mean is (1 - sqrt(1 - c^2)) / c^2 and the variance atanh(c) / c of the exact one.
    """
    c, b, r = 0.8, 0.7, resamplings
    seen = mask((2,), 0.0, kept=[0]).observed(torch.tensor([0.1 + b], dtype=F64))

    def w(v: float) -> float:
        return (1 + v) ** 2 - c**2

    of_mean = r * w(0) ** (r / 2) * quad(lambda v: w(v) ** (-r / 2 - 1), 0, math.inf)[0]
    of_variance = (2 * r - 1) * w(0) ** (r - 1) * quad(lambda v: w(v) ** -r, 0, math.inf)[0]
    known = {1: (0.625, 1.373), 2: (0.790, 1.185), 10: (0.961, 1.033)}
    assert (of_mean, of_variance) == pytest.approx(known[r], abs=6e-4)
    if r == 1:
        assert (of_mean, of_variance) == pytest.approx(((1 - math.sqrt(1 - c**2)) / c**2, math.atanh(c) / c))
    errors = []
    for levels in (100, 200):
        mean, covariance = moments("repaint", PAIR, seen, levels, resamplings=r)
        assert mean[0] == pytest.approx(0.1 + b) and covariance[0].abs().max() < 1e-12
        found = float(mean[1] + 0.2) / (c * b), float(covariance[1, 1]) / (1 - c**2)
        errors.append((found[0] - of_mean, found[1] - of_variance))
    for coarse, fine in zip(*errors, strict=True):  # of first order, to the theory's numbers
        assert abs(2 * fine - coarse) < 0.01, errors


def test_pnpdm_approaches_the_exact_posterior_with_the_number_of_levels() -> None:
    """Its error falls as 1 / levels, with any number of prior steps."""
    seen = Linear(torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=F64), 0.4).observed(torch.tensor([0.9, -0.3], dtype=F64))
    exact = PAIR.given(seen)
    for prior_steps in (2, 5):
        errors = []
        for levels in (75, 300):
            mean, covariance = moments("pnpdm", PAIR, seen, levels, prior_steps=prior_steps)
            errors.append([float((mean - exact.mean).abs().max()), float((covariance - exact.covariance).abs().max())])
        (mean_coarse, covariance_coarse), (mean_fine, covariance_fine) = errors
        assert mean_fine < 0.35 * mean_coarse and mean_fine < 0.02 * float(exact.mean.abs().max()), errors
        assert covariance_fine < 0.35 * covariance_coarse, errors
        assert covariance_fine < 0.04 * float(exact.covariance.abs().max()), errors


def test_draws_of_pnpdm_have_the_moments_of_the_exact_posterior_up_to_their_number() -> None:
    count, generator = 4000, torch.Generator().manual_seed(1)

    def randn_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    made = LOOPS["pnpdm"].draw(ROUND, measured(S), normal(count, 1), Sampler(), 150, randn_like).x0
    exact = posterior(ROUND, measured(S).matrix, torch.tensor([Y], dtype=F64), S)
    deviation = math.sqrt(float(exact.covariance))
    assert abs(float(made.mean() - exact.mean)) < 4 * deviation / math.sqrt(count) + 0.04 * Y / 2
    assert float(made.std()) / deviation == pytest.approx(1, abs=4 / math.sqrt(2 * count) + 0.02)


def test_pnpdm_without_information_is_the_unconditional_sampler_at_its_first_level() -> None:
    seen, row = Linear(MEASURED.matrix, 1e30).observed(MEASURED.y), Sampler(solver="ddpm", variance="beta")
    alone = sample(MIXTURE, normal(3, 5), row, 6, torch.ones_like).x0
    ours = LOOPS["pnpdm"].draw(MIXTURE, seen, normal(3, 5), row, 1, torch.ones_like, prior_steps=6).x0
    torch.testing.assert_close(ours, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["repaint", "diffpir", "ddrm"])
def test_without_noise_the_measured_values_are_exact(method: str) -> None:
    seen = mask((5,), 0.0, kept=[0, 3]).observed(normal(2))
    made = LOOPS[method].draw(MIXTURE, seen, normal(3, 5), Sampler(), 6)
    torch.testing.assert_close(made.x0[:, [0, 3]], seen.y.expand(3, 2), rtol=1e-12, atol=1e-12)


ROWS: dict[str, Sampler] = {
    "default": Sampler(),
    "heun with churn": Sampler(solver="heun", S_churn=40.0),
    "adaptive": Sampler(solver="rk45"),
    "explicit": THREE,
    "flow": Sampler(discretization="flow"),
    "ddpm": Sampler(discretization="ddpm"),
    "finest": Sampler(solver="euler", finest_steps=12, nfe=(4,)),
    "guided": Sampler(guidance=2.0),
    "guided in an interval": Sampler(guidance=2.0, guidance_min=0.1, guidance_max=3.0),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@all_loops
def test_evaluations_are_the_calls_that_are_counted(method: str, row: Sampler) -> None:
    other = {"repaint": {"resamplings": 3}, "diffpir": {"renoise": 1.0}, "ddrm": {"eta_free": 0.5}}.get(
        method, {"prior_steps": 1}
    )
    for keys in ({}, other):
        for steps in (3,) if row.sigmas else (1, 2, 4):
            calls = Counted(MIXTURE), Counted(Gaussian(0.1, 0.5))
            denoiser = row.build_guidance()(*calls)
            made = LOOPS[method].draw(denoiser, measurement_for(method), normal(2, 5), row, steps, **keys)
            assert made.nfe == sum(each.nfe for each in calls)
            assert made.nfe == LOOPS[method].evaluations(row, steps, **keys), (steps, keys)


def test_costs_by_hand() -> None:
    row = Sampler()
    assert LOOPS["diffpir"].evaluations(row, 7) == 7
    assert LOOPS["repaint"].evaluations(row, 7) == 61
    assert LOOPS["repaint"].evaluations(row, 7, resamplings=1) == 7
    assert LOOPS["daps"].evaluations(row, 7) == 31  # the lowest level is sigma_min, and takes one call
    assert LOOPS["daps"].evaluations(row, 1) == 5
    assert LOOPS["pnpdm"].evaluations(row, 7, prior_steps=3) == 19
    half = Sampler(guidance=2.0, guidance_min=0.1)
    assert LOOPS["diffpir"].evaluations(half, 7) == 7 + int((half.grid(7) > 0.1).sum())


def test_guided_denoisers_are_guided_in_loops() -> None:
    guided = Guidance(2.0, "unconditional")(MIXTURE, Gaussian(0.1, 0.5))
    by_hand = lambda z, sigma: 2 * MIXTURE(z, sigma) - Gaussian(0.1, 0.5)(z, sigma)  # noqa: E731
    made = [LOOPS["diffpir"].draw(d, MEASURED, normal(2, 5), Sampler(), 4, torch.ones_like) for d in (guided, by_hand)]
    assert [each.nfe for each in made] == [8, 4]
    torch.testing.assert_close(made[0].x0, made[1].x0)


def test_thresholds_act_in_loops() -> None:
    seen = mask((1, 4, 4), 0.1, box=(1, 1, 2, 2)).observed(torch.zeros(12))
    row = Sampler(threshold="static")
    made = LOOPS["diffpir"].draw(Gaussian(3.0, 0.1), seen, normal(2, 1, 4, 4), row, 4).x0[..., 1:3, 1:3]
    assert made.min() > 0.9 and made.max() < 1.1  # the data are at 3


IMAGES: dict[str, Linear] = {
    "mask": mask((1, 4, 4), 0.1, share=0.5),
    "downsample": downsample((1, 4, 4), 0.1),
}


@pytest.mark.parametrize("name", IMAGES)
@all_loops
def test_sample_5_is_the_same_in_every_batch(method: str, name: str) -> None:
    """To the last bit, where the denoiser and A do not mix samples in one matrix product."""
    seen = IMAGES[name]
    if LOOPS[method].refusal(seen):
        return
    ys, noise = normal(8, seen.size), normal(8, 1, 4, 4, seed=1)
    together = LOOPS[method].draw(Gaussian(0.1, 0.5), seen.observed(ys), noise, Sampler(), 5, Streams(range(8)))
    alone = LOOPS[method].draw(Gaussian(0.1, 0.5), seen.observed(ys[5]), noise[5:6], Sampler(), 5, Streams(range(5, 6)))
    assert together.x0[5:6].equal(alone.x0)


@all_loops
def test_one_y_for_all_is_as_many_equal_ys(method: str) -> None:
    seen = measurement_for(method)
    assert seen.y is not None
    both = [
        LOOPS[method].draw(MIXTURE, seen.observed(y), normal(3, 5), Sampler(), 4, torch.ones_like).x0
        for y in (seen.y[0], seen.y.expand(3, -1))
    ]
    torch.testing.assert_close(both[0], both[1], rtol=1e-12, atol=1e-12)


REFUSED: dict[str, tuple[str, Measurement, dict[str, Any], str]] = {
    "key": ("daps", MEASURED, {"zeta": 1.0}, "zeta: method daps has no such key; valid: prior_steps, spread"),
    "value": ("diffpir", MEASURED, {"fidelity": 0.0}, "fidelity: 0.0 is not positive and finite"),
    "no number": ("diffpir", MEASURED, {"fidelity": "1"}, "fidelity: 1 is not positive and finite"),
    "too large": ("diffpir", MEASURED, {"renoise": 1.5}, "renoise: 1.5 is above 1"),
    "not whole": ("pnpdm", MEASURED, {"prior_steps": 2.5}, "prior_steps: 2.5 is no whole number"),
    "no y": ("pnpdm", Linear(normal(3, 5), 0.1), {}, r"given: the measurement has no y; bind it with observed\(y\)"),
    "repaint": ("repaint", MEASURED, {}, "posterior: repaint replaces measured values"),
    **{
        f"{name} of clip": (
            name,
            clip((5,), 0.1).observed(normal(5)),
            {},
            f"posterior: {name} needs a linear measurement",
        )
        for name in ("diffpir", "ddrm", "daps", "pnpdm")
    },
    **{
        f"{name} at std 0": (
            name,
            Linear(normal(3, 5), 0.0).observed(normal(3)),
            {},
            f"posterior: {name} needs a std above 0",
        )
        for name in ("daps", "pnpdm")
    },
    "shape": (
        "diffpir",
        blur((1, 4, 4), 0.1).observed(normal(16)),
        {},
        r"given: the measurement is of \(1, 4, 4\), but x has \(5,\)",
    ),
}


@pytest.mark.parametrize(("method", "measurement", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_choices_are_one_line(method: str, measurement: Measurement, keys: dict[str, Any], message: str) -> None:
    def never(z: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("a network is called")

    with pytest.raises(StudyError, match=message) as caught:
        LOOPS[method].draw(never, measurement, normal(2, 5), Sampler(), 3, **keys)
    assert len(str(caught.value).splitlines()) == 1


@all_loops
def test_answers_and_samples_that_are_not_finite_are_refused(method: str) -> None:
    def broken(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(z, math.nan) if sigma < 1 else MIXTURE(z, sigma)

    with pytest.raises(NotFinite, match=rf"{method}, sigma 0\.(5|38): the denoiser's answer is not finite"):
        LOOPS[method].draw(broken, measurement_for(method), normal(2, 5), THREE, 3)
    seen = measurement_for(method)
    infinite = seen.observed(torch.full((seen.size,), math.inf))
    where = "sigma 80: the denoiser's answer is" if method in ("pnpdm", "ddrm") else "1 levels: the samples are"
    with pytest.raises(NotFinite, match=f"{method}, {where} not finite"):
        LOOPS[method].draw(MIXTURE, infinite, normal(2, 5), Sampler(), 1)
