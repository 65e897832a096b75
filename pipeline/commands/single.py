"""One stage in a process of its own, which prints the stage's output in one piece when the stage has ended."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo


@contextmanager
def collected_output() -> Iterator[None]:
    """Collect all that this process and its children print, and print it on stdout at the end."""
    outside = os.dup(1)
    with TemporaryFile() as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            file.seek(0)
            with open(outside, "wb") as terminal:
                terminal.write(file.read())


def run_single(stage: str, label: str, device: str, environment: dict[str, str], cores: frozenset[int]) -> None:
    """Run one stage of a DVC graph if it has changed, and exit with 1 if it fails.

    stage: its address in DVC. label: how the printed lines name it. device: how they name the device.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # its command gets one, too, and ends this process
    os.environ.update(environment)
    if cores:
        os.sched_setaffinity(0, cores)
    logging.getLogger("dvc").setLevel(logging.WARNING)  # below it DVC names each step that it takes
    with Repo(_wait_for_lock=True) as repo, lock_repo(repo):  # DVC lets go of the lock while the command runs
        changed = repo.stage.collect(stage)[0].changed()
        print(f"{label} begins ({device})" if changed else f"{label} is as it was", flush=True)
        if not changed:
            return
        with collected_output():
            try:
                repo.reproduce([stage], single_item=True)
            except DvcException as error:
                print(error.__cause__ or error, flush=True)
                sys.exit(1)
