"""Extractors: what each gives, what it is called, what stands in for it, and what is refused."""

import hashlib
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args
from unittest import mock
from urllib.error import URLError

import pytest
import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load as from_safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from pipeline.common.errors import StudyError
from pipeline.common.files import write_json
from pipeline.data.dataset import Dataset, save, to_range
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.metrics.extractors import classifier
from pipeline.metrics.extractors.classifier import pretext, train_classifier
from pipeline.metrics.extractors.extractor import Extractor, probe
from pipeline.metrics.extractors.inception import official_prefix
from pipeline.metrics.extractors.registry import EXTRACTORS, load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.names import LABELS, label
from stages import Arguments
from stages.features import main

ROW = Features(width=16, epochs=2)
QUICK = Features(width=8, epochs=1)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")


@cache
def digits(limit: int | None = 300) -> Dataset:
    return load(Data(limit=limit))


@cache
def made() -> tuple[dict[str, bytes], dict[str, Any]]:
    return make_extractor(ROW, digits())


def colours(count: int, height: int = 5, width: int = 4, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), generator=random, dtype=torch.uint8)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(StudyError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 900, message
    for part in parts:
        assert part in message, message
    return message


# The classifier


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
        found.logits, features @ state["head.weight"].T + state["head.bias"], rtol=1e-4, atol=1e-5
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


def test_unlabelled_images_that_are_not_square_are_refused() -> None:
    wide = Dataset(torch.randint(0, 256, (50, 1, 8, 12), dtype=torch.uint8), None)
    one_line(lambda: make_extractor(ROW, wide), "square")
    labelled = Dataset(wide.images, torch.arange(50) % 2, ("a", "b"))
    assert make_extractor(QUICK, labelled)[1]["name"] == "classifier"


# The row


@pytest.mark.parametrize("width", [2, 10, 20])
def test_widths_that_the_network_cannot_have_are_refused(width: int) -> None:
    with pytest.raises(ValidationError, match="width"):
        Features(width=width)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"extractor": "vgg"}, "classifier.*inception.*dinov2.*module"),
        ({"weights": "w.pth"}, "weights: classifier takes no file"),
        ({"extractor": "dinov2", "weights": "w.pth"}, "weights: dinov2 takes no file"),
        ({"extractor": "module"}, "weights: module needs the path"),
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
    assert Features(extractor="inception").weights is None and Features(extractor="dinov2").hash is None
    assert Features(extractor="inception", weights="w.pth", hash="0" * 64).hash == "0" * 64
    assert Features(extractor="module", weights="m.pt2").weights == "m.pt2"


# What scores are called


@pytest.mark.parametrize(
    ("metric", "official", "other"),
    [
        ("fd", "FID", "FD (classifier)"),
        ("fd_corrected", "bias-corrected FID", "bias-corrected FD (classifier)"),
        ("fd_infinity", "FID at infinite samples", "FD (classifier) at infinite samples"),
        ("kd", "KID", "KD (classifier)"),
        ("score", "Inception score", "IS (classifier)"),
        ("precision", "precision", "precision (classifier)"),
        ("recall", "recall", "recall (classifier)"),
        ("density", "density", "density (classifier)"),
        ("coverage", "coverage", "coverage (classifier)"),
        ("near_duplicates", "near-duplicates", "near-duplicates (classifier)"),
    ],
)
def test_labels(metric: str, official: str, other: str) -> None:
    assert (label(metric, "inception", True), label(metric, "classifier", False)) == (official, other)


@pytest.mark.parametrize("metric", sorted(LABELS.keys() - {"w2", "sliced_w2"}))  # of the data, not of features
@pytest.mark.parametrize("name", ["inception", "dinov2-vit-l-14", "module FID"])
def test_no_unofficial_extractor_makes_a_fid(metric: str, name: str) -> None:
    text = label(metric, name, False)
    assert f"({name})" in text and not re.search("FID|KID|Inception score", text.replace(f"({name})", ""))


# What an extractor gives


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def extractor_of(function: Callable[[Tensor], Any], **rest: Any) -> Extractor:
    return Extractor("own", "", "", Function(function).eval(), **rest)


