"""Noise levels that are those of diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from pipeline.sampling.row import Sampler
from tests.sampling.peers import BETAS, F64, STEPS, Peers, in_double, levels, made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


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


PEERS: Peers = {"ddpm": (test_ddpm_levels_are_those_of_diffusers,)}
