"""Held-out images through the stages: other ones change what is measured against them, and nothing else."""

from pathlib import Path

import pytest
import torch

from pipeline.common.files import Paths, read_json, write_json
from pipeline.data.dataset import Dataset, load_heldout, load_prepared, save
from pipeline.data.heldout import equal_sets
from pipeline.metrics.extractors.registry import load_extractor
from pipeline.metrics.reference import load_reference
from stages import Arguments, features, prepare, reference

PATHS = Paths("t")


def test_held_out_images_reach_the_reference_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(PATHS.rows / "data.json", {"source": "digits", "limit": 600, "heldout": 0.2})
    write_json(PATHS.rows / "features.json", {"epochs": 1, "width": 16})
    prepare.main(Arguments("t"))
    training, heldout = load_prepared(PATHS.data), load_heldout(PATHS.data)
    assert heldout is not None and (len(training.images), len(heldout.images)) == (480, 120)

    def measured() -> tuple[bytes, dict[str, object]]:
        for stage in (features, reference):
            stage.main(Arguments("t"))
        [extractor] = PATHS.features.glob("*.safetensors")
        return extractor.read_bytes(), read_json(PATHS.metrics("reference", "floor"))

    extractor, floor = measured()
    first = load_reference(PATHS.reference)
    assert {name: len(other.features) for name, other in first.others.items()} == {"heldout": 120, "matched": 120}
    assert read_json(PATHS.metrics("prepare", "data"))["heldout"] == floor["heldout"]["images"] == 120

    save(training, PATHS.data, Dataset(255 - heldout.images, heldout.labels, heldout.classes))
    again, other = measured()
    second = load_reference(PATHS.reference)
    assert again == extractor and second.features.equal(first.features) and second.hash != first.hash
    assert second.others["matched"].features.equal(first.others["matched"].features)
    assert not second.others["heldout"].features.equal(first.others["heldout"].features)
    assert other["floor"] == floor["floor"]
    scores = [found["heldout"]["scores"]["fd_corrected"]["value"] for found in (floor, other)]
    assert scores[1] > 2 * scores[0]  # digits in black on white are no digits


def test_the_images_that_are_compared_are_those_that_the_extractor_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other pixels of the matched part change no weight of the extractor; those of any other image do."""
    monkeypatch.chdir(tmp_path)
    write_json(PATHS.rows / "data.json", {"source": "digits", "limit": 600, "heldout": 0.2})
    write_json(PATHS.rows / "features.json", {"epochs": 1, "width": 16})
    prepare.main(Arguments("t"))
    training, heldout = load_prepared(PATHS.data), load_heldout(PATHS.data)
    assert heldout is not None
    matched = equal_sets(training, heldout)[1]
    assert matched is not None

    def extractor(places: torch.Tensor) -> bytes:
        images = training.images.clone()
        images[places] = 255 - images[places]
        save(Dataset(images, training.labels, training.classes), PATHS.data, heldout)
        features.main(Arguments("t"))
        return next(PATHS.features.glob("*.safetensors")).read_bytes()

    plain = extractor(matched[:0])
    assert read_json(PATHS.metrics("features", "extractor"))["held_out_images"] == len(matched) == 120
    seen = torch.tensor(sorted(set(range(480)) - set(matched.tolist())))
    assert extractor(matched) == plain != extractor(seen[:1])
    reference.main(Arguments("t"))
    found = load_reference(PATHS.reference).others["matched"].features
    network = load_extractor(PATHS.features)
    assert torch.allclose(found, network(load_prepared(PATHS.data).images[matched]).features, rtol=1e-4, atol=1e-6)
