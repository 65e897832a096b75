"""Run a study, several independent stages at a time: `make repro J=2`. No stage of the graph."""

import argparse
import subprocess

from pipeline.commands.repro import DVC, devices, read_plan, run, sort_lock
from pipeline.commands.stale import locked
from pipeline.common.errors import StudyError
from stages import Arguments, run_stage


def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jobs", default="")
    jobs = parser.parse_known_args()[0].jobs
    if not jobs.isascii() or not jobs.isdigit() or int(jobs) < 1:
        raise StudyError(f"--jobs {jobs!r}: stages at a time, a number from 1 on")
    graph, lock = (arguments.params.with_name(name) for name in ("dvc.yaml", "dvc.lock"))
    plan, before = read_plan(graph), list(locked(graph))
    try:
        run(plan, int(jobs), devices(int(jobs)))
    finally:
        if plan.todo and lock.exists():
            sort_lock(lock, before, plan.order)
    if code := subprocess.run([*DVC, "repro", str(graph)]).returncode:
        raise StudyError(f"dvc repro {graph}: failed with exit code {code}")


if __name__ == "__main__":
    run_stage(main, __doc__)
