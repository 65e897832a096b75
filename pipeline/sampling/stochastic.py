"""Stochastic solvers, and EDM's churn, which adds noise before each step of a deterministic solver."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.sampling.multistep import Evaluation, Multistep, log_step
from pipeline.sampling.ode import Ode, RandnLike, SingleStep, Solver


def _noised(z: Tensor, std: float, randn_like: RandnLike) -> Tensor:
    return torch.add(z, randn_like(z), alpha=std) if std else z


@dataclass(frozen=True)
class Churned(SingleStep):
    """EDM's stochastic sampler: noise before each step of a single-step solver, while S_min <= sigma <= S_max.

    The noise, of standard deviation S_noise sqrt(raised^2 - sigma^2), raises sigma to the level of the formula. S_max
    None is no upper limit.

    Formula: sigma (1 + min(S_churn / N, sqrt(2) - 1))
    Source: Karras et al. 2022, arXiv 2206.00364, Algorithm 2
    """

    solver: SingleStep
    S_churn: float
    S_min: float
    S_max: float | None
    S_noise: float
    stochastic = True

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return self.solver.order

    @property
    def variable(self) -> str:  # type: ignore[override]
        return self.solver.variable

    @property
    def stages(self) -> int:
        return self.solver.stages

    def factor(self, steps: int) -> float:
        """The factor by which each of `steps` steps raises sigma."""
        return 1 + min(self.S_churn / steps, math.sqrt(2) - 1)

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        factor = self.factor(len(sigmas) - 1)
        for sigma, sigma_next in pairwise(sigmas):
            if self.S_min <= sigma <= (math.inf if self.S_max is None else self.S_max):
                raised = factor * sigma
                z = _noised(z, self.S_noise * math.sqrt(raised**2 - sigma**2), randn_like)
                sigma = raised
            z = self.solver.step(ode, z, sigma, sigma_next, randn_like)
            yield z


@dataclass(frozen=True)
class DDIM(SingleStep):
    """DDIM, for any schedule; `eta` 1 is DDPM's ancestral sampling.

    r = sigma_next / sigma. At eta = 1 the variance up^2 is DDPM's beta_tilde.

    Formula: D + sqrt(sigma_next^2 - up^2) (z - D) / sigma + up n,
        up = eta sigma_next sqrt(1 - r^2)
    Source: Song et al. 2021, arXiv 2010.02502, eqs. 12 and 16
    """

    eta: float
    order = 1
    variable = "sigma"

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        ratio, share = sigma_next / sigma, self.eta**2 * (1 - (sigma_next / sigma) ** 2)
        z = torch.lerp(ode.denoise(z, sigma), z, ratio * math.sqrt(1 - share))
        return _noised(z, sigma_next * math.sqrt(share), randn_like)


@dataclass(frozen=True)
class DDPM(SingleStep):
    """DDPM's ancestral sampling: the mean of q(x_prev | x, D), with noise of `variance`.

    It takes any grid as if it were trained on it. The last step, to 0, adds no noise. For `variance` learned the
    denoiser also answers v (`Denoiser.with_variance`).

    Formula: r^2 z + (1 - r^2) D + sqrt(variance) n
    Source: Ho et al. 2020, arXiv 2006.11239, sec. 3.2
    """

    variance: str
    order = 1
    variable = "sigma"
    stochastic = True

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        learned = self.variance == "learned"
        denoised, v = ode.denoise_with_variance(z, sigma) if learned else (ode.denoise(z, sigma), None)
        z = torch.lerp(denoised, z, (sigma_next / sigma) ** 2)
        if sigma_next == 0:
            return z
        shares = {"beta_tilde": (sigma_next / sigma) ** 2, "beta": (1 + sigma_next**2) / (1 + sigma**2)}
        stds = {name: math.sqrt((sigma**2 - sigma_next**2) * share) for name, share in shares.items()}
        if v is None:
            return _noised(z, stds[self.variance], randn_like)
        return torch.addcmul(z, randn_like(z), stds["beta_tilde"] * (stds["beta"] / stds["beta_tilde"]) ** v)


@dataclass(frozen=True)
class Consistency(SingleStep):
    """Multistep sampling of a consistency map: denoise, then add the noise of the next level.

    `boundary` is the level e at which the map ends. With a plain denoiser the samples lack variance at any number of
    steps.

    Formula: D + sqrt(sigma_next^2 - e^2) n
    Source: Song et al. 2023, arXiv 2303.01469, Algorithm 1
    """

    boundary: float
    order = None
    variable = "sigma"
    stochastic = True

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        added = math.sqrt(max(sigma_next**2 - self.boundary**2, 0))
        return _noised(ode.denoise(z, sigma), added if sigma_next else 0.0, randn_like)


@dataclass(frozen=True)
class EulerMaruyama(SingleStep):
    """Euler-Maruyama on the reverse SDE, with Langevin steps in between.

    diffusion 0 is the probability-flow ODE, 1 the reverse of the noising SDE; all have the same marginals. The last
    step, to 0, is Euler's on the ODE. After every other step come `corrector_steps` Langevin steps,
    z + e score + sqrt(2 e) n with e = 2 (corrector_snr sigma)^2. Instead of sigma, Song et al. use the ratio
    |n| / |score| of the batch's mean norms, which would make a sample depend on the others in its batch.

    Formula: x + h (s'/s x - (1 + diffusion) s sigma' sigma score)
        + s sqrt(2 diffusion sigma' sigma abs(h)) n
    Source: Song et al. 2021, arXiv 2011.13456, Algorithm 1;
        Karras et al. 2022, arXiv 2206.00364, eq. 6 with beta(t) = diffusion sigma' / sigma
    """

    diffusion: float
    corrector_steps: int
    corrector_snr: float
    order = 1
    variable = "t"

    @property
    def stages(self) -> int:
        return 1 + self.corrector_steps

    @property
    def stochastic(self) -> bool:
        return self.diffusion > 0 or self.corrector_steps > 0

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        t, s = ode.t(sigma), ode.s(sigma)
        h = ode.t(sigma_next) - t
        sigma_dot, log_slope = ode.sigma_dot(t), ode.log_slope(sigma)
        strength = 1 + (self.diffusion if sigma_next > 0 else 0)
        drift = z * (sigma_dot * log_slope) + ode.eps(z, sigma) * (strength * sigma_dot)
        z = s * torch.add(z, drift, alpha=h)
        if sigma_next == 0:
            return z
        z = _noised(z, s * math.sqrt(2 * self.diffusion * sigma_dot * sigma * -h), randn_like) / ode.s(sigma_next)
        for _ in range(self.corrector_steps):
            e = 2 * (self.corrector_snr * sigma_next) ** 2
            z = _noised(torch.add(z, ode.eps(z, sigma_next), alpha=-e / sigma_next), math.sqrt(2 * e), randn_like)
        return z


@dataclass(frozen=True)
class DPMSolverPPSDE2M(Multistep):
    """SDE-DPM-Solver++ (2M): 2M on the reverse SDE.

    Formula: r^2 z + (1 - r^2) (D + (D - D_1) / (2 r_0)) + sigma_next sqrt(1 - r^2) n
    Source: Lu et al. 2022, arXiv 2211.01095, sec. 5
    """

    order = 2
    points = 2
    variable = "ln sigma"
    stochastic = True
    lower_at_end = True

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        sigma, denoised = past[0]
        ratio = sigma_next / sigma
        if len(past) > 1:
            r0 = log_step(past[1].sigma, sigma) / log_step(sigma, sigma_next)
            denoised = torch.add(denoised, denoised - past[1].value, alpha=1 / (2 * r0))
        return _noised(torch.lerp(denoised, z, ratio**2), sigma_next * math.sqrt(1 - ratio**2), noise)


STOCHASTIC: dict[str, Callable[..., Solver]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "consistency": Consistency,
    "euler_maruyama": EulerMaruyama,
    "dpmpp_2m_sde": DPMSolverPPSDE2M,
}
