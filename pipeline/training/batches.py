"""The batches of a training: which images, and the noise, noise levels, labels and augmentation drawn for them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, to_device
from pipeline.common.randomness import generator
from pipeline.data.dataset import to_coordinates
from pipeline.diffusion.denoiser import per_sample
from pipeline.diffusion.upsampling import Low, averaged
from pipeline.training import augmentation
from pipeline.training.draws import Independent
from pipeline.training.pairs import matched
from pipeline.training.row import Model, Upsampler

Pairs = tuple[Tensor, Tensor]  # x0 and n, as `reflow_pairs` returns them


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator("order", seed, epoch))


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Indices of the images of a step, (batch,). Each of `count` images is used once an epoch, in a new order."""
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    return torch.cat([_epoch_order(seed, int(e), count)[positions[epochs == e] % count] for e in epochs.unique()])


@dataclass(frozen=True)
class Examples:
    """The training set: images (N, C, H, W) on the device, uint8 or in the coordinates of the model's space, and their
    classes (N,), int64.

    pairs, if given, replace both: images x0 and noise n from another flow.
    """

    images: Tensor
    labels: Tensor | None = None
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.pairs[0] if self.pairs else self.images)


class Batch(NamedTuple):
    """One step's batch of B images, of which this process trains on P.

    On the device: images x0 and noise n, (P, ...) each; labels (P,), -1 for none; augmentation (P, 9); low: the
    low-resolution images of an upsampler.
    On the CPU, for all B images: the quantiles u of the noise levels and their importance weights, (B,) each.
    """

    x0: Tensor
    n: Tensor
    u: Tensor
    importance: Tensor
    labels: Tensor | None
    augmentation: Tensor | None
    low: Low | None = None


def draw_batch(
    row: Model,
    examples: Examples,
    indices: Tensor,
    draws: Independent,
    draw: torch.Generator,
    device: torch.device = CPU,
) -> Batch:
    """The batch of the examples `indices` (B,).

    Every process draws the whole batch on the CPU and keeps its own part. Flips, labels and the augmentation of
    low-resolution images are drawn last, in this order, so that a row that turns them on keeps its other draws.
    """
    count, pairs, part = len(indices), examples.pairs, processes.part(len(indices))
    a = augmentation.draw(count, row.augment, draw) if row.augment else None
    n = pairs[1][indices] if pairs else torch.randn(count, *examples.images.shape[1:], generator=draw)
    u, importance = draws.draw(count, draw)
    if row.flip:
        a = augmentation.mirror(torch.zeros(count, 8, dtype=torch.float64) if a is None else a, row.flip, draw)
    conditioning = augmentation.conditioning(a)[part] if a is not None and row.augment else None
    labels = None
    if row.labels == "classes" and examples.labels is not None:
        dropped = torch.rand(count, generator=draw) < row.label_dropout
        labels = examples.labels[indices].masked_fill(dropped, -1)[part]
    if pairs:
        x0, n = pairs[0][indices[part]], n[part]
    elif row.pairs == "optimal_transport":  # needs the whole batch, on the CPU
        x0 = to_coordinates(examples.images[to_device(indices, device)].to(CPU))
        x0 = x0 if a is None else augmentation.transform(x0, a)
        x0, n = x0[part], matched(x0, n)[part]
    else:
        x0, n = to_coordinates(examples.images[to_device(indices[part], device)]), n[part]
        x0 = x0 if a is None else augmentation.transform(x0, a[part])
    labels, conditioning = (None if value is None else to_device(value, device) for value in (labels, conditioning))
    x0 = to_device(x0, device)
    low = _low(row.upsampler, x0, count, part, draw) if row.upsampler else None
    return Batch(x0, to_device(n, device), u, importance, labels, conditioning, low)


def _low(row: Upsampler, x0: Tensor, count: int, part: slice, draw: torch.Generator) -> Low:
    """The low-resolution images of x0 (P, C, H, W), this process's part of a batch of `count`, with augmentation."""
    strength = row.strength * torch.rand(count, generator=draw, dtype=torch.float64)
    images = averaged(x0, row.height)
    if row.augmentation == "noise":
        n = torch.randn(count, *images.shape[1:], generator=draw)
        images = images + to_device((per_sample(strength, n) * n)[part], x0.device)
    return Low(images, strength[part])
