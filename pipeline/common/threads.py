"""Independent pieces of work side by side, one thread each, so that results don't depend on the number of cores."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

Result = TypeVar("Result")


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(tasks: Sequence[Callable[[], Result]], workers: int | None = None) -> list[Result]:
    """Run the tasks on `workers` threads (default: one a core) and return their results in order.

    PyTorch lets go of the interpreter while it computes, and each task computes on one thread. The first error stops
    what has not begun and is raised at once. No workers: one task after the other, on the calling thread.
    """
    if workers == 0:
        return [task() for task in tasks]
    count = min(workers or cores(), len(tasks)) or 1
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    futures = [pool.submit(task) for task in tasks]
    try:
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_turns(tasks: Sequence[Generator[None, None, Result]], workers: int | None = None) -> list[Result]:
    """Run generators to their ends, the one that has waited longest first, and return what they return, in order.

    Equally long tasks then keep all workers busy, where whole tasks side by side would leave some idle at the end.
    """
    waiting = deque(enumerate(tasks))
    results: dict[int, Result] = {}

    def work() -> None:
        while waiting:
            try:
                index, task = waiting.popleft()
            except IndexError:  # another worker was faster; no more than one task a worker is left
                return
            try:
                next(task)
            except StopIteration as end:
                results[index] = end.value
            except BaseException:
                waiting.clear()
                raise
            else:
                waiting.append((index, task))

    count = min(cores() if workers is None else workers, len(tasks))
    side_by_side([work] * max(count, 1), count)
    return [results[index] for index in range(len(tasks))]
