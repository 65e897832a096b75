"""The training loop against a bare loop in PyTorch: a Markdown table of speed and memory.

python -m benchmarks.loop [--quick]: with --quick, the default network only. Both loops train the same network with the
same optimizer and precision; their steps alternate on two threads. The bare loop takes a batch from a tensor, adds
noise and steps. Ours also draws by seed and step, weights the loss, tracks the average and checks for values that are
not finite.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from pipeline.common.devices import CPU, autocast
from pipeline.data.dataset import to_range
from pipeline.diffusion.denoiser import new_denoiser, per_sample
from pipeline.diffusion.networks.layers import Dropout
from pipeline.training import augmentation
from pipeline.training.batches import Examples
from pipeline.training.loop import advance
from pipeline.training.optimizer import adam
from pipeline.training.row import Model
from pipeline.training.run import Run

SIGMA_DATA = 0.5
THREADS = 2
GOAL = 0.95  # of the bare loop's images per second
DDPMPP = {
    "network": "ddpmpp",
    "channels": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (16,),
    "batch": 64,
}
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], int, int]] = {  # row, shape, warm-up steps, measured steps
    "default, 8 x 8": ({}, (1, 8, 8), 10, 300),
    "DDPM++, 32 x 32": (DDPMPP, (3, 32, 32), 1, 2),
}


def our_step(row: Model, shape: tuple[int, ...]) -> Callable[[], None]:
    run, examples = Run(row.spec(SIGMA_DATA, shape), row, 0), Examples(made_up(row, shape))
    return lambda: advance(run, examples)


def bare_step(row: Model, shape: tuple[int, ...], device: torch.device = CPU) -> Callable[[], None]:
    """A step with EDM's loss and noise and nothing else, in the row's precision and compilation."""
    denoiser, images = new_denoiser(row.spec(SIGMA_DATA, shape), 0).to(device), made_up(row, shape).to(device)
    optimizer = adam(denoiser.parameters(), row.learning_rate)
    network = torch.compile(denoiser.network, dynamic=False) if row.compile == "default" else denoiser.network
    for layer in (module for module in denoiser.modules() if isinstance(module, Dropout)):
        layer.generator = torch.Generator(device)
    conditioning = torch.zeros(row.batch, augmentation.LABELS, device=device) if row.augment else None

    def step() -> None:
        x0 = to_range(images[torch.randint(len(images), (row.batch,), device=device)])
        sigma = (torch.randn(row.batch, dtype=torch.float64, device=device) * row.P_std + row.P_mean).exp()
        c_skip, c_out, c_in, c_noise = denoiser.coefficients(sigma, SIGMA_DATA)
        z = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
        with autocast(row.precision, device):
            f = network(per_sample(c_in, x0) * z, c_noise.float(), None, conditioning)
        target = (x0 - per_sample(c_skip, x0) * z) / per_sample(c_out, x0)
        optimizer.zero_grad()
        (f - target).square().mean().backward()
        optimizer.step()

    return step


STEPS = {"ours": our_step, "bare": bare_step}


def made_up(row: Model, shape: tuple[int, ...]) -> torch.Tensor:
    """Images of random pixels, uint8."""
    return torch.randint(0, 256, (4 * row.batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def images_per_second(row: Model, shape: tuple[int, ...], warm_up: int, steps: int) -> dict[str, float]:
    """The rates of both loops, from the medians of alternating steps."""
    loops = {name: make(row, shape) for name, make in STEPS.items()}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for step in range(warm_up + steps):
        for name in sorted(loops, reverse=bool(step % 2)):
            start = time.perf_counter()
            loops[name]()
            times[name].append(time.perf_counter() - start)
    return {name: row.batch / median(seconds[warm_up:]) for name, seconds in times.items()}


def peak_mib(name: str, row: Model, shape: tuple[int, ...]) -> float:
    """The peak memory of a process that runs two steps of a loop."""
    torch.set_num_threads(THREADS)
    step = STEPS[name](row, shape)
    for _ in range(2):
        step()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    print("| network | parameters | batch | images/s, bare | images/s, ours | ours / bare | goal |", end="")
    print(" peak MiB, bare | peak MiB, ours | goal |\n|" + " --- |" * 10)
    for name, (choices, shape, warm_up, steps) in list(CASES.items())[: 1 if quick else None]:
        row = Model(**choices)
        weights = sum(p.numel() for p in new_denoiser(row.spec(SIGMA_DATA, shape), 0).parameters())
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {loop: pool.apply(peak_mib, (loop, row, shape)) for loop in STEPS}
        rates = images_per_second(row, shape, warm_up, steps)
        print(
            f"| {name} | {weights:,} | {row.batch} | {rates['bare']:.1f} | {rates['ours']:.1f} "
            f"| {rates['ours'] / rates['bare']:.3f} | >= {GOAL} | {peaks['bare']:.0f} | {peaks['ours']:.0f} "
            f"| <= {peaks['bare'] + weights * 4 / 2**20:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
