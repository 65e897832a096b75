"""Distances from the truth through the stages of a study of points, and none for images."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.common.files import Paths, read_json, write_json
from pipeline.data.row import Data
from pipeline.evaluation import losses as measured
from pipeline.evaluation import truth
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.report.results import read_losses
from stages import Arguments, autoencode, losses, prepare, train

PATHS = Paths("t")
SMALL = {"images": 64, "batch": 64, "channels": 16, "blocks": 1, "train_seeds": [0, 1]}


@pytest.mark.parametrize(
    ("source", "row"), [("checkerboard", {"network": "mlp"}), ("digits", {"multipliers": [1]})], ids=str
)
def test_losses_have_distances_where_the_truth_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, row: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(truth, "DRAWS", 50)
    monkeypatch.setattr(measured, "SIGMAS", 3)
    of_points = source != "digits"
    study = Study(
        study={"name": "t"},
        data=Data(source=source, limit=200),
        features={"extractor": "coordinates"} if of_points else {},
        models={"edm": row | SMALL},
        curves={"edm": {"model": "edm"}},
        sets={},
    )
    for name, content in resolve(study).files().items():
        write_json(PATHS.rows / f"{name}.json", content)
    prepare.main(Arguments("t"))
    autoencode.main(Arguments("t"))
    train.main(Arguments("t", "edm"))
    losses.main(Arguments("t"))
    found, about = read_losses(PATHS, ["edm"]), read_json(PATHS.metrics("losses", "models"))
    distances = found[["denoising_error", "map_error"]]
    assert len(found) == 2 * 2 * 3 and found.error.notna().all()
    if of_points:
        assert (distances > 0).all(axis=None)
        assert about["truth"] == {
            "draws": 50,
            "end": 0.002,
            "denoiser_map_errors": about["truth"]["denoiser_map_errors"],
        }
        assert len(about["truth"]["denoiser_map_errors"]) == 3
    else:
        assert distances.isna().all(axis=None) and about["truth"] is None
        assert PATHS.losses.read_text().splitlines()[1].endswith(",,")
