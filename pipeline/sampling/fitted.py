"""A multistep solver whose numbers are fitted to a network: noise levels, weights, and the levels the network is told.

A step combines the last evaluations, at most POINTS, with weights of its own. `fitting` finds the numbers. Published
samplers are restrictions of it: LD3 (Tong et al. 2024, arXiv 2405.15506) fits the levels of the state and those told,
S4S (Frankel et al. 2025, arXiv 2502.17423) the weights or, as S4S-Alt, the levels too, DyWeight (arXiv 2603.11607) the
weights and the levels told, GS (arXiv 2510.17699) all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self, TypeVar

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.rows import PositiveFloat, RealFloat, Row
from pipeline.sampling.multistep import ADAMS_BASHFORTH
from pipeline.sampling.ode import Ode, RandnLike

POINTS = len(ADAMS_BASHFORTH)
Number = TypeVar("Number", float, Tensor)


class Numbers(Row):
    """The numbers of a fitted solver for N steps."""

    sigmas: tuple[RealFloat, ...]
    """The falling noise levels of the state, N + 1; the last one is where sampling ends."""
    told: tuple[PositiveFloat, ...]
    """The noise level that the network is told in each step, N."""
    weights: tuple[tuple[RealFloat, ...], ...]
    """The weights of the last evaluations in each step, the newest first: N times POINTS."""

    @classmethod
    def of(cls, sigmas: Tensor, told: Tensor, weights: Tensor) -> Self:
        """From tensors (N + 1,), (N,) and (N, POINTS)."""
        return cls(
            sigmas=tuple(sigmas.tolist()), told=tuple(told.tolist()), weights=tuple(map(tuple, weights.tolist()))
        )


def ipndm_weights(sigmas: Tensor) -> Tensor:
    """iPNDM's weights of eps at levels (N + 1,): those of Adams and Bashforth for equal steps, (N, POINTS).

    A step to sigma = 0 is Euler's.
    """
    steps = len(sigmas) - 1
    table = torch.zeros(POINTS, POINTS, dtype=sigmas.dtype)
    for order, row in enumerate(ADAMS_BASHFORTH):
        table[order, : len(row)] = torch.tensor(row, dtype=sigmas.dtype)
    orders = torch.arange(steps).clamp(max=POINTS - 1)
    if sigmas[-1] == 0:
        orders[-1] = 0
    return table[orders]


def dpmpp_2m_weights(sigmas: Tensor) -> Tensor:
    """DPM-Solver++ (2M)'s weights of D at levels (N + 1,), as a function of the levels: (N, POINTS)."""
    steps = sigmas[:-1].log().diff()  # to all levels but the last
    extrapolated = torch.cat([sigmas.new_zeros(1), steps[1:] / steps[:-1] / 2, sigmas.new_zeros(1)])[: len(sigmas) - 1]
    return torch.stack([1 + extrapolated, -extrapolated, *2 * [torch.zeros_like(extrapolated)]], dim=1)


def _with_eps(z: Tensor, sigma: Number, sigma_next: Number, eps: Tensor) -> Tensor:
    return z + (sigma_next - sigma) * eps


def _with_denoised(z: Tensor, sigma: Number, sigma_next: Number, denoised: Tensor) -> Tensor:
    ratio = sigma_next / sigma
    return ratio * z + (1 - ratio) * denoised


@dataclass(frozen=True)
class Start:
    """The solver that a fit begins with.

    weights: of its steps, (N, POINTS), from the levels (N + 1,). keeps_eps: whether it combines eps, or else D.
    """

    weights: Callable[[Tensor], Tensor]
    keeps_eps: bool

    def steps(
        self,
        denoise: Callable[[Tensor, Number], Tensor],
        z: Tensor,
        sigmas: Sequence[Number],
        told: Sequence[Number],
        weights: Sequence[Sequence[Number]],
    ) -> Iterator[Tensor]:
        """Yield z (N, ...) after each step. Levels and weights are floats, or scalars on the CPU with gradients."""
        past: list[Tensor] = []
        for (sigma, sigma_next), level, row in zip(pairwise(sigmas), told, weights, strict=True):
            denoised = denoise(z, level)
            past = [(z - denoised) / level if self.keeps_eps else denoised, *past[: POINTS - 1]]
            mean = row[0] * past[0]
            for weight, value in zip(row[1:], past[1:], strict=False):
                mean = mean + weight * value
            z = (_with_eps if self.keeps_eps else _with_denoised)(z, sigma, sigma_next, mean)
            yield z


