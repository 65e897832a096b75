"""Independent stages side by side: each is a `dvc repro` of its own, and DVC's own locks keep them apart.

DVC lets go of its repository's lock while a stage's command runs, and refuses to run two stages of which one writes
what the other reads or writes. Of stages that don't depend on each other none does, so that just waiting for the
repository's lock is needed, while another one writes dvc.lock.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise, takewhile
from pathlib import Path
from subprocess import PIPE, STDOUT

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.utils.serialize import modify_yaml

from pipeline.common.errors import StudyError
from pipeline.params.needs import gpu_count
from pipeline.params.places import read_yaml

DVC = (sys.executable, "-m", "dvc")
RUNS = "Running stage '"  # what DVC prints before the line of a stage's command, and what it prints when that has ended
ENDS = ("Generating lock file '", "Updating lock file '", "To track the changes with git", "Use `dvc push` to")


@dataclass(frozen=True)
class Plan:
    """The stages of a study in the order of a plain `dvc repro`, what each of them waits for, and which are to run."""

    order: list[str]
    needs: dict[str, set[str]]
    todo: list[str]


def read_plan(graph: Path) -> Plan:
    """What is to run of a study's dvc.yaml. Raises StudyError where DVC can't read it."""
    try:
        with Repo(_wait_for_lock=True) as repo:
            stages = plan_repro(repo.index.graph, repo.stage.collect(str(graph)))
            changed = repo.status([str(graph)])
            needs = {s.addressing: {each.addressing for each in repo.index.graph.successors(s)} for s in stages}
    except DvcException as error:
        raise StudyError(str(error)) from None
    # A second flow's teacher is its base, which both would train if they began together.
    prefix = next(iter(needs)).rpartition(":")[0]
    rows = read_yaml(graph.with_name("params.yaml"))["models"]
    for name, row in rows.items():
        stage, base = (f"{prefix}:train@{each}".lstrip(":") for each in (name, (row or {}).get("base")))
        needs[stage] |= {base} & needs.keys() - {stage}
    todo: list[str] = []
    for stage in TopologicalSorter(needs).static_order():
        if stage in changed or needs[stage] & set(todo):
            todo.append(stage)
    return Plan(list(needs), needs, todo)


@dataclass(frozen=True)
class Device:
    """What a stage may use: one GPU, as CUDA_VISIBLE_DEVICES calls it, or some of the CPU's cores."""

    gpu: str = ""
    cores: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.gpu:
            return f"GPU {self.gpu}"
        return "1 core" if len(self.cores) == 1 else f"{len(self.cores)} cores" if self.cores else "CPU"

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}


def gpus() -> list[str]:
    """The machine's GPUs as CUDA_VISIBLE_DEVICES calls them: its entries where it is set, numbers or names; [] where
    PyTorch finds none, or where NFE_DEVICE names another device. Of several MIG instances it finds one alone, so that
    they have to be named there."""
    found = gpu_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(found)) if named is None else map(str.strip, named.split(","))
    return [name for name in names if name] if found else []


def devices(jobs: int) -> list[Device]:
    """What `jobs` stages at a time are spread over: the GPUs, or without any equal shares of the cores, one at least.
    Where a process can't be kept to cores: the whole CPU."""
    if names := gpus():
        return [Device(gpu=name) for name in names]
    if not hasattr(os, "sched_setaffinity"):
        return [Device()]
    cores = sorted(os.sched_getaffinity(0))
    count = min(jobs, len(cores))
    bounds = [len(cores) * index // count for index in range(count + 1)]
    return [Device(cores=frozenset(cores[first:end])) for first, end in pairwise(bounds)]


def run(plan: Plan, jobs: int, devices: Sequence[Device] = (Device(),)) -> None:
    """Run what is to run, `jobs` stages at a time, each on the one of the `devices` that the fewest others use; one for
    whose end all others wait has all cores. After a failure nothing begins any more, what runs ends, and a StudyError
    names the stage."""
    pool = ThreadPoolExecutor(jobs)
    sorter = TopologicalSorter({stage: plan.needs[stage] & set(plan.todo) for stage in plan.todo})
    sorter.prepare()
    whole = Device(cores=frozenset[int]().union(*(device.cores for device in devices)))
    ready: deque[str] = deque()
    running: dict[Future[int], tuple[str, Device]] = {}
    begun = 0
    try:
        while sorter.is_active():
            ready += sorter.get_ready()
            while ready and len(running) < jobs:  # a worker that had more to do would begin it before a failure is seen
                device = min(devices, key=[used for _, used in running.values()].count)
                if device.cores and len(ready) + len(running) == 1:
                    device = whole
                stage, begun = ready.popleft(), begun + 1
                called = f"{begun}/{len(plan.todo)} {stage}"
                running[pool.submit(_repro, stage, called, device)] = stage, device
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, _ = running.pop(future)
                if code := future.result():
                    raise StudyError(f"{stage}: failed with exit code {code}, see above; run the same command again")
                sorter.done(stage)
    finally:
        pool.shutdown()


def _repro(stage: str, called: str, device: Device) -> int:
    """The exit code of one stage. What it prints is printed in one piece when it has ended. All that it reads may be as
    it was, though what makes that had to run: DVC then runs nothing."""
    if device.cores:
        os.sched_setaffinity(0, device.cores)  # of this thread, and of the processes that it starts
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage]
    lines: list[str] = []
    began = False
    with subprocess.Popen(
        command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", env=os.environ | device.environment
    ) as process:
        for line in process.stdout or ():
            if line.startswith(RUNS):
                began = True
                lines.clear()
                _tell(f"{called} begins ({device})\n")
            lines.append(line)
    if process.returncode == 0:
        own = takewhile(lambda line: not line.startswith(ENDS), lines[2:])
        lines = list(own) if began else [f"{called} is as it was\n"]
    _tell("".join(lines))
    return process.returncode


def _tell(text: str) -> None:
    """Print in one piece, for another stage may begin or end now."""
    print(text, end="", flush=True)


def sort_lock(lock: Path, before: Collection[str], order: list[str]) -> None:
    """Bring what is new in a dvc.lock, beside the stages `before`, into the order of a plain `dvc repro`."""
    with Repo(_wait_for_lock=True) as repo, repo.lock, modify_yaml(lock, fs=repo.fs) as content:
        stages = dict(content.get("stages", {}))
        known = [*before, *(stage.rpartition(":")[2] for stage in order)]
        content["stages"] = {name: stages[name] for name in dict.fromkeys([*known, *stages]) if name in stages}
