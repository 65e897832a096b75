"""The study file: reading, validating and resolving params.yaml."""

from pipeline.sampling.row import Sampler

__all__ = ["Sampler"]
