"""Labels of images: from class folders, from dataset.json, or none."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.files import write_json
from tests.data.small import PAIR, folder_of, listing, loaded, one_line, pixels, png


def test_class_folders_give_sorted_labels(pack: Callable) -> None:
    names = ["ant/1.png", "ant/deep/er/2.PNG", "bee/0.png", "cat/9.png"]
    dataset = loaded(pack({name: png(seed) for seed, name in enumerate(names)}))
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.images.shape == (4, 3, 4, 6) and dataset.images.is_contiguous()
    for i in range(4):
        assert np.array_equal(dataset.images[i].numpy(), pixels(i).transpose(2, 0, 1))


def test_flat_images_are_unlabelled(pack: Callable) -> None:
    dataset = loaded(pack({"b.png": png(0), "a.png": png(1)}))
    assert dataset.labels is None and dataset.classes == ()
    assert dataset.summary()["classes"] == []


@pytest.mark.parametrize("classes", [None, ["x", "y", "z"]])
def test_dataset_json_overrules_folders_in_any_order(pack: Callable, classes: list[str] | None) -> None:
    files = {f"00000/{i}.png": png(i) for i in range(3)}
    labels = [["00000/2.png", 0], ["00000/0.png", 2], ["00000/1.png", 0]]
    dataset = loaded(pack({"dataset.json": listing(labels, **({"classes": classes} if classes else {}))} | files))
    assert dataset.labels is not None and dataset.labels.tolist() == [2, 0, 0]
    assert dataset.classes == (tuple(classes) if classes else ("0", "1", "2"))
    assert list(dataset.summary()["class_counts"].values()) == [2, 0, 1]


def test_dataset_json_may_say_that_there_are_no_labels(pack: Callable) -> None:
    dataset = loaded(pack({"00000/0.png": png(0), "00001/1.png": png(1), "dataset.json": listing(None)}))
    assert dataset.labels is None


def test_labels_false_reads_no_labels_at_all(pack: Callable) -> None:
    path = pack({"a/0.png": png(0), "1.png": png(1), "dataset.json": b"{broken"})
    assert loaded(path, labels=False).labels is None


def test_labels_without_class_names_stay_below_the_number_of_images(pack: Callable) -> None:
    path = pack(PAIR | {"dataset.json": listing([["0.png", 0], ["1.png", 10**12]])})
    assert "label out of range: 1.png has 1000000000000" in one_line(lambda: loaded(path))


TOPS = {  # files below one folder, what is in it
    "classes": ({"cat/0.png": png(0), "dog/1.png": png(1)}, ("cat", "dog"), [0, 1]),
    "a list": (
        {"0/0.png": png(0), "1.png": png(1), "dataset.json": listing([["0/0.png", 1], ["1.png", 0]])},
        ("0", "1"),
        [1, 0],
    ),
}


@pytest.mark.parametrize("top", ["pets", "pets/train"])
@pytest.mark.parametrize("case", TOPS)
def test_one_folder_around_all_is_entered(
    pack: Callable, capsys: pytest.CaptureFixture[str], top: str, case: str
) -> None:
    files, classes, labels = TOPS[case]
    path = pack({f"{top}/{name}": content for name, content in files.items()} | {"README.md": b""})
    dataset = loaded(path)
    assert dataset.labels is not None and dataset.labels.tolist() == labels
    assert dataset.classes == classes
    assert f"note: {path}: labels are those of its only folder, {top}/\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["0.png", "deep/er/0.png"])
def test_one_folder_of_images_is_one_class(pack: Callable, name: str) -> None:
    dataset = loaded(pack({f"all/{name}": png(0), f"all/{name.replace('0', '1')}": png(1)}))
    assert dataset.classes == ("all",) and dataset.labels is not None and dataset.labels.tolist() == [0, 0]


def test_a_class_must_have_a_name_that_can_be_written(tmp_path: Path) -> None:
    listed = {"labels": [["0.png", 0], ["1.png", 1]], "classes": ["\ud800", "b"]}
    path = folder_of(tmp_path / "listed", PAIR | {"dataset.json": json.dumps(listed).encode()})
    assert "class '\\ud800' has letters outside UTF-8" in one_line(lambda: loaded(path))
    path = folder_of(tmp_path / "set", {os.fsdecode(b"caf\xe9/0.png"): png(0), "dog/1.png": png(1)})
    assert "class 'caf\\udce9' has letters outside UTF-8" in one_line(lambda: loaded(path))
    write_json(tmp_path / "summary.json", loaded(path, labels=False).summary())


def test_names_of_images_may_have_any_bytes(tmp_path: Path) -> None:
    names = [os.fsdecode(b"a/\xff.png"), "b/1.png"]
    assert loaded(folder_of(tmp_path, {name: png(i) for i, name in enumerate(names)})).classes == ("a", "b")


@pytest.mark.parametrize("name", ["a\ue0000\ue001b\ue002", "a\u202eb", "a\x85b", "a\x1b[31m"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_class_name_that_could_forge_a_link_or_hide_text_is_refused(pack: Callable, listed: bool, name: str) -> None:
    list_of_one = {"dataset.json": listing([["0.png", 0], ["1.png", 0]], classes=[name])}
    path = pack(PAIR | list_of_one if listed else {f"{name}/{i}.png": png(i) for i in range(2)})
    line = one_line(lambda: loaded(path))
    assert "has the invisible character U+" in line and line.isprintable()
