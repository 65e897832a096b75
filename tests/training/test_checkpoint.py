"""Checkpoints: an interrupted training continues to the same bytes, and files of another training are refused."""

import math
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common.errors import StudyError
from pipeline.common.tensors import read_sealed
from pipeline.diffusion.denoiser import new_denoiser
from pipeline.training import loop
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.checkpoint import beside
from pipeline.training.draws import Adaptive
from pipeline.training.optimizer import learning_rate
from pipeline.training.row import Model
from pipeline.training.trained import Trained
from tests.imports import ROOT
from tests.preloaded import programs
from tests.training.killing import LONG
from tests.training.small import COUNTS, IMAGES, LABELS, ROW, SHAPE, SMALL, SPEC, Killed, deadly, killed, same, train


@pytest.fixture(scope="module")
def plain() -> Trained:
    """A training of 25 steps without further state."""
    row = Model(**SMALL, images=25 * 8)
    return train(row, row.spec(0.5, SHAPE), IMAGES, 0)


@pytest.mark.parametrize(
    "choices",
    [
        {"weighting": "uncertainty"},
        {"learned_variance": "hybrid", "parametrization": "ddpm", "noise": "ddpm_uniform"},
        {"draws": "adaptive"},
        {"pairs": "optimal_transport"},
        {"augment": 0.5},
        {"labels": "classes"},
        {"flip": 0.5},
        {"dropout": 0.2},
        {"precision": "bfloat16"},
        {"clip_norm": 0.1, "learning_rate_decay": "inverse_sqrt"},
        {"ema_halflives_images": (80,), "ema_ramp_up": None},
        {"objective": "progressive", "first_steps": 4, "round_steps": 2},
        {"objective": "consistency_distillation", "dropout": 0.2},
        {"objective": "consistency_training", "target_decay": 0.9},
        {"objective": "easy_consistency"},
        {"upsampler": {"from": 2}},
        {"upsampler": {"from": 1, "augmentation": "blur", "strength": 2}, "augment": 0.5, "labels": "classes"},
    ],
    ids=str,
)
def test_a_training_with_further_state_continues_to_the_same_bytes(
    tmp_path: Path, choices: dict[str, Any], plain: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adaptive, "ENOUGH", 1)  # so that it adapts within these steps
    row = Model(**SMALL, **choices, images=25 * 8)
    spec = row.spec(0.5, SHAPE, COUNTS)
    keys: dict[str, Any] = {"labels": LABELS, "teacher": new_denoiser(spec, 1).eval() if row.needs_teacher else None}
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(row, spec, IMAGES, 0, checkpoint, deadly(19), **keys)
    assert checkpoint.exists()
    whole = train(row, spec, IMAGES, 0, **keys)
    assert same(train(row, spec, IMAGES, 0, checkpoint, **keys), whole)
    assert not same(plain, whole)


@pytest.mark.parametrize(
    ("choices", "shape"),
    [
        ({"space": "half", "autoencoder": AutoencoderRow(factor=2, channels=3)}, (3, 2, 2)),
        ({"space": "half", "autoencoder": AutoencoderRow(factor=2, channels=3), "labels": "classes"}, (3, 2, 2)),
        ({"resolution": 2, "flip": 0.5}, (1, 2, 2)),
        ({"resolution": 2, "upsampler": {"from": 1}, "augment": 0.5}, (1, 2, 2)),
    ],
    ids=["latents", "latents of classes", "a resolution", "an upsampler to a resolution"],
)
def test_a_training_in_another_space_continues_to_the_same_bytes(
    tmp_path: Path, choices: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """Its images are float32, as `encoded` makes them; a checkpoint is of these values."""
    row = Model(**SMALL, **choices, images=20 * 8)
    spec = row.spec(1.0, SHAPE, COUNTS)
    assert spec.shape == shape
    images = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0))
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(row, spec, images, 0, checkpoint, deadly(13), labels=LABELS)
    whole = train(row, spec, images, 0, labels=LABELS)
    assert math.isfinite(whole.curve[-1]["loss"])
    with pytest.raises(StudyError, match=r"data: \w+ in the checkpoint, \w+ now"):
        train(row, spec, images + 1e-6, 0, checkpoint, labels=LABELS)
    assert same(train(row, spec, images, 0, checkpoint, labels=LABELS), whole)


