"""Extractors: training, hashes and files; and the reference made of their features: rows, floor, files."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.data import Data, Dataset, load, to_range
from pipeline.errors import StudyError
from pipeline.features import Classifier, load_extractor, pretext, save_extractor, train_extractor
from pipeline.files import content_hash
from pipeline.metrics import Moments, frechet_distance, frechet_with_error, moments
from pipeline.reference import load_reference, make_reference, save_reference

ROW = Classifier(width=16, epochs=2)


@cache
def digits(limit: int | None = 300) -> Dataset:
    return load(Data(limit=limit))


@cache
def trained() -> tuple[bytes, dict[str, object]]:
    return train_extractor(ROW, digits())


@cache
def features(n: int, d: int = 6, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * torch.linspace(0.5, 2, d)


def test_training_depends_on_its_arguments_alone() -> None:
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    (again, summary), (first, first_summary) = train_extractor(ROW, digits()), trained()
    assert summary == first_summary
    tensors = safetensors.torch.load(first)
    for name, value in safetensors.torch.load(again).items():
        assert torch.equal(value, tensors[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_files_have_the_same_bytes_every_time() -> None:
    """DVC would otherwise rerun whatever depends on them."""
    row = Classifier(width=8, epochs=1)
    assert len({train_extractor(row, digits(40))[0] for _ in range(6)}) == 1
    assert len({make_reference(features(40))[0] for _ in range(6)}) == 1


def test_summary_and_learning() -> None:
    """Two epochs on all digits beat chance, 0.1, by far, on images that were held out."""
    _, summary = train_extractor(ROW.model_copy(update={"learning_rate": 0.01}), digits(None))
    accuracy = summary.pop("held_out_accuracy")
    assert summary == {"name": "classifier", "dimensions": 16, "held_out_images": 1797 // 5}
    assert 0.5 < accuracy < 1


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    content, _ = trained()
    save_extractor(content, tmp_path / "a")
    save_extractor(content, tmp_path / "b")
    first, second = load_extractor(tmp_path / "a"), load_extractor(tmp_path / "b")
    assert (first.name, first.hash) == ("classifier", second.hash)
    assert first.hash == content_hash(content) and not first.network.training
    found = first(digits().images)
    assert found.shape == (300, 16) and found.dtype == torch.float32 and found.isfinite().all()
    assert torch.equal(found, second(digits().images))
    assert float(found.std(0).min()) > 0


def test_another_seed_has_another_hash(tmp_path: Path) -> None:
    save_extractor(trained()[0], tmp_path / "a")
    save_extractor(train_extractor(ROW.model_copy(update={"seed": 1}), digits())[0], tmp_path / "b")
    assert load_extractor(tmp_path / "a").hash != load_extractor(tmp_path / "b").hash


@pytest.mark.parametrize("size", [1, 7, 100, 257])
def test_features_do_not_depend_on_the_batches(tmp_path: Path, size: int) -> None:
    save_extractor(trained()[0], tmp_path)
    extractor = load_extractor(tmp_path)
    parts = torch.cat([extractor(part) for part in digits().images.split(size)])
    torch.testing.assert_close(parts, extractor(digits().images), rtol=1e-4, atol=1e-6)


def test_pretext_of_labelled_images_is_their_classes() -> None:
    name, images, labels, classes = pretext(digits())
    assert (name, classes) == ("classifier", 10)
    assert torch.equal(images, digits().images) and torch.equal(labels, digits().labels)


@pytest.mark.parametrize(
    "dataset", [Dataset(digits().images, None), Dataset(digits().images, digits().labels * 0, ("a",))]
)
def test_pretext_of_other_images_is_how_they_are_turned(dataset: Dataset) -> None:
    name, images, labels, classes = pretext(dataset)
    assert (name, classes, len(images)) == ("rotation classifier", 4, 1200)
    for i in (0, 299):
        for k in range(4):
            assert labels[300 * k + i] == k
            assert images[300 * k + i, 0].numpy().tolist() == torch.rot90(dataset.images[i, 0], k).tolist()


def test_all_turns_of_a_held_out_image_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[bool, set[bytes]] = {True: set(), False: set()}  # images as their least turn, by whether they trained

    def spy(images: Tensor) -> Tensor:
        turns = [[image.rot90(k, (1, 2)).numpy().tobytes() for k in range(4)] for image in images]
        used[torch.is_grad_enabled()].update(map(min, turns))
        return to_range(images)

    monkeypatch.setattr("pipeline.features.to_range", spy)
    content, summary = train_extractor(ROW, Dataset(digits().images[:100], None))
    assert (len(used[True]), len(used[False])) == (80, 20) and not used[True] & used[False]
    assert (summary["name"], summary["held_out_images"]) == ("rotation classifier", 4 * 20)
    save_extractor(content, tmp_path)
    assert load_extractor(tmp_path).name == "rotation classifier"


def test_unlabelled_images_that_are_not_square_are_refused() -> None:
    wide = Dataset(torch.randint(0, 256, (50, 1, 8, 12), dtype=torch.uint8), None)
    with pytest.raises(StudyError, match="square"):
        train_extractor(ROW, wide)
    labelled = Dataset(wide.images, torch.arange(50) % 2, ("a", "b"))
    assert train_extractor(ROW.model_copy(update={"epochs": 1}), labelled)[1]["name"] == "classifier"


@pytest.mark.parametrize("width", [2, 10, 20])
def test_widths_that_the_network_cannot_have_are_refused(width: int) -> None:
    with pytest.raises(ValidationError, match="width"):
        Classifier(width=width)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def metadata_as(change: Callable[[str], str]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file(load_file(path), path, {key: change(value) for key, value in metadata.items()})

    return harm


def without_a_tensor(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(dict(sorted(load_file(path).items())[1:]), path, metadata)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "missing"),
    "cut": (cut, "not a"),
    "empty": (lambda path: path.write_bytes(b""), "not a"),
    "text": (lambda path: path.write_bytes(b"text that is no safetensors file"), "not a"),
    "foreign": (lambda path: save_file({"x": torch.zeros(2)}, path), "not a"),
    "bare": (lambda path: save_file(load_file(path), path), "not a"),
    "metadata of lists": (metadata_as(lambda value: "[]"), "not a"),
    "empty metadata": (metadata_as(lambda value: "{}"), "not a"),
    "metadata cut": (metadata_as(lambda value: "{"), "not a"),
    "other keys": (metadata_as(lambda value: '{"other": 1}'), "not a"),
    "a tensor less": (without_a_tensor, "not a"),
}


def refused(call: Callable[[], object], path: Path, cause: str) -> None:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{path}: {cause}") and len(message.splitlines()) == 1, message


@pytest.mark.parametrize("harm", HARMS)
def test_broken_extractors_are_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    save_extractor(trained()[0], tmp_path)
    HARMS[harm][0](tmp_path / "extractor.safetensors")
    refused(lambda: load_extractor(tmp_path), tmp_path / "extractor.safetensors", HARMS[harm][1])


@pytest.mark.parametrize("load_from", [load_extractor, load_reference])
def test_no_piece_of_metadata_may_be_missing(tmp_path: Path, load_from: Callable[[Path], object]) -> None:
    save_extractor(trained()[0], tmp_path)
    save_reference(make_reference(features(80))[0], tmp_path)
    (path,) = tmp_path.glob("extractor.*" if load_from is load_extractor else "reference.*")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    for key in metadata:
        save_file(load_file(path), path, {k: v for k, v in metadata.items() if k != key} or None)
        refused(lambda: load_from(tmp_path), path, "not a")


def test_an_extractor_of_another_width_is_refused(tmp_path: Path) -> None:
    save_extractor(trained()[0], tmp_path)
    path = tmp_path / "extractor.safetensors"
    metadata_as(lambda value: value.replace("16", "24"))(path)
    refused(lambda: load_extractor(tmp_path), path, "not an extractor")


def test_reference_round_trip_and_floor(tmp_path: Path) -> None:
    real = features(301)
    content, summary = make_reference(real)
    assert make_reference(real, seed=1)[0] != content
    save_reference(content, tmp_path)
    reference = load_reference(tmp_path)
    assert reference.hash == content_hash(content)
    assert torch.equal(reference.moments.mean, moments(real).mean)
    assert torch.equal(reference.moments.covariance, moments(real).covariance)
    assert (summary["images"], summary["floor_images"], reference.split_images) == (301, 150, 150)
    floor = torch.tensor(reference.floor, dtype=torch.float64)
    assert len(floor) == len(reference.splits) == 10 and (floor > 0).all() and len(floor.unique()) == 10
    assert (summary["floor"], summary["floor_sd"]) == pytest.approx((float(floor.mean()), float(floor.std())))


def test_the_floor_is_the_distance_between_disjoint_halves(tmp_path: Path) -> None:
    """The other half's moments follow from the whole's and this half's: sums and sums of squares add up."""
    real = features(200)
    save_reference(make_reference(real)[0], tmp_path)
    reference = load_reference(tmp_path)
    second = lambda m, n: m.covariance * (n - 1) / n + torch.outer(m.mean, m.mean)  # noqa: E731
    for half, distance in zip(reference.splits, reference.floor, strict=True):
        mean = 2 * reference.moments.mean - half.mean
        square = 2 * second(reference.moments, 200) - second(half, 100)
        other = Moments(mean, (square - torch.outer(mean, mean)) * 100 / 99)
        assert frechet_distance(other, half) == pytest.approx(distance, rel=1e-6)


