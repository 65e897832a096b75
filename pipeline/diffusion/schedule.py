"""Noise schedules sigma(t) and scalings s.

A sampler moves x = s z along t, where z = x0 + sigma(t) n. Time and sigma are float64 tensors of any shape. In
formulas, beta_d, beta_min, eps_s, eps_t and C_2 are VP_BETA_D, VP_BETA_MIN, EPS_S, EPS_T and IDDPM_C2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

EPS_S = 1e-3  # the smallest time that VP's sampler visits
EPS_T = 1e-5  # the smallest time that VP is trained at
VP_STEPS = 1000  # M, the number of training steps whose index the VP and iDDPM networks are told
IDDPM_C1, IDDPM_C2 = 1e-3, 8e-3  # no beta is above 1 - C1; the cosine's offset
DDPM_BETAS = (1e-4, 0.02)  # beta_1 and beta_T


@dataclass(frozen=True)
class Schedule:
    """sigma(t), its derivative and its inverse, from and to tensors of one shape. sigma is 0 at t = 0."""

    sigma: Callable[[Tensor], Tensor]
    sigma_dot: Callable[[Tensor], Tensor]
    t: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scaling:
    """s and d ln s / d sigma as functions of sigma, so that any scaling goes with any schedule."""

    s: Callable[[Tensor], Tensor]
    log_slope: Callable[[Tensor], Tensor]


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """(beta_d, beta_min) of the VP schedule with sigma(EPS_S) = sigma_min and sigma(1) = sigma_max.

    Source: Karras et al. 2022, arXiv 2206.00364, app. C
    """
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / EPS_S - high) / (EPS_S - 1)
    return beta_d, high - beta_d / 2


def vp_from_betas(beta_d: float, beta_min: float) -> Schedule:
    """VP with given constants; `vp` has its formula and source."""

    def sigma(t: Tensor) -> Tensor:
        return torch.expm1(beta_d * t**2 / 2 + beta_min * t).sqrt()

    def sigma_dot(t: Tensor) -> Tensor:
        return (beta_d * t + beta_min) * (sigma(t) + 1 / sigma(t)) / 2

    def t(sigma: Tensor) -> Tensor:
        time = ((beta_min**2 + 2 * beta_d * torch.log1p(sigma**2)).sqrt() - beta_min) / beta_d
        return torch.where(
            sigma == 0, 0.0, time
        )  # a solved beta_min may be negative: two roots, and 0 is the one meant

    return Schedule(sigma, sigma_dot, t)


VP_BETA_D, VP_BETA_MIN = 19.9, 0.1
VP_PUBLISHED = vp_from_betas(VP_BETA_D, VP_BETA_MIN)


def linear(sigma_min: float, sigma_max: float) -> Schedule:
    """EDM's and DDIM's schedule: time is sigma.

    Formula: t
    Source: Karras et al. 2022, arXiv 2206.00364; Song et al. 2021, arXiv 2010.02502
    """
    return Schedule(lambda t: t, torch.ones_like, lambda sigma: sigma)


def vp(sigma_min: float, sigma_max: float) -> Schedule:
    """Variance-preserving, with beta_d and beta_min solved for the row's noise range.

    Formula: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)
    Source: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364, app. C
    """
    return vp_from_betas(*vp_betas(sigma_min, sigma_max))


def ve(sigma_min: float, sigma_max: float) -> Schedule:
    """Variance-exploding.

    Formula: sqrt(t)
    Source: Song et al. 2021, arXiv 2011.13456
    """
    return Schedule(torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square)


def flow(sigma_min: float, sigma_max: float) -> Schedule:
    """The straight path (1 - t) x0 + t n.

    Formula: t / (1 - t)
    Source: Liu et al. 2022, arXiv 2209.03003
    """
    return Schedule(lambda t: t / (1 - t), lambda t: (1 - t) ** -2, lambda sigma: sigma / (1 + sigma))


def cosine(sigma_min: float, sigma_max: float) -> Schedule:
    """iDDPM's cosine in continuous time.

    The code avoids the difference of nearly equal numbers that the formula has near t = 0.

    Formula: sqrt((cos(a C_2) / cos(a (t + C_2)))^2 - 1), a = pi / (2 + 2 C_2)
    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17
    """
    speed = math.pi / 2 / (1 + IDDPM_C2)
    phi_0 = speed * IDDPM_C2
    sin_0, cos_0 = math.sin(phi_0), math.cos(phi_0)

    def sigma(t: Tensor) -> Tensor:
        step = speed * t
        return (torch.sin(step) * torch.sin(step + 2 * phi_0)).sqrt() / torch.cos(step + phi_0)

    def sigma_dot(t: Tensor) -> Tensor:
        phi = speed * t + phi_0
        return speed * cos_0**2 * torch.sin(phi) / (torch.cos(phi) ** 3 * sigma(t))

    def t(sigma: Tensor) -> Tensor:
        root = (sigma**2 + sin_0**2).sqrt()  # sin(phi) sqrt(1 + sigma^2)
        return torch.atan2(sigma**2 / (root + sin_0), cos_0 + root * sin_0 / cos_0) / speed

    return Schedule(sigma, sigma_dot, t)


def linear_betas() -> Tensor:
    """DDPM's beta_1 < ... < beta_T, evenly spaced, shape (T,).

    Source: Ho et al. 2020, arXiv 2006.11239, sec. 4
    """
    return torch.linspace(*DDPM_BETAS, VP_STEPS, dtype=torch.float64)


def cosine_betas() -> Tensor:
    """iDDPM's cosine beta_1 .. beta_T, none above 1 - C1, shape (T,).

    beta_t = 1 - abar_t / abar_(t-1), computed as sin(d) sin(2 phi - d) / cos^2(phi - d), where d is a step of the angle
    phi = phi_t.

    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17
    """
    step = math.pi / 2 / (1 + IDDPM_C2) / VP_STEPS
    phi = step * (VP_STEPS * IDDPM_C2 + torch.arange(1, VP_STEPS + 1, dtype=torch.float64))
    return (math.sin(step) * torch.sin(2 * phi - step) / torch.cos(phi - step) ** 2).clamp(max=1 - IDDPM_C1)


def sigmas_of(betas: Tensor) -> Tensor:
    """The noise levels sqrt(1 / abar_t - 1) of betas, ascending, both (T,), with abar_t = prod (1 - beta)."""
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()


@cache
def ddpm_sigmas() -> Tensor:
    """DDPM's noise levels sigma_1 < ... < sigma_T of the linear betas, shape (T,)."""
    return sigmas_of(linear_betas())


