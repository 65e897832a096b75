"""The section on cumulative paths."""

from pathlib import Path

import pytest

from pipeline.common.files import Paths
from pipeline.report.build import build
from pipeline.report.sections.paths import paths as found_paths
from pipeline.report.sections.paths import sections
from pipeline.report.study import Report
from tests.report.studies import change, fail, made_up_study, markdown, row

MODELS = {
    "a": {"parametrization": "vp", "noise": "vp_uniform"},
    "b": {"base": "a", "learning_rate": 0.004},
    "c": {"base": "b", "channels": 24},
    "d": {"base": "c", "parametrization": "edm"},
    "e": {"base": "d", "noise": "lognormal", "weighting": "min_snr"},
    "f": {"base": "d", "noise": "flow_uniform"},
}
CHAIN = {
    "config_a": {"model": "a", "method": "baseline"},
    "config_b": {"base": "config_a", "model": "b"},
    "config_c": {"base": "config_b", "model": "c"},
    "config_d": {"base": "config_c", "model": "d"},
    "config_e": {"base": "config_d", "model": "e"},
    "config_f": {"base": "config_d", "model": "f", "solver": "euler"},
}
TRUNK = ["config_a", "config_b", "config_c", "config_d"]


def paths_of(folder: Path, curves: dict[str, dict], models: dict[str, dict] | None = None) -> list[list[str]]:
    return found_paths(Report(made_up_study(folder, curves, [0, 1], models=models or MODELS), folder))


def test_a_path_follows_the_named_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without `base` is no step from the first row, and a row without a change is no step."""
    monkeypatch.chdir(tmp_path)
    both = [[*TRUNK, "config_e"], [*TRUNK, "config_f"]]
    assert paths_of(tmp_path, CHAIN) == both
    assert paths_of(tmp_path, {"first": {"model": "e"}, **CHAIN, "aside": {"model": "a", "rho": 3}}) == both
    assert paths_of(tmp_path, {**CHAIN, "seeds": {"base": "config_e", "model": "e", "repetitions": "crossed"}}) == both
    fewer = {name: row for name, row in CHAIN.items() if name not in ("config_e", "config_f")}
    assert paths_of(tmp_path, fewer) == [TRUNK]
    del fewer["config_d"]
    assert paths_of(tmp_path, fewer) == []
    late = {"first": {"model": "a"}, **fewer}  # first <- config_a <- config_b <- config_c, the first link not written
    assert paths_of(tmp_path, late) == []
    late["config_a"] = {"base": "first", "model": "a", "rho": 3}
    assert paths_of(tmp_path, late) == [["first", *TRUNK[:3]]]


def test_a_path_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = made_up_study(tmp_path, CHAIN, [0, 1, 2], models=MODELS)
    change(study, "config_d", {3: [4.0, 5.0, 6.0], 7: [1.0, 2.0, 3.0]})
    change(study, "config_e", {3: [4.0, 4.0, 9.0], 7: [0.5, 1.4, 2.6]})
    build(study)
    text = markdown(study).split("## Cumulative paths")[1].split("\n## ")[0]
    assert "### From `config_a` to `config_e`" in text and "### From `config_a` to `config_f`" in text
    assert "| step | change | budget 4 | budget 8 | ratio to the previous step, budget 8 |" in text
    assert row(text, "`config_a`", "change |")[1] == "" == row(text, "`config_a`", "change |")[-1]
    assert row(text, "`config_c`", "change |")[1] == "channels 24"
    assert row(text, "`config_f`", "to `config_f`")[1] == "noise flow_uniform + solver euler"
    step = row(text, "`config_e`", "change |")
    assert step[1] == "noise lognormal + weighting min_snr" and step[3] == "1.50 ± 2.62"
    assert step[4].startswith("×0.672 (") and step[4].endswith("), undecided")
    assert row(text, "`config_b`", "change |")[4].startswith("×1.00 (") and "nan" not in text
    [said] = [line for line in markdown(study).splitlines() if line.startswith("- Path from config_a to config_e")]
    assert "each step relative to the previous one: config_b: undecided at 4 and 8; config_c: " in said
    assert "; config_d: worse at 4, undecided at 8; config_e: " in said
    figures = {figure.name for figure in (study.reports / "figures").iterdir() if figure.name.startswith("path_")}
    assert figures == {f"path_{end}.{kind}" for end in ("config_e", "config_f") for kind in ("png", "svg", "json")}
    first, second = (sections(Report(study, tmp_path)) for _ in range(2))
    assert first == second and len(first) == 2


def test_a_study_without_a_path_has_no_section(plain: Paths) -> None:
    assert "## Cumulative paths" not in markdown(plain)


def test_failed_steps_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = made_up_study(tmp_path, CHAIN, [0, 1], models=MODELS)
    fail(study, "config_b", (7,), (1,))
    build(study)
    text = markdown(study).split("## Cumulative paths")[1].split("\n## ")[0]
    assert row(text, "`config_b`", "change |")[3:] == ["failed", "failed"]
    assert row(text, "`config_c`", "change |")[4] == "config_b failed" and "nan" not in text
    study = made_up_study(tmp_path, CHAIN, [0, 1], models=MODELS)
    for name in CHAIN:
        if name != "config_f":
            fail(study, name)
    fail(study, "config_f", (7,))
    shown, _ = sections(Report(study, tmp_path))
    assert shown["file"] == "" and row(shown["table"], "`config_d`", "change |")[2:] == ["failed", "failed", "failed"]


def test_steps_need_no_common_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curves = CHAIN | {"config_c": CHAIN["config_c"] | {"nfe": [35]}, "config_b": CHAIN["config_b"] | {"nfe": [4]}}
    study = made_up_study(tmp_path, curves, [0, 1], models=MODELS)
    for shown in sections(Report(study, tmp_path)):
        assert "| budget 4 | budget 8 | budget 35 |" in shown["table"] and "nan" not in shown["table"]
        assert row(shown["table"], "`config_b`", "change |")[3] == ""
