"""Data sets by name, from a folder or a zip: their order and limit, a glance at them, and one line for no such set."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.common.files import Paths, write_json
from pipeline.common.fingerprint import fingerprint
from pipeline.data.dataset import load_summary
from pipeline.data.listing import BUILT_IN
from pipeline.data.row import Data
from pipeline.data.sources import SOURCES, glance, load
from stages import Arguments, prepare
from tests.data.small import COUNT, FINE, PAIR, SIDE, encoded, folder_of, images, loaded, one_line, pixels, png, zip_of
from tests.scripts import run_module

REPOSITORY = Path(__file__).resolve().parents[2]


def test_digits_are_what_scikit_learn_ships() -> None:
    from sklearn.datasets import load_digits

    digits = load(Data())
    summary = digits.summary()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert digits.labels is not None and digits.labels.dtype == torch.int64
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.classes == tuple("0123456789")
    assert summary["class_counts"]["0"] == 178 and sum(summary["class_counts"].values()) == 1797
    source = load_digits()
    assert digits.labels.tolist() == source.target.tolist()
    assert np.array_equal(np.rint(digits.images[:, 0].numpy() * (16 / 255)), source.images)


def test_names_of_built_in_sources_are_known_without_loading_them() -> None:
    assert set(BUILT_IN) == set(SOURCES)


def test_limit_takes_a_prefix_and_labels_false_drops_the_classes() -> None:
    whole, part, bare = load(Data()), load(Data(limit=20)), load(Data(limit=20, labels=False))
    assert whole.labels is not None and part.labels is not None
    assert torch.equal(part.images, whole.images[:20]) and torch.equal(part.labels, whole.labels[:20])
    assert torch.equal(bare.images, part.images) and bare.labels is None and bare.classes == ()
    assert bare.summary()["class_counts"] == {}
    assert len(load(Data(limit=10**6)).images) == 1797


def test_a_folder_is_read_sorted_and_a_zip_in_its_own_order(tmp_path: Path) -> None:
    files = {name: png(seed) for seed, name in enumerate(["b/1.png", "a/1.png", "b/0.png"])}
    folder, archive = loaded(folder_of(tmp_path / "set", files)), loaded(zip_of(tmp_path / "set.zip", files))
    assert folder.labels is not None and folder.labels.tolist() == [0, 1, 1]
    assert archive.labels is not None and archive.labels.tolist() == [1, 0, 1]
    assert torch.equal(folder.images, archive.images[[1, 2, 0]])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_first_images_tell_what_all_would(tmp_path: Path, kind: str) -> None:
    images(source := tmp_path / ".data")
    for folder in (source / "a", source / "__MACOSX/a", source / ".thumbnails"):  # which no data set has
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "._0.png").write_bytes(b"hidden")
    if kind == "zip":
        with zipfile.ZipFile(archive := tmp_path / "data.zip", "w") as file:
            for path in sorted(source.rglob("*.png")):
                file.write(path, path.relative_to(source))
        source = archive
    found = glance(Data(source=str(source)))
    assert (found["count"], found["channels"], found["height"], found["width"]) == (COUNT, 1, SIDE, SIDE)
    assert found["classes"] == ["a", "b"]
    assert glance(Data(source=str(source), limit=50))["count"] == 50


def test_a_built_in_data_set_needs_no_folder() -> None:
    found = glance(Data(source="two_moons", limit=300))
    assert (found["count"], found["dimensions"]) == (300, 2)


def test_a_limit_below_two_and_unknown_keys_are_refused() -> None:
    for wrong in ({"limit": 1}, {"limit": 0}, {"source": ""}, {"sauce": "digits"}, {"labels": "perhaps"}):
        with pytest.raises(ValidationError):
            Data(**wrong)


@pytest.mark.parametrize("source", ["digts", "no/such/folder", "no/such.zip"])
def test_a_source_that_does_not_exist_names_the_choices(source: str) -> None:
    message = one_line(lambda: load(Data(source=source)))
    assert (
        repr(source) in message and "no folder, no .zip file" in message and "valid: checkerboard, cifar10, " in message
    )
    assert ("did you mean 'digits'?" in message) == (source == "digts")


@pytest.mark.parametrize("source", ["~no_such_user/set", "~no\0user/set"])
def test_a_home_that_does_not_exist_is_one_line(source: str) -> None:
    assert f"data.source: {source!r} names no home folder" in one_line(lambda: load(Data(source=source)))


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"x")
    assert "set.tar' is no folder, no .zip file" in one_line(lambda: loaded(tmp_path / "set.tar"))


def test_a_zip_that_is_broken_is_refused(tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "set.zip", PAIR).read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        (tmp_path / "set.zip").write_bytes(content)
        message = one_line(lambda: loaded(tmp_path / "set.zip"))
        assert message.startswith(f"{tmp_path / 'set.zip'}: not a readable zip archive")


def test_a_zip_member_whose_checksum_fails_is_refused(tmp_path: Path) -> None:
    raw = encoded(pixels(1), "BMP")  # has no checksum of its own
    path = zip_of(tmp_path / "set.zip", FINE | {"1.bmp": raw})
    path.write_bytes(path.read_bytes().replace(raw, raw[:-1] + bytes([raw[-1] ^ 1])))
    message = one_line(lambda: loaded(path))
    assert f"{path}/1.bmp: cannot be read" in message and "CRC" in message


def test_nothing_is_extracted_from_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    zip_of(Path("set.zip"), {"a/0.png": png(0), "a/1.png": png(1)})
    assert len(loaded(Path("set.zip")).images) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "set.zip"]


def test_the_stage_prepares_and_a_bad_source_leaves_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tmp_path / "build/small/rows/data.json"
    row.parent.mkdir(parents=True)
    row.write_text(json.dumps({"source": "digits", "limit": 50, "labels": True}))
    monkeypatch.chdir(tmp_path)
    prepare.main(Arguments("small", ""))
    assert capsys.readouterr().out.startswith("digits: 50 images of 1 x 8 x 8, 10 classes, sigma_data 0.")
    summary = load_summary(tmp_path / "build/small/data")
    assert json.loads((tmp_path / "reports/small/metrics/prepare/data.json").read_text()) == summary
    assert summary == load(Data(limit=50)).summary()

    row.write_text(json.dumps({"source": "nowhere", "limit": None, "labels": True}))
    write_json(Paths("small").code("prepare"), fingerprint("stages.prepare"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, printed = run_module("stages.prepare", "--name", "small"), capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert printed.err.startswith("error: data.source: 'nowhere'") and len(printed.err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_importing_the_modules_is_light_and_asks_for_nothing(tmp_path: Path) -> None:
    """In a process of its own, in which the data sets of others are imported, too, but no network may be used."""
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import pipeline.data, pipeline.data.cifar10\n"
        "print([m for m in ('sklearn', 'pandas', 'matplotlib', 'pickle5') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert list(tmp_path.iterdir()) == []
