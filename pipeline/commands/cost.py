"""What a study costs: evaluations and operations counted, seconds and memory estimated from a short measurement.

Networks are extrapolated from two small U-Nets: a call takes some time for each tensor of weights, and some for each
floating-point operation. Everything else (metrics, exact denoisers, the report) takes seconds that were measured on one
machine, times the ratio of its speed to this machine's.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch

from pipeline.common.devices import CPU_BATCH, default_device
from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.sealed import cached_json
from pipeline.common.size import FLOAT_BYTES, Size, size_of
from pipeline.common.threads import cores, side_by_side
from pipeline.data.dataset import shape_of
from pipeline.data.heldout import equal_size
from pipeline.diffusion.autoencoder import decoder_size
from pipeline.diffusion.averages import profiles
from pipeline.diffusion.exact import Cubes, Mixture
from pipeline.diffusion.networks import registry
from pipeline.evaluation import likelihoods, losses
from pipeline.evaluation import proposal as propose
from pipeline.evaluation.bound import REPEATS
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.evaluation.fits import distinct
from pipeline.evaluation.given_rows import PosteriorRow, measured_by
from pipeline.evaluation.truth import DRAWS, true_denoiser
from pipeline.metrics.extractors import classifier as features
from pipeline.metrics.extractors.extractor import BATCH as FEATURE_BATCH
from pipeline.params.resolved import Resolved
from pipeline.sampling import fitting
from pipeline.sampling.fitted_grids import FIT_EVALUATIONS, TRAJECTORIES
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training import bill, classifier
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.batches import Examples
from pipeline.training.checks import spec_of
from pipeline.training.loop import advance
from pipeline.training.noise import Levels
from pipeline.training.pairs import REFLOW_BATCH
from pipeline.training.row import Model
from pipeline.training.run import Run

WITHIN = 2  # the factor within which estimates of trainings and sweeps were right, see docs/checking.md
PASSES = 3  # a training step costs about three evaluations: forward once, backward twice

# Seconds on one machine, where an operation of a network that samples takes REFERENCE_FLOP.
REFERENCE_FLOP = 6.5e-12
MEASURED_SECONDS = {"resolve": 0.5, "prepare": 4.0, "features": 0.5, "oracle": 12.0, "report": 7.0}
REFERENCE_SECONDS = {"images": 1.6, "points": 15.0}
AGREEMENT_SECONDS = (8.0, 0.2)  # once, and for each curve
CELL_SECONDS = {"images": 0.25, "points": 0.9}  # to measure 1024 samples, without their features
MATCHING_SECONDS = 3e-7  # to match the noise of one image of a batch, for each image of the batch
HELDOUT_SECONDS = {"images": 0.06, "points": 0.6}  # more, to measure them against held-out and matched data
EXTRACTOR_FLOPS = {"inception": 1.14e10}  # for one image
EXACT_SECONDS, EXACT_OVERHEAD = 4.7e-10, 25  # of an exact denoiser, for each component and dimension; dimensions more
METRICS_MIB, STAGE_MIB = 150, 100  # memory besides networks: of metrics, and of the libraries that a stage loads
DVC_SECONDS = 1.0  # DVC's share of a stage, besides the start of its process

SMALL, LARGE = 8, 32  # channels of the two networks that are timed
BATCH, CALL_BATCH = 128, 512  # images of a training step, of a call
STEPS, CALLS = 3, 2
SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Work:
    """The work of a stage or a part of it."""

    evaluations: int = 0
    """Evaluations of the networks of model rows, one image each."""
    flops: float = 0.0
    """Floating-point operations of networks."""
    seconds: float = 0.0
    """Without the start of a process."""
    mib: float = 0.0
    """Memory at the peak, in MiB."""

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other."""
        return Work(
            self.evaluations + other.evaluations,
            self.flops + other.flops,
            self.seconds + other.seconds,
            max(self.mib, other.mib),
        )

    def repeated(self, count: int, workers: int = 1) -> "Work":
        """This work `count` times, `workers` at a time."""
        return Work(self.evaluations * count, self.flops * count, self.seconds * count / workers, self.mib)


