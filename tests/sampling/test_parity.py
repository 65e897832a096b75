"""Equality with implementations that are not ours: diffusers, torchdiffeq, and the papers' formulas written out here.

Every comparison runs both on an exact denoiser, from the same noise and with the same draws. diffusers computes in
float32; within `in_double` that word means float64 to its modules, so that equal means equal to 9 digits and more.
`PEERS`, at the end, says for each solver which tests those are.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import islice, pairwise
from statistics import linear_regression
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor
from torchdiffeq import odeint

from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Gaussian, Mixture, flow
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES, VP_BETA_D, VP_BETA_MIN, VP_PUBLISHED, Schedule
from pipeline.sampling.loop import sample
from pipeline.sampling.multistep import Evaluation, deis, dpmpp_3m, exp_adams
from pipeline.sampling.ode import Ode, Solver
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.sampling.stochastic import EulerMaruyama

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers and torchdiffeq

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


def every_other(sigmas: Sequence[float]) -> list[float]:
    """The levels of whole steps, from all levels of a second-order scheduler."""
    return [*sigmas[::2], 0.0]


@all_steps
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(steps: int, spacing: str, eta: float) -> None:
    """With linspace, or where `steps` does not divide 1000 with trailing, diffusers evaluates at other noise levels
    than it steps to: it always steps by 1000 // steps."""
    if spacing == "trailing" and 1000 % steps:
        pytest.skip("diffusers steps by 1000 // steps, whatever its timesteps are")
    with in_double(DDIMScheduler):
        scheduler = made(DDIMScheduler, steps, clip_sample=False, timestep_spacing=spacing, **BETAS)
        sigmas = levels(scheduler)
        arguments: dict[str, Any] = {"eta": iter([eta] * steps), "variance_noise": iter(DRAWS)}
        theirs = follow(scheduler, VP, **arguments)[-1]
    assert_equal(ours(on_grid(sigmas, solver="ddim", eta=eta), steps), theirs)
    assert_equal(ours(Sampler(solver="ddim", eta=eta, discretization="ddpm", spacing=spacing), steps), theirs)


@all_steps
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(("variance", "theirs"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
def test_ddpm_is_that_of_diffusers(steps: int, spacing: str, variance: str, theirs: str) -> None:
    """In their last step, unless it is from timestep 0, theirs adds noise: ours never does. With fixed_small it has the
    variance 1e-20, so that ten digits hold of it; with fixed_large a full one, so that it is left out."""
    with in_double(DDPMScheduler):
        config = {"clip_sample": False, "timestep_spacing": spacing, "variance_type": theirs, **BETAS}
        scheduler = made(DDPMScheduler, steps, **config)
        sigmas, found = levels(scheduler), follow(scheduler, VP)
    row = on_grid(sigmas, solver="ddpm", variance=variance)
    mine = states(row, sigmas)
    for one, other in zip(mine[:-1], found[:-1], strict=True):
        assert_equal(one, other)
    if spacing != "trailing" or variance == "beta_tilde":
        assert_equal(ours(row, steps), found[-1], rtol=1e-8)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddpm_levels_are_those_of_diffusers(spacing: str) -> None:
    """But for one step of linspace, which starts at the smallest level there. (At other numbers of steps some fraction
    is a half but for rounding, and then the level may be the next one.)"""
    with in_double(DDPMScheduler):
        scheduler: Any = DDPMScheduler(timestep_spacing=spacing, **BETAS)
        for steps in [1, 2, 3, 4, 5, 7, 10, 14, 15, 18, 20, 25, 32, 40, 50, 64, 99, 100, 128, 200, 250, 256, 500, 1000]:
            if (spacing, steps) != ("linspace", 1):
                scheduler.set_timesteps(steps)
                grid = Sampler(discretization="ddpm", spacing=spacing).grid(steps)
                torch.testing.assert_close(grid, torch.tensor(levels(scheduler)), rtol=1e-11, atol=0)


@pytest.mark.parametrize("steps", STEPS[1:])
def test_log_snr_levels_are_those_of_diffusers(steps: int) -> None:
    """Its use_lu_lambdas, on DDPM's range."""
    with in_double(DPMSolverMultistepScheduler):
        sigmas = levels(made(DPMSolverMultistepScheduler, steps, use_lu_lambdas=True, **BETAS))
    row = Sampler(discretization="log_snr", sigma_min=sigmas[-2], sigma_max=sigmas[0])
    torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-12, atol=0)


@all_steps
def test_euler_is_that_of_diffusers(steps: int) -> None:
    with in_double(EulerDiscreteScheduler):
        scheduler = made(EulerDiscreteScheduler, steps, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VE)[-1]
    for row in ({"solver": "euler"}, {"solver": "ddim"}, {"solver": "euler", "schedule": "flow"}):
        assert_equal(ours(on_grid(sigmas, **row), steps), theirs)


@all_steps
@pytest.mark.parametrize(("grid", "spaced"), [("edm", "karras"), ("exponential", "exponential")])
def test_euler_and_its_grids_are_those_of_diffusers_for_edm(steps: int, grid: str, spaced: str) -> None:
    """One step of their exponential grid starts at sigma_min."""
    with in_double(EDMEulerScheduler):
        scheduler = made(EDMEulerScheduler, steps, sigma_schedule=spaced, sigma_data=SIGMA_DATA)
        sigmas, theirs = levels(scheduler), follow(scheduler, EDM)[-1]
    row = Sampler(solver="euler", discretization=grid)
    if (steps, spaced) != (1, "exponential"):
        torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=0)
        assert_equal(ours(row, steps), theirs)


