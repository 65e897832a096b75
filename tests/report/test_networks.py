"""The table of networks: shared lines, costs, and matched costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.files import Paths, write_json
from pipeline.report.build import build
from pipeline.report.sections import networks
from pipeline.report.study import Report
from tests.report.studies import HOSTILE, made_up_study, markdown

MODELS: dict[str, dict[str, Any]] = {
    "edm": {},
    "dit": {"network": "dit", "blocks": 4, "equal": "flops"},
    "snr": {"weighting": "snr"},
    "heir": {"base": "dit", "learning_rate": 0.002},
    "sized": {"network": "dit", "blocks": 4, "equal": "parameters"},
}
DIT: dict[str, Any] = {"network": "dit", "channels": 56, "parameters": 255_500, "flops": 5_260_000}
SIZED: dict[str, Any] = {"network": "dit", "channels": 40, "parameters": 12_340, "flops": 12_345_678_900}


def study(folder: Path, **costs: dict[str, Any]) -> Paths:
    """A made-up study in which some models have other costs."""
    paths = made_up_study(folder, {"edm": {"model": "edm"}}, [0, 1], models=MODELS)
    for name, own in costs.items():
        file = paths.metrics("train", name)
        write_json(file, json.loads(file.read_text()) | own)
    return paths


def test_models_with_equal_networks_share_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that inherits `equal` matches the cost of its own base."""
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path, dit=DIT, heir=DIT, sized=SIZED)
    report = Report(paths, tmp_path)
    header, _, *lines = networks.section(report).splitlines()
    costs = "| models | network | channels | parameters | MFLOPs per image | matches |"
    assert header == f"{costs} {report.score} of the first model, budget 8 |"
    assert lines == [
        f"| `edm` and `snr` | unet | 16 | 12,345 | 6.70 |  | {report.stated_at('edm', 8)} |",
        "| `dit` and `heir` | dit | 56 | 255,500 | 5.26 | FLOPs of `edm` (78.5%) and FLOPs of `dit` (100.0%) |  |",
        "| `sized` | dit | 40 | 12,340 | 12,346 | parameters of `edm` (100.0%) |  |",
    ]


def test_networks_are_compared_by_the_first_curves_sampler_at_a_common_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    curves = {
        "edm": {"model": "edm", "nfe": [4, 8, 35]},
        "other": {"model": "dit", "solver": "euler"},
        "dit": {"model": "dit", "nfe": [4, 8]},
    }
    paths = made_up_study(tmp_path, curves, [0, 1], models={"edm": MODELS["edm"], "dit": MODELS["dit"]})
    file = paths.metrics("train", "dit")
    write_json(file, json.loads(file.read_text()) | DIT)
    report = Report(paths, tmp_path)
    header, _, *lines = networks.section(report).splitlines()
    assert header.endswith(" of the first model, budget 8 |")
    assert [line.split(" | ")[-1] for line in lines] == [f"{report.stated_at(n, 8)} |" for n in ("edm", "dit")]


@pytest.mark.parametrize("key", ["network", "channels", "parameters", "flops"])
def test_another_size_is_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    one = networks.section(Report(study(tmp_path), tmp_path))
    two = networks.section(Report(study(tmp_path, snr={key: SIZED[key]}), tmp_path))
    assert (one.count("\n"), two.count("\n")) == (2, 3)


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (12_340, "0.0123"),
        (6_700_000, "6.70"),
        (123_400_000, "123"),
        (999_400_000, "999"),
        (999_600_000, "1,000"),
        (12_345_678_900, "12,346"),
    ],
)
def test_millions_of_operations(flops: int, text: str) -> None:
    assert networks.mega(flops) == text


def test_names_of_networks_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = networks.section(Report(study(tmp_path, dit={"network": HOSTILE}), tmp_path))
    assert HOSTILE not in table and table.count(r"\<script\>") == 1


def test_the_report_has_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = study(tmp_path, dit=DIT)
    build(paths)
    section = markdown(paths).split("\n## Cost\n")[1].split("\n## ")[0]
    assert "| `dit` | dit | 56 | 255,500 | 5.26 | FLOPs of `edm` (78.5%) |" in section
