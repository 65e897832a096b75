"""Posterior sampling by loops over noise levels, for methods that no denoiser of E[x0 | z, y] can express.

Such a method measures, adds noise and repeats steps between levels. It takes from a sampler's row the grid of noise
levels, guidance and threshold; it has steps of its own and ignores the row's solver. Inner runs go from a level down
to 0 on EDM's levels with the row's rho and sigma_min; from a level at or below sigma_min they take one step.

In formulas, D = D(z; sigma), e = y - A D, n is standard normal noise, drawn anew each time, and A = U diag(a) V^T. Each
function of LOOPS takes a `Walk` and z_0 = sigma_0 n, and yields its state after each level. Its further arguments are
keys.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.common.devices import state_type
from pipeline.common.errors import NotFinite
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.sampling.counting import Counted
from pipeline.sampling.loop import Samples, draw_like
from pipeline.sampling.measurement import Linear, Measurement
from pipeline.sampling.ode import Ode, RandnLike, SingleStep
from pipeline.sampling.posterior import check_keys, check_measurement, check_shape, defaults, linear_only, mask_only
from pipeline.sampling.posterior import misfit as misfit_of
from pipeline.sampling.row import Sampler
from pipeline.sampling.stochastic import DDIM, DDPM

ODE_STEP, ANCESTRAL_STEP, PRIOR_STEP = DDIM(eta=0.0), DDIM(eta=1.0), DDPM(variance="beta")


@dataclass(frozen=True)
class Levels:
    """The noise levels of a row, sigma_0 > ... > sigma_N = 0, and those of inner runs."""

    sigmas: list[float]
    rho: float
    sigma_min: float

    @classmethod
    def of(cls, sampler: Sampler, steps: int) -> "Levels":
        """Those of a row, whose solver, churn and end have no effect."""
        row = sampler.model_copy(update={"solver": "ddim", "S_churn": 0.0, "end": "zero"})
        return cls(row.grid(steps).tolist(), sampler.rho, sampler.sigma_range[0])

    def inner(self, sigma: float, steps: int) -> list[float]:
        """The levels of an inner run from sigma to 0."""
        if sigma <= self.sigma_min * (1 + 1e-9):  # the lowest level, up to rounding
            return [sigma, 0.0]
        return DISCRETIZATIONS["edm"](steps, self.sigma_min, sigma, rho=self.rho).tolist()


@dataclass(frozen=True)
class Walk:
    """What a loop works with: the denoiser in `ode`, a measurement with y, noise levels and random numbers."""

    ode: Ode
    measurement: Linear
    levels: Levels
    randn_like: RandnLike

    @property
    def steps(self) -> Iterator[tuple[float, float]]:
        """(sigma_i, sigma_(i+1)) of each level."""
        return pairwise(self.levels.sigmas)

    def run(self, step: SingleStep, z: Tensor, sigma: float, steps: int) -> Tensor:
        """z after an inner run from sigma to 0."""
        *_, end = step.run(self.ode, z, self.levels.inner(sigma, steps), self.randn_like)
        return end

    def noised(self, z: Tensor, std: float) -> Tensor:
        """z + std n."""
        return torch.add(z, self.randn_like(z), alpha=std) if std else z

    def misfit(self, x: Tensor) -> Tensor:
        """y - A x, (N, m)."""
        return misfit_of(self.measurement, x)

    def near(self, centre: Tensor, spread: float, n: Tensor) -> Tensor:
        """A draw of the x with density N(x; centre, spread^2 I) N(y; A x, std^2 I), from n of centre's shape.

        Formula: centre + V diag(spread^2 a / b^2) U^T (y - A centre) + spread (n - V diag(1 - std / b) V^T n),
            b^2 = spread^2 a^2 + std^2
        """
        svd, std = self.measurement.svd, self.measurement.std
        square = (spread * svd.values) ** 2 + std**2
        mean = centre + self.measurement.filtered(self.misfit(centre), spread**2 * svd.values / square)
        return mean + spread * (n - svd.v(svd.v_t(n) * (1 - std / square.sqrt()).to(n)))


def repaint(walk: Walk, z: Tensor, *, resamplings: int = 10) -> Iterator[Tensor]:
    """Ancestral steps, after which y with fresh noise replaces the measured values. For masks.

    Each step is repeated, `resamplings` times in total, with noise back up to sigma in between. The step to 0 is not
    repeated, as in the authors' code: it adds no noise, so that all repetitions agree. The paper goes back 10 steps at
    a time, this goes back one. y is taken as exact, whatever std is.

    Formula: z_next = A^T (y + sigma_next A n) + (I - A^T A) z', z' from DDIM's step at eta = 1;
        z = z_next + sqrt(sigma^2 - sigma_next^2) n
    Source: Lugmayr et al. 2022, arXiv 2201.09865, Algorithm 1
    """
    for sigma, sigma_next in walk.steps:
        for i in reversed(range(resamplings if sigma_next else 1)):
            moved = ANCESTRAL_STEP.step(walk.ode, z, sigma, sigma_next, walk.randn_like)
            towards = walk.misfit(moved)
            if sigma_next:
                towards = torch.add(towards, walk.measurement.apply(walk.randn_like(moved)), alpha=sigma_next)
            z = moved + walk.measurement.adjoint(towards)
            if i:
                z = walk.noised(z, (sigma**2 - sigma_next**2) ** 0.5)
        yield z


def diffpir(walk: Walk, z: Tensor, *, fidelity: float = 1.0, renoise: float = 0.1) -> Iterator[Tensor]:
    """D is replaced by the x that minimizes |y - A x|^2 + rho |x - D|^2, then a step of DDIM with partly fresh noise.

    fidelity: the paper's lambda. renoise: the paper's zeta, the share of fresh noise in variance. The authors' code has
    lambda 1, and a zeta of 0.1 to 1 that depends on the task; the default is the one for blur. At std 0, x agrees with
    y exactly.

    Formula: z_next = x + sigma_next (sqrt(1 - zeta) (z - x) / sigma + sqrt(zeta) n),
        x = D + V diag(a / (a^2 + rho)) U^T e, rho = lambda std^2 / sigma^2
    Source: Zhu et al. 2023, arXiv 2305.08995, Algorithm 1
    """
    values, std = walk.measurement.svd.values, walk.measurement.std
    for sigma, sigma_next in walk.steps:
        denoised = walk.ode.denoise(z, sigma)
        weights = values / (values**2 + fidelity * (std / sigma) ** 2)
        x = denoised + walk.measurement.filtered(walk.misfit(denoised), weights)
        z = walk.noised(torch.lerp(x, z, sigma_next / sigma * (1 - renoise) ** 0.5), sigma_next * renoise**0.5)
        yield z


def daps(walk: Walk, z: Tensor, *, prior_steps: int = 5, spread: float = 1.0) -> Iterator[Tensor]:
    """The end of the ODE from z, a draw of x0 near it given y, then the noise of the next level.

    prior_steps: Euler's steps of the ODE, from each level to 0; 5 are those of the authors' code. spread: r / sigma,
    where r is the standard deviation that x0 is assumed to have around the end of the ODE; the paper takes r = sigma as
    a heuristic. The paper draws x0 by Langevin steps; here the draw is exact, which needs a linear A.

    With many levels and many prior steps this samples p(x0)^(1 / (1 + spread^2)) p(y | x0)^(2 spread^2 / (1 +
    spread^2)), because the end of the ODE takes the place of E[x0 | z]. One prior step ends at E[x0 | z], and then the
    limit is the exact posterior at spread 1, for Gaussian data.

    Formula: z_next = x0 + sigma_next n, x0 ~ N(x0; ode(z), r^2 I) N(y; A x0, std^2 I), r = spread sigma
    Source: Zhang et al. 2024, arXiv 2407.01521, Algorithm 1
    """
    for sigma, sigma_next in walk.steps:
        end = walk.run(ODE_STEP, z, sigma, prior_steps)
        z = walk.noised(walk.near(end, spread * sigma, walk.randn_like(end)), sigma_next)
        yield z


def pnpdm(walk: Walk, z: Tensor, *, prior_steps: int = 5) -> Iterator[Tensor]:
    """Gibbs sampling of x0 and a copy u that are coupled by N(u; x0, sigma^2 I): u given y, then x0 given u.

    The coupling tightens along the row's levels; the paper lets it fall geometrically to a floor. prior_steps: steps of
    DDPM with variance beta that draw x0 from each level; the default is ours. The paper solves the SDE by Euler's steps
    on its own grid. The variance is beta because that of small steps is then right if sigma is below the spread of the
    data; with beta_tilde the samples would lack variance, however many levels there are. The paper starts from any x0.
    Here x0 = 0 and z_0 is the noise of the first u, so that u without a measurement is z_0.

    Formula: u ~ N(u; x0, sigma^2 I) N(y; A u, std^2 I); x0 ~ p(x0) N(u; x0, sigma^2 I)
    Source: Wu et al. 2024, arXiv 2405.18782, Algorithm 1
    """
    x0, n = torch.zeros_like(z), z / walk.levels.sigmas[0]
    for i, (sigma, _) in enumerate(walk.steps):
        u = walk.near(x0, sigma, walk.randn_like(x0) if i else n)
        x0 = walk.run(PRIOR_STEP, u, sigma, prior_steps)
        yield x0


def ddrm(walk: Walk, z: Tensor, *, eta_free: float = 0.85, eta_b: float = 1.0) -> Iterator[Tensor]:
    """DDIM's step in the directions of V, each of which trusts y as far as its noise, b = std / a, is below that of z.

    eta_free: the paper's eta, the share of fresh noise elsewhere. eta_b: the share of y in directions with
    b <= sigma_next. The defaults are the paper's. With c = V^T z and c_D = V^T D, y_V = U^T y / a is the estimate of
    each direction.

    Formula: c_next = (1 - eta_b) c_D + eta_b y_V + sqrt(sigma_next^2 - eta_b^2 b^2) n if b <= sigma_next,
        else c_D + sigma_next (sqrt(1 - eta^2) (y_V - c_D) / b + eta n); where A measures nothing, (c - c_D) / sigma
        takes the place of (y_V - c_D) / b. z_0 starts from y_V + sqrt(sigma_0^2 - b^2) n if b < sigma_0
    Source: Kawar et al. 2022, arXiv 2201.11793, eqs. 4 to 8
    """
    svd, measurement = walk.measurement.svd, walk.measurement
    assert measurement.y is not None
    values = svd.values.to(z)
    b, seen, keep = measurement.std / values, svd.u_t(measurement.y.to(z)) / values, (1 - eta_free**2) ** 0.5
    sigma_0 = walk.levels.sigmas[0]
    c = svd.v_t(z)
    started = seen + (1 - (b / sigma_0) ** 2).clamp(min=0).sqrt() * c
    z = z + svd.v(torch.where(b < sigma_0, started, c) - c)
    for sigma, sigma_next in walk.steps:
        denoised = walk.ode.denoise(z, sigma)
        n = walk.randn_like(z) if sigma_next else torch.zeros_like(z)
        free = torch.lerp(denoised, z, keep * sigma_next / sigma) + sigma_next * eta_free * n
        c, fresh = svd.v_t(denoised), svd.v_t(n)
        near = (1 - eta_b) * c + eta_b * seen + (sigma_next**2 - (eta_b * b) ** 2).clamp(min=0).sqrt() * fresh
        far = c + sigma_next * (keep * (seen - c) / b + eta_free * fresh)
        z = free + svd.v(torch.where(b <= sigma_next, near, far) - svd.v_t(free))
        yield z


def _once(levels: Levels, **keys: Any) -> Sequence[float]:
    return levels.sigmas[:-1]


def _repeated(levels: Levels, resamplings: int) -> Sequence[float]:
    *above, last, _ = levels.sigmas
    return [*(sigma for sigma in above for _ in range(resamplings)), last]


def _inner(levels: Levels, prior_steps: int, **keys: Any) -> Sequence[float]:
    return [level for sigma in levels.sigmas[:-1] for level in levels.inner(sigma, prior_steps)[:-1]]


def _noisy_linear_only(measurement: Measurement) -> str | None:
    if reason := linear_only(measurement):
        return reason
    return None if measurement.std > 0 else "needs a std above 0, because it draws x0 given y; use diffpir or ddnm"


@dataclass(frozen=True)
class Loop:
    """A method with a loop of its own.

    walk: yields the state after each level, from a `Walk`, z_0 and keys; the last one is x0. called: the noise levels
    at which it calls the denoiser, from `Levels` and all keys. refusal: what a measurement lacks for it. most: the
    largest values of keys that have one.
    """

    walk: Callable[..., Iterator[Tensor]]
    called: Callable[..., Sequence[float]]
    refusal: Callable[[Measurement], str | None]
    most: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.walk.__name__

    @property
    def keys(self) -> Mapping[str, Any]:
        """The keys and their defaults."""
        return defaults(self.walk)

    def evaluations(self, sampler: Sampler, steps: int, **keys: Any) -> int:
        """The network calls of one sample with `steps` levels of a row, guidance included."""
        guidance = sampler.build_guidance()
        called = self.called(Levels.of(sampler, steps), **{**self.keys, **keys})
        return sum(guidance.evaluations if guidance.guides(torch.tensor(sigma)) else 1 for sigma in called)

    @torch.no_grad()
    def draw(
        self,
        denoiser: DenoiserFunction,
        measurement: Measurement,
        noise: Tensor,
        sampler: Sampler,
        steps: int,
        randn_like: RandnLike = draw_like,
        **keys: Any,
    ) -> Samples:
        """Draw x0 given y, with `steps` levels of the sampler's grid: arguments and result as those of `sample`.

        measurement: with y bound by `observed`, (1, m) or (N, m). randn_like draws all noise but the first.

        Raises StudyError for a wrong key and for a measurement that the method cannot use, and NotFinite if an answer
        of the denoiser or a sample is not finite.
        """
        check_keys(self.name, self.keys, keys, self.most)
        check_measurement(self.name, self.refusal, measurement)
        check_shape(measurement, noise)
        assert isinstance(measurement, Linear)
        counted = Counted(denoiser)
        ode = Ode(counted, sampler.build_schedule(), sampler.build_scaling(), sampler.build_threshold())
        walk = Walk(ode, measurement, Levels.of(sampler, steps), randn_like)
        z = noise.to(state_type(noise.device)) * walk.levels.sigmas[0]
        for z_next in self.walk(walk, z, **keys):
            z = z_next
        first = counted.not_finite(z)
        if first == counted.nfe:
            raise NotFinite(f"{self.name}, {steps} levels: the samples are not finite")
        if first is not None:
            sigma = float(counted.sigmas[first])
            raise NotFinite(f"{self.name}, sigma {sigma:.4g}: the denoiser's answer is not finite")
        return Samples(z, counted.nfe)


LOOPS: dict[str, Loop] = {
    "repaint": Loop(repaint, _repeated, mask_only),
    "diffpir": Loop(diffpir, _once, linear_only, {"renoise": 1.0}),
    "ddrm": Loop(ddrm, _once, linear_only, {"eta_free": 1.0, "eta_b": 1.0}),
    "daps": Loop(daps, _inner, _noisy_linear_only),
    "pnpdm": Loop(pnpdm, _inner, _noisy_linear_only),
}
