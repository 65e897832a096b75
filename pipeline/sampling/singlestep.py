"""Deterministic single-step solvers: Runge-Kutta methods in the schedule's time, exponential methods in ln sigma, and
one that chooses its own steps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.sampling.ode import Ode, RandnLike, SingleStep, Solver


@dataclass(frozen=True)
class RungeKutta(SingleStep):
    """An explicit Runge-Kutta method: d_i is the slope at x + h sum_j a[i][j] d_j, the step is x + h sum_i b[i] d_i."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    variable = "t"

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.a]
        if lengths != list(range(len(self.b))) or abs(sum(self.b) - 1) > 1e-12:
            raise ValueError("a must be strictly lower triangular, as long as b, and b must sum to 1")

    @property
    def stages(self) -> int:
        return len(self.b)

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        t, t_next = ode.t(sigma), ode.t(sigma_next)
        h, x = t_next - t, _times(z, ode.s(sigma))
        slopes = [ode.slope(z, sigma, t)]
        if sigma_next == 0:
            return x + h * slopes[0]  # s = 1 there
        for row in self.a[1:]:
            t_stage = t + sum(row) * h
            sigma_stage = ode.sigma(t_stage)
            z_stage = _times(_combined(x, h, row, slopes), 1 / ode.s(sigma_stage))
            slopes.append(ode.slope(z_stage, sigma_stage, t_stage))
        return _times(_combined(x, h, self.b, slopes), 1 / ode.s(sigma_next))


def _times(z: Tensor, factor: float) -> Tensor:
    return z if factor == 1 else z * factor


def _combined(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_i weights[i] slopes[i]."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)
    return x


def euler() -> RungeKutta:
    """Euler's method.

    Formula: x + h d
    Source: Song et al. 2021, arXiv 2011.13456; Karras et al. 2022, arXiv 2206.00364
    """
    return RungeKutta(a=((),), b=(1.0,), order=1)


def heun(alpha: float) -> RungeKutta:
    """Runge-Kutta of order 2: `alpha` 1 is Heun's method, 2/3 Ralston's, 1/2 the midpoint method.

    Formula: x + h ((1 - 1 / (2 alpha)) d + d' / (2 alpha)), d' at t + alpha h
    Source: Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 3
    """
    return RungeKutta(a=((), (alpha,)), b=(1 - 1 / (2 * alpha), 1 / (2 * alpha)), order=2)


def midpoint() -> RungeKutta:
    """The slope halfway: `heun` with `alpha` 1/2.

    Formula: x + h d', d' at t + h / 2
    Source: Karras et al. 2022, arXiv 2206.00364, Algorithm 3
    """
    return heun(0.5)


def rk4() -> RungeKutta:
    """The classical Runge-Kutta method of order 4.

    Formula: x + h (d_1 + 2 d_2 + 2 d_3 + d_4) / 6
    Source: Kutta 1901
    """
    return RungeKutta(a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)


@dataclass(frozen=True)
class DPMSolver2(SingleStep):
    """DPM-Solver-2: eps halfway in ln sigma.

    Formula: z + (sigma_next - sigma) eps(u), u = z + (sigma_mid - sigma) eps(z)
    Source: Lu et al. 2022, arXiv 2206.00927, Algorithm 1, r_1 = 1/2
    """

    order = 2
    stages = 2
    variable = "ln sigma"

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        eps, middle = ode.eps(z, sigma), math.sqrt(sigma * sigma_next)
        if sigma_next > 0:
            eps = ode.eps(torch.add(z, eps, alpha=middle - sigma), middle)
        return torch.add(z, eps, alpha=sigma_next - sigma)


@dataclass(frozen=True)
class DPMSolverPP2S(SingleStep):
    """DPM-Solver++ (2S): D halfway in ln sigma.

    r = sigma_next / sigma, r_mid = sigma_mid / sigma. A step is exact if D is constant.

    Formula: r z + (1 - r) D(u), u = r_mid z + (1 - r_mid) D(z)
    Source: Lu et al. 2022, arXiv 2211.01095, Algorithm 1, r = 1/2
    """

    order = 2
    stages = 2
    variable = "ln sigma"

    def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
        denoised, middle = ode.denoise(z, sigma), math.sqrt(sigma * sigma_next)
        if sigma_next > 0:
            denoised = ode.denoise(torch.lerp(denoised, z, middle / sigma), middle)
        return torch.lerp(denoised, z, sigma_next / sigma)


@dataclass(frozen=True)
class RK45:
    """Dormand and Prince's pair of orders 5 and 4, which chooses its own steps.

    It goes from the first noise level to the last above 0 in steps whose estimated error is within rtol and atol, then
    takes Euler's step to 0. The number of evaluations is known afterwards.

    Source: Song et al. 2021, arXiv 2011.13456; torchdiffeq's dopri5
    """

    rtol: float
    atol: float
    order = None
    stages = 6
    variable = "t"
    stochastic = False
    adaptive = True

    def evaluations(self, steps: int) -> int:
        """The least possible number: two to choose the first step, six for that step, one for the step to 0."""
        return 2 + self.stages + 1

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        from torchdiffeq import odeint  # slow to import, and only this solver needs it

        first, last = sigmas[0], sigmas[-2]
        if last < first:
            end = ode.t(last)
            times = torch.tensor([ode.t(first), end], dtype=z.dtype, device=z.device)

            def slope(t: Tensor, x: Tensor) -> Tensor:
                time = max(float(t), end)  # the search for a first step may look beyond the end
                sigma = ode.sigma(time)
                found = ode.slope(x / ode.s(sigma), sigma, time)
                if not found.isfinite().all():  # torchdiffeq would try ever smaller steps
                    raise NotFinite("solver rk45: the slope is not finite")
                return found

            exactly = {"step_t": times[1:]}  # otherwise it steps beyond the end and interpolates
            try:
                z = odeint(
                    slope, ode.s(first) * z, times, rtol=self.rtol, atol=self.atol, method="dopri5", options=exactly
                )[-1] / ode.s(last)
            except AssertionError as error:  # torchdiffeq raises it if no step is small enough
                raise StudyError(f"solver rk45: {error}") from None
            yield z
        yield euler().step(ode, z, last, sigmas[-1], randn_like)


SINGLE_STEP: dict[str, Callable[..., Solver]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "dpm_solver_2": DPMSolver2,
    "dpmpp_2s": DPMSolverPP2S,
    "rk45": RK45,
}
