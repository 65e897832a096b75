"""Training: the loss is the paper's, and the same row gives the same bytes, also after a crash."""

import copy
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.common.errors import StudyError
from pipeline.common.randomness import generator
from pipeline.common.threads import in_turns
from pipeline.data.dataset import to_range
from pipeline.diffusion.averages import Averages, profiles
from pipeline.diffusion.denoiser import Denoiser, load_denoiser, per_sample
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.training import loop as training
from pipeline.training.augmentation import draw, mirror, transform
from pipeline.training.draws import Independent
from pipeline.training.loop import (
    Examples,
    Run,
    Trained,
    batch_indices,
    check_models,
    draw_batch,
    loss,
    save_models,
    train_seeds,
)
from pipeline.training.noise import NOISES
from pipeline.training.optimizer import learning_rate
from pipeline.training.pairs import reflow_pairs
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS
from tests.imports import ROOT


def train(*arguments: Any, **keys: Any) -> Trained:
    """training.train from its beginning to its end."""
    [trained] = in_turns([training.train(*arguments, **keys)])
    return trained


SHAPE = (1, 4, 4)
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "batch": 8, "warmup_images": 16, "ema_halflife_images": 40}
ROW = Model(**SMALL, images=20 * 8)  # 20 steps, a checkpoint every second one
IMAGES = torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3
COUNTS = [10, 10, 10]
DATA = {"sigma_data": 0.5, "channels": 1, "height": 4, "width": 4, "class_counts": dict.fromkeys("abc", 10)}
SPEC = ROW.spec(0.5, SHAPE)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Train as stages do, one thread a run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(a: Trained, b: Trained) -> bool:
    """Whether all averages of the weights and the curve are equal to the last bit."""
    if a.curve != b.curve or a.averages.keys() != b.averages.keys():
        return False
    pairs = [(a.denoiser, b.denoiser), *zip(a.averages.values(), b.averages.values(), strict=True)]
    states = [(one.state_dict(), other.state_dict()) for one, other in pairs]
    return all(torch.equal(one[name], other[name]) for one, other in states for name in {**one, **other})


