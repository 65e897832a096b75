"""What several of the report's tests share."""

import io
import json
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from PIL import Image

from pipeline.common.files import write_json
from pipeline.report.build import build
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
            write_json(paths.curve(name) / "results.json", results)
        rows = json.loads((paths.rows / "report.json").read_text())
        rows["curves"]["rho_5"]["differences"] = {"rho": LONG}
        write_json(paths.rows / "report.json", rows)
        build(paths)
    return root / paths.reports


@pytest.fixture
def drawn_figures() -> None:
    """For tests of the figures' files: draw them."""


@pytest.fixture(autouse=True)
def fast_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures of one pixel unless a test asks for `drawn_figures`: drawing takes most of the time of a report."""
    if "drawn_figures" in request.fixturenames:
        return
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, format="PNG")
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda _, file, **__: file.write(pixel.getvalue()))
    monkeypatch.setattr(FigureCanvasSVG, "print_svg", lambda _, file, **__: file.write(b"<svg/>"))
