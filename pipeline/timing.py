"""Seconds per image of every curve: measured apart from the study, since a clock never repeats itself."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.errors import NotFinite
from pipeline.files import content_hash
from pipeline.optimised import on_fitted_grid
from pipeline.provenance import machine
from pipeline.report.results import SHORT_HASH
from pipeline.sampler import Sampler, sampler_of
from pipeline.sampling import generate, mean_nfe
from pipeline.sweep import checkpoint, source
from pipeline.weights import main_file

COLUMNS = ["curve", "steps", "nfe", "seconds_per_image", "images", "repetitions", "device", "checkpoint", "sampler"]
CHOSEN = ("labels", "guide_images", "ema_halflife_images", "ema_sigma_rel")  # of a curve, beside its sampler
IMAGES = 256
REPETITIONS = 3


def sampler_hash(curve: dict[str, Any]) -> str:
    """The first digits of a hash over how a resolved curve row is sampled from its model, its budgets left out."""
    return content_hash({key: curve[key] for key in (*Sampler.model_fields, *CHOSEN) if key != "nfe"})[:SHORT_HASH]


def time_curve(name: str, curve: dict[str, Any], model: Path, grids: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The median time to sample one batch with each number of steps of a resolved curve row: rows with COLUMNS.

    On the calling thread's number of threads; a first batch is not counted. The hashes tell whether a time is still
    that of the curve as it stands. grids: what was fitted to the model. What cannot be sampled is left out.
    """
    sampler = sampler_of(curve)
    seed = curve["seeds"][0][0]
    denoiser, shape = source(curve, model, seed)
    origin = {
        "device": machine()["device"],
        "checkpoint": checkpoint(curve, model, seed)[:SHORT_HASH],
        "sampler": sampler_hash(curve),
    }
    for count in sorted({sampler.steps(budget) for budget in sampler.nfe}):
        row = on_fitted_grid(sampler, grids, main_file(model, seed).name, count)
        seconds: list[float] = []
        try:
            for repetition in range(-1, REPETITIONS):
                start = time.perf_counter()
                made = list(generate(denoiser, shape, row, count, max(repetition, 0), IMAGES, IMAGES))
                seconds.append(time.perf_counter() - start)
        except NotFinite:
            continue
        nfe = mean_nfe((len(images), nfe) for images, nfe in made)
        found = {"curve": name, "steps": count, "nfe": nfe}
        found["seconds_per_image"] = f"{median(seconds[1:]) / IMAGES:.3g}"
        yield found | {"images": IMAGES, "repetitions": REPETITIONS} | origin