def _kept(parts: Sequence[object], measure: Callable[[], Size]) -> Size:
    """A size from `.cache`, or measured and kept there: PyTorch loads modules for seconds to count operations."""
    code = code_hash("pipeline.diffusion.networks.registry"), code_hash("pipeline.diffusion.autoencoder")
    kept = CACHE / "sizes" / f"{content_hash(*parts, *code)}.json"
    return Size(**cached_json(kept, lambda: measure()._asdict()))


def model_size(row: Model, about: dict[str, Any]) -> Size:
    """The size of a row's network for a data set, given by its summary. Raises StudyError if they do not fit."""
    parts = ["model", _architecture(row), shape_of(about), len(about["classes"])]
    return _kept(parts, lambda: registry.size(spec_of(row, about)))


def decoder_size_of(row: AutoencoderRow, about: dict[str, Any]) -> Size:
    """The size of an autoencoder's decoder for a data set, given by its summary. Raises StudyError as `model_size`."""
    shape = shape_of(about)
    return _kept(["decoder", row.model_dump(mode="json"), shape], lambda: decoder_size(row.spec(shape)))


def _architecture(row: Model) -> dict[str, Any]:
    """The keys of a row that its network's size depends on."""
    keys = ("network", "channels", "multipliers", "blocks", "attention", "patch", "embedding", "dropout", "equal")
    own = {key: getattr(row, key) for key in (*keys, "labels", "learned_variance")} | {"augmented": row.augment > 0}
    place = row.model_dump(mode="json", include={"resolution", "upsampler", "autoencoder"})
    place["released"] = row.released or (row.teacher.released if row.teacher else None)
    return own | place | {"like": _architecture(row.like) if row.equal and row.like else None}


@dataclass(frozen=True)
class Speed:
    """The seconds that networks take on one of `cores` threads while all of them work."""

    cores: int
    step_tensor: float
    """For each tensor of weights in a training step, with its gradient."""
    step_flop: float
    """For each operation of an evaluation in a training step, with its gradient."""
    call_tensor: float
    """For each tensor of weights in a sampler's call."""
    call_flop: float
    """For each operation in a sampler's call."""
    idle_mib: float
    """Memory of a process that does nothing."""
    start_seconds: float
    """Time that a stage's process takes to start."""

    @property
    def slower(self) -> float:
        """The ratio of this machine's seconds to those of the machine on which the constants were measured."""
        return self.call_flop / REFERENCE_FLOP

    def training(self, size: Size, images: float, batch: float) -> Work:
        """Training steps on so many images, in batches, on one thread."""
        seconds = images / batch * size.tensors * self.step_tensor + images * size.flops * self.step_flop
        return Work(round(images), PASSES * images * size.flops, seconds)

    def calling(self, size: Size, images: float, batch: float) -> Work:
        """Calls on so many images, in batches, on one thread."""
        seconds = images / batch * size.tensors * self.call_tensor + images * size.flops * self.call_flop
        return Work(round(images), images * size.flops, seconds)


class _Timed(NamedTuple):
    """A network's size, and the seconds of a training step and of a call, with BATCH and CALL_BATCH images."""

    size: Size
    seconds: tuple[float, float]


def _timed(channels: int) -> _Timed:
    row = Model(images=BATCH * (STEPS + 1), batch=BATCH, channels=channels)
    about = {"sigma_data": 0.5, "channels": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2]}
    run = Run(spec_of(row, about), row, 0, default_device())
    images = torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=torch.Generator())
    examples = Examples(images.to(run.device))
    steps, calls = [], []
    clock = time.perf_counter if run.device.type == "cuda" else time.thread_time  # which ignores other processes
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
    return _Timed(registry.size(run.denoiser.spec), (min(steps[1:]), min(calls)))


