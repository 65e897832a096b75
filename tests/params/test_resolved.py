"""Resolved rows: what is written can be read again, the data are checked first, and changed images change a row."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.common.errors import StudyError
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.row import Features
from pipeline.params.resolve import resolve, resolve_with_data
from pipeline.params.resolved import ReportRows, Resolved
from pipeline.params.study import parse_study, read_study
from pipeline.training.row import Model
from tests.imports import ROOT
from tests.scripts import run_module

STUDIES = [ROOT / "params.yaml", *sorted(ROOT.glob("studies/*/params.yaml"))]
EXTREMES: dict[str, Any] = {  # rows whose JSON differs most from what the study file says
    "study": {"name": "t"},
    "models": {
        "edm": {"labels": "classes", "train_seeds": [0, 2**31 - 1], "ema_halflives_images": [5], "attention": []},
        "flow": {"parametrization": "flow", "noise": "flow_uniform", "ema_ramp_up": None, "clip_norm": 1e-300},
        "again": {"base": "flow", "pairs": "reflow", "reflow_pairs": 200},
        "third": {"base": "again", "pairs": "reflow", "network": "dit", "equal": "flops"},
    },
    "curves": {
        "edm": {"model": "edm", "method": "EDM", "S_max": float("inf"), "S_churn": 1, "repetitions": "crossed"},
        "guided": {"model": "edm", "guidance": 2, "guidance_max": 5, "base": "edm"},
        "listed": {"model": "third", "discretization": "explicit", "sigmas": [80, 1e-9], "nfe": [3], "batch": "auto"},
        "fitted": {"model": "again", "discretization": "optimised", "ema_halflife_images": None},
    },
    "sets": {"other": {"source": "x.zip"}},
    "published": [{"curve": "edm", "nfe": 35, "value": 1.97, "what": "w", "source": "s"}],
    "report": {"smallest_effect": 0.2},
}


def rows_of(content: dict[str, Any]) -> Resolved:
    return resolve(parse_study(yaml.safe_dump(content, sort_keys=False), Path("params.yaml")))


@cache
def study_rows(path: Path) -> Resolved:
    return resolve(read_study(path))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_all_studies_here_resolve_and_every_row_has_its_axis(path: Path) -> None:
    written, rows = yaml.safe_load(path.read_text()), study_rows(path)
    for section, entries in (("models", rows.models), ("curves", rows.curves)):
        assert list(entries) == list(written[section])
        assert [f"{section}/{name}" for name in entries] == [n for n in rows.files() if n.startswith(f"{section}/")]
        assert all(bool(entry.axis) == bool(entry.differences) for entry in entries.values())
    assert all(entry.row.model in written["models"] for entry in rows.curves.values())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_no_study_here_has_a_choice_that_changes_nothing(path: Path) -> None:
    assert study_rows(path).warnings == ()


@pytest.mark.parametrize("path", [*STUDIES, None], ids=lambda path: path.parent.name if path else "extremes")
def test_written_rows_are_read_as_they_were(path: Path | None) -> None:
    rows = study_rows(path) if path else rows_of(EXTREMES)
    written = json.loads(json.dumps(rows.files(), allow_nan=False))
    assert Data(**written["data"]) == rows.data and Features(**written["features"]) == rows.features
    for name, model in rows.models.items():
        assert Model(**written[f"models/{name}"]) == model.row
    for name, curve in rows.curves.items():
        row = Curve(**written[f"curves/{name}"])
        assert row == curve.row.model_copy(update={"method": None}) and row.seeds
    for name, images in rows.sets.items():
        assert ImageSet(**written[f"sets/{name}"]) == images
    report = ReportRows(**written["report"])
    assert report == ReportRows(**{key: getattr(rows, key) for key in ReportRows.model_fields})
    assert report.model_dump(mode="json") == ReportRows(**report.model_dump(mode="json")).model_dump(mode="json")


def write_images(folder: Path, count: int, size: int = 8, seed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    draws = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(draws.integers(256, size=(size, size), dtype=np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 50 images in `own`, 45 in `others`, 45 larger ones in `large`, and none in `empty`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "own", 50)
    write_images(tmp_path / "others", 45, seed=1)
    write_images(tmp_path / "large", 45, size=16)
    return tmp_path


SMALL: dict[str, Any] = {
    "study": {"name": "t"},
    "data": {"source": "own"},
    "defaults": {"models": {"batch": 8}, "curves": {"samples": 40}},
    "models": {"edm": {}},
    "curves": {"edm": {"model": "edm"}},
    "sets": {"other": {"source": "others"}},
}


def with_data(**sections: Any) -> Resolved:
    text = yaml.safe_dump(SMALL | sections, sort_keys=False)
    return resolve_with_data(parse_study(text, Path("params.yaml")))[0]


def test_changed_images_change_the_rows_of_the_stages_that_read_them_alone(folder: Path) -> None:
    weights = {"extractor": "module", "weights": "network.pt2"}
    (network := folder / "network.pt2").write_bytes(b"any file will do")
    before = with_data(features=weights).files()
    assert with_data(features=weights).files() == before
    os.utime(folder / "own/001.png")
    (folder / "own/notes.txt").write_text("no image")
    assert with_data(features=weights).files() == before
    write_images(folder / "others", 1, seed=7)
    after = with_data(features=weights).files()
    assert {name for name in before if before[name] != after[name]} == {"sets/other"}
    write_images(folder / "own", 1, seed=8)
    network.write_bytes(b"another one")
    last = with_data(features=weights).files()
    assert {name for name in after if after[name] != last[name]} == {"data", "features"}


def test_built_in_data_have_no_digest(folder: Path) -> None:
    rows = with_data(data={"source": "digits"})
    assert (rows.data.content, rows.features.content) == ("", "") and rows.sets["other"].content


def test_cifar10_is_not_downloaded_to_be_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    study = parse_study((ROOT / "studies/cifar10/params.yaml").read_text(), Path("params.yaml"))
    _, summary = resolve_with_data(study)
    assert summary["count"] >= 2000 and len(summary["classes"]) == 10


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such data": ({"data": {"source": "owl/"}}, "data.source: 'owl/' is no folder"),
    "no images": ({"data": {"source": "empty"}}, "empty: no images in it"),
    "no classes": ({"models": {"edm": {"labels": "classes"}}}, "models.edm.labels: classes needs a data set with "),
    "no classes for a classifier": ({"models": {"edm": {"classifier_images": 9}}}, "models.edm.classifier_images: "),
    "a large batch": ({"models": {"edm": {}, "x": {"batch": 64}}}, "models.x.batch: 64, but the data set has 50 "),
    "too many levels": ({"models": {"edm": {"multipliers": [1] * 5}}}, "models.edm.multipliers: "),
    "patches that do not fit": ({"models": {"edm": {"network": "dit", "patch": 3}}}, "models.edm.patch: "),
    "no such set": ({"sets": {"a": {"source": "x.zip"}}}, "sets.a.source: 'x.zip' is no folder"),
    "a set of another size": ({"sets": {"a": {"source": "large"}}}, "sets.a.source: images of 1 x 16 x 16, but the "),
    "a small set": (
        {"defaults": {"curves": {"samples": 46}}, "models": {"edm": {"batch": 8}}}, "sets.other.source: 45 images, but"
    ),
    "no such weights": (
        {"features": {"extractor": "module", "weights": "x.pt2"}}, "features.weights: 'x.pt2': no such file or folder"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_do_not_go_with_their_data_are_one_line(folder: Path, case: str) -> None:
    sections, line = REFUSED[case]
    with pytest.raises(StudyError) as caught:
        with_data(**sections)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_nothing_is_written_if_a_row_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL | {"models": {"edm": {"batch": 64}}}))
    assert run_module("stages.resolve") == 1
    line = "error: models.edm.batch: 64, but the data set has 50 examples; use at most as many\n"
    assert capsys.readouterr() == ("", line)
    assert not (folder / "build").exists()


@pytest.mark.parametrize(
    ("section", "row", "place"),
    [
        ("data", {"source": "own", "content": "0"}, "data.content"),
        ("features", {"content": "0"}, "features.content"),
        ("sets", {"a": {"source": "others", "content": "0"}}, "sets.a.content"),
        ("models", {"edm": {"like": {}}}, "models.edm.like"),
        ("curves", {"edm": {"model": "edm", "seeds": [[0, 0]]}}, "curves.edm.seeds"),
        ("presets", {"p": {"data": {"content": "0"}}}, "presets.p.data.content"),
    ],
)
def test_keys_that_resolve_fills_in_are_refused(section: str, row: dict[str, Any], place: str) -> None:
    with pytest.raises(StudyError, match=f"^{place}: `resolve` fills this key in; leave it out$"):
        rows_of(SMALL | {section: row})
