"""The classifier: a repeatable training, features of the network, and its task with and without classes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as from_safetensors
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.dataset import Dataset, to_range
from pipeline.metrics.extractors import classifier
from pipeline.metrics.extractors.classifier import pretext, train_classifier
from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from tests.imports import ROOT
from tests.metrics.extractors.small import QUICK, ROW, digits, made, one_line


def test_training_depends_on_its_arguments_alone() -> None:
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    (again, summary), (first, first_summary) = make_extractor(ROW, digits()), made()
    assert summary == first_summary
    tensors = from_safetensors(first["extractor.safetensors"])
    for name, value in from_safetensors(again["extractor.safetensors"]).items():
        assert torch.equal(value, tensors[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_files_have_the_same_bytes_every_time() -> None:
    """DVC would otherwise rerun whatever depends on them."""
    assert len({tuple(sorted(make_extractor(QUICK, digits(40))[0].items())) for _ in range(4)}) == 1


def of_code_paths(code: str) -> set[bytes]:
    """What Python code prints with MKL's code path for this processor, and with the one for all processors."""
    return {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"MKL_CBWR": path}, capture_output=True, check=True
        ).stdout
        for path in ("AUTO", "COMPATIBLE")
    }


def test_training_does_not_depend_on_the_code_path_of_the_matrix_library() -> None:
    """MKL takes another one on a processor of another maker, which rounds differently."""
    if len(of_code_paths("import torch; print(torch.linspace(0, 1, 4097).sqrt().numpy().tobytes().hex())")) > 1:
        pytest.skip("on this processor MKL's square root, which the optimizer takes, depends on the code path")
    code = "from tests.metrics.extractors.small import *; print(make_extractor(QUICK, digits(200))[1]['hash'])"
    assert len(of_code_paths(code)) == 1


def test_summary_and_learning() -> None:
    """Two epochs on all digits beat chance, 0.1, by far, on images that were held out."""
    files, summary = make_extractor(ROW.model_copy(update={"learning_rate": 0.01}), digits(None))
    assert 0.5 < summary.pop("held_out_accuracy") < 1
    assert re.fullmatch("[0-9a-f]{64}", summary.pop("hash"))
    assert summary == {
        "name": "classifier",
        "dimensions": 16,
        "official": False,
        "preprocessing": "uint8 to [-1, 1]: x / 127.5 - 1",
        "wanted": "classifier",
        "fallback": None,
        "held_out_images": 1797 // 5,
    }
    assert files.keys() == {"extractor.json", "extractor.safetensors"}


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    files, summary = made()
    save_extractor(files, tmp_path / "a")
    save_extractor(files, tmp_path / "b")
    first, second = load_extractor(tmp_path / "a"), load_extractor(tmp_path / "b")
    assert (first.name, first.hash) == ("classifier", second.hash)
    assert first.hash == summary["hash"] and not first.official
    found = first(digits().images)
    assert found.features.shape == (300, 16) and found.features.dtype == torch.float32
    assert found.logits is not None and found.logits.shape == (300, 10) and found.logits.dtype == torch.float32
    assert torch.equal(found.features, second(digits().images).features)
    assert float(found.features.std(0).min()) > 0


def test_features_and_logits_are_the_network_on_pixels_in_range(tmp_path: Path) -> None:
    save_extractor(made()[0], tmp_path)
    extractor = load_extractor(tmp_path)
    state, x = extractor.network.state_dict(), digits().images[:7].float() / 127.5 - 1
    for i, stride in ((0, 1), (3, 1), (6, 2), (9, 1)):
        if f"body.{i}.weight" in state:
            x = F.conv2d(x, state[f"body.{i}.weight"], state[f"body.{i}.bias"], stride=stride, padding=1)
            x = F.group_norm(x, 4, state[f"body.{i + 1}.weight"], state[f"body.{i + 1}.bias"]).relu()
    features = x.mean((2, 3))
    found = extractor(digits().images[:7])
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.logits, features @ state["head.weight"].flatten(1).T + state["head.bias"], rtol=1e-4, atol=1e-5
    )


