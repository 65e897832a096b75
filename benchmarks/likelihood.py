"""The cost of a likelihood: seconds of an exact trace, and an estimated trace relative to sampling with the same NFE.

python -m benchmarks.likelihood: the networks are those of the default study, with weights as they are initialised.
Sampling and likelihood alternate. The time is that of the thread on the processor, on which other work has little
influence.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from pipeline.diffusion.denoiser import Denoiser, new_denoiser
from pipeline.evaluation.likelihood import log_likelihood
from pipeline.evaluation.likelihoods import BATCH
from pipeline.sampling import sample
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

HEUN = Sampler(solver="heun", nfe=(35,))
STEPS = HEUN.steps(35)
IMAGES = 256
GOAL_SECONDS, GOAL_RATIO = 8.0, 3.2
PAIRS = 3


def network(shape: tuple[int, ...]) -> Denoiser:
    return new_denoiser(Model().spec(0.5, shape), 0).eval().requires_grad_(False)


def seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def exact_seconds() -> float:
    """Seconds on one thread for the exact log-likelihood of IMAGES images of 1 x 8 x 8 at 35 evaluations of Heun."""
    denoiser, x = network((1, 8, 8)), torch.randn(BATCH, 1, 8, 8, dtype=torch.float64)
    return min(seconds(lambda: log_likelihood(denoiser, x, HEUN, STEPS)) for _ in range(2)) * IMAGES / BATCH


def estimated_ratio() -> float:
    """The time of an estimated log-likelihood of images of 3 x 32 x 32 over that of sampling with the same solver."""
    denoiser, x = network((3, 32, 32)), torch.randn(16, 3, 32, 32)
    probes = torch.randint(2, (1, *x.shape)) * 2.0 - 1
    ratios = []
    for _ in range(PAIRS):
        sampled = seconds(lambda: sample(denoiser, x, HEUN, STEPS))
        measured = seconds(lambda: log_likelihood(denoiser, x.double(), HEUN, STEPS, "hutchinson", probes))
        ratios.append(measured / sampled)
    return median(ratios)


def main() -> None:
    torch.set_num_threads(1)
    exact, ratio = exact_seconds(), estimated_ratio()
    print("| what | measured | goal |")
    print("| --- | --- | --- |")
    print(
        f"| exact trace, {IMAGES} images of 1 x 8 x 8, on each of two cores | {exact / 2:.1f} s | {GOAL_SECONDS:g} s |"
    )
    print(f"| hutchinson, 3 x 32 x 32, over sampling | {ratio:.2f} | {GOAL_RATIO:g} |")


if __name__ == "__main__":
    main()
