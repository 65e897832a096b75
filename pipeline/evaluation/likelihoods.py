"""The `likelihood` section of a study, and its measurement: bits per dimension, bounds, and the way there and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import default_device, exact_device, to_device
from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.common.rows import MOST, Name, Seed
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, to_range
from pipeline.data.dequantization import DEQUANTIZATIONS, bits_per_dimension
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.weights import failure
from pipeline.evaluation.continuous_bound import continuous_bound
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.likelihood import TRACES, Prior, log_likelihood, travel
from pipeline.evaluation.loading import load_model
from pipeline.evaluation.losses import evenly_spread
from pipeline.metrics.estimate import mean_estimate
from pipeline.sampling.guidance import ByClass
from pipeline.sampling.row import Budgets, Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model

EXACT_DIMENSIONS = 128  # up to so many, the trace is exact unless a row says otherwise
BATCH = 128  # images per call
PERMUTATIONS, TESTED = 999, 1024  # of the test of normality
TRAIN, HELDOUT = "train", "heldout"


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a model is listed twice; list each once")
    return names


class Likelihood(Sampler):
    """The `likelihood` section: how the likelihood of the data is measured. Its sampler keys are those of a curve."""

    models: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_unique)]
    """The models that are measured, all their trainings."""
    images: Annotated[int, Field(ge=20, le=MOST)] = 256
    """Images of the training data, and as many held-out ones; all if there are fewer."""
    trace: Literal[TRACES] | None = None  # type: ignore[valid-type]
    """How the trace of the Jacobian is computed; null: exact up to 128 dimensions, else hutchinson."""
    probes: Annotated[int, Field(ge=1, le=1000)] = 1
    """Random signs of each image. For trace hutchinson."""
    dequantization: Literal[tuple(DEQUANTIZATIONS)] | None = None  # type: ignore[valid-type]
    """Noise that makes pixels continuous; null: uniform for images, none for points."""
    prior: Literal["noise", "moments"] = "noise"
    """The density at sigma_max: N(0, sigma_max^2), or N(mean, sigma_max^2 + variance) with those of the data."""
    labels: Literal["data", "none"] = "data"
    """Whether a model with labels: classes is told those of the images."""
    bound_draws: Annotated[int, Field(ge=64, le=MOST)] = 4096
    """Pairs of an image and a noise level for the variational bound."""
    seed: Seed = 0
    """Seed of dequantization, probes and the bound."""
    solver: Literal[tuple(SOLVERS)] = "unipc"  # type: ignore[valid-type]
    """The ODE solver, which runs from sigma_min to sigma_max."""
    nfe: Budgets = (19, 35, 63)
    """Budgets of network evaluations, to see whether the values converge."""

    def settled(self, shape: Sequence[int]) -> Self:
        """This row with trace and dequantization chosen for data of this shape."""
        trace = "exact" if math.prod(shape) <= EXACT_DIMENSIONS else "hutchinson"
        noise = "none" if len(shape) == 1 else "uniform"
        filled = {"trace": self.trace or trace, "dequantization": self.dequantization or noise}
        return self.model_copy(update=filled)

    def curve(self, model: str, labels: Literal["data", "none"]) -> Curve:
        """The curve with this row's sampler on one of its models."""
        return Curve(model=model, labels=labels, **{key: getattr(self, key) for key in Sampler.model_fields})


@dataclass(frozen=True)
class Line:
    """A row of likelihood.csv: one training at one number of steps, on images of one part, "train" or "heldout".

    bits: the mean negative log-likelihood in bits per dimension, se: its standard error over images. round_trip: the
    root mean square of x after the way to sigma_max and back, minus x. noise_p: see `normality`. They are "" if
    `failed` has a reason.
    """

    model: str
    train_seed: int
    part: str
    steps: int
    nfe: int | str
    products: int | str
    images: int
    bits: str = ""
    se: str = ""
    round_trip: str = ""
    noise_p: str = ""
    failed: str = ""


COLUMNS = [field.name for field in fields(Line)]


@dataclass(frozen=True)
class Part:
    """Data that are measured, (N, ...) as prepared, their labels (N,) or None, and the name of the part."""

    name: str
    data: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Measured:
    """One training on one part: its lines, the bits of each image by number of steps, and the bound if it has one."""

    lines: list[Line]
    bits: dict[int, Tensor]
    bound: dict[str, Any] | None


