"""The sampling loop: from standard normal noise to images, with its evaluations counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.data import to_uint8
from pipeline.denoiser import Counted, DenoiserFunction
from pipeline.errors import StudyError
from pipeline.randomness import SampleNoise
from pipeline.sampler import Sampler
from pipeline.solver import Path, RandnLike

# A matrix product of very few rows takes another path through the linear algebra library and rounds differently.
MIN_BATCH = 16


@dataclass(frozen=True)
class Samples:
    """x0 (N, ...), in float64, and how many evaluations of the denoiser each of them cost."""

    x0: Tensor
    nfe: int


@torch.no_grad()
def sample(
    denoiser: DenoiserFunction, noise: Tensor, sampler: Sampler, steps: int, randn_like: RandnLike = torch.randn_like
) -> Samples:
    """Solve the sampler's ODE or SDE from sigma_max to 0 in `steps` steps.

    denoiser(z, sigma) -> D, with z (N, ...) and sigma a float64 scalar tensor; noise: standard normal, (N, ...);
    randn_like(x) -> noise of x's shape, which only stochastic samplers call. The state is kept in float64.
    Raises StudyError where the samples are not finite.
    """
    counted = Counted(denoiser)
    path = Path(counted, sampler.build_schedule(), sampler.build_scaling())
    solver = sampler.build_solver()
    sigmas = sampler.grid(steps).to(noise.device)
    times = path.schedule.t(sigmas)
    x = noise.double() * (sigmas[0] * path.s(times[0]))
    for t, t_next in pairwise(times):
        x = solver.step(path, x, t, t_next, randn_like)
    if not x.isfinite().all():
        raise StudyError(f"{sampler.solver}, {steps} steps: the samples are not finite")
    return Samples(x, counted.nfe)


def generate(
    denoiser: DenoiserFunction, shape: tuple[int, ...], sampler: Sampler, steps: int, seed: int, count: int, batch: int
) -> Iterator[tuple[Tensor, int]]:
    """Sample `count` images of `shape`, in batches of about `batch`: each as uint8 (n, *shape), and its counted NFE.

    Image i depends on (seed, i) alone, and its first noise is the same for every sampler.
    """
    for indices in torch.arange(count).tensor_split(-(-count // batch)):
        padded = indices.repeat(-(-MIN_BATCH // len(indices)))  # only a batch under MIN_BATCH is repeated
        noise = SampleNoise(seed, padded.tolist())
        samples = sample(denoiser, noise.randn(shape), sampler, steps, noise.randn_like)
        yield to_uint8(samples.x0[: len(indices)]), samples.nfe
