"""The learning rate, the optimizer and gradient clipping."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from pipeline.common.errors import say_once
from pipeline.training.row import Model


def learning_rate(row: Model, step: int) -> float:
    """The learning rate of step `step`, counted from 0: a linear warm-up times the row's decay."""
    warm = min((step + 1) * row.batch / row.warmup_images, 1.0)
    return row.learning_rate * warm * DECAYS[row.learning_rate_decay](row, step)


def cosine(row: Model, step: int) -> float:
    """Half a cosine, down to 0 at the end.

    Formula: (1 + cos(pi k / K)) / 2
    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5
    """
    return (1 + math.cos(math.pi * step / row.steps)) / 2


def linear(row: Model, step: int) -> float:
    """A straight line, down to 0 at the end.

    Formula: 1 - k / K
    """
    return 1 - step / row.steps


def inverse_sqrt(row: Model, step: int) -> float:
    """Constant up to t_ref, which is `learning_rate_reference_images`, then an inverse square root.

    Formula: 1 / sqrt(max(k B / t_ref, 1))
    Source: Karras et al. 2024, arXiv 2312.02696, eq. 67
    """
    return max(step * row.batch / row.learning_rate_reference_images, 1.0) ** -0.5


def none(row: Model, step: int) -> float:
    """Constant.

    Formula: 1
    """
    return 1.0


DECAYS: dict[str, Callable[[Model, int], float]] = {
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "none": none,
}


def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam, fused into one kernel if the device supports it."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, lr=rate, fused=True)
    except RuntimeError:
        say_once(f"{parameters[0].device.type} has no fused Adam; using the plain one")
        return torch.optim.Adam(parameters, lr=rate)


def clip(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Scale the gradients so that their joint norm is at most `norm` (Pascanu et al. 2013, arXiv 1211.5063).

    The host does not wait for the norm. If it is not finite, the next loss is not finite either.
    """
    parameters = list(parameters)
    together = parameters[0].device.type != "mps"  # which does not support it
    torch.nn.utils.clip_grad_norm_(parameters, norm, foreach=together)