class Network(nn.Module):
    """Any function of its two inputs, in their precision."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, told: Tensor | None = None) -> Tensor:
        return (3 * x.float()).sin() + per_sample(c_noise, x).cos()


@pytest.mark.parametrize("count", [4, 21])  # equal to the image's width, and not
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_loss_is_the_weighted_error_of_the_denoiser(parametrization: str, weighting: str, count: int) -> None:
    denoiser = Denoiser(SPEC | {"parametrization": parametrization})
    denoiser.network = Network()
    random_numbers = torch.Generator().manual_seed(1)
    x0, n = torch.randn(2, count, *SHAPE, dtype=torch.float64, generator=random_numbers)
    sigma = torch.logspace(-3, 2, count, dtype=torch.float64)
    denoised = denoiser(x0 + sigma[:, None, None, None] * n, sigma)
    c_out = denoiser.coefficients(sigma, 0.5).c_out
    weight = WEIGHTINGS[weighting](sigma, sigma_data=0.5, c_out=c_out, snr_rate=sigma.sqrt())
    expected = weight * (denoised - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(denoiser, weight, x0, n, sigma), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (10, 10), (10, 25), (7, 1)])
def test_every_image_is_seen_once_an_epoch_in_a_new_order(count: int, batch: int) -> None:
    seen = torch.cat([batch_indices(3, step, batch, count) for step in range(5 * count // batch + 1)])
    epochs = [epoch.tolist() for epoch in seen[: len(seen) // count * count].split(count)]
    assert len(epochs) >= 5
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    later = batch_indices(3, 8, 4, 10)
    training._epoch_order.cache_clear()
    assert batch_indices(3, 8, 4, 10).equal(later)
    assert not batch_indices(4, 8, 4, 10).equal(later)


def test_the_average_is_the_recursion_of_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(ROW, SPEC, IMAGES, 0)
    seen: list[dict[str, Tensor]] = []

    class Watched(training.Run):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(copy.deepcopy(self.denoiser.state_dict()))
            self.optimizer.register_step_post_hook(lambda *_: seen.append(copy.deepcopy(self.denoiser.state_dict())))

    monkeypatch.setattr(training, "Run", Watched)
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
    assert len(losses) == training.LOG_POINTS
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_parametrization_trains_on_every_noise(parametrization: str) -> None:
    for noise in NOISES:
        try:
            row = Model(**SMALL, parametrization=parametrization, noise=noise, images=3 * 8)
        except ValidationError as error:
            assert PARAMETRIZATIONS[parametrization].largest < 1000 and "goes up to sigma" in str(error)
            continue
        losses = [point["loss"] for point in train(row, row.spec(0.5, SHAPE), IMAGES, 0).curve]
        assert len(losses) == 3 and all(math.isfinite(value) and value > 0 for value in losses)


@pytest.mark.parametrize(
    "choices",
    [
        {"weighting": "uncertainty"},
        {"draws": "adaptive"},
        {"pairs": "optimal_transport"},
        {"augment": 0.5},
        {"labels": "classes"},
        {"flip": 0.5},
        {"dropout": 0.2},
        {"precision": "bfloat16"},
        {"clip_norm": 0.1, "learning_rate_decay": "inverse_sqrt"},
        {"ema_halflives_images": (80,), "ema_ramp_up": None},
    ],
    ids=str,
)
def test_a_run_with_a_state_of_its_own_goes_on_to_the_same_bytes(tmp_path: Path, choices: dict[str, Any]) -> None:
    row = Model(**SMALL, **choices, images=60 * 8)
    spec = row.spec(0.5, SHAPE, COUNTS)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(row, spec, IMAGES, 0, checkpoint, deadly(47), labels=LABELS)
    assert checkpoint.exists()
    whole = train(row, spec, IMAGES, 0, labels=LABELS)
    assert same(train(row, spec, IMAGES, 0, checkpoint, labels=LABELS), whole)
    plain = Model(**SMALL, images=60 * 8)
    assert not same(train(plain, plain.spec(0.5, SHAPE), IMAGES, 0), whole)


def test_the_head_of_a_learned_weighting_is_no_part_of_the_model() -> None:
    row = Model(**SMALL, weighting="uncertainty", images=8 * 8)
    assert train(row, SPEC, IMAGES, 0).denoiser.state_dict().keys() == Denoiser(SPEC).state_dict().keys()


def test_augmented_training_tells_the_network_and_sampling_does_not() -> None:
    row = Model(**SMALL, augment=0.5, images=40 * 8)
    spec = row.spec(0.5, SHAPE)
    denoiser = train(row, spec, IMAGES, 0).denoiser
    named = {name: value for name, value in denoiser.named_parameters() if value.shape == (8, 9)}
    first = dict(training.new_denoiser(spec, 0).named_parameters())
    assert named and not any(torch.equal(value, first[name]) for name, value in named.items())
    z, sigma = torch.zeros(3, *SHAPE), torch.tensor(0.3, dtype=torch.float64)
    none = denoiser.network(z, torch.full((3,), 0.3), None, torch.zeros(3, 9))
    assert torch.equal(denoiser.network(z, torch.full((3,), 0.3)), none)
    assert denoiser(z, sigma).isfinite().all()


def test_reflow_trains_on_what_its_teacher_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seeds take their own teacher's pairs, whose training is the teacher row's own, to the byte."""
    monkeypatch.chdir(tmp_path)
    flow = Model(**SMALL, parametrization="flow", noise="flow_uniform", images=10 * 8, train_seeds=(0, 1))
    row = flow.model_copy(update={"pairs": "reflow", "reflow_pairs": 40, "teacher": flow})
    found = train_seeds(row, DATA, IMAGES, lambda images: None)
    for seed, run in zip(row.train_seeds, found, strict=True):
        teacher = train(flow, flow.spec(0.5, SHAPE), IMAGES, seed).denoiser
        pairs = reflow_pairs(teacher, 40, seed)
        assert pairs[0].shape == pairs[1].shape == (40, *SHAPE)
        assert same(
            train(row, row.spec(0.5, SHAPE), IMAGES, seed, None, lambda images: None, lambda pairs=pairs: pairs), run
        )


class Killed(Exception):
    pass


def deadly(step: int) -> Callable[[int], None]:
    """A progress callback that ends the run once it has done `step` steps."""
    done = 0

    def progress(images: int) -> None:
        nonlocal done
        done += images // ROW.batch
        if done >= step:
            raise Killed

    return progress