def parts(row: Likelihood, training: Dataset, heldout: Dataset | None) -> list[Part]:
    """The images of either part that are measured, evenly spread over it."""

    def part(name: str, dataset: Dataset) -> Part:
        labels = None if dataset.labels is None else evenly_spread(dataset.labels, row.images)
        return Part(name, evenly_spread(dataset.images, row.images), labels)

    return [part(TRAIN, training)] + ([part(HELDOUT, heldout)] if heldout else [])


def prior_of(row: Likelihood, summary: Mapping[str, Any]) -> Prior:
    """The row's prior for data with this summary."""
    return Prior() if row.prior == "noise" else Prior(summary["mean"], summary["sigma_data"] ** 2)


def measure_model(
    name: str,
    row: Likelihood,
    model: Model,
    folder: Path,
    parts: Sequence[Part],
    prior: Prior,
    workers: int | None = None,
) -> tuple[list[Line], dict[str, Any]]:
    """Measure all trainings of a model that did not fail: lines of likelihood.csv, and its summary for JSON.

    row: settled. folder: where `save_models` wrote the weights. The bound is that of the last part. The summary has
    the gap between the parts at each number of steps, of images' means over trainings, and the bounds.
    """
    seeds = [seed for seed in model.train_seeds if not failure(folder, seed)]
    tasks: list[Callable[[], Measured]] = [
        partial(_measure, name, row, model, folder, seed, part, prior, part is parts[-1])
        for seed in seeds
        for part in parts
    ]
    device = exact_device(default_device())
    measured = side_by_side(tasks, processes.workers_on(device) if workers is None else workers)
    by_part = {part.name: measured[i :: len(parts)] for i, part in enumerate(parts)}
    lines = [line for each in measured for line in each.lines]
    bounds = [each.bound for each in by_part[parts[-1].name] if each.bound]
    gaps = [_gap(by_part, steps) for steps in row.step_counts] if len(parts) > 1 else []
    return lines, {"gaps": [gap for gap in gaps if gap], "bounds": bounds}