@cache
def iddpm_sigmas() -> Tensor:
    """iDDPM's noise levels u_0 > ... > u_M = 0 of the cosine betas, shape (M + 1,).

    Source: Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return torch.cat([sigmas_of(cosine_betas()).flip(0), torch.zeros(1, dtype=torch.float64)])


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "linear": linear,
    "vp": vp,
    "ve": ve,
    "flow": flow,
    "cosine": cosine,
}

SCALINGS = {
    "none": Scaling(torch.ones_like, torch.zeros_like),
    "vp": Scaling(lambda sigma: (1 + sigma**2).rsqrt(), lambda sigma: -sigma / (1 + sigma**2)),
    "flow": Scaling(lambda sigma: 1 / (1 + sigma), lambda sigma: -1 / (1 + sigma)),
}
"""none: No scaling.
Formula: 1
Source: Karras et al. 2022, arXiv 2206.00364

vp: Unit variance of x for data of unit variance.
Formula: 1 / sqrt(1 + sigma^2)
Source: Song et al. 2021, arXiv 2011.13456

flow: The straight path's state (1 - t) x0 + t n.
Formula: 1 / (1 + sigma)
Source: Liu et al. 2022, arXiv 2209.03003
"""

SCALING_OF_SCHEDULE = {  # what each was published with
    "linear": "none",
    "vp": "vp",
    "ve": "none",
    "flow": "flow",
    "cosine": "vp",
}
