"""Work side by side and in turns: results in order, the first error raised, nobody left out."""

import _thread
import signal
import threading
import time
from collections.abc import Callable, Generator

import pytest
import torch

from pipeline.common.threads import in_turns, side_by_side


def counting(name: str, stretches: int, log: list[str], seconds: float = 0) -> Generator[None, None, str]:
    for _ in range(stretches):
        time.sleep(seconds)
        log.append(name)
        yield
    return name


def test_turns_are_taken_fairly() -> None:
    log: list[str] = []
    assert in_turns([counting(name, 3, log) for name in "abc"], 1) == ["a", "b", "c"]
    assert log == list("abcabcabc")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("lengths", [[0], [5], [1, 7, 2], [3, 3, 3, 3, 0]])
def test_every_task_ends_however_many_workers(workers: int, lengths: list[int]) -> None:
    log: list[str] = []
    names = [f"task{i}" for i in range(len(lengths))]
    tasks = [counting(n, k, log, 0.001) for n, k in zip(names, lengths, strict=True)]
    assert in_turns(tasks, workers) == names
    assert [log.count(name) for name in names] == lengths


def test_an_error_in_a_turn_is_raised() -> None:
    def failing() -> Generator[None, None, str]:
        yield
        raise ValueError("in the second turn")

    with pytest.raises(ValueError, match="second turn"):
        in_turns([counting("a", 2, []), failing()], 2)


def test_an_error_is_raised_before_longer_tasks_end() -> None:
    ended = threading.Event()

    def fails() -> None:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        side_by_side([lambda: ended.wait(timeout=30), fails], 2)
    assert not ended.is_set()
    ended.set()


def test_an_error_in_a_turn_ends_all_turns() -> None:
    log: list[str] = []

    def failing() -> Generator[None, None, str]:
        yield
        raise ValueError("in the second turn")

    with pytest.raises(ValueError, match="second turn"):
        in_turns([failing(), counting("a", 1000, log)], 1)
    assert len(log) <= 2


def test_an_interrupt_ends_all_turns() -> None:
    """The interpreter waits for its threads when it exits, so they must not run on."""
    log: list[str] = []

    def interrupting() -> Generator[None, None, str]:
        yield
        _thread.interrupt_main()
        while True:
            log.append("turn")
            time.sleep(0.01)
            yield

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            in_turns([interrupting()], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.05)
    turns = len(log)
    time.sleep(0.1)
    assert len(log) == turns


def test_side_by_side_keeps_the_order_and_computes_on_one_thread_each() -> None:
    together = threading.Barrier(2)

    def task(i: int) -> tuple[int, int]:
        together.wait(timeout=30)  # passes only where two tasks run at the same time
        return i, torch.get_num_threads()

    assert side_by_side([lambda i=i: task(i) for i in range(4)], 2) == [(i, 1) for i in range(4)]


@pytest.mark.parametrize("run", [side_by_side, in_turns])
def test_without_workers_the_calling_thread_works_and_keeps_its_own_threads(run: Callable[..., list[int]]) -> None:
    """CUDA's graphs belong to the thread that records them."""
    before = torch.get_num_threads()

    def turn() -> Generator[None, None, int]:
        yield
        return threading.get_ident()

    tasks = [turn(), turn()] if run is in_turns else [threading.get_ident] * 2
    assert run(tasks, 0) == [threading.get_ident()] * 2
    assert torch.get_num_threads() == before
