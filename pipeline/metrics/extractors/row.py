"""The row that names a feature extractor."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.common.rows import PositiveFloat, PositiveInt, Row, Seed

EXPORT = (
    "write it with torch.export.save(torch.export.export(module.eval(), (uint8 images,), "
    "dynamic_shapes=({0: torch.export.Dim.AUTO},)), 'name.pt2')"
)


class Features(Row):
    """The `features` section: the extractor, its file, and how the classifier is trained.

    Without `hash`, Inception weights must be torch-fidelity's. If an extractor's weights are unavailable, the study
    uses the classifier.
    """

    extractor: Literal["classifier", "inception", "module", "coordinates"] = "classifier"
    """The feature extractor: classifier (trained on the data), inception (FID), module, coordinates."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """File of the extractor's weights, for inception, or of an exported program (.pt2), for module."""
    hash: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = None
    """First digits of the sha256 of that file, at least 8."""
    width: Annotated[int, Field(ge=8, le=65_536, multiple_of=8)] = 64
    """Channels of the classifier, which is the number of features."""
    epochs: PositiveInt = 30
    """Epochs of the classifier's training."""
    batch: PositiveInt = 64
    """Images per step of the classifier's training."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate of the classifier's training."""
    seed: Seed = 0
    """Seed of the classifier's training."""
    content: str = ""
    """Digest of the weights' file; `resolve` fills it in."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights and self.extractor not in ("inception", "module"):
            raise ValueError(f"weights: {self.extractor} takes no file; inception and module do")
        if self.extractor == "module" and not (self.weights or "").endswith(".pt2"):
            raise ValueError(f"weights: module needs the path of an exported program (.pt2); {EXPORT}")
        if self.hash and not self.weights:
            raise ValueError("hash: belongs to the file in weights, but weights is missing; leave hash out")
        return self