def test_images_come_in_batches_of_three_channels_where_they_must() -> None:
    seen = []

    def means(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return images.double().mean((2, 3))

    grey = colours(7, channels=1)
    found = extractor_of(means, batch=3, rgb=True)(grey)
    assert seen == [(3, 3, 5, 4), (3, 3, 5, 4), (1, 3, 5, 4)]
    assert found.features.dtype == torch.float32 and found.logits is None
    torch.testing.assert_close(found.features, grey.float().mean((2, 3)).repeat(1, 3))
    assert extractor_of(means, batch=3)(grey).features.shape == (7, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_features_or_logits_that_are_not_finite_are_counted(bad: float, where: int) -> None:
    def features(images: Tensor) -> tuple[Tensor, Tensor]:
        both = [images.float().mean((2, 3)), images.float().mean((2, 3))]
        both[where][images[:, 0, 0, 0] == 0, 0] = bad
        return both[0], both[1]

    images = colours(9).clamp(min=1)
    assert extractor_of(features, batch=4)(images).features.shape == (9, 3)
    images[[2, 7], 0, 0, 0] = 0
    one_line(lambda: extractor_of(features, batch=4)(images), "own: features of 2 of 9 images are not finite")


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x.float(), "[(6, 3, 5, 4)]"),
        (lambda x: x.float().mean(), "[()]"),
        (lambda x: x.float().mean((0, 2)), "[(3, 4)]"),
        (lambda x: (x.float().mean((2, 3)),) * 3, "[(6, 3), (6, 3), (6, 3)]"),
        (lambda x: (x.float().mean((2, 3)), None), "[(6, 3), NoneType]"),
        (lambda x: {"features": x}, "[dict]"),
        (lambda x: (), "[]"),
    ],
)
def test_outputs_of_another_shape_are_refused(function: Callable[[Tensor], Any], found: str) -> None:
    one_line(lambda: extractor_of(function)(colours(6)), f"own: 6 images give {found}; expected (N, d)")


def test_a_network_with_any_part_in_training_mode_is_refused() -> None:
    network = nn.Sequential(Function(lambda x: x.float().mean((2, 3))), nn.Dropout()).eval()
    extractor = Extractor("own", "", "", network)
    assert extractor(colours(3)).features.shape == (3, 3)
    network[1].train()
    one_line(lambda: extractor(colours(3)), "own: the network is in training mode")


# Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the right architecture, scaled so that features are of the order of one."""
    random = torch.Generator().manual_seed(0)
    with mock.patch("torch.load", lambda *_, **__: {}), mock.patch.object(nn.Module, "load_state_dict"):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=random)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=random)
        elif value.is_floating_point():
            value.normal_(std=0.1, generator=random)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


def inception_row(path: Path) -> Features:
    return Features(extractor="inception", weights=str(path), hash=sha256(path)[:12], width=8, epochs=1)


@pytest.fixture(scope="module")
def inception(inception_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Extractor]:
    """Summary, and extractor as loaded."""
    folder = tmp_path_factory.mktemp("extractor")
    files, summary = make_extractor(inception_row(inception_file), digits(40))
    save_extractor(files, folder)
    return summary, load_extractor(folder)


@pytest.mark.parametrize("count", [3, 4])
def test_inception_is_torch_fidelitys_and_torchmetrics_own(
    inception: tuple[dict[str, Any], Extractor], inception_file: Path, count: int
) -> None:
    images, layers = colours(count), ["2048", "logits_unbiased"]
    found = inception[1](images)
    assert found.features.shape == (count, 2048) and found.logits is not None and found.logits.shape == (count, 1008)
    features, logits = FeatureExtractorInceptionV3("inception-v3-compat", layers, str(inception_file))(images)
    assert torch.equal(found.features, features) and torch.equal(found.logits, logits)
    assert features.std(0).mean() > 1e-3 and logits.std(0).mean() > 1e-3
    for layer, own in zip(layers, (found.features, found.logits), strict=True):
        assert torch.equal(own, NoTrainInceptionV3("other", [layer], str(inception_file), antialias=False)(images))


def test_grey_images_are_repeated_for_inception(inception: tuple[dict[str, Any], Extractor]) -> None:
    grey, extractor = colours(2, channels=1), inception[1]
    assert torch.equal(extractor(grey).features, extractor(grey.repeat(1, 3, 1, 1)).features)


def test_other_weights_than_the_official_ones_make_no_fid(inception: tuple[dict[str, Any], Extractor]) -> None:
    summary, extractor = inception
    assert official_prefix() == "6726825d"
    assert (extractor.name, extractor.official, extractor.hash) == ("inception", False, summary["hash"])
    assert (summary["name"], summary["wanted"], summary["dimensions"]) == ("inception", "inception", 2048)
    assert not summary["official"] and summary["fallback"] is summary["held_out_images"] is None
    assert "299 x 299" in extractor.preprocessing == summary["preprocessing"]
    assert label("fd", extractor.name, extractor.official) == "FD (inception)"