def test_the_hash_changes_with_weights_and_with_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files, summary), (_, other) = made(), make_extractor(ROW.model_copy(update={"seed": 1}), digits())
    assert summary["hash"] != other["hash"]
    save_extractor(files, tmp_path)
    monkeypatch.setattr(classifier, "PREPROCESSING", "x / 255")
    assert make_extractor(ROW, digits())[1]["hash"] not in (summary["hash"], other["hash"])
    one_line(lambda: load_extractor(tmp_path), str(tmp_path), summary["hash"])


@pytest.mark.parametrize("size", [1, 7, 100, 257])
def test_features_do_not_depend_on_the_batches(tmp_path: Path, size: int) -> None:
    save_extractor(made()[0], tmp_path)
    extractor = load_extractor(tmp_path)
    parts = torch.cat([extractor(part).features for part in digits().images.split(size)])
    torch.testing.assert_close(parts, extractor(digits().images).features, rtol=1e-4, atol=1e-6)


def test_pretext_of_labelled_images_is_their_classes() -> None:
    name, images, labels, classes = pretext(digits())
    assert (name, classes) == ("classifier", 10)
    assert torch.equal(images, digits().images) and torch.equal(labels, digits().labels)


@pytest.mark.parametrize(
    "dataset", [Dataset(digits().images, None), Dataset(digits().images, digits().labels * 0, ("a",))]
)
def test_pretext_of_other_images_is_how_they_are_turned(dataset: Dataset) -> None:
    name, images, labels, classes = pretext(dataset)
    assert (name, classes, len(images)) == ("rotation classifier", 4, 1200)
    for i in (0, 299):
        for k in range(4):
            assert labels[300 * k + i] == k
            assert images[300 * k + i, 0].numpy().tolist() == torch.rot90(dataset.images[i, 0], k).tolist()


def test_all_turns_of_a_held_out_image_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[bool, set[bytes]] = {True: set(), False: set()}  # images as their least turn, by whether they trained

    def spy(images: Tensor) -> Tensor:
        turns = [[image.rot90(k, (1, 2)).numpy().tobytes() for k in range(4)] for image in images]
        used[torch.is_grad_enabled()].update(map(min, turns))
        return to_range(images)

    unlabelled = Dataset(digits().images[:100], None)
    monkeypatch.setattr("pipeline.metrics.extractors.classifier.to_range", spy)
    _, held_out = train_classifier(ROW, unlabelled)
    assert (len(used[True]), len(used[False])) == (80, 20) and not used[True] & used[False]
    assert held_out["held_out_images"] == 4 * 20
    files, summary = make_extractor(ROW, unlabelled)
    save_extractor(files, tmp_path)
    assert summary["name"] == load_extractor(tmp_path).name == "rotation classifier"


@pytest.mark.parametrize("labels", [True, False])
def test_images_that_the_caller_leaves_out_do_not_matter_to_training(labels: bool) -> None:
    """Other pixels there change the accuracy, which is that on these images, and no weight."""
    images, left_out = digits().images[:200], torch.arange(200)[3::4]
    other = images.clone()
    other[left_out] = 255 - other[left_out]
    own = digits().labels[:200] if labels else None
    classes = digits().classes if labels else ()
    row = ROW.model_copy(update={"learning_rate": 0.01, "epochs": 8, "batch": 32})
    sets = [Dataset(each, own, classes) for each in (images, other)]
    (first, accuracy), (second, worse) = (train_classifier(row, dataset, left_out) for dataset in sets)
    assert first == second != train_classifier(row, sets[0])[0]
    assert accuracy["held_out_images"] == worse["held_out_images"] == 50 * (1 if labels else 4)
    assert accuracy["held_out_accuracy"] > worse["held_out_accuracy"]


def test_unlabelled_images_that_are_not_square_are_refused() -> None:
    wide = Dataset(torch.randint(0, 256, (50, 1, 8, 12), dtype=torch.uint8), None)
    one_line(lambda: make_extractor(ROW, wide), "square")
    labelled = Dataset(wide.images, torch.arange(50) % 2, ("a", "b"))
    assert make_extractor(QUICK, labelled)[1]["name"] == "classifier"