def test_the_floor_takes_no_more_than_its_images() -> None:
    assert make_reference(features(2100, 2))[1]["floor_images"] == 1000


def test_measured_rows(tmp_path: Path) -> None:
    real = features(400)
    save_reference(make_reference(real)[0], tmp_path)
    reference = load_reference(tmp_path)
    generated = features(500, shift=0.3)
    whole, equal = reference.measure(generated)
    assert (whole["metric"], equal["metric"]) == ("fd", "fd_equal_counts")
    assert all(row.keys() == {"metric", "value", "se"} and row["se"] > 0 for row in (whole, equal))
    assert whole["value"] == pytest.approx(frechet_distance(generated, real), rel=1e-9)
    mean = lambda part: math.fsum(frechet_distance(part, half) for half in reference.splits) / 10  # noqa: E731
    value, error = frechet_with_error(generated[:200], mean)
    assert (equal["value"], equal["se"]) == pytest.approx((value, error), rel=1e-9)
    (alone,) = reference.measure(generated[:199])
    assert alone["metric"] == "fd" and reference.measure(generated[:200])[1] == equal


def test_real_images_measure_nothing_and_equal_counts_the_floor(tmp_path: Path) -> None:
    save_reference(make_reference(features(400))[0], tmp_path)
    reference = load_reference(tmp_path)
    assert reference.measure(features(400))[0]["value"] == pytest.approx(0, abs=1e-9)
    fresh = [reference.measure(features(400 + n)[:200])[1]["value"] for n in range(1, 9)]
    floor = sum(reference.floor) / 10
    assert 0.5 * floor < sum(fresh) / 8 < 2 * floor


def test_too_few_images_for_a_reference_or_a_measurement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="at least 4"):
        make_reference(features(3))
    save_reference(make_reference(features(80))[0], tmp_path)
    with pytest.raises(StudyError, match="too few"):
        load_reference(tmp_path).measure(features(30))


@pytest.mark.parametrize("harm", HARMS)
def test_broken_references_are_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    save_reference(make_reference(features(80))[0], tmp_path)
    HARMS[harm][0](tmp_path / "reference.safetensors")
    refused(lambda: load_reference(tmp_path), tmp_path / "reference.safetensors", HARMS[harm][1])
