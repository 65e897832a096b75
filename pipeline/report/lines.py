"""The scores of a set of images as text for a terminal."""

import math
from typing import Any

import numpy as np

from pipeline.common.files import SHORT_HASH
from pipeline.evaluation.cell import Cell
from pipeline.metrics.extractors.extractor import Extractor
from pipeline.metrics.names import label
from pipeline.report.statistics import floor_of

SMALL = 10  # the least samples per feature without a warning


def few(samples: int, dimensions: int) -> str:
    """A warning if there are few samples for the number of features."""
    return f"Few samples: {samples} for {dimensions} features. " if samples < SMALL * dimensions else ""


def lines(cells: list[Cell], extractor: Extractor, reference: dict[str, Any]) -> str:
    """One line per metric: mean, standard deviation over repetitions (or standard error), and floor.

    cells: the repetitions of the set. reference: the summary from `make_reference`.
    """
    samples, dimensions, repetitions = cells[0].samples, cells[0].features.shape[1], len(cells)
    values = {m["metric"]: [c.metrics[i]["value"] for c in cells] for i, m in enumerate(cells[0].metrics)}
    bias = float(np.mean(values["fd"]) - np.mean(values["fd_corrected"]))
    names = {m["metric"]: label(m["metric"], extractor.name, extractor.official) for m in cells[0].metrics}
    width = max(44, 2 + max(map(len, names.values())))
    real = "to train on" if "heldout" in reference else "of the data set"
    found = [
        f"{repetitions} x {samples} images by {extractor.name} ({extractor.hash[:SHORT_HASH]}) against all "
        f"{reference['images']} {real} ({reference['reference_hash'][:SHORT_HASH]})",
        f"{few(samples, dimensions)}The plain distance has a bias of about {bias:.3g} at this number of samples.",
        f"{'':{width}}{'mean':>12}{'sd' if repetitions > 1 else 'se':>12}{'floor':>12}",
    ]
    for metric in cells[0].metrics:
        own, floor = values[metric["metric"]], floor_of(metric["metric"], reference, samples)
        spread = float(np.std(own, ddof=1)) if repetitions > 1 else math.nan if metric["se"] is None else metric["se"]
        lowest = f"{floor.mean:.5g}" if floor else ""
        found.append(f"{names[metric['metric']]:{width}}{np.mean(own):>12.5g}{spread:>12.2g}{lowest:>12}")
    return "\n".join(found)
