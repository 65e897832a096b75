"""Loss and gradient by noise level, before and after training (EDM, figure 5a), straightness, and the bound.

For points, whose exact denoisers are known, also the distance from them by noise level.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
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
from pipeline.data.dataset import to_coordinates
from pipeline.diffusion.denoiser import Denoiser, Inputs, load_denoiser, new_denoiser
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.upsampling import Low, averaged
from pipeline.diffusion.weights import failure, main_file
from pipeline.evaluation.bound import variational_bound
from pipeline.evaluation.truth import Truth, distances
from pipeline.training.loss import loss
from pipeline.training.noise import Levels
from pipeline.training.pairs import flow_to
from pipeline.training.row import Model

SIGMA_LOW, SIGMA_HIGH, SIGMAS = 0.005, 80.0, 20
IMAGES = 128  # the default batch, so that gradients are those of training
STRAIGHTNESS_STEPS = 16
BOUND_DRAWS = 4096
INSIDE = 1e-6  # u stays this far from 0 and 1, because a noise distribution has no levels beyond


def noise_levels() -> Tensor:
    """The noise levels at which losses are measured, evenly spaced in ln sigma: (SIGMAS,), float64."""
    return torch.logspace(math.log10(SIGMA_LOW), math.log10(SIGMA_HIGH), SIGMAS, dtype=torch.float64)


@dataclass(frozen=True)
class LevelLoss:
    """At one noise level: the mean of (D - x0)^2, the loss (weight times error), and the norm of its gradient."""

    sigma: float
    error: float
    loss: float
    gradient: float


@dataclass(frozen=True)
class Line:
    """A row of losses.csv. state: "initial" or "trained".

    denoising_error, map_error: see `Distance`; "" for images, and for a model that is told the classes.
    """

    model: str
    train_seed: int
    state: str
    sigma: str
    error: str
    loss: str
    gradient: str
    denoising_error: str = ""
    map_error: str = ""


COLUMNS = [field.name for field in fields(Line)]


@dataclass(frozen=True)
class Straightness:
    """Mean and standard deviation over trainings, None if unknown, and the number of steps that measured it."""

    mean: float | None
    sd: float | None
    steps: int


@dataclass(frozen=True)
class BoundTerms:
    """The variational bound and its terms in bits per dimension, its standard error, and the number of noise levels."""

    L_0: float
    L_t: float
    L_T: float
    total: float
    se: float
    levels: int


@dataclass(frozen=True)
class ModelLosses:
    """All measurements of a model: lines of losses.csv, straightness, and the bound if the model has one."""

    lines: list[Line]
    straightness: Straightness
    bound: BoundTerms | None

    def summary(self) -> dict[str, Any]:
        """Straightness and bound, for JSON."""
        return {"straightness": vars(self.straightness), "bound": self.bound and vars(self.bound)}


def evenly_spread(images: Tensor, count: int) -> Tensor:
    """`count` of the images (N, ...), evenly spread; all if there are fewer."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def error_at(denoiser: Denoiser, x0: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """The mean of (D - x0)^2 over the values of x0 (N, ...). Every denoiser and sigma get the same noise.

    An upsampler gets low-resolution images without augmentation.
    """
    n = to_device(torch.randn(x0.shape, generator=generator("losses", 0)), x0.device)
    return loss(denoiser, torch.ones(len(x0)), x0, n, sigma.expand(len(x0)), labels, low_of(denoiser, x0)).mean()


def low_of(denoiser: Denoiser, x0: Tensor) -> Inputs:
    """The inputs of an upsampler for x0 (N, C, H, W), without augmentation; none for other networks."""
    low = denoiser.spec.low
    return denoiser.low_inputs(Low(averaged(x0, low[1]), torch.zeros(len(x0)))) if low else ()


def by_sigma(denoiser: Denoiser, row: Model, images: Tensor, labels: Tensor | None = None) -> Iterator[LevelLoss]:
    """Measure a denoiser of the row at each of noise_levels(), on images (N, C, H, W), uint8, or points (N, 2)."""
    device = next(denoiser.parameters()).device
    x0 = to_device(to_coordinates(images), device)
    parameters = list(denoiser.parameters())
    for sigma in noise_levels():
        weight = math.nan
        if row.objective == "denoising" and row.import_ is None:
            u = row.distribution.u(sigma).clamp(INSIDE, 1 - INSIDE)
            c_out = denoiser.coefficients(sigma, denoiser.sigma_data).c_out
            weight = float(row.weight(u, (sigma,), denoiser.sigma_data, c_out))
        error = error_at(denoiser, x0, sigma, labels)
        gradients = torch.autograd.grad(error, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        value = float(error.detach())
        yield LevelLoss(float(sigma), value, weight * value, weight * float(norm))


def straightness(denoiser: Denoiser, images: Tensor | None = None) -> float:
    """The mean of (n - x0 - v)^2 over trajectories, time and dimensions; see `flow_to`.

    images: those that an upsampler gets averaged, one for each trajectory.
    """
    low = () if images is None else low_of(denoiser, to_coordinates(images))
    largest = torch.tensor(PARAMETRIZATIONS[denoiser.spec.parametrization].largest, dtype=torch.float64)

    def inside(z: Tensor, sigma: Tensor) -> Tensor:
        """D. Above the highest level of its path it is evaluated there, on the same noise, which hides the image."""
        level = sigma.minimum(largest)
        return denoiser(z * (level / sigma).to(z), level, low=low)

    device = next(denoiser.parameters()).device
    count = len(low[0]) if low else IMAGES
    n = to_device(torch.randn(count, *denoiser.shape, generator=generator("straightness", 0)), device)
    return float(flow_to(inside, n, STRAIGHTNESS_STEPS)[1].mean())


def bound_terms(denoiser: Denoiser, row: Model, images: Tensor) -> BoundTerms | None:
    """The variational bound of a row that is trained on a table of noise levels.

    None for other rows and upsamplers, for points and latents, because the bound is of pixels with 256 levels, and if
    an answer is not finite.
    """
    if images.is_floating_point() or row.upsampler or not isinstance(row.distribution, Levels):
        return None
    levels, learned = row.distribution.levels, row.learned_variance != "none"
    try:
        found = variational_bound(denoiser.with_variance if learned else denoiser, images, levels, 0, BOUND_DRAWS)
    except NotFinite:
        return None
    return BoundTerms(found.L_0.value, found.L_t.value, found.L_T.value, found.total.value, found.total.se, len(levels))


def measure_model(
    name: str,
    row: Model,
    folder: Path,
    images: Tensor,
    workers: int | None = None,
    labels: Tensor | None = None,
    truth: Truth | None = None,
) -> ModelLosses:
    """Measure all seeds of a model whose training did not fail, before and after training.

    folder: where `save_models` wrote the weights. images (N, C, H, W), uint8 or in the coordinates of the row's space,
    or points (N, 2), of which IMAGES are used. labels (N,): their classes, which a model with classes gets. truth: the
    exact answers for the points, at noise_levels(); they are those of all classes together, so a model that is told its
    class is not compared.
    """
    device = exact_device(default_device())  # the bound is a sum of small differences
    x0 = to_device(evenly_spread(images, IMAGES), device)
    classes = None
    if labels is not None and row.labels == "classes":
        classes = to_device(evenly_spread(labels, IMAGES), device)
    denoisers: dict[tuple[int, str], Denoiser] = {}
    seeds = [seed for seed in row.train_seeds if not failure(folder, seed)]
    for seed in seeds:  # created before the threads, because they share PyTorch's one random generator
        trained = load_denoiser(main_file(folder, seed)).requires_grad_(True).to(device)
        denoisers[seed, "initial"] = new_denoiser(trained.spec, seed).eval().to(device)
        denoisers[seed, "trained"] = trained

    def by_level(denoiser: Denoiser) -> list[dict[str, float]]:
        levels = [vars(level) for level in by_sigma(denoiser, row, x0, classes)]
        if truth is None or row.labels == "classes":
            return levels
        return [own | vars(far) for own, far in zip(levels, distances(denoiser, truth, device), strict=True)]

    trained_ones = [denoisers[seed, "trained"] for seed in seeds]
    if not trained_ones:
        return ModelLosses([], Straightness(None, None, STRAIGHTNESS_STEPS), None)
    tasks: list[Callable[[], Any]] = [partial(bound_terms, trained_ones[0], row, x0)]  # first, as it may take longest
    tasks += [partial(by_level, denoiser) for denoiser in denoisers.values()]
    tasks += [partial(straightness, denoiser, x0) for denoiser in trained_ones]
    workers = processes.workers_on(device) if workers is None else workers
    bound, *found = side_by_side(tasks, workers)
    levels, straight = found[: len(denoisers)], found[len(denoisers) :]
    lines = [
        Line(name, seed, state, **{key: f"{value:.6g}" for key, value in at.items()})
        for (seed, state), measured in zip(denoisers, levels, strict=True)
        for at in measured
    ]
    finite = all(math.isfinite(value) for value in straight)
    mean = statistics.mean(straight) if finite else None
    sd = statistics.stdev(straight) if finite and len(straight) > 1 else None
    return ModelLosses(lines, Straightness(mean, sd, STRAIGHTNESS_STEPS), bound)
