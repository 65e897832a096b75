"""Grids of noise levels: `steps` decreasing sigmas, then 0 (Karras et al. 2022, arXiv 2206.00364, Table 1).

A grid is a function of steps, sigma_min, sigma_max and the keys of a sampler row that its further arguments name
(`schedule` is the row's Schedule).
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.schedule import EPS_S, VP_PUBLISHED, Schedule, ddpm_sigmas, flow, iddpm_sigmas, vp


@dataclass(frozen=True)
class Discretization:
    """A grid and the noise range that it was published with."""

    grid: Callable[..., Tensor]
    sigma_min: float
    sigma_max: float

    @property
    def keys(self) -> list[str]:
        """The keys of a sampler row that the grid depends on, besides the number of steps and the range."""
        return list(signature(self.grid).parameters)[3:]

    def __call__(self, steps: int, sigma_min: float, sigma_max: float, **choices: object) -> Tensor:
        """The noise levels sigma_0 > ... > sigma_steps = 0, float64, shape (steps + 1,)."""
        sigmas = self.grid(steps, sigma_min, sigma_max, **{key: choices[key] for key in self.keys})
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def fractions(steps: int) -> Tensor:
    """i / (steps - 1) for i = 0 .. steps - 1, float64; one step starts at 0."""
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def edm(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Uniform in sigma^(1 / rho).

    Formula: (a + i / (N - 1) (b - a))^rho, a = sigma_max^(1 / rho), b = sigma_min^(1 / rho)
    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + fractions(steps) * (low - high)) ** rho


def vp_uniform(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in VP's time, with beta_d and beta_min solved for the row's range.

    Formula: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t = 1 + i / (N - 1) (eps_s - 1)
    Source: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    return vp(sigma_min, sigma_max).sigma(1 + fractions(steps) * (EPS_S - 1))


def geometric(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in ln sigma, and so in the log-SNR.

    Formula: sigma_max (sigma_min / sigma_max)^(i / (N - 1))
    Source: Song et al. 2021, arXiv 2011.13456 (VE); Lu et al. 2022, arXiv 2206.00927, sec. 3.4
        (log-SNR); k-diffusion (exponential)
    """
    return sigma_max * (sigma_min / sigma_max) ** fractions(steps)


def uniform_in_time(steps: int, sigma_min: float, sigma_max: float, schedule: Schedule, exponent: float) -> Tensor:
    """Uniform in t^(1 / exponent), where t is the time of the row's `schedule`.

    Source: Song et al. 2021, arXiv 2011.13456; with an exponent: Zhang and Chen 2023, arXiv 2204.13902, the authors'
        code
    """
    return _in_time(steps, sigma_min, sigma_max, schedule, exponent)


def quadratic_in_time(steps: int, sigma_min: float, sigma_max: float, schedule: Schedule) -> Tensor:
    """Uniform in the square root of the time of the row's `schedule`.

    Source: Zhang and Chen 2023, arXiv 2204.13902, the authors' code
    """
    return _in_time(steps, sigma_min, sigma_max, schedule, power=2)


