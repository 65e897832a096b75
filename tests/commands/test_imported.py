"""`verify` and `accept` with models that import a network by a relative path, and with their students."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import stages.autoencode
import stages.prepare
import stages.resolve
import stages.train
from pipeline.commands.accept import Sample, _absolute_source
from pipeline.commands.remake import Place, _narrowed
from pipeline.common.files import Paths, read_json
from pipeline.common.scalars import dump
from pipeline.diffusion.denoiser import new_denoiser, save_denoiser
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.training.row import Model
from stages import Arguments

FILE = "networks/released.safetensors"
STUDY: dict[str, Any] = {
    "study": {"name": "t"},
    "data": {"source": "digits", "limit": 100},
    "models": {
        "released": {"import": FILE},
        "student": {
            "base": "released",
            "objective": "consistency_distillation",
            "images": 128,
            "batch": 64,
            "sigma_data": 0.5,
        },
    },
    "curves": {"student": {"model": "student", "nfe": [1]}},
    "sets": {},
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A study that has trained its models, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
    row = Model(channels=8, multipliers=(1,), blocks=1)
    Path(FILE).parent.mkdir()
    save_denoiser(new_denoiser(row.spec(0.5, (1, 8, 8)), 0), Path(FILE))
    Path("params.yaml").write_text(dump(STUDY))
    for stage in (stages.resolve, stages.prepare, stages.autoencode):
        stage.main(Arguments("t", ""))
    for name in STUDY["models"]:
        stages.train.main(Arguments("t", name))
    return Paths("t")


def test_imports_are_named_by_absolute_paths(study: Paths) -> None:
    path = str(Path(FILE).resolve())
    models = _narrowed(resolve(read_study(Path("params.yaml"))), [Place("student", 1, 0, 0)]).models
    student = models["student"].row
    assert student.teacher and models["released"].row.import_ == student.teacher.import_ == path
    _absolute_source(study.rows)
    rows = [read_json(study.row("models", name)) for name in ("released", "student")]
    assert rows[0]["import"] == rows[1]["teacher"]["import"] == path


def test_accept_compares_imports_as_a_whole_and_students_with_their_only_teacher(
    study: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale: Any = dict.fromkeys(["train@released", "train@student"], SimpleNamespace())
    monkeypatch.setattr(Sample, "_lock_hash", lambda self, model: "")
    found = Sample(study, stale).compare()["train"]
    assert found["whole"] == "student, seed 0; released, seed 0"
    assert [list(own["seeds"]) for own in found["first_steps"].values()] == [["0", "1", "2"]]
