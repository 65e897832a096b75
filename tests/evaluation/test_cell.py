"""A cell's file."""

from pathlib import Path

import torch

from pipeline.evaluation.cell import Cell, load_cell, save_cell
from tests.evaluation.small import same


def test_a_cell_survives_its_file(tmp_path: Path) -> None:
    metrics = [{"metric": "fd", "value": 1 / 3, "se": 5e-324}]
    images, features = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2), torch.rand(3, 2)
    cell = Cell(1, 2, 3, 4, 5, "0" * 64, metrics, images, features)
    save_cell(cell, tmp_path / "cell")
    again = load_cell(tmp_path / "cell")
    assert again is not None and same([again], [cell])
    assert load_cell(tmp_path / "none") is None
