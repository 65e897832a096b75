"""One training step: gradient, precision, dropout, clipping, and errors for losses that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite
from pipeline.common.randomness import generator
from pipeline.training.batches import Examples, draw_batch
from pipeline.training.draws import Independent
from pipeline.training.loop import advance
from pipeline.training.row import Model
from pipeline.training.run import Run
from tests.training.small import (
    COUNTS,
    IMAGES,
    LABELS,
    ROW,
    SHAPE,
    SMALL,
    SPEC,
    same,
    train,
)


def gradients(row: Model, images: Tensor = IMAGES) -> tuple[list[Tensor], Run]:
    """The gradients of the first step of a network whose last layers are not 0, and the run after it."""
    run = Run(row.spec(0.5, SHAPE, COUNTS), row, 0)
    with torch.no_grad():
        for index, parameter in enumerate(run.denoiser.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator("test", index)), alpha=0.1)
    advance(run, Examples(images, LABELS))
    return [p.grad for p in run.parameters() if p.grad is not None], run


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 11])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"dropout": 0.3},
        {"labels": "classes", "augment": 0.4},
        {"weighting": "uncertainty"},
        {"learned_variance": "hybrid", "parametrization": "iddpm", "noise": "iddpm_uniform"},
        {"upsampler": {"from": 2}},
        {"upsampler": {"from": 1, "augmentation": "blur", "strength": 2}, "augment": 0.4, "labels": "classes"},
    ],
    ids=str,
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


def test_bfloat16_rounds_gradients_and_keeps_weights_and_averages_in_float32() -> None:
    fine, _ = gradients(Model(**SMALL))
    coarse, run = gradients(Model(**SMALL, precision="bfloat16"))
    kept = [*run.denoiser.parameters(), *run.averages.tensors().values(), *coarse]
    assert {value.dtype for value in kept} == {torch.float32}
    one, two = (torch.cat([g.flatten() for g in found]) for found in (fine, coarse))
    assert 1e-4 < float((one - two).norm() / one.norm()) < 0.05


def test_clipped_gradients_keep_their_direction_and_have_the_given_norm() -> None:
    free, _ = gradients(Model(**SMALL))
    norm = float(torch.cat([g.flatten() for g in free]).norm())
    for factor, expected in ((0.25, 0.25), (4.0, 1.0)):
        clipped, _ = gradients(Model(**SMALL, clip_norm=norm * factor))
        for one, two in zip(free, clipped, strict=True):
            torch.testing.assert_close(two, one * expected, rtol=1e-4, atol=1e-9)


def test_a_loss_that_is_not_finite_names_the_step_and_sigma() -> None:
    where = r"at step [12] \(sigma [\d.e+-]+; losses before: [\d.e+, -]+\)"
    line = rf"^seed 7: the loss is not finite {where}; lower learning_rate\?$"
    with pytest.raises(NotFinite, match=line):
        train(ROW.model_copy(update={"learning_rate": 1e30}), SPEC, IMAGES, 7)


def test_the_error_names_sigma_of_the_first_loss_that_is_not_finite() -> None:
    row = Model(**SMALL, micro_batch=3)
    run = Run(SPEC, row, 0)

    def broken(x: Tensor, c_noise: Tensor, labels: Tensor | None, told: Tensor | None) -> Tensor:
        f = run.denoiser.network(x, c_noise, labels, told)
        return torch.where((c_noise == level)[:, None, None, None], math.nan, f)

    u = draw_batch(row, Examples(IMAGES), torch.arange(8), Independent(), generator("step", 0, 0)).u
    sigma = row.distribution.sigma(u)
    level = (sigma.log() / 4).float()[5]
    run.function = broken
    advance(run, Examples(IMAGES))
    with pytest.raises(NotFinite, match=rf"step 0 \(sigma {float(sigma[5]):.4g}\)".replace("+", r"\+")):
        run.check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("choices", [{}, {"labels": "classes", "augment": 0.5, "flip": 0.5}, {"dropout": 0.2}], ids=str)
def test_no_step_waits_for_the_gpu(choices: dict[str, Any]) -> None:
    row = Model(**SMALL, **choices, clip_norm=1.0, micro_batch=4, ema_sigma_rels=(0.1,))
    run = Run(row.spec(0.5, SHAPE, COUNTS), row, 0, torch.device("cuda"))
    advance(run, Examples(IMAGES, LABELS))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            advance(run, Examples(IMAGES, LABELS))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.check()