CHURN: dict[str, Any] = {"S_churn": 4.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}  # capped up to 9 steps


@all_steps
@pytest.mark.parametrize(
    ("scheduler", "kind", "config"),
    [(EulerDiscreteScheduler, VE, {"use_karras_sigmas": True, **BETAS}), (EDMEulerScheduler, EDM, {})],
)
def test_churn_is_that_of_diffusers(steps: int, scheduler: type, kind: Kind, config: dict[str, Any]) -> None:
    """diffusers adds the noise after it is given the network's answer, which is thus one for too little noise: here it
    is given the answer that Algorithm 2 asks for, at the raised sigma."""
    names = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise"}
    theirs = {names[key]: value for key, value in CHURN.items()}
    with in_double(scheduler):
        built = made(scheduler, steps, **config)
        sigmas, draws, z = levels(built), iter(DRAWS), NOISE * levels(built)[0]
        for t, sigma in zip(built.timesteps, sigmas, strict=False):
            built.scale_model_input(z, t)
            raised, hat = sigma, z
            if CHURN["S_min"] <= sigma <= CHURN["S_max"]:
                raised = sigma * (1 + min(CHURN["S_churn"] / steps, math.sqrt(2) - 1))
                hat = z + CHURN["S_noise"] * math.sqrt(raised**2 - sigma**2) * next(draws)
            answer = kind.answer(MIXTURE(hat, torch.tensor(raised)), hat, raised)
            z = built.step(answer, t, z, **theirs).prev_sample
    assert_equal(ours(on_grid(sigmas, solver="euler", **CHURN), steps), z)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("karras", [False, True])
def test_heun_is_that_of_diffusers(steps: int, karras: bool) -> None:
    """From two steps on, because one step begins at their smallest level."""
    with in_double(HeunDiscreteScheduler):
        scheduler = made(HeunDiscreteScheduler, steps, use_karras_sigmas=karras, **BETAS)
        sigmas, theirs = every_other(levels(scheduler)), follow(scheduler, VE)[-1]
    assert len(sigmas) == steps + 1
    assert_equal(ours(on_grid(sigmas, solver="heun"), steps), theirs)
    if karras:
        row = Sampler(discretization="edm", rho=7, sigma_min=sigmas[-2], sigma_max=sigmas[0])
        assert_equal(ours(row, steps), theirs)


@all_steps
@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_dpmpp_2m_is_that_of_diffusers(steps: int, rho: float) -> None:
    with in_double(EDMDPMSolverMultistepScheduler):
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, solver_order=2, rho=rho), EDM)[-1]
    assert_equal(ours(Sampler(solver="dpmpp_2m", rho=rho), steps), theirs)
    with in_double(DPMSolverMultistepScheduler):
        scheduler = made(DPMSolverMultistepScheduler, steps, solver_order=2, use_karras_sigmas=True, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VP)[-1]
    assert_equal(ours(on_grid(sigmas, solver="dpmpp_2m"), steps), theirs)


@all_steps
def test_dpmpp_3m_is_that_of_diffusers(steps: int) -> None:
    """With 15 steps and more diffusers does not lower the order before its last step; ours always does."""
    with in_double(EDMDPMSolverMultistepScheduler):
        scheduler = made(EDMDPMSolverMultistepScheduler, steps, solver_order=3)
        sigmas, theirs = levels(scheduler), follow(scheduler, EDM)
    mine = states(Sampler(solver="dpmpp_3m"), sigmas)
    same = steps if steps < 15 else steps - 2
    for one, other in zip(mine[:same], theirs[:same], strict=True):
        assert_equal(one, other)
    if steps < 15:
        assert_equal(ours(Sampler(solver="dpmpp_3m"), steps), theirs[-1])


@all_steps
def test_dpmpp_of_order_1_is_ddim(steps: int) -> None:
    with in_double(EDMDPMSolverMultistepScheduler):
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, solver_order=1), EDM)[-1]
    for row in ({"solver": "ddim"}, {"solver": "exp_adams", "order": 1}):
        assert_equal(ours(Sampler(**row), steps), theirs)


@all_steps
def test_exp_adams_of_order_2_is_dpmpp_2m_of_diffusers_in_its_form_heun(steps: int) -> None:
    """The form of 2M that does not simplify its second weight."""
    with in_double(EDMDPMSolverMultistepScheduler):
        config: dict[str, Any] = {"solver_order": 2, "solver_type": "heun"}
        theirs = follow(made(EDMDPMSolverMultistepScheduler, steps, **config), EDM)[-1]
    assert_equal(ours(Sampler(solver="exp_adams", order=2), steps), theirs)


