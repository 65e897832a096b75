"""Training a denoiser: the loss, the loop, the average of its weights, and going on after a crash."""

import copy
import math
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.augmentation import augment
from pipeline.data import shape_of, to_range
from pipeline.denoiser import Denoiser, per_sample, save_denoiser
from pipeline.draws import DRAWS
from pipeline.errors import StudyError
from pipeline.files import CACHE, content_hash, write_bytes
from pipeline.model import EMA_RAMP_UP, Model
from pipeline.pairs import matched, reflow_pairs
from pipeline.parallel import in_turns
from pipeline.provenance import code_hash, machine
from pipeline.randomness import generator
from pipeline.weighting import WEIGHTINGS, Uncertainty

LOG_POINTS = 50  # the training curve has this many points
CHECKPOINTS = 10  # and a run this many checkpoints

_INITIALIZING = threading.Lock()  # PyTorch's initializers draw from one generator that all threads share


def loss(denoiser: Denoiser, weight: Tensor, x0: Tensor, n: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """weight ||D(x0 + sigma n; sigma) - x0||^2, averaged over pixels: x0, n (N, C, H, W), weight, sigma (N,) to (N,).

    Written on the network's own target (EDM, eq. 8), (x0 - c_skip z) / c_out, whose parts are exact at every sigma.
    labels (N, L): what the network is told of each image's augmentation.
    """
    c_skip, c_out, c_in, c_noise = denoiser.coefficients(sigma, denoiser.sigma_data)
    z = x0 + per_sample(sigma, n) * n
    target = per_sample((1 - c_skip) / c_out, x0) * x0 - per_sample(c_skip * sigma / c_out, n) * n
    f = denoiser.network(per_sample(c_in, z) * z, c_noise.float(), labels)
    return (weight * c_out**2).float() * (f - target).square().flatten(1).mean(1)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator("order", seed, epoch))


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Which of `count` images step `step` trains on, (batch,): every image once an epoch, in a new order each time."""
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    return torch.cat([_epoch_order(seed, int(e), count)[positions[epochs == e] % count] for e in epochs.unique()])


def learning_rate(row: Model, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    warm = min((step + 1) * row.batch / row.warmup_images, 1.0)
    return row.learning_rate * warm * (1 + math.cos(math.pi * step / row.steps)) / 2


def ema_decay(row: Model, step: int) -> float:
    """The decay of the weights' average for one step, from its half-life in images."""
    halflife = min(row.ema_halflife_images, EMA_RAMP_UP * step * row.batch)
    return 0.5 ** (row.batch / halflife) if halflife else 0.0


Pairs = tuple[Tensor, Tensor]


