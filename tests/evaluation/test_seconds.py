"""Seconds per image: points are timed in turns, and the least time counts."""

import math
import time

import pytest

from pipeline.evaluation import seconds as timing
from pipeline.evaluation.seconds import COLUMNS, IMAGES, REPETITIONS, Timed, Timing, seconds_of


def test_points_are_timed_in_turns_and_the_least_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    lengths = {"a": iter([3.0, 1.0, 2.0]), "b": iter([5.0, 6.0, 4.0])}

    def point(name: str) -> Timed:
        def run() -> None:
            order.append(name)
            clock[0] += next(lengths[name])

        return Timed(Timing(name, 1, 1, math.inf, IMAGES, REPETITIONS, "CPU", "c", "s"), run)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert REPETITIONS == 3 and timing.time is time
    rows = seconds_of([point("a"), point("b")])
    assert order == ["a", "b"] * 3
    assert [row.seconds_per_image for row in rows] == pytest.approx([1 / IMAGES, 4 / IMAGES])
    assert [row.curve for row in rows] == ["a", "b"] and list(rows[0].record()) == COLUMNS
    assert [row.record()["seconds_per_image"] for row in rows] == ["0.00391", "0.0156"]
