"""Guidance: two networks' answers combined into one denoiser, and the classes that samples are guided to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.diffusion.denoiser import DenoiserFunction

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are as even as any sequence's of no fixed length


class LabelledDenoiser(Protocol):
    """D(z; sigma) of classes: z (N, ...), sigma a scalar, labels (N,), or None for what has learned none or is told
    none."""

    def __call__(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


class Classifier(Protocol):
    """p(y | z; sigma), of which guidance needs the gradient."""

    def log_gradient(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """grad_z log p(labels | z; sigma): z (N, ...), sigma a scalar, labels (N,), to z's shape."""


@runtime_checkable
class BySample(Protocol):
    """What becomes a denoiser once it is told which samples it is for."""

    def for_samples(self, seed: int, indices: Sequence[int]) -> DenoiserFunction:
        """The denoiser of a batch, whose i-th sample is sample indices[i] of a sampling seed."""


def _between(main: Tensor, guide: Tensor, sigma: Tensor, weight: float) -> Tensor:
    return torch.lerp(guide, main, weight)


def _along(main: Tensor, gradient: Tensor, sigma: Tensor, weight: float) -> Tensor:
    return main + weight * float(sigma) ** 2 * gradient


@dataclass(frozen=True)
class Guide:
    """A kind of guidance: how the two answers and a weight make D_w.

    idle: the weight at which D_w is the main network's answer; alone: the one at which it is the guide's, if any.
    """

    combined: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    idle: float
    alone: float | None


@dataclass(frozen=True)
class Guidance:
    """D_w where low < sigma <= high, elsewhere D; see GUIDES. high None is no limit.

    Source: the interval is from Kynkaanniemi et al. 2024, arXiv 2404.07724, eq. 5
    """

    weight: float
    guide: str
    low: float = 0.0
    high: float | None = None

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, so that the main network is all there is."""
        return self.weight == GUIDES[self.guide].idle

    @property
    def alone(self) -> bool:
        """Whether the guide's answer is all there is where it guides."""
        return self.weight == GUIDES[self.guide].alone

    @property
    def limited(self) -> bool:
        """Whether there are noise levels without guidance."""
        return self.low > 0 or self.high is not None

    @property
    def evaluations(self) -> int:
        """What one guided answer costs."""
        return 1 if self.idle or self.alone else 2

    def guides(self, sigma: Tensor) -> bool:
        """Whether there is guidance at a noise level, a scalar. It is looked at, which waits for its device where that
        isn't the CPU, only where that depends on it."""
        return not self.limited or self.low < float(sigma) <= (math.inf if self.high is None else self.high)

    def __call__(self, main: DenoiserFunction, guide: DenoiserFunction) -> DenoiserFunction:
        """The guided denoiser; of a classifier, `guide` answers with the gradient."""
        return main if self.idle else Guided(self, main, guide)


@dataclass(frozen=True)
class Guided:
    """A denoiser of two parts, each a call of a network."""

    guidance: Guidance
    main: DenoiserFunction
    guide: DenoiserFunction

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D_w(z; sigma): z (N, ...), sigma a scalar."""
        if not self.guidance.guides(sigma):
            return self.main(z, sigma)
        if self.guidance.alone:
            return self.guide(z, sigma)
        combined = GUIDES[self.guidance.guide].combined
        return combined(self.main(z, sigma), self.guide(z, sigma), sigma, self.guidance.weight)

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> Self:
        """The same of wrapped parts."""
        return replace(self, main=wrap(self.main), guide=wrap(self.guide))


GUIDES = {
    "unconditional": Guide(_between, idle=1.0, alone=0.0),
    "snapshot": Guide(_between, idle=1.0, alone=0.0),
    "classifier": Guide(_along, idle=0.0, alone=None),
}
"""unconditional: Classifier-free guidance; D_u is the model without label.
Formula: D_u + w (D - D_u)
Source: Ho and Salimans 2022, arXiv 2207.12598, eq. 6, with w = 1 + theirs

snapshot: Autoguidance; D_u is an earlier snapshot of the same training.
Formula: D_u + w (D - D_u)
Source: Karras et al. 2024, arXiv 2406.02507, eq. 2

classifier: Classifier guidance; g = grad_z log p(y | z; sigma), D is the model without label.
Formula: D + w sigma^2 g
Source: Dhariwal and Nichol 2021, arXiv 2105.05233, eq. 14
"""


def labelled(model: LabelledDenoiser, labels: Tensor | None) -> DenoiserFunction:
    """The model asked for these labels (N,) only; None: as it is."""
    return model if labels is None else lambda z, sigma: model(z, sigma, labels)


def guided(
    guidance: Guidance,
    model: LabelledDenoiser,
    labels: Tensor | None,
    snapshot: LabelledDenoiser | None = None,
    classifier: Classifier | None = None,
) -> DenoiserFunction:
    """The model, guided to labels (N,); None: what has no classes. Of the guides, that which guidance names is needed.

    Raises StudyError where it is missing, or where there are no labels to guide to.
    """
    if guidance.guide == "classifier":
        if guidance.idle:
            return model
        if labels is None or classifier is None:
            raise StudyError("guide: classifier needs a classifier of the model's data, and labels to guide to")
        return guidance(model, lambda z, sigma: classifier.log_gradient(z, sigma, labels))
    own = labelled(model, labels)
    if guidance.idle:
        return own
    if guidance.guide == "snapshot":
        if snapshot is None:
            raise StudyError("guide: snapshot needs an earlier snapshot of the model; say snapshots in its row")
        return guidance(own, labelled(snapshot, labels))
    if labels is None:
        raise StudyError("guide: unconditional needs a model of classes, and labels to guide to; use another guide")
    return guidance(own, model)


def sample_labels(seed: int, indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """The classes of samples of one seed, (N,), int64; classes: how many images of each there are in the data set.

    Sample i's depends on (seed, i) alone: the i-th point of a golden-ratio sequence from the seed's own start, on the
    classes' shares laid end to end. So any first so many samples have the data set's shares, but for a sample or two.
    """
    start = float(torch.rand((), dtype=torch.float64, generator=generator("classes", seed)))
    points = (start + GOLDEN * torch.tensor(indices, dtype=torch.float64)).frac()
    edges = torch.tensor(classes, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges, points * edges[-1], right=True)


@dataclass(frozen=True)
class ByClass:
    """A denoiser of labels, which each sample gets by its number; classes: images of each class in the data set."""

    classes: tuple[int, ...]
    of_labels: Callable[[Tensor], DenoiserFunction]

    def for_samples(self, seed: int, indices: Sequence[int]) -> DenoiserFunction:
        return self.of_labels(sample_labels(seed, indices, self.classes))
