"""The report's statistics, and the report of made-up results: figures by axis, escaping, the same bytes twice."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save
from scipy import stats

from pipeline.files import Paths, write_bytes, write_json
from pipeline.params import Study, resolve
from pipeline.report.build import build, number
from pipeline.report.page import escape, table, to_html
from pipeline.report.results import COLUMNS, Interval, at_budget, interval, is_tie, ratio, summarise

HOSTILE = '<script>alert("x")</script> | $a_b$ `c` **d** [e](http://evil.example)'


def test_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 4.5])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == values.mean()


def test_interval_of_one_repetition_has_no_ends() -> None:
    found = interval(np.array([3.0]))
    assert found.mean == 3 and math.isnan(found.low) and math.isnan(found.high)


def test_ratio_is_paired_by_seeds() -> None:
    seeds = pd.MultiIndex.from_tuples([(0, 0), (1, 1), (2, 2)], names=["train_seed", "sample_seed"])
    base = pd.Series([1.0, 10.0, 100.0], index=seeds)
    values = pd.Series([200.0, 2.0, 20.0], index=seeds[[2, 0, 1]])
    found = ratio(values, base)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((2, 2, 2, 3))
    assert ratio(values, base.iloc[:0]) is None


@pytest.mark.parametrize(
    ("found", "tie"),
    [
        (Interval(1.1, 0.9, 1.3, 3), True),
        (Interval(1.1, 1.05, 1.2, 3), False),
        (Interval(0.5, 0.4, 0.6, 3), False),
        (Interval(2.0, math.nan, math.nan, 1), True),
        (None, True),
    ],
)
def test_tie(found: Interval | None, tie: bool) -> None:
    assert is_tie(found) is tie


def test_a_budget_means_the_largest_nfe_within_it() -> None:
    rows = [("a", "m", 0, 0, n, nfe, 64, "fd", float(nfe), 0.1) for n, nfe in ((2, 3), (4, 7), (6, 11))]
    results = pd.DataFrame(rows, columns=COLUMNS)
    assert at_budget(results, "a", "fd", 10).tolist() == [7.0]
    assert at_budget(results, "a", "fd", 2).empty
    assert list(summarise(results, "a", "fd")) == [3, 7, 11]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (51234.5, "51234"), (2e-5, "2.0e-05")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_hostile_text_stays_text() -> None:
    page = to_html(f"# {escape(HOSTILE)}\n\n{table(['a'], [[HOSTILE]])}\n", HOSTILE, Path())
    cells = _Page(page)
    assert "script" not in cells.tags and "a" not in cells.tags and "strong" not in cells.tags
    assert cells.text.count(HOSTILE) == 3  # title, heading, cell


class _Page(HTMLParser):
    """The tags, the addresses and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
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


def made_up_study(folder: Path, curves: dict[str, dict], seeds: list[int], metrics: tuple[str, ...]) -> Paths:
    """Results as the stages write them, of a study that nobody ran."""
    paths = Paths("made_up")
    study = Study(
        title=HOSTILE,
        study={"name": "made_up"},
        defaults={"curves": {"nfe": [4, 8], "sample_seeds": seeds}, "models": {"train_seeds": seeds}},
        models={"edm": {}, "edm_snr": {"weighting": "snr"}},
        curves=curves,
    )
    rows = resolve(study)
    write_json(folder / paths.row("", "report"), rows["report"])
    random = np.random.default_rng(0)
    for name in curves:
        row = rows[f"curves/{name}"]
        cells = [
            {"train_seed": a, "sample_seed": b, "steps": n, "nfe": 2 * n - 1, "samples": 64}
            | {"metrics": [{"metric": m, "value": 1 + random.random() / n, "se": 0.1} for m in metrics]}
            for n in (2, 4)
            for a, b in row["seeds"]
        ]
        write_json(
            folder / paths.curve(name) / "results.json",
            {"cells": cells, "machine": {"device": "CPU (made up)", "system": "none", "python": "3", "torch": "2"}},
        )
        images = {f"{c['steps']}/{c['train_seed']}/{c['sample_seed']}": torch.zeros(16, 1, 8, 8).byte() for c in cells}
        write_bytes(folder / paths.curve(name) / "images.safetensors", save(images))
    data = {"count": 9, "channels": 1, "height": 8, "width": 8, "sigma_data": 0.5, "content_hash": "0" * 64}
    write_json(folder / paths.metrics("prepare", "data"), data | {"classes": [HOSTILE]})
    extractor = {"name": "classifier", "dimensions": 64, "held_out_images": 9, "held_out_accuracy": 0.98}
    write_json(folder / paths.metrics("features", "extractor"), extractor)
    floor = {"floor_images": 50, "floor": 0.5, "floor_sd": 0.1}
    write_json(folder / paths.metrics("reference", "floor"), floor)
    return paths


def written(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, CURVES, [0, 1, 2], ("fd", "fd_equal_counts"))
    build(paths)
    first = written(paths.reports)
    axes = {"rho", "solver", "loss_weighting", "combinations"}
    figures = {f"figures/ablation_{axis}.png" for axis in axes} | {
        f"figures/{f}.png" for f in ("methods", "floor", "samples")
    }
    assert figures == {name for name in first if name.startswith("figures/")}
    build(paths)
    assert written(paths.reports) == first

    page = _Page((paths.reports / "report.html").read_text())
    assert not {"script", "link", "iframe", "i"} & page.tags
    assert len(page.addresses) == len(figures)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert HOSTILE in page.text
    assert HOSTILE[:40] in page.text

    table_of_results = pd.read_csv(paths.reports / "results.csv")
    assert list(table_of_results.columns) == COLUMNS
    assert len(table_of_results) == len(CURVES) * 2 * 3 * 2


def test_report_of_a_deleted_row_forgets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(made_up_study(tmp_path, CURVES, [0, 1], ("fd",)))
    fewer = {name: row for name, row in CURVES.items() if name not in ("rho_3", "rho_5")}
    paths = made_up_study(tmp_path, fewer, [0, 1], ("fd",))
    build(paths)
    assert not (paths.reports / "figures" / "ablation_rho.png").exists()
    assert "rho_5" not in (paths.reports / "report.md").read_text()


def test_report_of_one_curve_and_one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, {"edm": {"model": "edm"}}, [0], ("fd",))
    build(paths)
    text = (paths.reports / "report.md").read_text()
    assert "nan" not in text
    assert "No method was measured with so many samples" in text
    assert not re.search(r"±", text)