@all_steps
@pytest.mark.parametrize(
    ("scheduler", "kind"), [(EDMDPMSolverMultistepScheduler, EDM), (DPMSolverMultistepScheduler, VP)]
)
def test_dpmpp_2m_sde_is_that_of_diffusers(steps: int, scheduler: type, kind: Kind) -> None:
    with in_double(scheduler):
        config: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
        built = made(scheduler, steps, **config)
        sigmas, theirs = levels(built), follow(built, kind)[-1]
    assert_equal(ours(on_grid(sigmas, solver="dpmpp_2m_sde"), steps), theirs)


def with_middles(sigmas: Sequence[float]) -> list[float]:
    """A grid with the middle in ln sigma of each step but the last."""
    inner = [level for a, b in pairwise(sigmas[:-1]) for level in (a, math.sqrt(a * b))]
    return [*inner, *sigmas[-2:]]


@all_steps
def test_dpmpp_2s_is_that_of_diffusers(steps: int) -> None:
    """Theirs takes every second level of its grid for the middle of a step; here they are middles in ln sigma."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(DPMSolverSinglestepScheduler):
        scheduler = made(DPMSolverSinglestepScheduler, 2 * steps - 1, with_middles(sigmas), solver_order=2)
        theirs = follow(scheduler, VP)[-1]
    assert_equal(ours(Sampler(solver="dpmpp_2s"), steps), theirs)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dpm_solver_2_is_that_of_diffusers(steps: int) -> None:
    """Up to the last step, which theirs can't take into 0: their formula is 0 times infinity there."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(DPMSolverSinglestepScheduler):
        config = {"solver_order": 2, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
        scheduler = made(DPMSolverSinglestepScheduler, 2 * steps - 1, with_middles(sigmas), **config)
        theirs = follow(scheduler, VP)
    for one, other in zip(states(Sampler(solver="dpm_solver_2"), sigmas)[:-1], theirs[1:-1:2], strict=True):
        assert_equal(one, other)


@all_steps
@pytest.mark.parametrize("karras", [False, True])
def test_dpm_solver_2_is_kdpm_2_of_diffusers(steps: int, karras: bool) -> None:
    """Karras' DPM2: a step of DPM-Solver-2, the last one of Euler's."""
    with in_double(KDPM2DiscreteScheduler):
        scheduler = made(KDPM2DiscreteScheduler, steps, use_karras_sigmas=karras, **BETAS)
        sigmas, theirs = every_other(levels(scheduler)), follow(scheduler, VE)[-1]
    assert_equal(ours(on_grid(sigmas, solver="dpm_solver_2"), steps), theirs)


@all_steps
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_that_of_diffusers(steps: int, order: int) -> None:
    sigmas = Sampler().grid(steps).tolist()
    with in_double(UniPCMultistepScheduler):
        config = {"solver_order": order, "solver_type": "bh2", "predict_x0": True, **BETAS}
        theirs = [
            follow(made(UniPCMultistepScheduler, steps, sigmas, **config), VP)[-1],
            follow(scheduler := made(UniPCMultistepScheduler, steps, **config), VP)[-1],
        ]
        other = levels(scheduler)
    assert_equal(ours(on_grid(sigmas, solver="unipc", order=order), steps), theirs[0])
    assert_equal(ours(on_grid(other, solver="unipc", order=order), steps), theirs[1])


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho_is_that_of_diffusers(steps: int, order: int) -> None:
    """Theirs interpolates in ln sigma, ours in the schedule's time: one whose time is ln sigma makes both the same.
    Theirs ends at the last level above 0."""
    log_time = Schedule(torch.exp, torch.exp, torch.log)
    with in_double(DEISMultistepScheduler):
        scheduler = made(DEISMultistepScheduler, steps, solver_order=order, lower_order_final=False, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VP)
    mine = deis(order).run(Ode(MIXTURE, log_time, SCALINGS["none"]), NOISE * sigmas[0], sigmas, drawn())
    for one, other in zip(mine, theirs, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("steps", STEPS[1:])
def test_ipndm_is_that_of_diffusers(steps: int) -> None:
    """Up to the last step, which theirs takes at full order. It has its noise levels from its betas, which are our
    sigma / sqrt(1 + sigma^2), and adds them to its network's answer to get eps."""
    sigmas = Sampler().grid(steps).tolist()
    with in_double(IPNDMScheduler):
        scheduler: Any = IPNDMScheduler(trained_betas=[sigma * VP.scale(sigma) for sigma in sigmas])
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        x, theirs = NOISE * sigmas[0] * VP.scale(sigmas[0]), []
        for i, t in enumerate(scheduler.timesteps[:-1]):
            z = x / VP.scale(sigmas[i])
            noise = eps(MIXTURE(z, torch.tensor(sigmas[i])), z, sigmas[i])
            x = scheduler.step((noise - x * scheduler.betas[i]) / scheduler.alphas[i], t, x).prev_sample
            theirs.append(x / VP.scale(sigmas[i + 1]))
    mine = states(Sampler(solver="ipndm"), sigmas)
    for one, other in zip(mine[:-1], theirs, strict=True):
        assert_equal(one, other)
    assert_equal(mine[-1], MIXTURE(theirs[-1], torch.tensor(sigmas[-2], dtype=F64)))


@all_steps
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_that_of_diffusers(steps: int, order: int) -> None:
    with in_double(LMSDiscreteScheduler):
        scheduler = made(LMSDiscreteScheduler, steps, **BETAS)
        sigmas, theirs = levels(scheduler), follow(scheduler, VE, order=iter([order] * steps))[-1]
    assert_equal(ours(on_grid(sigmas, solver="lms", order=order), steps), theirs)


@all_steps
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("solver", "scheduler"), [("euler", FlowMatchEulerDiscreteScheduler), ("heun", FlowMatchHeunDiscreteScheduler)]
)
def test_flow_matching_is_that_of_diffusers(steps: int, shift: float, solver: str, scheduler: Any) -> None:
    """Theirs begins at t = 1, sigma = infinity, and ends its grid at t = 1 / 1000, shifted before it is shifted again:
    here at what our sigma_max is before the shift, and at as much of it as is left before the last step."""
    row = Sampler(solver=solver, schedule="flow", discretization="flow", shift=shift)
    _, high = row.sigma_range
    start = high / shift / (1 + high / shift)
    with in_double(scheduler):
        built = scheduler(shift=shift)
        built.sigma_max, built.sigma_min = start, start / steps
        built.set_timesteps(steps)
        sigmas, theirs = levels(built), follow(built, FLOW)[-1]
    if solver == "heun":
        sigmas = every_other(sigmas)
    torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=1e-15)
    assert_equal(ours(row, steps), theirs)


