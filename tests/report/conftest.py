"""What several of the report's tests share."""

import io
import json
import os
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image

from pipeline.common.files import Paths, write_bytes, write_json
from pipeline.common.sealed import save_json
from pipeline.report import build as building
from pipeline.report.build import build
from pipeline.report.figures import drawing, given, lines, pictures, scores
from pipeline.report.sections import trajectories
from tests.report.studies import CURVES, HOSTILE, LONG, made_up_study


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with made-up results, one of whose cells failed."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("page")
        patch.chdir(root)
        curves = CURVES | {"failing": {"model": "edm", "rho": 9}}
        paths = made_up_study(root, curves, [0, 1, 2])
        for place, name in enumerate(curves):
            results = json.loads((paths.curve(name) / "results.json").read_text())
            for metric in (metric for cell in results["cells"] for metric in cell["metrics"]):
                metric["value"] *= 1 + 3 * place % 8  # no two curves alike, and in no order
            if name == "failing":
                results["cells"][-1] |= {"failed": HOSTILE, "metrics": []}
            save_json(paths.curve(name) / "results.json", results)
        rows = json.loads((paths.rows / "report.json").read_text())
        rows["curves"]["rho_5"]["differences"] = {"rho": LONG}
        write_json(paths.rows / "report.json", rows)
        build(paths)
    return root / paths.reports


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of made-up results without failures, of three seeds; its figures are stubs."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("plain")
        patch.chdir(root)
        write_stubs(patch)
        remember_figures(patch)
        remember_trajectories(patch)
        build(made_up_study(root, CURVES, [0, 1, 2]))
    return root


@pytest.fixture
def plain(plain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """The files of the report in `plain_folder`, entered; tests only read them."""
    monkeypatch.chdir(plain_folder)
    return Paths("made_up")


def write_stubs(patch: pytest.MonkeyPatch) -> None:
    """Write figures of one pixel."""
    patch.setattr(FigureCanvasAgg, "print_png", print_pixel)
    patch.setattr(FigureCanvasSVG, "print_svg", print_nothing)


def print_pixel(canvas: FigureCanvasAgg, file: io.BytesIO, **_: Any) -> None:
    Image.new("RGB", (1, 1)).save(file, format="PNG")


def print_nothing(canvas: FigureCanvasSVG, file: io.BytesIO, **_: Any) -> None:
    file.write(b"<svg/>")


PRINT_PNG = FigureCanvasAgg.print_png
COURSES, BEND, DRAW = trajectories.courses, cache(trajectories.bend), trajectories._draw
REMEMBERED: dict[str, Any] = {}


def remember_trajectories(patch: pytest.MonkeyPatch) -> None:
    """Compute and draw the trajectories of each set of schedules once: no result of a study changes them."""

    def solved(*of: Any) -> Any:
        if str(of) not in REMEMBERED:
            REMEMBERED[str(of)] = COURSES(*of)
        return REMEMBERED[str(of)]

    def drawn(path: Path, found: Any, points: Any) -> None:
        draw_once(f"{[*found]}", path, lambda: DRAW(path, found, points))

    patch.setattr(trajectories, "courses", solved)
    patch.setattr(trajectories, "bend", BEND)
    patch.setattr(trajectories, "_draw", drawn)


def draw_once(what: str, path: Path, draw: Callable[[], None]) -> None:
    """Draw a figure, or write its files again if the same one was drawn in the same way before."""
    kind = f"{FigureCanvasAgg.print_png.__name__} {FigureCanvasSVG.print_svg.__name__} {drawing.DPI} {what}"
    if kind not in REMEMBERED:
        draw()
        REMEMBERED[kind] = {own.suffix: own.read_bytes() for own in path.parent.glob(f"{path.stem}.*")}
    for suffix, content in REMEMBERED[kind].items():
        write_bytes(path.with_suffix(suffix), content)


def remember_figures(patch: pytest.MonkeyPatch) -> None:
    """Draw each figure of equal contents once."""

    def drawn(draw: Callable[..., None], path: Path, *of: Any, **more: Any) -> None:
        what = f"{draw.__name__} {path.stem} {pickle.dumps((of, more))!r}"
        draw_once(what, path, lambda: draw(path, *of, **more))

    figures = {
        draw for own in (given, lines, pictures, scores) for name, draw in vars(own).items() if name.endswith("_figure")
    }
    for section in (own for own in vars(building).values() if isinstance(own, ModuleType)):
        for name, draw in vars(section).copy().items():
            if name.endswith("_figure") and draw in figures - {drawing.new_figure}:
                patch.setattr(section, name, partial(drawn, draw))


@pytest.fixture
def drawn_figures() -> None:
    """For tests of the figures' files: draw them."""


@pytest.fixture
def rough_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of figures that must not fail: draw them, but with few pixels, without a layout and without SVG.

    Figures of exact denoisers and of training are stubs: no curve changes them.
    """

    def undrawn(*of: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            write_stubs(patch)
            drawing.save(*of)

    def print_rough(canvas: FigureCanvasAgg, file: io.BytesIO, **more: Any) -> None:
        canvas.figure.set_layout_engine("none")
        PRINT_PNG(canvas, file, **more)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", print_rough)
    monkeypatch.setattr(drawing, "DPI", 20)
    monkeypatch.setattr(FigureCanvasSVG, "print_svg", print_nothing)
    monkeypatch.setattr("pipeline.report.figures.lines.save", undrawn)


@pytest.fixture(autouse=True)
def fast_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write stubs of figures unless a test asks for drawn or rough ones: drawing takes most of the time of a report.

    Only drawn figures are drawn each time. No test waits for the disk: it ends with its folder.
    """
    monkeypatch.setattr(os, "fsync", lambda file: None)
    if "drawn_figures" not in request.fixturenames:
        remember_figures(monkeypatch)
        if "rough_figures" not in request.fixturenames:
            write_stubs(monkeypatch)


@pytest.fixture
def solved_trajectories() -> None:
    """For tests of trajectories: compute them."""


@pytest.fixture(autouse=True)
def fast_trajectories(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute and draw the trajectories of a report once unless a test asks for `solved_trajectories`."""
    if "solved_trajectories" not in request.fixturenames:
        remember_trajectories(monkeypatch)
