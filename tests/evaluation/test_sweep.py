"""Measuring a curve: cells are reproducible, and each is measured only once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.tensors import read_sealed
from pipeline.common.threads import side_by_side
from pipeline.data.dataset import to_range
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.classifier import save_classifier
from pipeline.diffusion.denoiser import load_denoiser
from pipeline.diffusion.weights import Weights, classifier_file
from pipeline.evaluation import loading, sweep
from pipeline.evaluation.cell import Cell
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.fits import Fits, fit_model
from pipeline.evaluation.sweep import measure_curve, save_curve
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.measurement import measure, measured_with
from pipeline.sampling import fitted_grids
from pipeline.sampling.guidance import sample_labels
from pipeline.training.classifier import train_classifier
from tests.evaluation.small import CLASSES, MEANS, SAMPLES, Conditional, Trained, broken, curve, same

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(steps, sample seed) of every set of samples that is generated from here on."""
    calls: list[tuple[int, int]] = []
    generate = sweep.generate

    def counted(*arguments: Any) -> Iterator[tuple[Tensor, int]]:
        calls.append((arguments[3], arguments[4]))
        return generate(*arguments)

    monkeypatch.setattr(sweep, "generate", counted)
    return calls


def cell_files() -> list[Path]:
    return sorted(Path(".cache/cells").iterdir())


def test_cells_do_not_depend_on_the_number_of_workers_nor_on_repetition(trained: Trained, tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        for path in Path(".cache/cells").glob("*"):
            path.unlink()
        found.append(measure_curve(curve(), *trained, workers=workers))
    assert same(*found)
    cells = found[0]
    assert [(c.steps, c.nfe, c.train_seed, c.sample_seed) for c in cells] == [
        (2, 3, 0, 0), (2, 3, 1, 1), (3, 5, 0, 0), (3, 5, 1, 1),
    ]  # fmt: skip
    assert len({json.dumps(c.metrics) for c in cells}) == 4
    assert all(c.samples == SAMPLES and len(c.images) == sweep.SHOWN_IMAGES for c in cells)


def test_nothing_is_measured_twice(
    trained: Trained, generated: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure_curve(curve(), *trained, workers=1)
    assert len(generated) == 4

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sweep, "generate", fails)
    finished: list[Cell] = []
    assert same(measure_curve(curve(), *trained, finished.append, workers=1), first)
    assert len(finished) == 4


def test_a_new_budget_or_seed_measures_its_own_cells_alone(trained: Trained, generated: list[tuple[int, int]]) -> None:
    first = measure_curve(curve(), *trained, workers=1)
    generated.clear()
    more = measure_curve(curve(nfe=[1, 3, 5]), *trained, workers=1)
    assert sorted(generated) == [(1, 0), (1, 1)]
    assert same(more[2:], first)
    generated.clear()
    assert len(measure_curve(curve(sample_seeds=[0, 1, 2]), *trained, workers=1)) == 6
    assert sorted(generated) == [(2, 2), (3, 2)]


@pytest.mark.parametrize(
    "keys",
    [{"rho": 3}, {"solver": "euler"}, {"sigma_max": 50}, {"schedule": "vp"}, {"scaling": "vp"}, {"samples": 41}],
    ids=str,
)
def test_another_row_has_cells_of_its_own(
    trained: Trained, generated: list[tuple[int, int]], keys: dict[str, Any]
) -> None:
    short = {"nfe": [5], "sample_seeds": [0]}
    first = measure_curve(curve(**short), *trained, workers=1)
    generated.clear()
    other = measure_curve(curve(**short | keys), *trained, workers=1)
    assert len(generated) == len(other)
    assert [c.metrics for c in other] != [c.metrics for c in first]


def test_another_model_extractor_or_reference_has_cells_of_its_own(
    trained: Trained, generated: list[tuple[int, int]], tmp_path: Path
) -> None:
    row = curve(nfe=[3], seeds=[[0, 0]])
    measure_curve(row, *trained, workers=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/seed_0.safetensors").write_bytes((trained.model / "seed_1.safetensors").read_bytes())
    extractor = replace(trained.extractor, hash="other")
    reference = replace(trained.reference, hash="other")
    for changed in ({"model": tmp_path / "model"}, {"extractor": extractor}, {"reference": reference}):
        generated.clear()
        measure_curve(row, *trained._replace(**changed), workers=1)
        assert len(generated) == 1, changed


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        partial(Path.write_bytes, data=b""),
        partial(Path.write_bytes, data=b"not a cell at all"),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"metrics", b"matrics")),
    ],
)
def test_a_broken_cell_is_measured_again(
    trained: Trained, generated: list[tuple[int, int]], harm: Callable[[Path], object]
) -> None:
    row = curve(nfe=[3])
    first = measure_curve(row, *trained, workers=1)
    kept = {path: path.read_bytes() for path in cell_files()}
    harm(cell_files()[0])
    generated.clear()
    assert same(measure_curve(row, *trained, workers=1), first)
    assert len(generated) == 1
    assert {path: path.read_bytes() for path in cell_files()} == kept


