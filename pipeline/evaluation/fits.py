"""What is fitted to the networks of a model for its curves: grids of noise levels, and solvers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.common import processes
from pipeline.common.devices import default_device, to_device
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import CACHE, content_hash
from pipeline.common.fingerprint import code_hash
from pipeline.common.machine import machine
from pipeline.common.randomness import generator
from pipeline.common.sealed import cached_json, load_json, reading, save_json
from pipeline.common.threads import side_by_side
from pipeline.diffusion.weights import content_key, main_file
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.loading import LoadedModel, load_model
from pipeline.sampling.fitted import STARTS, Numbers, at_steps
from pipeline.sampling.fitted_grids import FittedGrids, fit_grids, on_fitted_grid
from pipeline.sampling.fitting import DenoiserOf, fit
from pipeline.sampling.guidance import BySample

CLASSES_SEED = 2**31  # of the labels of fitted samples; seeds of sampling are below it


@dataclass(frozen=True)
class FittedSolver:
    """The solver fitted for a curve, one training of its model and a number of steps.

    fitting: `Curve.fitting_hash`. The distances and calls are those of `fitting.Fit`. failed: why there are no numbers,
    in one line.
    """

    fitting: str
    train_seed: int
    steps: int
    numbers: Numbers | None = None
    start: float = 0.0
    error: float = 0.0
    heldout_start: float = 0.0
    heldout: float = 0.0
    calls: int = 0
    failed: str = ""

    def record(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self) | {"numbers": self.numbers and self.numbers.model_dump(mode="json")}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "FittedSolver":
        """Inverse of `record`."""
        return cls(**dict(record) | {"numbers": record["numbers"] and Numbers(**record["numbers"])})


@dataclass(frozen=True)
class Fits:
    """Everything that is fitted to the networks of one model."""

    grids: tuple[FittedGrids, ...] = ()
    solvers: tuple[FittedSolver, ...] = ()

    def applied(self, curve: Curve, train_seed: int, steps: int) -> Curve:
        """The curve with its fitted grid or numbers for a training and a number of steps.

        A curve for which nothing is fitted is returned unchanged. Raises StudyError if the fit is missing, NotFinite if
        it failed.
        """
        if curve.solver != "fitted":
            return on_fitted_grid(curve, self.grids, main_file(Path(), train_seed).name, steps)
        key = curve.fitting_hash, train_seed, steps
        found = next((each for each in self.solvers if (each.fitting, each.train_seed, each.steps) == key), None)
        if found is None:
            made = sorted({each.steps for each in self.solvers if (each.fitting, each.train_seed) == key[:2]})
            listed = f"it is fitted for {', '.join(map(str, made))}" if made else "run `dvc repro`"
            raise StudyError(f"solver fitted: no fit for {steps} steps and training seed {train_seed}; {listed}")
        if found.failed:
            raise NotFinite(found.failed)
        return curve.model_copy(update={"numbers": found.numbers})


def fit_solver(curve: Curve, folder: Path, train_seed: int, steps: int) -> FittedSolver:
    """Fit a curve's solver to one training for a number of steps, or take the fit from the cache.

    folder: of the curve's model, beside those of other models. Raises StudyError if weights are missing.
    """
    model, seed, fitted_steps = curve.fitted_to(train_seed, steps)
    source, device = folder.parent / model, default_device()
    curve = curve.model_copy(update={"precision": "float32", "compile": "none"})

    def make() -> dict[str, Any]:
        loaded = load_model(curve, source, seed, device=device)
        noise = torch.randn(2 * curve.fit_images, *loaded.shape, generator=generator("fitted"))
        found = fit(_denoiser_of(loaded), to_device(noise, device), curve, fitted_steps)
        return vars(found) | {"numbers": found.numbers.model_dump(mode="json")}

    try:
        weights = content_key(source, seed, curve.weights())
        key = content_hash(weights, curve.sampling, fitted_steps, code_hash(__name__), machine(device))
        found = cached_json(CACHE / "fits" / f"{key}.json", make)
    except NotFinite as error:
        return FittedSolver(curve.fitting_hash, train_seed, steps, failed=str(error))
    numbers = at_steps(Numbers(**found["numbers"]), STARTS[curve.start], steps)
    return FittedSolver(curve.fitting_hash, train_seed, steps, **found | {"numbers": numbers})


def _denoiser_of(loaded: LoadedModel) -> DenoiserOf:
    """The denoiser of the samples with some indices, with labels that no measurement uses."""
    denoiser = loaded.denoiser
    if isinstance(denoiser, BySample):
        return partial(denoiser.for_samples, CLASSES_SEED)
    return lambda indices: denoiser


def asked(curve: Curve) -> list[tuple[int, int]]:
    """(training seed, steps) of all fits that a curve needs."""
    return [(seed, steps) for seed in dict.fromkeys(train for train, _ in curve.seeds) for steps in curve.step_counts]


def fit_count(curves: Mapping[str, Mapping[str, Curve]]) -> int:
    """The number of fits that curves, by model and name, need."""
    return sum(len(asked(curve)) for own in curves.values() for curve in own.values())


def summary(curves: Mapping[str, Curve], fits: Fits) -> list[dict[str, Any]]:
    """What each curve's fits reached and cost, for the report: without the numbers."""
    names = {curve.fitting_hash: name for name, curve in curves.items()}
    return [
        {"curve": names[each.fitting]} | {k: v for k, v in each.record().items() if k not in ("fitting", "numbers")}
        for each in fits.solvers
    ]


def fit_model(
    folder: Path,
    ranges: Sequence[tuple[float, float]],
    curves: Sequence[Curve],
    finished: Callable[[], object] = lambda: None,
) -> Fits:
    """Everything that the curves of a model need, fitted to all trainings in its folder; `finished` after each fit.

    ranges: (sigma_min, sigma_max) of fitted grids.
    """
    tasks = [partial(fit_solver, curve, folder, *which) for curve in curves for which in asked(curve)]

    def counted(task: Callable[[], FittedSolver]) -> FittedSolver:
        found = task()
        finished()
        return found

    workers = processes.workers_on(default_device())
    solvers = side_by_side([partial(counted, task) for task in reversed(tasks)], workers)  # the longest first
    return Fits(tuple(fit_grids(folder, ranges)), tuple(reversed(solvers)))


def save_fits(fits: Fits, path: Path, earlier: Mapping[str, str]) -> None:
    """Write fits. earlier: hashes of the weights of models that come before this one in cascades."""
    record: dict[str, Any] = {"grids": [grids.record() for grids in fits.grids]}
    record |= {"solvers": [solver.record() for solver in fits.solvers]} if fits.solvers else {}
    save_json(path, record | ({"earlier": dict(earlier)} if earlier else {}))


def load_fits(path: Path) -> Fits:
    """Read what save_fits wrote. Raises StudyError if the file is missing or of another kind."""
    with reading(path):
        record = load_json(path)
        grids = tuple(FittedGrids(**each) for each in record["grids"])
        return Fits(grids, tuple(map(FittedSolver.of, record.get("solvers", ()))))
