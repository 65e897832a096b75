"""The state of one training: network, averages, optimizer, step, and the losses so far."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, nn

from pipeline.common import processes
from pipeline.common.devices import CPU, Network, autocast, compiled, make_gradients_repeatable
from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.diffusion.averages import Averages, profiles
from pipeline.diffusion.denoiser import Denoiser, DenoiserFunction, denoised, new_denoiser
from pipeline.diffusion.networks.layers import Dropout
from pipeline.diffusion.spec import Spec
from pipeline.diffusion.upsampling import Low
from pipeline.training import augmentation
from pipeline.training.batches import Batch
from pipeline.training.draws import DRAWS
from pipeline.training.objectives import OBJECTIVES, target_share
from pipeline.training.optimizer import adam
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS, Uncertainty

CURVE_POINTS = 50  # points of the training curve
LAST_LOSSES = 3  # finite losses before one that is not, which an error names


class Diverged(NotFinite):
    """A loss or a weight of a training is not finite. curve: the training curve up to there."""

    def __init__(self, reason: str, curve: list[dict[str, float]]) -> None:
        super().__init__(reason)
        self.curve = curve


class Run:
    """The state of one training, all of which a checkpoint holds.

    It has no state of a random generator: seed and step name the generator of each draw.
    """

    def __init__(
        self,
        spec: Spec,
        row: Model,
        seed: int,
        device: torch.device = CPU,
        micro_batch: int | None = None,
        teacher: Denoiser | None = None,
    ) -> None:
        """micro_batch: images per call of the network in each process; None: the row's value, or the whole batch.

        teacher: what the objective learns from, if it needs one; the training then starts from its weights. Other
        objectives have no use for it.
        """
        if device.type == "cuda":
            make_gradients_repeatable()
        self.row, self.seed, self.device = row, seed, device
        self.part = processes.part(row.batch)  # of each batch, for this process
        self.micro_batch = min(micro_batch or row.micro_batch or row.batch, self.part.stop - self.part.start)
        self.denoiser = new_denoiser(spec, seed).to(device)
        self.teacher = copy.deepcopy(teacher).to(device) if teacher and OBJECTIVES[row.objective].teacher else None
        if self.teacher:
            self.denoiser.load_state_dict(self.teacher.state_dict())
        self.averages = Averages(dict(self.denoiser.named_parameters()), profiles(row))
        self.uncertainty = Uncertainty().to(device) if WEIGHTINGS[row.weighting].learned else None
        self.target = new_denoiser(spec, seed).to(device).eval() if row.target_decay else None  # of an average
        if self.target:
            self.target.load_state_dict(self.denoiser.state_dict())
            self.target.requires_grad_(False)
        self.draws = DRAWS[row.draws]()
        self.optimizer = adam(self.parameters(), row.learning_rate)
        self.step = 0
        self.losses = torch.zeros(row.steps, device=device)
        self.suspects = torch.zeros(row.steps, device=device)  # sigma of each step's first loss that is not finite
        self.dropouts = [module for module in self.denoiser.modules() if isinstance(module, Dropout)]
        for layer in self.dropouts:
            layer.generator = torch.Generator(device)
        network: Network = self.denoiser.network
        self.function = compiled(network, self._attempt) if row.compile == "default" else network

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [*self.denoiser.parameters(), *(self.uncertainty.parameters() if self.uncertainty else ())]

    def _attempt(self, network: Network) -> None:
        """Call a compiled network and its gradient once, so that a failure shows here."""
        count, row = self.micro_batch, self.row
        labels = torch.zeros(count, dtype=torch.int64, device=self.device) if row.labels == "classes" else None
        conditioning = torch.zeros(count, augmentation.LABELS, device=self.device) if row.augment else None
        x = torch.zeros(count, *self.denoiser.shape, device=self.device)
        low = []
        if row.upsampler:
            zeros = torch.zeros(count, *self.denoiser.spec.low, device=self.device)
            low = self.denoiser.low_inputs(Low(zeros, torch.zeros(count)))
        with autocast(row.precision, self.device):
            f = network(x, torch.zeros(count, device=self.device), labels, conditioning, *low)
        f.sum().backward()
        self.optimizer.zero_grad()

    def network(self, x: Tensor, c_noise: Tensor, *conditions: Tensor | None) -> Tensor:
        """F in the row's precision. conditions: the network's further inputs, in order."""
        with autocast(self.row.precision, self.device):
            return self.function(x, c_noise, *conditions)

    def conditions(self, batch: Batch, own: slice) -> list[Tensor | None]:
        """The network's further inputs for some of a batch's images."""
        told = [None if values is None else values[own] for values in (batch.labels, batch.augmentation)]
        return told + (self.denoiser.low_inputs(batch.low.part(own)) if batch.low else [])

    def seed_dropout(self) -> None:
        """Give each dropout layer its own generator for this step, so that micro-batches share the batch's masks."""
        for index, layer in enumerate(self.dropouts):
            if layer.generator:
                layer.generator.manual_seed(generator("dropout", self.seed, self.step, index).initial_seed())
                layer.skip = self.part.start

    @contextmanager
    def same_dropout(self) -> Iterator[None]:
        """What is called within leaves the masks of dropout to the next call, which gets the same ones."""
        before = [(one, one.skip, one.generator.get_state()) for one in self.dropouts if one.generator]
        yield
        for layer, skip, state in before:
            layer.skip = skip
            if layer.generator:
                layer.generator.set_state(state)

    def answers(self, conditions: Sequence[Tensor | None]) -> tuple[DenoiserFunction, DenoiserFunction]:
        """D(z; sigma) without gradients of the teacher, and of the network in training or the target's average.

        z (P, ...), sigma (P,) on the CPU. conditions: the network's further inputs.
        """

        def of(denoiser: Denoiser, network: Network) -> DenoiserFunction:
            @torch.no_grad()
            def answer(z: Tensor, sigma: Tensor) -> Tensor:
                coefficients = denoiser.coefficients(sigma, denoiser.sigma_data)
                with autocast(self.row.precision, self.device), self.same_dropout():
                    return denoised(network, coefficients, z, *conditions)[0]

            return answer

        student = of(self.target, self.target.network) if self.target else of(self.denoiser, self.function)
        return of(self.teacher, self.teacher.network) if self.teacher else student, student

    @torch.no_grad()
    def update_target(self) -> None:
        """Move the target's average towards the weights after a step."""
        if self.target:
            share = target_share(self.step, self.row.steps, vars(self.row))
            torch._foreach_lerp_([*self.target.parameters()], [*self.denoiser.parameters()], 1 - share)

    def check(self) -> None:
        """Raises Diverged if a loss so far, or a weight now, is not finite: step, sigma and the losses before."""
        losses = self.losses[: self.step].cpu()
        weights = [parameter.detach() for parameter in self.parameters()]
        if not losses.isfinite().all():
            step = int(losses.isfinite().int().argmin())
            what, at = "the loss is", [f"sigma {float(self.suspects[step]):.4g}"]
        elif not torch.stack(torch._foreach_norm(weights, torch.inf)).isfinite().all():
            step, what, at = self.step, "the weights are", []
        else:
            return
        if before := ", ".join(f"{loss:.4g}" for loss in losses[:step].tolist()[-LAST_LOSSES:]):
            at.append(f"losses before: {before}")
        where = f"{what} not finite at step {step} ({'; '.join(at)})"
        raise Diverged(f"seed {self.seed}: {where}; lower learning_rate?", self.curve())

    def stretches(self) -> Sequence[Tensor]:
        """The steps behind each point of the training curve."""
        return torch.arange(self.row.steps).tensor_split(min(CURVE_POINTS, self.row.steps))

    def curve(self) -> list[dict[str, float]]:
        """The training curve: the mean loss over each stretch of steps, up to one that is not over or not finite."""
        losses = self.losses.cpu()
        points = (
            {"seed": self.seed, "images": (int(s[-1]) + 1) * self.row.batch, "loss": round(float(losses[s].mean()), 6)}
            for s in self.stretches()
            if int(s[-1]) < self.step
        )
        return list(takewhile(lambda point: math.isfinite(point["loss"]), points))