def test_budgets_of_equal_steps_are_one_cell(trained: Trained, generated: list[tuple[int, int]]) -> None:
    cells = measure_curve(curve(nfe=[3, 4]), *trained, workers=1)
    assert [(c.steps, c.nfe) for c in cells] == [(2, 3)] * 2
    assert len(generated) == len(cell_files()) == 2


def test_what_is_measured_is_what_would_be_stored_as_images(trained: Trained) -> None:
    seen: list[Tensor] = []

    class Watched:
        hash = "watched"

        def __call__(self, images: Tensor) -> Extracted:
            seen.append(images.clone())
            return trained.extractor(images)

        def on(self, device: torch.device) -> "Watched":
            return self

    cells = measure_curve(curve(nfe=[3]), *trained._replace(extractor=Watched()), workers=1)
    assert len(seen) == len(cells)
    for images, cell in zip(seen, cells, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (SAMPLES, 1, 8, 8)
        assert images[: sweep.SHOWN_IMAGES].equal(cell.images)
        [again] = side_by_side([partial(measure, [images], SAMPLES, trained.extractor, trained.reference)])
        assert again.metrics == cell.metrics


def test_the_batch_is_no_part_of_the_images(trained: Trained) -> None:
    a, b = (measure_curve(curve(nfe=[3], batch=batch), *trained, workers=1) for batch in (16, 64))
    assert all(x.images.equal(y.images) for x, y in zip(a, b, strict=True))


def test_a_network_that_answers_nan_fails_its_own_cells_alone(trained: Trained, tmp_path: Path) -> None:
    half = broken(trained, tmp_path / "model", 1)
    cells = measure_curve(curve(), *half, workers=2)
    failed = {(c.steps, c.train_seed): c for c in cells if c.failed}
    assert set(failed) == {(2, 1), (3, 1)} and len(cells) == 4
    assert failed[2, 1].failed == "step 1 of 2, sigma 80: the denoiser's answer is not finite"
    assert [(c.nfe, c.metrics, len(c.images), len(c.features)) for c in failed.values()] == [
        (3, [], 0, 0),
        (5, [], 0, 0),
    ]
    assert len(cell_files()) == 2
    good = measure_curve(curve(), *trained, workers=2)
    assert same([c for c in cells if not c.failed], [c for c in good if c.train_seed == 0])


@pytest.mark.parametrize("seeds", [(1,), (0, 1)])
def test_failed_cells_are_saved_beside_the_others(trained: Trained, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    cells = measure_curve(curve(nfe=[3]), *broken(trained, tmp_path / "model", *seeds), workers=1)
    summary = save_curve(cells, {"extractor": "classifier"}, tmp_path / "a")
    records = json.loads((tmp_path / "a/results.json").read_text())["cells"]
    assert [bool(record["failed"]) for record in records] == [seed in seeds for seed in (0, 1)]
    assert len(summary["fd_corrected_at_nfe"]) == (len(seeds) < 2)
    features = load_file(tmp_path / "a/features.safetensors")["features"]
    assert features.shape == (SAMPLES if 0 not in seeds else 0, trained.reference.features.shape[1])


def test_an_optimised_curve_is_sampled_on_the_grid_fitted_to_each_network(trained: Trained) -> None:
    row = curve(nfe=[3], discretization="optimised")
    fitted = [found.grids[1] for found in trained.fits.grids]
    cells = measure_curve(row, *trained, workers=1)
    for cell, sigmas in zip(cells, fitted, strict=True):
        seeds = [[cell.train_seed, cell.sample_seed]]
        own = curve(nfe=[3], discretization="explicit", sigmas=sigmas, seeds=seeds)
        [explicit] = measure_curve(own, *trained, workers=1)
        assert explicit.images.equal(cell.images) and explicit.metrics == cell.metrics
    with pytest.raises(StudyError, match="no grid was fitted to seed_0"):
        measure_curve(row, *trained._replace(fits=Fits()), workers=1)


def test_a_network_to_which_no_grid_can_be_fitted_fails_its_own_cells_alone(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted_grids, "TRAJECTORIES", 16)
    half = broken(trained, tmp_path / "model", 1)
    half = half._replace(fits=fit_model(half.model, [(0.002, 80.0)], []))
    cells = measure_curve(curve(nfe=[3], discretization="optimised"), *half, workers=1)
    assert [c.failed for c in cells] == ["", half.fits.grids[1].failed]
    assert "not finite" in cells[1].failed


def test_what_an_adaptive_solver_costs_is_the_mean(trained: Trained) -> None:
    row = curve(nfe=[30], solver="rk45", schedule="flow", samples=80)
    [cell, _] = measure_curve(row, *trained, workers=1)
    denoiser = load_denoiser(trained.model / "seed_0.safetensors")
    made = list(sweep.generate(denoiser, denoiser.shape, row, 2, 0, 80, 16))
    assert [len(images) for images, _ in made] == [64, 16]
    total = sum(len(images) * nfe for images, nfe in made)
    assert cell.nfe - 1 < total / 80 <= cell.nfe


def test_one_cell_a_curve_keeps_its_features(trained: Trained, generated: list[tuple[int, int]]) -> None:
    row = curve(nfe=[3, 5])
    cells = measure_curve(row, *trained, workers=1)
    assert [len(c.features) for c in cells] == [0, 0, SAMPLES, 0]
    more = measure_curve(curve(nfe=[3, 5, 7]), *trained, workers=1)
    assert [len(c.features) for c in more] == [0, 0, 0, 0, SAMPLES, 0]
    generated.clear()
    fewer = measure_curve(curve(nfe=[3]), *trained, workers=1)
    assert [len(c.features) for c in fewer] == [SAMPLES, 0]
    assert generated == [(2, 0)]
    assert fewer[0].record() == cells[0].record()


def test_a_curve_is_saved_with_all_its_cells_and_no_clock(trained: Trained, tmp_path: Path) -> None:
    cells = measure_curve(curve(), *trained, workers=1)
    provenance = measured_with(trained.extractor, trained.reference, SAMPLES)
    summary = save_curve(cells, provenance, tmp_path / "a")
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert results["cells"] == [c.record() for c in cells]
    assert results["provenance"] == provenance
    assert len({c["checkpoint"] for c in results["cells"]}) == 2
    fd = [next(m["value"] for m in c.metrics if m["metric"] == "fd_corrected") for c in cells]
    assert summary["fd_corrected_at_nfe"] == pytest.approx({"3": (fd[0] + fd[1]) / 2, "5": (fd[2] + fd[3]) / 2})
    save_curve(measure_curve(curve(), *trained, workers=1), provenance, tmp_path / "b")
    for name in ("results.json", "images.safetensors", "features.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def conditional(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> Trained:
    """Exact models of classes, with exact earlier snapshots."""
    weights = Weights(Conditional(CLASSES, 0.05), Conditional(CLASSES, 0.3))  # type: ignore[arg-type]
    monkeypatch.setattr(loading, "weights_for", lambda *_: weights)
    monkeypatch.setattr(sweep, "content_key", lambda folder, seed, selection: f"{seed} {selection}")
    return trained


def guided_curve(**keys: Any) -> Curve:
    """A resolved row of choices that `resolve` refuses for a model without classes."""
    row = {key: keys.pop(key) for key in ("nfe", "seeds") if key in keys}
    return Curve(**curve(**row).model_dump() | keys)


def nearest(images: Tensor) -> Tensor:
    """The class whose mean is nearest to each image (N, 1, 8, 8), uint8."""
    return torch.cdist(to_range(images).double().flatten(1), MEANS.flatten(1)).argmin(1)


GUIDED: list[dict[str, Any]] = [
    {},
    {"guidance": 1.5},
    {"guidance": 1.5, "guide": "snapshot"},
    {"guidance": 1.5, "guidance_min": 0.2, "guidance_max": 5.0},
]


@pytest.mark.parametrize("keys", GUIDED, ids=str)
def test_samples_of_a_model_of_classes_are_of_theirs_and_every_call_counts(
    conditional: Trained, keys: dict[str, Any]
) -> None:
    row = guided_curve(nfe=[60], **keys)
    cells = measure_curve(row, *conditional, workers=1)
    for cell in cells:
        assert nearest(cell.images).equal(sample_labels(cell.sample_seed, range(sweep.SHOWN_IMAGES), CLASSES))
        assert cell.nfe == row.evaluations(cell.steps) <= 60 < row.evaluations(cell.steps + 1)


def test_samples_without_labels_are_of_any_class(conditional: Trained) -> None:
    [cell, _] = measure_curve(guided_curve(nfe=[15], labels="none"), *conditional, workers=1)
    plain = Conditional((), 0.05).exact
    made = sweep.generate(plain, (1, 8, 8), curve(), cell.steps, cell.sample_seed, SAMPLES, 16)
    assert torch.cat([images for images, _ in made])[: sweep.SHOWN_IMAGES].equal(cell.images)
    labelled = measure_curve(curve(nfe=[15]), *conditional, workers=1)[0]
    assert not labelled.images.equal(cell.images)


def test_guided_cells_do_not_depend_on_the_number_of_workers(conditional: Trained) -> None:
    row = guided_curve(nfe=[6, 10], guidance=2.0)
    one = measure_curve(row, *conditional, workers=1)
    for path in cell_files():
        path.unlink()
    assert same(measure_curve(row, *conditional, workers=2), one)


def test_guidance_to_a_class_of_a_model_without_classes_is_an_error(trained: Trained) -> None:
    with pytest.raises(StudyError, match="guide: unconditional needs a model of classes") as caught:
        measure_curve(guided_curve(nfe=[6], guidance=2.0), *trained, workers=1)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def classified(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The models; the first has a classifier that tells bright images from dark ones."""
    folder = tmp_path_factory.mktemp("classified")
    for path in trained.model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    images = load(Data(limit=200)).images
    brightness = images.double().mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    classifier = train_classifier(images, labels, torch.bincount(labels).tolist(), 0.5, 0, 15 * 128)
    save_classifier(classifier, classifier_file(folder, 0))
    return trained._replace(model=folder)


def by_classifier(weight: float, **keys: Any) -> Curve:
    return guided_curve(**{"nfe": [20], "guide": "classifier", "guidance": weight, "seeds": [[0, 0]]} | keys)


def test_a_classifier_guides_a_model_without_classes(classified: Trained) -> None:
    """More guidance separates the brightness of the classes further; each gradient counts as a call."""
    gaps = []
    for weight in (0.0, 2.0, 10.0):
        [cell] = measure_curve(by_classifier(weight), *classified, workers=1)
        bright = sample_labels(0, range(sweep.SHOWN_IMAGES), (100, 100)).bool()
        means = cell.images.double().mean((1, 2, 3))
        gaps.append(float(means[bright].mean() - means[~bright].mean()))
        assert cell.nfe == (2 if weight else 1) * curve().build_solver().evaluations(cell.steps)
    assert gaps[0] < gaps[1] < gaps[2]


def test_cells_that_a_classifier_guides_are_its_own(classified: Trained, trained: Trained) -> None:
    guided, other = (measure_curve(by_classifier(2.0), *classified, workers=n)[0] for n in (1, 2))
    assert same([guided], [other])
    [plain] = measure_curve(curve(nfe=[20], seeds=[[0, 0]]), *trained, workers=1)
    [none] = measure_curve(by_classifier(0.0), *classified, workers=1)
    assert none.images.equal(plain.images) and none.checkpoint == plain.checkpoint
    assert plain.checkpoint == content_hash(read_sealed(trained.model / "seed_0.safetensors")) != guided.checkpoint


def test_a_missing_classifier_says_what_to_set(classified: Trained) -> None:
    with pytest.raises(StudyError, match=r"seed_1_classifier\.safetensors: missing; set classifier_images") as caught:
        measure_curve(by_classifier(2.0, seeds=[[1, 0]]), *classified, workers=1)
    assert len(str(caught.value).splitlines()) == 1


def test_a_guided_cell_that_fails_has_the_cost_of_all_its_calls(classified: Trained, tmp_path: Path) -> None:
    half = broken(classified, tmp_path / "model", 0)
    (tmp_path / "model/seed_0_classifier.safetensors").write_bytes(classifier_file(classified.model, 0).read_bytes())
    row = by_classifier(2.0, nfe=[10])
    [cell] = measure_curve(row, *half, workers=1)
    assert cell.failed.startswith("step 1 of 3, sigma 80") and (cell.steps, cell.nfe) == (3, 10)
