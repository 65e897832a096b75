"""Training a denoiser: the loss, the loop, and going on after a crash."""

import copy
import json
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.common import processes
from pipeline.common.devices import (
    CPU,
    Network,
    autocast,
    compiled,
    default_device,
    make_gradients_repeatable,
    say_once,
    to_device,
)
from pipeline.common.errors import StudyError
from pipeline.common.files import CACHE, content_hash, write_bytes
from pipeline.common.machine import code_hash, machine
from pipeline.common.randomness import generator
from pipeline.common.threads import in_turns
from pipeline.data.dataset import shape_of, to_hash, to_range
from pipeline.diffusion.averages import Averages, Profile, profiles, snapshot_steps
from pipeline.diffusion.classifier import NoisyClassifier, load_classifier, save_classifier
from pipeline.diffusion.denoiser import Denoiser, per_sample, save_denoiser
from pipeline.diffusion.networks.layers import Dropout
from pipeline.diffusion.networks.registry import cost
from pipeline.diffusion.parametrization import Coefficients
from pipeline.diffusion.weights import (
    average_file,
    classifier_file,
    main_file,
    save_snapshot,
    snapshot_file,
    with_weights,
)
from pipeline.training import augmentation
from pipeline.training.classifier import accuracy_by_sigma, train_classifier
from pipeline.training.draws import DRAWS
from pipeline.training.optimizer import adam, clip, learning_rate
from pipeline.training.pairs import matched, reflow_pairs
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS, Uncertainty

LOG_POINTS = 50  # the training curve has this many points
CHECKPOINTS = 10  # and a run this many checkpoints

_INITIALIZING = threading.Lock()  # PyTorch's initializers draw from one generator that all threads share


class Terms(NamedTuple):
    """The loss at noise levels sigma as factors, (N,) each: weight (F(c_in z, c_noise) - (signal x0 - noise n))^2 with
    z = x0 + sigma n. It is written on the network's own target (EDM, eq. 8), whose parts are exact at every sigma."""

    sigma: Tensor
    c_in: Tensor
    c_noise: Tensor
    signal: Tensor
    noise: Tensor
    weight: Tensor

    @classmethod
    def of(cls, coefficients: Coefficients, weight: Tensor, sigma: Tensor) -> Self:
        """weight: lambda(sigma), on D."""
        c_skip, c_out, c_in, c_noise = coefficients
        return cls(sigma, c_in, c_noise, (1 - c_skip) / c_out, c_skip * sigma / c_out, weight * c_out**2)


def network_error(
    network: Network, terms: Terms, x0: Tensor, n: Tensor, labels: Tensor | None, told: Tensor | None
) -> Tensor:
    """What `terms` says, averaged over pixels: x0, n (N, ...) to (N,). labels (N,), told (N, 9): the network's."""
    z = x0 + per_sample(terms.sigma, n) * n
    target = per_sample(terms.signal, x0) * x0 - per_sample(terms.noise, n) * n
    f = network(per_sample(terms.c_in, z) * z, to_device(terms.c_noise.float(), z.device), labels, told)
    return to_device(terms.weight.float(), z.device) * (f - target).square().flatten(1).mean(1)


def loss(
    denoiser: Denoiser, weight: Tensor, x0: Tensor, n: Tensor, sigma: Tensor, labels: Tensor | None = None
) -> Tensor:
    """weight ||D(x0 + sigma n; sigma) - x0||^2, averaged over pixels: x0, n (N, ...), weight, sigma (N,) to (N,).

    labels (N,), int64: the images' classes, -1 for none.
    """
    terms = Terms.of(denoiser.coefficients(sigma, denoiser.sigma_data), weight, sigma)
    return network_error(denoiser.network, terms, x0, n, labels, None)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator("order", seed, epoch))


def batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Which of `count` images step `step` trains on, (batch,): every image once an epoch, in a new order each time."""
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    return torch.cat([_epoch_order(seed, int(e), count)[positions[epochs == e] % count] for e in epochs.unique()])


Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Examples:
    """What a run trains on: images (N, C, H, W), uint8, on the device, and their classes (N,), int64; or another flow's
    pairs of x0 and n, as `reflow_pairs` returns them, which take their place."""

    images: Tensor
    labels: Tensor | None = None
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.pairs[0] if self.pairs else self.images)


class Batch(NamedTuple):
    """This process's P images x0 of a batch of B, their noise n (P, ...), and what the network is told of them: classes
    (P,), with -1 for none, and augmentation (P, 9), all on the device; of the whole batch the noise's quantiles u and
    their weights (B,)."""

    x0: Tensor
    n: Tensor
    u: Tensor
    importance: Tensor
    labels: Tensor | None
    told: Tensor | None


def draw_batch(
    row: Model, examples: Examples, indices: Tensor, draws: Any, draw: torch.Generator, device: torch.device = CPU
) -> Batch:
    """The batch of the examples `indices` (B,). All of it is drawn on the CPU by every process, in an order in which a
    row that turns flips or labels on keeps the other draws; each takes its own part of it."""
    count, pairs, own = len(indices), examples.pairs, processes.part(len(indices))
    a = augmentation.draw(count, row.augment, draw) if row.augment else None
    n = pairs[1][indices] if pairs else torch.randn(count, *examples.images.shape[1:], generator=draw)
    u, importance = draws.draw(count, draw)
    told = None if a is None else augmentation.conditioning(a)[own]
    if row.flip:
        a = augmentation.mirror(torch.zeros(count, 8, dtype=torch.float64) if a is None else a, row.flip, draw)
    labels = None
    if row.labels == "classes" and examples.labels is not None:
        dropped = torch.rand(count, generator=draw) < row.label_dropout
        labels = examples.labels[indices].masked_fill(dropped, -1)[own]
    if pairs:
        x0, n = pairs[0][indices[own]], n[own]
    elif row.pairs == "optimal_transport":  # which is found on the CPU, over the whole batch
        x0 = to_range(examples.images[to_device(indices, device)].to(CPU))
        x0 = x0 if a is None else augmentation.transform(x0, a)
        x0, n = x0[own], matched(x0, n)[own]
    else:
        x0, n = to_range(examples.images[to_device(indices[own], device)]), n[own]
        x0 = x0 if a is None else augmentation.transform(x0, a[own])
    labels, told = (None if each is None else to_device(each, device) for each in (labels, told))
    return Batch(to_device(x0, device), to_device(n, device), u, importance, labels, told)


def new_denoiser(spec: dict[str, Any], seed: int) -> Denoiser:
    """A denoiser with the weights that a seed starts with."""
    with _INITIALIZING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("weights", seed).initial_seed())
        return Denoiser(spec)


class Run:
    """One training run's state: everything that a checkpoint holds.

    No random generator's state is in it: the draws of a step come from generators that are named by seed and step.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        row: Model,
        seed: int,
        device: torch.device = CPU,
        micro_batch: int | None = None,
    ) -> None:
        """micro_batch: what goes through the network at a time, in each process; None: the row's, or else all."""
        if device.type == "cuda":
            make_gradients_repeatable()
        self.row, self.seed, self.device = row, seed, device
        self.own = processes.part(row.batch)
        self.micro_batch = min(micro_batch or row.micro_batch or row.batch, self.own.stop - self.own.start)
        self.denoiser = new_denoiser(spec, seed).to(device)
        self.averages = Averages(dict(self.denoiser.named_parameters()), profiles(row))
        self.uncertainty = Uncertainty().to(device) if WEIGHTINGS[row.weighting].learned else None
        self.draws = DRAWS[row.draws]()
        self.optimizer = adam(self.parameters(), row.learning_rate)
        self.step = 0
        self.losses = torch.zeros(row.steps, device=device)
        self.suspects = torch.zeros(row.steps, device=device)  # each step's sigma that is to blame if its loss is bad
        self.dropouts = [module for module in self.denoiser.modules() if isinstance(module, Dropout)]
        for layer in self.dropouts:
            layer.generator = torch.Generator(device)
        network: Network = self.denoiser.network
        self.function = compiled(network, self._attempt) if row.compile == "default" else network

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [*self.denoiser.parameters(), *(self.uncertainty.parameters() if self.uncertainty else ())]

    def _attempt(self, network: Network) -> None:
        """Call a compiled network once, and its gradient, so that it fails here if it does."""
        count, row = self.micro_batch, self.row
        labels = torch.zeros(count, dtype=torch.int64, device=self.device) if row.labels == "classes" else None
        told = torch.zeros(count, augmentation.LABELS, device=self.device) if row.augment else None
        x = torch.zeros(count, *self.denoiser.shape, device=self.device)
        with autocast(row.precision, self.device):
            f = network(x, torch.zeros(count, device=self.device), labels, told)
        f.sum().backward()
        self.optimizer.zero_grad()

    def network(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, told: Tensor | None) -> Tensor:
        """F in the row's precision."""
        with autocast(self.row.precision, self.device):
            return self.function(x, c_noise, labels, told)

    def advance(self, examples: Examples) -> None:
        """Train one step. Nothing waits for a GPU, but for `draws: adaptive`, which go by the losses.

        Several processes share the batch, and add up what each finds of the gradient.
        """
        row, draw = self.row, generator("step", self.seed, self.step)
        indices = batch_indices(self.seed, self.step, row.batch, len(examples))
        batch = draw_batch(row, examples, indices, self.draws, draw, self.device)
        for index, layer in enumerate(self.dropouts):
            if layer.generator:  # one for each layer, so that micro-batches draw what the whole batch would
                layer.generator.manual_seed(generator("dropout", self.seed, self.step, index).initial_seed())
                layer.skip = self.own.start
        sigma = row.distribution.sigma(batch.u)
        coefficients = self.denoiser.coefficients(sigma, self.denoiser.sigma_data)
        weight = row.weight(batch.u, sigma, self.denoiser.sigma_data, coefficients.c_out)
        rows = torch.stack([*Terms.of(coefficients, weight, sigma), batch.importance])
        terms = to_device(rows.float(), self.device)  # in one transfer
        self.optimizer.param_groups[0]["lr"] = learning_rate(row, self.step)
        self.optimizer.zero_grad()
        losses = self._backward(batch, terms, to_device(sigma.log().float(), self.device) if self.uncertainty else None)
        self.suspects[self.step] = terms[0].gather(0, losses.isfinite().logical_not().float().argmax(0, True))[0]
        self.draws.learn(batch.u, losses)
        if row.clip_norm:
            clip(self.parameters(), row.clip_norm)
        self.optimizer.step()
        self.averages.update(self.step, row.batch)
        self.step += 1

    def _backward(self, batch: Batch, terms: Tensor, ln_sigma: Tensor | None) -> Tensor:
        """Add up the gradients of micro-batches: terms (7, B), the `Terms` and the importance; the losses, (B,).

        ln_sigma (B,): what a learned weighting goes by.
        """
        found, value = torch.zeros(self.row.batch, device=self.device), torch.zeros(1, device=self.device)
        for first in range(self.own.start, self.own.stop, self.micro_batch):
            part = slice(first, min(first + self.micro_batch, self.own.stop))
            own = slice(part.start - self.own.start, part.stop - self.own.start)
            *factors, importance = terms[:, part]
            labels, told = (None if each is None else each[own] for each in (batch.labels, batch.told))
            losses = network_error(self.network, Terms(*factors), batch.x0[own], batch.n[own], labels, told)
            if self.uncertainty and ln_sigma is not None:
                uncertainty = self.uncertainty(ln_sigma[part])
                losses = losses / uncertainty.exp() + uncertainty
            share = (importance * losses).sum() / self.row.batch
            share.backward()
            value += share.detach()
            found[part] = losses.detach()
        if processes.count() > 1:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            whole = [found, value, *gradients]
            flat = torch.cat([each.flatten() for each in whole])
            processes.add_up(flat)
            for each, total in zip(whole, flat.split([each.numel() for each in whole]), strict=True):
                each.copy_(total.view_as(each))
        self.losses[self.step] = value[0]
        return found

    def check(self) -> None:
        """Raises StudyError where a loss so far, or a weight by now, is not finite."""
        losses = self.losses[: self.step].cpu()
        if not losses.isfinite().all():
            step = int(losses.isfinite().int().argmin())
            where = f"the loss is not finite at step {step} (sigma {float(self.suspects[step]):.4g})"
            raise StudyError(f"seed {self.seed}: {where}; lower learning_rate?")
        weights = [parameter.detach() for parameter in self.parameters()]
        if not torch.stack(torch._foreach_norm(weights, torch.inf)).isfinite().all():
            raise StudyError(f"seed {self.seed}: the weights are not finite at step {self.step}; lower learning_rate?")

    def curve(self) -> list[dict[str, float]]:
        """The mean loss over each of LOG_POINTS stretches."""
        losses, steps = self.losses.cpu(), torch.arange(self.row.steps)
        return [
            {"seed": self.seed, "images": (int(s[-1]) + 1) * self.row.batch, "loss": round(float(losses[s].mean()), 6)}
            for s in steps.tensor_split(min(LOG_POINTS, self.row.steps))
        ]

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": v for k, v in self.denoiser.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.averages.tensors().items()}
        if self.uncertainty:
            tensors |= {f"uncertainty.{k}": v for k, v in self.uncertainty.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        return tensors | {"step": torch.tensor(self.step), "losses": self.losses, "draws": self.draws.state}

    def save(self, path: Path, setting: dict[str, Any]) -> None:
        """Write a checkpoint of a training with this setting, whole or not at all."""
        tensors = {name: value.contiguous() for name, value in self.tensors().items()}
        if processes.first():
            write_bytes(path, save(tensors, {"setting": json.dumps(setting, sort_keys=True)}))

    def load(self, path: Path, setting: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises StudyError where the file is broken, or has another setting."""
        try:
            with safetensors.safe_open(path, "pt") as file:
                own = json.loads((file.metadata() or {})["setting"])
            if different := differences(own, json.loads(json.dumps(setting))):
                raise StudyError(f"{path}: of another training: {different}; delete it, or go back")
            tensors = load_file(path)
            self.denoiser.load_state_dict(_part(tensors, "model."))
            self.averages.load(_part(tensors, "average."))
            if self.uncertainty:
                self.uncertainty.load_state_dict(_part(tensors, "uncertainty."))
            optimizer, parameters = self.optimizer.state_dict(), self.parameters()
            for name, value in _part(tensors, "optimizer.").items():
                index, key = name.split(".")
                like = parameters[int(index)].detach() if value.ndim else value  # fused Adam needs equal strides
                optimizer["state"].setdefault(int(index), {})[key] = torch.empty_like(like).copy_(value)
            self.optimizer.load_state_dict(optimizer)
            self.draws.state.copy_(tensors["draws"])
            self.losses.copy_(tensors["losses"])
            self.step = int(tensors["step"])
        except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StudyError(f"{path}: a broken checkpoint ({error}); delete it to train from the start") from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def spec_of(row: Model, data: dict[str, Any]) -> dict[str, Any]:
    """What builds a row's denoiser for a data set, by its summary (sigma_data, sizes, class_counts)."""
    return row.spec(data["sigma_data"], shape_of(data), [*data.get("class_counts", {}).values()])


def setting(
    row: Model, spec: dict[str, Any], images: Tensor, labels: Tensor | None, seed: int, device: torch.device
) -> dict[str, Any]:
    """All that a training's bytes depend on, for JSON: the row, the spec, the data, the code and the machine."""
    data = content_hash(to_hash(images), None if labels is None else labels.tolist())
    return {**_plain(row), **spec, "seed": seed, "data": data, "code": code_hash(), **machine(device)}


def _plain(row: Model) -> dict[str, Any]:
    """A row, and its teacher's, without seeds and without the row whose cost its network has, which the spec states."""
    own = row.model_dump(mode="json", exclude={"train_seeds", "teacher", "like"})
    return own | {"teacher": _plain(row.teacher) if row.teacher else None}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """Where two settings differ, by key: what each says."""
    found = []
    for key in dict.fromkeys([*new, *old]):
        one, two = (each.get(key, "nothing") for each in (old, new))
        if isinstance(one, dict) and isinstance(two, dict):
            found.append(differences(one, two, f"{prefix}{key}."))
        elif one != two:
            now = "in the row" if prefix or key in Model.model_fields else "now"
            found.append(f"{prefix}{key}: {str(one)[:40]} in the checkpoint, {str(two)[:40]} {now}")
    return "; ".join(filter(None, found))


@dataclass(frozen=True)
class Trained:
    """The main average of the weights, and the mean loss over each stretch of `images`.

    averages: the other averages; snapshots: the files of all of them, by the images seen until then; classifier: the
    noise-aware one that was trained beside the model, and the share of its own images that it tells right, by sigma.
    """

    denoiser: Denoiser
    curve: list[dict[str, float]]
    averages: dict[Profile, Denoiser] = field(default_factory=dict)
    snapshots: dict[int, Path] = field(default_factory=dict)
    classifier: NoisyClassifier | None = None
    classifier_accuracy: dict[str, float] = field(default_factory=dict)


def check_models(rows: Mapping[str, Model], data: dict[str, Any], images: Tensor, labels: Tensor | None) -> None:
    """Refuse rows, by name, that can't be trained on this data, before any of them is. Raises StudyError.

    data: the data set's summary.
    """
    for name, row in rows.items():
        try:
            check_examples(row, images, labels)
            cost(spec_of(row, data))
        except StudyError as error:
            raise StudyError(f"models.{name}.{error}") from None


def check_examples(row: Model, images: Tensor, labels: Tensor | None) -> None:
    """Refuse data that a row can't be trained on. Raises StudyError."""
    if row.labels == "classes" and labels is None:
        raise StudyError("labels: classes needs a data set with classes, and this one has none; use labels: none")
    if row.classifier_images and labels is None:
        raise StudyError("classifier_images: a classifier needs a data set with classes, and this one has none; use 0")
    for key in ("augment", "flip"):
        if getattr(row, key) and images.ndim != 4:
            raise StudyError(f"{key}: only images have mirror images, and the data are points; use 0")
    if row.pairs == "reflow" and row.batch > row.reflow_pairs:
        raise StudyError(f"batch: {row.batch} of {row.reflow_pairs} reflow_pairs; use a smaller batch, or more pairs")
    if row.pairs != "reflow" and row.batch > len(images):
        raise StudyError(f"batch: {row.batch}, but the data set has {len(images)} examples; use at most as many")


def train(
    row: Model,
    spec: dict[str, Any],
    images: Tensor,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[int], object] = lambda images: None,
    make_pairs: Callable[[], Pairs] | None = None,
    labels: Tensor | None = None,
    device: torch.device | None = None,
) -> Generator[None, None, Trained]:
    """Train one seed of a row on images (N, C, H, W), uint8, or on another flow's pairs; labels (N,), int64, are the
    images' classes. The result depends on these arguments alone, and on what kind of device is trained on.

    A generator that stops for breath after each checkpoint and returns the result at its end (`parallel.in_turns`).
    A run that was killed goes on from `checkpoint` and ends with the same bytes; there is no random state to restore,
    as each step's draws are named by seed and step. Snapshots are written beside the checkpoint, and without one there
    are none. Raises StudyError where the row does not go with the data, where the checkpoint is broken or of another
    setting, and, naming the step, where the loss is not finite; the last good checkpoint stays.
    """
    check_examples(row, images, labels)
    device = device or default_device()
    own = setting(row, spec, images, labels, seed, device) if checkpoint else {}
    snapshots = {}
    if checkpoint:
        snapshots = {step: beside(checkpoint, f"snapshot_{step * row.batch}") for step in snapshot_steps(row)}

    def begin(micro_batch: int | None) -> Run:
        run = Run(spec, row, seed, device, micro_batch)
        if checkpoint and checkpoint.exists():
            run.load(checkpoint, own)
            if missing := [path for step, path in snapshots.items() if step <= run.step and not path.exists()]:
                say_once(f"{missing[0]}: missing, so that {checkpoint} is of no use; training from the start")
                run = Run(spec, row, seed, device, micro_batch)
            progress(run.step * row.batch)
        return run

    run = begin(None)
    if len(set(processes.exchange(str(run.step).encode()))) > 1:
        raise StudyError(f"{checkpoint}: not the same for all processes; they need one file system")
    every = max(row.steps // CHECKPOINTS, 1)
    pairs = make_pairs() if make_pairs and run.step < row.steps else None
    examples = Examples(to_device(images, device), labels if row.labels == "classes" else None, pairs)
    halved = False
    while run.step < row.steps:
        smaller = 0
        try:
            run.advance(examples)
        except torch.OutOfMemoryError:
            smaller = _smaller(run, halved)
        if smaller:  # not above, where the error still holds on to the run's memory
            progress(-run.step * row.batch)
            del run  # its memory is needed for the next
            torch.cuda.empty_cache()
            run, halved = begin(smaller), True
            continue
        progress(row.batch)
        if run.step in snapshots:
            run.check()
            if processes.first():
                save_snapshot(run.averages, run.step, row.batch, snapshots[run.step])
        if run.step % every == 0 or run.step == row.steps:
            run.check()
            if checkpoint:
                run.save(checkpoint, own)
            yield
    classifier = _classifier(row, spec, images, labels, seed, checkpoint)
    told_right = {} if classifier is None or labels is None else accuracy_by_sigma(classifier, images, labels, seed)
    main, *others = (with_weights(run.denoiser, run.averages.of(profile)).to(CPU) for profile in run.averages.profiles)
    return Trained(
        main,
        run.curve(),
        dict(zip(run.averages.profiles[1:], others, strict=True)),
        {step * row.batch: path for step, path in snapshots.items()},
        classifier,
        told_right,
    )


def _smaller(run: Run, halved: bool) -> int:
    """Half as many images at a time, after a device's memory didn't suffice: said on stderr, and done but once.

    Raises StudyError the second time, and where several processes, whose batches are of one size, are at work.
    """
    size = run.micro_batch // 2
    if halved or not size or processes.count() > 1:
        raise StudyError(
            f"seed {run.seed}: out of memory on {run.device} with {run.micro_batch} images at a time; "
            f"set micro_batch: {max(size, 1)} in the model's row, or use a smaller network"
        )
    say_once(f"out of memory with {run.micro_batch} images at a time: from the last checkpoint on with {size}")
    return size


def beside(checkpoint: Path, what: str) -> Path:
    """Another file of a training, beside its checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}_{what}.safetensors")


def _pairs(teacher: Denoiser, count: int, seed: int, device: torch.device) -> Pairs:
    return reflow_pairs(copy.deepcopy(teacher).to(device), count, seed, device)


def _classifier(
    row: Model, spec: dict[str, Any], images: Tensor, labels: Tensor | None, seed: int, checkpoint: Path | None
) -> NoisyClassifier | None:
    """The noise-aware classifier of a row that has one: that beside the checkpoint, or else a new one."""
    if not row.classifier_images or labels is None:
        return None
    path = beside(checkpoint, "classifier") if checkpoint else None
    if path and path.exists():
        return load_classifier(path)
    counts = torch.bincount(labels).tolist()
    many = row.classifier_images
    classifier = train_classifier(images, labels, counts, spec["sigma_data"], seed, many, default_device())
    if path and processes.first():
        save_classifier(classifier, path)
    return classifier


def train_seeds(
    row: Model,
    data: dict[str, Any],
    images: Tensor,
    progress: Callable[[int], object],
    workers: int | None = None,
    labels: Tensor | None = None,
) -> list[Trained]:
    """Train every seed of a row, side by side, each going on from its checkpoint where a run was cut short.

    data: the data set's summary. The teacher of a row that has one is trained first,
    which costs nothing where that was done before.
    """
    spec = spec_of(row, data)
    teachers: list[Trained | None] = [None] * len(row.train_seeds)
    if row.teacher:
        teacher = row.teacher.model_copy(update={"train_seeds": row.train_seeds})
        teachers = [*train_seeds(teacher, data, images, lambda images: None, workers, labels)]
    device = default_device()

    def task(seed: int, teacher: Trained | None) -> Generator[None, None, Trained]:
        key = content_hash(setting(row, spec, images, labels, seed, device))
        make_pairs = partial(_pairs, teacher.denoiser, row.reflow_pairs, seed, device) if teacher else None
        checkpoint = CACHE / "training" / f"{key}.safetensors"
        return (yield from train(row, spec, images, seed, checkpoint, progress, make_pairs, labels, device))

    tasks = [task(seed, teacher) for seed, teacher in zip(row.train_seeds, teachers, strict=True)]
    return in_turns(tasks, processes.workers_on(device) if workers is None else workers)


def save_models(trained: list[Trained], folder: Path) -> dict[str, Any]:
    """Write files of weights for each seed: its averages, its snapshots, its classifier. Returns a small summary."""
    for run in trained:
        seed = int(run.curve[0]["seed"])
        save_denoiser(run.denoiser, main_file(folder, seed))
        for profile, denoiser in run.averages.items():
            save_denoiser(denoiser, average_file(folder, seed, profile))
        for images, path in run.snapshots.items():
            write_bytes(snapshot_file(folder, seed, images), path.read_bytes())
        if run.classifier:
            save_classifier(run.classifier, classifier_file(folder, seed))
    last, spec = [run.curve[-1]["loss"] for run in trained], trained[0].denoiser.spec
    accuracies = [run.classifier_accuracy for run in trained]
    return {
        "network": spec["network"],
        "channels": spec["channels"],
        **cost(spec)._asdict(),
        "images": trained[0].curve[-1]["images"],
        "final_loss": sum(last) / len(last),
        "classifier_accuracy": {sigma: sum(a[sigma] for a in accuracies) / len(trained) for sigma in accuracies[0]},
        "machine": machine(default_device()),
    }
