"""Noise schedules sigma(t) and scalings s: each formula once (Karras et al. 2022, arXiv 2206.00364, Table 1).

A sampler moves x = s * z along t, where z = x0 + sigma(t) * n. Time and sigma are float64 tensors of any shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS_S = 1e-3  # the smallest time that VP's sampler visits
EPS_T = 1e-5  # the smallest time that VP is trained at
VP_STEPS = 1000  # M, the number of training steps whose index the VP and iDDPM networks are told
IDDPM_C1, IDDPM_C2 = 1e-3, 8e-3


@dataclass(frozen=True)
class Schedule:
    """sigma(t), its derivative by t, and its inverse, with t = 0 at sigma = 0. Tensor in, tensor of that shape out."""

    sigma: Callable[[Tensor], Tensor]
    sigma_dot: Callable[[Tensor], Tensor]
    t: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scaling:
    """s as a function of sigma, so that any scaling goes with any schedule, and d ln s / d sigma."""

    s: Callable[[Tensor], Tensor]
    log_slope: Callable[[Tensor], Tensor]


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """(beta_d, beta_min) of the VP schedule with sigma(EPS_S) = sigma_min and sigma(1) = sigma_max (EDM, app. C)."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / EPS_S - high) / (EPS_S - 1)
    return beta_d, high - beta_d / 2


def vp_from_betas(beta_d: float, beta_min: float) -> Schedule:
    """VP: sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) (Song et al. 2021, arXiv 2011.13456; EDM, Table 1)."""

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
    """sigma = t (EDM, DDIM)."""
    return Schedule(lambda t: t, torch.ones_like, lambda sigma: sigma)


def vp(sigma_min: float, sigma_max: float) -> Schedule:
    """VP with its constants solved again for this range of noise, as the vp grid has them."""
    return vp_from_betas(*vp_betas(sigma_min, sigma_max))


def ve(sigma_min: float, sigma_max: float) -> Schedule:
    """sigma = sqrt(t) (Song et al. 2021)."""
    return Schedule(torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square)


def flow(sigma_min: float, sigma_max: float) -> Schedule:
    """sigma = t / (1 - t): the straight path (1 - t) x0 + t n (Liu et al. 2022, arXiv 2209.03003)."""
    return Schedule(lambda t: t / (1 - t), lambda t: (1 - t) ** -2, lambda sigma: sigma / (1 + sigma))


def iddpm_sigmas() -> Tensor:
    """The iDDPM noise levels u_0 > ... > u_M = 0, shape (M + 1,) (Nichol and Dhariwal 2021; EDM, Table 1)."""
    alpha_bar = (
        torch.sin(math.pi / 2 * torch.arange(VP_STEPS + 1, dtype=torch.float64) / VP_STEPS / (IDDPM_C2 + 1)) ** 2
    )
    levels = [0.0]
    for j in range(VP_STEPS, 0, -1):
        ratio = max(float(alpha_bar[j - 1] / alpha_bar[j]), IDDPM_C1)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    return torch.tensor(levels[::-1], dtype=torch.float64)


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {"linear": linear, "vp": vp, "ve": ve, "flow": flow}

SCALINGS = {
    "none": Scaling(torch.ones_like, torch.zeros_like),
    "vp": Scaling(lambda sigma: (1 + sigma**2).rsqrt(), lambda sigma: -sigma / (1 + sigma**2)),
    "flow": Scaling(lambda sigma: 1 / (1 + sigma), lambda sigma: -1 / (1 + sigma)),
}

SCALING_OF_SCHEDULE = {"linear": "none", "vp": "vp", "ve": "none", "flow": "flow"}  # what each was published with
