"""The report's statistics, and the report of made-up results: figures by axis, escaping, the same bytes twice."""

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save
from scipy import stats

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_bytes, write_csv, write_json, write_text
from pipeline.evaluation import seconds as timing
from pipeline.evaluation.seconds import sampler_hash
from pipeline.params.resolve import resolve
from pipeline.params.resolved import as_dicts
from pipeline.params.study import Study
from pipeline.report import findings
from pipeline.report.build import build
from pipeline.report.page import escape, table, to_html
from pipeline.report.results import COLUMNS, LOSS_COLUMNS, ORIGIN, at_budget, read_timings
from pipeline.report.statistics import (
    Floor,
    Interval,
    difference,
    estimate,
    floor_of,
    interval,
    is_tie,
    nfe_to_reach,
    pareto,
    spread,
    summarise,
)
from pipeline.report.study import METRICS, Report
from pipeline.report.text import number

HOSTILE = '<script>alert("x")</script> | $a_b$ `c` **d** [e](http://evil.example)'


def test_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == values.mean()


def test_interval_of_one_repetition_is_that_of_its_samples() -> None:
    found = interval(np.array([3.0]))
    assert found.mean == 3 and math.isnan(found.low) and math.isnan(found.high)
    assert interval(np.array([3.0]), 0.5).half_width == pytest.approx(0.5 * stats.t.ppf(0.975, 19))


def by_seed(values: dict[tuple[int, int], float], se: float = 0.1) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(list(values), names=["train_seed", "sample_seed"])
    return pd.DataFrame({"nfe": 3, "value": list(values.values()), "se": se}, index=index)


def test_difference_is_paired_by_seeds() -> None:
    base = by_seed({(0, 0): 1.0, (1, 1): 10.0, (2, 2): 100.0})
    found = difference(by_seed({(2, 2): 98.0, (0, 0): -1.0, (1, 1): 8.0, (3, 3): 5.0}), base)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((-2, -2, -2, 3))
    assert difference(base, base.iloc[:0]) is None


def test_difference_of_one_repetition_has_both_errors() -> None:
    found = difference(by_seed({(0, 0): 3.0}, 0.3), by_seed({(0, 0): 1.0}, 0.4))
    assert found is not None and found.mean == 2
    assert found.half_width == pytest.approx(0.5 * stats.t.ppf(0.975, 19))


def test_samplings_of_one_network_are_one_repetition() -> None:
    crossed = by_seed({(t, s): 10.0 * t + s for t in (0, 1, 2) for s in (0, 1, 2)})
    assert estimate(crossed) == interval(np.array([1.0, 11.0, 21.0]))
    assert estimate(by_seed({(4, s): float(s) for s in (0, 1, 2)})) == interval(np.array([0.0, 1.0, 2.0]))


def test_spread_is_that_of_the_components_of_variance() -> None:
    """Trainings share their sampling seeds, whose own effect is no part of what retraining adds."""
    random = np.random.default_rng(0)
    training, sampling = random.normal(0, 3, 200), random.normal(0, 2, 200)
    values = {(t, s): 7 + training[t] + sampling[s] + random.normal(0, 0.5) for t in range(200) for s in range(200)}
    found = spread(by_seed(values))
    assert found is not None
    assert (found.mean, found.training, found.sampling) == pytest.approx((7, 3, math.hypot(2, 0.5)), rel=0.15)
    small = [
        spread(by_seed({(t, s): training[t] + sampling[t + s] for t in (k, k + 1) for s in (0, 1)})) for k in (0, 9)
    ]
    assert all(found is not None and found.sampling > 0 for found in small)
    assert spread(by_seed({(0, 0): 1.0, (1, 1): 2.0})) is None
    assert spread(by_seed({(0, 0): 1.0, (0, 1): 2.0})) is None


@pytest.mark.parametrize(
    ("found", "tie"),
    [
        (Interval(0.1, -0.1, 0.3, 3), True),
        (Interval(0.1, 0.05, 0.2, 3), False),
        (Interval(-0.5, -0.6, -0.4, 3), False),
        (Interval(2.0, math.nan, math.nan, 1), True),
        (None, True),
    ],
)
def test_tie(found: Interval | None, tie: bool) -> None:
    assert is_tie(found) is tie


