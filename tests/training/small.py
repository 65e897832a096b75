"""A small model row and its data, and functions that train it and interrupt the training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.threads import in_turns
from pipeline.training import loop
from pipeline.training.row import Model
from pipeline.training.trained import Trained


def train(*arguments: Any, **keys: Any) -> Trained:
    """Run loop.train to its end."""
    [trained] = in_turns([loop.train(*arguments, **keys)])
    return trained


SHAPE = (1, 4, 4)
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "batch": 8, "warmup_images": 16, "ema_halflife_images": 40}
ROW = Model(**SMALL, images=20 * 8)  # 20 steps, a checkpoint every second one
IMAGES = torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3
COUNTS = [10, 10, 10]
DATA = {"sigma_data": 0.5, "channels": 1, "height": 4, "width": 4, "class_counts": dict.fromkeys("abc", 10)}
SPEC = ROW.spec(0.5, SHAPE)


def same(a: Trained, b: Trained) -> bool:
    """Whether two results have equal curves and bitwise equal averages."""
    if a.curve != b.curve or a.averages.keys() != b.averages.keys():
        return False
    pairs = [(a.denoiser, b.denoiser), *zip(a.averages.values(), b.averages.values(), strict=True)]
    states = [(one.state_dict(), other.state_dict()) for one, other in pairs]
    return all(torch.equal(one[name], other[name]) for one, other in states for name in {**one, **other})


class Killed(Exception):
    """Interrupts a training."""


def deadly(step: int) -> Callable[[int], None]:
    """A progress callback that raises Killed after `step` steps."""
    done = 0

    def progress(images: int) -> None:
        nonlocal done
        done += images // ROW.batch
        if done >= step:
            raise Killed

    return progress


def killed(step: int, checkpoint: Path, seed: int = 0) -> None:
    """Train up to `step` steps and interrupt it."""
    with pytest.raises(Killed):
        train(ROW, SPEC, IMAGES, seed, checkpoint, deadly(step))
