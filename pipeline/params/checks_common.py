"""Checks that several sections of a study file share."""

from collections.abc import Collection

from pipeline.common.errors import StudyError, nearest
from pipeline.data.points import POINTS
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model


def check_named(place: str, name: str, rows: Collection[str], kind: str = "model") -> None:
    """Refuse the name of a row that does not exist. kind: of its section's rows. Raises StudyError."""
    if name not in rows:
        valid = nearest(name, rows) if rows else f"the study has no {kind}s; add this one"
        raise StudyError(f"{place}: no {kind} {name!r}; {valid}")


def check_of_data(place: str, name: str, row: Model) -> None:
    """Refuse a model of latents or of a stage of a cascade. Raises StudyError."""
    if not row.lives_in_data:
        key = next(key for key in ("space", "resolution", "upsampler") if getattr(row, key))
        raise StudyError(
            f"{place}: model {name} has {key}, and this is measured in the space of the data; name a model without it"
        )


def check_threshold(place: str, row: Sampler, source: str) -> None:
    """Refuse a threshold of points. Raises StudyError."""
    if row.threshold != "none" and source in POINTS:
        raise StudyError(f"{place}.threshold: only images can be thresholded, and {source} are points; use none")
