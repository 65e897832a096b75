"""The row that names a data set."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.common.rows import MOST, Row, Seed


class Data(Row):
    """The `data` section: the data set. All its images have one size."""

    source: str = Field(default="digits", min_length=1)  # "./digits" is a folder of that name
    """digits, photo_patches, cifar10, two_moons, spiral, checkerboard, mixture, or folder, .zip, CIFAR-10's .tar.gz."""
    limit: int | None = Field(default=None, ge=2, le=MOST)
    """Use only the first so many images; null: all."""
    labels: bool = True
    """Whether to read classes, from class folders or dataset.json."""
    heldout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images that nothing is trained on or fitted to: scores are measured against them, too; 0: none."""
    heldout_seed: Seed = 0
    """Seed of the choice of held-out images."""
    size: int = Field(default=16, ge=1, le=MOST)
    """Side of the square patches of photo_patches, in pixels."""
    stride: int = Field(default=4, ge=1, le=MOST)
    """Distance between neighbouring patches of photo_patches, across and down, in pixels."""
    content: str = ""
    """Digest of the source's files, "" for built-in data; `resolve` fills it in."""

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        for key in ("size", "stride"):
            if self.source != "photo_patches" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: only photo_patches is cut into patches, not {self.source}; leave {key} out")
        return self
