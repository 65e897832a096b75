"""Dequantization: noise that makes pixels of 256 levels continuous, so that they have a density."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtri

from pipeline.data.dataset import to_range

WIDTH = float(to_range(torch.tensor([0, 255], dtype=torch.uint8)).double().diff()) / 255  # of a level, in [-1, 1]


@dataclass(frozen=True)
class Dequantization:
    """The law of the noise that is added to a pixel, in units of [-1, 1]; `sigma` is the lowest noise level, a float.

    noise(u, sigma): from u in (0, 1), float64 of any shape. entropy(sigma): nats per dimension. The expected log
    density plus the entropy is a lower bound of the log-probability of the level (Theis et al. 2016, arXiv 1511.01844,
    sec. 3.1; Ho et al. 2019, arXiv 1902.00275, eq. 11).
    """

    noise: Callable[[Tensor, float], Tensor]
    entropy: Callable[[float], float]


def _reach(sigma: float) -> float:
    """Half of a level's width in units of sigma."""
    return WIDTH / 2 / sigma


def _truncated_noise(u: Tensor, sigma: float) -> Tensor:
    mass = math.erf(_reach(sigma) / math.sqrt(2))
    return sigma * ndtri((1 - mass) / 2 + u * mass)


def _truncated_entropy(sigma: float) -> float:
    reach = _reach(sigma)
    mass = math.erf(reach / math.sqrt(2))
    density = math.exp(-(reach**2) / 2) / math.sqrt(2 * math.pi)
    return math.log(math.sqrt(2 * math.pi * math.e) * sigma * mass) - reach * density / mass


DEQUANTIZATIONS = {
    "none": Dequantization(lambda u, sigma: sigma * ndtri(u), lambda sigma: 0.0),
    "uniform": Dequantization(lambda u, sigma: (u - 0.5) * WIDTH, lambda sigma: math.log(WIDTH)),
    "truncated_normal": Dequantization(_truncated_noise, _truncated_entropy),
}
"""none: sigma_min n, for data that are continuous: it makes them draws of the density at sigma_min.

uniform: Uniform over the level, from -w / 2 to w / 2.
Source: Theis et al. 2016, arXiv 1511.01844, sec. 3.1

truncated_normal: sigma_min n, the noise of the grid's lowest level, cut off at -w / 2 and w / 2.
Source: Zheng et al. 2023, arXiv 2305.03935
"""


def bits_per_dimension(nats: Tensor, dimensions: int, entropy: float) -> Tensor:
    """-log2 of a probability per dimension, from log densities of dequantized data in nats, (N,), and the entropy."""
    return -(nats / dimensions + entropy) / math.log(2)
