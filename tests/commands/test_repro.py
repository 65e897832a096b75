"""Several stages at a time: DVC's locks carry it, the lock file's bytes are those of one at a time, errors end it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from dvc.repo import Repo

from pipeline.commands import repro as jobs
from pipeline.commands.repro import (
    Device,
    Plan,
    devices,
    jobs_of,
    locked_stages,
    read_plan,
    run,
    run_graph,
    run_side_by_side,
)
from pipeline.common.errors import StudyError
from tests.imports import ROOT

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
if pathlib.Path("slow").exists() and out.name in ("b", "c"):
    pathlib.Path("slow", out.name).touch()
    time.sleep(600)
out.write_text(pathlib.Path("source").read_text() + out.name)
"""
STAGES = {
    "resolve": {
        "cmd": "python write_out.py out/rows",
        "always_changed": True,
        "deps": ["source"],
        "outs": ["out/rows"],
    },
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


def repro(jobs: int, found: Sequence[Device] = (Device(),)) -> list[str]:
    return run_side_by_side(Path("dvc.yaml"), jobs, found)


@pytest.mark.dvc
def test_independent_stages_run_side_by_side_and_leave_the_same_lock(repository: Path) -> None:
    Path("meet").mkdir()
    assert set(repro(2)) == {"train@a", "train@b", "train@c", "report"}
    assert {path.name for path in Path("meet").iterdir()} == {"b", "c"}, "both were running at one time"
    run_graph(Path("dvc.yaml"), 1)
    together = Path("dvc.lock").read_bytes()
    assert locked_stages(Path("dvc.yaml")) == ["report", "resolve", "train@a", "train@b", "train@c"]
    assert read_plan(Path("dvc.yaml")).todo == []
    Path("dvc.lock").unlink()
    (Path("meet") / "b").rename("b")
    (Path("meet") / "c").rename("c")
    Path("meet").rmdir()
    assert set(run_graph(Path("dvc.yaml"), 1)) >= {"resolve", "train@a", "train@b", "train@c"}
    assert Path("dvc.lock").read_bytes() == together
    assert run_graph(Path("dvc.yaml"), 1) == ["resolve"]


@pytest.mark.dvc
def test_a_model_waits_for_its_base_which_may_teach_it(repository: Path) -> None:
    plan = read_plan(Path("dvc.yaml"))
    assert "train@c" in plan.needs["train@a"] and "train@c" not in plan.needs["train@b"]


@pytest.mark.dvc
def test_only_what_changed_and_what_is_built_on_it_is_run(repository: Path) -> None:
    repro(3)
    Path("models/b").unlink()
    assert read_plan(Path("dvc.yaml")).todo == ["train@b", "report"]
    repro(2)
    assert Path("models/b").read_text() == "one b"


@pytest.mark.dvc
def test_a_failure_ends_it_and_keeps_what_is_done(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("broken").touch()
    with pytest.raises(StudyError, match="train@b: failed"):
        run_graph(Path("dvc.yaml"), 2)
    locked = locked_stages(Path("dvc.yaml"))
    assert locked == sorted(locked) and "train@c" in locked
    assert "what went wrong" in capfd.readouterr().out
    assert not Path("out/report").exists() and "train@b" not in locked_stages(Path("dvc.yaml"))
    Path("broken").unlink()
    assert {"train@b", "report"} <= set(repro(2)) < set(read_plan(Path("dvc.yaml")).order)
    assert read_plan(Path("dvc.yaml")).todo == []


RUN = """
import signal, sys
from pathlib import Path
from pipeline.commands.cli import terminate
from pipeline.commands.repro import run_graph
signal.signal(signal.SIGTERM, terminate)
run_graph(Path("dvc.yaml"), int(sys.argv[1]))
"""


@pytest.mark.dvc
@pytest.mark.parametrize("jobs", [1, 2])
def test_sigterm_ends_every_process(repository: Path, jobs: int) -> None:
    Path("slow").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", RUN, str(jobs)], env=environment, stderr=subprocess.PIPE) as process:
        while len(list(Path("slow").iterdir())) < jobs:
            assert process.poll() is None
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= jobs
        process.terminate()
        assert process.wait(60) != 0
        assert not psutil.wait_procs(started, timeout=20)[1]
    Path("slow/b").unlink(missing_ok=True)
    Path("slow").rename("fast")
    run_graph(Path("dvc.yaml"), 1)
    assert Path("out/report").exists()


@pytest.mark.dvc
@pytest.mark.parametrize("left", ["", '{"write": {"', "[]"])
def test_a_list_of_running_commands_that_a_full_disk_cut_off_is_named(repository: Path, left: str) -> None:
    Path(".dvc/tmp").mkdir(exist_ok=True)
    Path(".dvc/tmp/rwlock").write_text(left)
    for count in (1, 2):
        with pytest.raises(StudyError, match=r"^\.dvc/tmp/rwlock: broken.* delete it, and run the same command again$"):
            run_graph(Path("dvc.yaml"), count)
    Path(".dvc/tmp/rwlock").unlink()
    assert run_graph(Path("dvc.yaml"), 1)


def test_nothing_begins_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def fail(stage: str, called: str, device: Device) -> int:
        begun.append(stage)
        time.sleep(0.01)
        return 1

    monkeypatch.setattr(jobs, "_run_stage", fail)
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


@pytest.mark.dvc
def test_each_of_two_stages_sees_a_gpu_of_its_own(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    Path("meet").mkdir()
    Path("saw").mkdir()
    repro(2, devices(2))
    saw = {path.name: path.read_text().split()[0] for path in Path("saw").iterdir()}
    assert saw.pop("rows") == "0,1", "resolve is nobody's neighbour"
    assert {saw["b"], saw["c"]} == {"0", "1"} and set(saw.values()) <= {"0", "1"} and len(saw) == 4
    begun = re.findall(r"^(\d)/4 (\S+) begins \(GPU (\d)\)$", capfd.readouterr().out, re.M)
    assert sorted(number for number, _, _ in begun) == list("1234")
    assert {stage.partition("@")[2] or stage: gpu for _, stage, gpu in begun} == saw


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes can't be kept to cores here")
@pytest.mark.dvc
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

    monkeypatch.setattr(jobs, "_run_stage", note)
    stages = [f"train@{name}" for name in "abcdefghi"]
    run(Plan(stages, {stage: set() for stage in stages}, stages), 3, [Device("0"), Device("1")])
    assert {gpu for gpu, _ in beside} == {"0", "1"} and len(beside) == 9
    assert all(running.count(gpu) <= 2 for _, running in beside for gpu in "01")
    beside.clear()
    run(Plan(stages, {stage: set() for stage in stages}, stages), 2, [Device("0"), Device("1")])
    assert all(len(set(running)) == len(running) for _, running in beside), "no two on one while another is free"


@pytest.mark.dvc
def test_an_unchanged_stage_is_named_as_such(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repro(2)
    first = [line for line in capfd.readouterr().out.splitlines() if re.match(r"\d/4 ", line)]
    assert len(first) == 4 and all(line.endswith(" begins (CPU)") for line in first)
    Path("models/b").write_text("changed by hand")  # which DVC undoes, so that the report has nothing to do
    assert repro(2) == ["train@b", "report"]
    lines = [line for line in capfd.readouterr().out.splitlines() if re.match(r"\d/2 ", line)]
    assert lines == ["1/2 train@b begins (CPU)", "2/2 report is as it was"]


@pytest.mark.dvc
def test_the_output_of_a_stage_comes_in_one_piece_without_dvcs_own_lines(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken").touch()
    Path("meet").mkdir()
    with pytest.raises(StudyError, match="train@b: failed"):
        repro(2)
    out = capfd.readouterr().out
    assert re.search(r"^what went wrong\nfailed to run: python write_out.py models/b, exited with 1\n", out, re.M)
    assert "lock file" not in out.partition("/4 ")[2] and "git add" not in out


@pytest.mark.parametrize("number", [" ", "0", "-1", "two", "2.0", " 2", "\u0662"])
def test_a_number_of_stages_must_be_a_whole_number(number: str) -> None:
    with pytest.raises(StudyError, match=re.escape(f"--jobs {number!r}: the number of stages at a time must be")):
        jobs_of(number)


@pytest.mark.parametrize(("gpus", "cores", "expected"), [(0, 1, 1), (0, 2, 2), (0, 64, 4), (1, 16, 1), (8, 64, 1)])
def test_by_default_each_core_has_a_stage_and_gpus_have_one_stage(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, expected: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert jobs_of("") == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    assert jobs_of("") == 1


def test_a_folder_that_dvc_does_not_know_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(StudyError, match="not inside of a DVC repository"):
        run_graph(Path("dvc.yaml"), 1)
