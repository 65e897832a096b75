"""`repro`: validate a study, then run what has changed, one stage at a time or several independent ones side by side.

Each of several stages runs in a process of its own (`single.py`). DVC releases its repository's lock while a stage's
command runs, and refuses to run two stages if one writes what the other reads or writes. Independent stages never do
that, so they only wait for the lock while another stage writes dvc.lock.
"""

import logging
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from pipeline.commands.restore import dvc_errors, restore
from pipeline.commands.single import run_single
from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_text
from pipeline.params.needs import gpu_count
from pipeline.params.places import check_place, read_yaml
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study, unmet

MOST_DEFAULT_JOBS = 4  # each needs about 1 GiB
RESOLVE = "resolve"  # the stage that always runs, because it takes seconds and notices every change


def jobs_of(text: str) -> int:
    """The number of stages at a time; the default if `text` is empty. Raises StudyError unless it is whole and >= 1."""
    if not text:
        return default_jobs()
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise StudyError(f"--jobs {text!r}: the number of stages at a time must be a whole number, 1 or more")
    return int(text)


def run_study(params: Path, jobs: int) -> None:
    """Validate a study file, then run its stages that have changed, `jobs` at a time.

    Raises StudyError, one line, if the study is invalid, this machine lacks what it needs, or a stage fails.
    """
    study = read_study(params)
    resolve(study)
    if lack := unmet(study):
        raise StudyError(lack)
    graph = check_place(params, study)
    # A stage's command is `python -m stages.x`: it needs this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    ran = run_graph(graph, jobs)
    if not set(ran) - {_address(graph, RESOLVE)}:
        print(f"{params} is up to date; its report: {Paths(study.study.name).reports / 'report.html'}")


def run_graph(graph: Path, jobs: int) -> list[str]:
    """Run the changed stages of a dvc.yaml, `jobs` at a time; their addresses. It also sorts dvc.lock, in any case.

    Missing outputs that DVC's cache has are restored first. Raises StudyError if a stage fails.
    """
    try:
        with dvc_errors(), Repo(_wait_for_lock=True) as repo:
            restore(repo, graph)
        ran = run_side_by_side(graph, jobs, devices(jobs)) if jobs > 1 else []
        if jobs == 1 or ran:
            ran += reproduce(str(graph))
        return ran
    finally:
        sort_lock(graph)


def reproduce(target: str, quiet: bool = False, **options: bool) -> list[str]:
    """What `dvc repro` does with a dvc.yaml or a stage; the addresses of the stages that ran.

    quiet: print only what the stages print. Raises StudyError.
    """
    logging.getLogger("dvc").setLevel(logging.WARNING if quiet else logging.INFO)
    with dvc_errors(), Repo() as repo:
        return [stage.addressing for stage in repo.reproduce([target], **options)]


def _address(graph: Path, stage: str) -> str:
    """A stage's address in DVC, such as studies/points/dvc.yaml:resolve, or resolve in the root's dvc.yaml."""
    return stage if graph == Path("dvc.yaml") else f"{graph}:{stage}"


def locked_stages(graph: Path) -> list[str]:
    """The stages in dvc.lock, in its order."""
    content = read_yaml(graph.with_suffix(".lock"))
    return list(content.get("stages") or {}) if isinstance(content, dict) else []


def run_side_by_side(graph: Path, jobs: int, devices: Sequence["Device"]) -> list[str]:
    """Resolve a study, then run the changed stages of its dvc.yaml, `jobs` at a time, on these devices; their
    addresses. Raises StudyError if one fails."""
    reproduce(_address(graph, RESOLVE), quiet=True, single_item=True)
    plan = read_plan(graph)
    run(plan, jobs, devices)
    return plan.todo


@dataclass(frozen=True)
class Plan:
    """The stages of a study in the order of `dvc repro`, the stages that each one waits for, and those to run."""

    order: list[str]
    needs: dict[str, set[str]]
    todo: list[str]