def killed(step: int, checkpoint: Path, seed: int = 0) -> None:
    with pytest.raises(Killed):
        train(ROW, SPEC, IMAGES, seed, checkpoint, deadly(step))


@pytest.fixture(scope="module")
def whole() -> Trained:
    """The run that nothing cut short."""
    torch.set_num_threads(1)
    return train(ROW, SPEC, IMAGES, 0)


@pytest.mark.parametrize(
    ("deaths", "kept"),
    [((1,), 0), ((2,), 0), ((3,), 2), ((4,), 2), ((11,), 10), ((20,), 18), ((3, 3, 8, 13), 12)],
    ids=str,
)
def test_a_run_cut_short_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: Trained, deaths: tuple[int, ...], kept: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    for step in deaths:
        killed(step, checkpoint)
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint, reported.append), whole)
    resumed = [kept * ROW.batch] if kept else []
    assert reported == resumed + [ROW.batch] * (20 - kept)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, whole: Trained) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint), whole)
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, checkpoint, reported.append), whole)
    assert reported == [20 * ROW.batch]


LONG = ROW.model_copy(update={"images": 200 * 8, "snapshots": 3, "draws": "adaptive"})
KILLS = 20
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from safetensors.torch import save_file
from tests.training import test_loop as t

def attempt(checkpoint, result):
    t.torch.set_num_threads(1)
    trained = t.train(t.LONG, t.SPEC, t.IMAGES, 0, checkpoint, lambda images: time.sleep(0.002))
    save_file({k: v.contiguous() for k, v in trained.denoiser.state_dict().items()}, result)

