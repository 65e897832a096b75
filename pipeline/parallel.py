"""Independent pieces of work side by side, one thread each, so that results don't depend on the number of cores."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(tasks: Sequence[Callable[[], Result]], workers: int | None = None) -> list[Result]:
    """Run the tasks on `workers` threads (default: one a core) and return their results in order.

    PyTorch lets go of the interpreter while it computes, and each task computes on one thread. The first error stops
    what has not begun and is raised.
    """
    count = min(workers or cores(), len(tasks)) or 1
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    futures = [pool.submit(task) for task in tasks]
    try:
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
