"""Solvers in published protocols: they end where zju-pi/diff-sampler's end, on an exact mixture, from the same noise.

published_protocols.json holds the end points of its code, diff-solvers-main at commit 68d5ce4 (Apache 2.0), unchanged,
run once in float64 on MIXTURE from NOISE with sigma_min 0.002 and sigma_max 80. A record is its solver with `max_order`
and `variant`, its `schedule_type` with `schedule_rho`, `afs`, the calls of the network, and the end points.

Its DEIS sums 10,000 rectangles for each coefficient. That leaves an error of about 1 in 10,000, which it halves with
twice as many. The records of "deis" have coefficients without this error: 2 c(200,000) - c(100,000). Those of
"deis_as_released" have c(10,000).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.diffusion.exact import Mixture
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler

F64 = torch.float64
MEANS = torch.tensor([[0.7, -0.2, 0.1], [-0.4, 0.5, -0.6], [0.1, -0.7, 0.5]], dtype=F64)
MIXTURE = Mixture(MEANS, torch.tensor([0.3, 0.5, 0.2], dtype=F64), 0.15)
NOISE = torch.tensor([[0.3, -1.2, 0.8], [-0.9, 0.4, 1.5]], dtype=F64)
RECORDS = json.loads(Path(__file__).with_suffix("").with_name("published_protocols.json").read_text())
THRESHOLDED = {"threshold": "dynamic"}  # as its DPM-Solver++ and UniPC do
SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "ddim"},  # Euler's method in sigma, whatever the schedule
    "heun": {"solver": "heun"},
    "dpm": {"solver": "dpm_solver_2"},
    **{f"ipndm {order}": {"solver": "ipndm", "order": order} for order in (2, 3, 4)},
    "ipndm_v 2": {"solver": "lms", "order": 2},
    **{f"deis {order}": {"solver": "deis", "order": order, "schedule": "vp"} for order in (2, 3, 4)},
    "deis_as_released 4": {"solver": "deis", "order": 4, "schedule": "vp"},
    "dpmpp 2": {"solver": "dpmpp_2m"} | THRESHOLDED,
    "dpmpp 3": {"solver": "dpmpp_3m"} | THRESHOLDED,
    **{
        f"unipc {order} {variant}": {"solver": "unipc", "order": order, "variant": variant} | THRESHOLDED
        for order in (2, 3)
        for variant in ("bh1", "bh2")
    },
}
GRIDS: dict[str, dict[str, Any]] = {
    "polynomial 7": {},
    "polynomial 5": {"rho": 5},
    "logsnr 7": {"discretization": "exponential"},
    **{f"time_uniform {rho}": {"discretization": "time", "schedule": "vp", "exponent": rho} for rho in (1, 2, 3)},
}
Record = tuple[str, str, bool, int, list[float]]


def row_of(solver: str, grid: str, afs: bool, nfe: int) -> Sampler:
    """The sampler row of a record."""
    keys = SOLVERS[solver] | GRIDS[grid]
    order = {"order": keys.pop("order", None)}  # a row refuses an order that so few steps never reach
    row = Sampler(**keys, end="sigma_min", first_step="analytic" if afs else "network", nfe=(nfe,))
    if row.solver in ("heun", "lms"):  # here in the time of a schedule, there in sigma
        row = row.with_grid(tuple(row.grid(row.steps(nfe)).tolist())).model_copy(update={"schedule": "linear"})
    return row.model_copy(update=order)


def difference(record: Record, **changes: Any) -> float:
    """The largest distance of our end points from a record's, for its row with `changes`."""
    *place, nfe, ends = record
    row = row_of(*place, nfe)
    steps = row.steps(nfe)
    made = sample(MIXTURE, NOISE, row.model_copy(update=changes), steps)
    assert changes or made.nfe == nfe == row.evaluations(steps) == row.depth(steps)
    return float((made.x0.flatten() - torch.tensor(ends, dtype=F64)).abs().max())


def records(solver: str) -> list[Record]:
    return [record for record in RECORDS if record[0] == solver]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if "released" not in name])
def test_a_solver_ends_where_the_published_one_ends(solver: str) -> None:
    own = records(solver)
    assert {nfe for *_, nfe, _ in own} == set(range(3, 11)) and {record[1] for record in own} == GRIDS.keys()
    assert max(map(difference, own)) < 1e-8


def test_deis_as_released_differs_by_the_error_of_its_coefficients() -> None:
    found = [difference(record) for record in records("deis_as_released 4")]
    assert len(found) == 3 and 1e-6 < max(found) < 1e-4


def test_every_record_has_a_row() -> None:
    assert {record[0] for record in RECORDS} == SOLVERS.keys()


@pytest.mark.parametrize("key", ["end", "first_step", "threshold"])
def test_the_keys_of_a_protocol_matter(key: str) -> None:
    """Without one of them the end points are others."""
    own = [record for record in records("unipc 3 bh1") if record[2]]
    assert max(difference(record, **{key: Sampler.model_fields[key].default}) for record in own) > 1e-3
