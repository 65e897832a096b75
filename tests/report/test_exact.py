"""The section on solvers with exact denoisers."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipeline.common.files import Paths, write_json
from pipeline.report.build import build
from pipeline.report.figures.lines import Line, many_lines_figure
from pipeline.report.statistics import Floor
from tests.report.studies import CURVES, SOLVERS, made_up_study


def section(paths: Paths) -> str:
    text = (paths.reports / "report.md").read_text().replace("\\", "")
    return text.split("## Solvers on exact denoisers")[1].split("\n## ")[0]


def built(folder: Path, **changed: Any) -> Paths:
    """A made-up report whose solvers' results are changed."""
    paths = made_up_study(folder, {"edm": CURVES["edm"]}, [0])
    write_json(paths.metrics("oracle", "solvers"), SOLVERS | changed)
    build(paths)
    return paths


def test_solvers_have_their_orders_errors_and_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = section(built(tmp_path))
    assert "two hills" in text and "a made-up set" in text
    assert "a mean, of 8192 samples, over 3 seeds" in text
    assert "| `heun` | trajectories | 2 | 1.90 | 2 | made up | and said |" in text
    assert "| `rk45` | trajectories | adaptive | adaptive | 2 |" in text
    assert "| `Langevin` | sampled variance | 1 | not measured | 2 |" in text
    assert "| ddim, eta 1 | sampled variance | 1 | 0.97 | 2 |" in text
    assert "Of 3 measured orders, that of heun deviates most from theory: 1.90 instead of 2." in text
    assert "the distance of exact samples, 0.0120 (sd 0.00100)." in text


def test_the_smallest_error_is_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun's 15 evaluations exceed a budget of 7, and Euler's 9 are within 19."""
    monkeypatch.chdir(tmp_path)
    text = section(built(tmp_path))
    lines = [line for line in text.splitlines() if line.startswith(("| `euler` | 0", "| `heun` | *"))]
    assert lines[0] == "| `euler` | 0.500 (4) |" + 4 * " 0.250 (9) |"
    assert lines[1] == "| `heun` | **0.400 (7)** |" + 4 * " **0.100 (15)** |"
    said = "heun at 7 (0.400 at NFE 7), " + ", ".join(f"{b} (0.100 at NFE 15)" for b in (19, 35, 63))
    said += " and 127 (0.100 at NFE 15)."
    assert f"Smallest error on the mixture, by budget (NFE): {said}" in text
    assert "Smallest error on the data, by budget (NFE): heun at 7 (0.800 at NFE 7)" in text
    assert "; ddim (eta 1) at 127 (0.0200 at NFE 64). Exact samples have a distance of 0.0120 (sd 0.00100)." in text


@pytest.mark.parametrize("part", ["orders", "errors", "distances"])
def test_a_part_without_rows_is_omitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    paths = built(tmp_path, **{part: []})
    drawn = {figure.stem for figure in paths.reports.glob("figures/oracle_*.png")}
    assert drawn == {"oracle_errors", "oracle_distances"} - {f"oracle_{part}"}
    assert "deviates most from theory" not in section(paths) or part != "orders"


def test_an_error_of_0_is_listed_but_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exact = {"row": "perfect", "steps": 7, "nfe": 7, "error": 0.0}
    errors = [*SOLVERS["errors"], *({"oracle": oracle} | exact for oracle in ("mixture", "data"))]
    text = section(built(tmp_path, errors=errors))
    assert "perfect at 7 (0 at NFE 7), 19 (0 at" in text and "| `perfect` | **0 (7)** |" in text


def test_many_lines_are_distinguishable_and_share_one_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line has a unique pair of colour and marker in both panels, and one legend entry beside them."""
    kept = []
    monkeypatch.setattr("pipeline.report.figures.lines.save", lambda own, *_: kept.append(own))
    lines = {f"row {i}": Line([(4, 1.0 + i, 0.1), (8, 0.5 + i, 0.1)], i, i % 2 == 1) for i in range(25)}
    some = dict(list(lines.items())[3:20])
    many_lines_figure(tmp_path / "x.png", {"one": lines, "two": some}, "error", Floor(0.1, 0.01))
    monkeypatch.undo()
    [figure] = kept
    one, two = figure.axes
    looks, others = (
        {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines if line.get_label() in lines}
        for axes in (one, two)
    )
    assert len(looks) == len(set(looks.values())) == 25 and len(others) == 17 and others.items() <= looks.items()
    assert [line.get_linestyle() for line in one.lines if line.get_label() in ("row 0", "row 1")] == ["-", "--"]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legends[0].get_texts()] == [*lines, "exact samples"] and len(legends) == 1
    FigureCanvasAgg(figure).draw()
    box = legends[0].get_window_extent()
    assert box.x0 >= two.get_window_extent().x1 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_a_row_has_the_same_style_in_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: dict[str, dict[str, Line]] = {}

    def keep(path: Path, panels: dict[str, dict[str, Line]], *rest: object) -> None:
        for lines in panels.values():
            drawn.setdefault(path.stem, {}).update(lines)
        many_lines_figure(path, panels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.report.sections.exact.many_lines_figure", keep)
    built(tmp_path)
    errors, distances = drawn["oracle_errors"], drawn["oracle_distances"]
    assert errors["heun"].place == distances["heun"].place
    assert not errors["heun"].dashed and distances["heun"].dashed and not distances["ddim, eta 1"].dashed
    assert json.loads(json.dumps(distances["heun"].points)) == [[7, 0.3, 0.01], [15, 0.2, 0.01]]
