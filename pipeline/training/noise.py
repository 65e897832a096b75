"""Training noise distributions over sigma, each as its quantile function: uniform u in (0, 1) to sigma.

(Karras et al. 2022, arXiv 2206.00364, Table 1, row "noise distribution"; those of SD3: Esser et al. 2024, arXiv
2403.03206, sec. 3.1.) u is float64 of any shape; a distribution's other arguments are keys of a model row. A discrete
one is a table of noise levels, each as likely.
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

from pipeline.diffusion.schedule import EPS_T, VP_PUBLISHED, ddpm_sigmas, iddpm_sigmas

VE_RANGE = (0.02, 100.0)
BISECTIONS = 60


def lognormal(u: Tensor, P_mean: float, P_std: float) -> Tensor:
    """ln sigma ~ N(P_mean, P_std^2) (EDM)."""
    return (P_mean + P_std * ndtri(u)).exp()


def vp_uniform(u: Tensor) -> Tensor:
    """t ~ U(EPS_T, 1) on the VP schedule (DDPM in continuous time)."""
    return VP_PUBLISHED.sigma(EPS_T + u * (1 - EPS_T))


def ve_loguniform(u: Tensor) -> Tensor:
    """ln sigma uniform over VE_RANGE (Song et al. 2021, arXiv 2011.13456)."""
    low, high = VE_RANGE
    return low * (high / low) ** u


def flow_uniform(u: Tensor, shift: float) -> Tensor:
    """t ~ U(0, 1) on the flow path, which is ln sigma ~ Logistic(0, 1) (Liu et al. 2022, arXiv 2209.03003).

    A timestep shift multiplies sigma (SD3, eq. 23).
    """
    return shift * u / (1 - u)


def logit_normal(u: Tensor, logit_mean: float, logit_std: float, shift: float) -> Tensor:
    """logit t ~ N(logit_mean, logit_std^2) on the flow path (SD3, eq. 19): ln sigma is normal."""
    return shift * (logit_mean + logit_std * ndtri(u)).exp()


def mode(u: Tensor, mode_scale: float, shift: float) -> Tensor:
    """t = 1 - u - s (cos^2(pi u / 2) - 1 + u) on the flow path (SD3, eq. 20); at s = 0 uniform. Here t rises with u."""
    heavy = torch.sin(math.pi / 2 * u) ** 2 - u  # cos^2(pi (1 - u) / 2) - u
    t = u - mode_scale * heavy
    return shift * t / (1 - t)


def cosmap(u: Tensor, shift: float) -> Tensor:
    """t = 1 - 1 / (tan(pi u / 2) + 1) on the flow path (SD3, eq. 21), which is sigma = tan(pi u / 2): the cosine
    schedule's."""
    return shift * torch.tan(math.pi / 2 * u)


NOISES: dict[str, Callable[..., Tensor]] = {
    "lognormal": lognormal,
    "vp_uniform": vp_uniform,
    "ve_loguniform": ve_loguniform,
    "iddpm_uniform": lambda: iddpm_sigmas().flip(0)[1:],
    "ddpm_uniform": ddpm_sigmas,
    "flow_uniform": flow_uniform,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
}


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
        """The share of noise levels up to sigma: any shape to that shape."""
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


@dataclass(frozen=True)
class Levels(Distribution):
    """Equally likely noise levels, ascending, shape (T,)."""

    levels: Tensor

    def slope(self, u: Tensor) -> Tensor:
        """By differences between neighbours."""
        return self._at(torch.gradient(self.levels.log())[0] * len(self.levels), u)

    def snr_rate(self, u: Tensor) -> Tensor:
        """T (SNR_(t-1) - SNR_t); below the lowest level, where x0 is not to be told apart from z, SNR_1."""
        snr = self.levels**-2
        return self._at(torch.cat([snr[:1], -snr.diff()]) * len(snr), u)

    def _at(self, values: Tensor, u: Tensor) -> Tensor:
        return values.to(u.device)[(u * len(values)).long().clamp(max=len(values) - 1)]


@cache
def keys_of(name: str) -> tuple[str, ...]:
    """The keys of a row that a noise distribution goes by."""
    return tuple(key for key in signature(NOISES[name]).parameters if key != "u")


def distribution(name: str, choices: Mapping[str, Any]) -> Distribution:
    """The noise distribution `name`, with those of the choices that it goes by."""
    return _filled(name, tuple(choices[key] for key in keys_of(name)))


@lru_cache(maxsize=64)
def _filled(name: str, values: tuple[float, ...]) -> Distribution:
    function, keys = NOISES[name], dict(zip(keys_of(name), values, strict=True))
    if "u" in signature(function).parameters:
        return Distribution(lambda u: function(u, **keys))
    levels = function()
    return Levels(lambda u: levels.to(u.device)[(u * len(levels)).long().clamp(max=len(levels) - 1)], levels)
