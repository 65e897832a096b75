"""Held-out images through the stages: other ones change what is measured against them, and nothing else."""

from pathlib import Path

import pytest

from pipeline.common.files import Paths, read_json, write_json
from pipeline.data.dataset import Dataset, load_heldout, load_prepared, save
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
    assert [len(each.features) for own in first.others.values() for each in own] == [120] * 5
    assert read_json(PATHS.metrics("prepare", "data"))["heldout"] == floor["heldout"]["images"] == 120

    save(training, PATHS.data, Dataset(255 - heldout.images, heldout.labels, heldout.classes))
    again, other = measured()
    second = load_reference(PATHS.reference)
    assert again == extractor and second.features.equal(first.features) and second.hash != first.hash
    assert second.others["matched"][0].features.equal(first.others["matched"][0].features)
    assert not second.others["heldout"][0].features.equal(first.others["heldout"][0].features)
    assert other["floor"] == floor["floor"]
    scores = [found["heldout"]["scores"]["fd_corrected"]["value"] for found in (floor, other)]
    assert scores[1] > 2 * scores[0]  # digits in black on white are no digits
