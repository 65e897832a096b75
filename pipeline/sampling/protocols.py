"""How samplers begin and end: the first evaluation, and the last noise level."""

from collections.abc import Callable
from itertools import chain, repeat

from torch import Tensor

from pipeline.diffusion.denoiser import DenoiserFunction

ENDS = ("zero", "sigma_min")
"""zero: At noise level 0, by a step from the lowest level above 0.
Source: Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 2

sigma_min: At the grid's lowest level above 0. N steps have N + 1 levels above 0, and all of them are whole steps.
Source: Zhou et al. 2023, arXiv 2312.00094, the authors' code (zju-pi/diff-sampler)
"""


def network(denoiser: DenoiserFunction) -> DenoiserFunction:
    """A call of the network, as in every other evaluation.

    Source: Karras et al. 2022, arXiv 2206.00364
    """
    return denoiser


def analytic(denoiser: DenoiserFunction) -> DenoiserFunction:
    """No call: the noise, eps, is taken to be z scaled to unit variance, z / sqrt(1 + sigma^2).

    1 is the variance of the data in the paper and in diff-sampler's code, whatever the data.

    Formula: z - sigma z / sqrt(1 + sigma^2)
    Source: Dockhorn et al. 2022, arXiv 2210.05475
    """
    answers = chain([_unit_noise], repeat(denoiser))
    return lambda z, sigma: next(answers)(z, sigma)


def _unit_noise(z: Tensor, sigma: Tensor) -> Tensor:
    sigma = sigma.detach()
    root = float((1 + sigma**2).sqrt())
    return z / (root * (root + float(sigma)))  # the formula without its cancellation


FIRST_STEPS: dict[str, Callable[[DenoiserFunction], DenoiserFunction]] = {"network": network, "analytic": analytic}
