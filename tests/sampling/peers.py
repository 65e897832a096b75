"""What comparisons with implementations that are not ours share: an exact denoiser, one noise, one list of draws.

diffusers computes in float32; within `in_double` that word means float64 to its modules, so that equal means equal to 9
digits and more.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from scipy.optimize import brentq
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Mixture
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.sampling.loop import sample
from pipeline.sampling.ode import Ode, Solver
from pipeline.sampling.row import Sampler

F64 = torch.float64
STEPS = [1, 2, 3, 5, 10, 14, 20]
BETAS: dict[str, Any] = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}  # DDPM's; not every scheduler's default
SIGMA_DATA = 0.5
BATCH = 5
SHAPE = (1, 2, 2)
GENERATOR = torch.Generator().manual_seed(0)
MIXTURE = Mixture(
    0.8 * torch.randn(3, *SHAPE, dtype=F64, generator=GENERATOR), torch.tensor([0.2, 0.5, 0.3], dtype=F64), 0.3
)
NOISE = torch.randn(BATCH, *SHAPE, dtype=F64, generator=GENERATOR)
DRAWS = torch.randn(64, BATCH, *SHAPE, dtype=F64, generator=GENERATOR)
BEGIN, END = 1.5, 0.6  # where only a part of the way is compared
CHURN: dict[str, Any] = {"S_churn": 4.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}  # capped up to 9 steps

Peers = dict[str, tuple[Callable[..., None], ...]]  # by solver: the tests that compare it with others

all_steps = pytest.mark.parametrize("steps", STEPS)
all_schedules = pytest.mark.parametrize("schedule", SCHEDULES)
all_scalings = pytest.mark.parametrize("scaling", SCALINGS)


def assert_equal(ours: Tensor, theirs: Tensor, rtol: float = 1e-9) -> None:
    """Equal within rtol of the largest value."""
    assert ours.dtype == theirs.dtype == F64
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))


# Ours.


def drawn() -> Callable[[Tensor], Tensor]:
    """randn_like that takes the listed draws."""
    left = iter(DRAWS)
    return lambda z: next(left)


def ours(row: Sampler, steps: int, oracle: DenoiserFunction = MIXTURE) -> Tensor:
    return sample(oracle, NOISE, row, steps, drawn()).x0


def on_grid(sigmas: Sequence[float], **row: Any) -> Sampler:
    """A sampler on a peer's noise levels, the last one 0."""
    assert sigmas[-1] == 0
    return Sampler(**row).with_grid(tuple(sigmas[:-1]))


def states(row: Sampler, sigmas: Sequence[float]) -> list[Tensor]:
    """z after each of our steps on a peer's grid."""
    ode = Ode(MIXTURE, row.build_schedule(), row.build_scaling())
    return list(row.build_solver().run(ode, NOISE * sigmas[0], sigmas, drawn()))


def ode_of(schedule: str, scaling: str) -> Ode:
    return Ode(MIXTURE, SCHEDULES[schedule](0.002, 80.0), SCALINGS[scaling])


def solved(solver: Solver, ode: Ode, times: Tensor) -> Tensor:
    """x at the last time."""
    sigmas = ode.schedule.sigma(times).tolist()
    *_, z = solver.run(ode, BEGIN * NOISE, sigmas, drawn())
    return ode.s(END) * z


# diffusers.


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@contextmanager
def in_double(scheduler: type) -> Iterator[None]:
    """In this context a scheduler of diffusers computes in float64, and its noise comes from a list."""
    module, left, before = sys.modules[scheduler.__module__], iter(DRAWS), torch.get_default_dtype()
    with ExitStack() as stack:
        for name, replacement in {
            "torch": Double(torch),
            "np": Double(np),
            "randn_tensor": lambda shape, **_: next(left),
        }.items():
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, replacement))
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(F64)
        yield


class Kind(NamedTuple):
    """A peer's state, as a multiple of z, and its network's answer, computed from D(z; sigma)."""

    scale: Callable[[float], float]
    answer: Callable[[Tensor, Tensor, float], Tensor]


