"""Distances between feature sets, the extractors of these features, and their reference."""

from pipeline.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
