"""Solvers that add noise, and churn, are those of diffusers; Euler-Maruyama is a plain loop."""

import math
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from torch import Tensor

from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.schedule import SCALINGS, VP_BETA_D, VP_BETA_MIN, VP_PUBLISHED
from pipeline.sampling.loop import sample
from pipeline.sampling.ode import Ode
from pipeline.sampling.row import Sampler
from pipeline.sampling.stochastic import EulerMaruyama
from tests.sampling.peers import (
    BEGIN,
    BETAS,
    CHURN,
    DRAWS,
    EDM,
    F64,
    MIXTURE,
    NOISE,
    S_OF_SIGMA,
    STEPS,
    VE,
    VP,
    Kind,
    Peers,
    all_scalings,
    all_schedules,
    all_steps,
    assert_equal,
    drawn,
    eps,
    follow,
    in_double,
    levels,
    made,
    ode_of,
    on_grid,
    ours,
    sigma_of_t,
    slope_in,
    solved,
    states,
    times_between,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of diffusers


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


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.8], [80.0, 14.0, 2.5, 0.3]])
def test_consistency_sampling_is_that_of_diffusers(sigmas: list[float]) -> None:
    """So are the coefficients of the parametrization, which diffusers applies itself."""
    theirs = CMStochasticIterativeScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, clip_denoised=False)
    theirs.set_timesteps(len(sigmas))
    theirs.sigmas = torch.tensor([*sigmas, 0.002], dtype=F64)
    parametrization, draws = PARAMETRIZATIONS["consistency"], iter(DRAWS)

    def f(z: Tensor, sigma: Tensor) -> Tensor:  # any network
        return torch.tanh(z) * torch.log1p(sigma)

    def denoiser(z: Tensor, sigma: Tensor) -> Tensor:
        c_skip, c_out, _, _ = parametrization(sigma, 0.5)
        return c_skip * z + c_out * f(z, sigma)

    sampler = Sampler(solver="consistency", discretization="explicit", sigmas=tuple(sigmas), nfe=(len(sigmas),))
    found = sample(denoiser, NOISE, sampler, len(sigmas), lambda z: next(draws)).x0
    z, draws = NOISE * 80, iter(DRAWS)
    for i, t in enumerate(theirs.timesteps):
        noise = next(draws) if i + 1 < len(sigmas) else torch.zeros_like(z)
        with patch("diffusers.schedulers.scheduling_consistency_models.randn_tensor", lambda *a, n=noise, **k: n):
            z = theirs.step(f(z, torch.tensor(sigmas[i], dtype=F64)), t, z).prev_sample
    assert_equal(found, z)


PEERS: Peers = {
    "consistency": (test_consistency_sampling_is_that_of_diffusers,),
    "euler": (test_churn_is_that_of_diffusers,),
    "ddim": (test_ddim_is_that_of_diffusers,),
    "ddpm": (test_ddpm_is_that_of_diffusers,),
    "euler_maruyama": (
        test_euler_maruyama_is_the_ve_sampler_of_diffusers,
        test_euler_maruyama_is_the_vp_sampler_of_diffusers,
        test_euler_maruyama_is_a_plain_loop,
    ),
    "dpmpp_2m_sde": (test_dpmpp_2m_sde_is_that_of_diffusers,),
}
