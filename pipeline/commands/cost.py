"""What a study costs on this machine: network calls counted, seconds and memory told from a short measurement.

Networks are extrapolated from two small U-Nets: a call takes some time for each tensor of weights, and some for each
floating-point operation. What is no network of a model row (metrics, exact denoisers, the report) takes seconds that
were measured on one machine, times how much slower this one computes.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common.devices import CPU_BATCH, default_device
from pipeline.common.files import CACHE, content_hash, read_json, write_json
from pipeline.common.machine import code_hash, machine
from pipeline.common.threads import cores, side_by_side
from pipeline.data.dataset import shape_of
from pipeline.diffusion.averages import profiles
from pipeline.diffusion.networks.registry import build
from pipeline.evaluation import losses
from pipeline.evaluation import proposal as propose
from pipeline.evaluation.bound import REPEATS
from pipeline.metrics.extractors import extractor as features
from pipeline.metrics.extractors.extractor import Features
from pipeline.sampling.fitted_grids import TRAJECTORIES
from pipeline.sampling.grids import LEVELS
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler, sampler_of
from pipeline.training import classifier
from pipeline.training.batches import Examples
from pipeline.training.checks import spec_of
from pipeline.training.loop import advance
from pipeline.training.noise import Levels
from pipeline.training.pairs import REFLOW_STEPS
from pipeline.training.row import Model
from pipeline.training.run import Run

WITHIN = 2  # the factor within which estimates of trainings and sweeps were, see docs/checking.md

REFERENCE_FLOP = (
    6.5e-12  # seconds an operation of a sampling network on the machine that the following were measured on
)
MEASURED_SECONDS = {"resolve": 0.5, "prepare": 4.0, "features": 0.5, "oracle": 12.0, "report": 7.0}
REFERENCE_SECONDS = {"images": 1.6, "points": 15.0}
AGREEMENT_SECONDS = (8.0, 0.2)  # by itself, for each curve
CELL_SECONDS = {"images": 0.25, "points": 0.9}  # to measure 1024 samples, beside their features
MATCHING_SECONDS = 4e-5  # an image of a batch whose noise is matched
EXTRACTOR_FLOPS = {"inception": 1.14e10, "dinov2": 1.6e11}  # an image
METRICS_MIB, STAGE_MIB = 150, 100  # beside networks: of libraries that a stage loads, of what metrics hold
DVC_SECONDS = 1.0  # that DVC takes for a stage, beside the start of its process

SMALL, LARGE = 8, 32  # channels of the two networks that are timed
BATCH, CALL_BATCH = 128, 512  # images of a step of training, of a call
STEPS, CALLS = 3, 2
SHAPE = (1, 8, 8)


class Size(NamedTuple):
    """A network's: trained numbers, tensors of them, operations of one evaluation of one image, bytes kept of one image
    for the gradient, and bytes of the largest of its layers' answers."""

    parameters: int
    tensors: int
    flops: int
    saved: int
    largest: int


def size_of(make: Callable[[], nn.Module], *inputs: Tensor | None) -> Size:
    """The size of a network that is called with inputs of one image; nothing is computed."""
    saved, largest = 0, 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    def look(module: nn.Module, given: object, answer: object) -> None:
        nonlocal largest
        if isinstance(answer, Tensor):
            largest = max(largest, answer.numel() * answer.element_size())

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = make().eval()  # as dropout draws from a generator of the training's
        for module in network.modules():
            module.register_forward_hook(look)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(*(each if each is None else each.to("meta") for each in inputs))
    numbers = [parameter.numel() for parameter in network.parameters()]
    weights = sum(numbers) * 4  # which autograd keeps as well, once for all images
    return Size(sum(numbers), len(numbers), counter.get_total_flops(), max(saved - weights, largest), largest)


def _kept(parts: Sequence[object], measure: Callable[[], Size]) -> Size:
    """A size, or what is kept of an earlier time: to count operations PyTorch loads what takes seconds."""
    kept = CACHE / "sizes" / f"{content_hash(*parts, code_hash())}.json"
    if not kept.exists():
        write_json(kept, measure())
    return Size(*read_json(kept))


