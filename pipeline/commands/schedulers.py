"""Schedulers of diffusers that take the same steps as a sampler row.

A candidate comes from the row's choices. It counts only if it makes the row's samples of an exact denoiser with the
installed diffusers, so that choices which diffusers lacks need no rules here.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.common.randomness import generator
from pipeline.diffusion.exact import Mixture
from pipeline.diffusion.schedule import DDPM_BETAS
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler

CLOSE = 1e-4  # the largest difference of samples, whose scale is 1; diffusers computes in float32
LOWERED = 15  # from so many steps on, diffusers does not lower the order of 3M before its last step
EDM_GRIDS = {"edm": "karras", "exponential": "exponential", "ve": "exponential", "log_snr": "exponential"}
EDM_SOLVERS: dict[tuple[str, int | None], dict[str, Any]] = {  # (solver, order): what is chosen
    ("euler", None): {"_class_name": "EDMEulerScheduler"},
    ("ddim", None): {"_class_name": "EDMEulerScheduler"},
    ("dpmpp_2m", None): {"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 2},
    ("dpmpp_3m", None): {"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 3},
    ("exp_adams", 2): {
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "solver_order": 2,
        "solver_type": "heun",
    },
}


def candidate(sampler: Sampler, steps: int, sigma_data: float) -> dict[str, Any] | None:
    """The scheduler_config.json nearest to a sampler row; None if diffusers has no such solver on such a grid."""
    if sampler.solver == "dpmpp_3m" and steps >= LOWERED:
        return None
    low, high = sampler.sigma_range
    ends = {"sigma_min": low, "sigma_max": high}
    solver, grid = (sampler.solver, sampler.order), sampler.discretization
    if solver in EDM_SOLVERS and grid in EDM_GRIDS:
        return {
            **EDM_SOLVERS[solver],
            **ends,
            "rho": sampler.rho,
            "sigma_data": sigma_data,
            "sigma_schedule": EDM_GRIDS[grid],
        }
    shared = {"beta_start": DDPM_BETAS[0], "beta_end": DDPM_BETAS[1], "prediction_type": "sample"}
    if sampler.solver == "unipc" and grid == "edm":
        order = {"solver_order": sampler.order or 3, "solver_type": sampler.variant}
        return {"_class_name": "UniPCMultistepScheduler", **order, "use_karras_sigmas": True, **ends, **shared}
    if sampler.solver == "ddim" and grid == "ddpm" and sampler.spacing != "quadratic":
        spacing = {"timestep_spacing": sampler.spacing, "clip_sample": False}
        return {"_class_name": "DDIMScheduler", **spacing, **shared}
    return None


def is_edm(config: dict[str, Any]) -> bool:
    """Whether a scheduler has EDM's convention. Its state is then z, and it scales the input and output of EDM's
    network F. Otherwise its state is z / sqrt(1 + sigma^2), and it gets D."""
    return str(config["_class_name"]).startswith("EDM")


def samples_of(config: dict[str, Any], denoiser: Mixture, noise: Tensor, steps: int) -> Tensor:
    """The samples of a scheduler of diffusers, from standard normal noise (N, ...)."""
    import diffusers  # slow to import

    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    edm, x = is_edm(config), noise
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i]) if hasattr(scheduler, "sigmas") else _sigma(scheduler.alphas_cumprod[t])
        scale = 1.0 if edm else 1 / math.sqrt(1 + sigma**2)
        x = x * sigma * scale if i == 0 else x
        scheduler.scale_model_input(x, t)
        z = x.double() / scale
        output = denoiser(z, torch.tensor(sigma, dtype=torch.float64))
        if edm:
            total = sigma**2 + config["sigma_data"] ** 2
            skip = config["sigma_data"] ** 2 / total * z
            output = (output - skip) / (sigma * config["sigma_data"] / math.sqrt(total))
        x = scheduler.step(output.to(x), t, x).prev_sample
    return x


def _sigma(alpha_bar: Tensor) -> float:
    return math.sqrt((1 - float(alpha_bar)) / float(alpha_bar))


def scheduler_config(sampler: Sampler, steps: int, sigma_data: float) -> dict[str, Any] | None:
    """The scheduler_config.json that makes the samples of a row of `steps` steps; None if diffusers has none.

    sigma_data: of the network, for schedulers with EDM's convention. The samples of an exact denoiser must be CLOSE.
    """
    config = candidate(sampler, steps, sigma_data)
    if config is None or sampler.build_solver().stochastic:
        return None
    random = generator("scheduler")
    means = torch.randn(3, 4, dtype=torch.float64, generator=random)
    mixture = Mixture(means, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.3)
    noise = torch.randn(64, 4, generator=random)
    ours = sample(mixture, noise, sampler, steps).x0
    theirs = samples_of(config, mixture, noise, steps).double()
    return config if float((ours - theirs).abs().max()) < CLOSE else None
