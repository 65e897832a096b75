"""A curve's model, loaded for sampling: its weights on a device, guided, with classes, and after earlier stages."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, autocast, fitting_batch
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.diffusion.upsampling import Low
from pipeline.diffusion.weights import student_of, weights_for
from pipeline.evaluation.curve import Curve
from pipeline.sampling.cascade import Stage, Upsampling
from pipeline.sampling.guidance import ByClass, BySample, LabelledDenoiser, guided


@dataclass(frozen=True)
class LoadedModel:
    """A network on a device, and the denoiser that a solver calls: the network with guidance and labels.

    of_low: that denoiser for an upsampler's low-resolution images; None for other networks. earlier: the models of the
    stage before, in a cascade, at a number of steps.
    """

    network: Denoiser
    of_low: Callable[[Low | None], DenoiserFunction | BySample]
    device: torch.device
    curve: Curve
    earlier: "Callable[[int], LoadedModel] | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    @property
    def denoiser(self) -> DenoiserFunction | BySample:
        """The denoiser of a model that is no upsampler."""
        return self.of_low(None)

    def at(self, steps: int, end: float = 0.0, depth: int = 0) -> DenoiserFunction | BySample:
        """The denoiser for so many steps to the noise level `end`, on which those of the stages before depend.

        depth: the number of stages after it.
        """
        if self.earlier is None or self.curve.earlier is None:
            return self.denoiser
        before, end = self.curve.earlier_steps(steps, end), self.curve.earlier_end
        model = self.earlier(before)
        stage = Stage(model.at(before, end, depth + 1), model.shape, self.curve.earlier, before, end, depth + 1)
        augmentation = self.network.spec.low_augmentation
        return Upsampling(stage, self.of_low, self.curve.strength, augmentation, self.device)

    def fitting_batch(self) -> int:
        """The number of samples that fit into memory at a time, the same in all processes of a job."""
        answers = processes.exchange(str(fitting_batch(self._call, self.device)).encode())
        return min(map(int, answers))

    @torch.no_grad()
    def _call(self, count: int) -> object:
        x, c_noise = torch.zeros(count, *self.shape, device=self.device), torch.zeros(count, device=self.device)
        spec, low = self.network.spec, list[Tensor | None]()
        if spec.low:
            zeros = torch.zeros(count, *spec.low, device=self.device)
            low = [None, *self.network.low_inputs(Low(zeros, torch.zeros(count)))]
        with autocast(self.network.precision, self.device):
            return self.network.network(x, c_noise, None, *low)


def load_model(
    curve: Curve, folder: Path, train_seed: int, student: int | None = None, device: torch.device = CPU
) -> LoadedModel:
    """Load the model of a curve from the folder of its weights, which lies beside those of its earlier stages.

    student: as of `student_of`. Raises StudyError if some are missing.
    """
    weights = weights_for(folder, train_seed, curve.weights(student))
    for denoiser in filter(None, (weights.denoiser, weights.snapshot)):
        denoiser.run_on(device, curve.precision, curve.compile)
    classifier = weights.classifier.to(device) if weights.classifier else None
    classes = classifier.classes if classifier else weights.denoiser.classes
    by_class = bool(classes) and curve.labels == "data"

    def of_low(low: Low | None) -> DenoiserFunction | BySample:
        model = _asked(curve, weights.denoiser, low)
        snapshot = _asked(curve, weights.snapshot, low) if weights.snapshot else None
        of_labels = partial(guided, curve.build_guidance(), model, snapshot=snapshot, classifier=classifier)
        return ByClass(tuple(classes), of_labels) if by_class else of_labels(None)

    earlier = partial(_earlier, curve.earlier, folder.parent, train_seed, device) if curve.earlier else None
    return LoadedModel(weights.denoiser, of_low, device, curve, earlier)


def _earlier(curve: Curve, models: Path, train_seed: int, device: torch.device, steps: int) -> LoadedModel:
    """The model of an earlier stage that takes `steps` steps."""
    folder = models / curve.model
    return load_model(curve, folder, train_seed, student_of(folder, train_seed, steps), device)


def _asked(curve: Curve, denoiser: Denoiser, low: Low | None) -> LabelledDenoiser:
    """The denoiser as the curve's solver calls it: for D, or for D and the variance."""
    asked = denoiser.with_variance if curve.variance == "learned" else denoiser
    return asked if low is None else partial(asked, low=denoiser.low_inputs(low))
