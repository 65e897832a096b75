"""The ODE that solvers integrate, and the interface of a solver.

The state is z = x0 + sigma n, (N, ...), in float64 (float32 on devices without it). Noise levels and times are Python
floats, so that the loop never waits for the device; only the denoiser gets sigma as a tensor, on the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import DenoiserFunction, parted
from pipeline.diffusion.schedule import Scaling, Schedule
from pipeline.sampling.thresholding import none

RandnLike = Callable[[Tensor], Tensor]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Ode:
    """The probability-flow ODE of a denoiser, for x = s z as a function of t, in a schedule and a scaling.

    threshold: what solvers see in place of D, in its shape and dtype.
    """

    denoiser: DenoiserFunction
    schedule: Schedule
    scaling: Scaling
    threshold: Callable[[Tensor], Tensor] = none

    def t(self, sigma: float) -> float:
        return float(self.schedule.t(_scalar(sigma)))

    def sigma(self, t: float) -> float:
        return float(self.schedule.sigma(_scalar(t)))

    def s(self, sigma: float) -> float:
        return float(self.scaling.s(_scalar(sigma)))

    def sigma_dot(self, t: float) -> float:
        return float(self.schedule.sigma_dot(_scalar(t)))

    def log_slope(self, sigma: float) -> float:
        """d ln s / d sigma."""
        return float(self.scaling.log_slope(_scalar(sigma)))

    def denoise(self, z: Tensor, sigma: float) -> Tensor:
        """D(z; sigma), in z's dtype."""
        return self.threshold(self.denoiser(z, _scalar(sigma)).to(z.dtype))

    def denoise_with_variance(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """D(z; sigma) and v of `Denoiser.with_variance`, in z's shape and dtype, from one call.

        Raises StudyError if the denoiser answers D alone.
        """
        denoised, v = parted(self.denoiser(z, _scalar(sigma)).to(z.dtype), z)
        if v is None:
            raise StudyError("variance: learned needs a denoiser that answers D and v; use beta or beta_tilde")
        return self.threshold(denoised), v

    def eps(self, z: Tensor, sigma: float) -> Tensor:
        """The predicted noise, (z - D) / sigma."""
        return (z - self.denoise(z, sigma)) / sigma

    def slope(self, z: Tensor, sigma: float, t: float) -> Tensor:
        """dx/dt = (s'/s + sigma'/sigma) x - (sigma' s / sigma) D(x / s; sigma) at x = s z (EDM, eq. 81)."""
        denoised, rate = self.denoise(z, sigma), self.sigma_dot(t) * self.s(sigma)
        return torch.add(z * (rate * (self.log_slope(sigma) + 1 / sigma)), denoised, alpha=-rate / sigma)


class Solver(Protocol):
    """A method that takes z down a grid of noise levels to 0."""

    @property
    def order(self) -> int | None:
        """The order of convergence; None if the solver chooses its own steps, or solves no equation."""

    @property
    def stages(self) -> int:
        """Evaluations per step."""

    @property
    def variable(self) -> str:
        """The variable of its steps: t, which depends on schedule and scaling, else sigma or ln sigma."""

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps, so that its cost is known only afterwards."""

    def evaluations(self, steps: int) -> int:
        """The evaluations of `steps` steps, the last of which ends at sigma = 0."""

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        """Yield z (N, ...) after each step from sigmas[i] to sigmas[i + 1]. Noise comes from randn_like(z)."""


class SingleStep:
    """A solver whose step depends only on z. Its last step, to sigma = 0, is Euler's, because a network cannot be
    evaluated at sigma = 0."""

    order: int | None
    variable: str
    adaptive = False

    @property
    def stages(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return False

    def evaluations(self, steps: int) -> int:
        return self.stages * (steps - 1) + 1

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        """z at sigma_next from z at sigma."""
        raise NotImplementedError

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        for sigma, sigma_next in pairwise(sigmas):
            z = self.step(ode, z, sigma, sigma_next, randn_like)
            yield z
