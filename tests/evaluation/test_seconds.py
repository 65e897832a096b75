"""Seconds per image: points are timed in turns, and the least time counts."""

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.common.files import SHORT_HASH
from pipeline.diffusion.weights import failure_file, save_failure
from pipeline.evaluation import seconds as timing
from pipeline.evaluation.fits import Fits
from pipeline.evaluation.seconds import COLUMNS, IMAGES, REPETITIONS, Timed, Timing, seconds_of, timed_points
from tests.evaluation.small import curve


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


def test_the_first_training_that_did_not_fail_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def load(curve: Any, model: Path, seed: int, student: int | None, device: torch.device) -> Any:
        asked.append(seed)
        return SimpleNamespace(device=device, at=lambda steps: None)

    monkeypatch.setattr(timing, "load_model", load)
    monkeypatch.setattr(timing, "_batch", lambda *of: [(torch.zeros(4, 2), 3)])
    monkeypatch.setattr(timing, "content_key", lambda model, seed, weights: f"weights of {seed}")
    for seed in (0, 1):
        found = list(timed_points("x", curve(), tmp_path, Fits()))
        assert [point.timing.checkpoint for point in found] == [f"weights of {seed}"[:SHORT_HASH]] * 2
        save_failure("no number", failure_file(tmp_path, seed))
    assert list(timed_points("x", curve(), tmp_path, Fits())) == [] and asked == [0, 1]