def _measure(
    name: str, row: Likelihood, model: Model, folder: Path, seed: int, part: Part, prior: Prior, bound: bool
) -> Measured:
    device = exact_device(default_device())
    given: Any = load_model(row.curve(name, row.labels), folder, seed, device=device).denoiser
    labels, labelled = None, given
    if isinstance(given, ByClass):
        assert part.labels is not None, "classes come from the data"
        labels = to_device(part.labels, device)

        def labelled(z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            return given.of_labels(labels)(z, sigma)

    def denoiser(which: Tensor) -> DenoiserFunction:
        """The model for the images with these indices, (n,), whose labels it gets if it has classes."""
        return given if labels is None else given.of_labels(labels[which.to(device)])

    lines, bits = list[Line](), dict[int, Tensor]()
    for steps in row.step_counts:
        line: dict[str, Any] = {"nfe": "", "products": ""}
        try:
            line, bits[steps] = _by_images(row, part, steps, denoiser, prior, device)
        except NotFinite as error:
            line["failed"] = str(error)
        lines.append(Line(name, seed, part.name, steps, images=len(part.data), **line))
    found = None
    if bound and row.build_guidance().idle:
        found = _bound(row, model, part, labelled, labels, prior, seed)
    return Measured(lines, bits, found)


def _by_images(
    row: Likelihood,
    part: Part,
    steps: int,
    denoiser: Callable[[Tensor], DenoiserFunction],
    prior: Prior,
    device: torch.device,
) -> tuple[dict[str, Any], Tensor]:
    """The values of a line, and the bits of each image, (N,). denoiser: for the images with given indices."""
    sigmas = row.grid(steps)[:-1].tolist()
    assert row.trace and row.dequantization, "the row is settled"
    noise, shape = DEQUANTIZATIONS[row.dequantization], part.data.shape[1:]
    nats, squares, ends = list[Tensor](), list[Tensor](), list[Tensor]()
    for which in torch.arange(len(part.data)).split(BATCH):
        draws = [generator(f"likelihood, {part.name}", row.seed, i) for i in which.tolist()]
        u = torch.stack([torch.rand(shape, dtype=torch.float64, generator=each) for each in draws])
        x = to_device(to_range(part.data[which].cpu()).double() + noise.noise(u, sigmas[-1]), device)
        probes = None
        if row.trace == "hutchinson":
            signs = [torch.randint(2, (row.probes, *shape), generator=each) for each in draws]
            probes = to_device(torch.stack(signs, dim=1) * 2.0 - 1, device)
        up = log_likelihood(denoiser(which), x, row, steps, row.trace, probes, prior)
        back = return_trip(denoiser(which), up.z, row, steps)
        nats.append(up.nats.cpu())
        squares.append((back - x).flatten(1).square().mean(1).cpu())
        ends.append(up.z.flatten(1).cpu())
    dimensions = math.prod(shape)
    bits = bits_per_dimension(torch.cat(nats), dimensions, noise.entropy(sigmas[-1]))
    mean, se = mean_estimate(bits)
    round_trip = float(torch.cat(squares).mean().sqrt())
    p = normality(prior.standardised(torch.cat(ends), sigmas[0]), row.seed)
    values = {"bits": mean, "se": se, "round_trip": round_trip, "noise_p": p}
    counts = {"nfe": up.nfe, "products": up.products}
    return counts | {key: f"{value:.6g}" for key, value in values.items()}, bits


@torch.no_grad()
def return_trip(denoiser: DenoiserFunction, z: Tensor, sampler: Sampler, steps: int) -> Tensor:
    """z (N, ...) at sigma_max taken down to sigma_min, through the levels of `log_likelihood` in reverse.

    Raises NotFinite.
    """
    *_, x = travel(denoiser, z, sampler, sampler.grid(steps)[:-1].tolist())
    if not bool(x.isfinite().all()):
        raise NotFinite("the way back from sigma_max is not finite")
    return x


def normality(z: Tensor, seed: int) -> float:
    """The p-value of a two-sample test of z (N, d) against as many draws of N(0, I): the energy distance, permuted.

    At most TESTED samples are used. (Szekely and Rizzo 2004, "Testing for equal distributions in high dimension".)
    """
    z, draw = z[:TESTED].double(), generator("normality", seed)
    both = torch.cat([z, torch.randn(z.shape, dtype=torch.float64, generator=draw)])
    distance = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")
    signs = torch.ones(len(both), dtype=torch.float64)
    signs[len(z) :] = -1
    orders = [torch.randperm(len(both), generator=draw) for _ in range(PERMUTATIONS)]
    arranged = torch.stack([signs, *(signs[order] for order in orders)])
    found, *permuted = -(arranged @ distance * arranged).sum(1)
    return (1 + sum(bool(each >= found) for each in permuted)) / (1 + PERMUTATIONS)


def _bound(
    row: Likelihood,
    model: Model,
    part: Part,
    denoiser: Callable[..., Tensor],
    labels: Tensor | None,
    prior: Prior,
    seed: int,
) -> dict[str, Any] | None:
    """The bound for JSON, with the model's own noise distribution as its proposal; None if it is not finite."""
    try:
        data = to_device(part.data, exact_device(default_device()))
        found = continuous_bound(
            denoiser, data, row.sigma_range, prior, model.distribution, row.seed, row.bound_draws, labels
        )
    except NotFinite:
        return None
    return {
        "train_seed": seed,
        "part": part.name,
        "L_0": found.L_0.value,
        "L_diffusion": found.L_diffusion.value,
        "L_T": found.L_T,
        "total": found.total.value,
        "se": found.total.se,
        "shares": [list(share) for share in found.shares],
    }


def summary_of(row: Likelihood, parts: Sequence[Part]) -> dict[str, Any]:
    """The conventions of a settled row for JSON, and the sizes of the parts.

    offset_bits: what dequantization adds to -log2 of the density per dimension.
    """
    low, dimensions = row.sigma_range[0], math.prod(parts[0].data.shape[1:])
    offset = float(
        bits_per_dimension(torch.zeros(1), dimensions, DEQUANTIZATIONS[row.dequantization or ""].entropy(low))
    )
    images = {part.name: len(part.data) for part in parts}
    return {"row": row.model_dump(mode="json"), "dimensions": dimensions, "offset_bits": offset, "images": images}


def _gap(by_part: Mapping[str, Sequence[Measured]], steps: int) -> dict[str, Any] | None:
    """Held-out minus training bits at a number of steps, with its standard error over images; None if one failed.

    Each image has its mean over trainings, because these share the images.
    """
    means = {}
    for name, measured in by_part.items():
        if not measured or any(steps not in each.bits for each in measured):
            return None
        means[name] = mean_estimate(torch.stack([each.bits[steps] for each in measured]).mean(0))
    held, train = means[HELDOUT], means[TRAIN]
    return {"steps": steps, "gap": held.value - train.value, "se": math.hypot(held.se, train.se)}
