"""Grids fitted to a model: the noise levels between which its trajectories are nearest to straight.

A teacher takes many small steps from pure noise to 0 through a fine grid. The cost of a long step from level i to level
j is its local truncation error: how far Euler's step from the teacher's state at i ends from the teacher's state at j.
Dynamic programming finds, for every number of steps, the levels of least total cost (Chen et al. 2024, GITS, arXiv
2405.11326; Watson et al. 2021, arXiv 2106.03802).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.devices import default_device, state_type, to_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import CACHE, content_hash, read_json, write_json
from pipeline.common.machine import code_hash, machine
from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.diffusion.denoiser import DenoiserFunction, load_denoiser
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.diffusion.weights import main_files
from pipeline.sampling.grids import LEVELS, edm
from pipeline.sampling.ode import Ode, SingleStep
from pipeline.sampling.row import Sampler
from pipeline.sampling.singlestep import heun

TEACHER_RHO = 7.0
TRAJECTORIES = 256


@torch.no_grad()
def truncation_errors(denoiser: DenoiserFunction, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """How far Euler's step from sigmas[i] ends from the teacher's state at sigmas[j]: (n, n), infinite for j <= i.

    noise: standard normal, (N, ...); sigmas: n falling levels, the last one 0. The root mean square over the N samples.
    """
    ode = Ode(denoiser, SCHEDULES["linear"](sigmas[-2], sigmas[0]), SCALINGS["none"])
    teacher: SingleStep = heun(1.0)
    states, slopes, z = [], [], noise.to(state_type(noise.device)) * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        slopes.append(ode.eps(z, sigma))
        states.append(z)
        z = teacher.step(ode, z, sigma, sigma_next, torch.zeros_like)
    states.append(z)
    errors = torch.full((len(sigmas), len(sigmas)), torch.inf, dtype=torch.float64)
    for i, slope in enumerate(slopes):
        for j in range(i + 1, len(sigmas)):
            end = torch.add(states[i], slope, alpha=sigmas[j] - sigmas[i])
            errors[i, j] = (end - states[j]).square().mean().sqrt()
    return errors


def shortest(costs: Tensor, steps: int) -> list[list[int]]:
    """For each number of steps up to `steps`: the nodes 0 = i_0 < ... < i_n = last of least total cost, costs (n, n).

    Raises ValueError where there are more steps than nodes to go by.
    """
    last = len(costs) - 1
    if steps > last:
        raise ValueError(f"{steps} steps, but there are {last} levels above 0")
    best = torch.full((len(costs),), torch.inf, dtype=costs.dtype)
    best[0] = 0
    origins, found = [], []
    for _ in range(steps):
        best, origin = (best[:, None] + costs).min(0)
        origins.append(origin.tolist())
        nodes = [last]
        for before in reversed(origins):
            nodes.append(before[nodes[-1]])
        found.append(nodes[::-1])
    return found


def fit(
    denoiser: DenoiserFunction, noise: Tensor, sigma_min: float, sigma_max: float, levels: int = LEVELS
) -> list[tuple[float, ...]]:
    """The noise levels of 1, 2, ... `levels` steps, the last step of each into 0, fitted to the model's trajectories.

    noise: standard normal, (N, ...). Raises NotFinite where the denoiser's answers are not.
    """
    sigmas = [*edm(levels, sigma_min, sigma_max, TEACHER_RHO).tolist(), 0.0]
    errors = truncation_errors(denoiser, noise, sigmas)
    if errors.triu(1).isnan().any():
        raise NotFinite("discretization optimised: the denoiser's answers are not finite along the teacher's way")
    return [tuple(sigmas[node] for node in nodes[:-1]) for nodes in shortest(errors, levels)]


def _fit_weights(weights: Path, sigma_min: float, sigma_max: float) -> dict[str, Any]:
    """The grids of one training, or what is kept of an earlier time; why there are none, where it fails."""
    found: dict[str, Any] = {"weights": weights.name, "sigma_min": sigma_min, "sigma_max": sigma_max}
    device = default_device()
    key = content_hash(weights, sigma_min, sigma_max, code_hash(), machine(device))
    kept = CACHE / "grids" / f"{key}.json"
    if not kept.exists():
        denoiser = load_denoiser(weights).run_on(device)
        noise = to_device(torch.randn(TRAJECTORIES, *denoiser.shape, generator=generator("optimised")), device)
        try:
            write_json(kept, fit(denoiser, noise, sigma_min, sigma_max))
        except NotFinite as error:
            return found | {"failed": str(error)}
    return found | {"grids": read_json(kept)}


def fit_model(folder: Path, ranges: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Grids of every training's main average in a model's folder, for each noise range (sigma_min, sigma_max): JSON."""
    jobs = [(weights, low, high) for weights in main_files(folder) for low, high in ranges]
    return side_by_side([partial(_fit_weights, *job) for job in jobs])


def on_fitted_grid(sampler: Sampler, fitted: list[dict[str, Any]], weights: str, steps: int) -> Sampler:
    """A sampler whose discretization is optimised, on the grid of so many steps that was fitted to these weights.

    Any other sampler as it is. Raises StudyError where no such grid was fitted, NotFinite where it could not be.
    """
    if sampler.discretization != "optimised":
        return sampler
    for found in fitted:
        if found["weights"] == weights and (found["sigma_min"], found["sigma_max"]) == sampler.sigma_range:
            if "failed" in found:
                raise NotFinite(found["failed"])
            return sampler.with_grid(tuple(found["grids"][steps - 1]))
    raise StudyError(
        f"discretization optimised: no grid was fitted to {weights} on {sampler.sigma_range}; run `dvc repro`"
    )
