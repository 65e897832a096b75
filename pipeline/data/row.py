"""The row that names a data set."""

from pydantic import Field

from pipeline.common.rows import MOST, Row, Seed


class Data(Row):
    """The `data` section: the data set. All its images have one size."""

    source: str = Field(default="digits", min_length=1)  # "./digits" is a folder of that name
    """digits, cifar10, two_moons, spiral, checkerboard, mixture, or a path: folder, .zip, CIFAR-10's .tar.gz."""
    limit: int | None = Field(default=None, ge=2, le=MOST)
    """Use only the first so many images; null: all."""
    labels: bool = True
    """Whether to read classes, from class folders or dataset.json."""
    heldout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images that nothing is trained on or fitted to: scores are measured against them, too; 0: none."""
    heldout_seed: Seed = 0
    """Seed of the choice of held-out images."""
    content: str = ""
    """Digest of the source's files, "" for built-in data; `resolve` fills it in."""
