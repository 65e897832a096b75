"""The `likelihood` section of a study, and its measurement: bits per dimension, bounds, and the way there and back."""

import math
from collections.abc import Mapping, Sequence
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
from pipeline.training.noise import Distribution
from pipeline.training.row import Model

EXACT_DIMENSIONS = 128  # up to so many, the trace is exact unless a row says otherwise
BATCH = 128  # images per call
PERMUTATIONS, TESTED = 4999, 1024  # of the test of normality
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
    """Whether a model with labels: classes gets the labels of the images."""
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


def parts(row: Likelihood, training: Dataset, heldout: Dataset | None) -> list[Part]:
    """The images of either part that are measured, evenly spread over it, on the device."""
    device = exact_device(default_device())

    def part(name: str, dataset: Dataset) -> Part:
        labels = None if dataset.labels is None else evenly_spread(dataset.labels, row.images)
        return Part(name, to_device(evenly_spread(dataset.images, row.images), device), labels)

    return [part(TRAIN, training)] + ([part(HELDOUT, heldout)] if heldout else [])


def prior_of(row: Likelihood, summary: Mapping[str, Any]) -> Prior:
    """The row's prior for data with this summary."""
    return Prior() if row.prior == "noise" else Prior(summary["mean"], summary["sigma_data"] ** 2)


@dataclass(frozen=True)
class Trip:
    """The way of a batch up and back: ln p in nats, the mean square of what has changed, both (n,), and z (n, d)."""

    nats: Tensor
    squares: Tensor
    z: Tensor
    nfe: int
    products: int


