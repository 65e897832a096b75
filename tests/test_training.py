"""Training: the loss is the paper's, and the same row gives the same bytes, also after a crash."""

import copy
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline import training
from pipeline.denoiser import Denoiser, load_denoiser, per_sample
from pipeline.errors import StudyError
from pipeline.model import Model
from pipeline.noise import NOISES
from pipeline.pairs import reflow_pairs
from pipeline.parallel import in_turns
from pipeline.parametrization import PARAMETRIZATIONS
from pipeline.training import Trained, batch_indices, ema_decay, learning_rate, loss, save_models, train_seeds
from pipeline.weighting import WEIGHTINGS
from tests.imports import ROOT


def train(*arguments: Any) -> Trained:
    """training.train from its beginning to its end."""
    [trained] = in_turns([training.train(*arguments)])
    return trained


SHAPE = (1, 4, 4)
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "batch": 8, "warmup_images": 16, "ema_halflife_images": 40}
ROW = Model(**SMALL, images=20 * 8)  # 20 steps, a checkpoint every second one
IMAGES = torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = {"sigma_data": 0.5, "channels": 1, "height": 4, "width": 4, "content_hash": "x"}
SPEC = ROW.spec(0.5, SHAPE)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Train as stages do, one thread a run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(a: Trained, b: Trained) -> bool:
    """Whether the averaged weights and the curve are equal to the last bit."""
    one, other = a.denoiser.state_dict(), b.denoiser.state_dict()
    return a.curve == b.curve and all(torch.equal(one[name], other[name]) for name in one | other)


class Network(nn.Module):
    """Any function of its two inputs, in their precision."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
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
    torch.testing.assert_close(loss(denoiser, weight, x0, n, sigma, None), expected, rtol=1e-6, atol=0)


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


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    row = Model(images=6400, batch=64, warmup_images=640, learning_rate=0.5)
    assert learning_rate(row, 0) == pytest.approx(0.5 / 10)
    assert learning_rate(row, 4) == pytest.approx(0.5 * 5 / 10 * (1 + math.cos(math.pi * 0.04)) / 2)
    assert learning_rate(row, 9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.09)) / 2)
    assert learning_rate(row, 50) == pytest.approx(0.25)
    assert learning_rate(row, 100) == pytest.approx(0)


def test_the_average_halves_over_its_half_life_and_ramps_up() -> None:
    row = Model(images=64_000, batch=64, ema_halflife_images=640)
    assert ema_decay(row, 0) == 0
    assert ema_decay(row, 100) == pytest.approx(0.5 ** (64 / (0.05 * 6400)))
    assert ema_decay(row, 200) == ema_decay(row, 999)
    assert math.prod(ema_decay(row, step) for step in range(500, 510)) == pytest.approx(0.5)


def test_the_average_is_the_recursion_of_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(ROW, SPEC, IMAGES, 0)
    seen: list[dict[str, Tensor]] = []

    class Watched(training.Run):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(copy.deepcopy(self.denoiser.state_dict()))
            self.optimizer.register_step_post_hook(lambda *_: seen.append(copy.deepcopy(self.denoiser.state_dict())))

    monkeypatch.setattr(training, "Run", Watched)
    assert same(train(ROW, SPEC, IMAGES, 0), trained)
    for name, value in trained.denoiser.state_dict().items():
        average = seen[0][name].double()
        for step, weights in enumerate(seen[1:]):
            average += (1 - ema_decay(ROW, step)) * (weights[name] - average)
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
    "choices", [{"weighting": "uncertainty"}, {"draws": "adaptive"}, {"pairs": "optimal_transport"}, {"augment": 0.5}]
)
def test_a_run_with_a_state_of_its_own_goes_on_to_the_same_bytes(tmp_path: Path, choices: dict[str, Any]) -> None:
    row = Model(**SMALL, **choices, images=60 * 8)
    spec = row.spec(0.5, SHAPE)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(row, spec, IMAGES, 0, checkpoint, deadly(47))
    assert checkpoint.exists()
    whole = train(row, spec, IMAGES, 0)
    assert same(train(row, spec, IMAGES, 0, checkpoint), whole)
    plain = Model(**SMALL, images=60 * 8)
    assert not same(train(plain, plain.spec(0.5, SHAPE), IMAGES, 0), whole)


def test_the_head_of_a_learned_weighting_is_no_part_of_the_model() -> None:
    row = Model(**SMALL, weighting="uncertainty", images=8 * 8)
    assert train(row, SPEC, IMAGES, 0).denoiser.state_dict().keys() == Denoiser(SPEC).state_dict().keys()


def test_augmented_training_tells_the_network_and_sampling_does_not() -> None:
    row = Model(**SMALL, augment=0.5, images=40 * 8)
    spec = row.spec(0.5, SHAPE)
    denoiser = train(row, spec, IMAGES, 0).denoiser
    label = denoiser.network.label.weight
    assert label.shape == (8, 9) and not torch.equal(label, training.new_denoiser(spec, 0).network.label.weight)
    z, sigma = torch.zeros(3, *SHAPE), torch.tensor(0.3, dtype=torch.float64)
    none = denoiser.network(z, torch.full((3,), 0.3), torch.zeros(3, 9))
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


SCRIPT = """
import sys, time
from pathlib import Path
from tests import test_training as t
t.torch.set_num_threads(1)
t.train(t.LONG, t.SPEC, t.IMAGES, 0, Path(sys.argv[1]), lambda images: time.sleep(0.01))
"""
LONG = ROW.model_copy(update={"images": 200 * 8})


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(checkpoint)], cwd=ROOT)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    reported: list[int] = []
    resumed = train(LONG, SPEC, IMAGES, 0, checkpoint, reported.append)
    assert 20 * LONG.batch <= reported[0] < LONG.images
    assert same(resumed, train(LONG, SPEC, IMAGES, 0))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def of_another_network(path: Path) -> None:
    training.Run(SPEC | {"channels": 16}, ROW, 0).save(path)


@pytest.mark.parametrize("harm", [truncate, of_another_network, partial(Path.write_bytes, data=b"")], ids=str)
def test_a_broken_checkpoint_is_one_line_that_names_it(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    checkpoint = tmp_path / "checkpoint"
    killed(3, checkpoint)
    harm(checkpoint)
    with pytest.raises(StudyError) as caught:
        train(ROW, SPEC, IMAGES, 0, checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: a broken checkpoint") and len(message.splitlines()) == 1


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    with pytest.raises(StudyError, match=r"^seed 7: the loss is not finite at step [12]; lower learning_rate\?$"):
        train(ROW.model_copy(update={"learning_rate": 1e30}), SPEC, IMAGES, 7)


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained
) -> None:
    def explodes(row: Model, step: int) -> float:
        return 1e30 if step >= 10 else learning_rate(row, step)

    with monkeypatch.context() as patch, pytest.raises(StudyError, match=r"at step 1[12];"):
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
    train_seeds(row, DATA | {"content_hash": "y"}, IMAGES, lambda images: None, 1)
    train_seeds(row, DATA | {"sigma_data": 0.6}, IMAGES, lambda images: None, 1)
    assert len(list((tmp_path / ".cache/training").iterdir())) == 6


def test_the_first_error_of_a_seed_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="seed 0: the loss is not finite"):
        trained_seeds(Model(**SMALL, images=80, learning_rate=1e30, train_seeds=(0, 1, 2)), 1)