def test_official_weights_come_from_the_cache_and_stay_official(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = sha256(inception_file)[:8]
    monkeypatch.setattr("pipeline.metrics.extractors.inception.official_prefix", lambda: prefix)
    monkeypatch.setattr("pipeline.metrics.extractors.registry.probe", lambda *_: 2048)
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    cached = tmp_path / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    cached.parent.mkdir()
    cached.symlink_to(inception_file)
    files, summary = make_extractor(Features(extractor="inception"), digits(40))
    save_extractor(files, tmp_path / "made")
    assert (summary["name"], summary["official"], summary["fallback"]) == ("inception", True, None)
    extractor = load_extractor(tmp_path / "made")
    assert extractor.official and label("fd", extractor.name, extractor.official) == "FID"
    record = json.loads(files["extractor.json"]) | {"file_hash": "0" * 64}
    write_json(tmp_path / "made" / "extractor.json", record)
    one_line(lambda: load_extractor(tmp_path / "made"), "not the extractor of the hash")


def test_weights_may_be_safetensors_and_the_hash_changes_with_them(
    inception: tuple[dict[str, Any], Extractor], inception_file: Path, tmp_path: Path
) -> None:
    state = torch.load(inception_file, weights_only=True)
    kind, hashes = EXTRACTORS["inception"], {inception[0]["hash"]}
    for change in (0, 1):
        state["fc.bias"] += change
        save_file(state, path := tmp_path / f"{change}.safetensors")
        extractor = kind.build(*kind.obtain(inception_row(path), digits(40)))
        hashes.add(extractor.hash)
        assert torch.equal(extractor.network.fc.bias, state["fc.bias"]) and not extractor.official
    assert len(hashes) == 3


class Evil:
    """What runs code where it is unpickled: it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[:-5000])


def rewritten(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, Path], None]:
    def write(path: Path, good: Path) -> None:
        state = torch.load(good, weights_only=True)
        change(state)
        torch.save(state, path)

    return write


BROKEN_WEIGHTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (truncated, "not a file of weights"),
    "empty": (lambda path, _: path.write_bytes(b""), "not a file of weights"),
    "text": (lambda path, _: path.write_text("weights"), "not a file of weights"),
    "a tensor": (lambda path, _: torch.save(torch.zeros(3), path), "not a file of weights"),
    "checkpoint": (lambda path, _: torch.save({"model": {"a": torch.zeros(3)}}, path), "not a file of weights"),
    "other network": (lambda path, _: torch.save({"a": torch.zeros(3)}, path), 'Unexpected key(s) in state_dict: "a"'),
    "tensor less": (rewritten(lambda state: state.pop("fc.bias")), 'Missing key(s) in state_dict: "fc.bias"'),
    "tensor more": (rewritten(lambda state: state.update(x=torch.zeros(1))), 'Unexpected key(s) in state_dict: "x"'),
    "other classes": (rewritten(lambda state: state.update({"fc.bias": torch.zeros(1000)})), "torch.Size([1000])"),
}


@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
def test_broken_weights_are_refused_in_one_line(tmp_path: Path, inception_file: Path, case: str) -> None:
    write, cause = BROKEN_WEIGHTS[case]
    write(path := tmp_path / "w.pth", inception_file)
    message = one_line(lambda: make_extractor(inception_row(path), digits(40)), cause)
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_pickled_code_is_never_run(tmp_path: Path, extractor: str, legacy: bool) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "mark"
    torch.save({"fc.bias": Evil(mark)}, path, _use_new_zipfile_serialization=not legacy)
    row = Features(extractor=extractor, weights=str(path), hash=sha256(path))
    assert str(path) in one_line(lambda: make_extractor(row, digits(40)))
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_a_file_of_another_hash_is_refused(tmp_path: Path, extractor: str) -> None:
    (path := tmp_path / "w.pt").write_bytes(b"weights")
    row = Features(extractor=extractor, weights=str(path), hash="0" * 8)
    one_line(lambda: make_extractor(row, digits(40)), f"{path}: its sha256 is {sha256(path)}; expected 00000000")


def test_a_file_without_a_hash_must_be_the_official_one(inception_file: Path) -> None:
    row = Features(extractor="inception", weights=str(inception_file))
    one_line(lambda: make_extractor(row, digits(40)), str(inception_file), "expected 6726825d")


@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_a_missing_file_is_an_error_and_no_fallback(tmp_path: Path, extractor: str) -> None:
    row = Features(extractor=extractor, weights=str(tmp_path / "w.pt"), hash="0" * 8)
    one_line(lambda: make_extractor(row, digits(40)), f"{tmp_path / 'w.pt'}: cannot be read (No such file")


# The classifier replaces published weights that are unavailable


def no_network(url: str, to: str, hash_prefix: str, progress: bool) -> None:
    assert (url, hash_prefix, socket.getdefaulttimeout()) == (URL_INCEPTION_V3, "6726825d", 30)
    raise URLError("no\nnetwork")


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
        assert re.fullmatch(r"classifier: 8 features, \d+\.\d% right on 8 held-out images\n", out)
        assert len(err.splitlines()) == said
        if said:
            assert err.startswith("inception: weights are unavailable (URLError: <urlopen error no network>); ")
            assert "every score is FD (classifier), not FID" in err and "dvc repro --force" in err


# DINOv2


def small_hub(seed: int) -> Callable[..., nn.Module]:
    def hub_load(repository: str, model: str) -> nn.Module:
        assert (repository, model, socket.getdefaulttimeout()) == ("facebookresearch/dinov2", "dinov2_vitl14", 30)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7), nn.Dropout())

    return hub_load


def no_hub(repository: str, model: str) -> nn.Module:
    raise URLError("no network")


def test_dinov2_is_torch_fidelitys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load", small_hub(0))
    files, summary = make_extractor(Features(extractor="dinov2"), digits(40))
    save_extractor(files, tmp_path)
    extractor = load_extractor(tmp_path)
    assert (extractor.name, extractor.hash, extractor.official) == ("dinov2-vit-l-14", summary["hash"], False)
    assert (summary["name"], summary["dimensions"], summary["fallback"]) == ("dinov2-vit-l-14", 7, None)
    found = extractor(colours(4))
    socket.setdefaulttimeout(30)
    (own,) = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])(colours(4))
    socket.setdefaulttimeout(None)
    assert torch.equal(found.features, own) and found.logits is None
    monkeypatch.setattr(torch.hub, "load", small_hub(1))
    one_line(lambda: load_extractor(tmp_path), str(tmp_path), "not the extractor of the hash")
    monkeypatch.setattr(torch.hub, "load", no_hub)
    one_line(lambda: load_extractor(tmp_path), str(tmp_path), "weights are unavailable (URLError")


def test_the_classifier_stands_in_for_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load", no_hub)
    _, summary = make_extractor(QUICK.model_copy(update={"extractor": "dinov2"}), digits(40))
    assert (summary["name"], summary["wanted"]) == ("classifier", "dinov2") and "no network" in summary["fallback"]


# A user's own module


class Own(nn.Module):
    """Features of the images' own, and logits where there are classes; no batch size is written into its graph."""

    def __init__(self, *layers: nn.Module, classes: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(6, classes) if classes else None

    def forward(self, images: Tensor) -> Any:
        features = self.layers(self.first(images / 255)).mean((2, 3))
        return features if self.head is None else (features, self.head(features))


def traced(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.trace(module, colours(2, 8, 8), check_trace=False), path.with_suffix(".pt"))


def scripted(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(module), path.with_suffix(".ts"))


def frozen(module: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(module)), path.with_suffix(".pt"))


def exported(module: nn.Module, path: Path) -> None:
    count = torch.export.Dim("count")
    torch.export.save(
        torch.export.export(module, (colours(2, 8, 8),), dynamic_shapes=({0: count},)), path.with_suffix(".pt2")
    )


def own(kind: Callable[[nn.Module, Path], None], module: nn.Module, folder: Path) -> Features:
    """The row of a module that is written into a folder."""
    kind(module, folder / "net")
    (path,) = folder.glob("net.*")
    return Features(extractor="module", weights=str(path), hash=sha256(path)[:8])


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("kind", [traced, scripted, frozen, exported])
def test_modules_give_what_they_gave_their_author(
    tmp_path: Path, kind: Callable[[nn.Module, Path], None], classes: int
) -> None:
    if kind is scripted and not classes:
        module: nn.Module = nn.Sequential(Floats(), nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    elif kind in (scripted, frozen):
        module = Typed(classes).eval()
    else:
        module = Own(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), classes=classes).eval()
    files, summary = make_extractor(own(kind, module, tmp_path), digits(40))
    save_extractor(files, tmp_path / "made")
    extractor = load_extractor(tmp_path / "made")
    assert (extractor.name, extractor.hash, extractor.official) == ("module net", summary["hash"], False)
    assert (summary["name"], summary["wanted"], summary["dimensions"]) == ("module net", "module", 6)
    assert [len(name) for name in files] and set(files) - {"extractor.json"} == {
        f"extractor{path.suffix}" for path in tmp_path.glob("net.*")
    }
    for count in (1, 8, 33):
        images = colours(count, 8, 8)
        with torch.no_grad():
            expected = module(images)
        found = extractor(images)
        features, logits = expected if isinstance(expected, tuple) else (expected, None)
        torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
        assert (found.logits is None) == (logits is None)
        if logits is not None:
            torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)


