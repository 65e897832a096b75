"""The sampling loop: from standard normal noise to samples, with its network evaluations counted."""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.devices import state_type
from pipeline.common.errors import NotFinite, StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.sampling.counting import Counted
from pipeline.sampling.ode import Ode, RandnLike
from pipeline.sampling.protocols import FIRST_STEPS
from pipeline.sampling.row import Sampler


@dataclass(frozen=True)
class Samples:
    """x0 (N, ...) in the solver's precision, and the number of network calls that each sample cost."""

    x0: Tensor
    nfe: int


def draw_like(x: Tensor) -> Tensor:
    """Standard normal noise of x's shape. It is drawn in float32, which is five times as fast as in float64."""
    return torch.randn(x.shape, device=x.device).to(x.dtype)


def ode_of(sampler: Sampler, denoiser: DenoiserFunction) -> Ode:
    """The ODE that a sampler's solver integrates once; an analytic first step answers the first call."""
    answers = FIRST_STEPS[sampler.first_step](denoiser)
    return Ode(answers, sampler.build_schedule(), sampler.build_scaling(), sampler.build_threshold())


@torch.no_grad()
def sample(
    denoiser: DenoiserFunction,
    noise: Tensor,
    sampler: Sampler,
    steps: int,
    randn_like: RandnLike = draw_like,
    end: float = 0.0,
) -> Samples:
    """Solve the sampler's ODE or SDE from sigma_max to its end in `steps` steps (EDM, Algorithms 1 and 2; any solver).

    end: the noise level at which it stops instead; the samples then keep this noise.

    denoiser(z, sigma) -> D, with z (N, ...) and sigma a float64 scalar on the CPU. If the sampler has guidance, the
    denoiser is already guided (`pipeline.sampling.guidance`); calls of all its networks count. For variance learned it
    answers D and v, see `Denoiser.with_variance`. D is then thresholded, if the sampler does so. noise: standard
    normal, (N, ...), on the denoiser's device. randn_like(x) returns noise of x's shape; only stochastic solvers call
    it. The state is float64, or float32 on devices without it.

    Raises NotFinite if an answer of the denoiser or a sample is not finite; the message names step and sigma.
    """
    counted = Counted(denoiser)
    sampler = sampler.ending_at(end)
    ode = ode_of(sampler, counted)
    sigmas = sampler.grid(steps).tolist()  # falling
    z = noise.to(state_type(noise.device)) * sigmas[0]  # z_0 ~ N(0, sigma_0^2 I)
    nfe_by_step: list[int] = []
    try:
        for z_next in sampler.build_solver().run(ode, z, sigmas, randn_like):  # one step, sigma_i to sigma_(i+1)
            z = z_next
            nfe_by_step.append(counted.nfe)
    except StudyError:  # an adaptive solver gives up on answers that are not finite
        _check_finite(counted, z, nfe_by_step, steps)
        raise
    except ArithmeticError as error:
        raise NotFinite(f"step {len(nfe_by_step) + 1} of {steps}: out of the range of float64: {error}") from None
    _check_finite(counted, z, nfe_by_step, steps)
    return Samples(z, counted.nfe)


def _check_finite(counted: Counted, z: Tensor, nfe_by_step: list[int], steps: int) -> None:
    """Raise NotFinite if an answer of the denoiser or z is not finite. nfe_by_step: calls until the end of each step.

    All answers are checked at once after the last step, because each check waits for the device.
    """
    first = counted.not_finite(z)
    if first == counted.nfe:
        raise NotFinite(f"step {len(nfe_by_step)} of {steps}: the samples are not finite")
    if first is not None:
        step, sigma = bisect_right(nfe_by_step, first) + 1, float(counted.sigmas[first])
        raise NotFinite(f"step {step} of {steps}, sigma {sigma:.4g}: the denoiser's answer is not finite")
