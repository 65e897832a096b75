"""Deterministic multistep solvers, which reuse earlier evaluations: one evaluation per step.

Each keeps one tensor per evaluation, only as many as its formula needs. The first steps have lower orders.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.sampling.ode import Ode, RandnLike, Solver


class Evaluation(NamedTuple):
    """A kept evaluation: the noise level, and D, eps or the slope there (N, ...)."""

    sigma: float
    value: Tensor


class Multistep:
    """A solver whose step combines its last evaluations, at most `points`. For most, the step to sigma = 0 is Euler's.

    lower_at_end: a step uses at most as many points as steps are left, as DPM-Solver and UniPC prescribe. corrects:
    whether `correct` changes z.
    """

    points: int
    variable: str
    stages = 1
    stochastic = False
    adaptive = False
    lower_at_end = False
    corrects = False

    @property
    def order(self) -> int:
        return self.points

    def evaluations(self, steps: int) -> int:
        return steps

    @property
    def steps_needed(self) -> int:
        """The least number of steps at which some step combines all points."""
        return 2 * self.points - 1 if self.lower_at_end else self.points + 1

    def evaluate(self, ode: Ode, z: Tensor, sigma: float) -> Tensor:
        """The tensor that is kept of an evaluation."""
        return ode.denoise(z, sigma)

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        """z at sigma_next from z at past[0].sigma. past: the evaluations to combine, the newest first."""
        raise NotImplementedError

    def correct(self, z: Tensor, before: Tensor, past: Sequence[Evaluation]) -> Tensor:
        """z at past[0].sigma, corrected by the evaluation there. before: z at past[1].sigma."""
        return z

    def run(
        self,
        ode: Ode,
        z: Tensor,
        sigmas: Sequence[float],
        randn_like: RandnLike,
        known: Iterable[Evaluation] = (),
    ) -> Iterator[Tensor]:
        """See Solver.run. known: evaluations above sigmas[0], newest first, so that the first step has full order."""
        past = list(islice(known, self.points))
        before: Tensor | None = None
        for left, (sigma, sigma_next) in zip(range(len(sigmas) - 1, 0, -1), pairwise(sigmas), strict=True):
            if not self.corrects:
                del past[self.points - 1 :]  # before the network runs, to keep only what the step uses
            past.insert(0, Evaluation(sigma, self.evaluate(ode, z, sigma)))
            if before is not None:
                z = self.correct(z, before, past)
            del past[min(self.points, left) if self.lower_at_end else self.points :]
            before = z if self.corrects else None
            z = self.advance(ode, z, sigma_next, past, randn_like)
            yield z


def log_step(sigma: float, sigma_next: float) -> float:
    """The step of lambda = -ln sigma, positive if sigma falls."""
    return math.log(sigma / sigma_next)


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    """DPM-Solver++ (2M, 3M): a polynomial for D in lambda = -ln sigma, integrated against exp(lambda).

    2M simplifies a weight without loss of order. 3M gives the second derivative half of its weight, so it is also of
    order 2. `exp_adams` with order 3 has the whole weight.

    Source: Lu et al. 2022, arXiv 2211.01095, Algorithm 2; 3M: the authors' code
    """

    points: int
    variable = "ln sigma"
    order = 2
    lower_at_end = True

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        sigma, denoised = past[0]
        ratio = sigma_next / sigma
        if len(past) == 1:
            return torch.lerp(denoised, z, ratio)
        h = log_step(sigma, sigma_next)
        r0 = log_step(past[1].sigma, sigma) / h
        d1 = (denoised - past[1].value) / r0
        if len(past) == 2:
            return torch.lerp(denoised + d1 / 2, z, ratio)
        r1 = log_step(past[2].sigma, past[1].sigma) / h
        d2 = (d1 - (past[1].value - past[2].value) / r1) / (r0 + r1)
        d1 = d1 + r0 * d2
        phi_2 = 1 - (1 - ratio) / h
        return torch.lerp(denoised, z, ratio) + phi_2 * d1 + (1 / 2 - phi_2 / h) * d2


def dpmpp_2m() -> DPMSolverPP:
    """DPM-Solver++ (2M): D extrapolated from two evaluations.

    Formula: r z + (1 - r) (D + (D - D_1) / (2 r_0))
    Source: Lu et al. 2022, arXiv 2211.01095, Algorithm 2
    """
    return DPMSolverPP(points=2)


def dpmpp_3m() -> DPMSolverPP:
    """DPM-Solver++ (3M): D extrapolated from three evaluations; its order is 2.

    Source: Lu et al. 2022, arXiv 2211.01095, the authors' code
    """
    return DPMSolverPP(points=3)


@cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    return (nodes + 1) / 2, weights / 2


def adams_weights(
    times: Sequence[float],
    t: float,
    t_next: float,
    rate: Callable[[np.ndarray], np.ndarray],
    variable: Callable[[np.ndarray], np.ndarray] = lambda tau: tau,
) -> list[float]:
    """The integrals from t to t_next of rate(tau) l_j(variable(tau)), with l_j Lagrange's polynomials on `times`.

    With rate = 1 these are the weights of Adams and Bashforth's method with steps of any lengths; a rate makes them
    those of an exponential one (Hochbruck and Ostermann 2010, doi 10.1017/S0962492910000048, section 2.5).
    """
    nodes, weights = _quadrature()
    tau = t + (t_next - t) * nodes
    rates, place = rate(tau) * weights * (t_next - t), variable(tau)
    return [
        float(np.sum(rates * np.prod([(place - other) / (node - other) for other in times if other != node], axis=0)))
        for node in times
    ]


def _sum(z: Tensor, weights: Sequence[float], past: Sequence[Evaluation]) -> Tensor:
    """z + sum_j weights[j] past[j].value."""
    for weight, evaluation in zip(weights, past, strict=True):
        z = torch.add(z, evaluation.value, alpha=weight)
    return z


def _lagrange_order(name: str, order: int | None, default: int) -> int:
    if order is not None and not 1 <= order <= 4:
        raise ValueError(f"order: solver {name} has orders 1 to 4")
    return order or default


@dataclass(frozen=True)
class ExpAdams(Multistep):
    """Exponential Adams-Bashforth in lambda = -ln sigma. Order 1 is DDIM; DPM-Solver++ (2M) is close to order 2."""

    points: int
    variable = "ln sigma"
    lower_at_end = True

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        sigma = past[0].sigma
        if sigma_next == 0:
            return past[0].value
        logs = [-math.log(p.sigma) for p in past]
        end = -math.log(sigma_next)
        weights = adams_weights(logs, logs[0], end, lambda tau: np.exp(tau - end))
        return _sum(z * (sigma_next / sigma), weights, past)


def exp_adams(order: int | None) -> ExpAdams:
    """Exponential Adams-Bashforth: a polynomial through D in lambda, integrated against e^lambda.

    The default order is 3.

    Source: Hochbruck and Ostermann 2010, doi 10.1017/S0962492910000048, sec. 2.5
    """
    return ExpAdams(_lagrange_order("exp_adams", order, 3))


def bh2(h: float) -> float:
    """UniPC's B_2, in its form for D.

    Formula: 1 - exp(-h)
    Source: Zhao et al. 2023, arXiv 2302.04867, sec. 3.1
    """
    return -math.expm1(-h)


def bh1(h: float) -> float:
    """UniPC's B_1.

    Formula: h
    Source: Zhao et al. 2023, arXiv 2302.04867, sec. 3.1
    """
    return h


VARIANTS = {"bh2": bh2, "bh1": bh1}


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC: UniP-p predicts, UniC-p corrects with the evaluation at the prediction.

    The next step uses the same evaluation, so a step costs one, and the order is p + 1.

    In z, with q = 1 - sigma_next / sigma and r_m = (lambda_m - lambda) / (lambda_next - lambda):
    z_next = (1 - q) z + q D + B(h) sum_m a_m (D_m - D) / r_m, where B(h) sum_m a_m r_m^(n-1) = b_n for n = 1, 2, ...
    With one node, a is 1/2 and B(h) matters; with several, it cancels.
    """

    points: int
    variant: str
    variable = "ln sigma"
    lower_at_end = True
    corrects = True

    @property
    def order(self) -> int:
        return self.points + 1

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        if sigma_next == 0:
            return past[0].value
        return self._step(z, past[0], sigma_next, past[1:])

    def correct(self, z: Tensor, before: Tensor, past: Sequence[Evaluation]) -> Tensor:
        new, base, *older = past
        return self._step(before, base, new.sigma, [*older, new])

    def _step(self, z: Tensor, base: Evaluation, sigma_next: float, others: Sequence[Evaluation]) -> Tensor:
        """From z at base.sigma to sigma_next, with the evaluations of `others` beside base's."""
        h = log_step(base.sigma, sigma_next)
        r = [log_step(base.sigma, other.sigma) / h for other in others]
        target = torch.lerp(base.value, z, sigma_next / base.sigma)
        for weight, r_m, other in zip(self._weights(r, h), r, others, strict=True):
            target = torch.add(target, other.value - base.value, alpha=weight / r_m)
        return target

    def _weights(self, r: Sequence[float], h: float) -> list[float]:
        """B(h) a_m of the nodes r_m; a is 1/2 for a single node, as the paper has it."""
        if len(r) <= 1:
            return [VARIANTS[self.variant](h) / 2] * len(r)
        moment, b = -math.expm1(-h), []  # of exp(s - h) (s / h)^n over (0, h)
        for n in range(1, len(r) + 1):
            moment = 1 - n * moment / h
            b.append(moment)
        return [float(weight) for weight in np.linalg.solve(np.vander(r, increasing=True).T, np.array(b))]


