"""Inception: equal to torch-fidelity and torchmetrics, official or not, and one line for other files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from pipeline.common.sealed import save_json
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.extractors.inception import lacking, official_prefix
from pipeline.metrics.extractors.registry import EXTRACTORS, load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from pipeline.metrics.names import label
from tests.metrics.extractors.small import Evil, colours, digits, one_line, sha256


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    """The network enlarges images to the least size that it takes, not to 299 x 299, which takes 16 times as long."""
    assert FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE == 299
    with mock.patch.object(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75):
        yield


def random_weights(path: Path) -> Path:
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
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture
def narrow_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a sixteenth of the channels in each convolution: such weights load, but do not run."""
    init = BasicConv2d.__init__

    def narrow(layer: BasicConv2d, in_channels: int, out_channels: int, **keys: Any) -> None:
        init(layer, max(in_channels // 16, 1), out_channels // 16, **keys)

    monkeypatch.setattr(BasicConv2d, "__init__", narrow)
    return random_weights(tmp_path / "narrow.pth")


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
    for layer, own in zip(layers, (found.features, found.logits), strict=True) if count == 3 else ():
        assert torch.equal(own, NoTrainInceptionV3("other", [layer], str(inception_file), antialias=False)(images))


def test_an_image_of_299_pixels_has_the_features_that_torchmetrics_finds(
    inception: tuple[dict[str, Any], Extractor], inception_file: Path
) -> None:
    image = colours(1)
    with mock.patch.object(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 299):
        found = inception[1](image).features
        assert torch.equal(found, NoTrainInceptionV3("other", ["2048"], str(inception_file), antialias=False)(image))


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
    narrow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = sha256(narrow_file)[:8]
    monkeypatch.setattr("pipeline.metrics.extractors.inception.official_prefix", lambda: prefix)
    monkeypatch.setattr("pipeline.metrics.extractors.registry.probe", lambda *_: 2048)
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    cached = tmp_path / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    assert str(cached) in (lacking(Features(extractor="inception")) or "")
    assert lacking(Features()) is lacking(inception_row(narrow_file)) is None
    cached.parent.mkdir()
    cached.write_bytes(b"half a download")
    assert str(cached) in (lacking(Features(extractor="inception")) or "")
    cached.unlink()
    cached.symlink_to(narrow_file)
    assert lacking(Features(extractor="inception")) is None
    files, summary = make_extractor(Features(extractor="inception"), digits(40))
    save_extractor(files, tmp_path / "made")
    assert (summary["name"], summary["official"], summary["fallback"]) == ("inception", True, None)
    extractor = load_extractor(tmp_path / "made")
    assert extractor.official and label("fd", extractor.name, extractor.official) == "FID"
    record = json.loads(files["extractor.json"]) | {"file_hash": "0" * 64}
    save_json(tmp_path / "made" / "extractor.json", record)
    one_line(lambda: load_extractor(tmp_path / "made"), "not the extractor of the hash")


def test_weights_may_be_safetensors_and_the_hash_changes_with_them(narrow_file: Path, tmp_path: Path) -> None:
    state = torch.load(narrow_file, weights_only=True)
    kind, hashes = EXTRACTORS["inception"], set()
    for path in (narrow_file, tmp_path / "same.safetensors", tmp_path / "changed.safetensors"):
        if path.stem == "changed":
            state["fc.bias"] += 1
        if path != narrow_file:
            save_file(state, path)
        extractor = kind.build(*kind.obtain(inception_row(path), digits(40), None))
        hashes.add(extractor.hash)
        assert torch.equal(extractor.network.fc.bias, state["fc.bias"]) and not extractor.official
    assert len(hashes) == 3


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
def test_broken_weights_are_refused_in_one_line(tmp_path: Path, narrow_file: Path, case: str) -> None:
    write, cause = BROKEN_WEIGHTS[case]
    write(path := tmp_path / "w.pth", narrow_file)
    message = one_line(lambda: make_extractor(inception_row(path), digits(40)), cause)
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_pickled_code_is_never_run(tmp_path: Path, extractor: str, legacy: bool) -> None:
    path, mark = tmp_path / "w.pt2", tmp_path / "mark"
    torch.save({"fc.bias": Evil(mark)}, path, _use_new_zipfile_serialization=not legacy)
    row = Features(extractor=extractor, weights=str(path), hash=sha256(path))
    assert str(path) in one_line(lambda: make_extractor(row, digits(40)))
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_a_file_of_another_hash_is_refused(tmp_path: Path, extractor: str) -> None:
    (path := tmp_path / "w.pt2").write_bytes(b"weights")
    row = Features(extractor=extractor, weights=str(path), hash="0" * 8)
    one_line(lambda: make_extractor(row, digits(40)), f"{path}: its sha256 is {sha256(path)}; expected 00000000")


def test_a_file_without_a_hash_must_be_the_official_one(inception_file: Path) -> None:
    row = Features(extractor="inception", weights=str(inception_file))
    one_line(lambda: make_extractor(row, digits(40)), str(inception_file), "expected 6726825d")


@pytest.mark.parametrize("extractor", ["inception", "module"])
def test_a_missing_file_is_an_error_and_no_fallback(tmp_path: Path, extractor: str) -> None:
    row = Features(extractor=extractor, weights=str(tmp_path / "w.pt2"), hash="0" * 8)
    one_line(lambda: make_extractor(row, digits(40)), f"{tmp_path / 'w.pt2'}: cannot be read (No such file")
