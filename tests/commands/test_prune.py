"""What deleted rows left is deleted, and nothing else is."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline.commands.cli import main
from pipeline.commands.prune import delete, leftovers, prune_study
from pipeline.common.errors import StudyError
from tests.imports import ROOT

STUDY: dict[str, Any] = {
    "study": {"name": "tiny", "root": ".", "params": "params.yaml"},
    "models": {"edm": {}, "flow": {"parametrization": "flow", "noise": "flow_uniform"}},
    "curves": {"edm": {"model": "edm"}, "flow": {"model": "flow"}},
    "sets": {},
}
KEPT = (
    *("build/tiny/models/edm/seed_0.safetensors", "build/tiny/models/flow/seed_0.safetensors"),
    *("build/tiny/curves/edm/results.json", "build/tiny/rows/models/gone.json", "build/tiny/data/images.npy"),
    *("build/tiny/timings/train_edm.json", "build/tiny/timings/report.json", "build/tiny/models/.gone.partial/x"),
    *("build/other/models/gone/seed_0.safetensors", "reports/other/training/gone.csv", ".cache/cells/gone"),
    *("reports/tiny/training/edm.csv", "reports/tiny/metrics/sweep/flow.json", "reports/tiny/metrics/oracle/gone.json"),
    *("reports/tiny/notes.md", "reports/tiny/training/notes.md", "reports/tiny/results.csv"),
    *("build/tiny/models/edm.old/seed_0.safetensors", "reports/tiny/training/edm, mine.csv"),  # no row has such a name
    *("reports/tiny/metrics/train/EDM.json", "build/tiny/timings/sweep_EDM.json"),  # edm's, on some file systems
)
GONE = (
    *("build/tiny/models/gone/seed_0.safetensors", "build/tiny/curves/gone/results.json"),
    *("build/tiny/sets/edm/results.json", "build/tiny/timings/train_gone.json", "build/tiny/timings/measure_edm.json"),
    *("reports/tiny/training/gone.csv", "reports/tiny/metrics/train/gone.json"),
    *("reports/tiny/metrics/sweep/gone.json", "reports/tiny/metrics/measure/edm.json"),
)
LOCKED = (
    *("resolve", "train@edm", "train@gone", "report", "sweep@flow", "sweep@gone", "measure@edm", "long_ago"),
    "own@first",
)
STALE = ["train@gone", "sweep@gone", "measure@edm", "long_ago"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository where rows were deleted, entered."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    Path("params.yaml").write_text(yaml.safe_dump(STUDY))
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    graph["stages"]["own"] = {"foreach": ["first"], "do": {"cmd": "echo"}}
    Path("dvc.yaml").write_text(yaml.safe_dump(graph))
    entries = {name: {"cmd": "python -m stages.x"} for name in LOCKED}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False))
    for name in (*KEPT, *GONE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    return tmp_path


def prune(*options: str) -> None:
    assert main(["prune", *options]) == 0


def locked() -> list[str]:
    return list(yaml.safe_load(Path("dvc.lock").read_text())["stages"])


def test_what_deleted_rows_left_is_deleted(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("dvc.lock").read_text()
    prune("--dry")
    dry = capsys.readouterr().out
    assert all(Path(name).read_text() == name for name in (*KEPT, *GONE)) and Path("dvc.lock").read_text() == before
    prune()
    assert capsys.readouterr().out == dry.replace("would delete", "deleted")
    assert dry.count("would delete") == len(GONE) + len(STALE)
    assert all(Path(name).read_text() == name for name in KEPT) and not [name for name in GONE if Path(name).exists()]
    assert locked() == [name for name in LOCKED if name not in STALE]
    prune()
    assert "nothing is left" in capsys.readouterr().out


def test_a_link_goes_and_what_it_leads_to_stays(study: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("precious")
    (precious / "file").write_text("kept")
    Path("build/tiny/models/link").symlink_to(precious)
    Path("build/tiny/models/gone/inside").symlink_to(precious)
    delete(leftovers(Path("params.yaml")), Path("dvc.lock"))
    assert not os.path.lexists("build/tiny/models/link") and not Path("build/tiny/models/gone").exists()
    assert (precious / "file").read_text() == "kept"


def test_nothing_is_deleted_behind_a_link(study: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Path("build").rename(elsewhere / "build")
    Path("build").symlink_to(elsewhere / "build")
    with pytest.raises(StudyError, match="build: a symbolic link"):
        leftovers(Path("params.yaml"))


BAD = {
    "no rows": ({"models": ["edm"]}, "models"),
    "a row of nothing": ({"models": STUDY["models"] | {"edm": {"nosie": "x"}}}, "models.edm.nosie: unknown key"),
    "a model that curves still name": ({"models": {"edm": {}}}, "curves.flow.model: no model 'flow'"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_study_file_deletes_nothing(study: Path, case: str) -> None:
    sections, cause = BAD[case]
    Path("params.yaml").write_text(yaml.safe_dump(STUDY | sections))
    with pytest.raises(StudyError, match=cause):
        prune_study(Path("params.yaml"), dry=False)
    assert all(Path(name).exists() for name in (*KEPT, *GONE)) and locked() == list(LOCKED)


@pytest.mark.parametrize("name", ["tiny", "Tiny"])
def test_a_study_that_has_the_name_of_another_one_deletes_nothing(study: Path, name: str) -> None:
    copy = Path("studies/copy/params.yaml")
    copy.parent.mkdir(parents=True)
    own = {"name": name, "root": "../..", "params": str(copy)}
    copy.write_text(yaml.safe_dump(STUDY | {"study": own, "curves": {"edm": {"model": "edm"}}}))
    copy.with_name("dvc.yaml").write_text(Path("dvc.yaml").read_text())
    for params in (copy, Path("params.yaml")):
        with pytest.raises(StudyError, match=r"study\.name: .*already has the name '[Tt]iny'"):
            leftovers(params)


def test_another_study_may_be_broken(study: Path) -> None:
    for name, content in (("open", b"models: {"), ("binary", b"\xff"), ("empty", b"")):
        (folder := Path("studies") / name).mkdir(parents=True)
        (folder / "params.yaml").write_bytes(content)
    assert leftovers(Path("params.yaml")).stages == STALE


@pytest.mark.parametrize(
    ("file", "text"), [("dvc.lock", "stages:\n<<<<<<< HEAD\n  resolve:\n"), ("dvc.yaml", "stages:\n")]
)
def test_a_graph_or_lock_that_is_broken_is_one_line(study: Path, file: str, text: str) -> None:
    Path(file).write_text(text)
    with pytest.raises(StudyError, match=rf"^{re.escape(file)}: "):
        leftovers(Path("params.yaml"))
