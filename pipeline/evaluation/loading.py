"""A curve's model, loaded for sampling: its weights on a device, guided and with classes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.common import processes
from pipeline.common.devices import CPU, autocast, fitting_batch
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction
from pipeline.diffusion.weights import weights_for
from pipeline.evaluation.curve import Curve
from pipeline.sampling.guidance import ByClass, BySample, LabelledDenoiser, guided


@dataclass(frozen=True)
class LoadedModel:
    """A network on a device, and the denoiser that a solver calls: the network with guidance and labels."""

    network: Denoiser
    denoiser: DenoiserFunction | BySample
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    def fitting_batch(self) -> int:
        """The number of samples that fit into memory at a time, the same in all processes of a job."""
        answers = processes.exchange(str(fitting_batch(self._call, self.device)).encode())
        return min(map(int, answers))

    @torch.no_grad()
    def _call(self, count: int) -> object:
        x, c_noise = torch.zeros(count, *self.shape, device=self.device), torch.zeros(count, device=self.device)
        with autocast(self.network.precision, self.device):
            return self.network.network(x, c_noise, None)


def load_model(
    curve: Curve, folder: Path, train_seed: int, student: int | None = None, device: torch.device = CPU
) -> LoadedModel:
    """Load the model of a curve from the folder of its weights. student: as of `student_of`.

    Raises StudyError if some are missing.
    """
    weights = weights_for(folder, train_seed, curve.weights(student))
    for denoiser in filter(None, (weights.denoiser, weights.snapshot)):
        denoiser.run_on(device, curve.precision, curve.compile)
    classifier = weights.classifier.to(device) if weights.classifier else None
    model = _asked(curve, weights.denoiser)
    snapshot = _asked(curve, weights.snapshot) if weights.snapshot else None
    of_labels = partial(guided, curve.build_guidance(), model, snapshot=snapshot, classifier=classifier)
    classes = classifier.classes if classifier else weights.denoiser.classes
    by_class = bool(classes) and curve.labels == "data"
    denoiser_or_by_class = ByClass(tuple(classes), of_labels) if by_class else of_labels(None)
    return LoadedModel(weights.denoiser, denoiser_or_by_class, device)


def _asked(curve: Curve, denoiser: Denoiser) -> LabelledDenoiser:
    """The denoiser as the curve's solver calls it: for D, or for D and the variance."""
    return denoiser.with_variance if curve.variance == "learned" else denoiser
