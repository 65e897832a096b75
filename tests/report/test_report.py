"""The report of made-up results: files, figures by axis, escaping, equal bytes."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_csv, write_json, write_text
from pipeline.common.sealed import save_json
from pipeline.evaluation import seconds as timing
from pipeline.params.resolved import ReportRows
from pipeline.report import findings
from pipeline.report.build import build
from pipeline.report.page import escape, table, to_html
from pipeline.report.results import CSV_COLUMNS
from pipeline.report.sections.methods import methods_figure
from pipeline.report.statistics import Floor
from pipeline.report.study import METRICS, Report
from pipeline.report.text import number
from tests.report.studies import (
    CURVES,
    EXTRACTOR,
    HOSTILE,
    MACHINE,
    PROVENANCE,
    ParsedPage,
    made_up_study,
    write_cells,
    written,
)

KINDS = (".png", ".svg", ".json")
FEW = {name: CURVES[name] for name in ("edm", "rho_3")}


def test_hostile_text_is_escaped() -> None:
    hostile, harmless = (
        ParsedPage(to_html(f"# {escape(text)}\n\n## {escape(text)}\n\n{table(['a'], [[text]])}\n", text, Path()))
        for text in (HOSTILE, "harmless")
    )
    assert hostile.tags == harmless.tags
    assert hostile.text.count(HOSTILE) == 5  # title, headings, contents, cell


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_figures: None) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2])
    build(paths)
    first = written(paths.reports)
    axes = {"rho", "solver", "loss_weighting", "combinations"}
    others = ("methods", "front_NFE", "samples", "oracle_errors", "oracle_distances", "residuals")
    others += ("loss_by_noise_level", "gradient_by_noise_level", "noise_distributions", "trajectories")
    figures = {f"figures/ablation_{axis}" for axis in axes} | {f"figures/{f}" for f in others}
    files = {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg", "json")}
    files -= {"figures/samples.json", "figures/trajectories.json"}
    assert files == {name for name in first if name.startswith("figures/")}
    methods_figure(Report(paths, tmp_path))
    assert all((tmp_path / f"methods{kind}").read_bytes() == first[f"figures/methods{kind}"] for kind in KINDS)

    assert (paths.reports / "report.html").stat().st_size < 2_500_000
    page = ParsedPage((paths.reports / "report.html").read_text())
    assert not {"link", "iframe", "i"} & set(page.tags)
    links = [address for address in page.addresses if address.startswith("#")]
    addresses = [address for address in page.addresses if not address.startswith("#")]
    pictures = [address for address in addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == len(figures) and links
    assert all(address.removeprefix("#") in page.ids for address in links)
    assert set(addresses) - set(pictures) == {f"{figure}.svg" for figure in figures}  # to be downloaded
    assert HOSTILE in page.text
    assert HOSTILE[:40] in page.text
    for said in ("Few samples: 64 for 64 features", "floor (real data)", "torch-fidelity", "1.0e-15", "undecided"):
        assert said in page.text, said
    assert not re.search(r"\bFID\b(?! only when it uses Inception)", page.text)

    table_of_results = pd.read_csv(paths.reports / "results.csv")
    assert list(table_of_results.columns) == CSV_COLUMNS
    assert len(table_of_results) == len(CURVES) * 2 * 3 * len(METRICS)
    assert set(table_of_results.checkpoint) == {"c" * 12}
    origins = json.loads((paths.reports / "provenance.json").read_text())
    assert list(origins) == list(CURVES)
    assert origins["rho_3"]["measured_with"] == PROVENANCE and origins["rho_3"]["row"]["rho"] == 3
    assert origins["rho_3"]["checkpoints"] == {"0": "c" * 12, "1": "c" * 12, "2": "c" * 12}


def test_the_same_results_give_the_same_bytes(plain: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(plain.reports)
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2])
    build(paths)
    assert written(paths.reports) == first


def test_a_report_with_seconds_has_their_pareto_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only current timings count: those of other weights or samplers are omitted."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW | {"rho_5": CURVES["rho_5"]}, [0, 1])
    curves = ReportRows(**json.loads((paths.rows / "report.json").read_text())).curves
    rows = [
        {"curve": name, "steps": 2, "nfe": 3, "seconds_per_image": 0.001, "images": 256, "repetitions": 3}
        | {"device": "CPU (made up)", "checkpoint": checkpoint, "sampler": curves[name].row.sampler_hash}
        for name, checkpoint in (("edm", "c" * 12), ("rho_3", "c" * 12), ("rho_5", "old"), ("gone", "c" * 12))
        if name in curves
    ]
    rows[1]["sampler"] = "old"
    write_csv(paths.timings, timing.COLUMNS, rows)
    build(paths)
    assert (paths.reports / "figures/front_seconds_per_image.png").exists()
    text = (paths.reports / "report.md").read_text()
    assert "one thread of CPU (made up), in batches of 256" in text
    assert "rho_3 and rho_5 have none" in text.replace("\\", "")


def test_image_sets_are_listed_with_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = {"theirs": {"source": "x.zip", "nfe": 35, "method": "their EDM"}, "unknown": {"source": "y.zip"}}
    paths = made_up_study(tmp_path, FEW, [0, 1], sets)
    build(paths)
    lines = [line for line in (paths.reports / "report.md").read_text().splitlines() if "(one repetition)" in line]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| their EDM (one repetition)", "35"], ["| unknown (one repetition)", "unknown"],
    ]  # fmt: skip
    table = pd.read_csv(paths.reports / "results.csv").set_index("curve")
    assert set(table.loc["theirs"].nfe) == {35} and table.loc["unknown"].nfe.isna().all()
    assert table.loc["theirs"].steps.isna().all() and table.loc["theirs"].model.isna().all()
    page = (paths.reports / "report.html").read_text()  # numbers lead to their cells as they do without sets
    assert page.count('<a class="cell" href="#curve-rho_3"') > 3 and page.count(' id="curve-rho_3"') == 1


def test_results_of_different_measurements_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    write_text(paths.reports / "report.md", "earlier")
    before = written(paths.reports)
    write_cells(paths.curve("rho_3"), [[0, 0]], [(2, 3)], {"extractor_hash": "other"})
    with pytest.raises(StudyError, match=r"^edm and rho_3 are not comparable: extractor_hash is e+ for the"):
        build(paths)
    assert written(paths.reports) == before


@pytest.mark.parametrize(
    ("stage", "name", "key"), [("features", "extractor", "hash"), ("reference", "floor", "reference_hash")]
)
def test_labels_and_floors_of_another_measurement_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, name: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    file = paths.metrics(stage, name)
    write_json(file, json.loads(file.read_text()) | {key: "other"})
    with pytest.raises(StudyError, match=rf"{name}.json: its hash is other, but the curves were measured with"):
        build(paths)


def test_results_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    save_json(paths.curve("edm") / "results.json", {"cells": [], "machine": MACHINE})
    with pytest.raises(StudyError, match=r"results\.json: written by another version of the code"):
        build(paths)


def test_a_repetition_of_a_curve_with_other_seeds_is_not_distinct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = {"again": {"model": "edm", "nfe": [4], "repetitions": "crossed"}}
    report = Report(made_up_study(tmp_path, CURVES | again, [0, 1]), Path())
    assert report.distinct == list(CURVES)


def test_a_score_that_is_not_above_0_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rough_figures: None
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    results = json.loads((paths.curve("edm") / "results.json").read_text())
    for cell in results["cells"]:
        for metric in cell["metrics"]:
            metric["value"] = -metric["value"]
    save_json(paths.curve("edm") / "results.json", results)
    build(paths)
    assert (paths.reports / "figures/methods.png").stat().st_size > 500  # a stub has 69 bytes


def test_official_inception_is_called_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    official = EXTRACTOR | {"name": "inception", "official": True, "wanted": "inception", "held_out_accuracy": None}
    write_json(paths.metrics("features", "extractor"), official)
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "The score is bias-corrected FID" in text and "FD (" not in text and "We call a score FID" not in text


def test_a_fallback_of_the_extractor_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | {"wanted": "inception", "fallback": "no network"})
    build(paths)
    assert "inception is not available** (no network)" in (paths.reports / "report.md").read_text()


def test_compressed_images_are_reported(plain: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "-compressed" not in (plain.reports / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    summary = paths.metrics("prepare", "data")
    write_json(summary, json.loads(summary.read_text()) | {"lossy": "JPEG"})
    build(paths)
    said = "The images were JPEG-compressed before this study. Compression changes pixels, so scores are not comparable"
    assert all(said in (paths.reports / name).read_text() for name in ("report.md", "report.html"))


def test_a_report_omits_deleted_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    build(paths)
    assert (paths.reports / "figures/ablation_rho.png").exists()
    build(made_up_study(tmp_path, {"edm": CURVES["edm"]}, [0, 1]))
    assert not (paths.reports / "figures/ablation_rho.png").exists()
    assert "rho_3" not in (paths.reports / "report.md").read_text()


def test_report_of_one_curve_and_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rough_figures: None) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0])
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "nan" not in text and "Failed measurements" not in text and "Best sampler" not in text
    half = number(0.1 * stats.t.ppf(0.975, 19))
    assert f"± {half}" in text


@pytest.mark.parametrize(
    ("best", "said"), [(0.45, ["below the floor (0.500) by less than"]), (0.3, ["by more than"]), (0.5, [])]
)
def test_a_best_score_below_the_floor_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: float, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0, 1, 2]), tmp_path)
    report.__dict__["score_floor"] = Floor(0.5, 0.1)
    text = findings._below(report, best)
    assert all(part in text for part in said) and bool(text) == bool(said)


def design_tables(paths: Paths) -> tuple[str, str]:
    """The tables of models and of curves under "All settings"."""
    text = (paths.reports / "report.md").read_text().replace("\\", "")
    section = text.split("## All settings")[1].split("## Agreement")[0]
    models, curves = section.split("Curves as they were sampled")
    return models, curves


def test_tables_of_settings_show_differences_and_list_the_rest(plain: Paths) -> None:
    models, curves = design_tables(plain)
    assert "| row | base | weighting |" in models and "| `edm_snr` | `edm` | **snr** |" in models
    assert "The same in all rows: parametrization edm; " in models and "sigma_data measured" in models
    [header] = [line for line in curves.splitlines() if line.startswith("| row")]
    assert {"model", "solver", "rho", "discretization"} <= set(header.strip("| ").split(" | "))
    [common] = [line for line in curves.splitlines() if line.startswith("The same in all rows: ")]
    assert "schedule linear" in common and " rho " not in common and "schedule" not in header


def test_the_table_of_settings_of_one_row_has_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0])
    build(paths)
    _, curves = design_tables(paths)
    assert "| row | base |\n" in curves and "The same in all rows: model edm; solver heun; " in curves


def test_choices_that_are_not_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0])
    rows = json.loads((paths.rows / "report.json").read_text())
    for name, row in rows["curves"].items():
        row["row"]["S_max"] = None if name == "rho_3" else 50.0
    write_json(paths.rows / "report.json", rows)
    build(paths)
    _, curves = design_tables(paths)
    assert (
        "order none" in curves.split("The same in all rows: ")[1]
        and "**none**" in curves.split("The same in all rows: ")[0]
    )


def test_choices_without_effect_are_listed(plain: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot change the result" not in (plain.reports / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0])
    rows = json.loads((paths.rows / "report.json").read_text())
    told = "curves.x.rho: no effect: grid vp has none"
    write_json(paths.rows / "report.json", rows | {"warnings": [told, HOSTILE]})
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert f"\n- {told}\n- {escape(HOSTILE)}\n" in text.split("## Design choices")[1].split("\n### ")[0]


def test_an_inception_score_of_rotations_is_omitted(
    plain: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "IS (classifier)" in (plain.reports / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | {"name": "rotation classifier"})
    build(paths)
    assert "IS (rotation classifier)" not in (paths.reports / "report.md").read_text()
    assert "score" in set(pd.read_csv(paths.reports / "results.csv").metric)


def test_a_reference_without_a_floor_of_the_score_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, FEW, [0, 1])
    file = paths.metrics("reference", "floor")
    reference = json.loads(file.read_text())
    del reference["floor"]["fd_corrected"]
    write_json(file, reference)
    with pytest.raises(StudyError, match=r"reference/floor\.json: fd_corrected was not measured"):
        build(paths)


def test_results_have_the_depth_of_samples_and_the_cost_table_if_it_differs(
    plain: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance calls two networks side by side; image sets and guided adaptive solvers have no known depth."""
    assert "| depth |" not in (plain.reports / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    guided = {"guidance": 2, "guide": "snapshot", "nfe": [6, 18]}
    curves = {
        "edm": {"model": "edm"},
        "plain_rk45": {"model": "edm", "solver": "rk45", "nfe": [18]},
        "guided": {"model": "edm"} | guided,
        "guided_rk45": {"model": "edm", "solver": "rk45"} | guided | {"nfe": [18]},
    }
    models = {"edm": {"snapshots": 2, "train_seeds": [0, 1]}}
    paths = made_up_study(tmp_path, curves, [0, 1], {"theirs": {"source": "x.zip", "nfe": 35}}, models)
    build(paths)
    table = pd.read_csv(paths.reports / "results.csv", dtype={"depth": "Int64"}).set_index("curve")
    assert set(table.loc["edm"].depth) == {3, 7} == set(table.loc["plain_rk45"].depth)
    assert set(table.loc["guided"].depth) == {3, 7}
    assert table.loc["guided_rk45"].depth.isna().all() and table.loc["theirs"].depth.isna().all()
    report = (paths.reports / "report.md").read_text()
    assert "| at NFE | depth |" in report and "Its depth counts" in report
