"""Posterior samplers measured on points and images whose posteriors are exact: problems, scores, tuning and cache."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.threads import side_by_side
from pipeline.data.dataset import Dataset, to_range
from pipeline.data.points import POINTS
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.denoiser import new_denoiser, save_denoiser
from pipeline.diffusion.weights import failure_file, main_file, save_failure
from pipeline.evaluation import given as measured
from pipeline.evaluation.given import (
    EXACT,
    EXACT_DRAWS,
    HELDOUT,
    PRIOR,
    SCORES,
    VALIDATION,
    Bench,
    Cell,
    chosen,
    exact_cells,
    load_cells,
    prior_of,
    run,
    save_cells,
    save_problems,
)
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.training.row import Model

pytestmark = pytest.mark.usefixtures("empty_cache")

F64 = torch.float64
GIVEN = {"problems": 5, "draws": 6, "sample_seeds": [0, 1], "validation": 3, "validation_draws": 4, "candidates": 3}
MEASUREMENTS = {
    "line": {"operator": "random", "std": 0.2, "projections": 1},
    "clip": {"operator": "clip", "std": 0.1},
}
ROWS: dict[str, dict[str, Any]] = {"dps": {"nfe": [27]}, "tmp": {"posterior": "tmp", "nfe": [27]}}
PIXELS = {"masked": {"operator": "mask", "std": 0.1, "share": 0.5}, "whole": {"operator": "identity", "std": 0.3}}


@cache
def data_of(source: str, limit: int | None) -> Dataset:
    return load(Data(source=source, limit=limit))


def bench(
    rows: dict[str, dict[str, Any]] = ROWS,
    measurements: dict[str, dict[str, Any]] = MEASUREMENTS,
    given: dict[str, Any] | None = None,
    source: str = "mixture",
    folder: Path = Path("models"),
    heldout: Dataset | None = None,
    limit: int | None = None,
    extractor: Any = None,
) -> Bench:
    """A bench from the file that `resolve` writes."""
    points = source != "digits"
    study = Study(
        study={"name": "t"},
        data={"source": source, "limit": limit} if limit else {"source": source},
        features={"extractor": "coordinates" if points else "classifier"},
        models={"edm": {"network": "mlp" if points else "unet", "train_seeds": [0, 1]}},
        curves={"edm": {"model": "edm"}},
        measurements=measurements,
        posteriors=rows,
        given=GIVEN | (given or {}),
    )
    asked = json.loads(json.dumps(resolve(study).files()["given"]))
    return Bench.of(asked, data_of(source, limit), heldout, lambda name: folder / name, extractor)


def untrained(folder: Path, *broken: int) -> Path:
    """Networks of two seeds for points; those of `broken` answer NaN."""
    for seed in (0, 1):
        denoiser = new_denoiser(Model(network="mlp").spec(0.5, (2,)), seed).eval()
        if seed in broken:
            with torch.no_grad():
                next(denoiser.network.parameters()).fill_(torch.nan)
        save_denoiser(denoiser, main_file(folder / "edm", seed))
    return folder


def measure(made: Bench, *names: str) -> list[Cell]:
    tasks = [task for name in names or made.posteriors for task in made.tasks(name, {})]
    return run(tasks, made.setting, lambda cell: None)


def same(a: Cell, b: Cell) -> bool:
    """To the last bit."""
    tensors = [(a.ranks, b.ranks), (a.shown, b.shown), *((a.scores[key], b.scores[key]) for key in a.scores)]
    return a.line == b.line and a.scores.keys() == b.scores.keys() and all(x.equal(y) for x, y in tensors)


def files() -> set[Path]:
    return set(Path(".cache/given").glob("*"))


def posterior_by_draws(y: Tensor, apply: Callable[[Tensor], Tensor], std: float) -> tuple[Tensor, Tensor]:
    """Mean and std given y (m,) by importance sampling of other draws of the prior."""
    x0 = POINTS["mixture"](300_000, torch.Generator().manual_seed(5)).x
    weights = (-(apply(x0) - y).square().sum(1) / (2 * std**2)).softmax(0)
    mean = weights @ x0
    return mean, (weights @ (x0 - mean).square()).sqrt()


def test_exact_moments_and_draws_agree_with_importance_sampling() -> None:
    made = bench(given={"draws": 400})
    for name, row in made.measurements.items():
        truths, operator = made.problems[name, PRIOR], row.build((2,))
        assert truths.draws is not None and truths.mean is not None and truths.std is not None
        assert truths.draws.shape == (5, EXACT_DRAWS * 400, 2) and truths.y.shape == (5, operator.size)
        for p, y in enumerate(truths.y):
            mean, std = posterior_by_draws(y, operator.apply, row.std)
            torch.testing.assert_close(truths.mean[p], mean, rtol=0, atol=0.02)
            torch.testing.assert_close(truths.std[p], std, rtol=0.05, atol=0.01)
        error = (truths.draws.mean(1) - truths.mean).abs() / truths.std * math.sqrt(EXACT_DRAWS * 400)
        assert float(error.max()) < 4
        torch.testing.assert_close(truths.draws.std(1), truths.std, rtol=0.2, atol=0)


def test_y_measures_x0_with_its_noise() -> None:
    made = bench(given={"problems": 400, "draws": 4}, measurements={"line": MEASUREMENTS["line"]})
    truths = made.problems["line", PRIOR]
    noise = truths.y - made.measurements["line"].build((2,)).apply(truths.x0)
    assert float(noise.mean()) == pytest.approx(0, abs=0.04) and float(noise.std()) == pytest.approx(0.2, rel=0.15)


def test_problems_are_the_same_for_all_rows_and_seeds_and_other_than_those_of_validation() -> None:
    made = bench()
    for name in MEASUREMENTS:
        assert made.problems[name, PRIOR].x0.equal(made.problems["line", PRIOR].x0)
    tasks = [task for name in made.posteriors for task in made.tasks(name, {}) if task.measurement == "line"]
    assert len({id(task.truths) for task in tasks}) == 1 and {task.seeds for task in tasks} == {(0, 0), (0, 1)}
    assert {task.name for task in tasks} == {"dps", "tmp"}
    validation = made.problems["line", VALIDATION]
    assert validation.x0.shape == (3, 2) and validation.draws is None
    assert torch.cdist(validation.x0, made.problems["line", PRIOR].x0).min() > 0
    other = bench({"mmps": {"posterior": "mmps", "nfe": [9]}})
    assert other.problems["line", PRIOR].y.equal(made.problems["line", PRIOR].y)


def test_more_problems_begin_with_the_same_x0_of_images() -> None:
    few, many = (bench(measurements=PIXELS, source="digits", limit=40, given={"problems": n}) for n in (4, 9))
    assert many.problems["whole", PRIOR].x0[:4].equal(few.problems["whole", PRIOR].x0)


@pytest.mark.parametrize("problems", [5, 37])  # with validation, all 40 images
def test_images_of_problems_and_validation_are_disjoint(problems: int) -> None:
    prior = prior_of("digits", data_of("digits", 40))
    assert prior.shape == (1, 8, 8) and prior.mixture is None
    made = bench(measurements=PIXELS, source="digits", limit=40, given={"problems": problems, "draws": 4})
    test, validation = (made.problems["masked", part].x0.flatten(1) for part in (PRIOR, VALIDATION))
    images = to_range(data_of("digits", 40).images).double().flatten(1)
    places = [torch.cdist(x0, images).argmin(1).tolist() for x0 in (test, validation)]
    assert len(test) == problems and len(set(places[0]) | set(places[1])) == problems + 3


def test_heldout_images_are_for_networks_and_have_no_exact_posterior() -> None:
    heldout = Dataset(data_of("digits", None).images[100:120], None)
    rows = {"dps": {"nfe": [27]}, "net": {"model": "edm", "nfe": [27]}}
    made = bench(rows, PIXELS, source="digits", limit=40, heldout=heldout)
    assert made.parts(made.posteriors["dps"]) == [PRIOR] and made.parts(made.posteriors["net"]) == [PRIOR, HELDOUT]
    truths = made.problems["masked", HELDOUT]
    assert truths.draws is truths.mean is truths.std is None and truths.x0.shape == (5, 1, 8, 8)
    flat = to_range(heldout.images).double().flatten(1)
    assert torch.cdist(truths.x0.flatten(1), flat).min(1).values.max() == 0
    assert {cell.line.part for cell in exact_cells(made)} == {PRIOR}


def test_a_line_has_means_of_the_scores_and_the_bill() -> None:
    made = bench()
    for cell in measure(made, "tmp"):
        line = cell.line
        assert (line.posterior, line.model, line.part, line.nfe, line.train_seed) == ("tmp", "", PRIOR, 27, "")
        assert (line.keys, line.problems, line.draws, line.failed) == ("covariance full", 5, 6, "")
        # a call and one product for one number: 27 pays for 9 calls of Heun's method, which are 5 steps
        assert (line.measurement, line.steps, line.calls, line.products, line.cost) == ("line", 5, 9, 9, 27)
        assert set(cell.scores) == set(SCORES) - {"psnr", "feature_distance"}
        for name, values in cell.scores.items():
            assert values.shape == (5,) and float(getattr(line, name)) == pytest.approx(float(values.mean()), rel=1e-5)
        assert cell.ranks.shape[0] == 5 and cell.shown.shape == (4, 5, 2)
    assert {cell.line.measurement for cell in measure(made, "dps")} == {"line", "clip"}


def test_images_have_further_scores() -> None:
    folder = Path("features")
    save_extractor(make_extractor(Features(epochs=1, width=8), data_of("digits", 40))[0], folder)
    made = bench({"dps": {"nfe": [9]}}, PIXELS, source="digits", limit=40, extractor=load_extractor(folder))
    cells = [*exact_cells(made), *measure(made)]
    assert all(set(cell.scores) == set(SCORES) for cell in cells)
    assert cells[0].shown.shape == (4, 5, 64)


def test_results_are_the_same_from_the_cache_and_with_other_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench()
    first = measure(made)
    kept = files()
    assert len(kept) == len(first) == 2 * (2 + 1)
    monkeypatch.setattr(measured, "draw_given", None)  # which is not needed
    assert all(map(same, first, measure(made))) and files() == kept
    monkeypatch.undo()
    for workers in (1, 3):
        for file in files():
            file.unlink()
        monkeypatch.setattr(measured, "side_by_side", lambda tasks, _, n=workers: side_by_side(tasks, n))
        assert all(map(same, first, measure(bench())))
        monkeypatch.undo()


def test_samples_do_not_depend_on_the_batch() -> None:
    [first, *_] = measure(bench(), "dps")
    [again, *_] = measure(bench(given={"batch": 7}), "dps")
    assert len(files()) == 2 * 2 * 2  # cells of two measurements and seeds, each with both batches
    for name, values in first.scores.items():
        torch.testing.assert_close(again.scores[name], values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {"again": ROWS["dps"]}},
        {"rows": {"dps": {"nfe": [27], "zeta": 0.5}}},
        {"rows": {"dps": {"nfe": [27], "rho": 3}}},
        {"rows": {"dps": {"nfe": [26]}}},
        {"rows": {"dps": {"nfe": [27], "posterior": "dps_norm"}}},
        {"measurements": {"line": MEASUREMENTS["line"] | {"std": 0.3}}},
        {"measurements": {"line": MEASUREMENTS["line"] | {"seed": 1}}},
        {"measurements": {"other": MEASUREMENTS["line"]}},
        {"given": {"sample_seeds": [2]}},
        {"given": {"draws": 7}},
        {"given": {"problems": 6}},
        {"source": "spiral"},
    ],
    ids=str,
)
def test_everything_that_a_cell_depends_on_is_in_the_name_of_its_file(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "rows": {"dps": ROWS["dps"]},
        "measurements": {"line": MEASUREMENTS["line"]},
        "given": {"sample_seeds": [0]},
    }
    measure(bench(**base))
    assert len(files()) == 1
    given = base["given"] | change.get("given", {})
    measure(bench(**base | change | {"given": given}))
    assert len(files()) == 2


def test_other_weights_are_another_file() -> None:
    rows, line = {"net": {"model": "edm", "nfe": [9]}}, {"line": MEASUREMENTS["line"]}
    first = measure(bench(rows, line, folder=untrained(Path("models"))))
    assert [(cell.line.train_seed, cell.line.sample_seed) for cell in first] == [(0, 0), (1, 1)]
    assert len(files()) == 2 and all(cell.scores and cell.line.model == "edm" for cell in first)
    measure(bench(rows, line, folder=untrained(Path("models"))))
    assert len(files()) == 2
    denoiser = new_denoiser(Model(network="mlp").spec(0.5, (2,)), 7)
    save_denoiser(denoiser, main_file(Path("models/edm"), 0))
    measured._loaded.cache_clear()
    measure(bench(rows, line))
    assert len(files()) == 3


@pytest.mark.parametrize(
    "keys",
    [
        {"discretization": "explicit", "sigmas": [80 / 1.5**i for i in range(20)]},
        {"solver": "euler", "finest_steps": 81},
        {"solver": "ddpm", "variance": "beta"},
        {"posterior": "pnpdm", "threshold": "none"},
    ],
    ids=str,
)
def test_networks_are_sampled_with_every_grid_that_resolve_accepts(keys: dict[str, Any]) -> None:
    measured._loaded.cache_clear()
    rows = {"net": {"model": "edm", "nfe": [243 if "sigmas" in keys else 81]} | keys}
    cells = measure(bench(rows, {"line": MEASUREMENTS["line"]}, folder=untrained(Path("models"))))
    assert len(cells) == 2 and not any(cell.line.failed for cell in cells)


def test_a_network_that_answers_nan_fails_with_a_reason_and_spoils_no_other_seed() -> None:
    measured._loaded.cache_clear()
    rows = {"net": {"model": "edm", "nfe": [9]}}
    made = bench(rows, {"line": MEASUREMENTS["line"]}, folder=untrained(Path("models"), 1))
    cells = measure(made)
    good, bad = cells
    assert good.scores and not good.line.failed
    assert "not finite" in bad.line.failed and "\n" not in bad.line.failed and not bad.scores
    assert bad.line.sliced_w2 == bad.line.energy_score == bad.line.steps == "" and bad.line.train_seed == 1
    assert len(files()) == 1, "a failure is tried again"
    save_cells(Path("net.safetensors"), cells)
    again = load_cells(Path("net.safetensors"))
    assert all(map(same, cells, again)) and len(again) == 2


def test_a_training_that_failed_is_the_reason() -> None:
    measured._loaded.cache_clear()
    folder = untrained(Path("models"))
    main_file(folder / "edm", 1).unlink()
    save_failure("the loss is not finite at step 3", failure_file(folder / "edm", 1))
    _, bad = measure(bench({"net": {"model": "edm", "nfe": [9]}}, {"line": MEASUREMENTS["line"]}, folder=folder))
    assert "the loss is not finite at step 3" in bad.line.failed


def test_cells_and_problems_are_saved_whole() -> None:
    made = bench()
    cells = [*exact_cells(made), *measure(made)]
    for name in (EXACT, "dps", "tmp"):
        own = [cell for cell in cells if cell.line.posterior == name]
        save_cells(Path("own.safetensors"), own)
        assert all(map(same, own, load_cells(Path("own.safetensors")))), name
        assert len({cell.key for cell in own}) == len(own) > 0
    save_problems(Path("problems.safetensors"), made)


def test_a_broken_file_of_the_cache_is_made_again(capfd: pytest.CaptureFixture[str]) -> None:
    made = bench({"dps": ROWS["dps"]}, {"line": MEASUREMENTS["line"]}, {"sample_seeds": [0]})
    [first] = measure(made)
    [file] = files()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert all(map(same, [first], measure(made)))
    assert "it is made again" in capfd.readouterr().err


def test_a_perfect_sampler_scores_below_all_others() -> None:
    """dps trusts y too much. A perfect sampler has rank statistics of a uniform distribution, and a misfit near 1."""
    rows = {"dps": {"nfe": [81]}, "diffpir": {"posterior": "diffpir", "nfe": [81]}}
    made = bench(rows, {"line": MEASUREMENTS["line"]}, {"problems": 48, "draws": 32, "sample_seeds": [0]})
    [floor] = exact_cells(made)
    for cell in measure(made):
        for name in ("sliced_w2", "energy_distance", "mean_error", "std_error"):
            assert float(floor.scores[name].mean()) < float(cell.scores[name].mean()), (cell.line.posterior, name)
    assert floor.line.posterior == EXACT and floor.line.steps == floor.line.cost == floor.line.keys == ""
    distance = floor.scores["energy_distance"]
    assert abs(float(distance.mean())) < 4 * float(distance.std()) / math.sqrt(48)
    assert float(floor.line.coverage_50) == pytest.approx(0.5, abs=0.15)
    assert float(floor.line.coverage_90) == pytest.approx(0.9, abs=0.1)
    assert 0.7 < float(floor.line.misfit) < 1.6


def test_moment_matching_approaches_the_posterior_and_dps_does_not() -> None:
    rows = {name: {"posterior": name, "nfe": [243]} for name in ("dps", "tmp", "mmps")}
    given = {"problems": 24, "draws": 32, "sample_seeds": [0]}
    made = bench(rows, {"line": MEASUREMENTS["line"]}, given)
    [floor] = exact_cells(made)
    found = {cell.line.posterior: cell for cell in [floor, *measure(made)]}
    distance = {name: float(cell.scores["sliced_w2"].mean()) for name, cell in found.items()}
    assert distance[EXACT] < distance["tmp"] < 0.8 * distance["dps"], distance
    torch.testing.assert_close(
        found["mmps"].scores["sliced_w2"], found["tmp"].scores["sliced_w2"], rtol=0.01, atol=1e-3
    )


def test_trials_are_the_candidates_that_a_budget_pays_for_on_validation_problems() -> None:
    rows = {
        "mmps": {"posterior": "mmps", "nfe": [5, 27], "tune": {"iterations": [1, 9]}},
        "ddnm": {"posterior": "ddnm", "nfe": [9]},
    }
    made = bench(rows, {"line": MEASUREMENTS["line"]}, {"candidates": 6})
    tasks = made.trials("mmps")
    assert made.trials("ddnm") == []
    row = made.posteriors["mmps"]
    assert [task.keys for task in tasks if task.nfe == 27] == row.candidates(6)
    assert [task.keys["iterations"] for task in tasks if task.nfe == 5] == [1, 2]  # 1 + 2 iterations of at most 5
    assert all(task.truths is made.problems["line", VALIDATION] and task.seeds == (0, 0) for task in tasks)
    assert all(task.draws == 4 for task in tasks)


def test_tuned_keys_are_those_of_the_lowest_energy_score_and_are_measured() -> None:
    rows = {"dps": {"nfe": [27], "tune": {"zeta": [0.01, 3]}}}
    made = bench(rows, {"line": MEASUREMENTS["line"]}, {"candidates": 5})
    tasks = made.trials("dps")
    cells = run(tasks, made.setting, lambda cell: None)
    [record] = json.loads(json.dumps(chosen(tasks, cells), allow_nan=False))
    means = [float(cell.scores["energy_score"].mean()) for cell in cells]
    best = tasks[means.index(min(means))]
    assert record["keys"] == best.keys and record["score"] == min(means) and record["default"] == means[0]
    assert (record["measurement"], record["nfe"], record["tried"]) == ("line", 27, 5)
    assert record["cost"] == sum(int(cell.line.cost) for cell in cells) * 3 * 4
    for task in made.tasks("dps", {"dps": [record]}):
        assert task.keys == best.keys and task.truths.part == PRIOR
    assert made.tasks("dps", {"dps": [record | {"nfe": 9}]})[0].keys == {"zeta": 1.0}


@pytest.mark.parametrize(
    ("scores", "best", "score", "default"),
    [
        ([3.0, 1.0, 2.0], 1, 1.0, 3.0),
        ([1.0, 1.0, 2.0], 0, 1.0, 1.0),
        ([math.nan, 2.0, None], 1, 2.0, None),
        ([None, math.inf, math.nan], 0, None, None),
        ([None, None, None], 0, None, None),
    ],
    ids=str,
)
def test_the_lowest_finite_score_is_chosen(
    scores: list[float | None], best: int, score: float | None, default: float | None
) -> None:
    made = bench({"dps": {"nfe": [27], "tune": {"zeta": [0.01, 3]}}}, {"line": MEASUREMENTS["line"]})
    tasks = made.trials("dps")
    empty = torch.empty(0)
    cells = [
        Cell(task.line, {} if value is None else {"energy_score": torch.tensor([value, value])}, empty, empty)
        for task, value in zip(tasks, scores, strict=True)
    ]
    [record] = chosen(tasks, cells)
    assert (record["keys"], record["score"], record["default"]) == (tasks[best].keys, score, default)
