"""Measuring a curve of a training that failed, or that made a student for each number of steps."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import StudyError
from pipeline.common.files import content_hash
from pipeline.common.tensors import read_sealed
from pipeline.diffusion.denoiser import load_denoiser, save_denoiser
from pipeline.diffusion.weights import failure_file, main_file, save_failure, student_file
from pipeline.evaluation.fits import fit_model
from pipeline.evaluation.sweep import measure_curve, save_curve
from pipeline.sampling import fitted_grids
from tests.evaluation.small import SAMPLES, Trained, broken, curve

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("keys", [{}, {"discretization": "optimised"}], ids=str)
def test_a_failed_training_fails_its_own_cells_alone(
    trained: Trained, tmp_path: Path, seed: int, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted_grids, "TRAJECTORIES", 16)
    half = broken(trained, tmp_path / "model")
    (half.model / f"seed_{seed}.safetensors").unlink()
    save_failure("seed: no number", failure_file(half.model, seed))
    half = half._replace(fits=fit_model(half.model, [(0.002, 80.0)], []))
    assert len(half.fits.grids) == 1
    cells = measure_curve(curve(**keys), *half, workers=1)
    failed = [c for c in cells if c.train_seed == seed]
    assert [(c.failed, c.nfe, c.checkpoint, c.metrics, len(c.images)) for c in failed] == [
        ("training failed: seed: no number", nfe, "", [], 0) for nfe in (3, 5)
    ]
    good = [c for c in measure_curve(curve(**keys), *trained, workers=1) if c.train_seed != seed]
    assert [c.record() for c in cells if not c.failed] == [c.record() for c in good]
    assert [len(c.features) for c in cells if not c.failed] == [0, SAMPLES], "another seed keeps its features"
    save_curve(cells, {"extractor": "classifier"}, tmp_path / "a")
    assert len(load_file(tmp_path / "a/features.safetensors")["features"]) == SAMPLES


def test_a_curve_samples_with_the_student_for_its_number_of_steps(trained: Trained, tmp_path: Path) -> None:
    """The main file, which has the last student, is not asked; other models have none."""
    own = broken(trained, tmp_path / "model", 0, 1)
    for seed in (0, 1):
        for steps in (1, 2, 4):
            student = load_denoiser(main_file(trained.model, seed))
            with torch.no_grad():
                next(student.network.parameters()).mul_(1 + steps / 10)
            save_denoiser(student, student_file(own.model, seed, steps))
    row = curve(solver="ddim", finest_steps=8, nfe=[4, 1, 2])
    cells = measure_curve(row, *own, workers=1)
    assert [cell.nfe for cell in cells] == [1, 1, 2, 2, 4, 4] and not any(cell.failed for cell in cells)
    files = [student_file(own.model, cell.train_seed, cell.steps) for cell in cells]
    assert [cell.checkpoint for cell in cells] == [content_hash(partial(read_sealed, file)) for file in files]
    assert len({cell.checkpoint for cell in cells}) == 6
    with pytest.raises(StudyError, match="no student was made for 8 steps; there are those for 1, 2, 4"):
        measure_curve(curve(solver="ddim", nfe=[8]), *own, workers=1)