def test_a_budget_means_the_largest_nfe_within_it() -> None:
    rows = [("a", "m", 0, 0, n, nfe, 64, "fd", float(nfe), 0.1) for n, nfe in ((2, 3), (4, 7), (6, 11))]
    results = pd.DataFrame(rows, columns=COLUMNS)
    assert at_budget(results, "a", "fd", 10).value.tolist() == [7.0]
    assert at_budget(results, "a", "fd", 2).empty
    assert list(summarise(results, "a", "fd")) == [3, 7, 11]


def test_floors_of_frechet_distances_are_at_the_counts_in_use() -> None:
    """c (1/n + 1/N): halves of 500 against 500 with c = 100 are at 0.4, and at 0.2 where one side's bias is gone."""
    floor = {
        "fd": {"mean": 0.4, "sd": 0.1},
        "fd_corrected": {"mean": 0.2, "sd": 0.1},
        "recall": {"mean": 0.9, "sd": 0.01},
    }
    measured = {"floor": floor, "floor_images": 500, "images": 1000}
    assert floor_of("fd", measured, 250) == pytest.approx((100 / 250 + 100 / 1000, 0.1 * 1.25))
    assert floor_of("fd_corrected", measured, 250) == pytest.approx((100 / 1000, 0.05))
    assert floor_of("recall", measured, 250) == (0.9, 0.01)
    assert floor_of("score", measured, 250) is None


def test_the_nfe_to_reach_counts_the_excess_over_the_floor() -> None:
    points = {3: 5.0, 7: 1.9, 11: 1.2, 35: 1.04, 63: 1.0}
    assert [nfe_to_reach(points, 1.0, 0.0, share) for share in (0.05, 0.2, 1.0, 9.0)] == [35, 11, 7, 3]
    assert [nfe_to_reach(points, 1.0, 0.8, share) for share in (0.05, 0.2, 1.0)] == [63, 35, 11]
    assert nfe_to_reach(points, 0.5, 0.0, 0.2) is None
    assert nfe_to_reach(points, 1.0, 2.0, 0.2) == 7  # whatever is not above the floor


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    points = [(1.0, 9.0, "a"), (2.0, 5.0, "b"), (2.0, 4.0, "c"), (3.0, 4.5, "d"), (3.0, 1.0, "e"), (9.0, 1.0, "f")]
    assert [name for *_, name in pareto(points)] == ["a", "c", "e"]


