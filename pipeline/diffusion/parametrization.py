"""Parametrizations, which turn a network F into a denoiser: D(z; sigma) = c_skip z + c_out F(c_in z, c_noise).

A parametrization joins a target, which gives c_skip and c_out, with a path, which gives c_in and c_noise (Karras et al.
2022, arXiv 2206.00364, Table 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.diffusion.schedule import VP_PUBLISHED, VP_STEPS, ddpm_sigmas, iddpm_sigmas

BOUNDARY = 0.002  # e, the lowest noise level of EDM, where consistency maps end


class Coefficients(NamedTuple):
    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


Pair = tuple[Tensor, Tensor]
Half = Callable[
    [Tensor, float], Pair
]  # of sigma (float64, any shape) and sigma_data: two coefficients in sigma's shape


def eps(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts the noise n.

    Formula: c_skip = 1; c_out = -sigma
    Source: Ho et al. 2020, arXiv 2006.11239
    """
    return torch.ones_like(sigma), -sigma


def score(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts -n, which is sigma times the score.

    Formula: c_skip = 1; c_out = sigma
    Source: Song et al. 2021, arXiv 2011.13456
    """
    return torch.ones_like(sigma), sigma


def x0(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts x0.

    Formula: c_skip = 0; c_out = 1
    Source: Ho et al. 2020, arXiv 2006.11239
    """
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def v(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts v = (n - sigma x0) / sqrt(1 + sigma^2).

    Formula: c_skip = 1 / (1 + sigma^2); c_out = -sigma / sqrt(1 + sigma^2)
    Source: Salimans and Ho 2022, arXiv 2202.00512, app. D
    """
    return 1 / (1 + sigma**2), -sigma * (1 + sigma**2).rsqrt()


def velocity(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts the flow's velocity n - x0.

    Formula: c_skip = 1 / (1 + sigma); c_out = -sigma / (1 + sigma)
    Source: Liu et al. 2022, arXiv 2209.03003
    """
    return 1 / (1 + sigma), -sigma / (1 + sigma)


def unit_variance(sigma: Tensor, sigma_data: float) -> Pair:
    """F predicts a target of unit variance at every sigma, with the smallest |c_out|.

    Formula: c_skip = sigma_data^2 / (sigma^2 + sigma_data^2);
        c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    Source: Karras et al. 2022, arXiv 2206.00364, eq. 7
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt()


def boundary(sigma: Tensor, sigma_data: float) -> Pair:
    """As EDM's, but D(z; e) = z at the level e = 0.002, where the trajectories end.

    Formula: c_skip = sigma_data^2 / ((sigma - e)^2 + sigma_data^2);
        c_out = sigma_data (sigma - e) / sqrt(sigma^2 + sigma_data^2)
    Source: Song et al. 2023, arXiv 2303.01469, app. C
    """
    step = sigma - BOUNDARY
    return sigma_data**2 / (step**2 + sigma_data**2), sigma_data * step / (sigma**2 + sigma_data**2).sqrt()


def edm_path(sigma: Tensor, sigma_data: float) -> Pair:
    """EDM's path: the input has unit variance.

    Formula: c_in = 1 / sqrt(sigma^2 + sigma_data^2); c_noise = ln(sigma) / 4
    Source: Karras et al. 2022, arXiv 2206.00364, eq. 7
    """
    return (sigma**2 + sigma_data**2).rsqrt(), sigma.log() / 4


def ve_path(sigma: Tensor, sigma_data: float) -> Pair:
    """VE's path: the input is z.

    Formula: c_in = 1; c_noise = ln(sigma / 2)
    Source: Song et al. 2021, arXiv 2011.13456
    """
    return torch.ones_like(sigma), (sigma / 2).log()


def vp_path(sigma: Tensor, sigma_data: float) -> Pair:
    """VP's path: c_noise is the time in steps.

    Formula: c_in = 1 / sqrt(1 + sigma^2);
        c_noise = (M - 1) (sqrt(beta_min^2 + 2 beta_d ln(1 + sigma^2)) - beta_min) / beta_d
    Source: Song et al. 2021, arXiv 2011.13456
    """
    return (sigma**2 + 1).rsqrt(), (VP_STEPS - 1) * VP_PUBLISHED.t(sigma)


def flow_path(sigma: Tensor, sigma_data: float) -> Pair:
    """The straight path: c_noise is 999 times the time t.

    The authors' code has the same factor. Its t runs from noise to data, ours from data to noise.

    Formula: c_in = 1 / (1 + sigma); c_noise = (M - 1) sigma / (1 + sigma)
    Source: Liu et al. 2022, arXiv 2209.03003
    """
    c_in, t = flow_t_path(sigma, sigma_data)
    return c_in, (VP_STEPS - 1) * t


def flow_t_path(sigma: Tensor, sigma_data: float) -> Pair:
    """The straight path: c_noise is the time t itself, over which a positional embedding hardly changes.

    Formula: c_in = 1 / (1 + sigma); c_noise = sigma / (1 + sigma)
    Source: Liu et al. 2022, arXiv 2209.03003
    """
    return 1 / (1 + sigma), sigma / (1 + sigma)


@cache
def _midpoints(table: Callable[[], Tensor]) -> Tensor:
    """The midpoints between the neighbours of a table of noise levels, ascending."""
    levels = table().sort().values
    return (levels[1:] + levels[:-1]) / 2


def _nearest(table: Callable[[], Tensor], sigma: Tensor) -> Tensor:
    """The index, counted from the lowest, of the level of a table that is nearest to sigma."""
    return torch.searchsorted(_midpoints(table).to(sigma.device), sigma.contiguous()).to(sigma.dtype)


def iddpm_path(sigma: Tensor, sigma_data: float) -> Pair:
    """The cosine betas: c_noise is the index of the nearest level from the lowest, 0, up; -1 for sigma = 0.

    Formula: c_in = 1 / sqrt(1 + sigma^2); c_noise = nearest(sigma)
    Source: Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return (sigma**2 + 1).rsqrt(), _nearest(iddpm_sigmas, sigma) - 1


def ddpm_path(sigma: Tensor, sigma_data: float) -> Pair:
    """The linear betas: c_noise is the index of the nearest level from the lowest, 0, up.

    Formula: c_in = 1 / sqrt(1 + sigma^2); c_noise = nearest(sigma)
    Source: Ho et al. 2020, arXiv 2006.11239
    """
    return (sigma**2 + 1).rsqrt(), _nearest(ddpm_sigmas, sigma)


@dataclass(frozen=True)
class Parametrization:
    """Maps sigma (float64, any shape) and sigma_data to the four coefficients, each in sigma's shape.

    `smallest` and `largest` are the ends of the path's noise levels.
    """

    target: Half
    path: Half
    smallest: float = 0.0
    largest: float = math.inf

    def __call__(self, sigma: Tensor, sigma_data: float) -> Coefficients:
        return Coefficients(*self.target(sigma, sigma_data), *self.path(sigma, sigma_data))

    @property
    def flow(self) -> bool:
        return self.path in (flow_path, flow_t_path)


VP_RANGE = (0.0, float(VP_PUBLISHED.sigma(torch.tensor(1.0, dtype=torch.float64))))
IDDPM_RANGE = (float(iddpm_sigmas()[-2]), float(iddpm_sigmas()[0]))
DDPM_RANGE = (float(ddpm_sigmas()[0]), float(ddpm_sigmas()[-1]))

PARAMETRIZATIONS = {  # vp is plain eps-prediction on the VP path, flow plain v-prediction on the straight one
    "edm": Parametrization(unit_variance, edm_path),
    "vp": Parametrization(eps, vp_path, *VP_RANGE),
    "ve": Parametrization(score, ve_path),
    "iddpm": Parametrization(eps, iddpm_path, *IDDPM_RANGE),
    "ddpm": Parametrization(eps, ddpm_path, *DDPM_RANGE),
    "flow": Parametrization(velocity, flow_path),
    "vp_x0": Parametrization(x0, vp_path, *VP_RANGE),
    "vp_v": Parametrization(v, vp_path, *VP_RANGE),
    "ddpm_x0": Parametrization(x0, ddpm_path, *DDPM_RANGE),
    "ddpm_v": Parametrization(v, ddpm_path, *DDPM_RANGE),
    "iddpm_x0": Parametrization(x0, iddpm_path, *IDDPM_RANGE),
    "iddpm_v": Parametrization(v, iddpm_path, *IDDPM_RANGE),
    "flow_eps": Parametrization(eps, flow_path),
    "flow_x0": Parametrization(x0, flow_path),
    "flow_t": Parametrization(velocity, flow_t_path),
    "consistency": Parametrization(boundary, edm_path, BOUNDARY),
}
