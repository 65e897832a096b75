"""The section on published and reproduced values."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.files import read_json, write_json
from pipeline.common.sealed import save_json
from pipeline.data.row import Data
from pipeline.params.resolve import resolve
from pipeline.params.study import Study
from pipeline.report.build import build
from tests.report.studies import EXTRACTOR, HOSTILE, ParsedPage, made_up_study, written

CURVES: dict[str, dict[str, Any]] = {"edm": {"model": "edm"}, "rho_3": {"model": "edm", "rho": 3}}
VALUES = [
    {
        "curve": "edm",
        "nfe": 9,
        "value": 1.97,
        "what": HOSTILE,
        "source": "A 2022, <b>table 2</b>",
        "images": 200_000_000,
        "checked": True,
    },
    {"curve": "rho_3", "nfe": 3, "value": 41.07, "what": "else", "source": "B 2023"},
    {"curve": "rho_3", "nfe": 1000, "value": 2, "what": "more", "source": "C 2024"},
]


def study(**more: Any) -> Study:
    return Study(study={"name": "t"}, models={"edm": {}}, curves=CURVES, **more)


def add(folder: Path, rows_path: Path, values: list[dict[str, Any]], **more: Any) -> None:
    """Add published values to the resolved rows of a made-up study."""
    own = resolve(study(published=values, **more)).files()["report"]
    rows = read_json(folder / rows_path) | {key: own[key] for key in ("published", "named_data", "preset")}
    write_json(folder / rows_path, json.loads(json.dumps(rows)))


def test_published_values_are_compared_with_the_nearest_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2])
    build(paths)
    before = written(paths.reports)
    about = paths.metrics("prepare", "data")
    write_json(about, read_json(about) | {"lossy": "JPEG"})
    add(tmp_path, paths.rows / "report.json", VALUES, data=Data(source="/home/me/mine.zip", limit=2000))
    build(paths)
    after = written(paths.reports)
    assert {name for name in before if before[name] != after[name]} == {
        *("report.md", "report.html"),
        "metrics/prepare/data.json",
    }

    report = after["report.md"].decode()
    part = report[report.index("## Published and") : report.index("## How to read the numbers")]
    lines = [[cell.strip() for cell in line.split(" | ")] for line in part.splitlines() if line.startswith("| `")]
    assert [line[0].strip("| ") for line in lines] == ["`edm`", "`rho_3`", "`rho_3`"]
    told = [(line[-7], line[-6], line[-4]) for line in lines]  # their NFE and value, ours
    assert told == [("9", "1.97", "7"), ("3", "41.07", "3"), ("1000", "2.00", "7")]
    fd = {name: json.loads((paths.curve(name) / "results.json").read_text())["cells"] for name in CURVES}
    for line, name, nfe in zip(lines, ("edm", "rho_3", "rho_3"), (7, 3, 7), strict=True):
        values = [m["value"] for c in fd[name] if c["nfe"] == nfe for m in c["metrics"] if m["metric"] == "fd"]
        assert line[-5].startswith(f"{sum(values) / 3:.2f} ± ")
    assert [line[-3] for line in lines] == ["200,000,000", "", ""] and lines[0][-2] == "140,000"
    assert [line[-1] for line in lines] == ["NFE 9, here 7 |", "same protocol |", "NFE 1000, here 7 |"]
    assert [line[2].partition(" (")[2] for line in lines] == ["", "not checked)", "not checked)"]
    assert "Sources: nobody has compared" in part and "Evaluations:" not in part
    assert "our networks were trained on 140,000 images, published networks on 200,000,000, where known." in part
    assert "ours are FD (classifier) of 64 samples" in part
    assert "ours are mine.zip, which was JPEG-compressed." in part and "/home" not in part
    assert "only the first 2,000 images" in part

    page, without = (ParsedPage(files["report.html"].decode()) for files in (after, before))
    assert page.tags["script"] == without.tags["script"] and "b" not in page.tags
    assert HOSTILE in page.text and "A 2022, <b>table 2</b>" in page.text


def test_a_value_is_compared_at_the_evaluations_that_visit_the_same_noise_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0])
    add(tmp_path, paths.rows / "report.json", [VALUES[0] | {"nfe": 3, "our_nfe": 7}])
    build(paths)
    part = (paths.reports / "report.md").read_text().partition("## Published and")[2].partition("## How to")[0]
    (line,) = [[cell.strip() for cell in line.split(" | ")] for line in part.splitlines() if line.startswith("| `")]
    assert (line[-7], line[-4]) == ("3", "7")
    assert "ours need one evaluation more for the same noise levels" in part and "Sources:" not in part


def test_missing_values_are_marked_and_a_true_fid_is_called_fid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0])
    results = read_json(paths.curve("rho_3") / "results.json")
    for cell in results["cells"]:
        cell |= {"failed": "it flew away", "metrics": []}
    save_json(paths.curve("rho_3") / "results.json", results)
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | {"name": "inception", "official": True})
    presets = {"presets": {"small": {}}, "preset": "small"}
    add(tmp_path, paths.rows / "report.json", VALUES[1:2], **presets)
    build(paths)
    report = (paths.reports / "report.md").read_text()
    part = report[report.index("## Published and") : report.index("## How to read the numbers")]
    assert "| not measured |" in part and "this study: FID" in part
    assert "both are plain FIDs, ours of 64 samples, published ones usually of 50,000" in part
    assert "This is preset small of the study" in part and "Data:" not in part


def test_a_published_value_of_an_unknown_curve_is_refused() -> None:
    with pytest.raises(StudyError, match=r"^published\.1\.curve: no curve 'rho_4'; did you mean 'rho_3'\?"):
        resolve(study(published=[VALUES[0], VALUES[1] | {"curve": "rho_4"}]))


PROTOCOLS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # keys of the published row and of the curve
    "nothing stated": ({}, {"end": "sigma_min"}, "same protocol"),
    "the same": (
        {"end": "sigma_min", "first_step": "analytic"},
        {"end": "sigma_min", "first_step": "analytic"},
        "same protocol",
    ),
    "another end": ({"end": "sigma_min"}, {}, "end sigma_min, here zero"),
    "another beginning": (
        {"end": "zero", "first_step": "analytic"},
        {"end": "sigma_min"},
        "end zero, here sigma_min; first step analytic, here network",
    ),
    "side by side": ({"depth": 2}, {}, "depth 2, here 3"),
}


@pytest.mark.parametrize("case", PROTOCOLS)
def test_a_published_row_states_its_protocol(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own table line says what differs from the curve."""
    monkeypatch.chdir(tmp_path)
    keys, own, said = PROTOCOLS[case]
    curves = {"edm": {"model": "edm"} | own}
    paths = made_up_study(tmp_path, curves, [0])
    row = {"curve": "edm", "nfe": 3, "value": 2, "what": "w", "source": "s"} | keys
    rows = read_json(paths.rows / "report.json")
    write_json(paths.rows / "report.json", rows | {"published": [row]})
    build(paths)
    part = (paths.reports / "report.md").read_text().partition("## Published and")[2].partition("## How to")[0]
    assert f" | {said} |" in part