class Floats(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / 255


class Typed(nn.Module):
    """Features and logits, typed as TorchScript wants them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout())
        self.head = nn.Linear(6, classes or 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images / 255).mean((2, 3))
        return features, self.head(features)


@pytest.mark.parametrize("layer", [nn.Dropout, lambda: nn.BatchNorm2d(6)])
@pytest.mark.parametrize("kind", [traced, exported])
def test_modules_exported_in_training_mode_are_refused(
    tmp_path: Path, kind: Callable[[nn.Module, Path], None], layer: Callable[[], nn.Module]
) -> None:
    row = own(kind, Own(layer()).train(), tmp_path)
    cause = "module net: gives different features for the same image"
    message = one_line(lambda: make_extractor(row, digits(40)), cause, "export it in eval mode")
    assert message.startswith(f"{row.weights}: ")


def test_a_script_in_training_mode_is_put_into_eval_mode(tmp_path: Path) -> None:
    assert make_extractor(own(scripted, Typed(3).train(), tmp_path), digits(40))[1]["name"] == "module net"


class Overwrites(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        found = images.float().mean((2, 3))
        if images.shape[0] > 1:
            found = found + torch.from_file(self.path, True, 8, dtype=torch.uint8).fill_(65).float().mean()
        return found


def test_a_script_that_writes_files_is_refused(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("ORIGINAL")
    torch.jit.script(Overwrites(str(victim)).eval()).save(str(path := tmp_path / "net.pt"))
    row = Features(extractor="module", weights=str(path))
    one_line(lambda: make_extractor(row, digits(40)), f"{path}: the script calls aten::from_file")
    assert victim.read_text() == "ORIGINAL"


def test_the_probe_sees_company_alone() -> None:
    """An image's features that lean on the others by more than a thousandth are refused, and by less are not."""

    def leaning(share: float) -> Extractor:
        return extractor_of(lambda x: x.double().mean((2, 3)) + share * x.double().mean((0, 2, 3)))

    assert probe(leaning(1e-5), (3, 8, 8)) == 3
    one_line(lambda: probe(leaning(0.1), (3, 8, 8)), "own: gives different features")


class NotFinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images.float().mean((2, 3)) - 1000).log()


