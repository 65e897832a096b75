"""The price of latents and cascades: whether training costs what its FLOPs say, and what decoding and encoding take.

python -m benchmarks.latents: images are of 3 x 16 x 16, as in the study scale_up; weights are as they are initialised.
Candidates alternate on one thread, and each time is the least of its rounds. It is that of the thread on the processor,
on which other work has little influence.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from pipeline.data.dataset import to_range
from pipeline.diffusion.autoencoder import new_autoencoder
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.diffusion.networks.registry import cost
from pipeline.diffusion.upsampling import Low, averaged
from pipeline.sampling.batches import generate_share
from pipeline.sampling.row import Sampler
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.batches import Examples
from pipeline.training.loop import advance
from pipeline.training.row import Model
from pipeline.training.run import Run

Name = TypeVar("Name")
SHAPE, SIGMA_DATA = (3, 16, 16), 0.5
IMAGES = 1024
ROUNDS = 15
HEUN = Sampler(solver="heun")
STEPS = 18  # 35 evaluations
BATCH = 512  # samples at a time
GOALS = (0.15, 0.10)  # of a training step, of decoding

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # keys of a model row, and the shape of its data
    "pixels": ({}, SHAPE),
    "latents": ({}, (4, 8, 8)),
    "latents, 32 channels": ({"channels": 32}, (4, 8, 8)),
    "small latents": ({}, (8, 4, 4)),
    "small latents, 32 channels": ({"channels": 32}, (8, 4, 4)),
    "upsampler": ({"upsampler": {"from": 8}}, SHAPE),
}
AUTOENCODERS = {
    f"kl, factor {factor}, width {width}": AutoencoderRow(factor=factor, channels=2 * factor, width=width)
    for factor in (2, 4)
    for width in (32, 16)
}


def least(candidates: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """The least seconds of each candidate over so many rounds, in which they alternate; a first round is not timed."""
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(1 + rounds):
        for name, work in candidates.items():
            start = time.thread_time()
            work()
            seconds[name].append(time.thread_time() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


class Training(NamedTuple):
    """One of NETWORKS relative to that of pixels. flops: of an evaluation. step: seconds of a training step per FLOPs;
    alone: those of the network and its gradient, without the rest of the step."""

    seconds: float  # of a step, per image
    flops: float
    step: float
    alone: float


def works_of(name: str) -> tuple[Callable[[], object], Callable[[], object], int]:
    """A training step of one of NETWORKS, its network and gradient alone, and the FLOPs of an evaluation."""
    keys, shape = NETWORKS[name]
    row, draws = Model(**keys), torch.Generator().manual_seed(0)
    spec = row.spec(SIGMA_DATA, shape)
    images = torch.randn(IMAGES, *shape, generator=draws)
    x, c_noise = images[: row.batch].to(memory_format=torch.channels_last), torch.zeros(row.batch)
    if shape == SHAPE:
        images = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=draws)
    run, examples = Run(spec, row, 0), Examples(images)
    low = [None, *run.denoiser.low_inputs(Low(averaged(x, spec.low[1]), c_noise))] if spec.low else []
    return (
        lambda: advance(run, examples),
        lambda: run.network(x, c_noise, None, *low).square().sum().backward(),
        cost(spec).flops,
    )


def training(rounds: int = ROUNDS) -> dict[str, Training]:
    works, flops = {}, {}
    for name in NETWORKS:
        works[name, "step"], works[name, "alone"], flops[name] = works_of(name)
    seconds = least(works, rounds)

    def of(name: str) -> Training:
        ratio = flops[name] / flops["pixels"]
        step, alone = (seconds[name, kind] / seconds["pixels", kind] / ratio for kind in ("step", "alone"))
        return Training(seconds[name, "step"] / Model().batch, ratio, step, alone)

    return {name: of(name) for name in NETWORKS}


def coding(name: str, rounds: int, steps: int = STEPS, count: int = IMAGES) -> tuple[float, float, float]:
    """Seconds to sample `count` latents, to decode them, and to encode so many images, with one of AUTOENCODERS."""
    spec = AUTOENCODERS[name].spec(SHAPE)
    autoencoder = new_autoencoder(spec, 0).eval().requires_grad_(False)
    network = new_denoiser(Model().spec(1.0, spec.latent_shape), 0).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(count, *spec.latent_shape, generator=draws)
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=draws)
    seconds = least(
        {
            "sample": lambda: [*generate_share(network, spec.latent_shape, HEUN, steps, 0, count, BATCH)],
            "decode": lambda: [autoencoder.decode(part) for part in z.split(BATCH)],
            "encode": lambda: autoencoder.encode(to_range(images)),
        },
        rounds,
    )
    return seconds["sample"], seconds["decode"], seconds["encode"]


def main() -> None:
    torch.set_num_threads(1)
    step, decode = GOALS
    print(f"| network | ms an image | FLOPs / pixels' | time / FLOPs | within {step:.0%} | network alone / FLOPs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in training().items():
        within = "yes" if abs(found.step - 1) <= step else "no"
        print(
            f"| {name} | {found.seconds * 1e3:.3f} | {found.flops:.3f} | {found.step:.2f} | {within} | "
            f"{found.alone:.2f} |",
            flush=True,
        )
    evaluations = HEUN.evaluations(STEPS)
    print(
        f"\n| autoencoder | {evaluations} evaluations (ms) | decode (ms) | ratio | below {decode:.0%} | encode (ms) |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in AUTOENCODERS:
        sampled, decoded, encoded = (seconds / IMAGES * 1e3 for seconds in coding(name, 3))
        below = "yes" if decoded / sampled < decode else "no"
        print(
            f"| {name} | {sampled:.3f} | {decoded:.3f} | {decoded / sampled:.1%} | {below} | {encoded:.3f} |",
            flush=True,
        )
    print("\nAll times are of one image on one thread; the network of samples has 16 channels.")


if __name__ == "__main__":
    main()
