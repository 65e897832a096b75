"""Loss and gradient against the noise level, before and after training (EDM's figure 5a), and straightness."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import default_device, exact_device, to_device
from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import is_points, to_range
from pipeline.diffusion.denoiser import Denoiser, load_denoiser, new_denoiser
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation.bound import variational_bound
from pipeline.training.loss import loss
from pipeline.training.noise import Levels
from pipeline.training.pairs import flow_to
from pipeline.training.row import Model

COLUMNS = ["model", "train_seed", "state", "sigma", "error", "loss", "gradient"]
SIGMA_LOW, SIGMA_HIGH, SIGMAS = 0.005, 80.0, 20
IMAGES = 128  # as many as a batch has by default, whose gradient is what training goes by
STRAIGHTNESS_STEPS = 16
BOUND_DRAWS = 4096
INSIDE = 1e-6  # u is kept this far from 0 and 1, beyond which a noise distribution has no levels


def noise_levels() -> Tensor:
    """The noise levels that losses are measured at, evenly spaced in ln sigma."""
    return torch.logspace(math.log10(SIGMA_LOW), math.log10(SIGMA_HIGH), SIGMAS, dtype=torch.float64)


@dataclass(frozen=True)
class Measured:
    """At one noise level: E (D - x0)^2 a pixel, the row's weight times it, and the norm of the latter's gradient."""

    sigma: float
    error: float
    loss: float
    gradient: float


def evenly_spread(images: Tensor, count: int) -> Tensor:
    """`count` of the images (N, ...), or all where there are fewer."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def error_at(denoiser: Denoiser, x0: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """The mean of (D - x0)^2 over x0 (N, ...) and its values, with the same noise for every denoiser and sigma."""
    n = to_device(torch.randn(x0.shape, generator=generator("losses", 0)), x0.device)
    return loss(denoiser, torch.ones(len(x0)), x0, n, sigma.expand(len(x0)), labels).mean()


def by_sigma(denoiser: Denoiser, row: Model, images: Tensor, labels: Tensor | None = None) -> Iterator[Measured]:
    """Measure a denoiser of the row on images (N, C, H, W), uint8, or points (N, 2)."""
    device = next(denoiser.parameters()).device
    x0 = to_device(to_range(images), device)
    parameters = list(denoiser.parameters())
    for sigma in noise_levels():
        u = row.distribution.u(sigma).clamp(INSIDE, 1 - INSIDE)
        c_out = denoiser.coefficients(sigma, denoiser.sigma_data).c_out
        weight = float(row.weight(u, sigma, denoiser.sigma_data, c_out))
        error = error_at(denoiser, x0, sigma, labels)
        gradients = torch.autograd.grad(error, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        value = float(error.detach())
        yield Measured(float(sigma), value, weight * value, weight * float(norm))


def straightness(denoiser: Denoiser) -> float:
    """The mean over IMAGES paths from noise, time and dimensions of (n - x0 - v)^2; see `flow_to`."""
    largest = torch.tensor(PARAMETRIZATIONS[denoiser.spec.parametrization].largest, dtype=torch.float64)

    def inside(z: Tensor, sigma: Tensor) -> Tensor:
        """D, which above the highest level of its path is asked about the same noise there: the image is lost in it."""
        level = sigma.minimum(largest)
        return denoiser(z * (level / sigma).to(z), level)

    device = next(denoiser.parameters()).device
    n = to_device(torch.randn(IMAGES, *denoiser.shape, generator=generator("straightness", 0)), device)
    return float(flow_to(inside, n, STRAIGHTNESS_STEPS)[1].mean())


def bound_terms(denoiser: Denoiser, row: Model, images: Tensor) -> dict[str, float] | None:
    """The variational bound in bits per dimension, where the row is trained on a table of noise levels and answers.

    None of points: the bound is that of telling one of the 256 levels of a pixel.
    """
    if is_points(images) or not isinstance(row.distribution, Levels):
        return None
    levels = row.distribution.levels
    try:
        found = variational_bound(denoiser, images, levels, 0, BOUND_DRAWS)
    except NotFinite:
        return None
    return {
        "L_0": found.L_0.value,
        "L_t": found.L_t.value,
        "L_T": found.L_T.value,
        "total": found.total.value,
        "se": found.total.se,
        "levels": len(levels),
    }


def measure_model(
    name: str, row: Model, folder: Path, images: Tensor, workers: int | None = None, labels: Tensor | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lines of losses.csv for all seeds of a model, before and after training, and a summary: straightness and bound.

    folder: where `save_models` wrote the weights; images (N, C, H, W), uint8, or points (N, 2), of which IMAGES are
    used; labels (N,), their classes, which a model of classes is told where its losses are measured.
    """
    device = exact_device(default_device())  # the bound is small differences
    x0 = to_device(evenly_spread(images, IMAGES), device)
    told = None
    if labels is not None and row.labels == "classes":
        told = to_device(evenly_spread(labels, IMAGES), device)
    denoisers: dict[tuple[int, str], Denoiser] = {}
    for seed in row.train_seeds:  # made before there are threads, which would share PyTorch's one random generator
        trained = load_denoiser(folder / f"seed_{seed}.safetensors").requires_grad_(True).to(device)
        denoisers[seed, "initial"] = new_denoiser(trained.spec, seed).eval().to(device)
        denoisers[seed, "trained"] = trained

    def points_of(denoiser: Denoiser) -> list[Measured]:
        return list(by_sigma(denoiser, row, x0, told))

    ends = [denoisers[seed, "trained"] for seed in row.train_seeds]
    tasks: list[Callable[[], Any]] = [partial(bound_terms, ends[0], row, x0)]  # which may take longest
    tasks += [partial(points_of, denoiser) for denoiser in denoisers.values()]
    tasks += [partial(straightness, denoiser) for denoiser in ends]
    workers = processes.workers_on(device) if workers is None else workers
    bound, *found = side_by_side(tasks, workers)
    lines = [
        {"model": name, "train_seed": seed, "state": state}
        | {key: f"{value:.6g}" for key, value in vars(point).items()}
        for (seed, state), points in zip(denoisers, found[: len(denoisers)], strict=True)
        for point in points
    ]
    straight = found[len(denoisers) :]
    finite = all(math.isfinite(value) for value in straight)
    summary = {
        "straightness": {
            "mean": statistics.mean(straight) if finite else None,
            "sd": statistics.stdev(straight) if finite and len(straight) > 1 else None,
            "steps": STRAIGHTNESS_STEPS,
        },
        "bound": bound,
    }
    return lines, summary
