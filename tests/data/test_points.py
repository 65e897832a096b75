"""Points: the sets' supports and moments, the Wasserstein distances, and a study of points from data to report."""

import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import ot
import pytest
import torch
from safetensors.torch import save as to_safetensors
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.files import write_bytes, write_json
from pipeline.common.randomness import SampleNoise
from pipeline.common.tensors import save_tensors
from pipeline.data import points
from pipeline.data.dataset import Dataset, load_prepared, load_summary, save, shape_of, to_data, to_range, to_uint8
from pipeline.data.points import POINTS, draw
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.exact import Gaussian, Mixture
from pipeline.evaluation import convergence
from pipeline.evaluation.imageset import ImageSet, measure_set
from pipeline.evaluation.losses import bound_terms
from pipeline.metrics.agreement import TOLERANCE, compare, ours
from pipeline.metrics.extractors.registry import EXTRACTORS, load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.measurement import measure, measured_with
from pipeline.metrics.names import headline
from pipeline.metrics.reference import Reference, load_reference, make_reference, save_reference
from pipeline.metrics.wasserstein import W2_POINTS, sliced_w2, w2
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.report.statistics import floor_of
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model

names = pytest.mark.parametrize("name", POINTS)
COORDINATES = EXTRACTORS["coordinates"].build(b"", {})
SHIFT = torch.tensor([0.3, -0.4], dtype=torch.float64)  # of length 1/2


def drawn(name: str, count: int, seed: int = 0) -> Tensor:
    return POINTS[name](count, torch.Generator().manual_seed(seed)).x


