"""A row of `autoencoders`: how one autoencoder is made."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.common.errors import StudyError
from pipeline.common.rows import MOST_STEPS, NonNegativeFloat, PositiveFloat, PositiveInt, Row, Seed, axis
from pipeline.diffusion.autoencoder import AutoencoderSpec
from pipeline.diffusion.released import channels_of, factor_of, released_config

LARGEST_FACTOR = 64
MOST_VALUES = 4096  # of a patch, whose covariance is decomposed
_TRAINING = ("images", "batch", "learning_rate", "warmup_images", "seed")
_NETWORK = ("factor", "channels", "width", "blocks")
KEYS: dict[str, tuple[str, ...]] = {  # the keys that each kind uses
    "kl": (*_NETWORK, "kl_weight", *_TRAINING),
    "vq": (*_NETWORK, "codebook", "commitment", *_TRAINING),
    "pca": ("factor", "channels"),
    "released": ("folder", "content"),
}


class AutoencoderRow(Row):
    """A row of `autoencoders`: its networks and how they are trained."""

    kind: Literal["kl", "vq", "pca", "released"] = axis("kl", "autoencoder")
    """kl: KL-regularised; vq: with a codebook; pca: principal components of patches; released: read from `folder`."""
    factor: Annotated[int, Field(ge=1, le=LARGEST_FACTOR)] = axis(4, "latents")
    """Number by which height and width of latents are smaller than the images'. For released, the folder says it."""
    channels: Annotated[int, Field(gt=0, le=16_384)] = axis(4, "latents")
    """Channels of latents. For released, the folder says it."""
    width: Annotated[int, Field(multiple_of=8, ge=8, le=16_384)] = axis(32, "autoencoder")
    """Channels at the latents' resolution, halved at each finer one, but at least 8. For kl and vq."""
    blocks: Annotated[int, Field(gt=0, le=256)] = axis(1, "autoencoder")
    """Residual blocks per resolution. For kl and vq."""
    kl_weight: NonNegativeFloat = axis(1e-6, "autoencoder")
    """Weight of the posterior's KL divergence from the standard normal distribution. For kl."""
    codebook: Annotated[int, Field(ge=2, le=65_536)] = axis(512, "autoencoder")
    """Number of vectors in the codebook. For vq."""
    commitment: NonNegativeFloat = axis(0.25, "autoencoder")
    """Weight of the distance between latents and their vectors of the codebook. For vq."""
    images: PositiveInt = axis(200_000, "training length")
    """Length of the training, in images. For kl and vq."""
    batch: PositiveInt = axis(128, "batch size")
    """Images per step. For kl and vq."""
    learning_rate: PositiveFloat = axis(2e-3, "learning rate")
    """Peak learning rate of Adam. For kl and vq."""
    warmup_images: PositiveInt = axis(10_000, "learning rate")
    """Images over which the learning rate rises linearly from 0. For kl and vq."""
    seed: Seed = 0
    """Seed of the training. For kl and vq."""
    folder: Annotated[str, Field(min_length=1)] | None = axis(None, "autoencoder")
    """Folder of a diffusers AutoencoderKL, with config.json and diffusion_pytorch_model.safetensors. For released."""
    content: str = ""
    """Digest of the folder's files; `resolve` fills it in."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, field in type(self).model_fields.items():
            if key != "kind" and key not in KEYS[self.kind] and getattr(self, key) != field.default:
                those = ", ".join(kind for kind, keys in KEYS.items() if key in keys)
                raise ValueError(f"{key}: kind {self.kind} does not use it; {key} is for {those}")
        if (self.kind == "released") != (self.folder is not None):
            raise ValueError("folder: kind released needs the folder of an AutoencoderKL; name one")
        if self.trained and (self.factor == 1 or self.factor & (self.factor - 1)):
            lower = max(1 << self.factor.bit_length() - 1, 2)
            raise ValueError(
                f"factor: {self.factor} is no power of two from 2 to {LARGEST_FACTOR}, which kind {self.kind} needs; "
                f"use {lower}, or kind pca"
            )
        if self.steps > MOST_STEPS:
            raise ValueError(f"images: {self.images} are {self.steps} steps; the most is {MOST_STEPS}")
        return self

    @property
    def trained(self) -> bool:
        """Whether it is trained by gradients."""
        return self.kind in ("kl", "vq")

    @property
    def steps(self) -> int:
        """The number of training steps, at least one."""
        return max(self.images // self.batch, 1)

    @property
    def seen_images(self) -> int:
        """The images of all steps of the training; 0 without one."""
        return self.steps * self.batch if self.trained else 0

    def spec(self, shape: tuple[int, ...]) -> AutoencoderSpec:
        """The spec of this row's autoencoder for images of `shape`, (C, H, W).

        Raises StudyError if the data are points, if the row does not fit the images, or if the folder is not valid.
        """
        if len(shape) != 3:
            raise StudyError("latents of points: autoencoders are for images; use space: null")
        if self.folder is not None:
            spec = _released(Path(self.folder).expanduser(), tuple(shape))
            if spec.factor > LARGEST_FACTOR:
                raise StudyError(f"folder: its factor is {spec.factor}; the most is {LARGEST_FACTOR}")
        else:
            used = {key: getattr(self, key) for key in ("width", "blocks", "codebook") if key in KEYS[self.kind]}
            spec = AutoencoderSpec(self.kind, tuple(shape), self.factor, self.channels, **used)
        channels, *sides = shape
        if any(side % spec.factor for side in sides):
            raise StudyError(
                f"factor: {spec.factor} does not divide images of {sides[0]} x {sides[1]}; use a divisor of both"
            )
        if not self.folder and (values := channels * spec.factor**2) > MOST_VALUES:
            raise StudyError(
                f"factor: patches of {channels} x {spec.factor} x {spec.factor} have {values} values, whose principal "
                f"components take too long; use a factor with at most {MOST_VALUES}"
            )
        if self.kind == "pca" and spec.channels > (most := channels * spec.factor**2):
            raise StudyError(
                f"channels: patches of {channels} x {spec.factor} x {spec.factor} have {most} components, not "
                f"{spec.channels}; use at most {most}"
            )
        return spec

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an image's latents, (c, H / factor, W / factor). Raises StudyError as `spec` does."""
        return self.spec(shape).latent_shape


def _released(folder: Path, shape: tuple[int, ...]) -> AutoencoderSpec:
    config = released_config(folder)
    if {config["in_channels"], config["out_channels"]} != {shape[0]}:
        raise StudyError(
            f"folder: {folder} is for images with {config['in_channels']} channels, not {shape[0]}; use another one"
        )
    return AutoencoderSpec(
        "released", shape, factor_of(config), channels_of(config), config=json.dumps(config, sort_keys=True)
    )