def model_size(row: Model, about: dict[str, Any]) -> Size:
    """The size of a row's network. Raises StudyError where it does not go with the data, by their summary."""

    def measure() -> Size:
        spec = spec_of(row, about)
        labels = torch.zeros(1, dtype=torch.int64) if spec.classes else None
        return size_of(partial(build, spec), torch.zeros(1, *spec.shape), torch.zeros(1), labels)

    return _kept(["model", _architecture(row), shape_of(about), len(about["classes"])], measure)


def _architecture(row: Model) -> dict[str, Any]:
    """All of a row that its network's size goes by."""
    keys = ("network", "channels", "multipliers", "blocks", "attention", "patch", "embedding", "dropout", "equal")
    own = {key: getattr(row, key) for key in keys} | {"labels": row.labels, "augmented": row.augment > 0}
    return own | {"like": _architecture(row.like) if row.equal and row.like else None}


@dataclass(frozen=True)
class Speed:
    """Seconds that networks take on one of `cores` threads that all work: for each tensor of weights and for each
    operation, of a training step (whose gradient is in it) and of a sampler's call; MiB of a process that does nothing.
    """

    cores: int
    step_tensor: float
    step_flop: float
    call_tensor: float
    call_flop: float
    idle_mib: float
    start_seconds: float

    @property
    def slower(self) -> float:
        """How much slower this machine is than the one on which constants were measured."""
        return self.call_flop / REFERENCE_FLOP

    def training(self, size: Size, steps: float, batch: float) -> float:
        """Seconds of so many steps on one thread."""
        return steps * (size.tensors * self.step_tensor + batch * size.flops * self.step_flop)

    def calling(self, size: Size, calls: float, batch: float) -> float:
        """Seconds of so many calls of one image, in batches, on one thread."""
        return calls / batch * size.tensors * self.call_tensor + calls * size.flops * self.call_flop


class _Timed(NamedTuple):
    """A network's size, and the seconds of a step of training and of a call, of BATCH and of CALL_BATCH images."""

    size: Size
    seconds: tuple[float, float]


def _timed(channels: int) -> _Timed:
    row = Model(images=BATCH * (STEPS + 1), batch=BATCH, channels=channels)
    about = {"sigma_data": 0.5, "channels": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2]}
    run = Run(spec_of(row, about), row, 0, default_device())
    images = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator())
    examples = Examples(images.to(run.device))
    steps, calls = [], []
    clock = time.perf_counter if run.device.type == "cuda" else time.thread_time  # as if there were nothing else to do
    for _ in range(STEPS + 1):
        start = clock()
        advance(run, examples)
        float(run.losses.sum())  # waits for a GPU
        steps.append(clock() - start)
    denoiser, noise = run.denoiser.cpu().eval(), torch.randn(CALL_BATCH, *SHAPE, generator=torch.Generator())
    euler = Sampler(solver="euler", nfe=(CALLS,))
    for _ in range(STEPS):
        start = time.thread_time()
        sample(denoiser, noise, euler, CALLS)
        calls.append((time.thread_time() - start) / CALLS)
    size = size_of(partial(build, run.denoiser.spec), torch.zeros(1, *SHAPE), torch.zeros(1))
    return _Timed(size, (min(steps[1:]), min(calls)))


def _line(small: tuple[Size, float], large: tuple[Size, float], batch: int) -> tuple[float, float]:
    """Seconds a tensor, and an operation of one image: what two measurements of a batch say of both."""
    (one, short), (two, long) = small, large
    flop = max(long - short * two.tensors / one.tensors, long / 2) / batch / (two.flops - one.flops)
    return max(short - batch * one.flops * flop, short / 10) / one.tensors, flop


def measure_speed(start_seconds: float) -> Speed:
    """Time two small networks on all cores at once."""
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    small, large = (side_by_side([partial(_timed, channels)] * cores()) for channels in (SMALL, LARGE))
    medians = [
        [(timed[0].size, statistics.median(seconds)) for seconds in zip(*(t.seconds for t in timed), strict=True)]
        for timed in (small, large)
    ]
    step, call = (_line(one, two, batch) for one, two, batch in zip(*medians, (BATCH, CALL_BATCH), strict=True))
    return Speed(cores(), *step, *call, idle, start_seconds)


def speed(start_seconds: float) -> Speed:
    """This machine's speed, or what is kept of an earlier time with this code; start_seconds: of a stage's process."""
    kept = CACHE / "speed" / f"{content_hash(code_hash(), machine(default_device()), cores())}.json"
    if not kept.exists():
        write_json(kept, asdict(measure_speed(start_seconds)))
    return Speed(**read_json(kept))


