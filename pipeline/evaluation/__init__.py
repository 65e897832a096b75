"""Measuring trained denoisers: curves, image sets, losses, bounds and convergence."""
