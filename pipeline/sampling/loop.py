"""The sampling loop: from standard normal noise to images, with its evaluations counted."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.devices import CPU, say_once, state_type, to_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.randomness import SampleNoise
from pipeline.data.dataset import to_data
from pipeline.diffusion.denoiser import Counted, DenoiserFunction
from pipeline.sampling.guidance import BySample
from pipeline.sampling.ode import Ode, RandnLike
from pipeline.sampling.row import Sampler

# A matrix product of very few rows takes another path through the linear algebra library and rounds differently. So do
# the last numbers of a tensor, fewer than 32, where PyTorch computes as many at once: channels come in multiples of 8.
MIN_BATCH, BATCH_STEP = 16, 4
GROUP = 64  # samples whose steps an adaptive solver chooses together
ALL = slice(None)


@dataclass(frozen=True)
class Samples:
    """x0 (N, ...), in the solver's precision, and how many calls of networks each of them cost."""

    x0: Tensor
    nfe: int


def draw_like(x: Tensor) -> Tensor:
    """Standard normal noise of x's shape, drawn in float32, which is five times as fast as in float64."""
    return torch.randn(x.shape, device=x.device).to(x.dtype)


@torch.no_grad()
def sample(
    denoiser: DenoiserFunction, noise: Tensor, sampler: Sampler, steps: int, randn_like: RandnLike = draw_like
) -> Samples:
    """Solve the sampler's ODE or SDE from sigma_max to 0 in `steps` steps.

    denoiser(z, sigma) -> D, with z (N, ...) and sigma a float64 scalar tensor; it is guided already where the sampler
    has guidance (`pipeline.guidance`), and calls of all its networks count. noise: standard normal, (N, ...), on the
    denoiser's device; randn_like(x) -> noise of x's shape, which only stochastic samplers call. The state is kept in
    float64, where the device has that.
    Raises NotFinite where an answer of the denoiser or a sample is not finite, naming the step and sigma.
    """
    counted = Counted(denoiser)
    ode = Ode(counted, sampler.build_schedule(), sampler.build_scaling())
    sigmas = sampler.grid(steps).tolist()
    z = noise.to(state_type(noise.device)) * sigmas[0]
    ends = []  # evaluations made by the end of each step
    try:
        for state in sampler.build_solver().run(ode, z, sigmas, randn_like):
            z = state
            ends.append(counted.nfe)
    except StudyError:
        _check(counted, z, ends, steps)
        raise
    _check(counted, z, ends, steps)
    return Samples(z, counted.nfe)


def _check(counted: Counted, z: Tensor, ends: list[int], steps: int) -> None:
    """Raise NotFinite where an answer, or else z, is not; ends: evaluations made by the end of each step.

    It looks at all of them at once, since every look waits for the device.
    """
    place = counted.not_finite(z)
    if place == counted.nfe:
        raise NotFinite(f"step {len(ends)} of {steps}: the samples are not finite")
    if place is not None:
        step, sigma = bisect_right(ends, place) + 1, float(counted.sigmas[place])
        raise NotFinite(f"step {step} of {steps}, sigma {sigma:.4g}: the denoiser's answer is not finite")


def batches(sampler: Sampler, count: int, batch: int) -> list[Tensor]:
    """The numbers of the samples in each of the batches in which `count` samples are made, (n,) each.

    An adaptive solver gets whole groups of GROUP samples, whatever `count` and `batch` are, since it chooses one step
    for all that it is given.
    """
    if sampler.build_solver().adaptive:
        return [torch.arange(first, first + GROUP) for first in range(0, count, GROUP)]
    return list(torch.arange(count).tensor_split(-(-count // batch)))


def generate(
    denoiser: DenoiserFunction | BySample,
    shape: tuple[int, ...],
    sampler: Sampler,
    steps: int,
    seed: int,
    count: int,
    batch: int,
    device: torch.device = CPU,
    share: slice = ALL,
) -> Iterator[tuple[Tensor, int]]:
    """Sample `count` images of `shape`, in batches of about `batch`: each as uint8 (n, *shape), points as float32, on
    the device, and its counted NFE. `share`: of these batches only.

    Image i and its class depend on (seed, i) alone, and its first noise is the same for every sampler. Where a device's
    memory doesn't suffice, this batch and those that follow are halved, once, which is said on stderr; then, and of a
    share, it is a StudyError.
    """
    waiting, halved = deque(batches(sampler, count, batch)[share]), False
    while waiting:
        indices = waiting[0]
        try:
            samples = _sample_batch(denoiser, shape, sampler, steps, seed, indices, device)
        except torch.OutOfMemoryError:
            if halved or share != ALL or len(indices) <= MIN_BATCH or sampler.build_solver().adaptive:
                raise StudyError(
                    f"out of memory on {device} with {len(indices)} samples at a time; "
                    f"set batch: {max(len(indices) // 2, 1)} in the curve's row"
                ) from None
            say_once(f"out of memory with {len(indices)} samples at a time: from here on with half as many")
            torch.cuda.empty_cache()
            waiting, halved = deque(half for each in waiting for half in each.tensor_split(2)), True
            continue
        waiting.popleft()
        yield to_data(samples.x0[: int((indices < count).sum())]), samples.nfe


def _sample_batch(
    denoiser: DenoiserFunction | BySample,
    shape: tuple[int, ...],
    sampler: Sampler,
    steps: int,
    seed: int,
    indices: Tensor,
    device: torch.device,
) -> Samples:
    """The samples of these numbers, (n,), and behind them as many of them again as make a batch of a good size."""
    size = max(MIN_BATCH, -(-len(indices) // BATCH_STEP) * BATCH_STEP)
    padded = indices[torch.arange(size) % len(indices)].tolist()
    own = denoiser.for_samples(seed, padded) if isinstance(denoiser, BySample) else denoiser
    noise = SampleNoise(seed, padded)
    return sample(own, to_device(noise.randn(shape), device), sampler, steps, noise.randn_like)


def mean_nfe(costs: Iterable[tuple[int, int]]) -> int:
    """What a sample costs, from (samples, nfe) of each batch: their mean, rounded up where an adaptive solver spends
    unequally."""
    counts, nfe = zip(*costs, strict=True)
    return -(-sum(n * cost for n, cost in zip(counts, nfe, strict=True)) // sum(counts))
