"""What this machine's device gets out of the networks of studies/cifar10: Markdown tables of rates, beside plain loops.

python -m benchmarks.device [--presets short paper] [--batches 256 1024] [--seconds 10]. The device is the GPU where
there is one, else the CPU, which takes the `smoke` preset at smaller batches unless told otherwise.

Rates of training and sampling are in images per second, and as a share of the rate at which the device multiplies
large matrices in the same precision, which is measured first: the work is that of the network's products and
convolutions alone, three times a call's for a step of training. A plain loop does the same with the same network,
compiled alike, and nothing around it: no draws by name, no average, nothing noted. Both are timed in turns, by medians.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from benchmarks.loop import bare_step, made_up
from pipeline.common.devices import autocast, compiled_calls, default_device
from pipeline.common.machine import machine
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
GOALS = {"training": 0.40, "sampling": 0.03, "distance": 0.5}

Loop = Callable[[], object]


def row_of(preset: str) -> Model:
    """The baseline model of the study at a preset."""
    text = preset_text(STUDY.read_text(), "cifar10", preset)
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


def main() -> None:
    device = default_device()
    on_cpu = device.type == "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    presets = list(parse_study(STUDY.read_text(), STUDY).presets)
    parser.add_argument("--presets", nargs="+", choices=presets, default=["smoke"] if on_cpu else ["short", "paper"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64] if on_cpu else [256, 1024])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement, about")
    chosen = parser.parse_args()
    print(f"{machine(device)['device']}, PyTorch {torch.__version__}\n")
    rows = {preset: row_of(preset) for preset in chosen.presets}
    rates = {kind: matrix_rate(kind, device, chosen.seconds) for kind in {row.precision for row in rows.values()}}
    for kind, rate in rates.items():
        print(f"large products in {kind}: {rate / 1e12:.3g} Tflop/s")
    print(
        "\n| what | network | parameters | batch | images/s | images/s, plain | ours / plain | of the products' rate |"
    )
    print("|" + " --- |" * 8)
    for preset, row in rows.items():
        size = cost(row.spec(SIGMA_DATA, SHAPE))
        for batch in chosen.batches:
            own = row.model_copy(update={"batch": batch, "micro_batch": None})
            for what, make, calls in (
                ("training", training_loops, BACKWARD),
                ("sampling", sampling_loops, Sampler().evaluations(STEPS)),
            ):
                network = f"| {what} | {preset} | {size.parameters:,} | {batch} |"
                try:
                    seconds = seconds_of(make(own, device), device, chosen.seconds)
                except torch.OutOfMemoryError:
                    print(f"{network} out of memory | | | |", flush=True)
                    continue
                share = calls * size.flops * batch / seconds["ours"] / rates[row.precision]
                print(
                    f"{network} {batch / seconds['ours']:.3g} | {batch / seconds['plain']:.3g} "
                    f"| {seconds['plain'] / seconds['ours']:.3f} | {share:.1%} |",
                    flush=True,
                )
    print(f"\nFrechet distance at d = {DIMENSIONS}: {distance_seconds(device, chosen.seconds):.3g} s")
    print(
        f"\ngoals on one H200: training at {GOALS['training']:.0%} or more of the products' rate for `paper`, sampling "
        f"within {GOALS['sampling']:.0%} of the plain loop, the distance in less than {GOALS['distance']} s"
    )


if __name__ == "__main__":
    main()
