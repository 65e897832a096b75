"""The section of samples."""

import numpy as np

from pipeline.common.sealed import reading
from pipeline.common.tensors import load_tensors
from pipeline.data.dataset import load_prepared
from pipeline.report.figures.pictures import points_figure, samples_figure
from pipeline.report.results import cells
from pipeline.report.study import Report

SHOWN_BUDGETS = 7


def samples(report: Report) -> int:
    """Draw the samples by method. Returns how many of each set are shown; 0 if no method has a point."""
    grid = {}
    for name in report.with_points(report.methods):
        points = cells(report.results, name, report.headline)[["steps", "nfe"]].drop_duplicates().sort_values("nfe")
        shown = points.head(SHOWN_BUDGETS).itertuples()
        grid[report.label(name)] = {int(p.nfe): shown_samples(report, name, p.steps) for p in shown}
    if grid and report.of_points:
        points_figure(report.figures / "samples.png", load_prepared(report.paths.data).images.numpy(), grid)
    elif grid:
        samples_figure(report.figures / "samples.png", grid)
    return min((len(tiles) for row in grid.values() for tiles in row.values()), default=0)


def shown_samples(report: Report, name: str, steps: int) -> np.ndarray:
    """The stored samples of a curve's first repetition at a number of steps: images (n, C, H, W) or points (n, 2)."""
    train_seed, sample_seed = report.curves[name].row.seeds[0]
    path = report.paths.curve(name) / "images.safetensors"
    with reading(path):
        found: np.ndarray = load_tensors(path, "images")[0][f"{steps}/{train_seed}/{sample_seed}"].numpy()
        return found
