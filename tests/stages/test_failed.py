"""A study with trainings that diverge, from DVC to its report: their rows fail alone, and the report says why."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.common.sealed import load_json
from tests.report.studies import row
from tests.workspace import TINY, Workspace

OTHERS = {
    "models": {
        "half": {"base": "flow", "learning_rate": 0.0123, "train_seeds": [0, 1]},
        "taught": {"base": "half", "pairs": "reflow", "reflow_pairs": 64},
        "wild": {"learning_rate": 1.0e12},
    },
    "curves": {
        "half": {"model": "half"},
        "fitted": {"model": "half", "discretization": "optimised"},
        "taught": {"model": "taught"},
        "wild": {"model": "wild"},
    },
}
STEP = "    row, device, sigma_data = run.row, run.device, run.denoiser.sigma_data\n"
POISON = """    if (row.learning_rate, row.pairs, run.seed, run.step) == (0.0123, "independent", 1, 5):
        next(run.denoiser.parameters()).data.fill_(torch.inf)
"""
NUMBER = r"[\d.e+-]+"
BEFORE = rf"sigma {NUMBER}; losses before: {NUMBER}(, {NUMBER})*"
WHERE = rf"the loss is not finite at step {{}} \({BEFORE}\); lower learning_rate\?"


def study(folder: Path, rows: dict[str, dict[str, dict]]) -> Workspace:
    """The tiny study with further rows, whose model `half` diverges for seed 1."""
    made = Workspace(folder)
    loop = made.root / "pipeline/training/loop.py"
    text = loop.read_text()
    assert text.count(STEP) == 1
    loop.write_text(text.replace(STEP, STEP + POISON))
    made.study = yaml.safe_load(TINY)
    del made.study["curves"]["rho_3"]
    for section, own in rows.items():
        made.study[section] |= own
    return made


@pytest.mark.dvc
def test_rows_that_diverge_fail_alone_and_the_report_says_why(tmp_path: Path) -> None:
    tiny = study(tmp_path / "one", OTHERS)
    tiny.write_params(tiny.study)
    done = tiny.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    half, wild = WHERE.format(5), WHERE.format(r"\d")
    for name, reason in {
        "half": f"seed 1: {half}",
        "taught": f"the teacher failed: seed 1: {half}",
        "wild": f"seed 0: {wild}",
    }.items():
        assert len(re.findall(rf"^failed: {name}, {reason}$", done.stdout + done.stderr, re.M)) == 1

    results = tiny.results()
    models = [name.removeprefix("build/tiny/models/") for name in results if name.startswith("build/tiny/models/")]
    assert sorted(models) == [
        *("edm/seed_0.safetensors", "flow/seed_0.safetensors", "half/seed_0.safetensors", "half/seed_1_failed.json"),
        *("taught/seed_0.safetensors", "taught/seed_1_failed.json", "wild/seed_0_failed.json"),
    ]
    for name, lost in {"half": [1], "fitted": [1], "taught": [1], "wild": [0]}.items():
        cells = load_json(tiny.root / f"build/tiny/curves/{name}/results.json")["cells"]
        assert {cell["train_seed"] for cell in cells if cell["failed"]} == set(lost)
        assert all(cell["failed"].startswith("training failed: ") for cell in cells if cell["failed"])
    summary = json.loads(results["reports/tiny/summary.json"])
    assert summary["failed"] == 1 + 1 + 1 + 2
    agreement = json.loads(results["reports/tiny/metrics/agreement/libraries.json"])
    assert {name for name, own in agreement.items() if not own} == {"wild"}, "the other seed of a row is compared"

    text = results["reports/tiny/report.md"].decode().replace("\\", "")
    [sentence] = [line for line in text.splitlines() if line.startswith("- Trainings failed, of")]
    for name, left in {"half": "1 of 2 trainings", "taught": "1 of 2 trainings", "wild": "0 of 1 trainings"}.items():
        assert f"{name} ({left} left)" in sentence
        own = row(text, f"`{name}`", "## Failed trainings")
        assert own[2] == left and re.search(half if name != "wild" else wild, own[3])
        assert row(text, f"`{name}`", "## Failed measurements")[3].startswith("training failed: ")
        assert row(text, f"`{name}` (", "\n## Training\n")[0] == f"`{name}` ({left})"
    assert "nan" not in re.sub(r"\w*finan\w*|\w*nan[a-z]\w*", "", text)

    other = study(tmp_path / "two", {})
    other.repro()
    same = {
        name: content
        for name, content in other.results().items()
        if re.search(r"/(models|curves|train|training|sweep)/(edm|flow)[/.]", name) and "/rows/" not in name
    }
    assert len(same) == 2 * (1 + 3 + 3), sorted(same)
    assert {name: results[name] for name in same} == same
    assert tiny.repro() == set()
