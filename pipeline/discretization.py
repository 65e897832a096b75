"""Grids of noise levels: `steps` decreasing sigmas, then 0 (Karras et al. 2022, arXiv 2206.00364, Table 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import StudyError
from pipeline.schedule import EPS_S, VP_PUBLISHED, flow, iddpm_sigmas, vp

Grid = Callable[[int, float, float, float], Tensor]


@dataclass(frozen=True)
class Discretization:
    """A grid and the range of noise that it was published with."""

    grid: Grid
    sigma_min: float
    sigma_max: float

    def __call__(self, steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
        """The noise levels sigma_0 > ... > sigma_steps = 0, float64, shape (steps + 1,)."""
        sigmas = self.grid(steps, sigma_min, sigma_max, rho)
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def fractions(steps: int) -> Tensor:
    """i / (steps - 1) for i = 0 .. steps - 1, float64; one step starts at 0."""
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def edm(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Uniform in sigma^(1/rho) (EDM, eq. 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + fractions(steps) * (low - high)) ** rho


def vp_uniform(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Uniform in VP's time, from 1 to EPS_S, on the VP schedule of this range: DDPM's and DDIM's respaced grid."""
    return vp(sigma_min, sigma_max).sigma(1 + fractions(steps) * (EPS_S - 1))


def ve_geometric(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Geometric in sigma (Song et al. 2021, arXiv 2011.13456)."""
    return sigma_max * (sigma_min / sigma_max) ** fractions(steps)


def iddpm(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The iDDPM levels inside the range, subsampled evenly. Raises StudyError where there are fewer than `steps`."""
    levels = iddpm_sigmas()
    levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    if steps > len(levels):
        raise StudyError(f"discretization iddpm: {steps} steps, but only {len(levels)} noise levels lie in the range")
    return levels[(fractions(steps) * (len(levels) - 1)).round().long()]


def flow_uniform(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Uniform in the flow's time from sigma_max down to 0; sigma_min plays no part (Liu et al. 2022)."""
    path = flow(sigma_min, sigma_max)
    start = path.t(torch.tensor(sigma_max, dtype=torch.float64))
    return path.sigma(start * (1 - torch.arange(steps, dtype=torch.float64) / steps))


VP_RANGE = [float(VP_PUBLISHED.sigma(torch.tensor(t, dtype=torch.float64))) for t in (EPS_S, 1.0)]

DISCRETIZATIONS = {
    "edm": Discretization(edm, 0.002, 80.0),
    "vp": Discretization(vp_uniform, *VP_RANGE),
    "ve": Discretization(ve_geometric, 0.02, 100.0),
    "iddpm": Discretization(iddpm, 0.002, 81.0),
    "flow": Discretization(flow_uniform, 0.002, 1000.0),
}
