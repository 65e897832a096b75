"""What is fitted to the networks of a model for its curves: grids of noise levels, and solvers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.common import processes
from pipeline.common.devices import default_device, repeatable_gradients, to_device
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
        found = self.solver(curve, train_seed, steps)
        if found is None:
            of = curve.fitting_hash, train_seed
            made = sorted({each.steps for each in self.solvers if (each.fitting, each.train_seed) == of})
            listed = f"it is fitted for {', '.join(map(str, made))}" if made else "run `dvc repro`"
            raise StudyError(f"solver fitted: no fit for {steps} steps and training seed {train_seed}; {listed}")
        if found.failed:
            raise NotFinite(found.failed)
        return curve.model_copy(update={"numbers": found.numbers})

    def solver(self, curve: Curve, train_seed: int, steps: int) -> FittedSolver | None:
        """The solver fitted for a curve, a training and a number of steps."""
        key = curve.fitting_hash, train_seed, steps
        return next((each for each in self.solvers if (each.fitting, each.train_seed, each.steps) == key), None)


def fit_solver(curve: Curve, folder: Path, train_seed: int, steps: int) -> FittedSolver:
    """Fit a curve's solver to one training for a number of steps, or take the fit from the cache.

    folder: of the curve's model, beside those of other models. Raises StudyError if weights are missing.
    """
    model, seed, fitted_steps = curve.fitted_to(train_seed, steps)
    source, device = folder.parent / model, default_device()
    curve = _as_fitted(curve)

    def make() -> dict[str, Any]:
        loaded = load_model(curve, source, seed, device=device)
        noise = torch.randn(2 * curve.fit_images, *loaded.shape, generator=generator("fitted"))
        try:
            with repeatable_gradients(device):
                found = fit(_denoiser_of(loaded), to_device(noise, device), curve, fitted_steps)
        except NotFinite as error:
            return {"failed": str(error)}
        return vars(found) | {"numbers": found.numbers.model_dump(mode="json")}

    try:
        weights = content_key(source, seed, curve.weights())
        key = content_hash(weights, curve.sampling, fitted_steps, code_hash(__name__), machine(device))
        found = cached_json(CACHE / "fits" / f"{key}.json", make)
    except NotFinite as error:
        return FittedSolver(curve.fitting_hash, train_seed, steps, failed=str(error))
    if "failed" in found:
        return FittedSolver(curve.fitting_hash, train_seed, steps, failed=found["failed"])
    numbers = at_steps(Numbers(**found["numbers"]), STARTS[curve.start], steps)
    return FittedSolver(curve.fitting_hash, train_seed, steps, **found | {"numbers": numbers})


def _as_fitted(curve: Curve) -> Curve:
    """The curve as its fits call the network, however it samples."""
    return curve.model_copy(update={"precision": "float32", "compile": "none"})


def _denoiser_of(loaded: LoadedModel) -> DenoiserOf:
    """The denoiser of the samples with some indices, with labels that no measurement uses."""
    denoiser = loaded.denoiser
    if isinstance(denoiser, BySample):
        return partial(denoiser.for_samples, CLASSES_SEED)
    return lambda indices: denoiser


def asked(curve: Curve) -> list[tuple[int, int]]:
    """(training seed, steps) of all fits that a curve needs."""
    return [(seed, steps) for seed in dict.fromkeys(train for train, _ in curve.seeds) for steps in curve.step_counts]


def distinct(curves: Iterable[Curve]) -> dict[tuple[str, str, int, int], tuple[Curve, int, int]]:
    """Equal fits of curves once: (choices, model, its seed, steps) -> a curve, its training seed and its steps."""
    return {
        (_as_fitted(curve).sampler_hash, *curve.fitted_to(*which)): (curve, *which)
        for curve in curves
        for which in asked(curve)
    }


def fit_count(curves: Mapping[str, Mapping[str, Curve]]) -> int:
    """The number of fits that curves, by model and name, need."""
    return sum(len(distinct(own.values())) for own in curves.values())


def summary(curves: Mapping[str, Curve], fits: Fits) -> list[dict[str, Any]]:
    """What each curve's fits reached and cost, for the report: without the numbers."""
    return [
        {"curve": name} | {k: v for k, v in each.record().items() if k not in ("fitting", "numbers")}
        for name, curve in curves.items()
        for which in asked(curve)
        if (each := fits.solver(curve, *which))
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

    def counted(curve: Curve, train_seed: int, steps: int) -> None:
        fit_solver(curve, folder, train_seed, steps)
        finished()

    longest_first = sorted(distinct(curves).items(), key=lambda item: item[0][-1], reverse=True)
    side_by_side([partial(counted, *which) for _, which in longest_first], processes.workers_on(default_device()))
    solvers = {  # from the cache
        (curve.fitting_hash, *which): fit_solver(curve, folder, *which) for curve in curves for which in asked(curve)
    }
    return Fits(tuple(fit_grids(folder, ranges)), tuple(solvers.values()))


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
