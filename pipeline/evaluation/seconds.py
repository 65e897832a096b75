"""Seconds per image of every curve, measured apart from the study, because a clock never repeats itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipeline.common.devices import default_device
from pipeline.common.errors import NotFinite
from pipeline.common.files import SHORT_HASH
from pipeline.common.machine import machine
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.space import Space
from pipeline.diffusion.weights import content_key, failure, student_of
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits
from pipeline.evaluation.loading import LoadedModel, load_model
from pipeline.sampling.batches import Decode, generate, mean_nfe
from pipeline.sampling.guidance import BySample
from pipeline.sampling.row import Sampler

IMAGES = 256
REPETITIONS = 3


@dataclass(frozen=True)
class Timing:
    """A row of timings.csv: the least time of `repetitions` batches of `images` samples, by one thread.

    checkpoint, sampler: the first digits of hashes of the weights and of the sampler. If they differ from the curve's,
    the timing is out of date.
    """

    curve: str
    steps: int
    nfe: int
    seconds_per_image: float
    images: int
    repetitions: int
    device: str
    checkpoint: str
    sampler: str

    def record(self) -> dict[str, object]:
        """The row as timings.csv holds it."""
        return vars(self) | {"seconds_per_image": f"{self.seconds_per_image:.3g}"}


COLUMNS = [field.name for field in fields(Timing)]


class Timed(NamedTuple):
    """A number of steps of a curve: its row, whose seconds are still unknown, and a function that samples one batch."""

    timing: Timing
    run: Callable[[], object]


def timed_points(name: str, curve: Curve, model: Path, fits: Fits, space: Space | None = None) -> Iterator[Timed]:
    """The numbers of steps of a curve to be timed, on the threads of the calling thread. A first run is not timed.

    model: the folder of its weights, of which the first training that did not fail is timed; none if all failed. fits:
    to the model. space: of its samples. Numbers of steps whose samples are not finite are left out.
    """
    seed = next((seed for seed, _ in curve.seeds if not failure(model, seed)), None)
    if seed is None:
        return
    networks: dict[int | None, LoadedModel] = {}  # by student, each loaded once
    for steps in curve.step_counts:
        student = student_of(model, seed, steps)
        if student not in networks:
            networks[student] = load_model(curve, model, seed, student, default_device())
        loaded = networks[student]
        sampler = fits.applied(curve, seed, steps)
        decode = space.on(loaded.device).decode if space and not space.is_data else None
        batch = partial(_batch, loaded, loaded.at(steps), sampler, steps, decode)
        try:
            nfe = mean_nfe((len(samples), nfe) for samples, nfe in batch())
        except NotFinite:
            continue
        timing = Timing(
            curve=name,
            steps=steps,
            nfe=nfe,
            seconds_per_image=float("inf"),
            images=IMAGES,
            repetitions=REPETITIONS,
            device=machine(loaded.device)["device"],
            checkpoint=content_key(model, seed, curve.weights(student))[:SHORT_HASH],
            sampler=curve.sampler_hash,
        )
        yield Timed(timing, batch)


def _batch(
    loaded: LoadedModel,
    denoiser: DenoiserFunction | BySample,
    sampler: Sampler,
    steps: int,
    decode: Decode | None,
) -> list[tuple[Tensor, int]]:
    batches = generate(denoiser, loaded.shape, sampler, steps, 0, IMAGES, IMAGES, loaded.device, decode)
    return [(samples.cpu(), nfe) for samples, nfe in batches]  # `cpu` waits for a GPU


def seconds_of(points: Sequence[Timed]) -> list[Timing]:
    """Time all points: the least time to sample one batch, of REPETITIONS.

    The points take turns, so that other work on the machine affects all alike. The least time counts, because other
    work only ever adds time.
    """
    least = [float("inf")] * len(points)
    for _ in range(REPETITIONS):
        for i, point in enumerate(points):
            start = time.perf_counter()
            point.run()
            least[i] = min(least[i], time.perf_counter() - start)
    return [
        replace(point.timing, seconds_per_image=seconds / IMAGES) for point, seconds in zip(points, least, strict=True)
    ]
