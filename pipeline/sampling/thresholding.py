"""Thresholding: how a sampler brings D back into the range of pixels, [-1, 1].

Each function takes D (N, ...), in which the samples do not affect each other, and returns a tensor of its shape and
dtype. Its further arguments are keys of a sampler row.
"""

import math
from collections.abc import Callable
from functools import partial
from inspect import signature

from torch import Tensor


def none(denoised: Tensor) -> Tensor:
    """D as it is.

    Formula: D
    """
    return denoised


def static(denoised: Tensor) -> Tensor:
    """Clips each value to [-1, 1].

    Formula: max(-1, min(1, D))
    Source: Saharia et al. 2022, arXiv 2205.11487, sec. 2.3
    """
    return denoised.clamp(-1, 1)


def dynamic(denoised: Tensor, threshold_percentile: float) -> Tensor:
    """Clips to [-s, s] and divides by s, a quantile of the sample's absolute values, but at least 1.

    The quantile is interpolated linearly.

    Formula: max(-s, min(s, D)) / s
    Source: Saharia et al. 2022, arXiv 2205.11487, sec. 2.3
    """
    s = quantile(denoised.abs().reshape(len(denoised), -1), threshold_percentile).clamp(min=1)
    s = s.reshape(-1, *(1,) * (denoised.ndim - 1))
    return denoised.clamp(-s, s) / s


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile `share` of each row of values (N, d), linearly interpolated: (N,).

    It sorts only the values above it. torch.quantile sorts all of them, and takes at most 16 million.
    """
    place = share * (values.shape[1] - 1)
    below = math.floor(place)
    largest = values.topk(values.shape[1] - below, dim=1).values
    return largest[:, -1].lerp(largest[:, -2:][:, 0], place - below)


THRESHOLDS: dict[str, Callable[..., Tensor]] = {"none": none, "static": static, "dynamic": dynamic}


def keys_of(threshold: str) -> list[str]:
    """The further keys of a row that a threshold uses."""
    return list(signature(THRESHOLDS[threshold]).parameters)[1:]


def thresholding(threshold: str, **choices: object) -> Callable[[Tensor], Tensor]:
    """The threshold `threshold` with its keys filled in; choices may hold other keys, too."""
    return partial(THRESHOLDS[threshold], **{key: choices[key] for key in keys_of(threshold)})