@dataclass(frozen=True)
class Training:
    """One training of a model, and the part of the data that it is asked about.

    denoiser: D(z; sigma), or the model of classes that gives it for labels (N,), those of the part.
    """

    row: Likelihood
    seed: int
    part: Part
    prior: Prior
    denoiser: Any
    labels: Tensor | None

    @classmethod
    def load(cls, row: Likelihood, name: str, folder: Path, seed: int, part: Part, prior: Prior) -> Self:
        device = exact_device(default_device())
        denoiser = load_model(row.curve(name, row.labels), folder, seed, device=device).denoiser
        labels = to_device(part.labels, device) if isinstance(denoiser, ByClass) and part.labels is not None else None
        return cls(row, seed, part, prior, denoiser, labels)

    def _told(self, which: Tensor) -> DenoiserFunction:
        """The denoiser of the images with these indices, (n,)."""
        function: DenoiserFunction = self.denoiser
        return function if self.labels is None else self.denoiser.of_labels(self.labels[which.to(self.labels.device)])

    def travel(self, steps: int, which: Tensor) -> Trip | str:
        """The way of the images with these indices, (n,), up and back, or why it failed."""
        row, part = self.row, self.part
        assert row.trace and row.dequantization, "the row is settled"
        noise, shape, device = DEQUANTIZATIONS[row.dequantization], part.data.shape[1:], part.data.device
        draws = [generator(f"likelihood, {part.name}", row.seed, i) for i in which.tolist()]
        u = torch.stack([torch.rand(shape, dtype=torch.float64, generator=each) for each in draws])
        x = to_range(part.data[which.to(device)]).double() + noise.noise(u, lowest(row, steps)).to(device)
        probes = None
        if row.trace == "hutchinson":
            signs = [torch.randint(2, (row.probes, *shape), generator=each) for each in draws]
            probes = to_device(torch.stack(signs, dim=1) * 2.0 - 1, device)
        denoiser = self._told(which)
        try:
            up = log_likelihood(denoiser, x, row, steps, row.trace, probes, self.prior)
            back = return_trip(denoiser, up.z, row, steps)
        except NotFinite as error:
            return str(error)
        squares = (back - x).flatten(1).square().mean(1)
        return Trip(up.nats.cpu(), squares.cpu(), up.z.flatten(1).cpu(), up.nfe, up.products)

    def bound(self, proposal: Distribution) -> dict[str, Any] | None:
        """The bound for JSON; None for a guided model, whose answers are no means, and if it is not finite."""
        row = self.row
        if not row.build_guidance().idle:
            return None

        def with_labels(z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            answer: Tensor = self.denoiser.of_labels(labels)(z, sigma)
            return answer

        denoiser = self.denoiser if self.labels is None else with_labels
        drawn = (row.seed, row.bound_draws, self.labels)
        try:
            found = continuous_bound(denoiser, self.part.data, row.sigma_range, self.prior, proposal, *drawn)
        except NotFinite:
            return None
        terms = {"L_0": found.L_0.value, "L_diffusion": found.L_diffusion.value, "L_T": found.L_T}
        total = {"total": found.total.value, "se": found.total.se, "shares": [list(share) for share in found.shares]}
        return {"train_seed": self.seed, "part": self.part.name} | terms | total


def lowest(row: Likelihood, steps: int) -> float:
    """The lowest noise level above 0 of a grid."""
    return float(row.grid(steps)[-2])


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
    asked = [Training.load(row, name, folder, seed, part, prior) for seed in seeds for part in parts]
    jobs = [
        (one, steps, which)
        for steps in reversed(row.step_counts)
        for one in asked
        for which in torch.arange(len(one.part.data)).split(BATCH)
    ]
    workers = processes.workers_on(exact_device(default_device())) if workers is None else workers
    trips = side_by_side([partial(one.travel, steps, which) for one, steps, which in jobs], workers)

    def line(one: Training, steps: int) -> tuple[Line, Tensor | None]:
        of_line = [trip for job, trip in zip(jobs, trips, strict=True) if job[0] is one and job[1] == steps]
        return _line(name, one, steps, of_line)

    places = [(one, steps) for one in asked for steps in row.step_counts]
    found = side_by_side([partial(line, *place) for place in places], workers)
    bounds = side_by_side([partial(one.bound, model.distribution) for one in asked if one.part is parts[-1]], workers)
    bits = {
        (one.seed, one.part.name, steps): of_images for (one, steps), (_, of_images) in zip(places, found, strict=True)
    }
    gaps = [_gap(bits, seeds, steps) for steps in row.step_counts] if len(parts) > 1 and seeds else []
    summary = {"gaps": [gap for gap in gaps if gap], "bounds": [bound for bound in bounds if bound]}
    return [each for each, _ in found], summary


def _line(name: str, one: Training, steps: int, trips: Sequence[Trip | str]) -> tuple[Line, Tensor | None]:
    """A line of likelihood.csv from the trips of all batches, and the bits of each image, (N,); None if one failed."""
    row, count = one.row, len(one.part.data)
    reasons = [trip for trip in trips if isinstance(trip, str)]
    if reasons:
        return Line(name, one.seed, one.part.name, steps, "", "", count, failed=reasons[0]), None
    done = [trip for trip in trips if isinstance(trip, Trip)]
    nats, squares, z = (torch.cat([getattr(trip, key) for trip in done]) for key in ("nats", "squares", "z"))
    entropy = DEQUANTIZATIONS[row.dequantization or ""].entropy(lowest(row, steps))
    bits = bits_per_dimension(nats, z.shape[1], entropy)
    mean, se = mean_estimate(bits)
    p = normality(one.prior.standardised(z, float(row.grid(steps)[0])), row.seed)
    values = (f"{value:.6g}" for value in (mean, se, float(squares.mean().sqrt()), p))
    return Line(name, one.seed, one.part.name, steps, done[0].nfe, done[0].products, count, *values), bits


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


def summary_of(row: Likelihood, parts: Sequence[Part]) -> dict[str, Any]:
    """The conventions of a settled row for JSON, and the sizes of the parts.

    offset_bits: what dequantization adds to -log2 of the density per dimension.
    """
    dimensions, noise = math.prod(parts[0].data.shape[1:]), DEQUANTIZATIONS[row.dequantization or ""]
    offset = float(bits_per_dimension(torch.zeros(1), dimensions, noise.entropy(lowest(row, row.step_counts[-1]))))
    images = {part.name: len(part.data) for part in parts}
    return {"row": row.model_dump(mode="json"), "dimensions": dimensions, "offset_bits": offset, "images": images}


def _gap(bits: Mapping[tuple[int, str, int], Tensor | None], seeds: Sequence[int], steps: int) -> dict[str, Any] | None:
    """Held-out minus training bits at a number of steps, with its standard error over images; None if one failed.

    bits: of each image, by seed, part and steps. Each image has its mean over trainings, which share the images.
    """
    held, train = ([bits[seed, part, steps] for seed in seeds] for part in (HELDOUT, TRAIN))
    if any(of_images is None for of_images in (*held, *train)):
        return None
    here, there = (mean_estimate(torch.stack(part).mean(0)) for part in (held, train))  # type: ignore[arg-type]
    return {"steps": steps, "gap": here.value - there.value, "se": math.hypot(here.se, there.se)}
