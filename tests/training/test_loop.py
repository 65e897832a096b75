"""Training is reproducible, and averages, snapshots, reflow pairs and the classifier follow their definitions."""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.diffusion.averages import Averages, profiles
from pipeline.diffusion.denoiser import Denoiser, load_denoiser, new_denoiser
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training import loop
from pipeline.training.batches import Examples
from pipeline.training.checkpoint import beside
from pipeline.training.loop import advance, train_seeds
from pipeline.training.noise import NOISES
from pipeline.training.pairs import reflow_pairs
from pipeline.training.row import Model
from pipeline.training.run import CURVE_POINTS, Run
from pipeline.training.trained import Trained, save_models
from tests.training.small import (
    DATA,
    IMAGES,
    LABELS,
    ROW,
    SHAPE,
    SMALL,
    SPEC,
    Killed,
    deadly,
    same,
    train,
)


def test_the_average_follows_its_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(ROW, SPEC, IMAGES, 0)
    seen: list[dict[str, Tensor]] = []

    class Watched(Run):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(copy.deepcopy(self.denoiser.state_dict()))
            self.optimizer.register_step_post_hook(lambda *_: seen.append(copy.deepcopy(self.denoiser.state_dict())))

    monkeypatch.setattr(loop, "Run", Watched)
    [profile] = profiles(ROW)
    assert same(train(ROW, SPEC, IMAGES, 0), trained)
    for name, value in trained.denoiser.state_dict().items():
        average = seen[0][name].double()
        for step, weights in enumerate(seen[1:]):
            average += (1 - profile.decay(step, ROW.batch)) * (weights[name] - average)
        torch.testing.assert_close(value.double(), average, rtol=1e-4, atol=1e-6)


