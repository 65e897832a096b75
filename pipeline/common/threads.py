"""Independent tasks side by side, one thread each, so that results do not depend on the number of cores."""

import os
import threading
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
    """Run the tasks on `workers` threads (default: one per core) and return their results in order.

    PyTorch releases the interpreter while it computes, and each task computes on one thread. The first error is raised
    at once, and tasks that have not begun are dropped. With 0 workers, the calling thread runs one task after another.
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
    """Run generators to their ends on `workers` threads and return what they return, in order.

    A free worker takes the generator that has waited longest and runs it to its next `yield`. So tasks of equal length
    keep all workers busy to the end. After an error or an interrupt, each worker stops at the next `yield`.
    """
    waiting = deque(enumerate(tasks))
    results: dict[int, Result] = {}
    stopped = threading.Event()

    def work() -> None:
        while waiting and not stopped.is_set():
            try:
                index, task = waiting.popleft()
            except IndexError:  # another worker was faster
                return
            try:
                next(task)
            except StopIteration as end:
                results[index] = end.value
            except BaseException:
                stopped.set()
                raise
            else:
                waiting.append((index, task))

    count = min(cores() if workers is None else workers, len(tasks))
    try:
        side_by_side([work] * max(count, 1), count)
    except BaseException:
        stopped.set()
        raise
    return [results[index] for index in range(len(tasks))]
