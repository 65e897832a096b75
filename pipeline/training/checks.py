"""Whether a model row can be trained on a data set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.data.dataset import shape_of
from pipeline.diffusion.networks.registry import build
from pipeline.diffusion.spec import Spec
from pipeline.training.row import Model


def spec_of(row: Model, data: dict[str, Any]) -> Spec:
    """The spec of a row's denoiser for a data set, given by its summary."""
    return row.spec(data["sigma_data"], shape_of(data), [*data.get("class_counts", {}).values()])


def check_models(rows: Mapping[str, Model], data: dict[str, Any], images: Tensor, labels: Tensor | None) -> None:
    """Refuse rows, by name, that cannot be trained on this data, given with its summary. Raises StudyError."""
    for name, row in rows.items():
        try:
            check_examples(row, images, labels)
            with torch.device("meta"):  # nothing is allocated
                build(spec_of(row, data))
        except StudyError as error:
            raise StudyError(f"models.{name}.{error}") from None


def check_examples(row: Model, images: Tensor, labels: Tensor | None) -> None:
    """Refuse data that a row cannot be trained on. Raises StudyError."""
    if row.labels == "classes" and labels is None:
        raise StudyError("labels: classes needs a data set with classes, and this one has none; use labels: none")
    if row.classifier_images and labels is None:
        raise StudyError("classifier_images: a classifier needs a data set with classes, and this one has none; use 0")
    for key in ("augment", "flip"):
        if getattr(row, key) and images.ndim != 4:
            raise StudyError(f"{key}: only images can be mirrored, and the data are points; use 0")
    if row.pairs == "reflow" and row.batch > row.reflow_pairs:
        raise StudyError(
            f"batch: {row.batch}, but reflow_pairs is {row.reflow_pairs}; lower batch or raise reflow_pairs"
        )
    if row.pairs != "reflow" and row.batch > len(images) and row.import_ is None:
        raise StudyError(f"batch: {row.batch}, but the data set has {len(images)} examples; use at most as many")