class Square(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


class Batches(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(2, -1)


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        (NotFinite(), "module net: features of 6 of 6 images are not finite"),
        (Square(), "module net: 6 images give [(6, 3, 8, 8)]; expected (N, d)"),
        (Batches(), "module net: 6 images give [(2, 576)]; expected (N, d)"),
        (nn.Sequential(Floats(), nn.Conv2d(4, 2, 3)), "module net: fails on"),
    ],
)
def test_modules_of_other_features_are_refused(tmp_path: Path, module: nn.Module, cause: str) -> None:
    row = own(scripted, module, tmp_path)
    assert one_line(lambda: make_extractor(row, digits(40)), cause).startswith(f"{row.weights}: ")


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"no module", "other", "cut"])
def test_files_that_are_no_modules_are_refused(tmp_path: Path, suffix: str, content: bytes | str) -> None:
    kind = exported if suffix == ".pt2" else traced
    if content == "other":
        kind = traced if suffix == ".pt2" else exported
    row = own(kind, Own().eval(), tmp_path)
    path = (tmp_path / "net").with_suffix(suffix)
    found = Path(row.weights or "").read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else found[:-600] if content == "cut" else found)
    row = Features(extractor="module", weights=str(path))
    assert one_line(lambda: make_extractor(row, digits(40))).startswith(f"{path}: ")


def test_a_module_of_another_kind_is_refused() -> None:
    row = Features(extractor="module", weights="net.onnx")
    one_line(lambda: make_extractor(row, digits(40)), "net.onnx: a module is a TorchScript file (.pt, .ts)")


Members = dict[str, bytes]


