"""Check this study's values against torchmetrics and torch-fidelity, on the same features."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.sealed import load_json, reading
from pipeline.common.tensors import load_tensors
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.names import HELDOUT, TRAIN, against
from pipeline.metrics.neighbours import PRECISION_NEIGHBOURS, neighbour_metrics
from pipeline.metrics.reference import Reference

TOLERANCE = 1e-4  # relative
# The rounding errors of a distance, relative to `_magnitude`. The Frechet distance takes roots of eigenvalues that are
# 0 to rounding, so its own error is about the root of float64's.
ROUNDING = {"fd": 1e-6, "kd": 1e-12}

Values = dict[str, float]


def ours(x: Tensor, reference: Reference) -> Values:
    """Our values for generated features (n, d): `fd` with all real images, `precision`, `recall` at equal counts."""
    count = min(len(x), len(reference.features))
    metrics = neighbour_metrics(x[:count], reference.features[:count])
    return {
        "fd": frechet_distance(x, reference.moments),
        "precision": metrics["precision"].value,
        "recall": metrics["recall"].value,
    }


def by_torch_fidelity(x: Tensor, y: Tensor) -> Values:
    """torch-fidelity's FID, KID and PRC of generated features (n, d) against real ones (m, d), without its caches.

    Its KID draws subsets. One subset with all samples gives the full U-statistic at equal counts.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    count = min(len(x), len(y))
    fid = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    kid = kid_features_to_metric(x[:count], y[:count], kid_subsets=1, kid_subset_size=count, verbose=False)
    prc = prc_features_to_metric(
        x[:count], y[:count], prc_neighborhood=PRECISION_NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return {
        "fd": fid[KEY_METRIC_FID],
        "kd": kid[KEY_METRIC_KID_MEAN],
        "precision": prc[KEY_METRIC_PRECISION],
        "recall": prc[KEY_METRIC_RECALL],
    }


class _Given(nn.Module):
    """Replaces the extractor of a library: its outputs are its inputs, which are features already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: Tensor) -> Tensor:
        return features


def by_torchmetrics(x: Tensor, y: Tensor) -> Values:
    """torchmetrics' FID and KID of generated features (n, d) against real ones (m, d)."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    count, given = min(len(x), len(y)), _Given(x.shape[1]).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        fid = FrechetInceptionDistance(feature=given)
        kid = KernelInceptionDistance(feature=given, subsets=1, subset_size=count)
    for metric, own, real in ((fid, x, y), (kid, x[:count], y[:count])):
        metric.update(real, real=True)
        metric.update(own, real=False)
    with torch.random.fork_rng(devices=[]):  # its subset has all samples in random order, which changes rounding
        torch.manual_seed(0)
        return {"fd": float(fid.compute()), "kd": float(kid.compute()[0])}


LIBRARIES: dict[str, Callable[[Tensor, Tensor], Values]] = {
    "torch-fidelity": by_torch_fidelity,
    "torchmetrics": by_torchmetrics,
}


def compare(features: Tensor, own: Values, reference: Reference) -> list[dict[str, Any]]:
    """The values of both libraries and ours: [{library, metric, ours, theirs, difference}].

    features (n, d): of one cell; own: the study's values for them. We add the kernel distance at equal counts, because
    the libraries have no other. The difference is relative; it is 0 for two distances that only rounding separates.
    """
    x, y = features.double(), reference.features.double()
    count = min(len(x), len(y))
    own = own | {"kd": kernel_distance(x[:count], y[:count]).value}
    rounding = {metric: ROUNDING[metric] * size for metric, size in _magnitude(reference).items()}
    return [
        {
            "library": library,
            "metric": metric,
            "ours": own[metric],
            "theirs": theirs,
            "difference": _difference(own[metric], theirs, rounding.get(metric, 0.0)),
        }
        for library, measured in LIBRARIES.items()
        for metric, theirs in measured(x, y).items()
    ]


def _magnitude(reference: Reference) -> Values:
    """The size of the terms whose difference is a distance from the reference."""
    spread, dimensions = float(reference.moments.covariance.trace()), reference.features.shape[1]
    length = spread + float(reference.moments.mean.square().sum())
    return {"fd": spread, "kd": (length / dimensions + 1) ** 3}


def _difference(one: float, two: float, rounding: float) -> float:
    """The relative difference of two values; 0 if it is too large, but the values differ by rounding errors only."""
    gap, size = abs(one - two), max(abs(one), abs(two))
    return 0.0 if gap == 0 or TOLERANCE * size < gap <= rounding else gap / size


def compare_curve(folder: Path, place: str, reference: Reference) -> list[dict[str, Any]]:
    """`compare` for the cell of a curve whose features are kept, with the training images and, if there are any, with
    the held-out ones; an empty list if that cell failed.

    place: the row in the study, such as curves.edm, for errors. Raises StudyError if a library disagrees.
    """
    path = folder / "features.safetensors"
    with reading(path):
        cells = load_json(folder / "results.json")["cells"]
        tensors, index = load_tensors(path, "cell")
        features, cell = tensors["features"], cells[index]
        if not len(features):
            if any(each.get("failed") for each in cells):
                return []
            raise ValueError("no features, though no cell failed")
    whole, rows = len(features) == cell["samples"], []
    reported = {m["metric"]: m["value"] for m in cell["metrics"]}
    for name, real in [(TRAIN, reference), (HELDOUT, reference.others.get(HELDOUT))]:
        if real is None:
            continue
        measured = {m: reported[against(name, m)] for m in ("fd", "precision", "recall")} if whole else None
        found = compare(features, measured or ours(features, real), real)
        rows += [row | {"metric": against(name, row["metric"])} for row in found]
    for row in rows:
        if not row["difference"] <= TOLERANCE or not math.isfinite(row["theirs"]):
            raise StudyError(
                f"{place}: {row['library']} finds {row['metric']} = {row['theirs']:.8g}, and this study "
                f"{row['ours']:.8g}; the difference is {row['difference']:.1e}, and at most {TOLERANCE:.0e} is valid"
            )
    return rows
