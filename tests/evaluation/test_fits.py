"""Fits of solvers to networks: cached by content, the same bytes after a kill, and taken from where a curve says."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from annotated_types import Lt
from torch import Tensor

from pipeline.common import processes
from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.randomness import SampleNoise, generator
from pipeline.common.rows import Seed
from pipeline.diffusion.denoiser import load_denoiser, save_denoiser
from pipeline.diffusion.weights import failure_file, main_file, save_failure
from pipeline.evaluation import fits as fits_module
from pipeline.evaluation import loading
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import (
    CLASSES_SEED,
    Fits,
    asked,
    fit_count,
    fit_model,
    fit_solver,
    load_fits,
    save_fits,
    summary,
)
from pipeline.evaluation.sweep import measure_curve
from pipeline.sampling import fitting
from pipeline.sampling.fitted import STARTS, at_steps
from pipeline.sampling.fitting import Fit
from tests.evaluation import small
from tests.evaluation.small import CLASSES, Conditional, Trained

pytestmark = pytest.mark.usefixtures("empty_cache", "short")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CHUNK": 4, "ITERATIONS": (1, 3), "TEACHER_STEPS": 3}.items():
        monkeypatch.setattr(fitting, name, value)


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """The model edm, and another one with other weights."""
    shutil.copytree(trained.model, tmp_path / "models/edm")
    for seed in (0, 1):
        change(trained.model, tmp_path / "models/other", seed)
    return tmp_path / "models"


def change(before: Path, after: Path, seed: int, factor: float = 1.1) -> None:
    """Save the network of a seed with other weights."""
    denoiser = load_denoiser(main_file(before, seed))
    next(denoiser.network.head.parameters()).mul_(factor)
    save_denoiser(denoiser, main_file(after, seed))


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of steps of all fits that are made, and not taken from the cache."""
    made: list[int] = []

    def counting(denoiser_of: Any, noise: Tensor, sampler: Any, steps: int) -> Fit:
        made.append(steps)
        return fitting.fit(denoiser_of, noise, sampler, steps)

    monkeypatch.setattr(fits_module, "fit", counting)
    yield made


def curve(**keys: Any) -> Curve:
    return small.curve(**{"solver": "fitted", "told": "fitted", "nfe": [2, 3], "fit_images": 6} | keys)


def other(**keys: Any) -> Curve:
    """The curve with numbers that are fitted to the other model."""
    return curve(**keys).model_copy(update={"fitted_model": "other"})


def fits_of(models: Path, *curves: Curve) -> Fits:
    return fit_model(models / "edm", [], curves)


def same_bytes(one: Fits, two: Fits, folder: Path) -> bool:
    for i, fits in enumerate((one, two)):
        save_fits(fits, folder / f"{i}.json", {})
    return (folder / "0.json").read_bytes() == (folder / "1.json").read_bytes()


def test_fits_are_written_and_read_again(models: Path, tmp_path: Path) -> None:
    row = curve()
    found = fits_of(models, row)
    assert [(each.train_seed, each.steps) for each in found.solvers] == [(0, 2), (0, 3), (1, 2), (1, 3)] == asked(row)
    assert all(each.numbers and len(each.numbers.told) == each.steps and not each.failed for each in found.solvers)
    assert len({each.numbers for each in found.solvers}) == 4 and all(e.error <= e.start for e in found.solvers)
    save_fits(found, tmp_path / "fits.json", {"earlier": "hash"})
    assert load_fits(tmp_path / "fits.json") == found


def test_a_fit_is_made_once(models: Path, fitted: list[int], tmp_path: Path) -> None:
    """For all curves that need it, and in a second run not at all."""
    rows = curve(), curve(nfe=[3]), curve(fitted_seed=0), curve(precision="bfloat16", nfe=[2])
    finished: list[int] = []
    first = fit_model(models / "edm", [], rows, lambda: finished.append(1))
    assert sorted(fitted) == [2, 2, 3, 3] and len(finished) == 4
    assert fit_count({"edm": dict(enumerate(rows)), "x": {}}) == len(finished)  # type: ignore[dict-item]
    assert same_bytes(fits_of(models, *rows), first, tmp_path) and len(fitted) == 4