def unipc(order: int | None, variant: str = "bh2") -> UniPC:
    """UniPC: a predictor, and a corrector that reuses the next step's evaluation.

    `order` is the predictor's, 2 or 3. The default is 3.

    Source: Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 and 6
    """
    if order not in (None, 2, 3):
        raise ValueError("order: solver unipc has orders 2 and 3")
    return UniPC(order or 3, variant)


@dataclass(frozen=True)
class DEIS(Multistep):
    """tAB-DEIS with `points` evaluations. Its order is `points`: tAB3, a cubic through four points, is of order 4."""

    points: int
    variable = "t"

    def evaluate(self, ode: Ode, z: Tensor, sigma: float) -> Tensor:
        return ode.eps(z, sigma)

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        sigma = past[0].sigma
        if sigma_next == 0 or len(past) == 1:
            return torch.add(z, past[0].value, alpha=sigma_next - sigma)
        times = [ode.t(p.sigma) for p in past]
        time = lambda log: ode.schedule.t(torch.from_numpy(np.exp(log))).numpy()  # noqa: E731
        # over ln sigma, d sigma = sigma d ln sigma: over t, d sigma / dt may be near-singular at the end
        weights = adams_weights(times, math.log(sigma), math.log(sigma_next), np.exp, time)
        return _sum(z, weights, past)


