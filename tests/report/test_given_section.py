"""The section on posterior samplers, from made-up results: its tables, findings, failures and figures."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json
from pipeline.evaluation.given import EXACT, HELDOUT, PRIOR
from pipeline.report.build import build
from pipeline.report.page import unmarked
from pipeline.report.sections import given
from pipeline.report.study import Report
from tests.report.posteriors import MODELS, POSTERIORS, cell, made_up_cells, rows_of, write_posteriors
from tests.report.studies import HOSTILE, made_up_study, markdown, row

CURVES: dict[str, dict[str, Any]] = {name: {"model": name} for name in MODELS}
HEADING = "\n## Given a measurement\n"
LEVELS = {"dps": 1.0, "tmp": 0.2, "dps_tuned": 0.5, "tmp_ddim": 0.21, "edm_dps": 2.0, "flow_tmp": 0.4}
NOT_A_NUMBER = re.compile(r"\b(nan|inf)\b")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.chdir(tmp_path)
    return made_up_study(tmp_path, CURVES, [0, 1, 2], models=MODELS)


def measured(
    paths: Paths,
    posteriors: Mapping[str, dict[str, Any]] = POSTERIORS,
    levels: Mapping[str, float] = LEVELS,
    **changed: Any,
) -> Paths:
    rows = rows_of(posteriors)
    write_posteriors(paths, rows, made_up_cells(rows, levels, **changed))
    return paths


def section(paths: Paths) -> str:
    build(paths)
    found = markdown(paths).split(HEADING)[1].split("\n## ")[0]
    assert not NOT_A_NUMBER.search(found)
    return found


def findings(paths: Paths, folder: Path) -> str:
    found = given.section(Report(paths, folder))
    assert found is not None
    return " ".join(map(unmarked, found["findings"]))


def test_without_posteriors_there_is_no_section(paths: Paths) -> None:
    """Not even the stages' outputs are read."""
    build(paths)
    assert HEADING not in markdown(paths) and "posterior sampler" not in markdown(paths)
    assert given.section(Report(paths, paths.reports / "figures")) is None


def test_tables_have_distances_ties_and_the_floor(paths: Paths) -> None:
    text = section(measured(paths))
    part = text.split("### Given `noisy`")[1].split("### Given `half`")[0]
    assert "Measurement: identity, std 0.3. Further exact draws have a distance of 0.100 (" in part
    assert row(part, "| row |", "\n") == ["row", "method", "cost 9", "cost 27"]
    first = row(part, "`tmp`", "| row |")
    assert first[1] == "tmp" and re.fullmatch(r"\*\*0\.[12]\d\d \(0\.\d+ to 0\.\d+\)\*\*", first[3])
    assert "**" not in "".join(row(part, "`dps`", "| row |"))
    networks = part.split("Distance with trained networks")[1]
    assert row(networks, "`flow_tmp`", "| row |")[2] == "flow" and "**" in networks.split("| row | budget")[0]


def test_other_scores_have_the_bill_and_exact_draws_first(paths: Paths) -> None:
    part = section(measured(paths)).split("All other scores at")[1]
    exact, own = row(part, "exact |", "---"), row(part, "`dps`", "---")
    assert exact[0] == EXACT and exact[-4:] == ["", "", "", ""]
    assert own[1] == "27" and own[-4:] == ["3", "2", "1", "7"]
    assert own[2].startswith("×") and own[2].endswith("worse") and own[7].startswith("100.0% ± ")


def test_tuning_lists_keys_scores_and_gains(paths: Paths) -> None:
    part = section(measured(paths)).split("### Tuning of keys")[1].split("\n### ")[0]
    assert "tries up to 6 choices of keys on 8 other measurements with 8 draws each" in part
    assert "The cost of all trials is 8,000" in part  # two tuned rows, two measurements, two budgets
    assert row(part, "`dps_tuned`", "| row |") == [
        "`dps_tuned`", "zeta 0.3 (0.500 → 0.250)", "zeta 0.3 (0.500 → 0.250)", "12", "2,000",
    ]  # fmt: skip
    ratio = row(part, "`half`", "relative to")
    assert ratio[:3] == ["`dps_tuned`", "`dps`", "`half`"] and all(text.endswith("better") for text in ratio[3:])


