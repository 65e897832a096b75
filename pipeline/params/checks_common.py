"""Checks that several sections of a study file share."""

from collections.abc import Collection

from pipeline.common.errors import StudyError, nearest
from pipeline.data.points import POINTS
from pipeline.sampling.row import Sampler


def check_named(place: str, name: str, models: Collection[str]) -> None:
    """Refuse the name of a model that does not exist. Raises StudyError."""
    if name not in models:
        raise StudyError(f"{place}: no model {name!r}; {nearest(name, models)}")


def check_threshold(place: str, row: Sampler, source: str) -> None:
    """Refuse a threshold of points. Raises StudyError."""
    if row.threshold != "none" and source in POINTS:
        raise StudyError(f"{place}.threshold: only images can be thresholded, and {source} are points; use none")
