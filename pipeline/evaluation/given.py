"""Posterior samplers measured: problems with exact posteriors, the scores of samples, and the tuning of keys."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.common import processes
from pipeline.common.devices import CPU, default_device, exact_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.randomness import SampleNoise, generator
from pipeline.common.sealed import kept
from pipeline.common.tensors import load_tensors, save_tensors
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, to_range, to_uint8
from pipeline.data.points import POINTS
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import Mixture, empirical
from pipeline.diffusion.posterior import Posterior, Reweighted, posterior, reweighted
from pipeline.diffusion.weights import content_key
from pipeline.evaluation.curve import Curve, seed_pairs
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow, described_keys, measured_by, steps_of
from pipeline.evaluation.loading import load_model
from pipeline.evaluation.truth import true_denoiser
from pipeline.metrics import posterior as scores
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.sampling.conditional import draw_given
from pipeline.sampling.measurement import Linear, Measurement
from pipeline.sampling.row import Sampler

PRIOR, HELDOUT, VALIDATION = "prior", "heldout", "validation"
EXACT_DRAWS = 8  # exact draws for each draw of a method
PRIOR_DRAWS = 65_536  # of the prior, for posteriors without a closed form
SHOWN_PROBLEMS, SHOWN_DRAWS = 4, 4
EXACT = "exact"  # the name of a perfect sampler among the rows
PROBLEMS = "problems"  # the name of the file of `save_problems` among those of the rows
LEVELS = (0.5, 0.9)  # of central intervals

SCORES = (
    "sliced_w2",
    "energy_distance",
    "mean_error",
    "std_error",
    *(f"coverage_{level * 100:.0f}" for level in LEVELS),
    "energy_score",
    "misfit",
    "psnr",
    "feature_distance",
)


@dataclass(frozen=True)
class Truths:
    """What P measurements were made of, x0 (P, *shape), float64; and the exact moments and draws of the posterior.

    mean, std (P, d); draws (P, E, d). They are None if the exact posterior is unknown.
    """

    part: str
    x0: Tensor
    y: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    draws: Tensor | None = None


@dataclass(frozen=True)
class Prior:
    """The distribution of x0 as far as it is known.

    denoiser: the exact one. points: equally likely x0, (K, d), which stand for the prior where there is no closed form.
    fresh: draws of x0 by a count and a purpose.
    """

    shape: tuple[int, ...]
    denoiser: DenoiserFunction
    points: Tensor
    content: str
    fresh: Callable[[int, str], Tensor]

    @property
    def mixture(self) -> Mixture | None:
        """The prior as a mixture with a width, whose linear posteriors have a closed form."""
        return self.denoiser if isinstance(self.denoiser, Mixture) and self.denoiser.std > 0 else None


def prior_of(source: str, training: Dataset) -> Prior:
    """The prior of a study: the distribution of a set of points, or the training images as a finite data set.

    Fresh x0 are further points; of images they are disjoint random parts of the training images for the two purposes.
    """
    data = to_range(training.images)
    shape = tuple(data.shape[1:])
    denoiser = true_denoiser(source)
    if denoiser is not None:
        drawn = POINTS[source](PRIOR_DRAWS, generator("given, prior")).x
        return Prior(shape, denoiser, drawn, source, lambda count, what: POINTS[source](count, generator(what)).x)
    images = data.double()
    order = torch.randperm(len(images), generator=generator("given, images"))

    def fresh(count: int, what: str) -> Tensor:
        chosen = order[:count] if what.endswith(PRIOR) else order[len(order) - count :]
        return images[chosen]

    return Prior(shape, empirical(images), images.flatten(1), training.content_hash, fresh)


def problems_of(
    prior: Prior, heldout: Dataset | None, given: Given, measurements: Mapping[str, MeasurementRow]
) -> dict[tuple[str, str], Truths]:
    """The problems of each measurement and part: (name, part) -> x0, y and the exact posterior."""
    x0 = {PRIOR: prior.fresh(given.problems, f"given, {PRIOR}")}
    x0[VALIDATION] = prior.fresh(given.validation, f"given, {VALIDATION}")
    if heldout is not None and len(prior.shape) == 3:
        order = torch.randperm(len(heldout.images), generator=generator("given, held-out"))[: given.problems]
        x0[HELDOUT] = to_range(heldout.images[order]).double()
    found = {}
    for name, row in measurements.items():
        operator = row.build(prior.shape)
        for part, truth in x0.items():
            y = operator.draw(truth, generator(f"given, {name}, {part}"))
            known = _exact(prior, operator, y, given.draws, f"{name}, {part}") if part == PRIOR else {}
            found[name, part] = Truths(part, truth, y, **known)
    return found


def _exact(prior: Prior, operator: Measurement, y: Tensor, draws: int, what: str) -> dict[str, Tensor]:
    """The exact mean, std and draws for each y of (P, m)."""
    measured = operator.apply(prior.points.reshape(-1, *prior.shape)) if not _closed(prior, operator) else None
    found = []
    for number, each in enumerate(y):
        exact: Posterior | Reweighted
        if isinstance(operator, Linear) and prior.mixture and measured is None:
            exact = posterior(prior.mixture, operator.matrix, each, operator.std)
        else:
            assert measured is not None
            exact = reweighted(prior.points, measured, each, operator.std)
        own = exact.sample(EXACT_DRAWS * draws, generator(f"exact, {what}", number))
        found.append((exact.mean, exact.marginal_std, own.flatten(1)))
    return dict(zip(("mean", "std", "draws"), map(torch.stack, zip(*found, strict=True)), strict=True))


def _closed(prior: Prior, operator: Measurement) -> bool:
    return isinstance(operator, Linear) and prior.mixture is not None


@dataclass(frozen=True)
class Line:
    """A row of given.csv: one posterior sampler on one measurement, part and budget, with one pair of seeds.

    Scores are means over problems; "" where they are unknown, or if `failed` has a reason. calls, products and cg_steps
    are counted for one sample; cost is calls + 2 products.
    """

    posterior: str
    model: str
    measurement: str
    part: str
    nfe: int
    train_seed: int | str
    sample_seed: int | str
    steps: int | str = ""
    calls: int | str = ""
    products: int | str = ""
    cg_steps: int | str = ""
    cost: int | str = ""
    keys: str = ""
    problems: int = 0
    draws: int = 0
    sliced_w2: str = ""
    energy_distance: str = ""
    mean_error: str = ""
    std_error: str = ""
    coverage_50: str = ""
    coverage_90: str = ""
    energy_score: str = ""
    misfit: str = ""
    psnr: str = ""
    feature_distance: str = ""
    failed: str = ""


COLUMNS = [field.name for field in fields(Line)]


@dataclass(frozen=True)
class Cell:
    """A line, its scores by problem, (P,) each, the ranks of the truth, (P, RANKED), and the first draws."""

    line: Line
    scores: dict[str, Tensor]
    ranks: Tensor
    shown: Tensor

    @property
    def key(self) -> str:
        """Where the tensors of a cell are in a file: measurement/part/budget/seeds."""
        line = self.line
        return f"{line.measurement}/{line.part}/{line.nfe}/{line.train_seed}/{line.sample_seed}"


@dataclass(frozen=True)
class Task:
    """One posterior sampler on one measurement and part, at one budget, with one pair of seeds and its keys."""

    name: str
    row: PosteriorRow
    measurement: str
    operator: MeasurementRow
    truths: Truths
    draws: int
    nfe: int
    seeds: tuple[int, int]
    keys: Mapping[str, Any]
    batch: int

    @property
    def line(self) -> Line:
        """The line without results."""
        oracle, row = self.row.model is None, self.row
        keys = described_keys(self.keys)
        train_seed = "" if oracle else self.seeds[0]
        counts: dict[str, Any] = {"problems": len(self.truths.y), "draws": self.draws}
        place = (self.measurement, self.truths.part, self.nfe, train_seed, self.seeds[1])
        return Line(self.name, row.model or "", *place, keys=keys, **counts)


@dataclass(frozen=True)
class Noise:
    """The noise of the draws for some problems: a stream for each problem, from which its `count` draws take theirs."""

    streams: SampleNoise
    count: int

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise like x (N, ...), whose samples are sorted by problem."""
        return self.streams.randn_like(x.unflatten(0, (-1, self.count))).flatten(0, 1)


