"""Sealed files of JSON and of tensors: what is written comes back, and every changed bit is noticed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import StudyError
from pipeline.common.sealed import Broken, Missing, cached_json, kept, load_json, reading, save_json
from pipeline.common.tensors import encode, load_tensors, read_sealed, save_tensors

VALUE = {"name": "Größe \udcff", "values": [1.5, None], "none": {}}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([True]), "empty": torch.empty(0, 2)}


def damages(content: bytes) -> Iterator[bytes]:
    for place in range(0, 8 * len(content), 3):  # in every byte
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)
    yield from (b"", content[:-1], content[:40], content + b" ")


@pytest.mark.parametrize(
    ("save", "load"),
    [
        (lambda path: save_json(path, VALUE), load_json),
        (lambda path: save_tensors(path, TENSORS, "kind", VALUE), lambda path: load_tensors(path, "kind")),
    ],
    ids=["json", "tensors"],
)
def test_a_changed_bit_anywhere_is_noticed(
    tmp_path: Path, save: Callable[[Path], None], load: Callable[[Path], object]
) -> None:
    save(path := tmp_path / "file")
    assert load(path)
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(Broken, match=r"file: not as this study wrote it \(.*\); delete it and run `make repro`$"):
            load(path)


def test_sealed_files_are_json_and_safetensors_for_other_readers(tmp_path: Path) -> None:
    save_json(tmp_path / "json", VALUE)
    assert load_json(tmp_path / "json") == VALUE
    found = json.loads((tmp_path / "json").read_text())
    assert len(found.pop("sha256")) == 64 and found == VALUE
    save_tensors(tmp_path / "tensors", TENSORS, "kind", VALUE)
    tensors, record = load_tensors(tmp_path / "tensors", "kind")
    assert record == VALUE
    for read in (tensors, load_file(tmp_path / "tensors")):
        assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert read_sealed(tmp_path / "tensors") == encode(TENSORS, "kind", VALUE)
    with pytest.raises(Broken, match="KeyError"):
        load_tensors(tmp_path / "tensors", "another kind")


def test_an_error_of_a_reader_names_the_file_once(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"/a: missing"), reading(tmp_path / "b"):
        load_json(tmp_path / "a")
    with pytest.raises(Broken, match=r"^b: not as this study wrote it \(no size\); delete"), reading(Path("b")):
        raise StudyError("no size")


def test_a_broken_file_of_the_cache_is_made_again_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "size"
    assert kept(load_json, path) is None and not capsys.readouterr().err
    assert cached_json(path, lambda: {"n": 1}) == cached_json(path, lambda: {"n": 2}) == {"n": 1}
    path.write_text(path.read_text().replace("1}", "3}").replace("1\n", "3\n"))
    assert cached_json(path, lambda: {"n": 4}) == {"n": 4}
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: not as this study wrote it (its sha256 is not that of its content); it is made again"
    ]