def test_the_number_of_workers_changes_no_byte(
    models: Path, fitted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for workers in (0, 1, 3):
        monkeypatch.setattr(processes, "workers_on", lambda device, workers=workers: workers)
        shutil.rmtree(".cache", ignore_errors=True)
        found.append(fits_of(models, curve()))
    assert len(fitted) == 12 and all(same_bytes(found[0], one, tmp_path) for one in found[1:])


def test_a_fit_that_is_killed_ends_with_the_same_bytes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fits_of(models, curve())
    shutil.rmtree(".cache")

    class Killed(BaseException):
        pass

    left = 40

    def call(*arguments: Any, **keys: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        return sampled(*arguments, **keys)

    sampled = fitting._denoised
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fitting, "_denoised", call)
        patch.setattr(processes, "workers_on", lambda device: 1)
        fits_of(models, curve())
    assert same_bytes(fits_of(models, curve()), whole, tmp_path)


def test_other_weights_or_choices_fit_again(models: Path, fitted: list[int]) -> None:
    row = curve(nfe=[2], sample_seeds=[0], seeds=[[0, 0]])
    first = fits_of(models, row)
    for keys in ({"told": "state"}, {"fit": "times"}, {"start": "ipndm"}, {"rho": 3}, {"end": "sigma_min"}):
        fits_of(models, curve(**{"nfe": [2], "seeds": [[0, 0]]} | keys))
    assert len(fitted) == 6
    fits_of(models, curve(nfe=[2], seeds=[[0, 5]], samples=41, batch=8))
    assert len(fitted) == 6, "no choice of a fit"
    change(models / "edm", models / "edm", 0)
    again = fits_of(models, row)
    assert len(fitted) == 7 and again.solvers[0].numbers != first.solvers[0].numbers


def test_transfers_take_the_numbers_of_another_network_or_budget(models: Path) -> None:
    own, moved = fits_of(models, curve()), curve(fitted_seed=0)
    by_place = {(each.train_seed, each.steps): each.numbers for each in own.solvers}
    found = fits_of(models, moved)
    assert [each.numbers for each in found.solvers] == 2 * [by_place[0, 2], by_place[0, 3]]
    assert found.applied(moved, 1, 3).numbers == by_place[0, 3]
    source = fit_model(models / "other", [], [curve().model_copy(update={"model": "other"})])
    found = fits_of(models, other())
    assert [each.numbers for each in found.solvers] == [each.numbers for each in source.solvers]
    assert not {each.numbers for each in found.solvers} & set(by_place.values())
    budget = curve(fitted_nfe=3)
    found = fits_of(models, budget)
    for seed in (0, 1):
        assert found.applied(budget, seed, 3).numbers == by_place[seed, 3]
        numbers = by_place[seed, 3]
        assert numbers and found.applied(budget, seed, 2).numbers == at_steps(numbers, STARTS["dpmpp_2m"], 2)


def test_a_curve_is_measured_with_the_numbers_fitted_to_each_network(models: Path, trained: Trained) -> None:
    row = curve(nfe=[3])
    own = trained._replace(model=models / "edm", fits=fits_of(models, row))
    cells = measure_curve(row, *own, workers=1)
    assert [(cell.train_seed, cell.steps, cell.nfe, cell.failed) for cell in cells] == [(0, 3, 3, ""), (1, 3, 3, "")]
    started = replace(
        own.fits, solvers=tuple(replace(e, numbers=row.as_started(e.steps).numbers) for e in own.fits.solvers)
    )
    start = measure_curve(small.curve(solver="dpmpp_2m", nfe=[3]), *own, workers=1)
    for at_start, cell, plain in zip(
        measure_curve(row, *own._replace(fits=started), workers=1), cells, start, strict=True
    ):
        assert not cell.images.equal(plain.images)
        assert (at_start.images.int() - plain.images.int()).abs().max() <= 1


def test_a_missing_fit_is_an_error_of_one_line(models: Path) -> None:
    found = fits_of(models, curve(nfe=[2, 3]))
    with pytest.raises(StudyError, match="no fit for 5 steps and training seed 1; it is fitted for 2, 3"):
        found.applied(curve(nfe=[2, 3]), 1, 5)
    with pytest.raises(StudyError, match="no fit for 2 steps and training seed 0; run `dvc repro`"):
        found.applied(curve(rho=3), 0, 2)


def test_a_failed_training_fails_its_own_fits_and_cells_alone(models: Path, trained: Trained, tmp_path: Path) -> None:
    row, folder = curve(nfe=[2]), models / "edm"
    whole = measure_curve(row, *trained._replace(model=folder, fits=fits_of(models, row)), workers=1)
    main_file(folder, 1).unlink()
    save_failure("seed: no number", failure_file(folder, 1))
    half = fits_of(models, row)
    assert [each.failed for each in half.solvers] == ["", "training failed: seed: no number"]
    save_fits(half, tmp_path / "fits.json", {})
    assert load_fits(tmp_path / "fits.json") == half
    with pytest.raises(NotFinite, match="training failed"):
        half.applied(row, 1, 2)
    cells = measure_curve(row, *trained._replace(model=folder, fits=half), workers=1)
    assert [cell.failed for cell in cells] == ["", "training failed: seed: no number"]
    assert cells[0].record() == whole[0].record()


def test_a_network_that_answers_nan_fails_its_own_fits_and_those_that_use_it(models: Path, trained: Trained) -> None:
    change(models / "edm", models / "edm", 0, torch.nan)
    moved = curve(nfe=[2], fitted_seed=0)
    found = fits_of(models, curve(nfe=[2]), moved)
    assert [bool(each.failed) for each in found.solvers] == [True, False, True, True]
    assert "not finite" in found.solvers[2].failed
    cells = measure_curve(moved, *trained._replace(model=models / "edm", fits=found), workers=1)
    assert all("not finite" in cell.failed for cell in cells)


def test_the_report_gets_each_curves_fits_without_their_numbers(models: Path) -> None:
    curves = {"a": curve(), "b": curve(nfe=[3]), "c": curve(fitted_seed=0, nfe=[2])}
    found = summary(curves, fits_of(models, *curves.values()))
    assert [(each["curve"], each["train_seed"], each["steps"]) for each in found] == [
        ("a", 0, 2), ("a", 0, 3), ("a", 1, 2), ("a", 1, 3), ("b", 0, 3), ("b", 1, 3), ("c", 0, 2), ("c", 1, 2),
    ]  # fmt: skip
    assert set(found[0]) == {
        "curve", "train_seed", "steps", "start", "error", "heldout_start", "heldout", "calls", "failed",
    }  # fmt: skip
    assert [found[0][key] for key in ("start", "error")] == [found[6][key] for key in ("start", "error")]


def test_no_measurement_has_the_noise_or_the_labels_of_fits() -> None:
    fits = torch.randn(16, 1, 8, 8, generator=generator("fitted"))
    for seed in range(5):
        samples = SampleNoise(seed, range(64)).randn((1, 8, 8))
        assert float(torch.cdist(fits.flatten(1), samples.flatten(1).float()).min()) > 1
    [most] = [part.lt for part in get_args(Seed)[1].metadata if isinstance(part, Lt)]
    assert most <= CLASSES_SEED


def test_fits_are_made_with_labels_and_guidance(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample has the class of its index, whatever the chunk."""
    exact = Conditional(CLASSES, 0.3)
    row = curve(nfe=[4], seeds=[[0, 0]]).model_copy(update={"guidance": 2.0})
    weights = loading.weights_for(models / "edm", 0, row.weights())
    monkeypatch.setattr(loading, "weights_for", lambda *of: replace(weights, denoiser=exact))
    found = []
    for chunk in (4, 3):
        monkeypatch.setattr(fitting, "CHUNK", chunk)
        shutil.rmtree(".cache", ignore_errors=True)
        found.append(fit_solver(row, models / "edm", 0, row.steps(4)))
    assert found[0].steps == 2 and not found[0].failed and found[0].error < found[0].start
    assert (found[1].start, found[1].heldout_start) == pytest.approx((found[0].start, found[0].heldout_start))