def test_training_depends_on_its_arguments_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    first = train(ROW, SPEC, IMAGES, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(train(ROW, SPEC, IMAGES, 0), first)
    assert torch.get_rng_state().equal(before)
    assert not same(train(ROW, SPEC, IMAGES, 1), first)
    assert not first.denoiser.training
    assert [point["images"] for point in first.curve] == [8 * (step + 1) for step in range(20)]


def test_training_lowers_the_loss() -> None:
    smooth = IMAGES[:1].repeat(30, 1, 1, 1)
    curve = train(ROW.model_copy(update={"images": 150 * 8}), SPEC, smooth, 0).curve
    losses = [point["loss"] for point in curve]
    assert len(losses) == CURVE_POINTS
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("parametrization", [name for name in PARAMETRIZATIONS if name != "consistency"])
def test_every_parametrization_trains_on_every_noise(parametrization: str) -> None:
    for noise in NOISES:
        try:
            row = Model(**SMALL, parametrization=parametrization, noise=noise, images=2 * 8)
        except ValidationError as error:
            path = PARAMETRIZATIONS[parametrization]
            assert (path.largest < 1000 and "ends at" in str(error)) or (path.smallest and "begins at" in str(error))
            continue
        losses = [point["loss"] for point in train(row, row.spec(0.5, SHAPE), IMAGES, 0).curve]
        assert len(losses) == 2 and all(math.isfinite(value) and value > 0 for value in losses)


def test_the_head_of_a_learned_weighting_is_not_part_of_the_model() -> None:
    row = Model(**SMALL, weighting="uncertainty", images=8 * 8)
    assert train(row, SPEC, IMAGES, 0).denoiser.state_dict().keys() == Denoiser(SPEC).state_dict().keys()


def test_the_network_gets_the_augmentation_in_training_only() -> None:
    row = Model(**SMALL, augment=0.5, images=40 * 8)
    spec = row.spec(0.5, SHAPE)
    denoiser = train(row, spec, IMAGES, 0).denoiser
    named = {name: value for name, value in denoiser.named_parameters() if value.shape == (8, 9)}
    first = dict(new_denoiser(spec, 0).named_parameters())
    assert named and not any(torch.equal(value, first[name]) for name, value in named.items())
    z, sigma = torch.zeros(3, *SHAPE), torch.tensor(0.3, dtype=torch.float64)
    none = denoiser.network(z, torch.full((3,), 0.3), None, torch.zeros(3, 9))
    assert torch.equal(denoiser.network(z, torch.full((3,), 0.3)), none)
    assert denoiser(z, sigma).isfinite().all()


def test_reflow_trains_on_the_pairs_of_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed uses the pairs of the teacher of the same seed, which is trained exactly as the teacher's own row."""
    monkeypatch.chdir(tmp_path)
    flow = Model(**SMALL, parametrization="flow", noise="flow_uniform", images=5 * 8, train_seeds=(0, 1))
    row = flow.model_copy(update={"pairs": "reflow", "reflow_pairs": 40, "teacher": flow})
    found = train_seeds(row, DATA, IMAGES, lambda images: None)
    for seed, run in zip(row.train_seeds, found, strict=True):
        teacher = train(flow, flow.spec(0.5, SHAPE), IMAGES, seed).denoiser
        pairs = reflow_pairs(teacher, 40, seed)
        assert pairs[0].shape == pairs[1].shape == (40, *SHAPE)
        assert same(train(row, row.spec(0.5, SHAPE), IMAGES, seed, teacher=teacher), run)


def trained_seeds(row: Model, workers: int) -> list[Trained]:
    return train_seeds(row, DATA, IMAGES, lambda images: None, workers)


def test_seeds_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Model(**SMALL, images=8, train_seeds=tuple(range(12)))
    monkeypatch.chdir(tmp_path)
    alone = trained_seeds(row, 1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often
    try:
        (tmp_path / "again").mkdir()
        monkeypatch.chdir(tmp_path / "again")
        assert all(map(same, trained_seeds(row, 4), alone))
    finally:
        sys.setswitchinterval(interval)


def test_seeds_continue_from_their_own_checkpoints_and_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained
) -> None:
    monkeypatch.chdir(tmp_path)
    row = ROW.model_copy(update={"train_seeds": (0, 3)})
    first = trained_seeds(row, 1)
    assert same(first[0], whole) and not same(first[1], whole)
    kept = {path: path.read_bytes() for path in (tmp_path / ".cache/training").iterdir()}
    assert len(kept) == 2
    assert all(map(same, trained_seeds(row, 1), first))
    trained_seeds(row.model_copy(update={"train_seeds": (3, 4)}), 1)
    assert len(list((tmp_path / ".cache/training").iterdir())) == 3
    assert {path: path.read_bytes() for path in kept} == kept

    summary = save_models(first, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["seed_0.safetensors", "seed_3.safetensors"]
    assert summary["images"] == ROW.images and summary["parameters"] > 0
    assert summary["final_loss"] == pytest.approx((first[0].curve[-1]["loss"] + first[1].curve[-1]["loss"]) / 2)
    saved = load_denoiser(tmp_path / "models/seed_3.safetensors")
    assert saved.spec == SPEC
    assert same(Trained(saved, first[1].curve), first[1])


def test_the_checkpoints_name_depends_on_row_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = Model(**SMALL, images=8, train_seeds=(0,))
    for changed in ({}, {"P_mean": 0}, {"weighting": "snr"}, {"images": 16}):
        trained_seeds(row.model_copy(update=changed), 1)
    train_seeds(row, DATA, IMAGES.flip(0), lambda images: None, 1)
    train_seeds(row, DATA | {"sigma_data": 0.6}, IMAGES, lambda images: None, 1)
    assert len(list((tmp_path / ".cache/training").iterdir())) == 6


def test_further_averages_do_not_change_the_main_one(tmp_path: Path, whole: Trained) -> None:
    row = ROW.model_copy(update={"ema_halflives_images": (16,), "ema_sigma_rels": (0.1,)})
    found = train(row, SPEC, IMAGES, 0)
    assert same(Trained(found.denoiser, found.curve), whole)
    run = Run(SPEC, row, 0)
    run.averages = Averages(dict(run.denoiser.named_parameters()), profiles(row))
    for _ in range(row.steps):
        advance(run, Examples(IMAGES))
    for profile, denoiser in found.averages.items():
        state = denoiser.state_dict()
        assert all(torch.equal(state[name], value) for name, value in run.averages.of(profile).items())
    summary = save_models([found], tmp_path / "models")
    names = ["seed_0.safetensors", "seed_0_halflife_16.safetensors", "seed_0_sigma_rel_0.1.safetensors"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == names
    assert summary["parameters"] == sum(p.numel() for p in found.denoiser.parameters())


SHOTS = ROW.model_copy(update={"snapshots": 4, "ema_sigma_rels": (0.1,)})  # after steps 5, 10, 15 and 20


@pytest.mark.parametrize("deaths", [(), (6,), (5, 11), (16,)], ids=str)
def test_an_interrupted_training_writes_all_snapshots(tmp_path: Path, deaths: tuple[int, ...]) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    for step in deaths:
        with pytest.raises(Killed):
            train(SHOTS, SPEC, IMAGES, 0, checkpoint, deadly(step))
    found = train(SHOTS, SPEC, IMAGES, 0, checkpoint)
    run = Run(SPEC, SHOTS, 0)
    save_models([found], tmp_path / "models")
    for step in range(1, 21):
        advance(run, Examples(IMAGES))
        if step % 5 == 0:
            kept = load_file(tmp_path / f"models/seed_0_snapshot_{step * ROW.batch}.safetensors")
            expected = run.averages.tensors()
            assert kept.keys() == expected.keys()
            assert all(torch.equal(kept[name], value) for name, value in expected.items())


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_lost_snapshots_are_made_again(
    tmp_path: Path, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(SHOTS, SPEC, IMAGES, 0, checkpoint)
    gone = first.snapshots[10 * ROW.batch]
    content = gone.read_bytes()
    harm(gone)
    assert same(train(SHOTS, SPEC, IMAGES, 0, checkpoint), first)
    assert gone.read_bytes() == content
    assert str(gone) in capsys.readouterr().err


def test_the_classifier_is_trained_once(tmp_path: Path) -> None:
    row = ROW.model_copy(update={"classifier_images": 256, "images": 16})
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(row, SPEC, IMAGES, 0, checkpoint, labels=LABELS)
    assert first.classifier is not None
    save_models([first], tmp_path / "models")
    saved = (tmp_path / "models/seed_0_classifier.safetensors").read_bytes()
    assert saved == beside(checkpoint, "classifier").read_bytes()
    beside(checkpoint, "classifier").write_bytes(b"")
    again = train(row, SPEC, IMAGES, 0, checkpoint, labels=LABELS)
    assert saved == beside(checkpoint, "classifier").read_bytes()
    assert again.classifier_accuracy == first.classifier_accuracy
