"""What several of the report's tests share."""

import json
from pathlib import Path

import pytest

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
