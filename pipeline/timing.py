"""Seconds per image of every curve: measured apart from the study, since a clock never repeats itself."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.denoiser import load_denoiser
from pipeline.provenance import machine
from pipeline.sampler import Sampler
from pipeline.sampling import generate

COLUMNS = ["curve", "steps", "nfe", "seconds_per_image", "images", "repetitions", "device"]
IMAGES = 256
REPETITIONS = 3


def time_curve(name: str, curve: dict[str, Any], model: Path) -> Iterator[dict[str, Any]]:
    """The median time to sample one batch with each number of steps of a resolved curve row: rows with COLUMNS.

    On the threads that this process has; the study's sweeps use one for each batch. The first batch is not counted.
    """
    sampler = Sampler(**{k: curve[k] for k in Sampler.model_fields})
    denoiser = load_denoiser(model / f"seed_{curve['seeds'][0][0]}.safetensors")
    steps = sorted({sampler.steps(budget) for budget in sampler.nfe})
    list(generate(denoiser, denoiser.shape, sampler, steps[0], 0, IMAGES, IMAGES))
    for count in steps:
        seconds, nfe = [], 0
        for repetition in range(REPETITIONS):
            start = time.perf_counter()
            [(_, nfe)] = generate(denoiser, denoiser.shape, sampler, count, repetition, IMAGES, IMAGES)
            seconds.append(time.perf_counter() - start)
        row = {"curve": name, "steps": count, "nfe": nfe, "seconds_per_image": f"{median(seconds) / IMAGES:.3g}"}
        yield row | {"images": IMAGES, "repetitions": REPETITIONS, "device": machine()["device"]}