def deis(order: int | None) -> DEIS:
    """tAB-DEIS: a polynomial through eps in t, integrated against d sigma / dt.

    The default order is 4, which is tAB3.

    Source: Zhang and Chen 2023, arXiv 2204.13902, eq. 15
    """
    return DEIS(_lagrange_order("deis", order, 4))


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM with `points` evaluations. Its order is `points` if steps of sigma are equal, 2 if they change smoothly."""

    points: int
    variable = "sigma"

    def evaluate(self, ode: Ode, z: Tensor, sigma: float) -> Tensor:
        return ode.eps(z, sigma)

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        h = sigma_next - past[0].sigma
        used = past[:1] if sigma_next == 0 else past
        return _sum(z, [h * weight for weight in ADAMS_BASHFORTH[len(used) - 1]], used)


def ipndm(order: int | None) -> IPNDM:
    """iPNDM: DDIM's step with Adams-Bashforth's mean of eps for equal steps.

    The default order is 4.

    Formula: z + (sigma_next - sigma) sum_j w_j eps_j
    Source: Zhang and Chen 2023, arXiv 2204.13902, eq. 41; Liu et al. 2022, arXiv 2202.09778
    """
    return IPNDM(_lagrange_order("ipndm", order, 4))


@dataclass(frozen=True)
class LMS(Multistep):
    """Adams-Bashforth on dx/dt with `points` evaluations and any step lengths, also in the last step."""

    points: int
    variable = "t"

    @property
    def steps_needed(self) -> int:
        return self.points

    def evaluate(self, ode: Ode, z: Tensor, sigma: float) -> Tensor:
        return ode.slope(z, sigma, ode.t(sigma))

    def advance(self, ode: Ode, z: Tensor, sigma_next: float, past: Sequence[Evaluation], noise: RandnLike) -> Tensor:
        sigma = past[0].sigma
        times = [ode.t(p.sigma) for p in past]
        weights = adams_weights(times, times[0], ode.t(sigma_next), np.ones_like)
        return _sum(ode.s(sigma) * z, weights, past) / ode.s(sigma_next)


def lms(order: int | None) -> LMS:
    """Linear multistep: Adams-Bashforth on dx/dt for any step lengths.

    The default order is 4.

    Source: k-diffusion, there with sigma = t
    """
    return LMS(_lagrange_order("lms", order, 4))


MULTISTEP: dict[str, Callable[..., Solver]] = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "exp_adams": exp_adams,
    "unipc": unipc,
    "deis": deis,
    "ipndm": ipndm,
    "lms": lms,
}
