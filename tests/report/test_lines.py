"""The scores of a set of images as text for a terminal."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.evaluation.cell import Cell
from pipeline.report.lines import few, lines

REFERENCE = {
    "images": 1000,
    "floor_images": 500,
    "reference_hash": "r" * 64,
    "floor": {"fd": {"mean": 0.4, "sd": 0.1}, "fd_corrected": {"mean": 0.2, "sd": 0.1}, "kd": {"mean": 0.0, "sd": 0.1}},
}
EXTRACTOR = SimpleNamespace(name="classifier", hash="e" * 64, official=False)


def cell(fd: float, features: int) -> Cell:
    values = {"fd": fd, "fd_corrected": fd - 0.25, "kd": 0.01, "score": 9.0}
    metrics = [{"metric": name, "value": value, "se": 0.125} for name, value in values.items()]
    return Cell(0, 0, 0, 0, 250, "c" * 64, metrics, torch.zeros(0), torch.zeros(250, features))


@pytest.mark.parametrize(("values", "spread"), [([1.0], "0.12"), ([1.0, 2.0], "0.71")])
def test_every_metric_has_its_mean_its_spread_and_its_floor(values: list[float], spread: str) -> None:
    """The floor of a Frechet distance is scaled: c = 100, 250 samples against 1000 images."""
    found = lines([cell(v, 25) for v in values], EXTRACTOR, REFERENCE).splitlines()
    assert found[0].startswith(f"{len(values)} x 250 images by classifier (eeeeeeeeeeee) against all 1000")
    assert found[1] == "The plain distance has a bias of about 0.25 at this number of samples."
    mean = sum(values) / len(values)
    assert found[3].split() == ["FD", "(classifier)", f"{mean:g}", spread, "0.5"]
    assert found[4].split()[-3:] == [f"{mean - 0.25:g}", spread, "0.1"]
    assert [len(line) for line in found[3:-1]] == [44 + 36] * 3 and found[-1].startswith("IS (classifier)")


def test_few_samples_are_marked() -> None:
    assert lines([cell(1.0, 26)], EXTRACTOR, REFERENCE).splitlines()[1].startswith("Few samples: 250 for 26 features.")
    assert few(250, 25) == "" and few(249, 25)