def test_a_choice_that_diverged_is_not_finite(paths: Paths) -> None:
    record = {"keys": {"iterations": 2}, "default": None, "score": 0.2}
    assert given._keys(record, {"iterations": (1, 4)}) == "iterations 2 (not finite → 0.200)"
    assert given._keys(record, {"iterations": (1, 2)}) == "iterations 2, end of range (not finite → 0.200)"


def test_other_solvers_and_networks_have_their_ratios(paths: Paths) -> None:
    text = section(measured(paths))
    solvers = row(text.split("### Other solvers and ranges")[1], "`noisy`", "| row |")
    assert solvers[:3] == ["`tmp_ddim`", "`tmp`", "`noisy`"] and solvers[3].startswith("×1.0")
    networks = text.split("### Networks and the exact denoiser")[1]
    assert row(networks, "`edm_dps`", "| row |")[1] == "`dps_tuned`"
    assert row(networks, "`flow_tmp`", "| row |")[3].endswith("worse")


def test_findings_on_networks_count_equal_keys_only(paths: Paths, tmp_path: Path) -> None:
    rows = rows_of()
    cells = made_up_cells(rows, LEVELS)
    for own in cells["edm_dps"]:
        if own.line.nfe == 9:
            object.__setattr__(own.line, "keys", "zeta 3")
    write_posteriors(paths, rows, cells)
    text = findings(paths, tmp_path)
    assert "with the network edm, relative to the same rows with the exact denoiser, in 2 comparisons with" in text
    assert "with the network flow, relative to the same rows with the exact denoiser, in 4 comparisons with" in text


def test_the_axis_of_distances_ends_near_solid_lines(paths: Paths) -> None:
    build(measured(paths, levels=LEVELS | {"dps": 1000.0}))
    found = read_json(paths.reports / "figures" / "given_oracles_cost.json")["hconcat"]
    for panel in found:
        low, high = panel["encoding"]["y"]["scale"]["domain"]
        solid = [point["y"] for point in panel["data"]["values"] if not point.get("dashed")]
        assert low < min(solid) and max(solid) < high < 3 * max(solid)


def test_held_out_images_have_a_table(paths: Paths) -> None:
    part = section(measured(paths)).split("### Held-out images given a measurement")[1]
    assert "`dps`" not in part and "Given `half`" in part
    best, other = (row(part, f"`{name}`", "| row |") for name in ("flow_tmp", "edm_dps"))
    assert best[4].startswith("**") and not other[4].startswith("**") and best[3] == "27"


def test_findings_name_ties_the_floor_and_gains(paths: Paths, tmp_path: Path) -> None:
    text = findings(measured(paths, problems=16), tmp_path)
    assert "defines distance and cost (27): given noisy, tmp alone; given half, tmp alone." in text
    assert "Rows with trained networks that may have the lowest distance" in text
    assert "All rows are worse than exact draws given noisy and half." in text
    assert "in 4 comparisons of distances: 4 are better." in text
    assert (
        "rows with the network edm, relative to the same rows with the exact denoiser, in 4 comparisons with equal keys"
        in text
    )
    assert "tmp_ddim against tmp (4 comparisons), " in text
    assert "on held-out images at the largest cost (27): given noisy, flow_tmp alone;" in text


def test_rows_that_are_not_told_apart_are_ties(paths: Paths, tmp_path: Path) -> None:
    rows = rows_of()
    cells = made_up_cells(rows, LEVELS | {"dps_tuned": 0.2, "tmp_ddim": 0.1})
    write_posteriors(paths, rows, cells | {"tmp": [], "dps_tuned": cells["tmp_ddim"], "tmp_ddim": cells["tmp_ddim"]})
    text = findings(paths, tmp_path)
    assert "Rows that a corrected test does not show to be worse than exact draws" in text


