"""One pass over images: independent of how they come, equal to measuring all at once, with one line for what is bad."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics import measurement
from pipeline.metrics.estimate import BlockMoments, moments
from pipeline.metrics.extractors.extractor import Extracted
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.measurement import CHUNK, measure
from pipeline.metrics.neighbours import near_duplicates, nearest_squared, neighbour_metrics
from pipeline.metrics.reference import Reference, reference_of
from pipeline.metrics.score import inception_score

COUNT = 2500  # more than two chunks
SHAPE = (1, 4, 4)


def drawn(count: int, seed: int, highest: int = 256) -> Tensor:
    return torch.randint(0, highest, (count, *SHAPE), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


class Fake:
    """Features are a random linear map of the pixels."""

    name, hash, preprocessing = "fake", "0", "none"

    def __init__(self, logits: bool = True) -> None:
        self.mix, self.logits = torch.randn(16, 9, generator=torch.Generator().manual_seed(0)) / 64, logits
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Extracted:
        self.seen.append(len(images))
        mixed = images.flatten(1).float() @ self.mix
        return Extracted(mixed[:, :5].contiguous(), mixed[:, 5:] if self.logits else None)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of(Fake()(drawn(700, 1, 200)).features)


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes a file: images are measured from memory."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("chunk", [CHUNK, 300])
def test_measures_do_not_depend_on_how_images_come(
    reference: Reference, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: sums are of the same images, whatever the batches."""
    monkeypatch.setattr(measurement, "CHUNK", chunk)
    images = drawn(COUNT, 2)
    whole = measure([images], COUNT, Fake(), reference, 16)
    for cut in (1, 7, 1000, 1024, 1025) if chunk == CHUNK else (7, 1025):
        extractor = Fake()
        found = measure(iter(images.split(cut)), COUNT, extractor, reference, 16)
        assert found.metrics == whole.metrics, cut
        assert found.images.equal(whole.images) and found.features.equal(whole.features)
        assert set(extractor.seen[:-1]) == {chunk} and sum(extractor.seen) == COUNT
    uneven = [images[:1], images[1:1], images[1:2048], images[2048:]]
    assert measure(uneven, COUNT, Fake(), reference).metrics == whole.metrics


def test_measures_are_those_of_all_features_at_once(reference: Reference) -> None:
    images, real = drawn(COUNT, 2, 190), reference.features
    every = Fake()(images)
    found = {m["metric"]: (m["value"], m["se"]) for m in measure(images.split(99), COUNT, Fake(), reference).metrics}
    assert found["fd"][0] == pytest.approx(frechet_distance(every.features, moments(real)), rel=1e-9)
    direct = neighbour_metrics(every.features[:700], real) | {
        "kd": kernel_distance(every.features, real),
        "near_duplicates": near_duplicates(
            every.features, real, float(nearest_squared(real)[:, 0].quantile(0.05, interpolation="linear"))
        ),
        "score": inception_score(every.logits),
    }
    for name, expected in direct.items():
        assert found[name] == pytest.approx(expected, rel=1e-6), name
    owner = torch.arange(COUNT) * 20 // COUNT
    left_out = np.array([frechet_distance(every.features[owner != b], moments(real)) for b in range(20)])
    assert found["fd"][1] == pytest.approx(np.sqrt(((left_out - left_out.mean()) ** 2).sum() * 19 / 20), rel=1e-6)
    assert found["fd_corrected"][0] == pytest.approx(20 * found["fd"][0] - 19 * left_out.mean(), rel=1e-6)
    assert {*found} == {*direct, "fd", "fd_corrected", "fd_infinity"}


def test_fewer_images_than_real_ones_and_no_logits(reference: Reference) -> None:
    found = measure([drawn(60, 2)], 60, Fake(logits=False), reference)
    assert "score" not in [m["metric"] for m in found.metrics]
    assert [m for m in found.metrics if m["metric"] == "recall"] == [
        {"metric": "recall", "value": e.value, "se": e.se}
        for e in [neighbour_metrics(found.features, reference.features[:60])["recall"]]
    ]


@pytest.mark.parametrize("shown", [0, 1, 16, 2000, 3000])
def test_the_first_images_are_kept(reference: Reference, shown: int) -> None:
    images = drawn(COUNT, 2)
    assert measure(images.split(600), COUNT, Fake(), reference, shown).images.equal(images[:shown])


@pytest.mark.parametrize("cut", [7, 5000])
def test_a_collapsed_generator_is_told(reference: Reference, cut: int) -> None:
    images = drawn(1, 2).repeat(COUNT, 1, 1, 1)
    with pytest.raises(StudyError, match=f"^all {COUNT} images are equal: the generator has collapsed"):
        measure(images.split(cut), COUNT, Fake(), reference)
    images[-1, 0, 0, 0] ^= 1
    assert measure(images.split(cut), COUNT, Fake(), reference).metrics


@pytest.mark.parametrize("where", [0, COUNT - 1])
def test_features_that_are_not_finite_are_told(reference: Reference, where: int) -> None:
    class Broken(Fake):
        def __call__(self, images: Tensor) -> Extracted:
            found = super().__call__(images)
            found.features[images.flatten(1).sum(1) == 0, 2] = torch.nan
            return found

    images = drawn(COUNT, 2)
    images[where] = 0
    with pytest.raises(StudyError, match="not finite") as caught:
        measure(images.split(100), COUNT, Broken(), reference)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("count", [1, 39])
def test_too_few_images_are_told(reference: Reference, count: int) -> None:
    with pytest.raises(StudyError, match=f"^{count} samples are too few for a 20-block jackknife; at least 40$"):
        measure([drawn(count, 2)], count, Fake(), reference)


def test_sums_take_the_same_memory_however_many_there_are() -> None:
    def numbers(count: int) -> int:
        blocks = BlockMoments(count, torch.zeros(5))
        for part in Fake()(drawn(count, 3)).features.split(333):
            blocks.add(part)
        return sum(value.untyped_storage().nbytes() for value in vars(blocks).values() if isinstance(value, Tensor))

    assert numbers(50) == numbers(5000)