def read_plan(graph: Path) -> Plan:
    """The plan for a dvc.yaml whose rows are resolved. Raises StudyError if DVC cannot read it."""
    with dvc_errors(), Repo(_wait_for_lock=True) as repo:
        stages = plan_repro(repo.index.graph, repo.stage.collect(str(graph)))
        changed = repo.status([str(graph)])
        needs = {s.addressing: {each.addressing for each in repo.index.graph.successors(s)} for s in stages}
    # The teacher of a reflow model is its base. If both began together, both would train the teacher.
    for name, row in read_yaml(graph.with_name("params.yaml"))["models"].items():
        stage, base = (_address(graph, f"train@{each}") for each in (name, (row or {}).get("base")))
        needs[stage] |= {base} & needs.keys() - {stage}
    resolved = _address(graph, RESOLVE)  # it has just run, and DVC always calls it changed
    todo: list[str] = []
    for stage in TopologicalSorter(needs).static_order():
        if stage != resolved and (stage in changed or needs[stage] & set(todo)):
            todo.append(stage)
    return Plan(list(needs), needs, todo)


@dataclass(frozen=True)
class Device:
    """The device of a stage: one GPU, by its name in CUDA_VISIBLE_DEVICES, or some of the CPU's cores."""

    gpu: str = ""
    cores: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.gpu:
            return f"GPU {self.gpu}"
        return "1 core" if len(self.cores) == 1 else f"{len(self.cores)} cores" if self.cores else "CPU"

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}


Start = Callable[[str, str, Device], int]


def default_jobs() -> int:
    """One stage for each core, at most four: while one starts, which takes seconds on one core, another computes.

    One stage at a time if there are GPUs, which others may use, or if the system cannot bind a process to cores.
    """
    if gpus() or not hasattr(os, "sched_getaffinity"):
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_DEFAULT_JOBS)


def gpus() -> list[str]:
    """The machine's GPUs by their names in CUDA_VISIBLE_DEVICES: its entries if it is set, else numbers.

    The list is empty if PyTorch finds no GPU or NFE_DEVICE names another device. PyTorch finds only one of several MIG
    instances, so CUDA_VISIBLE_DEVICES must name them.
    """
    found = gpu_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(found)) if named is None else map(str.strip, named.split(","))
    return [name for name in names if name] if found else []


def devices(jobs: int) -> list[Device]:
    """The devices that `jobs` stages share: the GPUs, or without GPUs equal shares of the cores, at least one each.

    If the system cannot bind a process to cores: the whole CPU.
    """
    if names := gpus():
        return [Device(gpu=name) for name in names]
    if not hasattr(os, "sched_setaffinity"):
        return [Device()]
    cores = sorted(os.sched_getaffinity(0))
    count = min(jobs, len(cores))
    bounds = [len(cores) * index // count for index in range(count + 1)]
    return [Device(cores=frozenset(cores[first:end])) for first, end in pairwise(bounds)]


def run(plan: Plan, jobs: int, devices: Sequence[Device] = (Device(),), start: Start | None = None) -> None:
    """Run the stages to run, `jobs` at a time, each on the device that the fewest running stages use.

    start: runs one stage, by its name, its label and its device, and returns its exit code; None: DVC runs it.

    A stage that runs alone and is the only one ready uses all cores. After a failure no stage begins, running stages
    end, and a StudyError names the failed one.
    """
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
            while ready and len(running) < jobs:  # a queued stage would begin before a failure is noticed
                device = min(devices, key=[used for _, used in running.values()].count)
                if device.cores and len(ready) + len(running) == 1:
                    device = whole
                stage, begun = ready.popleft(), begun + 1
                label = f"{begun}/{len(plan.todo)} {stage}"
                running[pool.submit(start or _run_stage, stage, label, device)] = stage, device
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, _ = running.pop(future)
                if code := future.result():
                    raise StudyError(f"{stage}: failed with exit code {code}, see above; run the same command again")
                sorter.done(stage)
    finally:
        pool.shutdown()


def _run_stage(stage: str, label: str, device: Device) -> int:
    """The exit code of one stage, run in a process of its own."""
    arguments = (stage, label, str(device), device.environment, device.cores)
    process = multiprocessing.get_context("spawn").Process(target=run_single, args=arguments)
    process.start()
    process.join()
    return process.exitcode or 0


def sort_lock(graph: Path) -> None:
    """Sort the stages of a dvc.lock by name. DVC writes independent stages in an order that changes from run to run."""
    stages, lock = locked_stages(graph), graph.with_suffix(".lock")
    if stages == sorted(stages):
        return
    with dvc_errors(), Repo(_wait_for_lock=True) as repo, repo.lock:
        content = parse_yaml_for_update(lock.read_text(encoding="utf-8"), lock)
        content["stages"] = dict(sorted(content["stages"].items()))
        write_text(lock, dumps_yaml(content))