def test_timings_that_are_broken_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Paths("t")
    assert read_timings(paths).empty
    write_text(paths.timings, "curve,nfe\nedm,3\n")
    with pytest.raises(StudyError, match=r"timings.csv: broken"):
        read_timings(paths)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.12345, "-0.123"),
        (0.0, "0"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (51234.5, "51234"),
        (2e-5, "2.0e-05"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_hostile_text_stays_text() -> None:
    hostile, harmless = (
        _Page(to_html(f"# {escape(text)}\n\n## {escape(text)}\n\n{table(['a'], [[text]])}\n", text, Path()))
        for text in (HOSTILE, "harmless")
    )
    assert hostile.tags == harmless.tags
    assert hostile.text.count(HOSTILE) == 5  # title, headings, contents, cell


class _Page(HTMLParser):
    """The tags, the addresses and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.ids |= {value or "" for key, value in attrs if key == "id"}
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


CURVES: dict[str, dict] = {
    "edm": {"model": "edm", "method": HOSTILE[:40]},
    "flow": {"model": "edm", "method": "flow", "discretization": "flow", "solver": "euler"},
    "rho_3": {"model": "edm", "rho": 3},
    "rho_5": {"model": "edm", "rho": 5},
    "euler": {"model": "edm", "solver": "euler"},
    "weighted": {"model": "edm_snr"},
    "both": {"model": "edm", "rho": 3, "solver": "euler"},
}


MACHINE = {"device": "CPU (made up)", "system": "none", "python": "3", "libraries": {"torch": "2"}}
PROVENANCE = {
    "extractor": "classifier",
    "extractor_hash": "e" * 64,
    "preprocessing": "none",
    "reference_hash": "f" * 64,
    "reference_split": "all",
    "samples": 64,
    "rounding": "8 bits",
    "libraries": {"torch": "2"},
    "device": "cpu",
}
AGREED = [{"library": "torch-fidelity", "metric": "fd", "ours": 1.0, "theirs": 1.0, "difference": 1e-15}]
EXTRACTOR = {
    "name": "classifier",
    "dimensions": 64,
    "official": False,
    "hash": "e" * 64,
    "held_out_images": 9,
    "held_out_accuracy": 0.98,
    "wanted": "classifier",
    "fallback": None,
}


SOLVERS: dict[str, Any] = {
    "settings": {"mixture": "two hills", "data": "a made-up set", "distance": "a mean", "seeds": 3, "samples": 8192},
    "orders": [
        {"row": row, "kind": kind, "order": order, "measured": measured, "evaluations_per_step": 2}
        | {"stochastic": kind == "sde", "convention": "made up | and said"}
        for row, kind, order, measured in (
            ("euler", "ode", 1, 1.02),
            ("heun", "ode", 2, 1.9),
            ("rk45", "ode", None, None),
            ("ddim, eta 1", "sde", 1, 0.97),
            ("Langevin", "sde", 1, None),
        )
    ],
    "errors": [
        {"oracle": oracle, "row": row, "steps": nfe, "nfe": nfe, "error": error}
        for oracle, scale in (("mixture", 1.0), ("data", 2.0))
        for row, nfe, error in (("euler", 4, 0.5), ("euler", 9, 0.25), ("heun", 7, 0.4), ("heun", 15, 0.1))
        for error in (error * scale,)
    ],
    "distances": [
        {"row": row, "stochastic": row != "heun", "steps": nfe, "nfe": nfe, "distance": distance, "sd": 0.01}
        for row, nfe, distance in (
            ("heun", 7, 0.3),
            ("heun", 15, 0.2),
            ("ddim, eta 1", 8, 0.6),
            ("ddim, eta 1", 64, 0.02),
        )
    ],
    "floor": {"distance": 0.012, "sd": 0.001},
}


def write_cells(folder: Path, seeds: list[list[int]], points: list[tuple[int, int]], changed: dict) -> None:
    """Results of a curve or image set that nobody measured, at (steps, nfe)."""
    random = np.random.default_rng(0)
    cells = [
        {"train_seed": a, "sample_seed": b, "steps": n, "nfe": nfe, "samples": 64, "checkpoint": "c" * 64}
        | {"metrics": [{"metric": m, "value": 1 + random.random() / (n + 1), "se": 0.1} for m in METRICS]}
        | ({"failed": ""} if nfe > 0 else {})  # image sets cannot fail
        for n, nfe in points
        for a, b in seeds
    ]
    content = {"provenance": PROVENANCE | changed, "machine": MACHINE, "cells": cells}
    write_json(folder / "results.json", content)
    images = {f"{c['steps']}/{c['train_seed']}/{c['sample_seed']}": torch.zeros(16, 1, 8, 8).byte() for c in cells}
    write_bytes(folder / "images.safetensors", save(images))


MODELS: dict[str, dict] = {"edm": {}, "edm_snr": {"weighting": "snr"}}
PROPOSAL = {
    "model": "edm",
    "images": 20_000,
    "P_mean": -0.95,
    "P_std": 1.1,
    "published": {"P_mean": -1.2, "P_std": 1.2},
}


def write_losses(folder: Path, paths: Paths, models: dict[str, Any]) -> None:
    """Losses and gradients by noise level of resolved model rows that nobody trained, and what goes with them."""
    rows = [
        {"model": name, "train_seed": seed, "state": state, "sigma": sigma, "error": error, "loss": error * (i + 1)}
        | {"gradient": (i + 1) * (seed + 1) * sigma**0.1}
        for i, (name, row) in enumerate(models.items())
        for seed in row["train_seeds"]
        for state, share in (("initial", 1.0), ("trained", 0.3 + 0.02 * i + 0.01 * seed))
        for sigma in np.geomspace(0.002, 80, 8).tolist()
        for error in (share * 0.25 * sigma**2 / (sigma**2 + 0.25),)
    ]
    write_csv(folder / paths.losses, LOSS_COLUMNS, rows)
    seeds = {name: len(row["train_seeds"]) for name, row in models.items()}
    own = {
        name: {"straightness": {"mean": 0.02, "sd": 0.003 if count > 1 else None, "steps": 32}, "bound": None}
        for name, count in seeds.items()
    }
    write_json(folder / paths.metrics("losses", "models"), {"images": 256, "models": own})
    row = "edm_proposed: {base: edm, P_mean: -0.95, P_std: 1.1}"
    write_json(folder / paths.metrics("propose", "noise"), PROPOSAL | {"row": row})


def made_up_study(
    folder: Path,
    curves: dict[str, dict],
    seeds: list[int],
    sets: dict[str, dict] | None = None,
    models: dict[str, dict] | None = None,
) -> Paths:
    """Results as the stages write them, of a study that nobody ran."""
    paths = Paths("made_up")
    study = Study(
        title=HOSTILE,
        study={"name": "made_up"},
        defaults={"curves": {"nfe": [4, 8], "sample_seeds": seeds, "samples": 64}, "models": {"train_seeds": seeds}},
        models=models or MODELS,
        curves=curves,
        sets=sets or {},
    )
    resolved = resolve(study)
    rows = as_dicts(resolved)
    write_json(folder / paths.row("", "report"), resolved.files()["report"])
    for name in curves:
        write_cells(folder / paths.curve(name), rows[f"curves/{name}"]["seeds"], [(2, 3), (4, 7)], {})
    for name, row in (sets or {}).items():
        write_cells(folder / paths.set(name), [[0, 0]], [(0, row.get("nfe", 0))], {})
        write_json(folder / paths.metrics("measure", name), {"agreement": AGREED})
    data = {"count": 100, "channels": 1, "height": 8, "width": 8, "sigma_data": 0.5, "content_hash": "0" * 64}
    write_json(folder / paths.metrics("prepare", "data"), data | {"classes": [HOSTILE]})
    write_json(folder / paths.metrics("features", "extractor"), EXTRACTOR)
    floor = {
        "reference_hash": "f" * 64,
        "images": 100,
        "floor_images": 50,
        "floor_splits": 10,
        "floor": {metric: {"mean": 0.5, "sd": 0.1} for metric in METRICS},
    }
    floor |= {"quarter_images": 25, "quarter_fd_corrected": {"mean": 1.1, "sd": 0.1}}
    write_json(folder / paths.metrics("reference", "floor"), floor)
    for model in rows["report"]["models"]:
        own = {"network": "unet", "channels": 16, "parameters": 12_345, "flops": 6_700_000}
        write_json(folder / paths.metrics("train", model), own | {"machine": MACHINE})
        curve = [{"seed": seed, "images": n, "loss": 1 / n + seed} for seed in seeds for n in (64, 128)]
        write_csv(folder / paths.training_curve(model), ["seed", "images", "loss"], curve)
    write_losses(folder, paths, rows["report"]["models"])
    write_json(folder / paths.metrics("agreement", "libraries"), dict.fromkeys(curves, AGREED))
    write_json(folder / paths.metrics("oracle", "solvers"), SOLVERS)
    return paths


def written(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2])
    build(paths)
    first = written(paths.reports)
    axes = {"rho", "solver", "loss_weighting", "combinations"}
    others = ("methods", "front_NFE", "samples", "oracle_errors", "oracle_distances")
    others += ("loss_by_noise_level", "gradient_by_noise_level", "noise_distributions", "trajectories")
    figures = {f"figures/ablation_{axis}" for axis in axes} | {f"figures/{f}" for f in others}
    files = {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg", "json")}
    files -= {"figures/samples.json", "figures/trajectories.json"}
    assert files == {name for name in first if name.startswith("figures/")}
    build(paths)
    assert written(paths.reports) == first

    page = _Page((paths.reports / "report.html").read_text())
    assert not {"link", "iframe", "i"} & set(page.tags)
    links = [address for address in page.addresses if address.startswith("#")]
    addresses = [address for address in page.addresses if not address.startswith("#")]
    pictures = [address for address in addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == len(figures) and links
    assert all(address.removeprefix("#") in page.ids for address in links)
    assert set(addresses) - set(pictures) == {f"{figure}.svg" for figure in figures}  # to be downloaded
    assert HOSTILE in page.text
    assert HOSTILE[:40] in page.text
    for said in ("Small samples: 64 for 64 features", "real against real", "torch-fidelity", "1.0e-15", "tie"):
        assert said in page.text, said
    assert not re.search(r"\bFID\b(?!, which|-like)", page.text)

    table_of_results = pd.read_csv(paths.reports / "results.csv")
    assert list(table_of_results.columns) == COLUMNS + ORIGIN
    assert len(table_of_results) == len(CURVES) * 2 * 3 * len(METRICS)
    assert set(table_of_results.checkpoint) == {"c" * 12}
    origins = json.loads((paths.reports / "provenance.json").read_text())
    assert list(origins) == list(CURVES)
    assert origins["rho_3"]["measured_with"] == PROVENANCE and origins["rho_3"]["row"]["rho"] == 3
    assert origins["rho_3"]["checkpoints"] == {"0": "c" * 12, "1": "c" * 12, "2": "c" * 12}


def test_report_with_seconds_has_their_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the curves as they stand: what was timed with other weights or another sampler is left out."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    curves = json.loads((paths.rows / "report.json").read_text())["curves"]
    rows = [
        {"curve": name, "steps": 2, "nfe": 3, "seconds_per_image": 0.001, "images": 256, "repetitions": 3}
        | {"device": "CPU (made up)", "checkpoint": checkpoint, "sampler": sampler_hash(curves[name])}
        for name, checkpoint in (("edm", "c" * 12), ("rho_3", "c" * 12), ("rho_5", "old"), ("gone", "c" * 12))
        if name in curves
    ]
    rows[1]["sampler"] = "old"
    write_csv(paths.timings, timing.COLUMNS, rows)
    build(paths)
    assert (paths.reports / "figures/front_seconds_per_image.png").exists()
    text = (paths.reports / "report.md").read_text()
    assert "one thread of CPU (made up), in batches of 256" in text
    assert "missing for both, euler, flow, rho_3, rho_5 and weighted" in text.replace("\\", "")


def test_image_sets_stand_beside_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = {"theirs": {"source": "x.zip", "nfe": 35, "method": "their EDM"}, "unknown": {"source": "y.zip"}}
    paths = made_up_study(tmp_path, CURVES, [0, 1], sets)
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


def test_results_that_were_measured_otherwise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    build(paths)
    before = written(paths.reports)
    write_cells(paths.curve("rho_5"), [[0, 0]], [(2, 3)], {"extractor_hash": "other"})
    with pytest.raises(StudyError, match=r"^edm and rho_5 cannot stand in one figure: extractor_hash is e+ for the"):
        build(paths)
    assert written(paths.reports) == before


@pytest.mark.parametrize(
    ("stage", "name", "key"), [("features", "extractor", "hash"), ("reference", "floor", "reference_hash")]
)
def test_labels_and_floors_of_another_measurement_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, name: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    file = paths.metrics(stage, name)
    write_json(file, json.loads(file.read_text()) | {key: "other"})
    with pytest.raises(StudyError, match=rf"{name}.json: its hash is other, but the curves were measured with"):
        build(paths)


def test_results_of_an_earlier_version_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    write_json(paths.curve("edm") / "results.json", {"cells": [], "machine": MACHINE})
    with pytest.raises(StudyError, match=r"results\.json: made by another version of the code"):
        build(paths)


def test_a_curve_that_repeats_another_one_for_more_seeds_is_no_curve_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = {"again": {"model": "edm", "nfe": [4], "repetitions": "crossed"}}
    report = Report(made_up_study(tmp_path, CURVES | again, [0, 1]), Path())
    assert report.distinct == list(CURVES)


def test_a_score_that_is_not_above_0_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    results = json.loads((paths.curve("edm") / "results.json").read_text())
    for cell in results["cells"]:
        for metric in cell["metrics"]:
            metric["value"] = -metric["value"]
    write_json(paths.curve("edm") / "results.json", results)
    build(paths)
    assert (paths.reports / "figures/methods.png").stat().st_size > 10_000


def test_official_inception_is_called_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    official = EXTRACTOR | {"name": "inception", "official": True, "wanted": "inception", "held_out_accuracy": None}
    write_json(paths.metrics("features", "extractor"), official)
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "The score is bias-corrected FID" in text and "FD (" not in text and "It is not FID" not in text


def test_a_fallback_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | {"wanted": "inception", "fallback": "no network"})
    build(paths)
    assert "inception was asked for and could not be had** (no network)" in (paths.reports / "report.md").read_text()


def test_images_that_had_been_compressed_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    build(paths)
    assert "-compressed" not in (paths.reports / "report.md").read_text()
    summary = paths.metrics("prepare", "data")
    write_json(summary, json.loads(summary.read_text()) | {"lossy": "JPEG"})
    build(paths)
    said = "The images had been JPEG-compressed before, which changes pixels: scores do not compare with those on the"
    assert all(said in (paths.reports / name).read_text() for name in ("report.md", "report.html"))


def test_report_of_a_deleted_row_forgets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(made_up_study(tmp_path, CURVES, [0, 1]))
    fewer = {name: row for name, row in CURVES.items() if name not in ("rho_3", "rho_5")}
    paths = made_up_study(tmp_path, fewer, [0, 1])
    build(paths)
    assert not (paths.reports / "figures" / "ablation_rho.png").exists()
    assert "rho_5" not in (paths.reports / "report.md").read_text()


def test_report_of_one_curve_and_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0])
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "nan" not in text and "Failed measurements" not in text and "The best sampler" not in text
    half = number(0.1 * stats.t.ppf(0.975, 19))
    assert f"± {half}" in text


@pytest.mark.parametrize(
    ("best", "said"), [(0.45, ["below the floor (0.500) by less than"]), (0.3, ["by more than"]), (0.5, [])]
)
def test_a_best_score_below_the_floor_is_told_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: float, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0, 1, 2]), tmp_path)
    report.__dict__["score_floor"] = Floor(0.5, 0.1)
    text = findings._below(report, best)
    assert all(part in text for part in said) and bool(text) == bool(said)


def design_tables(paths: Paths) -> tuple[str, str]:
    """What the report says of models, and of curves, under "Every setting"."""
    text = (paths.reports / "report.md").read_text().replace("\\", "")
    section = text.split("## Every setting")[1].split("## Whether")[0]
    models, curves = section.split("Curves, as they were sampled")
    return models, curves


def test_design_tables_show_what_differs_and_name_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    build(paths)
    models, curves = design_tables(paths)
    assert "| row | base | weighting |" in models and "| `edm_snr` | `edm` | **snr** |" in models
    assert "All others: parametrization edm; " in models and "sigma_data measured" in models
    [header] = [line for line in curves.splitlines() if line.startswith("| row")]
    assert {"model", "solver", "rho", "discretization"} <= set(header.strip("| ").split(" | "))
    [common] = [line for line in curves.splitlines() if line.startswith("All others: ")]
    assert "schedule linear" in common and " rho " not in common and "schedule" not in header


def test_design_table_of_one_row_has_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0])
    build(paths)
    _, curves = design_tables(paths)
    assert "| row | base |\n" in curves and "All others: model edm; solver heun; " in curves


def test_a_choice_that_is_not_set_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0])
    rows = json.loads((paths.rows / "report.json").read_text())
    for name, row in rows["curves"].items():
        row["row"]["S_max"] = None if name == "rho_3" else 50.0
    write_json(paths.rows / "report.json", rows)
    build(paths)
    _, curves = design_tables(paths)
    assert "order none" in curves.split("All others: ")[1] and "**none**" in curves.split("All others: ")[0]


def test_choices_without_effect_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0])
    build(paths)
    assert "cannot change the result" not in (paths.reports / "report.md").read_text()
    rows = json.loads((paths.rows / "report.json").read_text())
    told = "curves.x.rho: no effect: grid vp has none"
    write_json(paths.rows / "report.json", rows | {"warnings": [told, HOSTILE]})
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert f"\n- {told}\n- {escape(HOSTILE)}\n" in text.split("## The design table")[1].split("\n### ")[0]


@pytest.mark.parametrize(("name", "shown"), [("classifier", True), ("rotation classifier", False)])
def test_a_score_of_rotations_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    write_json(paths.metrics("features", "extractor"), EXTRACTOR | {"name": name})
    build(paths)
    assert (f"IS ({name})" in (paths.reports / "report.md").read_text()) is shown
    assert "score" in set(pd.read_csv(paths.reports / "results.csv").metric)


def test_a_reference_without_a_floor_of_the_score_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1])
    file = paths.metrics("reference", "floor")
    reference = json.loads(file.read_text())
    del reference["floor"]["fd_corrected"]
    write_json(file, reference)
    with pytest.raises(StudyError, match=r"reference/floor\.json: fd_corrected has no floor$"):
        build(paths)