@dataclass(frozen=True)
class Work:
    """What a stage does: evaluations of networks of model rows, one image each; seconds, without the start of its
    process; MiB at the peak."""

    evaluations: int
    seconds: float
    mib: float


@dataclass(frozen=True)
class Estimate:
    """The work of every stage of a study, from its resolved rows and its data set's summary."""

    rows: Mapping[str, Any]
    about: Mapping[str, Any]
    sizes: Mapping[str, Size]
    speed: Speed

    @property
    def data(self) -> str:
        return "points" if "dimensions" in self.about else "images"

    def of(self, stage: str) -> Work:
        """The work of a stage by its name in dvc.yaml, such as train@edm."""
        kind, _, name = stage.partition("@")
        by_name = {"train": self.training, "sweep": self.sweeping}
        once = {"losses": self.losses, "propose": self.proposing, "grids": self.fitting, "features": self.extractor}
        if kind in by_name:
            return by_name[kind](name)
        return once[kind]() if kind in once else self._other(kind)

    def _other(self, kind: str) -> Work:
        seconds = MEASURED_SECONDS.get(kind, 2.0)
        if kind == "reference":
            seconds = REFERENCE_SECONDS[self.data] + self.about["count"] * self._feature_seconds / self.speed.slower
        elif kind == "agreement":
            seconds = AGREEMENT_SECONDS[0] + AGREEMENT_SECONDS[1] * len(self.rows["curves"])
        return Work(0, seconds * self.speed.slower, self._mib(0))

    @cached_property
    def _models(self) -> dict[str, Model]:
        return {name: Model(**self.rows[f"models/{name}"]) for name in self.rows["models"]}

    def _model(self, name: str) -> tuple[Model, Size]:
        return self._models[name], self.sizes[name]

    def _mib(self, more_bytes: float) -> float:
        return self.speed.idle_mib + STAGE_MIB + more_bytes / 2**20

    def _workers(self, tasks: int) -> int:
        return max(min(self.speed.cores, tasks), 1)

    def training(self, name: str) -> Work:
        """All seeds of a model row; pairs of another flow are made first, and a classifier afterwards."""
        row, size = self._model(name)
        seeds, at_once = len(row.train_seeds), min(row.micro_batch or row.batch, row.batch)
        seconds = self.speed.training(size, row.steps * -(-row.batch // at_once), at_once)
        evaluations = row.steps * row.batch
        if row.pairs == "optimal_transport":
            seconds += evaluations * MATCHING_SECONDS * self.speed.slower
        if row.pairs == "reflow":
            calls = 2 * REFLOW_STEPS * row.reflow_pairs
            evaluations, seconds = evaluations + calls, seconds + self.speed.calling(size, calls, 512)
        if row.classifier_images:
            network = partial(classifier.Network, self.shape, len(self.about["classes"]))
            told = torch.zeros(1, *self.shape), torch.zeros(1)
            beside = _kept(["classifier", self.shape, self.about["classes"]], lambda: size_of(network, *told))
            seconds += self.speed.training(beside, row.classifier_images / classifier.BATCH, classifier.BATCH)
        held = (4 + len(profiles(row))) * size.parameters * 4 + at_once * size.saved
        workers = self._workers(seeds)
        return Work(seeds * evaluations, seeds * seconds / workers, self._mib(workers * held))

    def sweeping(self, name: str) -> Work:
        """All cells of a curve row, the longest first on as many threads as there are cores."""
        curve = self.rows[f"curves/{name}"]
        sampler, size, count = sampler_of(curve), self.sizes[curve["model"]], curve["samples"]
        batch = min(CPU_BATCH if curve["batch"] == "auto" else curve["batch"], count)
        adaptive = sampler.build_solver().adaptive
        evaluations, seconds = 0, list[float]()
        for steps in {sampler.steps(budget) for budget in sampler.nfe}:
            calls = count * (max(sampler.nfe) if adaptive else sampler.evaluations(steps))
            evaluations += calls * len(curve["seeds"])
            features = count * self._feature_seconds + CELL_SECONDS[self.data] * self.speed.slower * count / 1024
            cell = self.speed.calling(size, calls, batch) + features
            seconds += [cell] * len(curve["seeds"])
        workers = self._workers(len(seconds))
        held = size.parameters * 4 + 3 * batch * size.largest
        mib = self._mib(workers * held) + METRICS_MIB
        return Work(evaluations, max(sum(seconds) / workers, max(seconds)), mib)

    def losses(self) -> Work:
        """Loss and gradient at every noise level before and after training, straightness, and the bound."""
        evaluations, seconds, most = 0, 0.0, 0.0
        count = min(losses.IMAGES, self.about["count"])
        for name in self.rows["models"]:
            row, size = self._model(name)
            seeds, steps = len(row.train_seeds), 2 * losses.SIGMAS
            straight = 2 * losses.STRAIGHTNESS_STEPS * losses.IMAGES
            bound = losses.BOUND_DRAWS + REPEATS * count if isinstance(row.distribution, Levels) else 0
            bound = 0 if self.data == "points" else bound
            each = self.speed.training(size, steps, count) + self.speed.calling(size, straight, losses.IMAGES)
            evaluations += seeds * (steps * count + straight) + bound
            seconds += seeds * each / self._workers(seeds) + self.speed.calling(size, bound, 256)
            most = max(most, self._workers(seeds) * count * size.saved)
        return Work(evaluations, seconds, self._mib(most))

    def proposing(self) -> Work:
        """Two brief trainings side by side, and what errors they leave at every noise level."""
        row, size = self._model(self.rows["propose"]["model"])
        calls = 2 * losses.SIGMAS * min(propose.IMAGES, self.about["count"])
        trained = [self.speed.training(size, images / row.batch, row.batch) for images in propose.BRIEF_IMAGES]
        seconds = max(sum(trained) / self._workers(2), max(trained)) + self.speed.calling(size, calls, propose.IMAGES)
        mib = self._mib(self._workers(2) * row.batch * size.saved)
        return Work(sum(propose.BRIEF_IMAGES) + calls, seconds, mib)

    def fitting(self) -> Work:
        """Grids for the curves that ask for one: a teacher's way through all levels, and a slope at each."""
        evaluations, seconds = 0, 0.0
        for name, ranges in self.rows["grids"].items():
            row, size = self._model(name)
            jobs = len(row.train_seeds) * len(ranges)
            calls = (3 * LEVELS - 1) * TRAJECTORIES
            evaluations += jobs * calls
            seconds += jobs * self.speed.calling(size, calls, TRAJECTORIES) / self._workers(jobs)
        return Work(evaluations, seconds, self._mib(0))

    def extractor(self) -> Work:
        """The classifier's training, where features are a classifier's."""
        row = Features(**self.rows["features"])
        seconds = MEASURED_SECONDS["features"] * self.speed.slower
        if row.extractor == "classifier":
            size, turns = self._classifier(row), 1 if len(self.about["classes"]) > 1 else 4
            steps = row.epochs * turns * self.about["count"] * (1 - 1 / features.HELD_OUT) / row.batch
            seconds += self.speed.training(size, steps, row.batch)
        return Work(0, seconds, self._mib(0))

    def _classifier(self, row: Features) -> Size:
        side, classes = min(self.shape[1:]), max(len(self.about["classes"]), 4)
        network = partial(features.Network, self.shape[0], side, row.width, classes)
        images = torch.zeros(1, *self.shape, dtype=torch.uint8)
        return _kept(["features", self.shape, row.width, classes], lambda: size_of(network, images))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return shape_of(dict(self.about))

    @cached_property
    def _feature_seconds(self) -> float:
        """Seconds of one image's features."""
        row = Features(**self.rows["features"])
        if row.extractor == "classifier":
            return self.speed.calling(self._classifier(row), 1, features.BATCH)
        return EXTRACTOR_FLOPS.get(row.extractor, 0.0) * self.speed.call_flop


def off_by(estimates: Mapping[str, float], timings: Mapping[str, float]) -> list[float]:
    """How many times as long as estimated stages took, by seconds of both: those that took finished cells or
    trainings from the cache, and so almost no time, are left out."""
    pairs = [(timings[name], seconds) for name, seconds in estimates.items() if name in timings]
    return sorted(took / seconds for took, seconds in pairs if took > seconds / 5 and math.isfinite(seconds))
