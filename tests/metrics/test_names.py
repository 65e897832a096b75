"""Labels of metrics: only official Inception features make a FID."""

import re

import pytest

from pipeline.metrics.names import LABELS, label


@pytest.mark.parametrize(
    ("metric", "official", "other"),
    [
        ("fd", "FID", "FD (classifier)"),
        ("fd_corrected", "bias-corrected FID", "bias-corrected FD (classifier)"),
        ("fd_infinity", "FID at infinite samples", "FD (classifier) at infinite samples"),
        ("kd", "KID", "KD (classifier)"),
        ("score", "Inception score", "IS (classifier)"),
        ("precision", "precision", "precision (classifier)"),
        ("recall", "recall", "recall (classifier)"),
        ("density", "density", "density (classifier)"),
        ("coverage", "coverage", "coverage (classifier)"),
        ("near_duplicates", "near-duplicates", "near-duplicates (classifier)"),
    ],
)
def test_labels(metric: str, official: str, other: str) -> None:
    assert (label(metric, "inception", True), label(metric, "classifier", False)) == (official, other)


@pytest.mark.parametrize("metric", sorted(LABELS.keys() - {"w2", "sliced_w2"}))  # of the data, not of features
@pytest.mark.parametrize("name", ["inception", "dinov2-vit-l-14", "module FID"])
def test_no_unofficial_extractor_makes_a_fid(metric: str, name: str) -> None:
    text = label(metric, name, False)
    assert f"({name})" in text and not re.search("FID|KID|Inception score", text.replace(f"({name})", ""))
