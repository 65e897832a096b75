"""Extractors by name: rows, the fallback to the classifier, and folders with one line for broken files."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from pipeline.common.files import write_json
from pipeline.common.sealed import load_json, save_json
from pipeline.data.dataset import Dataset, save
from pipeline.metrics.extractors.registry import EXTRACTORS, load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from stages import Arguments
from stages.features import main
from tests.metrics.extractors.small import QUICK, cut, digits, made, no_network, one_line


@pytest.mark.parametrize("width", [2, 10, 20])
def test_widths_that_the_network_cannot_have_are_refused(width: int) -> None:
    with pytest.raises(ValidationError, match="width"):
        Features(width=width)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"extractor": "vgg"}, "classifier.*inception.*module"),
        ({"weights": "w.pth"}, "weights: classifier takes no file"),
        ({"extractor": "module"}, "weights: module needs the path of an exported program"),
        ({"extractor": "inception", "hash": "6726825d"}, "hash: belongs to the file"),
        ({"hash": "6726825d"}, "hash: belongs to the file"),
        ({"extractor": "module", "weights": "m.pt2", "hash": "6726825"}, "hash"),
        ({"extractor": "module", "weights": "m.pt2", "hash": "6726825z"}, "hash"),
        ({"extractor": "module", "weights": ""}, "weights"),
        ({"weight": "m.pt2"}, "weight"),
    ],
)
def test_rows_that_make_no_sense_are_refused(row: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        Features(**row)


def test_a_row_of_each_extractor() -> None:
    assert Features().extractor == "classifier" and set(get_args(Features.model_fields["extractor"].annotation)) == set(
        EXTRACTORS
    )
    assert Features(extractor="inception").weights is None
    assert Features(extractor="inception", weights="w.pth", hash="0" * 64).hash == "0" * 64
    assert Features(extractor="module", weights="m.pt2").weights == "m.pt2"


def another_file(url: str, to: str, hash_prefix: str, progress: bool) -> None:
    Path(to).write_bytes(b"a login page")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("download", "cause"), [(no_network, "no network"), (another_file, "sha256 does not begin with 6726825d")]
)
def test_the_classifier_stands_in_for_inception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: Callable[..., None], cause: str, cached: bool
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    if cached:
        path = tmp_path / "hub" / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half a download")
    row = QUICK.model_copy(update={"extractor": "inception"})
    files, summary = make_extractor(row, digits(40))
    plain_files, plain = make_extractor(QUICK, digits(40))
    assert cause in summary["fallback"] and len(summary["fallback"].splitlines()) == 1
    assert summary | {"fallback": None} == plain | {"wanted": "inception"}
    assert files == plain_files and not summary["official"]
    assert socket.getdefaulttimeout() is None


def test_both_causes_are_named_if_the_classifier_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    images = Dataset(torch.zeros(8, 1, 8, 6, dtype=torch.uint8), None, ())
    causes = ("inception: weights are unavailable (URLError", "no network", "images without classes must be square")
    one_line(lambda: make_extractor(QUICK.model_copy(update={"extractor": "inception"}), images), *causes)


def test_the_stage_says_what_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    paths = (arguments := Arguments("t", "")).paths
    save(digits(40), paths.data)
    for extractor, said in (("inception", 1), ("classifier", 0)):
        write_json(paths.rows / "features.json", QUICK.model_dump() | {"extractor": extractor})
        main(arguments)
        summary = json.loads(paths.metrics("features", "extractor").read_text())
        assert summary["hash"] == load_extractor(paths.features).hash and summary["wanted"] == extractor
        out, err = capsys.readouterr()
        assert re.fullmatch(r"classifier: 8 features, \d+\.\d% right on 8 images it did not train on\n", out)
        assert len(err.splitlines()) == said
        if said:
            assert err.startswith("inception: weights are unavailable (URLError: <urlopen error no network>); ")
            assert "every score is FD (classifier), not FID" in err and "dvc repro --force" in err


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


def other_numbers(path: Path) -> None:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, metadata)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "missing; `dvc repro` makes it"),
    "cut": (cut, "not an extractor"),
    "empty": (lambda path: path.write_bytes(b""), "not an extractor"),
    "text": (lambda path: path.write_bytes(b"text that is no safetensors file"), "not an extractor"),
    "foreign": (lambda path: save_file({"x": torch.zeros(2)}, path), "not an extractor"),
    "bare": (lambda path: save_file(load_file(path), path), "not an extractor"),
    "metadata of lists": (metadata_as(lambda value: "[]"), "not an extractor"),
    "empty metadata": (metadata_as(lambda value: "{}"), "not an extractor"),
    "metadata cut": (metadata_as(lambda value: "{"), "not an extractor"),
    "other keys": (metadata_as(lambda value: '{"other": 1}'), "not an extractor"),
    "another width": (metadata_as(lambda value: value.replace("16", "24")), "not an extractor"),
    "a tensor less": (without_a_tensor, "not an extractor"),
    "other numbers": (other_numbers, "not the extractor of the hash"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_broken_weights_in_a_folder_are_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    save_extractor(made()[0], tmp_path)
    path = tmp_path / "extractor.safetensors"
    HARMS[harm][0](path)
    assert one_line(lambda: load_extractor(tmp_path)).startswith(f"{path}: {HARMS[harm][1]}")


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no hash": (lambda record: {k: v for k, v in record.items() if k != "hash"}, "not the description"),
    "no file": (lambda record: {k: v for k, v in record.items() if k != "file"}, "not the description"),
    "no extractor": (lambda record: {k: v for k, v in record.items() if k != "extractor"}, "not the description"),
    "unknown extractor": (lambda record: record | {"extractor": "vgg"}, "not the description"),
    "inception": (lambda record: record | {"extractor": "inception"}, "not the weights of torch-fidelity's Inception"),
    "module": (lambda record: record | {"extractor": "module"}, "not the description"),
    "file of a number": (lambda record: record | {"file": 3}, "not the description"),
    "other hash": (lambda record: record | {"hash": "0" * 64}, "not the extractor of the hash 000"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_broken_descriptions_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    save_extractor(made()[0], tmp_path)
    path = tmp_path / "extractor.json"
    change, cause = RECORDS[case]
    save_json(path, change(load_json(path)))
    assert one_line(lambda: load_extractor(tmp_path), cause).startswith(str(tmp_path))


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_a_folder_without_a_description_is_refused_in_one_line(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    save_extractor(made()[0], tmp_path)
    harm(tmp_path / "extractor.json")
    one_line(lambda: load_extractor(tmp_path), f"{tmp_path / 'extractor.json'}: ")


def test_slow_libraries_are_left_out_until_they_are_needed() -> None:
    code = "import sys, pipeline.metrics.extractors.registry; sys.exit('torch_fidelity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
