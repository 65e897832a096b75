"""Made-up results of posterior samplers, in the files that the stages write."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.files import Paths, read_json, write_json
from pipeline.common.tensors import save_tensors
from pipeline.evaluation.given import EXACT, HELDOUT, PRIOR, Cell, Line, save_cells
from pipeline.metrics.posterior import RANKED
from pipeline.params.resolve import resolve
from pipeline.params.resolved import ReportRows
from pipeline.params.study import Study

SHAPE = (1, 2, 2)
BUDGETS = (9, 27)
MODELS: dict[str, dict[str, Any]] = {"edm": {}, "flow": {"parametrization": "flow", "noise": "flow_uniform"}}
MEASUREMENTS: dict[str, dict[str, Any]] = {
    "noisy": {"operator": "identity", "std": 0.3},
    "half": {"operator": "downsample", "std": 0.1},
}
POSTERIORS: dict[str, dict[str, Any]] = {
    "dps": {},
    "tmp": {"posterior": "tmp"},
    "dps_tuned": {"base": "dps", "tune": {"zeta": [0.1, 10]}},
    "tmp_ddim": {"base": "tmp", "solver": "ddim"},
    "edm_dps": {"base": "dps_tuned", "model": "edm"},
    "flow_tmp": {"base": "tmp", "model": "flow"},
}


def rows_of(posteriors: Mapping[str, dict[str, Any]] = POSTERIORS, **changed: Any) -> ReportRows:
    """The resolved rows of a study with these posterior samplers at BUDGETS."""
    study = Study(
        title="made up",
        study={"name": "made_up"},
        defaults={"posteriors": {"nfe": list(BUDGETS)}, "models": {"train_seeds": [0, 1, 2]}},
        models=MODELS,
        curves={name: {"model": name, "nfe": [4, 8]} for name in MODELS},
        measurements=MEASUREMENTS,
        posteriors=dict(posteriors),
        given={"problems": 4, "draws": 4} | changed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        resolved = resolve(study)
    return ReportRows(**resolved.files()["report"])


def cell(
    row: str,
    distances: Sequence[float],
    measurement: str = "noisy",
    part: str = PRIOR,
    budget: int = 27,
    seeds: tuple[int | str, int | str] = ("", 0),
    model: str = "",
    failed: str = "",
    ranks: float | Sequence[float] = 0.5,
    **others: Sequence[float],
) -> Cell:
    """A cell with these distances by problem. Other scores are those of `others`, or 1; ranks: those of problems."""
    count = len(distances)
    line = Line(row, model, measurement, part, budget, *seeds, 3, 3, 2, 1, 7, "zeta 1", count, 4, failed=failed)
    if failed:
        return Cell(line, {}, torch.empty(0), torch.empty(0))
    names = ["energy_score", "misfit", "coverage_50", "coverage_90", "psnr", "feature_distance"]
    names += ["energy_distance", "mean_error", "std_error"] if part == PRIOR else []
    found = {name: _tensor(others.get(name, [1.0] * count)) for name in names}
    found |= {"sliced_w2": _tensor(distances)} if part == PRIOR else {}
    places = torch.as_tensor(np.broadcast_to(np.reshape(ranks, (-1, 1)), (count, RANKED)).copy())
    return Cell(line, found, places, torch.zeros(count, 5, 4))


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def made_up_cells(
    rows: ReportRows,
    levels: Mapping[str, float],
    without: Sequence[str] = (),
    train_seeds: Sequence[int] = (0, 1, 2),
    heldout: bool = True,
    problems: int = 4,
) -> dict[str, list[Cell]]:
    """Cells of all rows with distances around their level, at all measurements, budgets and seeds, and exact draws.

    Distances vary between problems by a factor that all rows share, and by a smaller one of each row.
    """
    shared = np.geomspace(0.5, 2, problems)
    found: dict[str, list[Cell]] = {
        EXACT: [cell(EXACT, shared * 0.1, name, budget=0, seeds=("", 0)) for name in rows.measurements]
    }
    for place, (name, entry) in enumerate(rows.posteriors.items()):
        model, own = entry.row.model or "", np.random.default_rng(place)
        found[name] = []
        for measurement in rows.measurements if name not in without else ():
            for part in (PRIOR, *([HELDOUT] if model and heldout else [])):
                for budget in entry.row.nfe:
                    for seed in train_seeds:
                        values = levels.get(name, 1.0) * shared * np.exp(0.02 * own.standard_normal(problems))
                        seeds = (seed if model else "", seed)
                        made = cell(name, values, measurement, part, budget, seeds, model, energy_score=values)
                        found[name].append(made)
    return found


def write_posteriors(
    paths: Paths, rows: ReportRows, cells: Mapping[str, Sequence[Cell]], shape: Sequence[int] = SHAPE
) -> None:
    """Write the files of the stages `resolve`, `tune` and `given` into a made-up study."""
    report, own = read_json(paths.row("", "report")), rows.model_dump(mode="json")
    write_json(paths.row("", "report"), report | {key: own[key] for key in ("measurements", "posteriors", "given")})
    folder = paths.build / "posteriors"
    for name in [EXACT, *rows.posteriors]:
        save_cells(folder / f"{name}.safetensors", cells.get(name, []))
    size = int(np.prod(shape))
    tensors = {}
    for name, measurement in rows.measurements.items():
        count = measurement.build(shape).size
        for part in (PRIOR, HELDOUT):
            tensors |= {f"{name}/{part}/x0": torch.zeros(4, size), f"{name}/{part}/y": torch.zeros(4, count)}
        tensors[f"{name}/{PRIOR}/exact"] = torch.zeros(4, 5, size)
    save_tensors(folder / "problems.safetensors", tensors, "problems", {"shape": list(shape)})
    record = {"keys": {"zeta": 0.3}, "score": 0.25, "default": 0.5, "tried": 6, "cost": 1000}
    tuned = {
        name: [record | {"measurement": m, "nfe": nfe} for m in rows.measurements for nfe in entry.row.nfe]
        for name, entry in rows.posteriors.items()
        if entry.row.tune
    }
    write_json(paths.metrics("tune", "posteriors"), tuned)