t.Run(t.SPEC, t.LONG, 0).advance(t.Examples(t.IMAGES))  # which imports the rest, for all that are to come
moments, (checkpoint, result) = random.Random(int(sys.argv[1])), map(Path, sys.argv[2:])
killed = 0
for _ in range(t.KILLS):
    if not (child := os.fork()):
        attempt(checkpoint, result)
        os._exit(0)
    time.sleep(moments.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
attempt(checkpoint, result)
print(killed)
"""


def test_a_process_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at twenty random moments, until the training has ended or they have."""
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")  # shown where the test fails
    checkpoint, result = tmp_path / "checkpoint.safetensors", tmp_path / "result.safetensors"
    command = [sys.executable, "-c", SCRIPT, str(seed), str(checkpoint), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    assert done.returncode == 0 and int(done.stdout) >= 2
    whole = train(LONG, SPEC, IMAGES, 0, tmp_path / "whole.safetensors")
    found = load_file(result)
    assert all(torch.equal(value, found[name]) for name, value in whole.denoiser.state_dict().items())
    for images, path in whole.snapshots.items():
        assert path.read_bytes() == training.beside(checkpoint, f"snapshot_{images}").read_bytes()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def foreign(path: Path) -> None:
    path.write_bytes(save({"step": torch.tensor(3)}))


def of_another_network(path: Path) -> None:
    own = training.setting(ROW, SPEC, IMAGES, None, 0, torch.device("cpu"))
    Run(SPEC | {"channels": 16}, ROW, 0).save(path, own)


@pytest.mark.parametrize(
    "harm",
    [truncate, foreign, of_another_network, partial(Path.write_bytes, data=b"")],
    ids=["truncated", "foreign", "of another network", "empty"],
)
def test_a_broken_checkpoint_is_one_line_that_names_it(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed(3, checkpoint)
    harm(checkpoint)
    with pytest.raises(StudyError) as caught:
        train(ROW, SPEC, IMAGES, 0, checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: a broken checkpoint") and len(message.splitlines()) == 1


def test_a_loss_that_is_not_finite_names_the_step_and_sigma() -> None:
    line = r"^seed 7: the loss is not finite at step [12] \(sigma [\d.e+-]+\); lower learning_rate\?$"
    with pytest.raises(StudyError, match=line):
        train(ROW.model_copy(update={"learning_rate": 1e30}), SPEC, IMAGES, 7)


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained
) -> None:
    def explodes(row: Model, step: int) -> float:
        return 1e30 if step >= 10 else learning_rate(row, step)

    with monkeypatch.context() as patch, pytest.raises(StudyError, match=r"at step 1[12] "):
        patch.setattr(training, "learning_rate", explodes)
        train(ROW, SPEC, IMAGES, 0, tmp_path / "checkpoint")
    reported: list[int] = []
    assert same(train(ROW, SPEC, IMAGES, 0, tmp_path / "checkpoint", reported.append), whole)
    assert reported[0] == 10 * ROW.batch


def trained_seeds(row: Model, workers: int) -> list[Trained]:
    return train_seeds(row, DATA, IMAGES, lambda images: None, workers)


def test_seeds_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Model(**SMALL, images=8, train_seeds=tuple(range(24)))
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


def test_seeds_go_on_from_their_own_checkpoints_and_are_saved(
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


def test_what_a_run_depends_on_is_in_its_checkpoints_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = Model(**SMALL, images=8, train_seeds=(0,))
    for changed in ({}, {"P_mean": 0}, {"weighting": "snr"}, {"images": 16}):
        trained_seeds(row.model_copy(update=changed), 1)
    train_seeds(row, DATA, IMAGES.flip(0), lambda images: None, 1)
    train_seeds(row, DATA | {"sigma_data": 0.6}, IMAGES, lambda images: None, 1)
    assert len(list((tmp_path / ".cache/training").iterdir())) == 6


def test_the_first_error_of_a_seed_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="seed 0: the loss is not finite"):
        trained_seeds(Model(**SMALL, images=80, learning_rate=1e30, train_seeds=(0, 1, 2)), 1)


def test_labels_are_dropped_at_their_rate_and_go_with_their_images() -> None:
    row = Model(**SMALL, labels="classes", label_dropout=0.25)
    examples = Examples(torch.arange(256, dtype=torch.uint8)[:, None, None, None], torch.arange(256))
    indices = torch.arange(256).repeat(40)
    batch = draw_batch(row, examples, indices, Independent(), generator("step", 0, 0))
    assert batch.labels is not None
    dropped = batch.labels == -1
    assert torch.equal(batch.labels[~dropped], indices[~dropped])
    assert abs(float(dropped.float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(indices))
    assert torch.equal(batch.x0.flatten(), to_range(indices.to(torch.uint8)))


@pytest.mark.parametrize("choices", [{"labels": "classes"}, {"flip": 0.5}, {"labels": "classes", "flip": 0.3}], ids=str)
def test_labels_and_flips_leave_the_other_draws(choices: dict[str, Any]) -> None:
    plain, other = Model(**SMALL, augment=0.5), Model(**SMALL, augment=0.5, **choices)
    examples, indices = Examples(IMAGES, LABELS), torch.arange(30)
    one, two = (draw_batch(row, examples, indices, Independent(), generator("step", 0, 0)) for row in (plain, other))
    assert torch.equal(one.n, two.n) and torch.equal(one.u, two.u)
    assert one.told is not None and two.told is not None and torch.equal(one.told, two.told)


def test_flips_mirror_their_share_of_images_and_nothing_else() -> None:
    row, count = Model(**SMALL, flip=0.3), 3000
    indices = torch.arange(count) % len(IMAGES)
    batch = draw_batch(row, Examples(IMAGES), indices, Independent(), generator("step", 0, 0))
    x0 = to_range(IMAGES[indices])
    mirrored, kept = ((batch.x0 == like).flatten(1).all(1) for like in (x0.flip(3), x0))
    assert (mirrored ^ kept).all() and batch.told is None
    assert abs(float(mirrored.float().mean()) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)


def test_a_mirrored_image_is_augmented_as_its_mirror_image() -> None:
    a = draw(200, 0.8, generator("a", 0))
    x0 = torch.rand(200, 2, 6, 8, generator=generator("x0", 0)) * 2 - 1
    torch.testing.assert_close(transform(x0, mirror(a, 1.0, generator("m", 0))), transform(x0.flip(3), a))


def gradients(row: Model, images: Tensor = IMAGES) -> tuple[list[Tensor], Run]:
    """Of the first step of a network whose last layers are not 0, and the run after it."""
    run = Run(row.spec(0.5, SHAPE, COUNTS), row, 0)
    with torch.no_grad():
        for index, parameter in enumerate(run.denoiser.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator("test", index)), alpha=0.1)
    run.advance(Examples(images, LABELS))
    return [p.grad for p in run.parameters() if p.grad is not None], run


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 11])
@pytest.mark.parametrize(
    "choices", [{}, {"dropout": 0.3}, {"labels": "classes", "augment": 0.4}, {"weighting": "uncertainty"}], ids=str
)
def test_micro_batches_have_the_gradient_of_the_whole_batch(choices: dict[str, Any], micro_batch: int) -> None:
    whole, run = gradients(Model(**SMALL, **choices))
    parts, other = gradients(Model(**SMALL, **choices, micro_batch=micro_batch))
    assert len(whole) == len(parts)
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=2e-6 * float(one.abs().max()) + 1e-8)
    torch.testing.assert_close(other.losses, run.losses)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    row = Model(**SMALL, dropout=0.3, images=10 * 8)
    spec = row.spec(0.5, SHAPE)
    torch.manual_seed(1)
    first = train(row, spec, IMAGES, 0)
    torch.manual_seed(2)
    assert same(train(row, spec, IMAGES, 0), first)
    plain = row.model_copy(update={"dropout": 0.0})
    assert not same(train(plain, plain.spec(0.5, SHAPE), IMAGES, 0), first)