@dataclass(frozen=True)
class Setting:
    """What all tasks share: the prior, the folder of each model, and the extractor of images' features."""

    prior: Prior
    folders: Mapping[str, Path]
    extractor: Extractor | None

    def measure(self, task: Task) -> Cell:
        """Sample and score a task, or take it from the cache. A cell whose sampling fails holds the reason."""
        row, operator = task.row, task.operator.build(self.prior.shape)
        try:
            file = self._file(task)
            if (cached := kept(_read, file)) is not None:
                return cached
            steps = steps_of(row, task.keys, operator, task.nfe)
            draws, bill = self._draw(task, operator, steps)
        except NotFinite as error:
            empty = torch.empty(0, dtype=torch.float64)
            return Cell(replace(task.line, failed=str(error)), {}, empty, empty)
        cell = _scored(task, operator, draws, self.extractor)
        cell = replace(cell, line=replace(cell.line, steps=steps, **bill))
        save_tensors(file, *_encoded(cell))
        return cell

    def _draw(self, task: Task, operator: Measurement, steps: int) -> tuple[Tensor, dict[str, Any]]:
        """Draws (P, S, d) and the bill of one of them. Raises NotFinite."""
        row, y, count = task.row, task.truths.y, task.draws
        device = CPU if row.model is None else exact_device(default_device())
        denoiser = self._denoiser(row, task.seeds[0], device)
        drawn = []
        for problems in torch.arange(len(y)).split(max(task.batch // count, 1)):
            noise = Noise(SampleNoise(task.seeds[1], problems.tolist()), count)
            bound = operator.observed(y[problems].repeat_interleave(count, 0).to(device))
            start = noise.randn_like(torch.empty(len(problems) * count, *self.prior.shape)).to(device)
            found = draw_given(denoiser, bound, start, row, steps, row.posterior, noise.randn_like, **task.keys)
            drawn.append(found.x0.flatten(1).double().cpu())
        bill = {"calls": found.calls, "products": found.products, "cg_steps": found.cg_steps, "cost": found.cost}
        return torch.cat(drawn).reshape(len(y), count, -1), bill

    def _denoiser(self, row: PosteriorRow, seed: int, device: torch.device) -> DenoiserFunction:
        if row.model is None:
            return self.prior.denoiser
        denoiser: DenoiserFunction = _loaded(curve_of(row), self.folders[row.model], seed, device)
        return denoiser

    def _file(self, task: Task) -> Path:
        """The file of a task's cell in the cache, named by a hash of everything that it depends on."""
        row = task.row
        weights = self.prior.content
        if row.model is not None:
            weights += content_key(self.folders[row.model], task.seeds[0], curve_of(row).weights(None))
        sampler = row.model_dump(mode="json", include=set(Sampler.model_fields) - {"nfe"})
        choices = (
            task.name,
            sampler,
            row.posterior,
            dict(task.keys),
            task.batch,
            task.operator.model_dump(mode="json"),
        )
        problem = (asdict(task.line), content_hash(str(task.truths.x0.tolist()), str(task.truths.y.tolist())))
        origin = (self.extractor.hash if self.extractor else "", code_hash(__name__), machine(default_device()))
        return CACHE / "given" / f"{content_hash(weights, choices, problem, task.seeds, *origin)}.safetensors"


def curve_of(row: PosteriorRow) -> Curve:
    """The curve with this row's sampler on its model."""
    assert row.model is not None
    return Curve(model=row.model, **{key: getattr(row, key) for key in Sampler.model_fields})


@lru_cache(maxsize=16)
def _loaded(curve: Curve, folder: Path, seed: int, device: torch.device) -> Any:
    return load_model(curve, folder, seed, device=device).denoiser


def _encoded(cell: Cell) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    tensors = {f"scores/{name}": values for name, values in cell.scores.items()}
    return tensors | {"ranks": cell.ranks, "shown": cell.shown}, "given", asdict(cell.line)


def _read(path: Path) -> Cell:
    tensors, record = load_tensors(path, "given")
    values = {key.removeprefix("scores/"): value for key, value in tensors.items() if key.startswith("scores/")}
    return Cell(Line(**record), values, tensors["ranks"], tensors["shown"])


def _scored(task: Task, operator: Measurement, draws: Tensor, extractor: Extractor | None) -> Cell:
    """A cell from draws (P, S, d), without its bill. Raises nothing: scores that overflow are infinite."""
    truths, count = task.truths, task.draws
    x0 = truths.x0.flatten(1)
    found: dict[str, Tensor] = {}
    if truths.draws is not None and truths.mean is not None and truths.std is not None:
        found["sliced_w2"] = scores.sliced_w2(draws, truths.draws)
        found["energy_distance"] = scores.energy_distance(draws, truths.draws)
        found["mean_error"] = scores.mean_error(draws, truths.mean)
        found["std_error"] = scores.std_error(draws, truths.std)
    ranks = scores.ranks(draws, x0)
    for level in LEVELS:
        found[f"coverage_{level * 100:.0f}"] = scores.coverage(ranks, level)
    found["energy_score"] = scores.energy_score(draws, x0)
    flat = draws.reshape(-1, *truths.x0.shape[1:])
    found["misfit"] = scores.misfit(operator.apply(flat).reshape(len(x0), count, -1), truths.y, operator.std)
    if len(truths.x0.shape) == 4:
        found["psnr"] = scores.psnr(draws, x0)
        if extractor is not None:
            features = extractor(to_uint8(torch.cat([flat, truths.x0]))).features.double().cpu()
            own, true = features[: len(flat)], features[len(flat) :]
            found["feature_distance"] = scores.paired_distance(own.reshape(len(x0), count, -1), true)
    means: dict[str, Any] = {name: f"{float(values.mean()):.6g}" for name, values in found.items()}
    shown = draws[:SHOWN_PROBLEMS, :SHOWN_DRAWS].float()
    shown = torch.cat([shown, draws[:SHOWN_PROBLEMS].mean(1, keepdim=True).float()], 1)
    return Cell(replace(task.line, **means), found, ranks, shown)


def exact_cells(bench: "Bench") -> Iterator[Cell]:
    """The scores of a perfect sampler, whose draws are further exact ones: what no method can beat on average."""
    setting, draws = bench.setting, bench.given.draws
    for (name, part), truths in bench.problems.items():
        if truths.draws is None:
            continue
        row = bench.measurements[name]
        operator = row.build(setting.prior.shape)
        again = _exact(setting.prior, operator, truths.y, draws, f"{name}, {part}, again")["draws"][:, :draws]
        yield _scored(
            Task(EXACT, PosteriorRow(), name, row, truths, draws, 0, (0, 0), {}, draws),
            operator,
            again,
            setting.extractor,
        )


def run(tasks: Sequence[Task], setting: Setting, finished: Callable[[Cell], object]) -> list[Cell]:
    """The cells of all tasks, in order, the dearest first; `finished` is called with each."""

    def work(task: Task) -> Cell:
        try:
            cell = setting.measure(task)
        except StudyError as error:
            raise StudyError(f"posteriors.{task.name}, {task.measurement}, budget {task.nfe}: {error}") from None
        finished(cell)
        return cell

    order = sorted(range(len(tasks)), key=lambda i: -tasks[i].nfe)
    workers = processes.workers_on(exact_device(default_device()))
    done = side_by_side([partial(work, tasks[i]) for i in order], workers)
    by_place = dict(zip(order, done, strict=True))
    return [by_place[i] for i in range(len(tasks))]


def save_cells(path: Path, cells: Sequence[Cell]) -> None:
    """Write the lines, scores by problem, ranks and first draws of one row's cells."""
    tensors: dict[str, Tensor] = {}
    for cell in cells:
        own, *_ = _encoded(cell)
        tensors |= {f"{cell.key}/{name}": value for name, value in own.items()}
    save_tensors(path, tensors, "cells", [asdict(cell.line) for cell in cells])


def load_cells(path: Path) -> list[Cell]:
    """The cells that `save_cells` wrote. Raises Missing or Broken."""
    tensors, records = load_tensors(path, "cells")
    cells = []
    for record in records:
        empty = Cell(Line(**record), {}, torch.empty(0), torch.empty(0))
        prefix = f"{empty.key}/scores/"
        values = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        cells.append(
            replace(empty, scores=values, ranks=tensors[f"{empty.key}/ranks"], shown=tensors[f"{empty.key}/shown"])
        )
    return cells


def save_problems(path: Path, bench: "Bench") -> None:
    """Write the first problems of each measurement and part, for the pictures of a report."""
    tensors: dict[str, Tensor] = {}
    for (name, part), truths in bench.problems.items():
        tensors[f"{name}/{part}/x0"] = truths.x0[:SHOWN_PROBLEMS].flatten(1).float()
        tensors[f"{name}/{part}/y"] = truths.y[:SHOWN_PROBLEMS].float()
        if truths.draws is not None and truths.mean is not None:
            exact = torch.cat([truths.draws[:SHOWN_PROBLEMS, :SHOWN_DRAWS], truths.mean[:SHOWN_PROBLEMS, None]], 1)
            tensors[f"{name}/{part}/exact"] = exact.float()
    save_tensors(path, tensors, "problems", {"shape": list(bench.setting.prior.shape)})


@dataclass(frozen=True)
class Bench:
    """Everything of a study that its posterior samplers are measured with."""

    given: Given
    measurements: dict[str, MeasurementRow]
    posteriors: dict[str, PosteriorRow]
    trained: dict[str, list[int]]
    problems: dict[tuple[str, str], Truths]
    setting: Setting

    @classmethod
    def of(
        cls,
        asked: Mapping[str, Any],
        training: Dataset,
        heldout: Dataset | None,
        folder_of: Callable[[str], Path],
        extractor: Extractor,
    ) -> Self:
        """asked: rows/given.json, as `resolve` writes it. folder_of: the folder of a model's weights."""
        given = Given(**asked["given"])
        measurements = {name: MeasurementRow(**row) for name, row in asked["measurements"].items()}
        posteriors = {name: PosteriorRow(**row) for name, row in asked["posteriors"].items()}
        prior = prior_of(asked["source"], training)
        folders = {name: folder_of(name) for name in asked["trained"]}
        setting = Setting(prior, folders, extractor if len(prior.shape) == 3 else None)
        problems = problems_of(prior, heldout, given, measurements)
        return cls(given, measurements, posteriors, asked["trained"], problems, setting)

    def parts(self, row: PosteriorRow) -> list[str]:
        """The parts that a row is measured on; held-out images are for networks, which have not memorised the data."""
        parts = [PRIOR, *([HELDOUT] if row.model is not None else [])]
        return [part for part in parts if any(own == part for _, own in self.problems)]

    def seeds(self, row: PosteriorRow) -> list[tuple[int, int]]:
        """(training seed, sampling seed) of each repetition."""
        if row.model is None:
            return [(0, seed) for seed in self.given.sample_seeds]
        return seed_pairs(tuple(self.trained[row.model]), self.given.sample_seeds)

    def trials(self, name: str) -> list[Task]:
        """What the stage `tune` measures for a row: every choice of keys that pays for a step, with the first seeds."""
        row = self.posteriors[name]
        if not row.tune:
            return []
        found = []
        for which in measured_by(row, self.measurements, self.setting.prior.shape):
            operator, truths = (
                self.measurements[which].build(self.setting.prior.shape),
                self.problems[which, VALIDATION],
            )
            for nfe in row.nfe:
                for keys in row.candidates(self.given.candidates):
                    with suppress(StudyError):
                        steps_of(row, keys, operator, nfe)
                        shared = which, self.measurements[which], truths, self.given.validation_draws
                        found.append(Task(name, row, *shared, nfe, self.seeds(row)[0], keys, self.given.batch))
        return found

    def tasks(self, name: str, tuned: Mapping[str, Any]) -> list[Task]:
        """What the stage `given` measures for a row. tuned: its records from the stage `tune`."""
        row = self.posteriors[name]
        keys = {(record["measurement"], record["nfe"]): record["keys"] for record in tuned.get(name, [])}
        return [
            Task(
                name,
                row,
                which,
                self.measurements[which],
                self.problems[which, part],
                self.given.draws,
                nfe,
                seeds,
                keys.get((which, nfe), row.keys),
                self.given.batch,
            )
            for which in measured_by(row, self.measurements, self.setting.prior.shape)
            for part in self.parts(row)
            for nfe in row.nfe
            for seeds in self.seeds(row)
        ]


def chosen(tasks: Sequence[Task], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The keys of the lowest mean energy score on validation measurements, by measurement and budget, for JSON.

    default: the score of the keys as the row has them. cost: network calls, with a product as two, of all trials.
    """
    found: dict[tuple[str, int], list[tuple[float, Task, Cell]]] = {}
    for task, cell in zip(tasks, cells, strict=True):
        value = float(cell.scores["energy_score"].mean()) if cell.scores else math.inf
        score = value if math.isfinite(value) else math.inf
        found.setdefault((task.measurement, task.nfe), []).append((score, task, cell))
    records = []
    for (measurement, nfe), tried in found.items():
        score, best, _ = min(tried, key=lambda trial: trial[0])
        default = next((score for score, task, _ in tried if task.keys == task.row.keys), math.inf)
        cost = sum(int(cell.line.cost or 0) * cell.line.problems * cell.line.draws for *_, cell in tried)
        scores = {"score": _finite(score), "default": _finite(default)}
        records.append(
            {"measurement": measurement, "nfe": nfe, "keys": best.keys, **scores, "tried": len(tried), "cost": cost}
        )
    return records


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