def noisy_batch(
    row: Model, images: Tensor, pairs: Pairs | None, indices: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images x0 and the noise n that goes with each, (B, C, H, W), and what the network is told of their augmentation.

    images (N, C, H, W), uint8; pairs: what `reflow_pairs` returned, which then takes the images' place; indices (B,).
    """
    if pairs:
        return pairs[0][indices], pairs[1][indices], None
    x0, labels = to_range(images[indices]), None
    if row.augment:
        x0, labels = augment(x0, row.augment, draw)
    n = torch.randn(x0.shape, generator=draw)
    return x0, matched(x0, n) if row.pairs == "optimal_transport" else n, labels


@dataclass(frozen=True)
class Trained:
    """The averaged weights, and the mean loss over each stretch of `images`."""

    denoiser: Denoiser
    curve: list[dict[str, float]]


def new_denoiser(spec: dict[str, Any], seed: int) -> Denoiser:
    """A denoiser with the weights that a seed starts with."""
    with _INITIALIZING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("weights", seed).initial_seed())
        return Denoiser(spec)


class Run:
    """One training run's state: everything that a checkpoint holds."""

    def __init__(self, spec: dict[str, Any], row: Model, seed: int) -> None:
        self.denoiser = new_denoiser(spec, seed)
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.weights = [p.detach() for p in self.denoiser.parameters()]
        self.averages: list[Tensor] = list(self.average.parameters())
        self.uncertainty = Uncertainty() if WEIGHTINGS[row.weighting].learned else None
        self.draws = DRAWS[row.draws]()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=row.learning_rate, fused=True)
        self.step = 0
        self.losses = torch.zeros(row.steps)

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [*self.denoiser.parameters(), *(self.uncertainty.parameters() if self.uncertainty else ())]

    def advance(self, row: Model, images: Tensor, pairs: Pairs | None, seed: int) -> None:
        """Train one step, on a batch of images (N, C, H, W), uint8, or of another flow's pairs."""
        draw = generator("step", seed, self.step)
        indices = batch_indices(seed, self.step, row.batch, len(pairs[0] if pairs else images))
        x0, n, labels = noisy_batch(row, images, pairs, indices, draw)
        u, importance = self.draws.draw(row.batch, draw)
        self.optimizer.param_groups[0]["lr"] = learning_rate(row, self.step)
        self.optimizer.zero_grad()
        losses = self.loss(row, x0, n, u, labels)
        self.draws.learn(u, losses)
        value = (importance.float() * losses).mean()
        value.backward()
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.weights, 1 - ema_decay(row, self.step))
        self.losses[self.step] = value.detach()
        self.step += 1

    def loss(self, row: Model, x0: Tensor, n: Tensor, u: Tensor, labels: Tensor | None) -> Tensor:
        """The row's loss at each image's own noise level, whose quantile is u (N,): x0, n (N, C, H, W) to (N,)."""
        sigma, sigma_data = row.distribution.sigma(u), self.denoiser.sigma_data
        c_out = self.denoiser.coefficients(sigma, sigma_data).c_out
        value = loss(self.denoiser, row.weight(u, sigma, sigma_data, c_out), x0, n, sigma, labels)
        if not self.uncertainty:
            return value
        uncertainty = self.uncertainty(sigma)
        return value / uncertainty.exp() + uncertainty

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        if self.uncertainty:
            tensors |= {f"uncertainty.{k}": v for k, v in self.uncertainty.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        return tensors | {"step": torch.tensor(self.step), "losses": self.losses, "draws": self.draws.state}

    def save(self, path: Path) -> None:
        write_bytes(path, save({name: value.contiguous() for name, value in self.tensors().items()}))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises StudyError where the file is broken."""
        try:
            tensors = load_file(path)
            part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
            self.denoiser.load_state_dict(part("model."))
            self.average.load_state_dict(part("average."))
            if self.uncertainty:
                self.uncertainty.load_state_dict(part("uncertainty."))
            optimizer, parameters = self.optimizer.state_dict(), self.parameters()
            for name, value in part("optimizer.").items():
                index, key = name.split(".")
                like = parameters[int(index)].detach() if value.ndim else value  # fused Adam needs equal strides
                optimizer["state"].setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value)
            self.optimizer.load_state_dict(optimizer)
            self.draws.state.copy_(tensors["draws"])
            self.step, self.losses = int(tensors["step"]), tensors["losses"]
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise StudyError(f"{path}: a broken checkpoint ({error}); delete it to train from the start") from None


def train(
    row: Model,
    spec: dict[str, Any],
    images: Tensor,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[int], object] = lambda images: None,
    make_pairs: Callable[[], Pairs] | None = None,
) -> Generator[None, None, Trained]:
    """Train one seed of a row on images (N, C, H, W), uint8, or on another flow's pairs. The result depends on these
    arguments alone.

    A generator that stops for breath after each checkpoint and returns the result at its end (`parallel.in_turns`).
    A run that was killed goes on from `checkpoint` and ends with the same bytes. Raises StudyError, naming the step,
    where the loss is not finite; the last good checkpoint stays.
    """
    run = Run(spec, row, seed)
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
        progress(run.step * row.batch)
    every = max(row.steps // CHECKPOINTS, 1)
    pairs = make_pairs() if make_pairs and run.step < row.steps else None
    while run.step < row.steps:
        run.advance(row, images, pairs, seed)
        progress(row.batch)
        if run.step % every == 0 or run.step == row.steps:
            bad = (~run.losses[: run.step].isfinite()).nonzero()
            if len(bad):
                raise StudyError(f"seed {seed}: the loss is not finite at step {int(bad[0])}; lower learning_rate?")
            if checkpoint:
                run.save(checkpoint)
            yield
    stretches = torch.arange(row.steps).tensor_split(min(LOG_POINTS, row.steps))
    curve = [
        {"seed": seed, "images": (int(s[-1]) + 1) * row.batch, "loss": round(float(run.losses[s].mean()), 6)}
        for s in stretches
    ]
    return Trained(run.average.eval(), curve)


def _setting(row: Model) -> dict[str, Any]:
    """A row, and its teachers' rows, without their seeds."""
    own = row.model_dump(mode="json", exclude={"train_seeds", "teacher"})
    return own | {"teacher": _setting(row.teacher) if row.teacher else None}


def train_seeds(
    row: Model, data: dict[str, Any], images: Tensor, progress: Callable[[int], object], workers: int | None = None
) -> list[Trained]:
    """Train every seed of a row, side by side, each going on from its checkpoint where a run was cut short.

    data: the data set's summary (sigma_data, channels, height, width, content_hash). The teacher of a row that has one
    is trained first, which costs nothing where that was done before.
    """
    spec = row.spec(data["sigma_data"], shape_of(data))
    teachers: list[Trained | None] = [None] * len(row.train_seeds)
    if row.teacher:
        teacher = row.teacher.model_copy(update={"train_seeds": row.train_seeds})
        teachers = [*train_seeds(teacher, data, images, lambda images: None, workers)]

    def task(seed: int, teacher: Trained | None) -> Generator[None, None, Trained]:
        key = content_hash(_setting(row), spec, seed, data["content_hash"], code_hash(), machine())
        make_pairs = partial(reflow_pairs, teacher.denoiser, row.reflow_pairs, seed) if teacher else None
        checkpoint = CACHE / "training" / f"{key}.safetensors"
        return (yield from train(row, spec, images, seed, checkpoint, progress, make_pairs))

    tasks = [task(seed, teacher) for seed, teacher in zip(row.train_seeds, teachers, strict=True)]
    return in_turns(tasks, workers)


def save_models(trained: list[Trained], folder: Path) -> dict[str, Any]:
    """Write one file of weights a seed. Returns a small summary."""
    for run in trained:
        save_denoiser(run.denoiser, folder / f"seed_{run.curve[0]['seed']}.safetensors")
    last = [run.curve[-1]["loss"] for run in trained]
    return {
        "parameters": sum(p.numel() for p in trained[0].denoiser.parameters()),
        "images": trained[0].curve[-1]["images"],
        "final_loss": sum(last) / len(last),
        "machine": machine(),
    }
