"""Training a denoiser: the loss, the loop, the average of its weights, and going on after a crash."""

import copy
import math
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.data import to_range
from pipeline.denoiser import Denoiser, per_sample, save_denoiser
from pipeline.errors import StudyError
from pipeline.files import CACHE, content_hash, write_bytes
from pipeline.model import Model
from pipeline.noise import NOISES
from pipeline.parallel import in_turns
from pipeline.provenance import code_hash, machine
from pipeline.randomness import generator
from pipeline.weighting import WEIGHTINGS

LOG_POINTS = 50  # the training curve has this many points
CHECKPOINTS = 10  # and a run this many checkpoints
EMA_RAMP_UP = 0.05  # the average never looks back further than this share of the run (EDM's code release, app. F.2)

_INITIALIZING = threading.Lock()  # PyTorch's initializers draw from one generator that all threads share


def loss(denoiser: Denoiser, row: Model, x0: Tensor, n: Tensor, sigma: Tensor) -> Tensor:
    """lambda(sigma) ||D(x0 + sigma n; sigma) - x0||^2, averaged over pixels: x0, n (N, C, H, W), sigma (N,) to (N,).

    Written on the network's own target (EDM, eq. 8), (x0 - c_skip z) / c_out, whose parts are exact at every sigma.
    """
    c_skip, c_out, c_in, c_noise = denoiser.coefficients(sigma, denoiser.sigma_data)
    z = x0 + per_sample(sigma, n) * n
    target = per_sample((1 - c_skip) / c_out, x0) * x0 - per_sample(c_skip * sigma / c_out, n) * n
    f = denoiser.network(per_sample(c_in, z) * z, c_noise.float())
    weight = WEIGHTINGS[row.weighting](sigma, denoiser.sigma_data, c_out) * c_out**2
    return weight.float() * (f - target).square().flatten(1).mean(1)


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


@dataclass(frozen=True)
class Trained:
    """The averaged weights, and the mean loss over each stretch of `images`."""

    denoiser: Denoiser
    curve: list[dict[str, float]]


class Run:
    """One training run's state: everything that a checkpoint holds."""

    def __init__(self, spec: dict[str, Any], row: Model, seed: int) -> None:
        with _INITIALIZING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator("weights", seed).initial_seed())
            self.denoiser = Denoiser(spec)
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=row.learning_rate, fused=True)
        self.step = 0
        self.losses = torch.zeros(row.steps)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        return tensors | {"step": torch.tensor(self.step), "losses": self.losses}

    def save(self, path: Path) -> None:
        write_bytes(path, save({name: value.contiguous() for name, value in self.tensors().items()}))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises StudyError where the file is broken."""
        try:
            tensors = load_file(path)
            part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
            self.denoiser.load_state_dict(part("model."))
            self.average.load_state_dict(part("average."))
            optimizer, parameters = self.optimizer.state_dict(), list(self.denoiser.parameters())
            for name, value in part("optimizer.").items():
                index, key = name.split(".")
                like = parameters[int(index)].detach() if value.ndim else value  # fused Adam needs equal strides
                optimizer["state"].setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value)
            self.optimizer.load_state_dict(optimizer)
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
) -> Generator[None, None, Trained]:
    """Train one seed of a row on images (N, C, H, W), uint8. The result depends on these four arguments alone.

    A generator that stops for breath after each checkpoint and returns the result at its end (`parallel.in_turns`).
    A run that was killed goes on from `checkpoint` and ends with the same bytes. Raises StudyError, naming the step,
    where the loss is not finite; the last good checkpoint stays.
    """
    run = Run(spec, row, seed)
    if checkpoint and checkpoint.exists():
        run.load(checkpoint)
        progress(run.step * row.batch)
    noise = NOISES[row.noise]
    every = max(row.steps // CHECKPOINTS, 1)
    parameters = [p.detach() for p in run.denoiser.parameters()]
    averages: list[Tensor] = list(run.average.parameters())
    while run.step < row.steps:
        draw = generator("step", seed, run.step)
        x0 = to_range(images[batch_indices(seed, run.step, row.batch, len(images))])
        n = torch.randn(x0.shape, generator=draw)
        sigma = noise(
            torch.rand(row.batch, dtype=torch.float64, generator=draw).clamp(min=2**-53), row.P_mean, row.P_std
        )
        run.optimizer.param_groups[0]["lr"] = learning_rate(row, run.step)
        run.optimizer.zero_grad()
        value = loss(run.denoiser, row, x0, n, sigma).mean()
        value.backward()
        run.optimizer.step()
        torch._foreach_lerp_(averages, parameters, 1 - ema_decay(row, run.step))
        run.losses[run.step] = value.detach()
        run.step += 1
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


def train_seeds(
    row: Model, data: dict[str, Any], images: Tensor, progress: Callable[[int], object], workers: int | None = None
) -> list[Trained]:
    """Train every seed of a row, side by side, each going on from its checkpoint where a run was cut short.

    data: the data set's summary (sigma_data, channels, height, width, content_hash).
    """
    spec = row.spec(data["sigma_data"], (data["channels"], data["height"], data["width"]))
    setting = row.model_dump(mode="json", exclude={"train_seeds"})

    def task(seed: int) -> Generator[None, None, Trained]:
        key = content_hash(setting, spec, seed, data["content_hash"], code_hash(), machine())
        return train(row, spec, images, seed, CACHE / "training" / f"{key}.safetensors", progress)

    return in_turns([task(seed) for seed in row.train_seeds], workers)


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
