"""Solvers that add noise on the way, and EDM's churn, which adds it before the steps of any deterministic one."""

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
    """EDM's stochastic sampler around a single-step solver (Karras et al. 2022, arXiv 2206.00364, Algorithm 2).

    While S_min <= sigma <= S_max, noise raises sigma to (1 + gamma) sigma, gamma = min(S_churn / N, sqrt(2) - 1),
    before a step from there. S_max None: no upper limit.
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

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        gamma = min(self.S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
        for sigma, sigma_next in pairwise(sigmas):
            if self.S_min <= sigma <= (math.inf if self.S_max is None else self.S_max):
                raised = (1 + gamma) * sigma
                z = _noised(z, self.S_noise * math.sqrt(raised**2 - sigma**2), randn_like)
                sigma = raised
            z = self.solver.step(ode, z, sigma, sigma_next, randn_like)
            yield z


@dataclass(frozen=True)
class DDIM(SingleStep):
    """DDIM (Song et al. 2021, arXiv 2010.02502, eqs. 12 and 16), whatever the schedule; eta = 1 is ancestral DDPM.

    In z: z_next = D + sqrt(sigma_next^2 - up^2) (z - D) / sigma + up n, up = eta sigma_next sqrt(1 - r^2), where
    r = sigma_next / sigma; the variance at eta = 1 is DDPM's beta-tilde.
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
    """DDPM's ancestral sampling (Ho et al. 2020, arXiv 2006.11239, section 3.2), on any grid as if it were trained on.

    The mean is that of q(x_prev | x, D). `variance`: of the noise, beta_tilde (that of the same posterior) or beta, the
    two ends that the paper names. With abar = 1 / (1 + sigma^2) and in z, beta-tilde is r^2 (sigma^2 - sigma_next^2),
    r = sigma_next / sigma, and beta is (sigma^2 - sigma_next^2) (1 + sigma_next^2) / (1 + sigma^2). The last step, into
    0, adds none.
    """

    variance: str
    order = 1
    variable = "sigma"
    stochastic = True

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        z = torch.lerp(ode.denoise(z, sigma), z, (sigma_next / sigma) ** 2)
        if sigma_next == 0:
            return z
        share = {"beta_tilde": (sigma_next / sigma) ** 2, "beta": (1 + sigma_next**2) / (1 + sigma**2)}[self.variance]
        return _noised(z, math.sqrt((sigma**2 - sigma_next**2) * share), randn_like)


@dataclass(frozen=True)
class EulerMaruyama(SingleStep):
    """Euler-Maruyama on the reverse SDE of any strength, with Langevin steps between (Song et al. 2021, arXiv
    2011.13456, Algorithm 1; EDM, eq. 6 with beta(t) = diffusion sigma' / sigma).

    In x = s z, backwards in t:
    dx = (s'/s x - (1 + diffusion) s sigma' sigma score) dt + s sqrt(2 diffusion sigma' sigma) dw.
    diffusion = 0 is the probability-flow ODE, 1 the reverse of the noising SDE; all have the same marginals. The last
    step, into 0, is Euler's on the ODE. After every other step come `corrector_steps` of Langevin's,
    z + e score + sqrt(2 e) n with e = 2 (corrector_snr sigma)^2. (Song et al. have in sigma's place a ratio of norms,
    |n| / |score|, which is near it, but its mean over the batch, so that a sample would depend on the others.)
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
    """SDE-DPM-Solver++ (2M) (Lu et al. 2022, arXiv 2211.01095, section 5 and appendix): 2M on the reverse SDE.

    In z: z_next = r^2 z + (1 - r^2) (D + h D' / 2) + sigma_next sqrt(1 - r^2) n, r = sigma_next / sigma.
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
    "euler_maruyama": EulerMaruyama,
    "dpmpp_2m_sde": DPMSolverPPSDE2M,
}
