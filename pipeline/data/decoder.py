"""The discretised Gaussian decoder: the probabilities that a normal distribution gives to the 256 levels of a pixel."""

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from pipeline.data.dataset import to_range


def pixel_levels() -> Tensor:
    """The 256 possible values of a dimension of x0, float64."""
    return to_range(torch.arange(256, dtype=torch.uint8)).double()


def decoder_log_likelihood(images: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """ln P(level) of each value of `images`, uint8, under N(mean, std^2) cut into 256 levels.

    mean: floating point, of images' shape, in units of [-1, 1]; std: a number, or of that shape. The cuts are halfway
    between levels; the outer ones are infinite. Gradients of mean and std are finite.

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 13
    """
    levels = pixel_levels().to(mean)
    cuts, level = (levels[1:] + levels[:-1]) / 2, images.long()
    low = torch.where(level > 0, (cuts[(level - 1).clamp(min=0)] - mean) / std, -math.inf)
    high = torch.where(level < len(cuts), (cuts[level.clamp(max=len(cuts) - 1)] - mean) / std, math.inf)
    above = low > 0  # mirror both, because 1 minus a tiny tail would lose its digits
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    log_high = log_ndtr(high)
    return log_high + (-torch.expm1(log_ndtr(low) - log_high)).log()