def eps(denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
    return (z - denoised) / sigma


def edm_network(denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
    """F, from D = c_skip z + c_out F."""
    total = sigma**2 + SIGMA_DATA**2
    return (denoised - SIGMA_DATA**2 / total * z) / (sigma * SIGMA_DATA / math.sqrt(total))


def velocity(denoised: Tensor, z: Tensor, sigma: float) -> Tensor:
    return (z - denoised) / sigma - denoised


VE = Kind(lambda sigma: 1.0, eps)
EDM = Kind(lambda sigma: 1.0, edm_network)
VP = Kind(lambda sigma: 1 / math.sqrt(1 + sigma**2), eps)
FLOW = Kind(lambda sigma: 1 / (1 + sigma), velocity)


def levels(scheduler: Any) -> list[float]:
    """The noise levels at which a scheduler evaluates, in its order, and 0."""
    own = type(scheduler)
    if own is KDPM2DiscreteScheduler:
        pairs = zip(scheduler.sigmas, scheduler.sigmas_interpol, strict=True)
        chosen = [both[i % 2] for i, both in enumerate(pairs)]
        return [float(sigma) for sigma in chosen[: len(scheduler.timesteps)]] + [0.0]
    if own in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
        return (scheduler.sigmas / (1 - scheduler.sigmas)).tolist()
    if own in (DDIMScheduler, DDPMScheduler):
        abar = scheduler.alphas_cumprod[scheduler.timesteps]
        return [*((1 - abar) / abar).sqrt().tolist(), 0.0]
    return scheduler.sigmas.tolist()


def follow(scheduler: Any, kind: Kind, **arguments: Any) -> list[Tensor]:
    """z after each of a scheduler's steps; second-order schedulers have two for each of ours."""
    sigmas = levels(scheduler)
    assert len(sigmas) == len(scheduler.timesteps) + 1
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x, found = NOISE * sigmas[0] * kind.scale(sigmas[0]), []
    for t, sigma, sigma_next in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        z = x / kind.scale(sigma)
        answer = kind.answer(MIXTURE(z, torch.tensor(sigma, dtype=F64)), z, sigma)
        x = scheduler.step(answer, t, x, **{name: next(left) for name, left in arguments.items()}).prev_sample
        found.append(x / kind.scale(sigma_next))
    return found


def made(scheduler: type, steps: int, sigmas: Sequence[float] | None = None, **config: Any) -> Any:
    """A scheduler with `steps` steps, on our noise levels if given."""
    built = scheduler(**config)
    built.set_timesteps(steps)
    if sigmas is not None:
        assert len(sigmas) == len(built.sigmas)
        built.sigmas = torch.tensor(sigmas, dtype=F64)
    return built


# torchdiffeq, on the ODE derived from sigma(t) and s alone.

SIGMA_OF_T: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "ve": lambda t: t**0.5,
    "flow": lambda t: t / (1 - t),
    "cosine": lambda t: torch.sqrt(
        (math.cos(0.008 / 1.008 * math.pi / 2) / torch.cos((t + 0.008) / 1.008 * math.pi / 2)) ** 2 - 1
    ),
}
S_OF_SIGMA: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda sigma: sigma * 0 + 1,
    "vp": lambda sigma: 1 / (1 + sigma**2) ** 0.5,
    "flow": lambda sigma: 1 / (1 + sigma),
}


def sigma_of_t(schedule: str) -> Callable[[Tensor], Tensor]:
    if schedule != "vp":
        return SIGMA_OF_T[schedule]
    log_low, log_high = math.log1p(0.002**2), math.log1p(80.0**2)
    b_d = 2 * (log_low / 1e-3 - log_high) / (1e-3 - 1)
    return lambda t: torch.sqrt(torch.exp(b_d * t**2 / 2 + (log_high - b_d / 2) * t) - 1)


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Of a scalar's function, at t, by autograd."""
    with torch.enable_grad():
        at = t.detach().requires_grad_()
        [found] = torch.autograd.grad(function(at), at)
    return found


@cache
def slope_in(schedule: str, scaling: str) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt of x = s z, where dz/dsigma = (z - D) / sigma, by autograd."""
    sigma_at, scale = sigma_of_t(schedule), S_OF_SIGMA[scaling]

    def slope(t: Tensor, x: Tensor) -> Tensor:
        sigma, sigma_dot = sigma_at(t), derivative(sigma_at, t)
        s, s_dot = scale(sigma), derivative(lambda t: scale(sigma_at(t)), t)
        z = x / s
        return s_dot * z + s * sigma_dot * (z - MIXTURE(z, sigma)) / sigma

    return slope


@cache
def times_between(schedule: str, steps: int) -> Tensor:
    """Equal steps of t from BEGIN to END, found from sigma(t) alone."""
    sigma_at = sigma_of_t(schedule)

    def at(sigma: float) -> float:
        upper = sigma**2 + sigma if schedule in ("linear", "ve") else 0.999
        return brentq(
            lambda t: float(sigma_at(torch.tensor(t, dtype=F64))) - sigma, 1e-2, upper, xtol=1e-16, rtol=1e-15
        )

    return torch.linspace(at(BEGIN), at(END), steps + 1, dtype=F64)