def test_bfloat16_computes_coarsely_and_keeps_weights_and_averages_in_float32() -> None:
    fine, _ = gradients(Model(**SMALL))
    coarse, run = gradients(Model(**SMALL, precision="bfloat16"))
    kept = [*run.denoiser.parameters(), *run.averages.tensors().values(), *coarse]
    assert {value.dtype for value in kept} == {torch.float32}
    one, two = (torch.cat([g.flatten() for g in found]) for found in (fine, coarse))
    assert 1e-4 < float((one - two).norm() / one.norm()) < 0.05


def test_clipped_gradients_point_the_same_way_at_the_norm_that_was_asked_for() -> None:
    free, _ = gradients(Model(**SMALL))
    norm = float(torch.cat([g.flatten() for g in free]).norm())
    for factor, expected in ((0.25, 0.25), (4.0, 1.0)):
        clipped, _ = gradients(Model(**SMALL, clip_norm=norm * factor))
        for one, two in zip(free, clipped, strict=True):
            torch.testing.assert_close(two, one * expected, rtol=1e-4, atol=1e-9)


def test_other_averages_are_tracked_without_moving_the_main_one(tmp_path: Path, whole: Trained) -> None:
    row = ROW.model_copy(update={"ema_halflives_images": (16,), "ema_sigma_rels": (0.1,)})
    found = train(row, SPEC, IMAGES, 0)
    assert same(Trained(found.denoiser, found.curve), whole)
    run = Run(SPEC, row, 0)
    run.averages = Averages(dict(run.denoiser.named_parameters()), profiles(row))
    for _ in range(row.steps):
        run.advance(Examples(IMAGES))
    for profile, denoiser in found.averages.items():
        state = denoiser.state_dict()
        assert all(torch.equal(state[name], value) for name, value in run.averages.of(profile).items())
    summary = save_models([found], tmp_path / "models")
    names = ["seed_0.safetensors", "seed_0_halflife_16.safetensors", "seed_0_sigma_rel_0.1.safetensors"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == names
    assert summary["parameters"] == sum(p.numel() for p in found.denoiser.parameters())


SHOTS = ROW.model_copy(update={"snapshots": 4, "ema_sigma_rels": (0.1,)})  # after steps 5, 10, 15 and 20


@pytest.mark.parametrize("deaths", [(), (6,), (5, 11), (16,)], ids=str)
def test_snapshots_are_all_there_in_the_end(tmp_path: Path, deaths: tuple[int, ...]) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    for step in deaths:
        with pytest.raises(Killed):
            train(SHOTS, SPEC, IMAGES, 0, checkpoint, deadly(step))
    found = train(SHOTS, SPEC, IMAGES, 0, checkpoint)
    run = Run(SPEC, SHOTS, 0)
    save_models([found], tmp_path / "models")
    for step in range(1, 21):
        run.advance(Examples(IMAGES))
        if step % 5 == 0:
            kept = load_file(tmp_path / f"models/seed_0_snapshot_{step * ROW.batch}.safetensors")
            expected = run.averages.tensors()
            assert kept.keys() == expected.keys()
            assert all(torch.equal(kept[name], value) for name, value in expected.items())


def test_a_run_whose_snapshots_are_gone_makes_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(SHOTS, SPEC, IMAGES, 0, checkpoint)
    gone = first.snapshots[10 * ROW.batch]
    content = gone.read_bytes()
    gone.unlink()
    assert same(train(SHOTS, SPEC, IMAGES, 0, checkpoint), first)
    assert gone.read_bytes() == content
    assert str(gone) in capsys.readouterr().err


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
        train(ROW, SPEC | {"sigma_data": 0.6}, IMAGES, 0, checkpoint)


def test_the_sigma_that_is_blamed_is_of_the_first_image_whose_loss_is_not_finite() -> None:
    row = Model(**SMALL, micro_batch=3)
    run = Run(SPEC, row, 0)

    def broken(x: Tensor, c_noise: Tensor, labels: Tensor | None, told: Tensor | None) -> Tensor:
        f = run.denoiser.network(x, c_noise, labels, told)
        return torch.where((c_noise == level)[:, None, None, None], math.nan, f)

    u = draw_batch(row, Examples(IMAGES), torch.arange(8), Independent(), generator("step", 0, 0)).u
    sigma = row.distribution.sigma(u)
    level = (sigma.log() / 4).float()[5]
    run.function = broken
    run.advance(Examples(IMAGES))
    with pytest.raises(StudyError, match=rf"step 0 \(sigma {float(sigma[5]):.4g}\)".replace("+", r"\+")):
        run.check()


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path: Path) -> None:
    row = ROW.model_copy(update={"images": 8, "learning_rate": math.inf})  # one step, whose loss is finite
    with pytest.raises(StudyError, match="seed 0: the weights are not finite at step 1"):
        train(row, SPEC, IMAGES, 0, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("choices", "labels", "said"),
    [
        ({"labels": "classes"}, None, "^labels: classes needs a data set with classes"),
        ({"classifier_images": 100}, None, "^classifier_images: a classifier needs a data set with classes"),
        ({"batch": 31}, LABELS, "^batch: 31, but the data set has 30 examples; use at most as many"),
        ({"batch": 16, "pairs": "reflow", "reflow_pairs": 8}, LABELS, "^batch: 16 of 8 reflow_pairs"),
    ],
    ids=str,
)
def test_data_that_a_row_cant_have_are_refused(choices: dict[str, Any], labels: Tensor | None, said: str) -> None:
    flow = {"parametrization": "flow", "noise": "flow_uniform"} if "pairs" in choices else {}
    row = Model(**SMALL | flow | choices)
    with pytest.raises(StudyError, match=said):
        train(row, SPEC, IMAGES, 0, labels=labels)


