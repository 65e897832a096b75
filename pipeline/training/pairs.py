"""Pairs of noise and images: independent, matched within a batch, or made by another flow."""

from itertools import pairwise

import torch
from torch import Tensor

from pipeline.common.devices import CPU, state_type, to_device
from pipeline.common.randomness import generator
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction

PAIRS = ("independent", "optimal_transport", "reflow")
"""independent: The noise of each image is drawn independently.

optimal_transport: Noise and images of a batch are matched at the least sum of squared distances.
Source: Tong et al. 2023, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772

reflow: Noise is paired with the image that the flow named in `base` makes of it.
Source: Liu et al. 2022, arXiv 2209.03003
"""
REFLOW_STEPS = 32
REFLOW_START = 1000.0  # sigma at which the path starts instead of infinity
REFLOW_BATCH = 512
MOST_ITERATIONS = 10**9  # of the network simplex; POT's default is too low for batches above about 1,600


def matched(x0: Tensor, n: Tensor) -> Tensor:
    """The noise n (N, ...) in the order with the least sum of squared distances to x0 (N, ...).

    The sources are in PAIRS.
    """
    import ot  # takes a second to import

    distances = torch.cdist(x0.flatten(1).double(), n.flatten(1).double()).square()
    plan = ot.emd([], [], distances.cpu().numpy(), numItermax=MOST_ITERATIONS)  # a permutation, each entry 1 / N
    return n[torch.from_numpy(plan.argmax(1)).to(n.device)]


def _velocity(denoised: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    """The velocity n - x0 of the straight path for x0 = D(z; sigma) and n = (z - x0) / sigma (Liu et al. 2022).

    With cos and sin of the angle whose tangent is sigma, the state is x = cos x0 + sin n. The velocity is computed from
    v = cos n - sin x0 (Salimans and Ho 2022, arXiv 2202.00512, app. D).
    """
    cos, sin = (1 + sigma**2).rsqrt(), (1 + sigma**-2).rsqrt()
    x = z * cos
    v = (denoised - cos * x) / -sin
    return (sin - cos) * x + (sin + cos) * v


@torch.no_grad()
def flow_to(denoiser: DenoiserFunction, n: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """x0 to which the straight path's ODE takes noise n (N, ...), by the midpoint method, and the straightness (N,).

    The straightness is the mean of (n - x0 - v)^2 over time and dimensions, which is 0 if every line is straight (Liu
    et al. 2022, arXiv 2209.03003, sec. 2.2).
    """
    start = REFLOW_START / (1 + REFLOW_START)
    times = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    x, velocities = n.to(state_type(n.device)) * start, []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        sigma = t / (1 - t)
        z = x / (1 - t)
        denoised = denoiser(z.float(), sigma).to(z)
        return _velocity(denoised, z, sigma)

    for t, t_next in pairwise(times):
        middle = (t + t_next) / 2
        v = velocity(x + (middle - t) * velocity(x, t), middle)
        x = x + (t_next - t) * v
        velocities.append(v)
    errors = [(n - x - v).square().flatten(1).mean(1) for v in velocities]
    return x, torch.stack(errors).mean(0)


def reflow_pairs(teacher: Denoiser, count: int, seed: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Samples x0 of another flow and the noise n that it made them from, float32 (count, C, H, W) each, on the CPU.

    The teacher computes on `device`. The source is in PAIRS.
    """
    parts = [
        torch.randn(min(REFLOW_BATCH, count - first), *teacher.shape, generator=generator("reflow", seed, first))
        for first in range(0, count, REFLOW_BATCH)
    ]
    x0 = [flow_to(teacher, to_device(n, device), REFLOW_STEPS)[0].float().cpu() for n in parts]
    return torch.cat(x0), torch.cat(parts)
