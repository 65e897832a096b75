"""What an autoencoder loses: nothing for the identity, more for a worse one, and errors in one line."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.common.randomness import generator
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.autoencoder import Autoencoder
from pipeline.evaluation.reconstruction import measure_reconstruction
from pipeline.metrics.measurement import measure
from pipeline.metrics.names import headline
from pipeline.training.autoencoder import train_autoencoder
from pipeline.training.autoencoder_row import AutoencoderRow
from tests.evaluation.small import Trained

DIGITS = load(Data(limit=300)).images
IMAGES, HELDOUT = DIGITS[:200], DIGITS[200:]  # the first ones are those of the reference
COUNT = 120


def principal(channels: int) -> Autoencoder:
    return train_autoencoder(AutoencoderRow(kind="pca", factor=4, channels=channels), IMAGES).autoencoder


def measured(autoencoder: Autoencoder, trained: Trained, heldout: Tensor | None = None) -> dict[str, Any]:
    return measure_reconstruction(autoencoder, IMAGES, heldout, COUNT, trained.extractor, trained.reference)


def value(found: dict[str, Any], metric: str) -> float:
    return next(float(m["value"]) for m in found["metrics"] if m["metric"] == metric)


def test_the_identity_has_the_scores_of_the_images_themselves(trained: Trained) -> None:
    found = measured(principal(16), trained, HELDOUT)
    for name, images in (("train", IMAGES), ("heldout", HELDOUT)):
        order = torch.randperm(len(images), generator=generator("reconstruction", 0))[:COUNT]
        expected = measure([images[order]], len(order), trained.extractor, trained.reference).metrics
        assert found[name] == {"images": len(order), "mse": {"value": 0, "se": 0}, "metrics": expected}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_fewer_components_the_larger_the_distance(trained: Trained) -> None:
    metric = headline(trained.extractor.name)
    found = [measured(principal(channels), trained, HELDOUT) for channels in (16, 6, 2, 1)]
    for name in ("train", "heldout"):
        distances = [value(each[name], metric) for each in found]
        assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]
        errors = [each[name]["mse"]["value"] for each in found]
        assert errors == sorted(errors) and all(each[name]["mse"]["se"] > 0 for each in found[1:])


def test_without_held_out_images_there_are_no_scores_of_them(trained: Trained) -> None:
    assert [*measured(principal(16), trained)] == ["train"]


def test_an_autoencoder_of_other_data_is_refused_in_a_line(trained: Trained) -> None:
    autoencoder = principal(16)
    autoencoder.spec = replace(autoencoder.spec, shape=(3, 8, 8))
    said = "an autoencoder of other data: it is for images of 3 x 8 x 8, and the data are images of 1 x 8 x 8; train"
    with pytest.raises(StudyError, match=said):
        measured(autoencoder, trained)


def test_a_decoder_that_returns_nan_is_named_in_a_line(trained: Trained) -> None:
    autoencoder = principal(16)
    autoencoder.scale.fill_(torch.nan)
    with pytest.raises(NotFinite, match="the autoencoder's decoder returned images that are not finite"):
        measured(autoencoder, trained)