def one_line(error: pytest.ExceptionInfo[StudyError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@names
def test_a_set_is_the_same_every_time_and_its_beginning_too(name: str) -> None:
    first = load(Data(source=name))
    torch.manual_seed(1)
    again, few = load(Data(source=name)), load(Data(source=name, limit=100))
    assert first.images.dtype == torch.float32 and first.images.shape == (points.COUNT, 2)
    assert first.summary() == again.summary()
    assert first.labels is not None and few.labels is not None
    assert few.images.equal(first.images[:100]) and few.labels.equal(first.labels[:100])
    assert load(Data(source=name, labels=False)).classes == ()


@names
def test_a_set_fills_its_range_and_its_classes_are_equally_frequent(name: str) -> None:
    dataset = load(Data(source=name))
    summary = dataset.summary()
    assert 0.8 < float(dataset.images.abs().max()) < 1.2
    shares = np.array(list(summary["class_counts"].values())) / points.COUNT
    classes = len(dataset.classes)
    assert shares == pytest.approx(1 / classes, abs=4 * math.sqrt(1 / classes / points.COUNT))
    pooled = dataset.images.double().numpy()
    assert summary["mean"] == pytest.approx(pooled.mean(), abs=1e-12)
    assert summary["sigma_data"] == pytest.approx(pooled.std(), rel=1e-12)
    assert (summary["count"], summary["dimensions"], shape_of(summary)) == (points.COUNT, 2, (2,))


def test_moons_are_blurred_half_circles() -> None:
    x, moon, _ = draw("two_moons")
    for label, side in ((0, 1), (1, -1)):
        centre = torch.tensor([-side / 3, side * -0.25 / 1.5], dtype=torch.float64)
        own = x[moon == label] - centre
        off = own.norm(dim=1) - 2 / 3
        assert float(off.std()) == pytest.approx(points.MOONS_STD, rel=0.05) and float(off.mean().abs()) < 0.005
        assert float((side * own[:, 1]).min()) > -6 * points.MOONS_STD
        angle = torch.atan2(side * own[:, 1], own[:, 0])
        assert kstest(angle[(angle > 0.3) & (angle < 2.8)], "uniform", (0.3, 2.5)).pvalue > 1e-3


def test_spirals_arms_are_half_a_turn_apart_and_evenly_dense() -> None:
    x, arm, _ = draw("spiral")
    own = torch.where(arm[:, None] == 0, x, -x)
    share = torch.linspace(0, 1, 4000, dtype=torch.float64)
    angle = 2 * math.pi * points.SPIRAL_TURNS * share
    curve = points.SPIRAL_RADIUS * share[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    squares = cdist(own, curve, "sqeuclidean")
    assert squares.max(0).min() > 0 and math.sqrt(squares.min(1).mean()) == pytest.approx(points.SPIRAL_STD, rel=0.1)
    along = share.numpy()[squares.argmin(1)]
    outer = along[along > 0.3]  # near the middle neighbouring turns are as near as the own one
    assert kstest(outer[outer < 0.97] ** 2, "uniform", (0.09, 0.97**2 - 0.09)).pvalue > 1e-3


def test_a_checkerboard_is_uniform_on_every_other_square() -> None:
    x, row, _ = draw("checkerboard")
    column, own_row = ((x + 1) * points.SQUARES / 2).floor().long().T
    assert float(x.abs().max()) <= 1 and own_row.equal(row) and not ((column + own_row) % 2).any()
    counts = torch.bincount(column * points.SQUARES + own_row, minlength=points.SQUARES**2)
    assert sorted(counts.tolist())[:8] == [0] * 8 and int(counts[counts > 0].min()) > 0.88 * points.COUNT / 8
    assert all(kstest(axis, "uniform", (-1, 2)).pvalue > 1e-3 for axis in x.T)


def test_a_mixture_has_its_components() -> None:
    x, component, _ = draw("mixture")
    centres = torch.stack([x[component == k].mean(0) for k in range(points.COMPONENTS)])
    assert centres.norm(dim=1).numpy() == pytest.approx(points.RING_RADIUS, abs=0.01)
    turned = torch.atan2(*centres.T.flip(0)).diff() % (2 * math.pi)
    assert turned.numpy() == pytest.approx(2 * math.pi / points.COMPONENTS, abs=0.02)
    assert float((x - centres[component]).std()) == pytest.approx(points.RING_STD, rel=0.03)


def test_points_survive_their_files_and_are_their_own_range(tmp_path: Path) -> None:
    dataset = load(Data(source="spiral", limit=50))
    save(dataset, tmp_path)
    again = load_prepared(tmp_path)
    assert again.images.equal(dataset.images) and again.classes == dataset.classes
    assert load_summary(tmp_path) == dataset.summary()
    assert to_range(dataset.images) is dataset.images
    assert to_data(dataset.images.double()).equal(dataset.images)
    broken = to_safetensors({"images": dataset.images + 1e-3})
    write_bytes(tmp_path / "images.safetensors", broken)
    with pytest.raises(StudyError, match="differs from the content hash"):
        load_prepared(tmp_path)


def test_samples_become_data_by_their_shape() -> None:
    images = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4)
    assert to_data(images).equal(to_uint8(images))
    out = torch.tensor([[3.0, -7.5]], dtype=torch.float64)
    assert to_data(out).equal(out.float())  # wherever it lies
    for far in (1e7, math.inf, math.nan):
        with pytest.raises(NotFinite, match="diverged"):
            to_data(torch.tensor([[0.0, far]], dtype=torch.float64))
    with pytest.raises(TypeError):
        to_range(torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("count", [7, 150])
def test_w2_is_the_best_pairing(count: int) -> None:
    """By another algorithm: the Hungarian one."""
    x, y = drawn("spiral", count, 1), drawn("two_moons", count, 2)
    costs = cdist(x, y, "sqeuclidean")
    assert w2(x, y).value == pytest.approx(math.sqrt(costs[linear_sum_assignment(costs)].mean()), rel=1e-12)


@names
def test_distances_of_a_shifted_set(name: str) -> None:
    x = drawn(name, 300)
    moved = x + SHIFT
    assert w2(moved, x).value == pytest.approx(0.5, rel=1e-12)
    assert sliced_w2(moved, x).value == pytest.approx(0.5 / math.sqrt(2), rel=1e-12)
    assert w2(x.flip(0), x).value == pytest.approx(0, abs=1e-7)
    assert sliced_w2(x.flip(0), x).value == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("counts", [(120, 120), (120, 360), (101, 64), (64, 101)])
def test_the_sliced_distance_is_pots(counts: tuple[int, int]) -> None:
    x, y = (drawn("checkerboard", count, count) for count in counts)
    angles = np.arange(16) * math.pi / 16
    theirs = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=np.stack([np.cos(angles), np.sin(angles)]), p=2
    )
    assert sliced_w2(x, y, 16).value == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize("distance", [w2, sliced_w2])
def test_distances_scale_and_know_no_order(distance: Any) -> None:
    x, y = drawn("two_moons", 200, 1), drawn("spiral", 200, 2)
    value = distance(x, y).value
    assert distance(y, x).value == pytest.approx(value, rel=1e-9)
    assert distance(3 * x, 3 * y).value == pytest.approx(3 * value, rel=1e-9)
    assert distance(x, y) == distance(x.clone(), y.clone())


@pytest.mark.parametrize("distance", [w2, sliced_w2])
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_standard_errors_are_those_of_drawing_samples(distance: Any, moved: float) -> None:
    real = drawn("two_moons", 250, 1)
    found = [distance(drawn("two_moons", 250, 10 + seed) + moved * SHIFT, real) for seed in range(40)]
    spread = float(np.std([e.value for e in found], ddof=1))
    assert mean(e.se for e in found) == pytest.approx(spread, rel=0.5 if moved == 0 else 0.3)


def test_w2_counts_the_first_points_at_equal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn("spiral", 90, 1), drawn("spiral", 200, 2)
    assert w2(x, y) == w2(x, y[:90]) and w2(y, x) == w2(y[:90], x)
    monkeypatch.setattr("pipeline.metrics.wasserstein.W2_POINTS", 50)
    assert w2(x, y) == w2(x[:50], y[:50])


def test_points_that_are_not_finite_or_too_few_are_refused() -> None:
    x = drawn("spiral", 60)
    bad = x.clone()
    bad[3, 1] = math.nan
    for distance in (w2, sliced_w2):
        with pytest.raises(StudyError, match="1 of 60 features are not finite"):
            distance(bad, x)
    with pytest.raises(StudyError, match="39 samples are too few"):
        sliced_w2(x[:39], x)


def test_floors_follow_the_counts() -> None:
    """What halves of 400 score, scaled to 100 samples, is what 100 samples score."""
    halves, counts = (400, 400), (100, 800)
    pairs: dict[tuple[int, int], list[tuple[float, float]]] = {halves: [], counts: []}
    for (n, m), found in pairs.items():
        for seed in range(12):
            x, y = drawn("checkerboard", n, seed), drawn("checkerboard", m, 100 + seed)
            found.append((w2(x, y).value, sliced_w2(x, y).value))
    for place, metric in enumerate(("w2", "sliced_w2")):
        measured, wanted = (mean(values[place] for values in pairs[key]) for key in (halves, counts))
        summary = {"floor": {metric: {"mean": measured, "sd": 0.0}}, "floor_images": 400, "images": 800}
        floor = floor_of(metric, summary, 100)
        assert floor is not None and floor.mean == pytest.approx(wanted, rel=0.15)
    same = {"floor": {"w2": {"mean": 0.1, "sd": 0.0}}, "floor_images": 2 * W2_POINTS, "images": 4 * W2_POINTS}
    assert floor_of("w2", same, 3 * W2_POINTS) == (0.1, 0.0)


def test_the_extractor_of_points_is_the_points(tmp_path: Path) -> None:
    dataset = load(Data(source="two_moons", limit=300))
    files, summary = make_extractor(Features(extractor="coordinates"), dataset)
    assert (summary["name"], summary["dimensions"], summary["official"]) == ("coordinates", 2, False)
    save_extractor(files, tmp_path)
    extractor = load_extractor(tmp_path)
    assert extractor.of_points and extractor.hash == summary["hash"] == COORDINATES.hash
    assert extractor(dataset.images).features.equal(dataset.images)
    assert headline(extractor.name) == "w2" and headline("classifier") == "fd_corrected"


@pytest.mark.parametrize("name", sorted(EXTRACTORS.keys() - {"coordinates"}))
def test_other_extractors_are_refused_on_points(name: str) -> None:
    row = Features(extractor=name, weights="x.pt2" if name == "module" else None)
    with pytest.raises(StudyError, match=r"features\.extractor") as error:
        make_extractor(row, load(Data(source="spiral", limit=100)))
    assert f"{name} takes images" in one_line(error) and "write `coordinates`" in one_line(error)


def test_coordinates_are_refused_on_images_and_take_no_file() -> None:
    with pytest.raises(StudyError, match=r"coordinates takes points.*valid: classifier, inception"):
        make_extractor(Features(extractor="coordinates"), load(Data(source="digits", limit=100)))
    with pytest.raises(ValueError, match="coordinates takes no file"):
        Features(extractor="coordinates", weights="x.pt")


def real(name: str, folder: Path, count: int) -> tuple[Reference, dict[str, Any]]:
    content, summary = make_reference(COORDINATES(load(Data(source=name, limit=count)).images), COORDINATES.hash)
    save_reference(content, folder)
    return load_reference(folder, COORDINATES.hash), summary


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, dict[str, Any]]:
    return real("mixture", tmp_path_factory.mktemp("ring"), 800)


def ring_denoiser() -> Mixture:
    """The exact denoiser of the set `mixture`."""
    angle = torch.arange(points.COMPONENTS, dtype=torch.float64) * 2 * math.pi / points.COMPONENTS
    means = points.RING_RADIUS * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(means, torch.full((len(means),), 1 / len(means), dtype=torch.float64), points.RING_STD)


def test_samples_of_the_exact_denoiser_score_the_floor(ring: tuple[Reference, dict[str, Any]]) -> None:
    """From noise to the score, as a curve is measured; too few steps score worse."""
    reference, summary = ring
    noise = SampleNoise(0, range(400)).randn((2,))
    values: dict[int, dict[str, float]] = {}
    for steps in (2, 5, 18):
        x0 = to_data(sample(ring_denoiser(), noise, Sampler(), steps).x0)
        found = measure(x0.split(150), 400, COORDINATES, reference, shown=64)
        assert found.images.equal(x0[:64]) and found.features.equal(x0)
        values[steps] = {m["metric"]: m["value"] for m in found.metrics}
        assert all(math.isfinite(m["se"]) for m in found.metrics)
    assert {"w2", "sliced_w2", "fd_corrected", "precision", "kd"} <= values[2].keys() == summary["floor"].keys()
    floor = floor_of("w2", summary, 400)
    assert floor is not None and values[18]["w2"] < floor.mean + 4 * floor.sd < values[5]["w2"] < values[2]["w2"]


def test_w2_belongs_to_coordinates_alone() -> None:
    """Two features of another extractor are no points."""
    features = drawn("spiral", 200).float()
    assert "w2" not in make_reference(EXTRACTORS["coordinates"].build(b"", {})(features), "e")[1]["floor"]


def test_the_libraries_agree_on_points(ring: tuple[Reference, dict[str, Any]]) -> None:
    reference, _ = ring
    x = drawn("mixture", 500, 3).float()
    rows = compare(x, ours(x, reference), reference)
    assert len(rows) == 6 and all(row["difference"] <= TOLERANCE for row in rows)


def test_provenance_says_points(ring: tuple[Reference, dict[str, Any]]) -> None:
    found = measured_with(COORDINATES, ring[0], 400)
    assert found["reference_split"].startswith("all 800 points") and found["rounding"] == "32-bit floats"
    assert "pot" in found["libraries"]


def test_image_sets_are_refused_in_a_study_of_points(ring: tuple[Reference, dict[str, Any]]) -> None:
    with pytest.raises(StudyError, match="a set holds images") as error:
        measure_set(ImageSet(source="x.zip"), "sets.theirs.source", (2,), 40, COORDINATES, ring[0])
    assert one_line(error).startswith("sets.theirs.source: ") and "points in 2 dimensions" in one_line(error)


def test_points_have_no_variational_bound() -> None:
    row = Model(parametrization="iddpm", noise="iddpm_uniform")
    assert bound_terms(Gaussian(0.0, 0.5), row, drawn("spiral", 10).float()) is None  # type: ignore[arg-type]


def test_solvers_are_measured_on_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "entries", lambda: {"heun": Sampler(nfe=(7,))})
    for name, value in {"BUDGETS": (7, 35), "SAMPLES": 256, "SEEDS": 2, "STEPS": (16, 32, 64), "IMAGES": 32}.items():
        monkeypatch.setattr(convergence, name, value)
    found = convergence.measure_solvers(load(Data(source="two_moons", limit=100)).images)
    assert found.settings.data.endswith("32 points")
    coarse, fine = (row.error for row in found.errors if row.oracle == "data")
    assert fine < coarse


