"""Seconds per image of every curve: measured apart from the study, since a clock never repeats itself."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.common.devices import default_device
from pipeline.common.errors import NotFinite
from pipeline.common.files import SHORT_HASH, content_hash
from pipeline.common.machine import machine
from pipeline.diffusion.weights import main_file
from pipeline.evaluation.sweep import Source, checkpoint, source
from pipeline.sampling.batches import generate, mean_nfe
from pipeline.sampling.fitted_grids import on_fitted_grid
from pipeline.sampling.row import Sampler, sampler_of

COLUMNS = ["curve", "steps", "nfe", "seconds_per_image", "images", "repetitions", "device", "checkpoint", "sampler"]
CHOSEN = ("labels", "precision", "compile", "guide_images", "ema_halflife_images", "ema_sigma_rel")  # of a curve
IMAGES = 256
REPETITIONS = 3


def sampler_hash(curve: dict[str, Any]) -> str:
    """The first digits of a hash over how a resolved curve row is sampled from its model, its budgets left out."""
    return content_hash({key: curve[key] for key in (*Sampler.model_fields, *CHOSEN) if key != "nfe"})[:SHORT_HASH]


class Timed(NamedTuple):
    """One number of steps of a curve: its row of COLUMNS but for the seconds, and what samples one batch that way."""

    row: dict[str, Any]
    run: Callable[[], object]


def timed_points(name: str, curve: dict[str, Any], model: Path, grids: list[dict[str, Any]]) -> Iterator[Timed]:
    """What there is to time of a resolved curve row, each point run once, which is not counted.

    On the calling thread's number of threads. The hashes tell whether a time is still that of the curve as it stands.
    grids: what was fitted to the model. What cannot be sampled is left out.
    """
    sampler = sampler_of(curve)
    seed = curve["seeds"][0][0]
    own = source(curve, model, seed, default_device())
    origin = {
        "device": machine(own.device)["device"],
        "checkpoint": checkpoint(curve, model, seed)[:SHORT_HASH],
        "sampler": sampler_hash(curve),
    }
    for count in sorted({sampler.steps(budget) for budget in sampler.nfe}):
        row = on_fitted_grid(sampler, grids, main_file(model, seed).name, count)
        batch = partial(_batch, own, row, count)
        try:
            nfe = mean_nfe((len(images), nfe) for images, nfe in batch())
        except NotFinite:
            continue
        found = {"curve": name, "steps": count, "nfe": nfe, "images": IMAGES, "repetitions": REPETITIONS}
        yield Timed(found | origin, batch)


def _batch(own: Source, row: Sampler, count: int) -> list[tuple[Tensor, int]]:
    found = list(generate(own.denoiser, own.shape, row, count, 0, IMAGES, IMAGES, own.device))
    return [(images.cpu(), nfe) for images, nfe in found]  # waits for a GPU


def seconds_of(points: list[Timed]) -> list[dict[str, Any]]:
    """Rows of COLUMNS: the least time to sample one batch, of REPETITIONS.

    The points are timed in turns, so that what else a machine does falls on all alike, and it only ever adds to a time.
    """
    least = [float("inf")] * len(points)
    for _ in range(REPETITIONS):
        for i, point in enumerate(points):
            start = time.perf_counter()
            point.run()
            least[i] = min(least[i], time.perf_counter() - start)
    return [p.row | {"seconds_per_image": f"{s / IMAGES:.3g}"} for p, s in zip(points, least, strict=True)]
