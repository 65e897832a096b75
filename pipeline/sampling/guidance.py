"""Guidance: two networks combined into one denoiser, and the classes that samples are guided to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.diffusion.denoiser import DenoiserFunction, parted

GOLDEN = (math.sqrt(5) - 1) / 2  # the multiples of no other number are more even modulo 1


class LabelledDenoiser(Protocol):
    """D(z; sigma) with class labels: z (N, ...), sigma a scalar, labels (N,). None means no labels."""

    def __call__(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


class Classifier(Protocol):
    """p(y | z; sigma), whose gradient guidance needs."""

    def log_gradient(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """grad_z log p(labels | z; sigma), of z's shape: z (N, ...), sigma a scalar, labels (N,)."""


@runtime_checkable
class BySample(Protocol):
    """A model that gives a denoiser for the samples with given indices."""

    def for_samples(self, seed: int, indices: Sequence[int]) -> DenoiserFunction:
        """The denoiser for a batch whose i-th sample is sample indices[i] of a sampling seed."""


def _between(main: Tensor, guide: Tensor, sigma: Tensor, weight: float) -> Tensor:
    return torch.lerp(guide, main, weight)


def _along(main: Tensor, gradient: Tensor, sigma: Tensor, weight: float) -> Tensor:
    return main + weight * float(sigma) ** 2 * gradient


@dataclass(frozen=True)
class Guide:
    """A kind of guidance. `combined` maps D, the guide's answer, sigma and the weight to D_w.

    idle: the weight at which D_w equals D. alone: the weight at which D_w equals the guide's answer, if there is one.
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
        """Whether it has no effect, so that only the main network is called."""
        return self.weight == GUIDES[self.guide].idle

    @property
    def alone(self) -> bool:
        """Whether only the guide is called at guided noise levels."""
        return self.weight == GUIDES[self.guide].alone

    @property
    def limited(self) -> bool:
        """Whether guidance acts only at some noise levels."""
        return self.low > 0 or self.high is not None

    @property
    def evaluations(self) -> int:
        """Network calls per guided answer."""
        return 1 if self.idle or self.alone else 2

    def guides(self, sigma: Tensor) -> bool:
        """Whether guidance acts at a noise level, a scalar. Its value is read, which may wait for a device, only if the
        answer depends on it."""
        return not self.limited or self.low < float(sigma) <= (math.inf if self.high is None else self.high)

    def __call__(self, main: DenoiserFunction, guide: DenoiserFunction) -> DenoiserFunction:
        """The guided denoiser. With a classifier, `guide` gives the gradient."""
        return main if self.idle else Guided(self, main, guide)


@dataclass(frozen=True)
class Guided:
    """A guided denoiser, which calls the main network, the guide, or both."""

    guidance: Guidance
    main: DenoiserFunction
    guide: DenoiserFunction

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        """D_w(z; sigma): z (N, ...), sigma a scalar. A variance after D is that of the main network."""
        if not self.guidance.guides(sigma):
            return self.main(z, sigma)
        if self.guidance.alone:
            return self.guide(z, sigma)
        denoised, v = parted(self.main(z, sigma), z)
        guide, _ = parted(self.guide(z, sigma), z)
        combined = GUIDES[self.guidance.guide].combined(denoised, guide, sigma, self.guidance.weight)
        return combined if v is None else torch.cat([combined, v], dim=1)

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> Self:
        """The same denoiser with both networks wrapped."""
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
    """The model with its labels (N,) fixed; None: the model itself."""
    return model if labels is None else lambda z, sigma: model(z, sigma, labels)


def guided(
    guidance: Guidance,
    model: LabelledDenoiser,
    labels: Tensor | None,
    snapshot: LabelledDenoiser | None = None,
    classifier: Classifier | None = None,
) -> DenoiserFunction:
    """The model guided to labels (N,); None for a model without classes. Only the guide that `guidance` names counts.

    Raises StudyError if that guide is missing, or if guidance needs labels and there are none.
    """
    if guidance.guide == "classifier":
        if guidance.idle:
            return model
        if labels is None or classifier is None:
            raise StudyError(
                "guide: classifier needs labels and a classifier; set classifier_images in the model's row"
            )
        return guidance(model, lambda z, sigma: classifier.log_gradient(z, sigma, labels))
    conditional = labelled(model, labels)
    if guidance.idle:
        return conditional
    if guidance.guide == "snapshot":
        if snapshot is None:
            raise StudyError("guide: snapshot needs an earlier snapshot of the model; set snapshots in its row")
        return guidance(conditional, labelled(snapshot, labels))
    if labels is None:
        raise StudyError("guide: unconditional needs a model of classes and labels to guide to; use another guide")
    return guidance(conditional, model)


def sample_labels(seed: int, indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """The classes of a seed's samples with these indices: (N,), int64. classes: the images of each in the data set.

    The class of sample i depends on (seed, i) alone. A golden-ratio sequence, which starts at a random point for each
    seed, picks it in proportion to the classes' shares. So the first n samples have the shares of the data set, to
    within a sample or two.
    """
    start = float(torch.rand((), dtype=torch.float64, generator=generator("classes", seed)))
    points = (start + GOLDEN * torch.tensor(indices, dtype=torch.float64)).frac()
    edges = torch.tensor(classes, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges, points * edges[-1], right=True)


@dataclass(frozen=True)
class ByClass:
    """A model with classes, whose samples get labels by their index. classes: the images of each in the data set."""

    classes: tuple[int, ...]
    of_labels: Callable[[Tensor], DenoiserFunction]

    def for_samples(self, seed: int, indices: Sequence[int]) -> DenoiserFunction:
        return self.of_labels(sample_labels(seed, indices, self.classes))