def test_the_summary_has_distances_at_the_largest_budget(paths: Paths) -> None:
    rows = rows_of({"dps": {}, "tmp": {"posterior": "tmp"}})
    cells = {"dps": [cell("dps", [1, 4, 1, 4]), cell("dps", [9] * 4, budget=9)], "tmp": [cell("tmp", [1], failed="x")]}
    write_posteriors(paths, rows, cells)
    build(paths)
    assert read_json(paths.reports / "summary.json")["given"] == {"noisy": {"dps": 2.0}}


def test_the_top_of_the_report_has_the_first_finding(paths: Paths) -> None:
    build(measured(paths))
    top = markdown(paths).split("## Findings")[1].split("\n## ")[0]
    assert "Rows with the exact denoiser that may have the lowest distance to the exact posterior" in top


@pytest.mark.parametrize("kind", ["oracles", "networks"])
def test_a_study_has_rows_of_one_kind(paths: Paths, kind: str) -> None:
    chosen = {
        "oracles": {"dps": {}, "tmp": {"posterior": "tmp"}},
        "networks": {"edm_dps": {"model": "edm"}, "flow_tmp": {"posterior": "tmp", "model": "flow"}},
    }[kind]
    text = section(measured(paths, chosen))
    assert ("Distance with the exact denoiser." in text) is (kind == "oracles")
    assert ("Distance with trained networks" in text) is (kind == "networks")
    assert ("### Held-out images" in text) is (kind == "networks")
    assert "### Tuning" not in text and "### Other solvers" not in text and "### Networks and" not in text
    assert all((paths.reports / "figures" / f"given_{kind}_{x}.png").exists() for x in ("cost", "calls"))


def test_a_single_row_training_and_seed(paths: Paths) -> None:
    text = section(measured(paths, {"edm_dps": {"model": "edm"}}, train_seeds=(1,)))
    assert "(one training)" in text and row(text, "`edm_dps`", "| row |")[3].startswith("**")


def test_rows_may_skip_measurements_and_budgets(paths: Paths) -> None:
    rows = rows_of({"dps": {"given": ["noisy"], "nfe": [9]}, "tmp": {"posterior": "tmp"}})
    cells = made_up_cells(rows, LEVELS)
    cells["dps"] = [own for own in cells["dps"] if own.line.measurement == "noisy"]
    write_posteriors(paths, rows, cells)
    text = section(paths)
    half = text.split("### Given `half`")[1].split("### ")[0]
    assert row(text, "`dps`", "| row |")[3] == "" and row(text, "`dps`", "All other scores at")[1] == "9"
    assert "`dps`" not in half and "`tmp`" in half


def test_failures_are_listed_and_omitted(paths: Paths) -> None:
    rows = rows_of()
    cells = made_up_cells(rows, LEVELS)
    reason = f"step 3: {HOSTILE}"
    bad = [own for own in cells["tmp"] if own.line.nfe == 27 and own.line.measurement == "noisy"]
    cells["tmp"] = [own for own in cells["tmp"] if own not in bad] + [cell("tmp", [1] * 4, failed=reason)]
    cells["edm_dps"] += [cell("edm_dps", [1, np.inf, 1, 1], "half", budget=9, seeds=(4, 4), model="edm")]
    cells["flow_tmp"] = [
        cell("flow_tmp", [1] * 4, "noisy", part, seeds=(0, 0), model="flow", failed="step 1")
        for part in (PRIOR, HELDOUT)
    ]
    write_posteriors(paths, rows, cells)
    text = section(paths)
    assert row(text, "`tmp`", "| row |")[3] == "failed" and row(text, "`tmp`", "All other scores at")[2] == "failed"
    assert "`tmp` | `noisy` | prior | 27 |" in text.split("### Failed posterior samplers")[1]
    assert "samples of 1 of 4 problems are not finite or too large to score" in text
    assert "Failed results of posterior samplers: 4, of tmp, edm_dps and flow_tmp." in markdown(paths)
    assert "<script>alert" not in (paths.reports / "report.html").read_text()


