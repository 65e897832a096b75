"""Estimates with standard errors, and the moments of features in blocks that the jackknife leaves out in turn."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.tiles import parts

JACKKNIFE_BLOCKS = 20


class Estimate(NamedTuple):
    """A metric's value and its standard error."""

    value: float
    se: float


def mean_estimate(values: Tensor) -> Estimate:
    """The mean of independent values (n,), and its standard error."""
    values = values.double()
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5))


def jackknife_error(left_out: Tensor) -> float:
    """The jackknife's standard error, from the values without each block (b,). (Efron and Stein 1981.)"""
    blocks = len(left_out)
    return float(((left_out - left_out.mean()).square().sum() * (blocks - 1) / blocks).sqrt())


def block_of(count: int, blocks: int = JACKKNIFE_BLOCKS) -> Tensor:
    """The block (count,) of each of `count` features: consecutive blocks of equal size, up to one."""
    return torch.arange(count) * blocks // count


def intercept(x: Tensor, y: Tensor) -> Estimate:
    """The intercept of the least-squares line through points (n,), and its standard error from the residuals."""
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    at_zero = y.mean() - slope * x.mean()
    variance = (y - at_zero - slope * x).square().sum() / (len(x) - 2)
    return Estimate(float(at_zero), float((variance * (1 / len(x) + x.mean() ** 2 / spread)).sqrt()))


def check_finite(features: Tensor) -> None:
    """Raise StudyError if one of the features (n, d) is not finite."""
    if not features.isfinite().all():
        raise StudyError(f"{int((~features.isfinite()).any(1).sum())} of {len(features)} features are not finite")


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of n features, float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(features: Tensor) -> Moments:
    """The moments of features (n, d). Raises StudyError for fewer than two of them, or if one is not finite."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) < 2:
        raise StudyError(f"moments need features of shape (n, d) with n >= 2, not {tuple(features.shape)}")
    check_finite(features)
    mean = torch.stack([part.double().sum(0) for part in parts(features)]).sum(0) / len(features)
    product = mean.new_zeros(len(mean), len(mean))
    for part in parts(features):
        centred = part.double() - mean
        product.addmm_(centred.T, centred)
    return Moments(mean, product / (len(features) - 1))


class BlockMoments:
    """Sums over `count` features that arrive in any number of parts, separately for each of 20 blocks of equal size.

    Takes 20 d^2 numbers of memory for any count. `centre` (d,), a rough mean, keeps the sums small.
    """

    def __init__(self, count: int, centre: Tensor, blocks: int = JACKKNIFE_BLOCKS) -> None:
        if count < 2 * blocks:
            raise StudyError(f"{count} samples are too few for a {blocks}-block jackknife; at least {2 * blocks}")
        self.count, self.centre, self.blocks, self.seen = count, centre.double(), blocks, 0
        d = len(centre)
        self.counts = self.centre.new_zeros(blocks)
        self.sums = self.centre.new_zeros(blocks, d)
        self.products = self.centre.new_zeros(blocks, d, d)

    def add(self, features: Tensor) -> None:
        """Add the next features (k, d). Raises StudyError if one is not finite."""
        check_finite(features)
        index = block_of(self.count, self.blocks)[self.seen : self.seen + len(features)]
        self.seen += len(features)
        for block in index.unique().tolist():
            part = features[(index == block).to(features.device)].double() - self.centre
            self.counts[block] += len(part)
            self.sums[block] += part.sum(0)
            self.products[block].addmm_(part.T, part)

    @cached_property
    def _total(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.counts.sum(), self.sums.sum(0), self.products.sum(0)

    def _moments(self, count: Tensor, total: Tensor, product: Tensor) -> Moments:
        mean = total / count
        return Moments(mean + self.centre, (product - count * torch.outer(mean, mean)) / (count - 1))

    def all(self) -> Moments:
        """The moments of all features."""
        return self._moments(*self._total)

    def without(self, block: int) -> Moments:
        """The moments of all features except those of one block."""
        left_out = (self.counts[block], self.sums[block], self.products[block])
        return self._moments(*(total - part for total, part in zip(self._total, left_out, strict=True)))

    def group(self, first: int, blocks: int) -> Moments:
        """The moments of `blocks` consecutive blocks, starting at block `first`."""
        own = slice(first, first + blocks)
        return self._moments(self.counts[own].sum(), self.sums[own].sum(0), self.products[own].sum(0))