def test_a_study_of_points_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From made-up results: the score is w2, the whole distribution is drawn, and nothing is said of images."""
    from pipeline.report.build import build
    from pipeline.report.sections.samples import samples
    from pipeline.report.study import Report
    from tests.report.conftest import write_stubs
    from tests.report.studies import EXTRACTOR, PROVENANCE, made_up_study

    monkeypatch.chdir(tmp_path)
    curves: dict[str, dict[str, Any]] = {"edm": {"model": "edm"}, "rho_3": {"model": "edm", "rho": 3}}
    monkeypatch.setitem(PROVENANCE, "extractor", "coordinates")
    paths = made_up_study(tmp_path, curves, [0, 1, 2])
    dataset = load(Data(source="checkerboard", limit=200))
    save(dataset, paths.data)
    write_json(paths.metrics("prepare", "data"), dataset.summary() | {"class_counts": {}})
    own = {"name": "coordinates", "dimensions": 2, "held_out_images": None, "held_out_accuracy": None}
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | own)
    cells = {
        f"{n}/{s}/{s}": (drawn("checkerboard", 64, s) * (2 if n == 2 else 1)).float() for n in (2, 4) for s in (0, 1, 2)
    }
    for name in curves:
        save_tensors(paths.curve(name) / "images.safetensors", cells, "images")
    with monkeypatch.context() as patch:
        write_stubs(patch)
        build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "200 real points in 2 dimensions" in text and "**The score is the 2-Wasserstein distance**" in text
    assert "### Sliced 2-Wasserstein distance by budget" in text and "### 2-Wasserstein distance by budget" not in text
    assert "The first 64 samples of the first repetition" in text and "real images" not in text
    samples(Report(paths, tmp_path))
    assert (tmp_path / "samples.png").stat().st_size > 3000


def test_a_dataset_of_points_is_not_mistaken_for_images() -> None:
    """Its hash is that of its floats: points that round to the same 8 bits differ."""
    x = drawn("spiral", 50).float()
    one, other = Dataset(x, None), Dataset(x + 1e-6, None)
    assert one.summary()["content_hash"] != other.summary()["content_hash"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features": {}}, "features.extractor: classifier takes images, and the data are points; write `coordinates`"),
        ({"sets": {"theirs": {"source": "x.zip"}}}, "sets.theirs: a set holds images, but the data spiral are points"),
        ({"data": {"source": "digits"}}, "features.extractor: coordinates takes points, and the data are images"),
    ],
)
def test_a_study_file_that_mixes_points_and_images_is_refused(changed: dict[str, Any], said: str) -> None:
    study: dict[str, Any] = {"study": {"name": "t"}, "models": {"edm": {"network": "mlp"}}}
    study |= {"data": {"source": "spiral"}, "features": {"extractor": "coordinates"}, "sets": {}}
    study["curves"] = {"edm": {"model": "edm"}}
    assert resolve(Study(**study)).features.extractor == "coordinates"
    with pytest.raises(StudyError) as error:
        resolve(Study(**study | changed))
    assert said in one_line(error)