def _in_time(steps: int, sigma_min: float, sigma_max: float, schedule: Schedule, power: float) -> Tensor:
    """Uniform in t^(1 / power)."""
    ends = schedule.t(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
    first, last = ends ** (1 / power)
    sigmas = schedule.sigma((first + fractions(steps) * (last - first)) ** power)
    sigmas[0], sigmas[-1] = sigma_max, sigma_min if steps > 1 else sigma_max  # exactly, without rounding
    return sigmas


def _within(levels: Tensor, sigma_min: float, sigma_max: float, steps: int, name: str) -> Tensor:
    levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    if steps > len(levels):
        raise StudyError(f"discretization {name}: {steps} steps, but only {len(levels)} noise levels in the range")
    return levels


def iddpm(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The levels of the cosine betas in the range, subsampled evenly.

    Raises StudyError if the range has fewer than `steps` levels.

    Source: Nichol and Dhariwal 2021, arXiv 2102.09672; Karras et al. 2022, arXiv 2206.00364, Table 1
    """
    levels = _within(iddpm_sigmas(), sigma_min, sigma_max, steps, "iddpm")
    return levels[(fractions(steps) * (len(levels) - 1)).round().long()]


def ddpm(steps: int, sigma_min: float, sigma_max: float, spacing: str) -> Tensor:
    """The levels of DDPM's linear betas in the range, chosen by `spacing`.

    Raises StudyError if the range has fewer than `steps` levels.

    Source: Ho et al. 2020, arXiv 2006.11239
    """
    levels = _within(ddpm_sigmas(), sigma_min, sigma_max, steps, "ddpm")
    return levels[SPACINGS[spacing](steps, len(levels))]


def linspace(steps: int, count: int) -> Tensor:
    """Both ends, and evenly between.

    Formula: round((N - 1 - i) (K - 1) / (N - 1))
    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, sec. 4
    """
    left = torch.arange(steps, dtype=torch.float64).flip(0) if steps > 1 else torch.ones(1, dtype=torch.float64)
    return (left * (count - 1) / max(steps - 1, 1)).round().long()  # one division: exact halves go to even


def leading(steps: int, count: int) -> Tensor:
    """Every (K / N)-th level from the lowest, without the highest.

    Formula: (N - 1 - i) floor(K / N)
    Source: Song et al. 2021, arXiv 2010.02502, app. D.2
    """
    return torch.arange(steps).flip(0) * (count // steps)


def trailing(steps: int, count: int) -> Tensor:
    """Every (K / N)-th level from the highest.

    Formula: round((N - i) K / N) - 1
    Source: Lin et al. 2024, arXiv 2305.08891, sec. 3.3
    """
    return ((steps - torch.arange(steps, dtype=torch.float64)) * count / steps).round().long() - 1


def quadratic(steps: int, count: int) -> Tensor:
    """Squares: dense at the lowest levels, up to four fifths of all levels, none twice.

    DDIM's values for CIFAR-10 are on this spacing. Its code starts at four fifths, and visits low levels several times
    if there are many steps. Such a visit changes nothing without noise; here the next level takes its place.

    Formula: max(k, floor(4 K k^2 / (5 (N - 1)^2))), k = N - 1 - i
    Source: Song et al. 2021, arXiv 2010.02502, app. D.2
    """
    k = torch.arange(steps).flip(0) if steps > 1 else torch.ones(1, dtype=torch.int64)
    return torch.maximum(k, 4 * count * k**2 // (5 * max(steps - 1, 1) ** 2)).clamp(max=count - 1)


def flow_uniform(steps: int, sigma_min: float, sigma_max: float, shift: float) -> Tensor:
    """Uniform in the flow's time, from sigma_max down to 0; sigma_min has no effect.

    shift multiplies the levels of a grid that starts at sigma_max / shift.

    Formula: shift t / (1 - t), t = (1 - i / N) sigma_max / (shift + sigma_max)
    Source: Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206, eq. 23
    """
    schedule = flow(sigma_min, sigma_max)
    start = schedule.t(torch.tensor(sigma_max / shift, dtype=torch.float64))
    return shift * schedule.sigma(start * (1 - torch.arange(steps, dtype=torch.float64) / steps))


def explicit(steps: int, sigma_min: float, sigma_max: float, sigmas: tuple[float, ...] | None) -> Tensor:
    """The row's list `sigmas`.

    Raises StudyError for another number of steps.
    """
    if not sigmas or steps != len(sigmas):
        raise StudyError(f"discretization explicit: {steps} steps, but sigmas has {len(sigmas or ())} noise levels")
    return torch.tensor(sigmas, dtype=torch.float64)


def optimised(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Fitted to the model: least error of Euler's steps along the model's own trajectories.

    Source: Chen et al. 2024, arXiv 2405.11326; Watson et al. 2021, arXiv 2106.03802
    """
    raise StudyError("discretization optimised: not fitted to a model yet; see pipeline.sampling.fitted_grids.fit")


VP_RANGE = [float(VP_PUBLISHED.sigma(torch.tensor(t, dtype=torch.float64))) for t in (EPS_S, 1.0)]
DDPM_RANGE = [float(ddpm_sigmas()[i]) for i in (0, -1)]
EDM_RANGE, EDM_RHO = (0.002, 80.0), 7.0
LEVELS = 64  # an optimised grid chooses from so many noise levels, so it has at most as many steps

SPACINGS = {"linspace": linspace, "leading": leading, "trailing": trailing, "quadratic": quadratic}

DISCRETIZATIONS = {
    "edm": Discretization(edm, *EDM_RANGE),
    "vp": Discretization(vp_uniform, *VP_RANGE),
    "ve": Discretization(geometric, 0.02, 100.0),
    "iddpm": Discretization(iddpm, 0.002, 81.0),
    "flow": Discretization(flow_uniform, 0.002, 1000.0),
    "ddpm": Discretization(ddpm, *DDPM_RANGE),
    "time": Discretization(uniform_in_time, *EDM_RANGE),
    "time_quadratic": Discretization(quadratic_in_time, *VP_RANGE),
    "log_snr": Discretization(geometric, *VP_RANGE),
    "exponential": Discretization(geometric, *EDM_RANGE),
    "explicit": Discretization(explicit, *EDM_RANGE),
    "optimised": Discretization(optimised, *EDM_RANGE),
}
