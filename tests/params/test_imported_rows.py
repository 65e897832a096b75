"""Rows of models that import a released network."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.imports.read import read_network
from pipeline.diffusion.spec import Spec
from pipeline.training.checks import check_models
from pipeline.training.loop import train_seeds
from pipeline.training.row import Model
from pipeline.training.trained import save_models
from tests.diffusion.test_imports import CASES, SIDE
from tests.params.minimal import refusal, resolved

DATA = {"sigma_data": 0.6, "channels": 2, "height": SIDE, "width": SIDE, "class_counts": {"a": 4, "b": 5, "c": 7}}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where .cache is
    path = tmp_path / "a place" / "edm.pkl"
    path.parent.mkdir()
    path.write_bytes(CASES["ddpmpp labels"].content())
    return path


def sections(file: Path, rows: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A study with an imported network and a trained one."""
    return {
        "models": {"released": {"import": str(file), **keys}, "edm": {}, **(rows or {})},
        "curves": {"x": {"model": "released"}},
        "defaults": {"models": {"images": 512, "channels": 8}},
        "data": {"source": "digits", "labels": True},
    }


def row_of(tmp_path: Path, file: Path, name: str = "released", **rows: Any) -> Model:
    return Model(**resolved(tmp_path, **sections(file, rows))[f"models/{name}"])


def test_resolve_fills_in_what_the_file_says(file: Path, tmp_path: Path) -> None:
    row = row_of(tmp_path, file)
    assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row.parametrization, row.sigma_data, row.labels, row.train_seeds) == ("edm", 0.5, "classes", (0,))
    assert row.seen_images == row.total_images == 0 and row.rounds == ()
    assert row.spec(0.6, (2, SIDE, SIDE), (4, 5, 7)) == Spec(
        **vars(CASES["ddpmpp labels"].spec) | {"classes": (4, 5, 7)}
    )


def test_rows_without_an_import_keep_their_bytes(file: Path, tmp_path: Path) -> None:
    keys = {"import", "sha256", "released"}
    files = resolved(tmp_path, **sections(file))
    assert keys <= files["models/released"].keys() and not keys & files["models/edm"].keys()


def test_reports_have_the_last_part_of_the_path_only(file: Path, tmp_path: Path) -> None:
    student = {"base": "released", "objective": "consistency_distillation", "labels": "classes", "sigma_data": 0.5}
    report = resolved(tmp_path, **sections(file, {"student": student}))["report"]
    assert "a place" not in str(report) and report["models"]["released"]["row"]["import"] == "edm.pkl"
    assert report["models"]["student"]["row"]["teacher"]["import"] == "edm.pkl"


def test_the_first_trained_model_gets_the_proposal(file: Path, tmp_path: Path) -> None:
    assert resolved(tmp_path, **sections(file))["propose"]["model"] == "edm"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"images": 5, "network": "dit"},
            "models.released: import: the network is trained already, and network, images would train it; leave them",
        ),
        ({"base": "edm", "P_std": 1.0}, "models.released: import: the network is trained already, and P_std would"),
        ({"train_seeds": [0, 1]}, "models.released: train_seeds: an imported network has one, 0; leave it out"),
        ({"sha256": "ab"}, "models.released.sha256: "),
        ({"released": "{}"}, "models.released.released: `resolve` fills this key in; leave it out"),
    ],
)
def test_refuses_keys_beside_an_import(keys: dict[str, Any], line: str, file: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path, **sections(file, **keys)).startswith(line)


def test_refuses_another_hash_and_a_missing_file(file: Path, tmp_path: Path) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    line = refusal(tmp_path, **sections(file, sha256="ab" * 32))
    assert f"its sha256 is {found}, not {'ab' * 32}" in line and line.startswith("models.released.import: ")
    file.rename(file.with_name("other.pkl"))
    assert (
        refusal(tmp_path, **sections(file))
        == f"models.released.import: {file.relative_to(tmp_path)}: no such file or folder"
    )


