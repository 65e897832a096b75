"""The section on trajectories."""

from pathlib import Path

import pytest

from pipeline.data import points
from pipeline.data.dataset import Dataset
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE
from pipeline.report.sections import trajectories
from pipeline.report.study import Report
from tests.report.studies import made_up_study

pytestmark = pytest.mark.usefixtures("solved_trajectories")

CURVES = {
    "edm": {"model": "edm", "method": "EDM"},
    "rho_3": {"model": "edm", "rho": 3},
    "vp": {"model": "edm", "schedule": "vp"},
    "unscaled": {"model": "edm", "schedule": "flow", "scaling": "none"},
    "by_sigma": {"model": "edm", "solver": "dpmpp_2m", "schedule": "cosine"},
}


def lines(table: str) -> dict[tuple[str, str], list[str]]:
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {(one.strip("`"), other.strip("`")): rest for one, other, *rest in cells}


def test_the_table_has_every_schedule_and_the_curves_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_figures: None
) -> None:
    """A solver that uses only sigma uses no schedule; another scaling has its own line. All is deterministic."""
    monkeypatch.chdir(tmp_path)
    report = Report(made_up_study(tmp_path, CURVES, [0]), tmp_path)
    found = trajectories.section(report)
    table = lines(found["table"])
    assert list(table) == [*SCALING_OF_SCHEDULE.items(), ("flow", "none")]
    used = {pair: own[3].rstrip(" |") for pair, own in table.items() if len(own) > 3 and own[3].strip(" |")}
    assert used == {
        ("linear", "none"): "2 curves, `edm` first",
        ("vp", "vp"): "`vp`",
        ("flow", "none"): "`unscaled`",
    }
    assert table["linear", "none"][2] == table["ve", "none"][2]  # the same way at another speed
    assert table["vp", "vp"][2] == table["cosine", "vp"][2]
    assert found["data"].startswith("5 Gaussians") and (tmp_path / found["figure"]).stat().st_size > 10_000
    [said] = found["findings"]
    assert "highest in flow, scaling none (" in said and found["table"].count("**") >= 6
    content = (tmp_path / "trajectories.png").read_bytes()
    assert trajectories.section(report) == found and (tmp_path / "trajectories.png").read_bytes() == content


def test_points_have_their_own_denoiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trajectories, "COUNT", trajectories.DRAWN)
    monkeypatch.setattr(trajectories, "POINTS", 64)
    paths = made_up_study(tmp_path, {"edm": CURVES["edm"]}, [0])
    drawn = points.draw("two_moons", 200).x.float()
    report = Report(paths, tmp_path)
    report.of_points = True
    monkeypatch.setattr(trajectories, "load_prepared", lambda folder: Dataset(drawn, None))
    found = trajectories.section(report)
    assert found["data"] == "the study's first 64 points"
