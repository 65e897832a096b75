"""Several stages at a time: DVC's locks carry it, the lock file's bytes are those of one at a time, errors end it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from dvc.repo import Repo

from pipeline.commands import repro as jobs
from pipeline.commands.repro import DVC, Device, Plan, devices, read_plan, run, sort_lock
from pipeline.commands.stale import locked
from pipeline.common.errors import StudyError
from stages import parse_arguments
from stages.repro import main

# Each stage adds its name to the source, and notes below `saw` what it may use. With `meet` two trainings wait until
# both of them have begun.
COMMAND = """
import os, pathlib, sys, time
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
if pathlib.Path("saw").exists():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    pathlib.Path("saw", out.name).write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {cores}")
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


def repro(at_once: int, found: Sequence[Device] = (Device(),)) -> Plan:
    plan, before = read_plan(Path("dvc.yaml")), list(locked(Path("dvc.yaml")))
    try:
        run(plan, at_once, found)
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

    def fail(stage: str, called: str, device: Device) -> int:
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


@pytest.mark.parametrize(
    ("found", "visible", "expected"),
    [
        (3, None, ["0", "1", "2"]),
        (2, "2, 5", ["2", "5"]),
        (2, "GPU-4f1c,GPU-9a30", ["GPU-4f1c", "GPU-9a30"]),
        (1, "MIG-1,MIG-2", ["MIG-1", "MIG-2"]),  # of which CUDA finds one alone, whichever is first
        (0, "0,1", []),
        (0, "", []),
        (0, "-1", []),
        (0, None, []),
    ],
)
def test_gpus_are_those_that_are_visible_by_the_names_they_have(
    monkeypatch: pytest.MonkeyPatch, found: int, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.gpu for device in devices(8) if device.gpu] == expected


@pytest.mark.parametrize(("jobs", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (5, [1] * 5), (8, [1] * 5)])
def test_without_gpus_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, jobs: int, sizes: list[int]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3, 6, 7}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: None, raising=False)
    shares = [device.cores for device in devices(jobs)]
    assert [len(share) for share in shares] == sizes
    assert sorted(core for share in shares for core in share) == [1, 2, 3, 6, 7]


def test_gpus_are_left_alone_where_another_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("NFE_DEVICE", "cpu")
    assert not [device for device in devices(2) if device.gpu]
    monkeypatch.setenv("NFE_DEVICE", "")  # names none
    assert [device.gpu for device in devices(2)] == ["0", "1"]


def test_each_of_two_stages_sees_a_gpu_of_its_own(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    Path("meet").mkdir()
    Path("saw").mkdir()
    repro(2, devices(2))
    saw = {path.name: path.read_text().split()[0] for path in Path("saw").iterdir()}
    assert {saw["b"], saw["c"]} == {"0", "1"} and set(saw.values()) <= {"0", "1"} and len(saw) == 5
    begun = re.findall(r"^(\d)/5 (\S+) begins \(GPU (\d)\)$", capfd.readouterr().out, re.M)
    assert sorted(number for number, _, _ in begun) == list("12345")
    assert {stage.partition("@")[2] or {"resolve": "rows"}.get(stage, stage): gpu for _, stage, gpu in begun} == saw


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes can't be kept to cores here")
def test_each_of_two_stages_sees_cores_of_its_own_and_one_that_is_alone_all(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    Path("meet").mkdir()
    Path("saw").mkdir()
    mine, shares = os.sched_getaffinity(0), [len(device.cores) for device in devices(2)]
    repro(2, devices(2))
    saw = {path.name: int(path.read_text().split()[1]) for path in Path("saw").iterdir()}
    assert sorted([saw["b"], saw["c"]]) == (shares if len(shares) == 2 else shares * 2)
    assert saw["rows"] == saw["report"] == len(mine) == len(os.sched_getaffinity(0))


def test_more_stages_than_gpus_share_them_evenly_and_what_ends_leaves_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now: list[str] = []
    beside: list[tuple[str, list[str]]] = []

    def note(stage: str, called: str, device: Device) -> int:
        now.append(device.gpu)
        time.sleep(0.02)
        beside.append((device.gpu, list(now)))
        now.remove(device.gpu)
        return 0

    monkeypatch.setattr(jobs, "_repro", note)
    stages = [f"train@{name}" for name in "abcdefghi"]
    run(Plan(stages, {stage: set() for stage in stages}, stages), 3, [Device("0"), Device("1")])
    assert {gpu for gpu, _ in beside} == {"0", "1"} and len(beside) == 9
    assert all(running.count(gpu) <= 2 for _, running in beside for gpu in "01")
    beside.clear()
    run(Plan(stages, {stage: set() for stage in stages}, stages), 2, [Device("0"), Device("1")])
    assert all(len(set(running)) == len(running) for _, running in beside), "no two on one while another is free"


def test_what_did_not_change_is_said_to_be_as_it_was(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repro(2)
    first = capfd.readouterr().out.splitlines()
    assert len(first) == 5 and all(line.endswith(" begins (CPU)") for line in first), "and nothing that DVC says beside"
    text = Path("write_out.py").read_text() + "# a comment"
    Path("write_out.py").write_text(text)
    graph = yaml.safe_load(Path("dvc.yaml").read_text())
    graph["stages"]["resolve"]["deps"].append("write_out.py")
    Path("dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    repro(2)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines[0] == "1/5 resolve begins (CPU)" and len(lines) == 5
    assert {line.split()[1] for line in lines[1:]} == {"train@a", "train@b", "train@c", "report"}
    assert all(line.endswith(" is as it was") for line in lines[1:])


@pytest.mark.parametrize("number", ["", "0", "-1", "two", "2.0", " 2", "\u0662"])
def test_a_number_of_stages_that_is_none_is_one_line(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["repro", f"--jobs={number}"])
    with pytest.raises(StudyError, match=re.escape(f"--jobs {number!r}: stages at a time, a number from 1 on")):
        main(parse_arguments(None))
