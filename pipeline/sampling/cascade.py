"""Cascades: an earlier stage makes low-resolution images, on which a later stage is conditioned.

Source: Ho et al. 2021, arXiv 2106.15282.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.devices import CPU, to_device
from pipeline.common.randomness import SampleNoise
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.upsampling import Low
from pipeline.sampling.guidance import BySample
from pipeline.sampling.loop import Samples, sample
from pipeline.sampling.row import Sampler


@dataclass(frozen=True)
class Stage:
    """How a model is sampled at one number of steps. shape: of its samples.

    end: the noise level at which it stops; above 0, its samples keep this noise. depth: the number of stages after it;
    each stage has noise of its own.
    """

    denoiser: "DenoiserFunction | BySample"
    shape: tuple[int, ...]
    sampler: Sampler
    steps: int
    end: float = 0.0
    depth: int = 0

    def samples(self, seed: int, indices: Sequence[int], device: torch.device = CPU) -> tuple[Samples, SampleNoise]:
        """The samples with these indices, in the coordinates of the model, with the calls of all stages so far; and the
        streams of noise that they were drawn from."""
        function = self.denoiser.for_samples(seed, indices) if isinstance(self.denoiser, BySample) else self.denoiser
        spent = function.spent if isinstance(function, Conditioned) else 0
        noise = SampleNoise(seed, indices, self.depth)
        z = to_device(noise.randn(self.shape), device)
        done = sample(function, z, self.sampler, self.steps, noise.randn_like, self.end)
        return Samples(done.x0, done.nfe + spent), noise


@dataclass(frozen=True)
class Conditioned:
    """A denoiser that is conditioned on samples of earlier stages, which cost `spent` network calls."""

    denoiser: DenoiserFunction
    spent: int

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(z, sigma)

    def over(self, wrap: Callable[[DenoiserFunction], DenoiserFunction]) -> "Conditioned":
        """The same denoiser with every network wrapped."""
        over = getattr(self.denoiser, "over", None)
        return Conditioned(over(wrap) if over else wrap(self.denoiser), self.spent)


@dataclass(frozen=True)
class Upsampling:
    """A later stage of a cascade, before its samples have low-resolution images.

    of_low: the denoiser, conditioned on these. strength: of their augmentation, `noise` or `blur`. If the earlier stage
    ends at this noise level (Ho et al. 2021, sec. 4.2: truncated conditioning augmentation), its samples have this
    noise already.
    """

    earlier: Stage
    of_low: "Callable[[Low], DenoiserFunction | BySample]"
    strength: float
    augmentation: str
    device: torch.device = CPU

    def for_samples(self, seed: int, indices: Sequence[int]) -> Conditioned:
        made, noise = self.earlier.samples(seed, indices, self.device)
        images = made.x0.float()
        if self.augmentation == "noise" and not self.earlier.end:
            images = images + self.strength * noise.randn_like(images)
        low = Low(images, torch.full((len(images),), self.strength, dtype=torch.float64))
        later = self.of_low(low)
        return Conditioned(later.for_samples(seed, indices) if isinstance(later, BySample) else later, made.nfe)