@pytest.mark.parametrize(
    ("deaths", "kept"),
    [((1,), 0), ((2,), 0), ((3,), 2), ((4,), 2), ((11,), 10), ((20,), 18), ((3, 3, 8, 13), 12)],
    ids=str,
)
def test_an_interrupted_training_continues_to_the_same_bytes(
    tmp_path: Path, whole: Trained, deaths: tuple[int, ...], kept: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    for step in deaths:
        killed(step, checkpoint)
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint, reported.append), whole)
    resumed = [kept * ROW.batch] if kept else []
    assert reported == resumed + [ROW.batch] * (20 - kept)


def test_a_finished_training_is_not_repeated(tmp_path: Path, whole: Trained) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint), whole)
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint, reported.append), whole)
    assert reported == [20 * ROW.batch]


def test_a_process_killed_at_any_moment_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at up to eight random moments."""
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")  # pytest shows it if the test fails
    checkpoint, result = tmp_path / "checkpoint.safetensors", tmp_path / "result.safetensors"
    command = [str(programs(0) / "python"), "-m", "tests.training.killing", str(seed), str(checkpoint), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    assert done.returncode == 0 and int(done.stdout) >= 2
    whole = train(LONG, SPEC, IMAGES, 0, tmp_path / "whole.safetensors")
    found = load_file(result)
    assert all(torch.equal(value, found[name]) for name, value in whole.denoiser.state_dict().items())
    for images, path in whole.snapshots.items():
        assert path.read_bytes() == beside(checkpoint, f"snapshot_{images}").read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def unsealed(path: Path) -> None:
    path.write_bytes(read_sealed(path))


@pytest.mark.parametrize(
    "harm",
    [truncate, unsealed, partial(Path.write_bytes, data=b"")],
    ids=["truncated", "without a seal", "empty"],
)
def test_a_broken_checkpoint_is_named_in_a_line_and_made_again(
    tmp_path: Path, harm: Callable[[Path], object], whole: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed(3, checkpoint)
    harm(checkpoint)
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint), whole)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkpoint}: not as this study wrote it") and line.endswith("; it is made again")


def test_the_last_good_checkpoint_survives_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained
) -> None:
    def explodes(row: Model, step: int) -> float:
        return 1e30 if step >= 10 else learning_rate(row, step)

    with monkeypatch.context() as patch, pytest.raises(StudyError, match=r"at step 1[12] "):
        patch.setattr(loop, "learning_rate", explodes)
        train(ROW, SPEC, IMAGES, 0, tmp_path / "checkpoint")
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, tmp_path / "checkpoint", reported.append), whole)
    assert reported[0] == 10 * ROW.batch


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    row = ROW.model_copy(update={"images": 8, "learning_rate": math.inf})  # one step, whose loss is finite
    with pytest.raises(StudyError, match=r"seed 0: the weights are not finite at step 1 \(losses before: "):
        train(row, SPEC, IMAGES, 0, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": 0.001}, "learning_rate: 0.008 in the checkpoint, 0.001 in the row;"),
        ({"images": 240, "P_mean": 0.5}, "P_mean: -1.2 in the checkpoint, 0.5 in the row; images: 160"),
        ({"clip_norm": 1.0}, "clip_norm: None in the checkpoint, 1.0 in the row"),
    ],
    ids=str,
)
def test_another_rows_checkpoint_is_refused_by_key(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    killed(3, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(StudyError) as caught:
        train(ROW.model_copy(update=changed), SPEC, IMAGES, 0, checkpoint)
    assert said in str(caught.value) and str(checkpoint) in str(caught.value)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_another_seed_or_other_data_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    killed(3, checkpoint)
    with pytest.raises(StudyError, match="seed: 0 in the checkpoint, 1 now"):
        train(ROW, SPEC, IMAGES, 1, checkpoint)
    with pytest.raises(StudyError, match=r"data: \w+ in the checkpoint, \w+ now"):
        train(ROW, SPEC, IMAGES.flip(0), 0, checkpoint)
    with pytest.raises(StudyError, match=r"sigma_data: 0\.5 in the checkpoint, 0\.6 in the row"):
        train(ROW, replace(SPEC, sigma_data=0.6), IMAGES, 0, checkpoint)
