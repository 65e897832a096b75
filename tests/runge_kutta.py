"""The probability-flow ODE by the classical fourth-order method, independent of the project's solvers."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction


def flow_by_rk4(denoiser: DenoiserFunction, z: Tensor, begin: float, end: float, steps: int) -> Tensor:
    """Where dz / d ln sigma = z - D(z; sigma) takes z (N, ...) from begin to end, in equal steps of ln sigma."""
    for log, after in pairwise(torch.linspace(math.log(begin), math.log(end), steps + 1, dtype=torch.float64)):
        h = after - log
        k1 = z - denoiser(z, log.exp())
        middle = (log + h / 2).exp()
        k2 = z + h / 2 * k1 - denoiser(z + h / 2 * k1, middle)
        k3 = z + h / 2 * k2 - denoiser(z + h / 2 * k2, middle)
        k4 = z + h * k3 - denoiser(z + h * k3, after.exp())
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z
