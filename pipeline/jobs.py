"""Independent stages side by side: each is a `dvc repro` of its own, and DVC's own locks keep them apart.

DVC lets go of its repository's lock while a stage's command runs, and refuses to run two stages of which one writes
what the other reads or writes. Of stages that don't depend on each other none does, so that just waiting for the
repository's lock is needed, while another one writes dvc.lock.
"""

import subprocess
import sys
from collections import deque
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.utils.serialize import modify_yaml

from pipeline.errors import StudyError
from pipeline.studies import read_yaml

DVC = (sys.executable, "-m", "dvc")


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


def run(plan: Plan, jobs: int) -> None:
    """Run what is to run, `jobs` stages at a time. After a failure nothing begins any more, what runs ends, and a
    StudyError names the stage."""
    pool = ThreadPoolExecutor(jobs)
    sorter = TopologicalSorter({stage: plan.needs[stage] & set(plan.todo) for stage in plan.todo})
    sorter.prepare()
    ready: deque[str] = deque()
    running: dict[Future[int], str] = {}
    try:
        while sorter.is_active():
            ready += sorter.get_ready()
            while ready and len(running) < jobs:  # a worker that had more to do would begin it before a failure is seen
                stage = ready.popleft()
                running[pool.submit(_repro, stage)] = stage
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                if code := future.result():
                    raise StudyError(f"{stage}: failed with exit code {code}, see above; run the same command again")
                sorter.done(stage)
    finally:
        pool.shutdown()


def _repro(stage: str) -> int:
    """The exit code of one stage, whose output is printed in one piece when it has ended."""
    print(f"{stage}: begins\n", end="", flush=True)  # in one piece, for another one may begin now
    command = [*DVC, "--wait-for-lock", "repro", "--quiet", "--single-item", stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout, end="", flush=True)
    return done.returncode


def sort_lock(lock: Path, before: Collection[str], order: list[str]) -> None:
    """Bring what is new in a dvc.lock, beside the stages `before`, into the order of a plain `dvc repro`."""
    with Repo(_wait_for_lock=True) as repo, repo.lock, modify_yaml(lock, fs=repo.fs) as content:
        stages = dict(content.get("stages", {}))
        known = [*before, *(stage.rpartition(":")[2] for stage in order)]
        content["stages"] = {name: stages[name] for name in dict.fromkeys([*known, *stages]) if name in stages}
