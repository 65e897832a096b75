"""Grids fitted to a model: the noise levels between which its trajectories are nearest to straight.

A teacher takes many small steps of Heun's method from pure noise to 0 on a fine grid. The cost of a long step from
level i to level j is its local truncation error: the distance from the end of Euler's step from the teacher's state at
i to the teacher's state at j. For every number of steps, dynamic programming finds the levels of least total cost (Chen
et al. 2024, GITS, arXiv 2405.11326; Watson et al. 2021, arXiv 2106.03802).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import default_device, state_type, to_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.randomness import generator
from pipeline.common.sealed import cached_json
from pipeline.common.tensors import read_sealed
from pipeline.common.threads import side_by_side
from pipeline.diffusion.denoiser import DenoiserFunction, load_denoiser
from pipeline.diffusion.grids import EDM_RHO, LEVELS, edm
from pipeline.diffusion.schedule import SCALINGS, SCHEDULES
from pipeline.diffusion.weights import main_files
from pipeline.sampling.ode import Ode
from pipeline.sampling.row import Sampler

TRAJECTORIES = 256
FIT_EVALUATIONS = 2 * LEVELS - 1  # the teacher's, for each trajectory; its slopes also serve the long steps

SamplerRow = TypeVar("SamplerRow", bound=Sampler)


@torch.no_grad()
def truncation_errors(denoiser: DenoiserFunction, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The error of Euler's step from sigmas[i] to the teacher's state at sigmas[j]: (n, n), infinite for j <= i.

    It is the root mean square over the N samples and their dimensions. noise: standard normal, (N, ...). sigmas: n
    falling levels, the last one 0.
    """
    ode = Ode(denoiser, SCHEDULES["linear"](sigmas[-2], sigmas[0]), SCALINGS["none"])
    states, slopes, z = [], [], noise.to(state_type(noise.device)) * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        states.append(z)
        slopes.append(slope := ode.eps(z, sigma))
        z = torch.add(z, slope, alpha=sigma_next - sigma)
        if sigma_next > 0:  # Heun's step (Karras et al. 2022, Algorithm 1), without a second evaluation at its start
            z = torch.add(states[-1], slope + ode.eps(z, sigma_next), alpha=(sigma_next - sigma) / 2)
    states.append(z)
    errors = torch.full((len(sigmas), len(sigmas)), torch.inf, dtype=torch.float64)
    for i, slope in enumerate(slopes):
        for j in range(i + 1, len(sigmas)):
            end = torch.add(states[i], slope, alpha=sigmas[j] - sigmas[i])
            errors[i, j] = (end - states[j]).square().mean().sqrt()
    return errors


def shortest(costs: Tensor, steps: int) -> list[list[int]]:
    """The path of least total cost from the first node to the last, for each number of steps n = 1 .. `steps`.

    costs: (nodes, nodes), of a step from i to j. A path is a list of nodes 0 = i_0 < ... < i_n. Raises ValueError if
    there are more steps than nodes after the first.
    """
    last = len(costs) - 1
    if steps > last:
        raise ValueError(f"{steps} steps, but there are {last} levels above 0")
    best = torch.full((len(costs),), torch.inf, dtype=costs.dtype)
    best[0] = 0
    origins, paths = [], []
    for _ in range(steps):
        best, origin = (best[:, None] + costs).min(0)
        origins.append(origin.tolist())
        nodes = [last]
        for before in reversed(origins):
            nodes.append(before[nodes[-1]])
        paths.append(nodes[::-1])
    return paths


def fit(
    denoiser: DenoiserFunction, noise: Tensor, sigma_min: float, sigma_max: float, levels: int = LEVELS
) -> list[tuple[float, ...]]:
    """The noise levels of 1, 2, ... `levels` steps, fitted to the model's trajectories; the last step ends at 0.

    noise: standard normal, (N, ...). Raises NotFinite if an answer of the denoiser is not finite.
    """
    sigmas = [*edm(levels, sigma_min, sigma_max, EDM_RHO).tolist(), 0.0]
    errors = truncation_errors(denoiser, noise, sigmas)
    if errors.triu(1).isnan().any():
        raise NotFinite("discretization optimised: the denoiser's answers are not finite on the teacher's trajectory")
    return [tuple(sigmas[node] for node in nodes[:-1]) for nodes in shortest(errors, levels)]


@dataclass(frozen=True)
class FittedGrids:
    """The grids fitted to one training's main average on one noise range.

    weights: the file's name. grids[n - 1]: the falling noise levels of n steps, the last step of which ends at 0.
    failed: why there are no grids, in one line.
    """

    weights: str
    sigma_min: float
    sigma_max: float
    grids: tuple[tuple[float, ...], ...] = ()
    failed: str = ""

    def record(self) -> dict[str, object]:
        """The fields that are set, for JSON."""
        return {key: value for key, value in vars(self).items() if value or key not in ("grids", "failed")}


def _fit_weights(weights: Path, sigma_min: float, sigma_max: float) -> FittedGrids:
    """Fit grids to one training, or take them from the cache."""
    device = default_device()
    key = content_hash(
        partial(read_sealed, weights),
        sigma_min,
        sigma_max,
        code_hash("pipeline.sampling.fitted_grids"),
        machine(device),
    )

    def make() -> dict[str, Any]:
        denoiser = load_denoiser(weights).run_on(device)
        noise = to_device(torch.randn(TRAJECTORIES, *denoiser.shape, generator=generator("optimised")), device)
        return {"grids": fit(denoiser, noise, sigma_min, sigma_max)}

    try:
        grids = cached_json(CACHE / "grids" / f"{key}.json", make)["grids"]
    except NotFinite as error:
        return FittedGrids(weights.name, sigma_min, sigma_max, failed=str(error))
    return FittedGrids(weights.name, sigma_min, sigma_max, tuple(map(tuple, grids)))


def fit_grids(folder: Path, ranges: Sequence[tuple[float, float]]) -> list[FittedGrids]:
    """Fit grids to the main average of every training in a model's folder, for each range (sigma_min, sigma_max)."""
    jobs = [(weights, low, high) for weights in main_files(folder) for low, high in ranges]
    return side_by_side([partial(_fit_weights, *job) for job in jobs], processes.workers_on(default_device()))


def on_fitted_grid(sampler: SamplerRow, fitted: Sequence[FittedGrids], weights: str, steps: int) -> SamplerRow:
    """The sampler on the grid of `steps` steps that was fitted to these weights, if its discretization is optimised.

    Any other sampler is returned unchanged. Raises StudyError if no such grid was fitted, NotFinite if fitting failed.
    """
    if sampler.discretization != "optimised":
        return sampler
    for grids in fitted:
        if grids.weights == weights and (grids.sigma_min, grids.sigma_max) == sampler.sigma_range:
            if grids.failed:
                raise NotFinite(grids.failed)
            return sampler.with_grid(tuple(grids.grids[steps - 1]))
    raise StudyError(
        f"discretization optimised: no grid was fitted to {weights} on {sampler.sigma_range}; run `dvc repro`"
    )
