"""How a network F becomes a denoiser: D(z; sigma) = c_skip z + c_out F(c_in z, c_noise).

Each function takes sigma (float64, any shape) and sigma_data, and returns the four coefficients in sigma's shape
(Karras et al. 2022, arXiv 2206.00364, Table 1; the flow row from Liu et al. 2022, arXiv 2209.03003: F = n - x0).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.schedule import VP_PUBLISHED, VP_STEPS, iddpm_sigmas


class Coefficients(NamedTuple):
    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Unit variance of the network's input and target at every sigma (EDM, eq. 7)."""
    total = sigma**2 + sigma_data**2
    return Coefficients(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=total.rsqrt(),
        c_noise=sigma.log() / 4,
    )


def vp(sigma: Tensor, sigma_data: float) -> Coefficients:
    """DDPM's eps-prediction on the variance-preserving path (Ho et al. 2020, arXiv 2006.11239)."""
    return Coefficients(
        c_skip=torch.ones_like(sigma),
        c_out=-sigma,
        c_in=(sigma**2 + 1).rsqrt(),
        c_noise=(VP_STEPS - 1) * VP_PUBLISHED.t(sigma),
    )


def ve(sigma: Tensor, sigma_data: float) -> Coefficients:
    """NCSN++'s score-prediction on the variance-exploding path (Song et al. 2021, arXiv 2011.13456)."""
    return Coefficients(
        c_skip=torch.ones_like(sigma),
        c_out=sigma,
        c_in=torch.ones_like(sigma),
        c_noise=(sigma / 2).log(),
    )


@cache
def _iddpm_midpoints() -> Tensor:
    """The midpoints between neighbouring iDDPM levels u_M = 0 .. u_0, ascending."""
    levels = iddpm_sigmas().flip(0)
    return (levels[1:] + levels[:-1]) / 2


def iddpm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """iDDPM's eps-prediction: the network is told the nearest noise level, -1 being 0 (Nichol and Dhariwal 2021)."""
    nearest_from_below = torch.searchsorted(
        _iddpm_midpoints().to(sigma.device), sigma.contiguous()
    )  # M - argmin_j |u_j - sigma|
    return Coefficients(
        c_skip=torch.ones_like(sigma),
        c_out=-sigma,
        c_in=(sigma**2 + 1).rsqrt(),
        c_noise=(nearest_from_below - 1).to(sigma.dtype),
    )


def flow(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Rectified flow's velocity n - x0 at time t = sigma / (1 + sigma) on the straight path."""
    return Coefficients(
        c_skip=1 / (1 + sigma),
        c_out=-sigma / (1 + sigma),
        c_in=1 / (1 + sigma),
        c_noise=sigma / (1 + sigma),
    )


PARAMETRIZATIONS = {"edm": edm, "vp": vp, "ve": ve, "iddpm": iddpm, "flow": flow}