def test_refuses_a_hash_without_an_import(tmp_path: Path) -> None:
    line = refusal(tmp_path, models={"edm": {"sha256": "ab" * 32}})
    assert line == "models.edm: sha256: is that of an imported network; add import, or leave it out"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": 16, "width": 16}, "the network is for data of 2 x 8 x 8, and these are 2 x 16 x 16"),
        ({"class_counts": {"a": 4, "b": 5}}, "the network has 3 classes, and the data have 2"),
    ],
)
def test_refuses_data_of_another_shape(changes: dict[str, Any], reason: str, file: Path, tmp_path: Path) -> None:
    data = DATA | changes
    images = torch.empty(16, 2, data["height"], data["width"], device="meta")
    with pytest.raises(StudyError, match=f"^models.released.import: {reason}"):
        check_models({"released": row_of(tmp_path, file)}, data, images, torch.empty(16, device="meta"))


def test_a_training_is_the_file_itself(file: Path, tmp_path: Path) -> None:
    """The stage's outputs exist, and nothing is trained."""
    row = row_of(tmp_path, file)
    images = torch.zeros(16, 2, SIDE, SIDE, dtype=torch.uint8)
    [trained] = train_seeds(row, DATA, images, lambda count: None, labels=torch.arange(16) % 3)
    summary = save_models([trained], tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["seed_0.safetensors"]
    assert summary["network"] == "edm_ddpmpp" and summary["images"] == 0 and summary["final_loss"] is None
    expected = read_network(file).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trained.denoiser.state_dict().items())
    file.write_bytes(CASES["ddpmpp edm"].content())
    with pytest.raises(StudyError, match=f"not {row.sha256}"):
        train_seeds(row, DATA, images, lambda count: None)


STUDENT = {
    "base": "released",
    "objective": "consistency_distillation",
    "labels": "classes",
    "sigma_data": 0.5,
    "train_seeds": [0, 1],
    "images": 8,
    "batch": 4,
}


def test_a_student_starts_from_the_imported_network(file: Path, tmp_path: Path) -> None:
    """In its own parametrization; each seed has the same teacher. The study's keys of a network do not apply."""
    row = row_of(tmp_path, file, "student", student=STUDENT)
    assert row.teacher and row.teacher.import_ == str(file) and row.import_ is None
    spec = row.spec(0.6, (2, SIDE, SIDE), (4, 5, 7))
    assert (spec.network, spec.parametrization, spec.channels) == ("edm_ddpmpp", "consistency", 16)
    images = torch.zeros(16, 2, SIDE, SIDE, dtype=torch.uint8)
    first, second = train_seeds(row, DATA, images, lambda count: None, workers=1, labels=torch.arange(16) % 3)
    weights, others = first.denoiser.state_dict(), second.denoiser.state_dict()
    assert weights.keys() == read_network(file).state_dict().keys()
    assert not all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_student_has_no_network_of_its_own(file: Path, tmp_path: Path) -> None:
    line = refusal(tmp_path, **sections(file, {"student": STUDENT | {"channels": 16}}))
    assert line == "models.student.channels: the network is that of base released; leave it out"
    line = refusal(tmp_path, **sections(file, {"student": STUDENT | {"labels": "none"}}))
    assert line.startswith(
        "models.student.labels: the training starts from the weights of base released, which has clas"
    )


def test_curves_are_not_guided_by_an_imported_network_without_labels(file: Path, tmp_path: Path) -> None:
    asked = sections(file) | {"curves": {"x": {"model": "released", "guidance": 2.0}}}
    assert "needs model released without labels" in refusal(tmp_path, **asked)


def test_differences_are_those_that_are_known(file: Path, tmp_path: Path) -> None:
    """The training of an imported network is unknown, and a row that is trained imports nothing."""
    report = resolved(tmp_path, **sections(file, {"student": STUDENT}))["report"]["models"]
    assert report["edm"]["base"] == report["student"]["base"] == "released"
    assert "sha256" not in report["edm"]["differences"] | report["student"]["differences"]
    rows = sections(file)
    rows["models"] = dict(reversed(rows["models"].items()))
    found = resolved(tmp_path, **rows)["report"]["models"]["released"]["differences"]
    assert found == {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "labels": "classes"}