def _line(small: tuple[Size, float], large: tuple[Size, float], batch: int) -> tuple[float, float]:
    """The seconds of a tensor and of an operation on one image, from the seconds of a batch with two networks."""
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
    """This machine's speed, from `.cache` if this code has measured it before.

    start_seconds: the time that a stage's process takes to start.
    """
    kept = (
        CACHE
        / "speed"
        / f"{content_hash(code_hash('pipeline.commands.cost'), machine(default_device()), cores())}.json"
    )
    return Speed(**cached_json(kept, lambda: asdict(measure_speed(start_seconds))))


@dataclass(frozen=True)
class Estimate:
    """The work of every stage of a resolved study. about: the summary of its data set; sizes: of its models."""

    study: Resolved
    about: Mapping[str, Any]
    sizes: Mapping[str, Size]
    speed: Speed
    decoders: Mapping[str, Size] = field(default_factory=dict)
    """The sizes of decoders, by autoencoder."""

    def of(self, stage: str) -> Work:
        """The work of a stage, by its name in dvc.yaml, such as train@edm."""
        kind, _, name = stage.partition("@")
        of_row = {"train": self._training, "sweep": self._sweeping}
        once = {
            "losses": self._losses,
            "likelihood": self._likelihood,
            "tune": self._tuning,
            "given": self._given,
            "propose": self._proposing,
            "grids": self._fitting,
            "features": self._extractor,
            "autoencode": self._autoencoders,
            "reconstruct": self._reconstructing,
        }
        if kind in of_row:
            return of_row[kind](name)
        return once[kind]() if kind in once else self._other(kind)

    def _other(self, kind: str) -> Work:
        seconds = MEASURED_SECONDS.get(kind, 2.0)
        if kind == "reference":
            seconds = REFERENCE_SECONDS[self._data] + self.about["count"] * self._features.seconds / self.speed.slower
        elif kind == "agreement":
            seconds = AGREEMENT_SECONDS[0] + AGREEMENT_SECONDS[1] * len(self.study.curves)
        return Work(seconds=seconds * self.speed.slower, mib=self._mib(0))

    @property
    def _data(self) -> str:
        return "points" if "dimensions" in self.about else "images"

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return shape_of(dict(self.about))

    def _mib(self, more_bytes: float) -> float:
        return self.speed.idle_mib + STAGE_MIB + more_bytes / 2**20

    def _workers(self, tasks: int) -> int:
        return max(min(self.speed.cores, tasks), 1)

    def _size(self, row: Model) -> Size:
        """The size of a row's network, which is that of each model of the study with the same network."""
        same = (name for name, one in self.study.models.items() if _architecture(one.row) == _architecture(row))
        return self.sizes[next(same)]

    def _training(self, name: str) -> Work:
        """All seeds of a model row, without its teacher, which is a row, too. A reflow row first makes its pairs; the
        targets of other objectives take further evaluations; a classifier is trained afterwards."""
        row, size = self.study.models[name].row, self.sizes[name]
        seeds, at_once = len(row.train_seeds), min(row.micro_batch or row.batch, row.batch)
        teacher = self._size(row.teacher) if row.teacher else None
        work = self.speed.training(size, row.seen_images, at_once)
        work += self.speed.calling(size, row.seen_images * bill.asked(row), at_once)
        work += self.speed.calling(teacher or size, bill.for_pairs(row), REFLOW_BATCH)
        if row.pairs == "optimal_transport":
            work += Work(seconds=row.seen_images * row.batch * MATCHING_SECONDS * self.speed.slower)
        if row.classifier_images:
            network = partial(classifier.Network, self._shape, len(self.about["classes"]))
            inputs = torch.zeros(1, *self._shape), torch.zeros(1)
            beside = _kept(["classifier", self._shape, self.about["classes"]], lambda: size_of(network, *inputs))
            work += replace(self.speed.training(beside, row.classifier_images, classifier.BATCH), evaluations=0)
        copies = 4 + len(profiles(row)) + (row.target_decay > 0)  # with gradients and Adam's two moments
        weights = copies * size.parameters + (teacher.parameters if teacher else 0)
        held = weights * FLOAT_BYTES + at_once * size.saved
        workers = self._workers(seeds)
        return replace(work.repeated(seeds, workers), mib=self._mib(workers * held))

    def _autoencoders(self) -> Work:
        """The trainings of all autoencoders side by side, and the encoding of all images."""
        work, rows = Work(mib=self._mib(0)), self.study.autoencoders
        for name, row in rows.items():
            both = row.seen_images + self.about["count"] * (row.kind != "pca")
            work += replace(self.speed.training(self.decoders[name], 2 * both, row.batch), evaluations=0)
        return replace(work, seconds=work.seconds / self._workers(len(rows)))

    def _reconstructing(self) -> Work:
        """Encoding, decoding and measuring of samples, training and held-out, with each autoencoder."""
        work, count = Work(mib=self._mib(0)), self.study.samples
        for name in self.study.autoencoders:
            made = replace(self.speed.calling(self.decoders[name], 2 * count, CALL_BATCH), evaluations=0)
            measuring = Work(seconds=CELL_SECONDS[self._data] * self.speed.slower * count / 1024)
            work += (made + self._features.repeated(count) + measuring).repeated(2)
        return work

    def weighted(self, curve: Curve, budget: int) -> float:
        """FLOP-weighted NFE of a curve at a budget: the operations of all stages and of the decoder, relative to an
        evaluation of the first model of full images, or else of the first model."""
        full = self.study.first_of_data
        stages = [(curve.model, budget)]
        if not curve.build_solver().adaptive:
            stages = curve.stage_evaluations(curve.steps(budget))
        space = self.study.models[curve.model].row.space
        decoding = self.decoders[space].flops if space else 0
        return (sum(self.sizes[model].flops * calls for model, calls in stages) + decoding) / self.sizes[full].flops

    def _sweeping(self, name: str) -> Work:
        """All cells of a curve row, the longest first, on as many threads as there are cores."""
        curve = self.study.curves[name].row
        size, count, space = self.sizes[curve.model], curve.samples, self.study.models[curve.model].row.space
        batch = min(CPU_BATCH if curve.batch == "auto" else curve.batch, count)
        adaptive = curve.build_solver().adaptive
        cells: list[Work] = []
        for steps in {curve.steps(budget) for budget in curve.nfe}:
            stages = [(curve.model, max(curve.nfe))] if adaptive else curve.stage_evaluations(steps)
            calling = sum((self.speed.calling(self.sizes[m], count * calls, batch) for m, calls in stages), Work())
            if space:
                calling += replace(self.speed.calling(self.decoders[space], count, batch), evaluations=0)
            seconds = CELL_SECONDS[self._data] + (HELDOUT_SECONDS[self._data] if self.about.get("heldout") else 0)
            measuring = Work(seconds=seconds * self.speed.slower * count / 1024)
            cells += [calling + self._features.repeated(count) + measuring] * len(curve.seeds)
        workers = self._workers(len(cells))
        work = sum(cells, Work())
        seconds = max(work.seconds / workers, *(cell.seconds for cell in cells))
        held = size.parameters * FLOAT_BYTES + 3 * batch * size.largest
        return replace(work, seconds=seconds, mib=self._mib(workers * held) + METRICS_MIB)

    def _losses(self) -> Work:
        """Loss and gradient at every noise level before and after training, straightness, and the bound."""
        work, count = Work(), min(losses.IMAGES, self.about["count"])
        most = 0.0
        for name, entry in self.study.models.items():
            row, size = entry.row, self.sizes[name]
            seeds = len(row.train_seeds)
            workers = self._workers(seeds)
            of_seed = self.speed.training(size, 2 * losses.SIGMAS * count, count)
            of_seed += self.speed.calling(size, 2 * losses.STRAIGHTNESS_STEPS * losses.IMAGES, losses.IMAGES)
            if self._data == "points":
                of_seed += self.speed.calling(size, 2 * losses.SIGMAS * DRAWS, DRAWS)
            work += of_seed.repeated(seeds, workers)
            if isinstance(row.distribution, Levels) and self._data == "images":
                work += self.speed.calling(size, losses.BOUND_DRAWS + REPEATS * count, 256)
            most = max(most, workers * count * size.saved)
        return replace(work, mib=self._mib(most))

    def _likelihood(self) -> Work:
        """The way up and back for every training, images and budget, products with the Jacobian, and the bound."""
        row, work, most = self.study.likelihood, Work(mib=self._mib(0)), 0.0
        if row is None:
            return work
        row, held = row.settled(self._shape), self.about.get("heldout", 0)
        images = [min(row.images, count) for count in (self.about["count"], held) if count]
        products = row.probes if row.trace == "hutchinson" else math.prod(self._shape)
        for name in row.models:
            size, seeds = self.sizes[name], len(self.study.models[name].row.train_seeds)
            for count in images:
                calls = sum(2 * row.evaluations(steps) for steps in row.step_counts) * count
                of_seed = self.speed.calling(size, calls, likelihoods.BATCH)
                taken = products * sum(row.step_counts) * count  # each costs about an evaluation
                of_seed += replace(self.speed.calling(size, taken, likelihoods.BATCH), evaluations=0)
                work += of_seed.repeated(seeds, self._workers(seeds * len(images)))
            work += self.speed.calling(size, row.bound_draws, 256).repeated(seeds, self._workers(seeds))
            most = max(most, self._workers(seeds * len(images)) * min(likelihoods.BATCH, max(images)) * size.saved)
        return replace(work, mib=self._mib(most))

    def _tuning(self) -> Work:
        """All trials of the posterior samplers that are tuned, with one training each."""
        given, work = self.study.given, Work(mib=self._mib(0))
        for entry in self.study.posteriors.values():
            if entry.row.tune:
                work += self._posterior(entry.row, given.candidates * given.validation * given.validation_draws, 1)
        return work

    def _given(self) -> Work:
        """All cells of the posterior samplers; networks are also given measurements of held-out images."""
        given, work = self.study.given, Work(mib=self._mib(0))
        for row in (entry.row for entry in self.study.posteriors.values()):
            seeds, parts = len(given.sample_seeds), 1
            if row.model is not None:
                seeds = len(seed_pairs(self.study.models[row.model].row.train_seeds, given.sample_seeds))
                parts += self._data == "images" and bool(self.about.get("heldout"))
            work += self._posterior(row, parts * given.problems * given.draws, seeds)
        return work

    def _posterior(self, row: PosteriorRow, samples: int, seeds: int) -> Work:
        """A posterior sampler on all its measurements, at all its budgets."""
        which = measured_by(row, self.study.measurements, self._shape)
        calls, tasks = sum(row.nfe) * samples, len(which) * len(row.nfe) * seeds
        batch = min(self.study.given.batch, samples)
        if row.model is None:
            each = EXACT_SECONDS * self._components * (math.prod(self._shape) + EXACT_OVERHEAD)
            work = Work(seconds=calls * each * self.speed.slower)
        else:
            work = self.speed.calling(self.sizes[row.model], calls, batch)
        held = batch * self.sizes[row.model].saved if row.model is not None else 0
        workers = self._workers(tasks)
        return replace(work.repeated(len(which) * seeds, workers), mib=self._mib(workers * held))

    @cached_property
    def _components(self) -> int:
        """The number of components of the exact denoiser; those of a finite data set are its images."""
        match true_denoiser(self.study.data.source):
            case Mixture(means=components) | Cubes(centres=components):
                return len(components)
            case _:
                return int(self.about["count"])

    def _proposing(self) -> Work:
        """Two brief trainings of the first model side by side, and their errors at every noise level."""
        name = self.study.first_of_data
        size, batch = self.sizes[name], self.study.models[name].row.batch
        brief = [self.speed.training(size, images, batch) for images in propose.BRIEF_IMAGES]
        trained, workers = sum(brief, Work()), self._workers(2)
        trained = replace(trained, seconds=max(trained.seconds / workers, *(work.seconds for work in brief)))
        calls = 2 * losses.SIGMAS * min(propose.IMAGES, self.about["count"])
        work = trained + self.speed.calling(size, calls, propose.IMAGES)
        return replace(work, mib=self._mib(workers * batch * size.saved))

    def _fitting(self) -> Work:
        """Grids for the curves that need one: a teacher's path through all levels, and a slope at each."""
        work = Work(mib=self._mib(0))
        for name, ranges in self.study.grids.items():
            jobs = len(self.study.models[name].row.train_seeds) * len(ranges)
            one = self.speed.calling(self.sizes[name], FIT_EVALUATIONS * TRAJECTORIES, TRAJECTORIES)
            work += one.repeated(jobs, self._workers(jobs))
        return work + self._fitted_solvers()

    def _fitted_solvers(self) -> Work:
        """The fits of solvers, each once and at the most iterations: evaluations, and gradients, which cost two."""
        rows = [entry.row for entry in self.study.curves.values() if entry.row.solver == "fitted"]
        fits = distinct(rows)
        work, workers = Work(mib=self._mib(0)), self._workers(len(fits))
        for (_, model, _, steps), (row, *_) in sorted(fits.items(), key=lambda item: item[0]):
            size, calls = self.sizes[model], fitting.most_calls(row, steps)
            at_once = fitting.chunk_size(math.prod(self._shape))
            one = self.speed.calling(size, calls, at_once).repeated(1, workers)
            work += replace(one, mib=self._mib(workers * at_once * steps * size.saved))
        return work

    def _extractor(self) -> Work:
        """The classifier's training, if features come from a classifier."""
        row = self.study.features
        work = Work(seconds=MEASURED_SECONDS["features"] * self.speed.slower, mib=self._mib(0))
        if row.extractor == "classifier":
            turns = 1 if len(self.about["classes"]) > 1 else 4
            count, held = self.about["count"], self.about.get("heldout", 0)
            left_out = equal_size(count, held) if held else count / features.HELD_OUT
            images = row.epochs * turns * (count - left_out)
            work += replace(self.speed.training(self._classifier_size, images, row.batch), evaluations=0)
        return work

    @cached_property
    def _classifier_size(self) -> Size:
        width, classes = self.study.features.width, max(len(self.about["classes"]), 4)
        network = partial(features.FeatureNetwork, self._shape[0], min(self._shape[1:]), width, classes)
        images = torch.zeros(1, *self._shape, dtype=torch.uint8)
        return _kept(["features", self._shape, width, classes], lambda: size_of(network, images))

    @cached_property
    def _features(self) -> Work:
        """One image's features."""
        extractor = self.study.features.extractor
        if extractor == "classifier":
            return replace(self.speed.calling(self._classifier_size, 1, FEATURE_BATCH), evaluations=0)
        flops = EXTRACTOR_FLOPS.get(extractor, 0.0)
        return Work(flops=flops, seconds=flops * self.speed.call_flop)


def off_by(estimates: Mapping[str, float], timings: Mapping[str, float]) -> list[float]:
    """The ratios of measured to estimated seconds, sorted. Stages whose work came from `.cache` take almost no time and
    are left out."""
    pairs = [(timings[name], seconds) for name, seconds in estimates.items() if name in timings]
    return sorted(took / seconds for took, seconds in pairs if took > seconds / 5 and math.isfinite(seconds))
