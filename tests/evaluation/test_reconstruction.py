"""What an autoencoder loses: nothing for the identity, more for a worse one, and errors in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.devices import CPU
from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.data.row import Data
from pipeline.data.sources import load
from pipeline.diffusion.autoencoder import Autoencoder
from pipeline.evaluation.reconstruction import measure_reconstructions
from pipeline.metrics.measurement import measure
from pipeline.metrics.names import headline
from pipeline.metrics.reference import load_reference, make_reference, save_reference
from pipeline.training.autoencoder import train_autoencoder
from pipeline.training.autoencoder_row import AutoencoderRow
from tests.evaluation.small import Trained

DIGITS = load(Data(limit=300)).images
IMAGES, HELDOUT = DIGITS[:200], DIGITS[200:]  # the first ones are those of the reference
COUNT = 120


def principal(channels: int) -> Autoencoder:
    return train_autoencoder(AutoencoderRow(kind="pca", factor=4, channels=channels), IMAGES).autoencoder


def measured(autoencoder: Autoencoder, trained: Trained, heldout: Tensor | None = None) -> dict[str, Any]:
    by_name = {"x": autoencoder}
    return measure_reconstructions(by_name, IMAGES, heldout, trained.extractor, trained.reference, COUNT)["x"]


def value(metrics: list[dict[str, Any]], metric: str) -> float:
    return next(float(m["value"]) for m in metrics if m["metric"] == metric)


def test_the_identity_has_the_scores_of_the_images_themselves(trained: Trained) -> None:
    found = measured(principal(16), trained)
    chosen = IMAGES[torch.randperm(len(IMAGES), generator=generator("reconstruction"))[:COUNT]]
    assert found["train"] == measure([chosen], COUNT, trained.extractor, trained.reference).metrics
    assert found["count"] == COUNT and found["mse"] < 1e-10 and found["heldout"] is None
    assert found["oracle"]["autoencoder"] < 1e-9
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_held_out_images_are_compared_with_each_other(tmp_path: Path, trained: Trained) -> None:
    seen, unseen = (trained.extractor(images).on(CPU) for images in (IMAGES, HELDOUT))
    made = make_reference(seen, trained.extractor.hash, heldout=unseen, matched=torch.arange(100))
    save_reference(made[0], tmp_path)
    reference = load_reference(tmp_path)
    found = measured(principal(16), trained._replace(reference=reference), HELDOUT)["heldout"]
    assert {own["metric"] for own in found} >= {"fd", "fd_corrected"}
    assert abs(value(found, "fd")) < 1e-3  # the same images in another order


def test_the_fewer_components_the_larger_the_distance(trained: Trained) -> None:
    metric = headline(trained.extractor.name)
    found = [measured(principal(channels), trained) for channels in (16, 6, 2, 1)]
    distances = [value(each["train"], metric) for each in found]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]
    for key in ("mse", "oracle"):
        losses = [each[key] if key == "mse" else each[key]["autoencoder"] for each in found]
        assert losses == sorted(losses) and losses[1] > 1e-4


def test_principal_components_agree_with_those_of_the_oracle(trained: Trained) -> None:
    """What the oracle's projection loses of the Gaussian is the squared error of the images, summed over an image."""
    found = measured(principal(2), trained)
    unbiased = len(IMAGES) / (len(IMAGES) - 1)  # of a covariance
    assert found["oracle"]["autoencoder"] == pytest.approx(found["mse"] * 64 * unbiased, rel=1e-2)
    points = found["oracle"]["points"]
    assert {point["sampler"] for point in points} == {"heun", "euler"}
    for point in points:
        assert point["together"] > found["oracle"]["autoencoder"]


def test_an_autoencoder_of_other_data_is_refused_in_a_line(trained: Trained) -> None:
    autoencoder = principal(16)
    autoencoder.spec = replace(autoencoder.spec, shape=(3, 8, 8))
    said = r"^autoencoders\.x: made for images of 3 x 8 x 8, but the data are images of 1 x 8 x 8; run"
    with pytest.raises(StudyError, match=said):
        measured(autoencoder, trained)


def test_a_decoder_that_returns_nan_leaves_no_numbers(trained: Trained) -> None:
    autoencoder = principal(16)
    autoencoder.scale.fill_(torch.nan)
    found = measured(autoencoder, trained)
    assert found["train"] == [] and found["mse"] is None
