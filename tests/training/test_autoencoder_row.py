"""Rows of `autoencoders`: keys that a kind does not use, and images that a row does not fit, are refused in a line."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.common.errors import StudyError
from pipeline.training.autoencoder_row import KEYS, AutoencoderRow

OTHER: dict[str, Any] = {
    "factor": 2,
    "channels": 3,
    "width": 16,
    "blocks": 2,
    "kl_weight": 0.0,
    "codebook": 8,
    "commitment": 1.0,
    "images": 1000,
    "batch": 64,
    "learning_rate": 1e-3,
    "warmup_images": 100,
    "seed": 1,
    "folder": "somewhere",
    "content": "digest",
}
NEEDED: dict[str, dict[str, Any]] = {"released": {"folder": "elsewhere"}}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("key", OTHER)
def test_keys_that_a_kind_does_not_use_are_refused(kind: str, key: str) -> None:
    keys = {"kind": kind, **NEEDED.get(kind, {}), key: OTHER[key]}
    if key in KEYS[kind]:
        assert getattr(AutoencoderRow(**keys), key) == OTHER[key]
    else:
        with pytest.raises(ValidationError, match=f"{key}: kind {kind} does not use it; {key} is for "):
            AutoencoderRow(**keys)


def test_every_key_belongs_to_a_kind() -> None:
    assert {key for keys in KEYS.values() for key in keys} == AutoencoderRow.model_fields.keys() - {"kind"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"factor": 6}, "factor: 6 is no power of two from 2 to 64, which kind kl needs; use 4, or kind pca"),
        ({"factor": 1}, "factor: 1 is no power of two from 2 to 64, which kind kl needs; use 2, or kind pca"),
        ({"kind": "vq", "factor": 1}, "which kind vq needs"),
        ({"factor": 128}, "less than or equal to 64"),
        ({"kind": "pca", "factor": 0}, "greater than or equal to 1"),
        ({"width": 12}, "multiple of 8"),
        ({"kind": "vq", "codebook": 1}, "greater than or equal to 2"),
        ({"kind": "released"}, "folder: kind released needs the folder of an AutoencoderKL; name one"),
        ({"images": 10**11}, "the most is 10000000"),
        ({"kl_weight": -1.0}, "greater than or equal to 0"),
        ({"kind": "vae"}, "'kl', 'vq', 'pca' or 'released'"),
        ({"beta": 1.0}, "not permitted"),
    ],
    ids=str,
)
def test_a_bad_key_is_refused_in_a_line(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AutoencoderRow(**keys)


@pytest.mark.parametrize(
    ("keys", "shape", "latent"),
    [
        ({}, (3, 16, 16), (4, 4, 4)),
        ({"factor": 8, "channels": 2}, (1, 8, 24), (2, 1, 3)),
        ({"kind": "vq", "factor": 2}, (3, 6, 4), (4, 3, 2)),
        ({"kind": "pca", "factor": 3}, (1, 9, 6), (4, 3, 2)),
        ({"kind": "pca", "factor": 1, "channels": 3}, (3, 5, 7), (3, 5, 7)),
    ],
    ids=str,
)
def test_the_latent_shape_of_images(keys: dict[str, Any], shape: tuple[int, ...], latent: tuple[int, ...]) -> None:
    assert AutoencoderRow(**keys).latent_shape(shape) == latent


@pytest.mark.parametrize(
    ("keys", "shape", "said"),
    [
        ({}, (2,), "latents of points: autoencoders are for images; use space: null"),
        ({}, (1, 8, 10), "factor: 4 does not divide images of 8 x 10; use a divisor of both"),
        (
            {"kind": "pca", "factor": 1},
            (3, 8, 8),
            "channels: patches of 3 x 1 x 1 have 3 components, not 4; use at most 3",
        ),
        ({"kind": "released", "folder": "nowhere"}, (3, 8, 8), "nowhere: no config.json"),
    ],
    ids=str,
)
def test_images_that_a_row_does_not_fit_are_refused_in_a_line(
    keys: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(StudyError, match=said):
        AutoencoderRow(**keys).latent_shape(shape)
