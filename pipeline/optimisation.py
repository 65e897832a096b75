"""What a training step goes by beside its loss: the learning rate, the optimizer, clipping, precision, compilation.

What a device can't do is said once on stderr, and the training goes on without.
"""

import math
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model import Model

Network = Callable[..., Tensor]  # network(x, c_noise, labels, augmentation), as all of pipeline.networks


@cache
def say_once(message: str) -> None:
    """One line on stderr, the first time."""
    print(" ".join(message.split()), file=sys.stderr, flush=True)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, for which nothing waits: a GPU copies it from pinned memory when it gets there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def learning_rate(row: Model, step: int) -> float:
    """The learning rate of step `step`, counted from 0: a linear warm-up, times the row's decay."""
    warm = min((step + 1) * row.batch / row.warmup_images, 1.0)
    return row.learning_rate * warm * DECAYS[row.learning_rate_decay](row, step)


def cosine(row: Model, step: int) -> float:
    """Half a cosine, from 1 down to 0 at the end (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""
    return (1 + math.cos(math.pi * step / row.steps)) / 2


def linear(row: Model, step: int) -> float:
    """A straight line from 1 down to 0 at the end."""
    return 1 - step / row.steps


def inverse_sqrt(row: Model, step: int) -> float:
    """1 / sqrt(max(t / t_ref, 1)), t in images (Karras et al. 2024, arXiv 2312.02696, eq. 67)."""
    return max(step * row.batch / row.learning_rate_reference_images, 1.0) ** -0.5


def none(row: Model, step: int) -> float:
    """1."""
    return 1.0


DECAYS: dict[str, Callable[[Model, int], float]] = {
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "none": none,
}


def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
    """Adam, in one kernel where the device has it."""
    parameters = list(parameters)
    try:
        return torch.optim.Adam(parameters, lr=rate, fused=True)
    except RuntimeError:
        say_once(f"{parameters[0].device.type} has no fused Adam; the plain one takes its place")
        return torch.optim.Adam(parameters, lr=rate)


def clip(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Shrink the gradients, as one vector, to a norm of at most `norm` (Pascanu et al. 2013, arXiv 1211.5063).

    Nothing waits for the norm's value: one that is not finite shows in the next loss.
    """
    torch.nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a network is called in, to multiply in `precision`: a row's `float32` or `bfloat16`."""
    if precision == "float32":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        say_once("precision: the GPU has no bfloat16; float32 takes its place")
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def compiled(network: Network, attempt: Callable[[Network], object]) -> Network:
    """The network, compiled; itself where there is no compiler, or where `attempt`, a call of it, fails."""
    try:
        candidate: Network = torch.compile(network, dynamic=False)
        attempt(candidate)
    except Exception as error:  # whatever a compiler raises: what is wrong with the network itself, shows without, too
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        say_once(f"compile: not possible here ({reason[:200]}); training goes on without")
        return network
    return candidate
