"""Sampling from a denoiser: solvers, grids of noise levels, guidance and the loop."""

from pipeline.sampling.loop import Samples, sample

__all__ = ["Samples", "sample"]
