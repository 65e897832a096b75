"""Files are written whole or not at all, and hashes tell contents apart."""

import json
import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash, read_json, whole_folder, write_bytes, write_csv, write_json, write_text


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file"
    write_bytes(path, b"old and longer")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        patch.setattr(os, function, disk_full)
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": object()}])
def test_what_is_no_json_leaves_the_old_file_alone(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "file", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == {"old": 1}


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é\n": "$(x)"}, "tiny": 5e-324, "third": 1 / 3}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    assert list(read_json(tmp_path / "file")) == list(value)


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (Path.unlink, "missing; `dvc repro` makes it"),
        (lambda path: path.write_bytes(b""), "not valid JSON"),
        (lambda path: path.write_bytes(b'{"a": [1,\n'), "not valid JSON"),
        (lambda path: path.write_bytes(b'"\xff"'), "not valid JSON"),
    ],
)
def test_bad_json_is_one_line_that_says_where_and_what(tmp_path: Path, harm: Callable, cause: str) -> None:
    path = tmp_path / "file"
    write_json(path, {"a": 1})
    harm(path)
    with pytest.raises(StudyError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {cause}") and len(message.splitlines()) == 1


def test_csv_keeps_the_columns_order_and_quotes(tmp_path: Path) -> None:
    write_csv(tmp_path / "file", ["b", "a"], [{"a": 1, "b": "x,y"}, {"a": 2.5, "b": ""}])
    assert (tmp_path / "file").read_bytes() == b'b,a\n"x,y",1\n,2.5\n'
    with pytest.raises(ValueError):
        write_csv(tmp_path / "file", ["a"], [{"a": 1, "stray": 2}])
    assert (tmp_path / "file").read_bytes() == b'b,a\n"x,y",1\n,2.5\n'


def test_hashes_tell_parts_apart(tmp_path: Path) -> None:
    parts: list[tuple] = [
        (),
        ("",),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (["ab", "c"],),
        (b"ab", b"c"),
        (b"a", b"bc"),
        (1,),
        ("1",),
        (1.5,),
        (None,),
        (True,),
        ({"a": 1},),
        ({"a": 2},),
    ]
    for one, other in combinations(parts, 2):
        assert content_hash(*one) != content_hash(*other), (one, other)


def test_hashes_follow_content_and_not_its_place_or_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text(tmp_path / name, "same")
    assert (
        content_hash((tmp_path / "a").read_bytes) == content_hash((tmp_path / "b").read_bytes) == content_hash(b"same")
    )
    assert content_hash({"a": 1, "b": 2}) == content_hash(json.loads('{"b": 2, "a": 1}'))
    with pytest.raises(ValueError):
        content_hash(float("nan"))


def filled(folder: Path, name: str) -> None:
    with whole_folder(folder) as partial:
        write_text(partial / name, name)


def test_a_whole_folder_takes_the_old_ones_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        filled(tmp_path / "parent/folder", name)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "parent", "parent/folder", "parent/folder/b",
    ]  # fmt: skip


def test_a_failure_while_filling_a_folder_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "folder", "old")
    with pytest.raises(StudyError), whole_folder(tmp_path / "folder") as partial:
        write_text(partial / "new", "half")
        raise StudyError("wrong")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["old"]

    replace = os.replace

    def fails_once_the_new_one_is_due(source: Path, target: Path) -> None:
        if source.name == ".folder.partial":
            raise OSError("cannot be moved")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cannot be moved"):
        patch.setattr(os, "replace", fails_once_the_new_one_is_due)
        filled(tmp_path / "folder", "new")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["old"]


def test_leftovers_of_a_killed_run_are_no_part_of_a_folder(tmp_path: Path) -> None:
    for leftover in (".folder.partial", ".folder.old"):
        write_text(tmp_path / leftover / "stray", "")
    filled(tmp_path / "folder", "a")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == ["a"]
