"""Solvers: how one step of the sampler goes from t to t_next.

A step sees x = s z at time t, and a Path that turns it into the probability-flow ODE's right-hand side. At sigma = 0
there is nothing to evaluate, so a stage that would land there is left out: the last step of every solver is Euler's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.denoiser import DenoiserFunction
from pipeline.schedule import Scaling, Schedule

RandnLike = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """A denoiser on a schedule with a scaling: the ODE that is solved. Times are float64 scalars, x is (N, ...)."""

    denoiser: DenoiserFunction
    schedule: Schedule
    scaling: Scaling

    def s(self, t: Tensor) -> Tensor:
        return self.scaling.s(self.schedule.sigma(t))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """D at x = s z, in the coordinates of z."""
        return self.denoiser(x / self.s(t), self.schedule.sigma(t))

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = (s'/s + sigma'/sigma) x - (sigma' s / sigma) D(x / s; sigma) (EDM, eq. 81)."""
        sigma, sigma_dot = self.schedule.sigma(t), self.schedule.sigma_dot(t)
        s, log_slope = self.scaling.s(sigma), self.scaling.log_slope(sigma)
        return sigma_dot * ((log_slope + 1 / sigma) * x - s / sigma * self.denoise(x, t))


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method: stage i starts from x + h sum_j a[i][j] d_j, the step is x + h sum_i b[i] d_i."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.a]
        if lengths != list(range(len(self.b))) or abs(sum(self.b) - 1) > 1e-12:
            raise ValueError("a must be strictly lower triangular, as long as b, and b must sum to 1")

    def evaluations(self, steps: int) -> int:
        return len(self.b) * (steps - 1) + 1

    def step(self, path: Path, x: Tensor, t: Tensor, t_next: Tensor, randn_like: RandnLike) -> Tensor:
        h = t_next - t
        if t_next == 0:
            return x + h * path.slope(x, t)
        slopes: list[Tensor] = []
        for row in self.a:
            stage = x + h * sum((w * d for w, d in zip(row, slopes, strict=True) if w), torch.zeros_like(x))
            slopes.append(path.slope(stage, t + sum(row) * h))
        return x + h * sum((w * d for w, d in zip(self.b, slopes, strict=True) if w), torch.zeros_like(x))


def euler(alpha: float, eta: float) -> RungeKutta:
    """x + h d."""
    return RungeKutta(a=((),), b=(1.0,), order=1)


def heun(alpha: float, eta: float) -> RungeKutta:
    """The second-order family x + h ((1 - 1/(2 alpha)) d + d' / (2 alpha)), d' at t + alpha h (EDM, Algorithm 3).

    alpha = 1 is Heun's method, 1/2 the midpoint method, 2/3 Ralston's.
    """
    return RungeKutta(a=((), (alpha,)), b=(1 - 1 / (2 * alpha), 1 / (2 * alpha)), order=2)


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eqs. 12 and 16), whatever the schedule; eta = 1 is ancestral DDPM.

    In z: z_next = D + sqrt(sigma_next^2 - up^2) (z - D) / sigma + up n, up = eta sigma_next sqrt(1 - r^2), where
    r = sigma_next / sigma; the variance at eta = 1 is DDPM's beta-tilde.
    """

    eta: float
    order: int = 1

    def evaluations(self, steps: int) -> int:
        return steps

    def step(self, path: Path, x: Tensor, t: Tensor, t_next: Tensor, randn_like: RandnLike) -> Tensor:
        sigma, sigma_next = path.schedule.sigma(t), path.schedule.sigma(t_next)
        denoised = path.denoise(x, t)
        up = self.eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
        z = denoised + (sigma_next**2 - up**2).sqrt() / sigma * (x / path.s(t) - denoised)
        if self.eta and sigma_next > 0:
            z = z + up * randn_like(z)
        return path.s(t_next) * z


def ddim(alpha: float, eta: float) -> DDIM:
    """DDIM with its eta."""
    return DDIM(eta)


Solver = RungeKutta | DDIM

SOLVERS: dict[str, Callable[[float, float], Solver]] = {"euler": euler, "heun": heun, "ddim": ddim}
STOCHASTIC = frozenset({"ddim"})  # the solvers that know eta
