"""DINOv2: equal to torch-fidelity, from a hub that may fail."""

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from pipeline.metrics.extractors.registry import load_extractor, make_extractor, save_extractor
from pipeline.metrics.extractors.row import Features
from tests.metrics.extractors.small import QUICK, colours, digits, one_line


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