def member(members: Members, end: str) -> str:
    (found,) = (name for name in members if name.endswith(end))
    return found


def pickled(value: Any) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def evil_inputs(members: Members, mark: Path) -> None:
    members[member(members, "sample_inputs/model.pt")] = pickled({"a": Evil(mark)})


def evil_size(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    code = f"__import__('os').mkdir('{mark}') or Symbol("
    members[name] = members[name].replace(b"Symbol(", code.encode(), 1)


def evil_weights_of_old(members: Members, mark: Path) -> None:
    members[member(members, "archive_version").replace("archive_version", "data/weights/model.pt")] = pickled(
        {"a": Evil(mark)}
    )


def evil_weight(members: Members, mark: Path) -> None:
    name = member(members, "model_weights_config.json")
    config = json.loads(members[name])
    tensor = next(iter(config["config"].values()))
    tensor["use_pickle"] = True
    members[name] = json.dumps(config).encode()
    members[member(members, f"data/weights/{tensor['path_name']}")] = pickled(Evil(mark))


def evil_constant(members: Members, mark: Path) -> None:
    name = member(members, "model_constants_config.json")
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members[name] = json.dumps({"config": {"evil": payload}}).encode()
    members[name.replace("model_constants_config.json", "opaque_obj_0")] = pickle.dumps(Evil(mark))


def evil_operator(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    members[name] = members[name].replace(b"torch.ops.aten.mean.dim", b"torch.os.mkdir")


def evil_file(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    members[name] = members[name].replace(b"torch.ops.aten.mean.dim", b"torch.ops.aten.from_file.default")


def evil_name(members: Members, mark: Path) -> None:
    name = member(members, "models/model.json")
    code = f"\"mean=__import__('os').mkdir('{mark}');mean\""
    members[name] = members[name].replace(b'"mean"', code.encode())


def native_code(members: Members, mark: Path) -> None:
    name = member(members, "archive_version").replace("archive_version", "data/aotinductor/model/x.so")
    members[name] = b"code"


@pytest.fixture(scope="module")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported(Own(classes=2).eval(), path := tmp_path_factory.mktemp("exported") / "net")
    return path.with_suffix(".pt2")


def rezipped(good: Path, path: Path, change: Callable[[Members], object]) -> None:
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "attack",
    [
        evil_inputs,
        evil_size,
        evil_weights_of_old,
        evil_weight,
        evil_constant,
        evil_operator,
        evil_file,
        evil_name,
        native_code,
    ],
)
def test_exported_programs_run_no_code_of_their_own(
    tmp_path: Path, exported_file: Path, attack: Callable[[Members, Path], None]
) -> None:
    path, mark = tmp_path / "net.pt2", tmp_path / "mark"
    row = Features(extractor="module", weights=str(path))
    rezipped(exported_file, path, lambda members: None)
    assert make_extractor(row, digits(40))[1]["name"] == "module net"
    rezipped(exported_file, path, lambda members: attack(members, mark))
    assert one_line(lambda: make_extractor(row, digits(40))).startswith(f"{path}: ")
    assert not mark.exists()


def test_a_program_of_many_operators_passes(tmp_path: Path) -> None:
    """Attention, constants, regions without gradients, strings as arguments and sizes that are sums."""
    _, summary = make_extractor(own(exported, Transformer().eval(), tmp_path), digits(40))
    assert summary["dimensions"] == 8


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.Linear(8, 24)
        self.act = nn.GELU(approximate="tanh")
        self.mean = torch.rand(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images / 255 - self.mean, (12, 12), mode="bilinear", antialias=True)
        x = self.act(self.patches(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        with torch.no_grad():
            x = F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
        x = torch.einsum("bnd,bnd->bnd", x, x).reshape(x.shape[0] * x.shape[1], 8)
        return x.reshape(images.shape[0], -1, 8).mean(1)


# Folders


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


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


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "list": (lambda record: [], "not the description"),
    "number": (lambda record: 3, "not the description"),
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
    write_json(path, change(json.loads(path.read_text())))
    assert one_line(lambda: load_extractor(tmp_path), cause).startswith(str(tmp_path))


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_a_folder_without_a_description_is_refused_in_one_line(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    save_extractor(made()[0], tmp_path)
    harm(tmp_path / "extractor.json")
    one_line(lambda: load_extractor(tmp_path), f"{tmp_path / 'extractor.json'}: ")


def test_slow_libraries_are_left_out_until_they_are_needed() -> None:
    code = "import sys, pipeline.metrics.extractors.registry; sys.exit('torch_fidelity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