def test_all_rows_may_fail(paths: Paths) -> None:
    rows = rows_of({"dps": {}})
    write_posteriors(paths, rows, {"dps": [cell("dps", [1] * 4, failed="step 1")]})
    text = section(paths)
    assert "may have the lowest" not in text and "### Calibration" not in text and "![" not in text


def test_scores_that_are_not_finite_are_written_as_words(paths: Paths) -> None:
    rows = rows_of({"dps": {}})
    own = cell("dps", [1, 2, 3, 4], misfit=[1, np.inf, 1, 1], mean_error=[1e250, 1, 1, 1], energy_distance=[np.nan] * 4)
    write_posteriors(paths, rows, {"dps": [own]})
    found = row(section(paths), "`dps`", "All other scores at")
    assert found[3] == "not finite" and found[8] == "not finite" and found[4] == "2.50e+249"


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2)])
def test_images_are_drawn_with_their_measurements(
    paths: Paths, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(given, "grid_figure", lambda path, columns: drawn.update({path.stem: columns}))
    rows = rows_of()
    cells = made_up_cells(rows, LEVELS)
    size = int(np.prod(shape))
    for own in cells.values():
        own[:] = [type(one)(one.line, one.scores, one.ranks, one.shown.new_zeros(4, 5, size)) for one in own]
    write_posteriors(paths, rows, cells, shape)
    monkeypatch.setattr("pipeline.report.page._embed_figures", lambda tokens, figures: None)
    build(paths)
    assert set(drawn) == {f"given_{name}_{part}" for name in ("noisy", "half") for part in (PRIOR, HELDOUT)}
    titles = list(drawn["given_half_prior"])
    assert titles[:5] == ["truth", "y", "exact\nmean", "exact\ndraw 1", "exact\ndraw 2"] and "tmp\nmean" in titles
    assert list(drawn["given_half_heldout"])[:3] == ["truth", "y", "flow_tmp\nmean"]
    assert {images.shape for images in drawn["given_half_prior"].values()} == {(4, *shape)}


def test_points_are_drawn_beside_exact_ones(paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = rows_of()
    rows = rows.model_copy(update={"measurements": {"noisy": rows.measurements["noisy"]}})
    cells = made_up_cells(rows, LEVELS, heldout=False)
    for own in cells.values():
        own[:] = [type(one)(one.line, one.scores, one.ranks, one.shown.new_full((4, 5, 2), 9.0)) for one in own]
    write_posteriors(paths, rows, cells, (2,))
    cloud = torch.tensor([[0.0, 1.0], [-1.0, 0.5]])
    monkeypatch.setattr(given, "load_prepared", lambda folder: SimpleNamespace(images=cloud))
    found = given.section(Report(paths, tmp_path))
    assert found is not None
    assert [part["file"] for part in found["samples"]] == ["given_draws.png"] and (
        tmp_path / "given_draws.png"
    ).exists()


def test_figures_have_lines_of_all_rows(paths: Paths) -> None:
    build(measured(paths))
    found = read_json(paths.reports / "figures" / "given_oracles_cost.json")["hconcat"]
    series = {point["series"] for panel in found for point in panel["data"]["values"]}
    assert series == {"dps", "tmp", "dps_tuned", "exact draws"}  # a solver's row has its table
    dashed = {point["series"] for panel in found for point in panel["data"]["values"] if point.get("dashed")}
    assert dashed == {"dps"}
    levels = read_json(paths.reports / "figures" / "given_calibration_networks.json")["hconcat"]
    assert {point["series"] for point in levels[0]["data"]["values"]} == {"edm_dps", "flow_tmp", "nominal"}


def test_a_row_without_cells_is_an_error(paths: Paths) -> None:
    measured(paths)
    (paths.build / "posteriors" / "tmp.safetensors").unlink()
    with pytest.raises(StudyError, match=r"tmp\.safetensors"):
        build(paths)


def test_figures_are_drawn(paths: Paths, rough_figures: None) -> None:
    section(measured(paths))
