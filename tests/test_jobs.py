"""Several stages at a time: DVC's locks carry it, the lock file's bytes are those of one at a time, errors end it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline import jobs
from pipeline.errors import StudyError
from pipeline.jobs import DVC, Plan, read_plan, run, sort_lock
from pipeline.stale import locked

# Each stage adds its name to the source. With `meet` two trainings wait until both of them have begun.
COMMAND = """
import pathlib, sys, time
out, meet = pathlib.Path(sys.argv[1]), pathlib.Path("meet")
out.parent.mkdir(exist_ok=True)
met = [name for name in ("b", "c") if meet.exists() and out.name in ("b", "c")]
if met:
    (meet / out.name).touch()
deadline = time.monotonic() + 60
while not all((meet / name).exists() for name in met):
    if time.monotonic() > deadline:
        sys.exit(3)
    time.sleep(0.01)
if pathlib.Path("broken").exists() and out.name == "b":
    print("what went wrong")
    sys.exit(1)
out.write_text(pathlib.Path("source").read_text() + out.name)
"""
STAGES = {
    "resolve": {"cmd": "python write_out.py out/rows", "deps": ["source"], "outs": ["out/rows"]},
    "train": {
        "foreach": "${models}",
        "do": {"cmd": "python write_out.py models/${key}", "deps": ["out/rows"], "outs": ["models/${key}"]},
    },
    "report": {"cmd": "python write_out.py out/report", "deps": ["models"], "outs": ["out/report"]},
}
MODELS = {"c": {"level": 1}, "a": {"base": "c"}, "b": {"level": 2}}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of five small stages, of which the trainings are independent; entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    Repo.init(no_scm=True).close()
    Path("write_out.py").write_text(COMMAND)
    Path("source").write_text("one ")
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    Path("params.yaml").write_text(yaml.safe_dump({"models": MODELS}, sort_keys=False))
    return tmp_path


def repro(at_once: int) -> Plan:
    plan, before = read_plan(Path("dvc.yaml")), list(locked(Path("dvc.yaml")))
    try:
        run(plan, at_once)
    finally:
        sort_lock(Path("dvc.lock"), before, plan.order)
    return plan


def test_independent_stages_run_side_by_side_and_leave_the_same_lock(repository: Path) -> None:
    Path("meet").mkdir()
    plan = repro(2)
    assert set(plan.todo) == {"resolve", "train@a", "train@b", "train@c", "report"}
    assert {path.name for path in Path("meet").iterdir()} == {"b", "c"}, "both were running at one time"
    together = Path("dvc.lock").read_bytes()
    assert read_plan(Path("dvc.yaml")).todo == []
    Path("dvc.lock").unlink()
    (Path("meet") / "b").rename("b")
    (Path("meet") / "c").rename("c")
    Path("meet").rmdir()
    done = subprocess.run([*DVC, "repro", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("dvc.lock").read_bytes() == together


def test_a_model_waits_for_its_base_which_may_teach_it(repository: Path) -> None:
    plan = read_plan(Path("dvc.yaml"))
    assert "train@c" in plan.needs["train@a"] and "train@c" not in plan.needs["train@b"]


def test_only_what_changed_and_what_is_built_on_it_is_run(repository: Path) -> None:
    repro(3)
    Path("models/b").unlink()
    assert read_plan(Path("dvc.yaml")).todo == ["train@b", "report"]
    repro(2)
    assert Path("models/b").read_text() == "one b"


def test_a_failure_ends_it_and_keeps_what_is_done(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken").touch()
    with pytest.raises(StudyError, match="train@b: failed"):
        repro(2)
    assert "what went wrong" in capfd.readouterr().out
    assert not Path("out/report").exists() and "train@b" not in locked(Path("dvc.yaml"))
    Path("broken").unlink()
    assert {"train@b", "report"} <= set(repro(2).todo) < set(read_plan(Path("dvc.yaml")).order)
    assert read_plan(Path("dvc.yaml")).todo == []


def test_nothing_begins_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def fail(stage: str) -> int:
        begun.append(stage)
        time.sleep(0.01)
        return 1

    monkeypatch.setattr(jobs, "_repro", fail)
    stages = [f"train@{name}" for name in "abcdef"]
    for _ in range(5):
        begun.clear()
        with pytest.raises(StudyError, match="train@a: failed"):
            run(Plan(stages, {stage: set() for stage in stages}, stages), 1)
        assert begun == ["train@a"]