def score(z: Tensor, sigma: float) -> Tensor:
    return (MIXTURE(z, torch.tensor(sigma, dtype=F64)) - z) / sigma**2


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_euler_maruyama_is_the_ve_sampler_of_diffusers(steps: int, corrections: int) -> None:
    """In t = sigma^2, up to the last step, which is the predictor's there and adds noise. Their Langevin steps have
    |n| / |score|, means over the batch, where ours have sigma: their snr is chosen anew before each to make up for it.
    """
    config: dict[str, Any] = {"diffusion": 1.0, "corrector_steps": corrections, "corrector_snr": 0.15}
    row = Sampler(solver="euler_maruyama", schedule="ve", discretization="ve", **config)
    sigmas = row.grid(steps).tolist()
    with in_double(ScoreSdeVeScheduler):
        low, high = row.sigma_range
        scheduler: Any = ScoreSdeVeScheduler(sigma_min=low, sigma_max=high)
        scheduler.set_timesteps(steps)
        scheduler.set_sigmas(steps)
        torch.testing.assert_close(scheduler.discrete_sigmas.flip(0), row.grid(steps)[:-1], rtol=1e-12, atol=0)
        z, theirs, draws = NOISE * sigmas[0], [], iter(DRAWS)
        for i, t in enumerate(scheduler.timesteps[:-1]):
            z = scheduler.step_pred(score(z, sigmas[i]), t, z).prev_sample
            next(draws)
            for _ in range(corrections):
                answer = score(z, sigmas[i + 1])
                ratio = next(draws).flatten(1).norm(dim=1).mean() / answer.flatten(1).norm(dim=1).mean()
                scheduler.register_to_config(snr=0.15 * sigmas[i + 1] / float(ratio))
                z = scheduler.step_correct(answer, z).prev_sample
            theirs.append(z)
    for one, other in zip(states(row, sigmas)[:-1], theirs, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("steps", STEPS[1:])
def test_euler_maruyama_is_the_vp_sampler_of_diffusers(steps: int) -> None:
    """In VP's time, with their step of 1 / steps."""
    times = [1 - i / steps for i in range(steps)]
    sigmas = VP_PUBLISHED.sigma(torch.tensor(times, dtype=F64)).tolist()
    with in_double(ScoreSdeVpScheduler):
        scheduler = ScoreSdeVpScheduler(beta_min=VP_BETA_MIN, beta_max=VP_BETA_MIN + VP_BETA_D)
        scheduler.set_timesteps(steps)
        x, theirs = NOISE * sigmas[0] * VP.scale(sigmas[0]), []
        for t, sigma, sigma_next in zip(times, sigmas, sigmas[1:], strict=False):
            z = x / VP.scale(sigma)
            answer = eps(MIXTURE(z, torch.tensor(sigma)), z, sigma)
            x, _ = scheduler.step_pred(answer, x, torch.tensor(t, dtype=F64))
            theirs.append(x / VP.scale(sigma_next))
    ode = Ode(MIXTURE, VP_PUBLISHED, SCALINGS["vp"])
    mine = EulerMaruyama(1.0, 0, 0.1).run(ode, NOISE * sigmas[0], sigmas, drawn())
    for one, other in zip(mine, theirs, strict=True):
        assert_equal(one, other)


def order_of(errors: dict[int, float]) -> float:
    return -linear_regression([math.log(n) for n in errors], [math.log(e) for e in errors.values()]).slope


@cache
def truth(steps: int) -> list[Tensor]:
    """The exact flow at the levels of `log_levels`."""
    z, found = MIXTURE.means[0] + NOISE * log_levels(steps)[0], []
    for sigma, sigma_next in pairwise([log_levels(steps)[0], *log_levels(steps)]):
        z = flow(MIXTURE, z, sigma, sigma_next) if sigma_next < sigma else z
        found.append(z)
    return found


def log_levels(steps: int) -> list[float]:
    """From BEGIN to END in equal steps of ln sigma, with two before."""
    return [BEGIN * (END / BEGIN) ** ((i - 2) / steps) for i in range(steps + 3)]


def test_3m_as_released_is_of_order_2() -> None:
    """It gives the second derivative half of its weight, 1 / 2 - phi_2 / h where the integral of exp(s) s^2 / 2 has
    twice that; exp_adams of order 3 has the whole. All from exact evaluations before the first step."""
    errors: dict[str, dict[int, float]] = {"theirs": {}, "ours": {}, "exp_adams": {}}
    for steps in (32, 64, 128):
        sigmas, exact = log_levels(steps), truth(steps)
        before = [MIXTURE(exact[i], torch.tensor(sigmas[i], dtype=F64)) for i in (0, 1)]
        with in_double(EDMDPMSolverMultistepScheduler):
            config = {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
            scheduler = made(EDMDPMSolverMultistepScheduler, steps + 2, sigmas, **config)
            scheduler.model_outputs, scheduler.lower_order_nums = [None, *before], 3
            scheduler.set_begin_index(2)
            z = exact[2]
            for t, sigma in zip(scheduler.timesteps[2:], sigmas[2:-1], strict=True):
                z = scheduler.step(edm_network(MIXTURE(z, torch.tensor(sigma)), z, sigma), t, z).prev_sample
        errors["theirs"][steps] = float((z - exact[-1]).square().mean().sqrt())
        known = [Evaluation(sigmas[i], before[i]) for i in (1, 0)]
        further = [*sigmas[2:], 0.9 * END, 0.8 * END]  # so that no order is lowered
        for name, solver in (("ours", dpmpp_3m()), ("exp_adams", exp_adams(3))):
            run = solver.run(ode_of("linear", "none"), exact[2], further, drawn(), known)
            end = next(islice(run, steps - 1, None))
            errors[name][steps] = float((end - exact[-1]).square().mean().sqrt())
            if name == "ours":
                assert_equal(end, z)
    assert order_of(errors["theirs"]) == pytest.approx(2, abs=0.15), errors
    assert order_of(errors["exp_adams"]) == pytest.approx(3, abs=0.15), errors


# The papers' formulas.


class Formulas(NamedTuple):
    """sigma(t), its derivative and its inverse, in plain floats."""

    sigma: Callable[[float], float]
    sigma_dot: Callable[[float], float]
    t: Callable[[float], float]


def vp_formulas(low: float, high: float) -> Formulas:
    """EDM, Table 1, with the constants that give this range."""
    eps_s, log_low, log_high = 1e-3, math.log(low**2 + 1), math.log(high**2 + 1)
    b_d = 2 * (log_low / eps_s - log_high) / (eps_s - 1)
    b_min = log_high - b_d / 2

    def sigma(t: float) -> float:
        return math.sqrt(math.expm1(b_d * t * t / 2 + b_min * t))

    def sigma_dot(t: float) -> float:
        return (b_min + b_d * t) * (1 + sigma(t) ** 2) / (2 * sigma(t))

    return Formulas(sigma, sigma_dot, lambda s: (math.sqrt(b_min**2 + 2 * b_d * math.log1p(s**2)) - b_min) / b_d)


FORMULAS: dict[str, Callable[[float, float], Formulas]] = {
    "vp": vp_formulas,
    "ve": lambda low, high: Formulas(math.sqrt, lambda t: 1 / (2 * math.sqrt(t)), lambda s: s * s),
    "linear": lambda low, high: Formulas(lambda t: t, lambda t: 1.0, lambda s: s),
}


@cache
def cosine_levels() -> list[float]:
    """iDDPM's u_0 > ... > u_M = 0."""
    c_1, c_2, m = 0.001, 0.008, 1000
    abar = [math.sin(math.pi / 2 * j / (m * (c_2 + 1))) ** 2 for j in range(m + 1)]
    u = [0.0]
    for j in range(m, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(abar[j - 1] / abar[j], c_1) - 1))
    return u[::-1]


def published_grid(name: str, n: int) -> list[float]:
    """sigma_0 > ... > sigma_N = 0, over the range that each grid was published with."""
    share = [i / max(n - 1, 1) for i in range(n)]
    match name:
        case "vp":
            sigmas = [math.sqrt(math.expm1(19.9 / 2 * t**2 + 0.1 * t)) for t in (1 + i * (1e-3 - 1) for i in share)]
        case "ve":
            sigmas = [math.sqrt(100**2 * (0.02**2 / 100**2) ** i) for i in share]
        case "iddpm":
            levels_left = [u for u in cosine_levels() if 0.002 <= u <= 81]
            sigmas = [levels_left[round((len(levels_left) - 1) * i)] for i in share]
        case _:
            sigmas = [(80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in share]
    return [*sigmas, 0.0]


RANGES = {"vp": (published_grid("vp", 2)[1], published_grid("vp", 2)[0]), "ve": (0.02, 100.0)}
RANGES |= {"iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}


def edm_sampler(
    sigmas: Sequence[float], formulas: Formulas, scaled: bool, alpha: float | None, churn: dict[str, Any] | None
) -> Tensor:
    """Karras et al. 2022: Algorithm 2 on the ODE of eq. 81, of any schedule and of s = 1 or 1 / sqrt(1 + sigma^2), with
    the second-order family of appendix D.2; alpha None: Euler. The last step, into 0, is Euler's."""

    def s(t: float) -> float:
        return 1 / math.sqrt(1 + formulas.sigma(t) ** 2) if scaled and t else 1.0

    def s_dot(t: float) -> float:
        return -formulas.sigma(t) * formulas.sigma_dot(t) * s(t) ** 3 if scaled else 0.0

    def slope(x: Tensor, t: float) -> Tensor:
        sigma, sigma_dot = formulas.sigma(t), formulas.sigma_dot(t)
        denoised = MIXTURE(x / s(t), torch.tensor(sigma, dtype=F64))
        return (sigma_dot / sigma + s_dot(t) / s(t)) * x - sigma_dot * s(t) / sigma * denoised

    n, draws = len(sigmas) - 1, iter(DRAWS)
    times = [*(formulas.t(sigma) for sigma in sigmas[:-1]), 0.0]
    x = NOISE * sigmas[0] * s(times[0])
    for i in range(n):
        t_hat, x_hat = times[i], x
        if churn and churn["S_min"] <= sigmas[i] <= churn["S_max"]:
            gamma = min(churn["S_churn"] / n, math.sqrt(2) - 1)
            t_hat = formulas.t(sigmas[i] + gamma * sigmas[i])
            added = math.sqrt((1 + gamma) ** 2 - 1) * sigmas[i] * churn["S_noise"]
            x_hat = s(t_hat) / s(times[i]) * x + s(t_hat) * added * next(draws)
        h, d = times[i + 1] - t_hat, slope(x_hat, t_hat)
        x = x_hat + h * d
        if alpha and i < n - 1:
            d_prime = slope(x_hat + alpha * h * d, t_hat + alpha * h)
            x = x_hat + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x


@pytest.mark.parametrize("alpha", [None, 1.0, 2 / 3, 0.5])
@pytest.mark.parametrize("grid", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize("churn", [None, CHURN])
def test_edm_sampler(alpha: float | None, grid: str, schedule: str, scaling: str, churn: dict[str, Any] | None) -> None:
    row = Sampler(
        **({"solver": "heun", "alpha": alpha} if alpha else {"solver": "euler"}),
        **(churn or {}),
        discretization=grid,
        schedule=schedule,
        scaling=scaling,
    )
    for steps in (1, 2, 3, 18):
        sigmas = published_grid(grid, steps)
        torch.testing.assert_close(row.grid(steps), torch.tensor(sigmas, dtype=F64), rtol=1e-11, atol=0)
        theirs = edm_sampler(sigmas, FORMULAS[schedule](*RANGES[grid]), scaling == "vp", alpha, churn)
        assert_equal(ours(row, steps), theirs)
        if alpha == 0.5 and not churn:
            midpoint = Sampler(solver="midpoint", discretization=grid, schedule=schedule, scaling=scaling)
            assert_equal(ours(midpoint, steps), theirs)


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


@cache
def slope_in(schedule: str, scaling: str) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt of x = s z, where dz/dsigma = (z - D) / sigma, by autograd."""
    sigma_at, scale = sigma_of_t(schedule), S_OF_SIGMA[scaling]
    derivative = torch.func.jacfwd(lambda t: torch.stack([sigma_at(t), scale(sigma_at(t))]))

    def slope(t: Tensor, x: Tensor) -> Tensor:
        sigma, (sigma_dot, s_dot) = sigma_at(t), derivative(t)
        z = x / scale(sigma)
        return s_dot * z + scale(sigma) * sigma_dot * (z - MIXTURE(z, sigma)) / sigma

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


def classical(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    for t, t_next in pairwise(times):
        h = t_next - t
        k_1 = slope(t, x)
        k_2 = slope(t + h / 2, x + h / 2 * k_1)
        k_3 = slope(t + h / 2, x + h / 2 * k_2)
        k_4 = slope(t_next, x + h * k_3)
        x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x


def solved(solver: Solver, ode: Ode, times: Tensor) -> Tensor:
    """x at the last time."""
    sigmas = ode.schedule.sigma(times).tolist()
    *_, z = solver.run(ode, BEGIN * NOISE, sigmas, drawn())
    return ode.s(END) * z


@all_schedules
@all_scalings
def test_slope_and_runge_kutta_are_those_of_torchdiffeq(schedule: str, scaling: str) -> None:
    ode, slope, times = ode_of(schedule, scaling), slope_in(schedule, scaling), times_between(schedule, 8)
    start = ode.s(BEGIN) * BEGIN * NOISE
    for t in times:
        sigma = float(ode.schedule.sigma(t))
        assert_equal(ode.slope(NOISE, sigma, float(t)), slope(t, ode.s(sigma) * NOISE))
    for name, method in {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}.items():
        solver = Sampler(solver=name).build_solver()
        assert_equal(solved(solver, ode, times), odeint(slope, start, times, method=method)[-1])
    rk4 = solved(Sampler(solver="rk4").build_solver(), ode, times)
    assert_equal(rk4, classical(slope, start, times))
    three_eighths = odeint(slope, start, times, method="rk4")[-1]
    assert_equal(rk4, three_eighths, rtol=1e-3)  # another method of order 4
    exact = odeint(slope, start, times[[0, -1]], method="dopri5", rtol=1e-8, atol=1e-8)[-1]
    assert_equal(rk4, exact, rtol=1e-3)
    assert_equal(exact, ode.s(END) * flow(MIXTURE, BEGIN * NOISE, BEGIN, END), rtol=1e-6)


@all_schedules
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_rk45_is_dopri5_of_torchdiffeq(schedule: str, tolerance: float) -> None:
    row = Sampler(solver="rk45", schedule=schedule, rtol=tolerance, atol=tolerance)
    scaling = {"linear": "none", "ve": "none", "vp": "vp", "flow": "flow", "cosine": "vp"}[schedule]
    slope, ode = slope_in(schedule, scaling), ode_of(schedule, scaling)
    ends = times_between(schedule, 1)
    start = ode.s(BEGIN) * BEGIN * NOISE
    settings: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "options": {"step_t": ends[1:]}}
    theirs = odeint(slope, start, ends, method="dopri5", **settings)[-1]
    solver = row.build_solver()
    between, last = solver.run(ode, BEGIN * NOISE, [BEGIN, END, 0.0], drawn())
    assert_equal(ode.s(END) * between, theirs)
    assert_equal(last, theirs + (0 - ends[-1]) * slope(ends[-1], theirs))


# Multistep methods with weights from scipy's quadrature.


def weights_by_quad(rate: Callable[[float], float], times: Sequence[float], t_next: float) -> list[float]:
    """The integrals of rate times Lagrange's polynomials on `times`, from times[0] to t_next."""

    def integrand(tau: float, j: int) -> float:
        return rate(tau) * math.prod((tau - t) / (times[j] - t) for i, t in enumerate(times) if i != j)

    return [quad(integrand, times[0], t_next, args=(j,), epsrel=1e-12, epsabs=1e-14)[0] for j in range(len(times))]


def exp_minus(end: float, tau: float) -> float:
    return math.exp(tau - end)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exp_adams_has_the_weights_of_its_integrals(steps: int, order: int) -> None:
    """z_next = (sigma_next / sigma) z + integral of exp(lambda - lambda_next) D, lambda = -ln sigma; fewer points at
    either end."""
    sigmas = Sampler(solver="exp_adams").grid(steps).tolist()
    z, past = NOISE * sigmas[0], list[tuple[float, Tensor]]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        past.insert(0, (-math.log(sigma), MIXTURE(z, torch.tensor(sigma, dtype=F64))))
        past = past[: min(order, steps - i)]
        if sigma_next == 0:
            z = past[0][1]
            break
        end = -math.log(sigma_next)
        weights = weights_by_quad(partial(exp_minus, end), [time for time, _ in past], end)
        z = sigma_next / sigma * z + sum(w * denoised for w, (_, denoised) in zip(weights, past, strict=True))
    row = Sampler(solver="exp_adams").model_copy(update={"order": order})
    assert_equal(ours(row, steps), z)


@all_schedules
@pytest.mark.parametrize("solver", ["deis", "lms"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_and_lms_have_the_weights_of_their_integrals(schedule: str, solver: str, order: int) -> None:
    """tAB-DEIS: z_next = z + integral of sigma'(t) eps; linear multistep: x_next = x + integral of dx/dt."""
    times = times_between(schedule, 7).tolist()
    ode = ode_of(schedule, "vp")
    sigma_at, slope = sigma_of_t(schedule), slope_in(schedule, "vp")
    rate = torch.func.jacfwd(sigma_at)
    of_deis = solver == "deis"
    scale = (lambda sigma: 1.0) if of_deis else ode.s
    speed = cache(lambda tau: float(rate(torch.tensor(tau, dtype=F64))) if of_deis else 1.0)
    x, past = scale(BEGIN) * BEGIN * NOISE, list[tuple[float, Tensor]]()
    for t, t_next in pairwise(times):
        tau = torch.tensor(t, dtype=F64)
        sigma = sigma_at(tau)
        past.insert(0, (t, eps(MIXTURE(x, sigma), x, float(sigma)) if of_deis else slope(tau, x)))
        past = past[:order]
        weights = weights_by_quad(speed, [time for time, _ in past], t_next)
        x = x + sum(w * value for w, (_, value) in zip(weights, past, strict=True))
    mine = SOLVERS[solver](order).run(ode, BEGIN * NOISE, sigma_at(torch.tensor(times, dtype=F64)).tolist(), drawn())
    *_, end = mine
    assert_equal(scale(END) * end, x)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_a_plain_loop(steps: int, order: int) -> None:
    sigmas = Sampler().grid(steps).tolist()
    z, history = NOISE * sigmas[0], list[Tensor]()
    for sigma, sigma_next in pairwise(sigmas):
        e = [eps(MIXTURE(z, torch.tensor(sigma, dtype=F64)), z, sigma), *history][:order]
        history = e
        match 1 if sigma_next == 0 else len(e):
            case 1:
                mean = e[0]
            case 2:
                mean = (3 * e[0] - e[1]) / 2
            case 3:
                mean = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
            case _:
                mean = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        z = z + (sigma_next - sigma) * mean
    assert_equal(ours(Sampler(solver="ipndm").model_copy(update={"order": order}), steps), z)


@all_schedules
@all_scalings
@pytest.mark.parametrize("diffusion", [0.0, 0.4, 1.0])
def test_euler_maruyama_is_a_plain_loop(schedule: str, scaling: str, diffusion: float) -> None:
    """EDM, eq. 6 with beta = diffusion sigma' / sigma: the ODE's slope, a further diffusion sigma' eps, and noise."""
    times = times_between(schedule, 6)
    ode, slope = ode_of(schedule, scaling), slope_in(schedule, scaling)
    sigma_at, rate = sigma_of_t(schedule), torch.func.jacfwd(sigma_of_t(schedule))
    x, draws = ode.s(BEGIN) * BEGIN * NOISE, iter(DRAWS)
    for t, t_next in pairwise(times):
        sigma, sigma_dot, h = sigma_at(t), rate(t), t_next - t
        s = S_OF_SIGMA[scaling](sigma)
        beta = diffusion * sigma_dot / sigma
        langevin = s * beta * sigma**2 * -score(x / s, float(sigma))
        x = x + h * (slope(t, x) + langevin) + s * torch.sqrt(2 * beta * -h) * sigma * next(draws)
    assert_equal(solved(EulerMaruyama(diffusion, 0, 0.1), ode, times), x)


def test_gaussian_data_end_at_the_same_place_too() -> None:
    """Data with a linear denoiser has a closed form (Gaussian.flow), without network or peer."""
    oracle = Gaussian(0.2, 0.5)
    high = torch.tensor(80.0, dtype=F64)
    expected = oracle.flow(NOISE * 80, high, torch.zeros((), dtype=F64))
    for solver in ("heun", "rk4", "dpmpp_2s", "dpmpp_3m", "unipc", "exp_adams"):
        assert_equal(ours(Sampler(solver=solver), 400, oracle), expected, rtol=2e-3)


PEERS: dict[str, tuple[Callable[..., None], ...]] = {
    "euler": (
        test_euler_is_that_of_diffusers,
        test_euler_and_its_grids_are_those_of_diffusers_for_edm,
        test_churn_is_that_of_diffusers,
        test_flow_matching_is_that_of_diffusers,
        test_edm_sampler,
        test_slope_and_runge_kutta_are_those_of_torchdiffeq,
    ),
    "heun": (
        test_heun_is_that_of_diffusers,
        test_flow_matching_is_that_of_diffusers,
        test_edm_sampler,
        test_slope_and_runge_kutta_are_those_of_torchdiffeq,
    ),
    "midpoint": (test_edm_sampler, test_slope_and_runge_kutta_are_those_of_torchdiffeq),
    "rk4": (test_slope_and_runge_kutta_are_those_of_torchdiffeq,),
    "dpm_solver_2": (test_dpm_solver_2_is_that_of_diffusers, test_dpm_solver_2_is_kdpm_2_of_diffusers),
    "dpmpp_2s": (test_dpmpp_2s_is_that_of_diffusers,),
    "rk45": (test_rk45_is_dopri5_of_torchdiffeq,),
    "dpmpp_2m": (test_dpmpp_2m_is_that_of_diffusers,),
    "dpmpp_3m": (test_dpmpp_3m_is_that_of_diffusers, test_3m_as_released_is_of_order_2),
    "exp_adams": (
        test_dpmpp_of_order_1_is_ddim,
        test_exp_adams_of_order_2_is_dpmpp_2m_of_diffusers_in_its_form_heun,
        test_exp_adams_has_the_weights_of_its_integrals,
    ),
    "unipc": (test_unipc_is_that_of_diffusers,),
    "deis": (test_deis_in_log_rho_is_that_of_diffusers, test_deis_and_lms_have_the_weights_of_their_integrals),
    "ipndm": (test_ipndm_is_that_of_diffusers, test_ipndm_is_a_plain_loop),
    "lms": (test_lms_is_that_of_diffusers, test_deis_and_lms_have_the_weights_of_their_integrals),
    "ddim": (test_ddim_is_that_of_diffusers, test_dpmpp_of_order_1_is_ddim),
    "ddpm": (test_ddpm_is_that_of_diffusers, test_ddpm_levels_are_those_of_diffusers),
    "euler_maruyama": (
        test_euler_maruyama_is_the_ve_sampler_of_diffusers,
        test_euler_maruyama_is_the_vp_sampler_of_diffusers,
        test_euler_maruyama_is_a_plain_loop,
    ),
    "dpmpp_2m_sde": (test_dpmpp_2m_sde_is_that_of_diffusers,),
}


def test_every_solver_has_a_peer() -> None:
    assert PEERS.keys() == SOLVERS.keys()
    assert all(PEERS.values())
