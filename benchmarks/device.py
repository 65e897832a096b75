"""Rates of training and sampling on a device: images per second of the networks of studies/cifar10, beside plain loops.

A rate is also given as a share of that at which the device multiplies large matrices in the same precision: the work
is that of the network's products and convolutions alone, three times a call's for a step of training. A plain loop does
the same with the same network, compiled alike, and nothing around it: no draws by name, no average, nothing noted. Both
are timed in turns, by medians.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.loop import bare_step, made_up
from pipeline.common.devices import autocast, compiled_calls
from pipeline.common.randomness import SampleNoise
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.networks.registry import cost
from pipeline.metrics.estimate import Moments, moments
from pipeline.metrics.frechet import frechet_distance
from pipeline.params.presets import preset_text
from pipeline.params.resolve import resolve
from pipeline.params.study import parse_study
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training.batches import Examples
from pipeline.training.loop import advance
from pipeline.training.row import Model
from pipeline.training.run import Run

STUDY = Path("studies/cifar10/params.yaml")
SHAPE, SIGMA_DATA = (3, 32, 32), 0.5
STEPS = 18  # of Heun's method, 35 evaluations
BACKWARD = 3  # a step of training takes three calls' products
FEATURES, DIMENSIONS = 10_000, 2048

Loop = Callable[[], object]


def row_of(preset: str) -> Model:
    """The baseline model of the study at a preset."""
    text = preset_text(STUDY.read_text(encoding="utf-8"), "cifar10", preset)
    return resolve(parse_study(text, STUDY)).models["edm"].row


def seconds_of(loops: dict[str, Loop], device: torch.device, budget: float) -> dict[str, float]:
    """The median seconds of each loop, in turns, for about `budget` seconds in all, the first two turns uncounted."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    end, turn = float("inf"), 0
    while turn < 5 or time.perf_counter() < end:
        for name in sorted(loops, reverse=bool(turn % 2)):
            start = time.perf_counter()
            loops[name]()
            wait(device)
            times[name].append(time.perf_counter() - start)
        turn += 1
        end = time.perf_counter() + budget if turn == 2 else end
    return {name: median(found[2:]) for name, found in times.items()}


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_rate(precision: str, device: torch.device, budget: float) -> float:
    """Operations per second of a product of large square matrices."""
    size = 1024 if device.type == "cpu" else 8192
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return 2 * size**3 / seconds_of({"product": lambda: a @ b}, device, budget)["product"]


def training_loops(row: Model, device: torch.device) -> dict[str, Loop]:
    run = Run(row.spec(SIGMA_DATA, SHAPE), row, 0, device)
    examples = Examples(made_up(row, SHAPE).to(device))

    def ours() -> None:
        run.step %= row.steps  # a preset may train for fewer steps than there is time for
        advance(run, examples)

    return {"ours": ours, "plain": bare_step(row, SHAPE, device)}


def sampling_loops(row: Model, device: torch.device) -> dict[str, Loop]:
    """EDM's sampler, ours and written out: Heun's method on its grid."""
    denoiser = Denoiser(row.spec(SIGMA_DATA, SHAPE)).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        if not parameter.any():  # else the network would answer 0
            torch.nn.init.normal_(parameter, std=0.02)
    batch, sampler = row.batch, Sampler()
    noise = torch.randn(batch, *SHAPE, device=device)
    denoiser.run_on(device, row.precision, row.compile)
    network = compiled_calls(denoiser.network, device) if row.compile == "default" else denoiser.network
    sigmas = sampler.grid(STEPS).tolist()

    def call(z: torch.Tensor, sigma: float) -> torch.Tensor:
        total = (sigma**2 + SIGMA_DATA**2) ** 0.5
        c_noise = torch.full((batch,), torch.tensor(sigma).log().item() / 4, device=device)
        with autocast(row.precision, device):
            f = network((z / total).float(), c_noise, None)
        denoised = (SIGMA_DATA / total) ** 2 * z + sigma * SIGMA_DATA / total * f
        return (z - denoised) / sigma

    @torch.no_grad()
    def plain() -> torch.Tensor:
        z = noise.double() * sigmas[0] if device.type != "mps" else noise * sigmas[0]
        for sigma, sigma_next in pairwise(sigmas):
            slope = call(z, sigma)
            end = z + (sigma_next - sigma) * slope
            if sigma_next:
                end = z + (sigma_next - sigma) / 2 * (slope + call(end, sigma_next))
            z = end
        return z

    return {"ours": lambda: sample(denoiser, noise, sampler, STEPS), "plain": plain}


def distance_seconds(device: torch.device, budget: float) -> float:
    """Of a Frechet distance from features to given moments, whose root is kept."""
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(FEATURES, DIMENSIONS, generator=draw).to(device) for _ in range(2))
    reference: Moments = moments(other)
    return seconds_of({"distance": lambda: frechet_distance(moments(one), reference)}, device, budget)["distance"]


def rates(preset: str, row: Model, products: float, device: torch.device, budget: float) -> list[dict[str, Any]]:
    """Images per second of training and sampling with a row at its batch: ours, those of plain loops, their ratio.

    products: the matrices' rate in the row's precision. share: of that rate. Without rates if memory does not suffice.
    """
    size, found = cost(row.spec(SIGMA_DATA, SHAPE)), []
    for what, make, calls in (
        ("training", training_loops, BACKWARD),
        ("sampling", sampling_loops, Sampler().evaluations(STEPS)),
    ):
        case = {"what": what, "network": preset, "parameters": size.parameters, "batch": row.batch}
        try:
            seconds = seconds_of(make(row, device), device, budget)
        except torch.OutOfMemoryError:
            found.append(case | {"failed": "out of memory"})
            continue
        ours, plain = (row.batch / seconds[name] for name in ("ours", "plain"))
        share = calls * size.flops * ours / products
        found.append(case | {"images_per_second": ours, "plain": plain, "ratio": ours / plain, "share": share})
    return found


def noise_cost(preset: str, row: Model, device: torch.device, budget: float) -> dict[str, Any]:
    """Milliseconds of the noise that a stochastic solver draws for one step, and of the network's call in that step.

    Each sample has a stream of its own on the CPU, so that its noise does not depend on the batch.
    """
    denoiser = Denoiser(row.spec(SIGMA_DATA, SHAPE)).eval().requires_grad_(False)
    denoiser.run_on(device, row.precision, row.compile)
    z, sigma = torch.randn(row.batch, *SHAPE, device=device), torch.tensor(1.0, dtype=torch.float64)
    noise = SampleNoise(0, range(row.batch))
    loops: dict[str, Loop] = {"noise": lambda: noise.randn_like(z), "call": lambda: denoiser(z, sigma)}
    with torch.no_grad():
        seconds = seconds_of(loops, device, budget)
    noise_ms, call_ms = seconds["noise"] * 1e3, seconds["call"] * 1e3
    return {
        "network": preset,
        "batch": row.batch,
        "noise_ms": noise_ms,
        "call_ms": call_ms,
        "ratio": noise_ms / call_ms,
    }