def test_what_only_the_data_tell_is_said_of_any_row_before_one_is_trained() -> None:
    rows = {"good": ROW, "dit": ROW.model_copy(update={"network": "dit", "patch": 3})}
    with pytest.raises(StudyError, match=r"^models\.dit\.patch: a size of 4 x 4 is not made of patches of 3 x 3"):
        check_models(rows, DATA, IMAGES, LABELS)
    rows["dit"] = ROW.model_copy(update={"batch": 31})
    with pytest.raises(StudyError, match=r"^models\.dit\.batch: 31, but the data set has 30"):
        check_models(rows, DATA, IMAGES, LABELS)
    check_models({"good": ROW}, DATA, IMAGES, None)


def test_a_row_has_a_classifier_which_is_trained_once(tmp_path: Path) -> None:
    row = ROW.model_copy(update={"classifier_images": 256, "images": 16})
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = train(row, SPEC, IMAGES, 0, checkpoint, labels=LABELS)
    assert first.classifier is not None
    save_models([first], tmp_path / "models")
    saved = (tmp_path / "models/seed_0_classifier.safetensors").read_bytes()
    assert saved == training.beside(checkpoint, "classifier").read_bytes()
    training.beside(checkpoint, "classifier").write_bytes(b"")
    with pytest.raises(StudyError, match="not a classifier"):
        train(row, SPEC, IMAGES, 0, checkpoint, labels=LABELS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, for which steps are not to wait")
@pytest.mark.parametrize("choices", [{}, {"labels": "classes", "augment": 0.5, "flip": 0.5}, {"dropout": 0.2}], ids=str)
def test_no_step_waits_for_the_gpu(choices: dict[str, Any]) -> None:
    row = Model(**SMALL, **choices, clip_norm=1.0, micro_batch=4, ema_sigma_rels=(0.1,))
    run = Run(row.spec(0.5, SHAPE, COUNTS), row, 0, torch.device("cuda"))
    run.advance(Examples(IMAGES, LABELS))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.advance(Examples(IMAGES, LABELS))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.check()