def at_steps(numbers: Numbers, start: Start, steps: int) -> Numbers:
    """Numbers for another number of steps, interpolated over the share of the steps that are done.

    They are the logarithms of the levels, the ratios of the levels told to them, and what the weights have beside those
    of the start.
    """
    if steps == len(numbers.told):
        return numbers
    old = torch.tensor(numbers.sigmas, dtype=torch.float64)
    told, weights = (torch.tensor(values, dtype=torch.float64) for values in (numbers.told, numbers.weights))
    above = old[old > 0]  # the step to 0 has no logarithm
    levels = _resampled(above.log()[:, None], steps + len(above) - len(told))[:, 0].exp()
    sigmas = torch.cat([levels, old[len(above) :]])
    ratios = _resampled((told / old[:-1]).log()[:, None], steps)[:, 0].exp()
    change = _resampled(weights - start.weights(old), steps)
    used = torch.ones_like(change).tril()
    return Numbers.of(sigmas, ratios * sigmas[:-1], start.weights(sigmas) + change * used)


def _resampled(values: Tensor, count: int) -> Tensor:
    """Rows of values (n, d) at `count` even places from the first to the last, linearly interpolated: (count, d)."""
    places = torch.linspace(0, len(values) - 1, count, dtype=values.dtype)
    lower = places.floor().long()
    upper = (lower + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[lower], values[upper], (places - lower)[:, None])


STARTS = {"ipndm": Start(ipndm_weights, True), "dpmpp_2m": Start(dpmpp_2m_weights, False)}
"""ipndm: iPNDM, which combines eps.
Source: Zhang and Chen 2023, arXiv 2204.13902

dpmpp_2m: DPM-Solver++ (2M), which combines D.
Source: Lu et al. 2022, arXiv 2211.01095
"""
FITS = ("times", "coefficients", "both")
"""times: The noise levels; the weights follow from them as in the start.
Source: Tong et al. 2024, arXiv 2405.15506 (LD3)

coefficients: The weights, at the levels of the start.
Source: Frankel et al. 2025, arXiv 2502.17423 (S4S)

both: The noise levels and the weights.
Source: Frankel et al. 2025, arXiv 2502.17423 (S4S-Alt); arXiv 2510.17699 (GS)
"""
TOLD = ("state", "fitted")
"""state: The network is told the noise level of the state.

fitted: The network is told a fitted level.
Source: Tong et al. 2024, arXiv 2405.15506; arXiv 2603.11607 (DyWeight)
"""


@dataclass(frozen=True)
class Fitted:
    """A fitted solver; without numbers it cannot run."""

    start: Start
    numbers: Numbers | None
    order = None
    stages = 1
    variable = "ln sigma"
    stochastic = False
    adaptive = False

    def evaluations(self, steps: int) -> int:
        return steps

    def run(self, ode: Ode, z: Tensor, sigmas: Sequence[float], randn_like: RandnLike) -> Iterator[Tensor]:
        if self.numbers is None:
            raise StudyError("solver fitted: not fitted to a model yet; see pipeline.sampling.fitting.fit")
        return self.start.steps(ode.denoise, z, sigmas, self.numbers.told, self.numbers.weights)


def fitted(fit: str, told: str, start: str, fit_images: int, numbers: Numbers | None) -> Fitted:
    """Fitted to the model: levels, weights and levels told that end nearest to where a fine solution ends.

    `fit` and `told` choose which of the numbers are free, `start` the solver that they begin as.

    Formula: r z + (1 - r) sum_j w_j D_j, or z + (sigma_next - sigma) sum_j w_j eps_j
    Source: Tong et al. 2024, arXiv 2405.15506; Frankel et al. 2025, arXiv 2502.17423
    """
    return Fitted(STARTS[start], numbers)
