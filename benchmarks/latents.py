"""The price of latents and cascades: whether training costs what its FLOPs say, and what decoding and encoding take.

python -m benchmarks.latents: images are of 3 x 16 x 16, as in the study scale_up; weights are as they are initialised.
Candidates alternate on one thread, and each time is the least of its rounds. It is that of the thread on the processor,
on which other work has little influence.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.data.dataset import to_range
from pipeline.diffusion.autoencoder import new_autoencoder
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.diffusion.networks.registry import cost
from pipeline.sampling.batches import generate_share
from pipeline.sampling.row import Sampler
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.batches import Examples
from pipeline.training.loop import advance
from pipeline.training.row import Model
from pipeline.training.run import Run

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


def least(candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """The least seconds of each candidate over so many rounds, in which they alternate; a first round is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(1 + rounds):
        for name, work in candidates.items():
            start = time.thread_time()
            work()
            seconds[name].append(time.thread_time() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def step_of(name: str) -> tuple[Callable[[], object], int]:
    """A training step of one of NETWORKS, and the FLOPs of an evaluation of one image."""
    keys, shape = NETWORKS[name]
    row, draws = Model(**keys), torch.Generator().manual_seed(0)
    spec = row.spec(SIGMA_DATA, shape)
    images = torch.randn(IMAGES, *shape, generator=draws)
    if shape == SHAPE:
        images = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=draws)
    run, examples = Run(spec, row, 0), Examples(images)
    return lambda: advance(run, examples), cost(spec).flops


def training(rounds: int = ROUNDS) -> dict[str, tuple[float, float, float]]:
    """Seconds per image of a training step, the FLOPs of an evaluation relative to those in pixels, and the seconds
    relative to pixels' per relative FLOPs."""
    steps, flops = {}, {}
    for name in NETWORKS:
        steps[name], flops[name] = step_of(name)
    seconds = least(steps, rounds)
    ratios = {name: flops[name] / flops["pixels"] for name in NETWORKS}
    return {
        name: (seconds[name] / Model().batch, ratio, seconds[name] / seconds["pixels"] / ratio)
        for name, ratio in ratios.items()
    }


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
    print(f"| network | ms an image | FLOPs / pixels' | time / price | within {step:.0%} |")
    print("| --- | --- | --- | --- | --- |")
    for name, (seconds, flops, ratio) in training().items():
        within = "yes" if abs(ratio - 1) <= step else "no"
        print(f"| {name} | {seconds * 1e3:.3f} | {flops:.3f} | {ratio:.2f} | {within} |", flush=True)
    evaluations = HEUN.evaluations(STEPS)
    print(f"\n| autoencoder | {evaluations} evaluations (ms) | decode (ms) | ratio | below {decode:.0%} | encode (ms) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in AUTOENCODERS:
        sampled, decoded, encoded = (seconds / IMAGES * 1e3 for seconds in coding(name, 3))
        below = "yes" if decoded / sampled < decode else "no"
        print(
            f"| {name} | {sampled:.3f} | {decoded:.3f} | {decoded / sampled:.1%} | {below} | {encoded:.3f} |", flush=True
        )
    print("\nAll times are of one image on one thread; the network of samples has 16 channels.")


if __name__ == "__main__":
    main()
