"""A training that diverges fails alone: its reason, its files, its students, and a continued run of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.weights import failure, failure_file
from pipeline.training import loop
from pipeline.training.batches import Examples
from pipeline.training.loop import advance, train_seeds
from pipeline.training.row import Model
from pipeline.training.run import Run
from pipeline.training.trained import Failed, Trained, save_models
from tests.training.small import DATA, IMAGES, ROW, SMALL, SPEC, same

REASON = r"seed {}: the loss is not finite at step {} \(sigma [\d.e-]+; losses before: {}\); lower learning_rate\?"
LOSSES = r"[\d.e+-]+(, [\d.e+-]+){0,2}"


def poison(monkeypatch: pytest.MonkeyPatch, seed: int, step: int) -> None:
    """Let a weight of one seed be infinite from a step on."""

    def poisoned(run: Run, examples: Examples) -> None:
        if (run.seed, run.step) == (seed, step):
            with torch.no_grad():
                next(iter(run.denoiser.parameters())).fill_(torch.inf)
        advance(run, examples)

    monkeypatch.setattr(loop, "advance", poisoned)


def trained_seeds(row: Model, progress: Callable[[int], object] = lambda images: None) -> list[Trained | Failed]:
    return train_seeds(row, DATA, IMAGES, progress, 1)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_seed_that_diverges_fails_alone_and_says_where(monkeypatch: pytest.MonkeyPatch, whole: Trained) -> None:
    row = ROW.model_copy(update={"train_seeds": (0, 3), "snapshots": 4, "ema_sigma_rels": (0.1,)})
    [_, healthy] = trained_seeds(row)
    for path in Path(".cache/training").iterdir():
        path.unlink()
    poison(monkeypatch, seed=3, step=7)
    done, failed = trained_seeds(row)
    assert isinstance(done, Trained) and done.curve == whole.curve
    assert isinstance(failed, Failed) and isinstance(healthy, Trained)
    assert failed.seed == 3 and failed.spec == done.spec and failed.curve == healthy.curve[:7]
    before = ", ".join(f"{point['loss']:.4g}" for point in healthy.curve[4:7])
    assert re.fullmatch(REASON.format(3, 7, re.escape(before)), failed.reason)

    summary = save_models([done, failed], Path("models"))
    assert not list(Path("models").glob("seed_3*.safetensors"))
    assert [failure(Path("models"), seed) for seed in (0, 3)] == ["", failed.reason]
    assert summary["failed"] == {"3": failed.reason}
    assert summary["final_loss"] == done.curve[-1]["loss"] and summary["images"] == ROW.images
    alone = save_models([done], Path("alone"))
    assert summary == alone | {"failed": summary["failed"]} and "failed" not in alone


def test_a_row_may_lose_all_of_its_seeds() -> None:
    """By its learning rate; with draws that learn from the losses, of which some are not finite."""
    row = Model(**SMALL, images=160, train_seeds=(0, 1), draws="adaptive").model_copy(update={"learning_rate": 1e30})
    found = trained_seeds(row)
    assert all(isinstance(run, Failed) for run in found)
    summary = save_models(found, Path("models"))
    assert sorted(path.name for path in Path("models").iterdir()) == ["seed_0_failed.json", "seed_1_failed.json"]
    assert summary["final_loss"] is None and summary["classifier_accuracy"] == {}
    assert summary["failed"].keys() == {"0", "1"} and summary["images"] < row.images
    for seed, reason in summary["failed"].items():
        assert re.fullmatch(REASON.format(seed, r"\d+", LOSSES), reason)


def test_a_failed_training_continues_from_its_last_good_checkpoint_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison(monkeypatch, seed=0, step=9)
    row = ROW.model_copy(update={"train_seeds": (0,)})
    content = []
    for folder in ("first", "again"):
        steps: list[int] = []
        save_models(trained_seeds(row, steps.append), Path(folder))
        content.append(failure_file(Path(folder), 0).read_bytes())
        [checkpoint] = Path(".cache/training").iterdir()
        content.append(checkpoint.read_bytes())
    assert content[:2] == content[2:]
    assert steps == [8 * ROW.batch, ROW.batch, ROW.batch], "from step 8, up to the check after step 10"


def test_a_student_fails_with_its_teacher_for_that_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Model(**SMALL, parametrization="flow", noise="flow_uniform", images=5 * 8, train_seeds=(0, 1))
    row = flow.model_copy(update={"pairs": "reflow", "reflow_pairs": 40, "teacher": flow})
    healthy, _ = trained_seeds(row)
    for path in Path(".cache/training").iterdir():
        path.unlink()
    poison(monkeypatch, seed=1, step=2)
    done, failed = trained_seeds(row)
    assert isinstance(done, Trained) and isinstance(healthy, Trained) and same(done, healthy)
    assert isinstance(failed, Failed) and failed.curve == []
    assert re.fullmatch("the teacher failed: " + REASON.format(1, 2, LOSSES), failed.reason)
    assert save_models([failed, done], Path("models"))["final_loss"] == done.curve[-1]["loss"]


def test_every_other_error_of_a_seed_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(run: Run, examples: Examples) -> None:
        if run.seed == 1:
            raise StudyError("seed 1: a mistake in the row")
        advance(run, examples)

    monkeypatch.setattr(loop, "advance", mistaken)
    with pytest.raises(StudyError, match="seed 1: a mistake"):
        trained_seeds(ROW.model_copy(update={"train_seeds": (0, 1, 2)}))


def test_the_curve_of_a_run_ends_with_its_last_whole_stretch() -> None:
    run = Run(SPEC, ROW.model_copy(update={"images": 100 * 8}), 0)  # two steps per point
    for _ in range(5):
        advance(run, Examples(IMAGES))
    assert [point["images"] for point in run.curve()] == [16, 32]
    run.losses[3] = torch.nan
    assert [point["images"] for point in run.curve()] == [16]
