"""Training noise distributions over sigma, each as its quantile function: uniform u in (0, 1) to sigma.

u is float64 of any shape. Further arguments are keys of a model row. A function without u returns the levels of a
discrete distribution, each of which is equally likely.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.special import ndtri

from pipeline.diffusion.grids import EDM_RANGE, EDM_RHO
from pipeline.diffusion.schedule import EPS_T, VP_PUBLISHED, ddpm_sigmas, iddpm_sigmas

VE_RANGE = (0.02, 100.0)
BISECTIONS = 60


def lognormal(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """ln sigma is normal.

    Formula: exp(P_mean + P_std q(u))
    Source: Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return (P_mean + P_std * ndtri(u)).exp()


def vp_uniform(u: Tensor) -> Tensor:
    """VP's time t is uniform.

    Formula: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t = eps_t + u (1 - eps_t)
    Source: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return VP_PUBLISHED.sigma(EPS_T + u * (1 - EPS_T))


def ve_loguniform(u: Tensor) -> Tensor:
    """ln sigma is uniform.

    Formula: 0.02 (100 / 0.02)^u
    Source: Song et al. 2021, arXiv 2011.13456
    """
    low, high = VE_RANGE
    return low * (high / low) ** u


def rho_uniform(u: Tensor) -> Tensor:
    """sigma^(1 / 7) is uniform, so that every interval of EDM's grid is equally likely.

    Formula: (a + u (b - a))^7, a = 0.002^(1 / 7), b = 80^(1 / 7)
    Source: Song et al. 2023, arXiv 2303.01469, Algorithm 2
    """
    low, high = (sigma ** (1 / EDM_RHO) for sigma in EDM_RANGE)
    return (low + u * (high - low)) ** EDM_RHO


def flow_uniform(u: Tensor, shift: float) -> Tensor:
    """The flow's time t is uniform, so ln sigma is logistic.

    Formula: shift u / (1 - u)
    Source: Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206, eq. 23
    """
    return shift * u / (1 - u)


def logit_normal(u: Tensor, logit_mean: float, logit_std: float, shift: float) -> Tensor:
    """logit t is normal, t being the flow's time, so ln sigma is normal.

    Formula: shift exp(logit_mean + logit_std q(u))
    Source: Esser et al. 2024, arXiv 2403.03206, eq. 19
    """
    return shift * (logit_mean + logit_std * ndtri(u)).exp()


def mode(u: Tensor, mode_scale: float, shift: float) -> Tensor:
    """The middle of the flow's time t is more likely, or its ends if mode_scale is below 0.

    The paper's t falls as its u rises. Here t rises with u, which is 1 - u of the paper.

    Formula: shift t / (1 - t), t = u - mode_scale (sin(pi u / 2)^2 - u)
    Source: Esser et al. 2024, arXiv 2403.03206, eq. 20
    """
    heavy = torch.sin(math.pi / 2 * u) ** 2 - u  # cos^2(pi (1 - u) / 2) - u
    t = u - mode_scale * heavy
    return shift * t / (1 - t)


def cosmap(u: Tensor, shift: float) -> Tensor:
    """The cosine schedule without iDDPM's offset.

    In the flow's time, t = 1 - 1 / (tan(pi u / 2) + 1).

    Formula: shift tan(pi u / 2)
    Source: Esser et al. 2024, arXiv 2403.03206, eq. 21
    """
    return shift * torch.tan(math.pi / 2 * u)


NOISES: dict[str, Callable[..., Tensor]] = {
    "lognormal": lognormal,
    "vp_uniform": vp_uniform,
    "ve_loguniform": ve_loguniform,
    "rho_uniform": rho_uniform,
    "iddpm_uniform": lambda: iddpm_sigmas().flip(0)[1:],
    "ddpm_uniform": ddpm_sigmas,
    "flow_uniform": flow_uniform,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
}
"""iddpm_uniform: Each of the 1000 levels of the cosine betas is equally likely.
Source: Nichol and Dhariwal 2021, arXiv 2102.09672; Karras et al. 2022, arXiv 2206.00364, Table 1

ddpm_uniform: Each of the 1000 levels of the linear betas is equally likely.
Source: Ho et al. 2020, arXiv 2006.11239
"""


@dataclass(frozen=True)
class Distribution:
    """A noise distribution with its keys filled in. `sigma`, `density` and `snr_rate` take u in (0, 1), any shape."""

    sigma: Callable[[Tensor], Tensor]

    def slope(self, u: Tensor) -> Tensor:
        """d ln sigma / du."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.sigma(u).log().sum(), u)
        return slope

    def density(self, u: Tensor) -> Tensor:
        """The density over ln sigma, at sigma(u)."""
        return 1 / self.slope(u)

    def snr_rate(self, u: Tensor) -> Tensor:
        """-d SNR / du with SNR = 1 / sigma^2."""
        return 2 * self.slope(u) / self.sigma(u) ** 2

    def u(self, sigma: Tensor) -> Tensor:
        """The probability of noise levels up to sigma, in sigma's shape."""
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


@dataclass(frozen=True)
class Levels(Distribution):
    """A discrete distribution: equally likely noise levels, ascending, shape (T,)."""

    levels: Tensor

    def slope(self, u: Tensor) -> Tensor:
        """d ln sigma / du, by differences between neighbours."""
        return self._at(torch.gradient(self.levels.log())[0] * len(self.levels), u)

    def snr_rate(self, u: Tensor) -> Tensor:
        """T (SNR_(t-1) - SNR_t), and T SNR_1 at the lowest level, below which x0 and z are hardly distinct."""
        snr = self.levels**-2
        return self._at(torch.cat([snr[:1], -snr.diff()]) * len(snr), u)

    def _at(self, values: Tensor, u: Tensor) -> Tensor:
        return values.to(u.device)[(u * len(values)).long().clamp(max=len(values) - 1)]


@cache
def keys_of(name: str) -> tuple[str, ...]:
    """The keys of a model row that a noise distribution uses."""
    return tuple(key for key in signature(NOISES[name]).parameters if key != "u")


def distribution(name: str, choices: Mapping[str, Any]) -> Distribution:
    """The noise distribution `name` with the values of its keys; choices may hold other keys, too."""
    return _filled(name, tuple(choices[key] for key in keys_of(name)))


@lru_cache(maxsize=64)
def _filled(name: str, values: tuple[float, ...]) -> Distribution:
    function, keys = NOISES[name], dict(zip(keys_of(name), values, strict=True))
    if "u" in signature(function).parameters:
        return Distribution(lambda u: function(u, **keys))
    levels = function()
    return Levels(lambda u: levels.to(u.device)[(u * len(levels)).long().clamp(max=len(levels) - 1)], levels)
